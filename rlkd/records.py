"""Files that survive a kill, and the run directory they live in.

A file written here is either whole or absent: the text goes to a temporary file in the same directory, is
synced, and is renamed over the target. A directory of files (a checkpoint, a cache) is whole when its
manifest, written last, names the size and the hash of every file and all of them match.
"""

import json
import logging
import math
import os
import platform
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from rlkd.errors import ConfigError, OutputDirectoryError, RlkdError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
RUN_MARKERS = ("config.json", "run.json")
"""A directory that holds one of these is one of ours: ``overwrite`` may delete it."""
HARMLESS_KEYS = frozenset(
    {"output_dir", "resume", "overwrite", "progress", "quiet", "verbose", "traceback", "num_workers"}
)
"""Settings that may change when a run is resumed: none of them touches a number."""
PACKAGES = ("rlkd", "torch", "transformers", "gymnasium", "stable_baselines3", "datasets", "numpy")

_CHUNK = 1 << 20
_METRIC_KEY = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_./-]+")


# -- JSON ------------------------------------------------------------------------------------------


def _plain(value: object, where: str, *, nan_as_null: bool) -> Any:
    """Turn ``value`` into what JSON can hold; ``where`` names it in errors."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return _plain_float(value, where, nan_as_null=nan_as_null)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {
            str(key): _plain(item, f"{where}.{key}" if where else str(key), nan_as_null=nan_as_null)
            for key, item in value.items()
        }
    if isinstance(value, set | frozenset):
        # Sets have no order of their own; a sorted list makes equal configs equal files.
        value = sorted(value, key=repr)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", nan_as_null=nan_as_null) for i, item in enumerate(value)]
    raise RlkdError(
        f"{where or 'value'}: expected numbers, text, lists or mappings, got {type(value).__name__}; "
        "convert it before it is written"
    )


def _plain_float(value: float, where: str, *, nan_as_null: bool) -> float | None:
    if math.isfinite(value):
        return value
    if nan_as_null:
        return None
    raise RlkdError(
        f"{where or 'value'}: expected a finite number, got {value}; JSON has no NaN, pass null instead"
    )


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _parse_object(data: bytes) -> dict[str, Any] | None:
    """Read one JSON object; None when ``data`` is anything else."""
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# -- atomic files ----------------------------------------------------------------------------------


def _sync(path: Path) -> None:
    """Force a file or a directory entry to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    # Some filesystems cannot sync a directory; the rename is still atomic there, only less durable.
    with suppress(OSError):
        _sync(path)


def _cannot_write(path: Path, error: OSError) -> OutputDirectoryError:
    reason = error.strerror or str(error)
    return OutputDirectoryError(
        f"expected to write {path}, got {reason!r}; check space and permissions or choose another"
    )


def _write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it and rename it over ``path``."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        # 0o666 less the umask: mkstemp's 0o600 would hide results from a group that shares the directory.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 so that ``path`` holds either the old content or the new, never a part.

    Args:
        path: Target; its directory must exist.
        text: The whole content.

    Raises:
        OutputDirectoryError: If the disk is full or the directory cannot be written; ``path`` is untouched.
    """
    data = text.encode()
    _write_atomic(Path(path), lambda file: file.write(data))


def write_array_atomic(path: str | Path, array: NDArray[Any]) -> None:
    """Write an array as ``.npy``, atomically; never pickled.

    Args:
        path: Target, with its suffix; its directory must exist.
        array: Any shape; no object dtype.

    Raises:
        RlkdError: If the array holds Python objects.
        OutputDirectoryError: If the file cannot be written; ``path`` is untouched.
    """
    if array.dtype.hasobject:
        raise RlkdError(f"{path}: expected an array of numbers, got dtype {array.dtype}; convert it first")
    _write_atomic(Path(path), lambda file: np.save(file, array, allow_pickle=False))


def write_json_atomic(path: str | Path, obj: object) -> None:
    """Write ``obj`` as indented JSON, atomically.

    Numpy values, paths, tuples and sets are written as their plain counterparts.

    Args:
        path: Target; its directory must exist.
        obj: Mappings, lists, text, booleans, None and finite numbers.

    Raises:
        RlkdError: If a number is NaN or infinite, or a value has no JSON form; names the key.
        OutputDirectoryError: If the file cannot be written.
    """
    # ASCII output: a lone surrogate in a class name still gives a valid file.
    text = json.dumps(_plain(obj, "", nan_as_null=False), indent=2, allow_nan=False)
    write_text_atomic(path, text + "\n")


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a run directory."""
    try:
        found = _parse_object(path.read_bytes())
    except OSError as error:
        raise OutputDirectoryError(
            f"expected a readable {path}, got {error.strerror!r}; restore it"
        ) from error
    if found is None:
        raise OutputDirectoryError(
            f"expected a JSON object in {path}, got something else; restore it or start elsewhere"
        )
    return found


