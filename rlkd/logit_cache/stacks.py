"""Logits of all teachers in one array (N, K, C), in memory or mapped, so that a row is read in one place.

A cache keeps an array (N, C) a teacher: each is written when its teacher has answered, named by what it is, and
verified by itself. Read row by row those are K places; on a disk K times the reads. So they are stacked:

- Up to ``RAM_LIMIT`` in memory, as they are stored: float16 becomes float32 a batch at a time, which is exact. Files
  are copied in pieces whose maps are given back, so that the data are held once.
- Larger ones in a file beside the arrays, made once, when the cache is first opened, under the lock of its folder.
  That takes their size on the disk again, for fewer and faster reads ever after. The arrays stay what the cache is:
  the manifest, keys and interrupted builds know nothing of the stack, caches of earlier releases get theirs, and it
  may be deleted. It is named by the hashes that the manifest tells of the arrays, which are verified when it is made;
  its own hash is noted beside it, last, and verified whenever it is opened in their place. A damaged one is made
  again. Where it cannot be written, as in a folder that is read only, that is told, and arrays are mapped one by one.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.errors import OutputDirectoryError
from rlkd.records import digest, file_hash, held, parse_object, write_atomic, write_json_atomic

log = logging.getLogger(__name__)

RAM_LIMIT = 2**30
"""Caches up to this many bytes, as they are stored, are held in memory; larger ones are mapped."""
STACKS = "stacked-*"
"""Files of a cache that are made of its arrays."""
LOCK = ".lock"
"""Of the folder of a cache: held by who writes in it."""
PIECE_BYTES = 2**24
"""That are copied at once."""

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class StackedLogits:
    """Logits in one array, in memory or mapped.

    Args:
        stack: Shape (N, number of teachers, C).
        picked: Which of its teachers are read, in this order; None: all.
    """

    stack: Array
    picked: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, K and C."""
        rows, teachers, classes = self.stack.shape
        return rows, teachers if self.picked is None else len(self.picked), classes

    def rows(self, ids: Tensor) -> Tensor:
        """Those of the instances ``ids`` (B,), float32, shape (B, K, C)."""
        return torch.from_numpy(self._rows(ids.numpy())).float()

    def _rows(self, ids: NDArray[np.int64]) -> Array:
        found = self.stack.take(ids, axis=0)  # take: half the time of an index, and less than torch's index_select
        return found if self.picked is None else found.take(self.picked, axis=1)

    def pick(self, index: Sequence[int]) -> "StackedLogits":
        """Some of the teachers only, in this order; the array is shared."""
        own = range(self.shape[1]) if self.picked is None else self.picked
        return StackedLogits(self.stack, tuple(own[k] for k in index))

    def head(self, rows: int) -> "StackedLogits":
        """The first ``rows`` instances only; the array is shared."""
        return StackedLogits(self.stack[:rows], self.picked)

    def take(self, ids: NDArray[np.int64]) -> "StackedLogits":
        """The instances ``ids`` (M,) only, in memory."""
        return StackedLogits(self._rows(ids))


