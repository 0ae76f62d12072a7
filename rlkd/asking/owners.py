"""Who asks: a number that is on a call's intent, with a lock that ends with its process, however that dies."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rlkd.records import file_lock


class Owners:
    """Those that ask through a ledger, in whichever process.

    Args:
        folder: Of their locks.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._gone = set[int]()
        self._locks: dict[int, Any] = {}
        """Of others, one each: they are looked at again and again."""

    @contextmanager
    def one(self) -> Iterator[int]:
        """A new one, who is alive for as long as this is held; what it leaves unsettled is, from then on."""
        owner = secrets.randbits(63) | 1
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(owner)
        lock = file_lock(path)
        lock.acquire()
        try:
            yield owner
        finally:
            path.unlink(missing_ok=True)
            lock.release()

    def alive(self, owner: int) -> bool:
        """Whether one may still settle what it has begun; while somebody else looks, this can be said of a dead one."""
        if owner in self._gone:
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        if owner not in self._locks:
            self._locks[owner] = file_lock(self._path(owner))
        lock = self._locks[owner]
        try:
            lock.acquire(timeout=0)
        except TimeoutError:
            return True
        with suppress(OSError):
            self._path(owner).unlink()
        lock.release()
        self._gone.add(owner)
        return False

    def _path(self, owner: int) -> Path:
        return self._folder / f"{owner}.lock"
