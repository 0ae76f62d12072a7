"""The book of a ledger: an entry before every call and one after, which several processes append and no kill spoils."""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkd.errors import CacheError
from rlkd.records import lock_open_file
from rlkd.records.files import cannot_write

BOOK = "calls.bin"
ENTRY = np.dtype(
    [
        ("teacher", "<u4"),
        ("kind", "<u4"),
        ("row", "<i8"),
        ("owner", "<u8"),
        ("cost", "<u8"),
        ("tokens_in", "<u4"),
        ("tokens_out", "<u4"),
        ("replies", "<u4"),
        ("lost", "<u4"),
        ("check", "<u4"),
    ]
)
"""``owner`` is who asks; ``cost``, in billionths, is of an intent what is set aside, of other entries what was paid.
``replies`` and ``lost`` are requests: of several votes about a row some may be answered and others not."""
KINDS = ("under way", "answered", "refused", "cut off", "no label", "rejected", "not sent", "lost")
INTENT, ANSWERED, REFUSED, CUT_OFF, NO_LABEL, REJECTED, NOT_SENT, LOST = range(len(KINDS))
"""``rejected``: the server does not take the text, and was not paid. ``not sent``: surely not served. ``lost``: sent,
and no answer came; it may have been paid for."""

Entries = NDArray[Any]


class Book:
    """Entries of a file, in the order in which they were written.

    Args:
        folder: Where the file is, or will be.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / BOOK
        self._read = 0
        """Entries that :meth:`new` has given."""

    def __len__(self) -> int:
        return self._read

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the file: what is read now is true until it is let go, also for other threads of this process.

        Raises:
            OutputDirectoryError: It cannot be written, or the file system has no locks.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        try:
            try:
                lock_open_file(descriptor)
            except OSError as error:
                raise cannot_write(self._path, error) from error
            yield descriptor
        finally:
            os.close(descriptor)

    def new(self, descriptor: int) -> Entries:
        """Entries that were written since, by whichever process.

        A part of an entry at the end is none, nor are zeros, which a machine that died leaves of what it had not
        written: a call is not made before its intent is on disk.

        Raises:
            CacheError: They are not what was written.
        """
        size = os.fstat(descriptor).st_size // ENTRY.itemsize
        if size < self._read:
            raise self._damaged(size)
        data = os.pread(descriptor, (size - self._read) * ENTRY.itemsize, self._read * ENTRY.itemsize)
        entries = np.frombuffer(data[: -(-len(data.rstrip(b"\0")) // ENTRY.itemsize) * ENTRY.itemsize], ENTRY)
        good = checks(entries) == entries["check"]
        if not good.all():
            raise self._damaged(self._read + int(np.argmin(good)))
        self._read += len(entries)
        return entries

    def append(self, descriptor: int, entries: Entries, *, sync: bool) -> None:
        """Write entries behind the last; :meth:`new` gives them too. All others were read before.

        Args:
            descriptor: Of the file, held.
            entries: Their checks are filled in.
            sync: Wait until they are on disk: what must be known even if the machine dies.

        Raises:
            OutputDirectoryError: They cannot be written.
        """
        entries["check"] = checks(entries)
        data = entries.tobytes()
        try:
            if os.pwrite(descriptor, data, self._read * ENTRY.itemsize) != len(data):
                raise OSError(None, "only a part could be written")
            if sync:
                os.fsync(descriptor)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def _damaged(self, entry: int) -> CacheError:
        return CacheError(
            f"the ledger {self._path.parent} is damaged: entry {entry} of {BOOK} is not what was written; restore it "
            "from a copy, for what was paid cannot be known from it"
        )


def checks(entries: Entries) -> NDArray[np.uint32]:
    """What says that an entry is whole, (n,)."""
    size, data = ENTRY.itemsize, entries.tobytes()
    made = (zlib.crc32(data[start : start + size - 4]) for start in range(0, len(data), size))
    return np.fromiter(made, np.uint32, len(entries))
