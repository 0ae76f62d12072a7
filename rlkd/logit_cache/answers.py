"""What one teacher answered, by what it read: files that several processes may add to and that a kill cannot spoil.

A folder has ``store.json``, which says whose answers they are, ``answers.bin``, logits one after another, and
``rows.bin``, an entry a row: its key, where its answer stands, and a check of both. An answer is written before its
entry, both under a lock: what is listed is whole, and what a killed writer left behind the last entry is written over.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import xxhash
from numpy.typing import NDArray

from rlkd.errors import CacheError
from rlkd.records import lock_open_file, parse_object, write_json_atomic
from rlkd.records.files import cannot_write

FORMAT_VERSION = 1
HEADER, ROWS, ANSWERS = "store.json", "rows.bin", "answers.bin"
ENTRY = np.dtype([("key", "<u8", 2), ("start", "<u8"), ("count", "<u8"), ("check", "<u8")])
LOGIT = np.dtype("<f4")

Keys = NDArray[np.uint64]
"""Of B rows, (B, 2): 128 bits, so that no two rows are taken for one."""
Answers = NDArray[np.float32]
"""Logits (M, C): M = B of instances; of tokens those of the first row, then of the second, ..."""


class AnswerStore:
    """What one teacher answered about rows: one answer (C,) of an instance, several of a row of tokens.

    Answers are read from mapped files; in memory are about 16 bytes a row.

    Args:
        folder: Of this teacher; made when the first answer is added.
        teacher: Its identity.

    Raises:
        CacheError: The folder holds answers of another teacher, or is damaged.
    """

    def __init__(self, folder: Path, teacher: str) -> None:
        self._folder, self._teacher = folder, teacher
        self._places = KeyIndex()
        self._rows = np.empty(0, ENTRY)
        self._logits = np.empty((0, 0), LOGIT)
        self.of_tokens = False
        """Whether answers are of the tokens of a row; known when there are some."""
        self._read_on()

    def __reduce__(self) -> Any:
        """Workers of data loaders open it themselves."""
        return AnswerStore, (self._folder, self._teacher)

    def __len__(self) -> int:
        """How many rows there are answers of, as far as was read."""
        return len(self._rows)

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """The place of each row, (B,); -1 of one that no process has added yet."""
        places = self._known(keys)
        return self._known(keys) if (places < 0).any() and self._read_on() else places

    def answers(self, places: NDArray[np.int64]) -> Answers:
        """The answers at places that :meth:`find` gave, none of them -1, row after row, in memory of their own."""
        assert (places >= 0).all()
        if not self.of_tokens:
            return self._logits.take(places, 0)
        rows = self._rows[places]
        start, count = rows["start"].astype(np.int64), rows["count"].astype(np.int64)
        steps = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        answers: Answers = self._logits[np.repeat(start, count) + steps]
        return answers

    def add(self, keys: Keys, answers: Answers, counts: NDArray[np.int64], *, of_tokens: bool = False) -> None:
        """Add rows; what another process has added meanwhile stays.

        Args:
            keys: Of different rows, (B, 2).
            answers: (M, C), finite.
            counts: How many of them each row has, (B,), with sum M.
            of_tokens: Whether they are of tokens.

        Raises:
            CacheError: There are answers of other classes already, or the folder is damaged.
            OutputDirectoryError: They cannot be written; those before are untouched.
        """
        header = {
            "format_version": FORMAT_VERSION,
            "teacher": self._teacher,
            "classes": answers.shape[1],
            "of_tokens": of_tokens,
        }
        with self._locked() as descriptor:
            self._read_on()
            if not (self._folder / HEADER).exists():
                write_json_atomic(self._folder / HEADER, header)
            if self._header() != header:
                raise CacheError(f"expected answers like those in {self._folder}, got {header}; name another folder")
            new = self._known(keys) < 0
            if new.any():
                self._write(descriptor, keys[new], answers[np.repeat(new, counts)].astype(LOGIT), counts[new])
        self._read_on()

    def _write(self, descriptor: int, keys: Keys, answers: Answers, counts: NDArray[np.int64]) -> None:
        end = int(self._rows[-1]["start"] + self._rows[-1]["count"]) if len(self._rows) else 0
        rows = np.empty(len(keys), ENTRY)
        rows["key"], rows["count"], rows["start"] = keys, counts, end + np.cumsum(counts) - counts
        rows["check"] = checks(rows, answers, end)
        with _opened(self._folder / ANSWERS) as file:
            _write_at(file, answers.tobytes(), end * answers.shape[1] * LOGIT.itemsize)
        _write_at(descriptor, rows.tobytes(), len(self._rows) * ENTRY.itemsize)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        path = self._folder / ROWS
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with _opened(path) as descriptor:
                lock_open_file(descriptor)
                yield descriptor
        except OSError as error:
            raise cannot_write(path, error) from error

    def _known(self, keys: Keys) -> NDArray[np.int64]:
        if not len(self._rows):
            return np.full(len(keys), -1)
        places = self._places.find(keys[:, 0])
        places[(self._rows["key"][places] != keys).any(1)] = -1
        return places

    def _read_on(self) -> bool:
        """Read what was added since, by whichever process; whether there was anything."""
        path, known = self._folder / ROWS, len(self._rows)
        count = path.stat().st_size // ENTRY.itemsize if path.exists() else 0  # a part of an entry is none
        if count == known:
            return False
        answers = self._folder / ANSWERS
        if count < known or not answers.exists():
            raise self._damaged("files are gone or shorter than they were")
        header = self._header()
        size = answers.stat().st_size // (LOGIT.itemsize * header["classes"])
        rows = np.asarray(np.memmap(path, ENTRY, mode="r", shape=(count,)))
        logits = np.asarray(np.memmap(answers, LOGIT, mode="r", shape=(size, header["classes"])))
        self._check(rows[known:], logits, known)
        self._rows, self._logits, self.of_tokens = rows, logits, header["of_tokens"]
        self._places.add(rows["key"][known:, 0], known)
        return True

    def _check(self, rows: NDArray[Any], logits: Answers, first: int) -> None:
        start, count = rows["start"].astype(np.int64), rows["count"].astype(np.int64)
        there = (0 <= start) & (0 <= count) & (start + count <= len(logits))
        if not there.all() or not (good := checks(rows, logits) == rows["check"]).all():
            row = first + int(np.argmin(there if not there.all() else good))
            raise self._damaged(f"row {row} is not what was written")

    def _header(self) -> Mapping[str, Any]:
        path = self._folder / HEADER
        header = parse_object(path.read_bytes()) if path.is_file() else None
        if header is None or header.get("format_version") != FORMAT_VERSION:
            raise CacheError(
                f"expected answers of a teacher in {self._folder}, got files without a {HEADER} of format "
                f"{FORMAT_VERSION}; name another folder"
            )
        if header.get("teacher") != self._teacher:
            raise CacheError(
                f"expected answers of teacher {self._teacher} in {self._folder}, got those of "
                f"{header.get('teacher')!r:.80}; name another folder"
            )
        if not isinstance(classes := header.get("classes"), int) or classes < 1 or "of_tokens" not in header:
            raise self._damaged(f"{HEADER} is not what was written")
        return header

    def _damaged(self, what: str) -> CacheError:
        return CacheError(f"the answers in {self._folder} are damaged, {what}; delete it, and teachers are asked again")


class KeyIndex:
    """Where each key stands: sorted, and beside that the newest until they are many."""

    MOST_NEW = 512

    def __init__(self) -> None:
        self._keys, self._places = np.empty(0, np.uint64), np.empty(0, np.int64)
        self._new: dict[int, int] = {}

    def add(self, keys: NDArray[np.uint64], first: int) -> None:
        """Add keys (n,), whose places begin with ``first``."""
        if len(self._new) + len(keys) <= max(self.MOST_NEW, len(self._keys) // 8):
            self._new.update(zip(keys.tolist(), range(first, first + len(keys)), strict=True))
            return
        new = (np.fromiter(self._new.keys(), np.uint64), np.fromiter(self._new.values(), np.int64))
        together = np.concatenate([self._keys, new[0], keys])
        places = np.concatenate([self._places, new[1], np.arange(first, first + len(keys))])
        order = np.argsort(together)
        self._keys, self._places, self._new = together[order], places[order], {}

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The place of each of the keys (B,); of one that is not there any place."""
        if not len(self._keys):
            return np.array([self._new.get(key, 0) for key in keys.tolist()])
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        places = self._places[at]
        if self._new:
            for row in np.flatnonzero(self._keys[at] != keys).tolist():
                places[row] = self._new.get(int(keys[row]), 0)
        return places


def checks(rows: NDArray[Any], logits: Answers, first: int = 0) -> NDArray[np.uint64]:
    """What says that entries and their answers belong together, (B,).

    Args:
        rows: Entries, (B,).
        logits: Where their answers stand.
        first: Which of all answers ``logits`` begins with.
    """
    keys, data = rows["key"].tobytes(), memoryview(cast(Any, logits)).cast("B")
    size = logits.shape[1] * LOGIT.itemsize
    begins = ((rows["start"] - first) * size).tolist()
    ends = ((rows["start"] + rows["count"] - first) * size).tolist()
    made = (
        xxhash.xxh3_64_intdigest(keys[16 * row : 16 * row + 16] + data[begin:end])
        for row, (begin, end) in enumerate(zip(begins, ends, strict=True))
    )
    return np.fromiter(made, np.uint64, len(rows))


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_at(descriptor: int, data: bytes, place: int) -> None:
    written = os.pwrite(descriptor, data, place)
    if written != len(data):
        raise OSError(None, f"only {written} of {len(data)} bytes could be written")
