"""What a teacher said of rows, kept by what it read of them, so that no later epoch and no later run asks it again.

A store is a folder of files, one of each process that asked: 16 bytes of a row's fingerprint, the teacher's logits in
float32, and their checksum, one row after the other. Nothing that is there is ever written again, so that processes
share a store without a lock, and what a killed one wrote last is whole or left out.
"""

import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from rlkd.errors import CacheError

FORMAT = b"rlkd answers 1\n\n"
FILES = "answers-*.bin"
LABELS = frozenset({"label", "labels", "label_ids"})
"""Columns that no teacher reads."""
Fingerprints = NDArray[np.int64]
"""Of rows, shape (B, 2)."""


def fingerprint(read: Any) -> tuple[int, int]:
    """Of what a teacher reads of a row: a text, several, or columns by name; labels do not count."""
    found = xxhash.xxh3_128()
    _feed(found, read)
    halves = np.frombuffer(found.digest(), dtype=np.int64)
    return int(halves[0]), int(halves[1])


def _feed(found: Any, read: Any) -> None:
    if isinstance(read, Mapping):
        for name in sorted(set(read) - LABELS):
            found.update(f"\x00{name}\x00".encode())
            _feed(found, read[name])
    elif isinstance(read, str):
        found.update(f"\x01{len(read)}\x01{read}".encode("utf-8", "surrogatepass"))
    elif isinstance(read, tuple):
        for part in read:
            _feed(found, part)
    else:
        values = np.asarray(read)
        values = values.astype(np.int64) if values.dtype.kind in "iub" else values  # as lists and arrays come
        found.update(f"\x02{values.dtype.str}{values.shape}\x02".encode())
        found.update(np.ascontiguousarray(values))


class AnswerStore:
    """Answers of one teacher."""

    def __init__(self, folder: Path, identity: str) -> None:
        """Read what is there.

        Args:
            folder: Of the store; made when there is something to keep.
            identity: Of the teacher: a store of another one is refused.

        Raises:
            CacheError: A file is none of ours, or damaged.
        """
        self.folder, self._identity = folder, xxhash.xxh3_64(identity.encode()).digest()
        self._place: dict[bytes, tuple[int, int]] = {}
        self._files: list[Any] = []
        self._path = folder / FILES.replace("*", uuid.uuid4().hex)
        self._new: list[NDArray[np.float32]] = []
        for path in sorted(folder.glob(FILES)):
            self._read(path)
        self._before = len(self._files)

    def __len__(self) -> int:
        return len(self._place)

    def _read(self, path: Path) -> None:
        with path.open("rb") as opened:
            head = opened.read(len(FORMAT) + 12)
        if not FORMAT.startswith(head[: len(FORMAT)]):
            raise CacheError(f"expected answers of a teacher in {path}, got another file; remove it")
        if len(head) < len(FORMAT) + 12:
            return  # of a process that was killed at once
        if head[len(FORMAT) : len(FORMAT) + 8] != self._identity:
            raise CacheError(f"{path} holds answers of another teacher; choose another folder, or remove it")
        classes = int(np.frombuffer(head[-4:], dtype=np.uint32)[0])
        kind = record_type(classes)
        whole = (path.stat().st_size - len(head)) // kind.itemsize
        if whole == 0:
            return
        records = np.memmap(path, dtype=kind, mode="r", offset=len(head), shape=(whole,))
        if not np.array_equal(checksums(records), records["sum"]):
            raise CacheError(f"{path} is damaged: its checksums differ; remove it, and the teacher is asked again")
        for row, key in enumerate(records["key"].tobytes()[place : place + 16] for place in range(0, 16 * whole, 16)):
            self._place.setdefault(key, (len(self._files), row))
        self._files.append(records["logits"])

    def known(self, keys: Fingerprints) -> NDArray[np.bool_]:
        """Which rows the teacher was asked about, shape (B,)."""
        return np.array([key in self._place for key in _bytes(keys)], dtype=bool)

    def get(self, keys: Fingerprints) -> Tensor:
        """What it said of rows that it was asked about, float32, shape (B, C)."""
        places = [self._place[key] for key in _bytes(keys)]
        rows = [self._new[row] if file == self._before else self._files[file][row] for file, row in places]
        return torch.from_numpy(np.stack(rows))

    def add(self, keys: Fingerprints, logits: Tensor) -> None:
        """Keep answers (B, C) to rows; they are with the system when this returns."""
        values = logits.detach().cpu().numpy().astype(np.float32)
        records = np.zeros(len(values), dtype=record_type(values.shape[1]))
        records["key"], records["logits"] = np.ascontiguousarray(keys).view("V16")[:, 0], values
        records["sum"] = checksums(records)
        self._append(records.tobytes(), values.shape[1])
        for key, row in zip(_bytes(keys), values, strict=True):
            self._place.setdefault(key, (self._before, len(self._new)))
            self._new.append(row)

    def _append(self, records: bytes, classes: int) -> None:
        head = b"" if self._new else FORMAT + self._identity + np.uint32(classes).tobytes()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(head + records)
        except OSError as error:
            raise CacheError(
                f"expected to keep answers in {self.folder}, got {error.strerror!r}; name another folder with cache=, "
                "or leave the cache out"
            ) from error


def record_type(classes: int) -> np.dtype[Any]:
    """Of a row on disk."""
    return np.dtype([("key", "V16"), ("logits", "<f4", (classes,)), ("sum", "<u4")])


def checksums(records: Any) -> NDArray[np.uint32]:
    """Of keys and logits, shape (rows,)."""
    size = records.dtype.itemsize
    whole = np.ascontiguousarray(records).tobytes()
    return np.array(
        [zlib.crc32(whole[start : start + size - 4]) for start in range(0, len(whole), size)], dtype=np.uint32
    )


def _bytes(keys: Fingerprints) -> Sequence[bytes]:
    whole = np.ascontiguousarray(keys, dtype=np.int64).tobytes()
    return [whole[start : start + 16] for start in range(0, len(whole), 16)]
