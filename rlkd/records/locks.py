"""Locks on files: each ends with the process that holds it, however that dies."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

log = logging.getLogger(__name__)

_KEPT: "list[BaseFileLock]" = []
"""All locks of this process. They have a destructor, and what is raised in one is lost, Ctrl-C too: none is run before
the process ends."""


def file_lock(path: Path) -> "BaseFileLock":
    """A lock on a file, not yet held; the file's directory must exist when it is."""
    from filelock import FileLock  # loads asyncio, and whoever loads a policy reads records

    lock = FileLock(path)
    _KEPT.append(lock)
    return lock


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock on a file, and wait for it; where the file system has no locks, go on without and warn.

    Args:
        path: The file; its directory must exist. The lock ends with the process, however that dies.
    """
    lock = file_lock(path)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        log.warning("working in %s without a lock: %s", path.parent, error)
    try:
        yield
    finally:
        lock.release()
