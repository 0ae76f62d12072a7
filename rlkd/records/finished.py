"""The one way to say that a folder is finished: ``done.json``, written last, with what the folder was made of."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd.errors import OutputDirectoryError
from rlkd.records.checkpoints import verify_manifest, write_manifest
from rlkd.records.files import cannot_write, plain, read_object, sync, write_json_atomic
from rlkd.records.locks import held

DONE = "done.json"
LOCK = ".making.tmp"
"""Held while a folder is made; called as temporary files are, which no manifest names."""


@dataclass(frozen=True)
class Finished:
    """What the marker of a finished folder says."""

    made_of: str | None
    """Key of what decided its content; None in folders of earlier releases that are named by it."""
    made: dict[str, Any]
    """What making it gave."""


def once(
    folder: str | Path, made_of: str, make: Callable[[], Mapping[str, Any] | None], *, whole: bool = False
) -> dict[str, Any]:
    """Make a folder, unless it is finished.

    Programs that ask for one folder at the same time wait for each other. Whenever a program is killed, the folder it
    was making is not finished: the marker is written when all else is on disk.

    Args:
        folder: What is made; created with its parents.
        made_of: Key of all that decides its content, see :func:`~rlkd.records.digest`.
        make: Fills the folder, and returns plain values to remember; None: nothing.
        whole: It is made in one go: what an interrupted call left is deleted first, and its files are sealed, so that
            a damaged folder is made again. Otherwise ``make`` goes on from what it finds.

    Returns:
        What ``make`` gave, now or then.

    Raises:
        OutputDirectoryError: The folder was made of something else, or cannot be written.
    """
    folder = Path(folder)
    found = _made_of_this(folder, made_of)
    if found is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        with held(folder / LOCK):
            found = _made_of_this(folder, made_of)  # another program may have made it meanwhile
            if found is None:
                found = _make(folder, made_of, make, whole=whole)
            with suppress(OSError):  # who waits for it finds the marker, whichever file the lock is on
                (folder / LOCK).unlink()
    return found.made


def finished(folder: str | Path) -> Finished | None:
    """What a finished folder says of itself, in the marker of this release or of an earlier one; None for any other.

    Raises:
        OutputDirectoryError: The marker is damaged.
    """
    folder = Path(folder)
    content = read_object(folder / DONE) if (folder / DONE).is_file() else {}
    if "made" not in content:
        return _without_marker(folder)
    if content["sealed"] and not verify_manifest(folder):
        return None
    return Finished(content["made_of"], content["made"])


def _without_marker(folder: Path) -> Finished | None:
    """What earlier releases wrote last, by kind of folder; and a policy, which is published as it is."""

    def has(*names: str) -> bool:
        return all((folder / name).is_file() for name in names)

    for name in (DONE, "result.json", "stage.json"):  # stages of suites; students of domains; sealed models
        if has(name):
            content = read_object(folder / name)
            damaged = name == "stage.json" and not verify_manifest(folder)
            return None if damaged else Finished(content.get("made_of"), content)
    if has("teacher.json"):  # which people write too, without settings: no training made that
        content = read_object(folder / "teacher.json")
        return Finished(content.get("settings") or "", content.get("metrics") or {})
    # Of a policy, ``config.json`` is written last.
    distilled = has("student/config.json", "student/model.safetensors", "results.json", "report.html")
    policy = has("README.md", "model.safetensors", "config.json")
    return Finished(None, {}) if distilled or policy else None


def _made_of_this(folder: Path, made_of: str) -> Finished | None:
    found = finished(folder)
    if found is not None and found.made_of not in (made_of, None):
        raise OutputDirectoryError(
            f"{str(folder)!r} was made with other settings or data than asked for now: expected {made_of}, got "
            f"{found.made_of or 'a folder made by hand'}; choose another directory or delete this one"
        )
    return found


def _make(folder: Path, made_of: str, make: Callable[[], Mapping[str, Any] | None], *, whole: bool) -> Finished:
    if whole:
        # The marker of a damaged folder goes first: half deleted, it is not finished.
        for path in sorted(folder.iterdir(), key=lambda path: path.name != DONE):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
    made = plain(make() or {})
    if whole:
        write_manifest(folder)
    else:
        for path in folder.rglob("*"):
            if path.is_file():
                sync(path)
    write_json_atomic(folder / DONE, {"made_of": made_of, "sealed": whole, "made": made})
    return Finished(made_of, made)
