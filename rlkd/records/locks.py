"""Locks on files: each ends with the process that holds it, however that dies."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

log = logging.getLogger(__name__)

LOCKS_FOLDER = ".locks"
"""Where claims lie, beside what they are on."""

_KEPT: "list[BaseFileLock]" = []
"""All locks of this process. They have a destructor, and what is raised in one is lost, Ctrl-C too: none is run before
the process ends."""


def lock_open_file(descriptor: int) -> None:
    """Take the lock of an open file, and wait for it; it ends when the file is closed.

    Raises:
        OSError: The file system has none.
        ImportError: The platform has none.
    """
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX)


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


@contextmanager
def claim(folder: Path, name: str) -> Iterator[bool]:
    """Hold the right to do something while other programs may want to do it too.

    The claim is a lock on a file: it ends with the process that holds it, however that dies. What was done while it was
    held must be recorded before it ends, and looked up after it was got.

    Args:
        folder: Where the lock files lie; made if absent.
        name: Of what is to be done.

    Yields:
        Whether the claim is ours.
    """
    from filelock import Timeout

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.lock"
    lock = file_lock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
        with suppress(OSError):  # only of what is recorded: a later claimant finds that, whichever file it has locked
            path.unlink()
    finally:
        lock.release()