@dataclass(frozen=True)
class SeparateLogits:
    """Logits in an array a teacher, as they were given.

    Args:
        arrays: K arrays of shape (N, C), in memory or mapped.
    """

    arrays: tuple[Array, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, K and C."""
        rows, classes = self.arrays[0].shape
        return rows, len(self.arrays), classes

    def rows(self, ids: Tensor) -> Tensor:
        """Those of the instances ``ids`` (B,), float32, shape (B, K, C)."""
        index = ids.numpy()
        found = np.empty((len(index), *self.shape[1:]), dtype=np.result_type(*self.arrays))
        for k, array in enumerate(self.arrays):
            found[:, k] = array.take(index, axis=0)
        return torch.from_numpy(found).float()

    def pick(self, index: Sequence[int]) -> "SeparateLogits":
        """Some of the teachers only, in this order."""
        return SeparateLogits(tuple(self.arrays[k] for k in index))

    def head(self, rows: int) -> "SeparateLogits":
        """The first ``rows`` instances only."""
        return SeparateLogits(tuple(array[:rows] for array in self.arrays))

    def take(self, ids: NDArray[np.int64]) -> "SeparateLogits":
        """The instances ``ids`` (M,) only, in memory."""
        return SeparateLogits(tuple(array[ids] for array in self.arrays))


Logits = StackedLogits | SeparateLogits
"""Logits of N instances by K teachers, C classes each."""


def logits_of(arrays: Sequence[Array]) -> Logits:
    """Logits of K arrays (N, C): stacked in memory, or as they are where that would go beyond ``RAM_LIMIT``."""
    arrays = [np.asarray(array) for array in arrays]  # np.memmap's own indexing takes twice the time
    shape, dtype = _stack_of(arrays)
    if np.prod(shape) * dtype.itemsize > RAM_LIMIT:
        return SeparateLogits(tuple(arrays))
    stack = np.empty(shape, dtype=dtype)
    _fill(stack, 0, arrays.__getitem__)
    return StackedLogits(stack)


def is_large(paths: Sequence[Path]) -> bool:
    """Whether files of arrays go beyond ``RAM_LIMIT`` together; those that are missing do not count."""
    return sum(path.stat().st_size for path in paths if path.is_file()) > RAM_LIMIT


def stacked_in_memory(paths: Sequence[Path]) -> StackedLogits:
    """Logits of K files of arrays (N, C)."""
    shape, dtype = _stack_of([_mapped(path) for path in paths])
    stack = np.empty(shape, dtype=dtype)
    for start, stop in _pieces(shape, dtype):
        _fill(stack[start:stop], start, lambda k: _mapped(paths[k]))
    return StackedLogits(stack)


def stacked_on_disk(paths: Sequence[Path], hashes: Sequence[str]) -> Logits:
    """Logits of K verified files of arrays (N, C) in one folder, mapped; their stack is made if it is not there.

    Args:
        paths: Of the files.
        hashes: Of the files, in the same order.
    """
    stack = _stack_path(paths[0].parent, hashes)
    try:
        with held(stack.parent / LOCK):
            if open_stack(stack.parent, hashes) is None:  # no other process has made it meanwhile
                if stack.is_file() and _note_of(stack).is_file():
                    log.warning("%s is not what was written; it is made again", stack)
                _write_stack(stack, paths)
    except OutputDirectoryError as error:
        log.warning("logits of %d teachers are read one by one, which is slower: %s", len(paths), error)
        return SeparateLogits(tuple(np.asarray(_mapped(path)) for path in paths))
    return StackedLogits(np.asarray(_mapped(stack)))


def open_stack(folder: Path, hashes: Sequence[str]) -> StackedLogits | None:
    """The stack of arrays with these hashes, verified and mapped; None: there is none, or it is damaged."""
    path = _stack_path(folder, hashes)
    note = _note_of(path)
    if not (path.is_file() and note.is_file()):
        return None
    if (parse_object(note.read_bytes()) or {}).get("hash") != file_hash(path):
        return None
    return StackedLogits(np.asarray(_mapped(path)))


def _stack_path(folder: Path, hashes: Sequence[str]) -> Path:
    return folder / f"stacked-{digest(list(hashes), 16)}.npy"


def _note_of(stack: Path) -> Path:
    return stack.with_suffix(".json")


def _mapped(path: Path) -> Array:
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _stack_of(arrays: Sequence[Array]) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    """Shape and number format of a stack: float16 where all arrays are, else float32."""
    half = all(array.dtype == np.float16 for array in arrays)
    rows, classes = arrays[0].shape
    return (rows, len(arrays), classes), np.dtype(np.float16 if half else np.float32)


def _pieces(shape: tuple[int, int, int], dtype: np.dtype[Any]) -> Iterator[tuple[int, int]]:
    rows = max(1, PIECE_BYTES // max(1, shape[1] * shape[2] * dtype.itemsize))
    return ((start, min(start + rows, shape[0])) for start in range(0, shape[0], rows))


def _fill(stack: Array, start: int, array_of: Callable[[int], Array]) -> None:
    """Copy rows of all teachers, from ``start`` on, into a stack of as many."""
    for k in range(stack.shape[1]):
        stack[:, k] = array_of(k)[start : start + len(stack)]


def _write_stack(stack: Path, paths: Sequence[Path]) -> None:
    shape, dtype = _stack_of([_mapped(path) for path in paths])
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}

    def write(file: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(file, header)
        for start, stop in _pieces(shape, dtype):
            piece = np.empty((stop - start, *shape[1:]), dtype=dtype)
            _fill(piece, start, lambda k: _mapped(paths[k]))
            file.write(piece.data)

    write_atomic(stack, write)
    write_json_atomic(_note_of(stack), {"hash": file_hash(stack)})
