"""A task: instances, labels and four splits that never mix.

Instance ids are rows of the task's table. Rows are ordered train, probe, validation, test, so that a training
view (:meth:`Task.training_view`) is a shorter table: rewards and policies cannot reach the test split because
its rows are not there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from rlkd.data.origin import Origin
from rlkd.errors import TaskError

SPLITS = ("train", "probe", "validation", "test")
UNLABELLED = -1


def scaled(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images as models read them: numbers in [0, 1], float32, the same shape."""
    return images.astype(np.float32) / np.float32(255)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns of all instances, indexed by instance id; one of ``texts``, ``vectors`` and ``images`` is given."""

    labels: NDArray[np.int64]
    """Class indices, shape (N,); ``UNLABELLED`` where there is none."""
    domains: NDArray[np.int64]
    """Domain indices, shape (N,); zeros where the task has no domains."""
    texts: tuple[str, ...] | None = None
    text_pairs: tuple[str, ...] | None = None
    """Second texts of sentence pairs."""
    vectors: NDArray[np.float32] | None = None
    """Feature vectors, shape (N, D), for tasks that are not text."""
    images: NDArray[np.uint8] | None = None
    """Images, shape (N, height, width, channels); models read them as numbers in [0, 1]."""
    origin: Origin | None = None
    """Where the rows stand in the user's files; None where there are none. It is no part of the data's fingerprint."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def holds(self) -> str:
        """What the instances are: ``"text"``, ``"vectors"`` or ``"images"``."""
        if self.images is not None:
            return "images"
        return "text" if self.vectors is None else "vectors"

    @property
    def width(self) -> int:
        """Numbers of a row as a vector: its length D, or its pixels; 0 for texts."""
        column = self.vectors if self.images is None else self.images
        return 0 if column is None else int(np.prod(column.shape[1:]))

    def take(self, ids: NDArray[np.int64]) -> "Table":
        """Copy some rows, in the order of ``ids``, shape (M,)."""

        def picked(column: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if column is None else tuple(column[i] for i in ids.tolist())

        return Table(
            labels=self.labels[ids],
            domains=self.domains[ids],
            texts=picked(self.texts),
            text_pairs=picked(self.text_pairs),
            vectors=None if self.vectors is None else self.vectors[ids],
            images=None if self.images is None else self.images[ids],
            origin=None if self.origin is None else self.origin.take(ids),
        )

    def head(self, rows: int) -> "Table":
        """Copy the first ``rows`` rows."""
        return self.take(np.arange(rows))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A classification task with train / probe / validation / test splits."""

    name: str
    label_names: tuple[str, ...]
    table: Table
    splits: Mapping[str, NDArray[np.int64]]
    """Split name to instance ids; contiguous, in the order of ``SPLITS``."""
    domain_names: tuple[str, ...] = field(default=())
    """Names of the domains; empty where the task has none."""

    def __post_init__(self) -> None:
        flat = np.concatenate([self.splits[name] for name in SPLITS if name in self.splits])
        if not np.array_equal(flat, np.arange(len(self.table))):
            raise TaskError(
                f"task {self.name!r}: the splits must list every row once, in the order {', '.join(SPLITS)}"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.label_names)

    def labels(self, split: str) -> NDArray[np.int64]:
        """Labels of one split, shape (N_split,)."""
        return self.table.labels[self.splits[split]]

    def labelled_ids(self, split: str) -> NDArray[np.int64]:
        """Ids of the rows of one split that have a label."""
        ids = self.splits[split]
        labelled: NDArray[np.int64] = ids[self.table.labels[ids] != UNLABELLED]
        return labelled

    @cached_property
    def untaught(self) -> tuple[str, ...]:
        """Names of the classes of which no train row has the label."""
        taught = set(np.unique(self.labels("train")).tolist())
        return tuple(name for index, name in enumerate(self.label_names) if index not in taught)

    def training_view(self) -> "Task":
        """The task without its test rows: what policies, rewards and fitted weightings may see."""
        kept = {name: ids for name, ids in self.splits.items() if name != "test"}
        return replace(self, table=self.table.head(sum(len(ids) for ids in kept.values())), splits=kept)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names, rows, labels, domains and split sizes; equal fingerprints mean equal data."""
        digest = xxhash.xxh3_128()
        digest.update(repr((self.label_names, self.domain_names)).encode())
        digest.update(repr([(name, len(ids)) for name, ids in self.splits.items()]).encode())
        digest.update(self.table.labels.tobytes() + self.table.domains.tobytes())
        for column in (self.table.texts, self.table.text_pairs):
            for text in column or ():
                encoded = text.encode("utf-8", "surrogatepass")
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
        if self.table.vectors is not None:
            digest.update(np.ascontiguousarray(self.table.vectors).tobytes())
        if self.table.images is not None:
            digest.update(repr(self.table.images.shape).encode() + np.ascontiguousarray(self.table.images).tobytes())
        return digest.hexdigest()


def raw_inputs(task: Task, ids: NDArray[np.int64]) -> Any:
    """What a person would call the inputs: texts, pairs of texts, vectors, or images as numbers in [0, 1].

    Args:
        task: The task.
        ids: Instance ids, shape (N,).

    Returns:
        ``list[str]``, ``list[tuple[str, str]]``, or an array (N, D) or (N, height, width, channels).
    """
    table = task.table
    if table.images is not None:
        return scaled(table.images[ids])
    if table.vectors is not None:
        return table.vectors[ids]
    texts, pairs = table.texts or (), table.text_pairs
    if pairs is None:
        return [texts[index] for index in ids]
    return [(texts[index], pairs[index]) for index in ids]


def joined_inputs(task: Task, ids: NDArray[np.int64]) -> Any:
    """As :func:`raw_inputs`, with the two texts of a pair joined by a line break, and the pixels of an image in a row.

    Args:
        task: The task.
        ids: Instance ids, shape (N,).

    Returns:
        ``list[str]`` or an array (N, D).
    """
    rows = raw_inputs(task, ids)
    if task.table.images is not None:
        return rows.reshape(len(rows), -1)
    return rows if task.table.text_pairs is None else ["\n".join(pair) for pair in rows]