# -- JSON lines ------------------------------------------------------------------------------------


def _lock(descriptor: int) -> None:
    """Take the file's lock where the platform and the filesystem have one."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _tail(descriptor: int, size: int) -> bytes:
    """Bytes after the last newline of a file of ``size`` bytes."""
    tail = b""
    while size > 0 and b"\n" not in tail:
        start = max(0, size - 65536)
        tail = os.pread(descriptor, size - start, start) + tail
        size = start
    return tail.rpartition(b"\n")[2]


def append_jsonl(path: str | Path, record: Mapping[str, object]) -> None:
    """Append one record as one line, written by a single ``write``.

    Several processes may append to one file. A line that a killed writer left torn is dropped first, so that
    the new record starts on a new line; a last line that only lacks its newline is kept. NaN and infinities
    are written as ``null``. Not synced: the line survives the death of the process, not of the machine.

    Args:
        path: The file; created if absent, its directory must exist.
        record: Keys and plain values.

    Raises:
        OutputDirectoryError: If the line cannot be written whole; the file is left as it was.
    """
    path = Path(path)
    line = json.dumps(_plain(record, "", nan_as_null=True), allow_nan=False).encode() + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
            _append_line(descriptor, line)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _append_line(descriptor: int, line: bytes) -> None:
    size = os.fstat(descriptor).st_size
    tail = _tail(descriptor, size)
    if tail and _parse_object(tail) is None:
        size -= len(tail)
        os.ftruncate(descriptor, size)
    elif tail:
        line = b"\n" + line
    try:
        written = os.write(descriptor, line)
        if written != len(line):
            raise OSError(None, f"only {written} of {len(line)} bytes could be written")
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read the records of a file written by :func:`append_jsonl`.

    A torn last line, left by a writer that was killed, is skipped; blank lines are too. A file that does not
    exist holds no records.

    Args:
        path: The file.

    Returns:
        The records in order.

    Raises:
        OutputDirectoryError: If another line is not a JSON object; names its number.
    """
    path = Path(path)
    if not path.exists():
        return []
    records = []
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parse_object(line)
        if record is None:
            raise OutputDirectoryError(
                f"{path} line {number}: expected a JSON object, got {line[:40]!r}; mend or delete that line"
            )
        records.append(record)
    tail = _parse_object(last)
    return records if tail is None else [*records, tail]


# -- manifests -------------------------------------------------------------------------------------


