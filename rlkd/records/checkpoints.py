"""Directories that are whole or not used: a manifest, written last, names the size and the hash of every file."""

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from rlkd.errors import ConfigError, OutputDirectoryError
from rlkd.records.files import file_hash, parse_object, sync, sync_directory, write_text_atomic

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1


def step_number(checkpoint: Path) -> int:
    """The step at which a folder ``checkpoint-STEP`` was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _manifest_text(directory: Path, names: Iterable[str]) -> str:
    files = {
        name: {"size": (directory / name).stat().st_size, "xxh3": file_hash(directory / name)} for name in sorted(names)
    }
    return json.dumps({"format_version": MANIFEST_VERSION, "files": files}, indent=2) + "\n"


def write_manifest(directory: str | Path) -> None:
    """Seal a directory: sync every file in it, then write ``manifest.json`` with their sizes and hashes.

    Call it last. A directory without a manifest, or with one that does not verify, is one whose writer was
    killed.

    Args:
        directory: Holds the files, in subdirectories too. Symbolic links are refused.

    Raises:
        OutputDirectoryError: If the directory holds a symbolic link or cannot be written.
    """
    directory = Path(directory)
    names, folders = [], [directory]
    for path in directory.rglob("*"):
        if path.is_symlink():
            raise OutputDirectoryError(
                f"expected only files in {directory}, got the link {path.name!r}; copy its target there"
            )
        if path.is_dir():
            folders.append(path)
        elif path != directory / MANIFEST and not _is_temporary(path):
            names.append(path.relative_to(directory).as_posix())
    for name in names:
        sync(directory / name)
    for folder in folders:
        sync_directory(folder)
    write_text_atomic(directory / MANIFEST, _manifest_text(directory, names))
    sync_directory(directory.parent)


def _is_inside(directory: Path, name: str) -> bool:
    """Whether ``name`` is a regular file below ``directory`` that no link leads out of."""
    parts = Path(name).parts
    if not parts or ".." in parts or Path(name).is_absolute() or "\0" in name:
        return False
    path = directory / name
    return path.is_file() and path.resolve() == directory.resolve() / name


def verify_manifest(directory: str | Path) -> bool:
    """Whether every file named by the manifest of ``directory`` is there, byte for byte.

    Files that the manifest does not name are ignored. Never raises on damaged or hostile content.

    Args:
        directory: Sealed by :func:`write_manifest`.

    Returns:
        True if all sizes and hashes match and the manifest itself is unchanged.
    """
    directory = Path(directory)
    try:
        stored = (directory / MANIFEST).read_bytes()
        document = parse_object(stored)
        files = document.get("files") if document is not None else None
        if not isinstance(files, dict) or not all(_is_inside(directory, name) for name in files):
            return False
        # Compared as text: this also finds damage in the manifest itself, down to its white space.
        return _manifest_text(directory, files).encode() == stored
    except (OSError, ValueError):
        return False


def newest_verified(directory: str | Path, pattern: str = "checkpoint-*") -> Path | None:
    """Find the checkpoint with the highest number whose manifest verifies.

    Args:
        directory: Holds the checkpoints; may be absent.
        pattern: Name with one ``*`` that stands for the number; other names are ignored.

    Returns:
        Its path, or None if there is none.

    Raises:
        ConfigError: If ``pattern`` has not exactly one ``*``.
    """
    if pattern.count("*") != 1:
        raise ConfigError(f"expected one '*' in the pattern, got {pattern!r}; write for example 'checkpoint-*'")
    directory = Path(directory)
    # Only digits may stand for the star: 'checkpoint-5.tmp-77' is not number 77.
    name = re.compile(re.escape(pattern).replace(r"\*", r"(\d{1,18})"), re.ASCII)
    numbered = []
    for path in directory.iterdir() if directory.is_dir() else ():
        match = name.fullmatch(path.name)
        if match and path.is_dir():
            numbered.append((int(match[1]), path))
    for _, path in sorted(numbered, reverse=True):
        if verify_manifest(path):
            return path
        logger.warning("%s is partial or damaged; looking for an older one", path)
    return None
