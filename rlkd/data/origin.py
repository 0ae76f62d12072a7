"""Where rows come from: the file of the source, and the number of the row in it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

FILES = ("train", "unlabelled", "validation", "test")
"""Files that a source may have, in the order in which they are read."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The place of every instance in the files of its source, which splitting re-orders."""

    sizes: Mapping[str, int]
    """Name of each file, of :data:`FILES` and in their order, to its rows."""
    places: NDArray[np.int64]
    """Row of each instance in all files one after another, shape (N,)."""

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> "Origin":
        """Of all rows, as they are read."""
        ordered = {name: sizes[name] for name in FILES if sizes.get(name)}
        return cls(sizes=ordered, places=np.arange(sum(ordered.values()), dtype=np.int64))

    def take(self, ids: NDArray[np.int64]) -> "Origin":
        """Of some of the instances, shape (M,)."""
        return replace(self, places=self.places[ids])

    @property
    def in_order(self) -> bool:
        """Whether the instances are the first rows of all files in their order."""
        return bool((self.places == np.arange(len(self.places))).all())

    def locate(self, ids: NDArray[np.int64]) -> list[tuple[str, int]]:
        """The file of each instance of ``ids`` (M,) and its row there, counted from 0."""
        ends = np.cumsum(list(self.sizes.values()))
        files = np.searchsorted(ends, self.places[ids], side="right")
        names, starts = list(self.sizes), ends - list(self.sizes.values())
        return [
            (names[file], place - int(starts[file]))
            for file, place in zip(files.tolist(), self.places[ids].tolist(), strict=True)
        ]

    def rows_of(self, file: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The instances that are of one file, and their rows in it, counted from 0; both of shape (M,)."""
        start = sum(size for name, size in self.sizes.items() if FILES.index(name) < FILES.index(file))
        ids = np.flatnonzero((self.places >= start) & (self.places < start + self.sizes.get(file, 0)))
        return ids, self.places[ids] - start