def file_hash(path: str | Path) -> str:
    """Hash a file with xxh3, 64 bits, reading it in pieces.

    Finds damage, not malice: xxh3 is no cryptographic hash.

    Args:
        path: The file.

    Returns:
        16 hexadecimal digits.
    """
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _manifest_text(directory: Path, names: Iterable[str]) -> str:
    files = {
        name: {"size": (directory / name).stat().st_size, "xxh3": file_hash(directory / name)}
        for name in sorted(names)
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
        _sync(directory / name)
    for folder in folders:
        _sync_directory(folder)
    write_text_atomic(directory / MANIFEST, _manifest_text(directory, names))
    _sync_directory(directory.parent)


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
        document = _parse_object(stored)
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
        raise ConfigError(
            f"expected one '*' in the pattern, got {pattern!r}; write for example 'checkpoint-*'"
        )
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


# -- output directories ----------------------------------------------------------------------------


def _some_names(directory: Path, limit: int = 3) -> str:
    names = sorted(path.name for path in directory.iterdir())
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _refusal(directory: Path) -> str | None:
    """Why ``directory`` must not be deleted, or None."""
    resolved = directory.resolve()
    if directory.is_symlink():
        return "a symbolic link"
    if Path.cwd().is_relative_to(resolved) or Path.home().is_relative_to(resolved):
        return "the directory you work in, or one above it"
    if (directory / ".git").exists():
        return "a git repository"
    if not any((directory / marker).is_file() for marker in RUN_MARKERS):
        return f"no {' or '.join(RUN_MARKERS)} but {_some_names(directory)}"
    return None


def _empty(directory: Path) -> None:
    """Delete what is in ``directory``; the markers go last, so a killed deletion can be repeated."""
    for path in sorted(directory.iterdir(), key=lambda path: path.name in RUN_MARKERS):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def prepare_output_dir(path: str | Path, *, resume: bool, overwrite: bool) -> Path:
    """Create the directory of a run, or make sure that the one there may be used.

    Args:
        path: The directory; created with its parents if absent.
        resume: Continue what is there. An absent or empty directory is fine: there is nothing to continue.
        overwrite: Delete what is there, if it looks like a run of ours.

    Returns:
        ``path`` as a :class:`~pathlib.Path`; the directory exists.

    Raises:
        ConfigError: If both flags are set.
        OutputDirectoryError: If the directory is not empty and neither flag is set, is a file, or holds
            something that is not ours to delete.
    """
    path = Path(path)
    if resume and overwrite:
        raise ConfigError(
            "expected resume or overwrite, got both; resume keeps the run, overwrite deletes it"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        empty = not any(path.iterdir())
    except FileExistsError as error:
        raise OutputDirectoryError(
            f"expected a directory at {path}, got a file; choose another output directory"
        ) from error
    except OSError as error:
        raise _cannot_write(path, error) from error
    if empty or resume:
        return path
    if not overwrite:
        raise OutputDirectoryError(
            f"expected an empty output directory, got {path} with {_some_names(path)}; "
            "pass resume to continue that run, overwrite to delete it, or choose another directory"
        )
    refusal = _refusal(path)
    if refusal is not None:
        raise OutputDirectoryError(
            f"overwrite expected a run directory at {path}, got {refusal}; delete it or choose another"
        )
    _empty(path)
    return path


# -- environment -----------------------------------------------------------------------------------


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command in ``root``; None if it fails or git is absent."""
    # Inside a hook, GIT_DIR points at another repository than the one asked about.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            env=clean,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _checkout() -> Path | None:
    """Root of the git checkout that this package runs from; None for an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    top = _git(root, "rev-parse", "--show-toplevel")
    # A wheel installed below some other project's checkout must not report that project's commit.
    return root if top is not None and Path(top).resolve() == root else None


def commit() -> str | None:
    """Name the commit of the rlkd checkout, 40 hexadecimal digits; None for an installed wheel."""
    root = _checkout()
    return None if root is None else _git(root, "rev-parse", "HEAD")


def _dirty() -> bool | None:
    """Whether tracked files of the checkout differ from its commit; None for an installed wheel."""
    root = _checkout()
    changes = None if root is None else _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if changes is None else bool(changes)


def environment() -> dict[str, Any]:
    """Describe what a run ran on.

    Returns:
        ``python``, ``platform``, ``cpu_count``; ``versions``, package to version (None where not installed);
        ``commit`` and ``dirty`` of the rlkd checkout, None for an installed wheel.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "versions": {package: _version(package) for package in PACKAGES},
        "commit": commit(),
        "dirty": _dirty(),
    }


# -- run directories -------------------------------------------------------------------------------


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


_ABSENT = object()


def _shown(value: object) -> str:
    return "nothing" if value is _ABSENT else json.dumps(value)


def _first_difference(
    old: Mapping[str, Any], new: Mapping[str, Any], harmless: Iterable[str]
) -> tuple[str, str, str] | None:
    """Key, old and new value of the first setting that differs; None if none does."""
    skipped = frozenset(harmless)
    flat_old = _flat({key: value for key, value in old.items() if key not in skipped})
    flat_new = _flat({key: value for key, value in new.items() if key not in skipped})
    for key in sorted(flat_old.keys() | flat_new.keys()):
        before, after = flat_old.get(key, _ABSENT), flat_new.get(key, _ABSENT)
        if before != after:
            return key, _shown(before), _shown(after)
    return None


class RunDirectory:
    """The directory of one run: ``config.json``, ``environment.json`` and ``metrics.jsonl``.

    A directory that already holds a config is resumed: its config must equal the new one, except for
    ``harmless`` keys, and the first config and environment are kept.

    Args:
        path: The directory; created if absent. See :func:`prepare_output_dir` for the flags.
        config: The resolved arguments, plain values.
        harmless: Top-level keys that may differ on resume.

    Raises:
        OutputDirectoryError: If the stored config differs (names the key) or is damaged.
    """

    def __init__(
        self, path: str | Path, config: Mapping[str, object], *, harmless: Iterable[str] = HARMLESS_KEYS
    ) -> None:
        self.path = Path(path)
        self.config: dict[str, Any] = _plain(config, "", nan_as_null=False)
        self.path.mkdir(parents=True, exist_ok=True)
        stored = self.path / "config.json"
        self.resumed = stored.exists()
        if self.resumed:
            self._check(_read_object(stored), harmless)
        self._record_environment()
        if not self.resumed:
            # Last: a directory with a config is one whose other files are there.
            write_json_atomic(stored, self.config)

    def _check(self, stored: dict[str, Any], harmless: Iterable[str]) -> None:
        difference = _first_difference(stored, self.config, harmless)
        if difference is not None:
            key, before, after = difference
            raise OutputDirectoryError(
                f"{self.path} was started with {key} = {before}, got {after}; "
                f"resume with the same {key}, or choose another directory"
            )

    def _record_environment(self) -> None:
        path = self.path / "environment.json"
        now = environment()
        if not (self.resumed and path.exists()):
            write_json_atomic(path, now)
            return
        difference = _first_difference(_read_object(path), now, ())
        if difference is not None:
            logger.warning("%s: %s was %s when the run began and is %s now", self.path, *difference)

    @property
    def metrics_path(self) -> Path:
        """Where the metrics are: ``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    def log(self, step: int, /, **values: object) -> None:
        """Append one line of metrics.

        No time is recorded: two runs with one seed write the same bytes.

        Args:
            step: The step the values belong to; >= 0.
            **values: ``group/name`` to a number or a list of numbers, for example
                ``**{"student/loss": 0.3}``; NaN is written as ``null``.

        Raises:
            ConfigError: If a key is not ``group/name``.
        """
        for key in values:
            if not _METRIC_KEY.fullmatch(key):
                raise ConfigError(
                    f"expected a metric key like 'student/loss', got {key!r}; name its group first"
                )
        append_jsonl(self.metrics_path, {"step": int(step), **values})

    def metrics(self) -> list[dict[str, Any]]:
        """Read the metrics back, one mapping a line, each with ``step``."""
        return read_jsonl(self.metrics_path)

    def rewind(self, step: int) -> None:
        """Drop metrics after ``step``: a run resumed from a checkpoint logs those steps again.

        Args:
            step: The step of the checkpoint; its own metrics are kept.
        """
        records = self.metrics()
        kept = [record for record in records if record.get("step", 0) <= step]
        if len(kept) != len(records):
            write_text_atomic(self.metrics_path, "".join(json.dumps(record) + "\n" for record in kept))
