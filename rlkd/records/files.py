"""JSON and files that survive a kill: what is written here is either whole or absent."""

import json
import math
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from rlkd.errors import OutputDirectoryError, RlkdError

_CHUNK = 1 << 20


def plain(value: object, where: str = "", *, nan_as_null: bool = False) -> Any:
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
            str(key): plain(item, f"{where}.{key}" if where else str(key), nan_as_null=nan_as_null)
            for key, item in value.items()
        }
    if isinstance(value, set | frozenset):
        # Sets have no order of their own; a sorted list makes equal configs equal files.
        value = sorted(value, key=repr)
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]", nan_as_null=nan_as_null) for i, item in enumerate(value)]
    raise RlkdError(
        f"{where or 'value'}: expected numbers, text, lists or mappings, got {type(value).__name__}; "
        "convert it before it is written"
    )


def _plain_float(value: float, where: str, *, nan_as_null: bool) -> float | None:
    if math.isfinite(value):
        return value
    if nan_as_null:
        return None
    raise RlkdError(f"{where or 'value'}: expected a finite number, got {value}; JSON has no NaN, pass null instead")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def parse_object(data: bytes) -> dict[str, Any] | None:
    """Read one JSON object; None when ``data`` is anything else."""
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def sync(path: Path) -> None:
    """Force a file or a directory entry to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Force a directory's entries to disk where the filesystem can."""
    # Some filesystems cannot sync a directory; the rename is still atomic there, only less durable.
    with suppress(OSError):
        sync(path)


def cannot_write(path: Path, error: OSError) -> OutputDirectoryError:
    """Build the error for a failed write."""
    reason = error.strerror or str(error)
    return OutputDirectoryError(
        f"expected to write {path}, got {reason!r}; check space and permissions or choose another"
    )


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it and rename it over ``path``.

    Args:
        path: Target; its directory must exist.
        write: Is given the temporary file.

    Raises:
        OutputDirectoryError: If the file cannot be written; ``path`` is untouched.
    """
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
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def unfinished(folder: Path, name: str) -> list[Path]:
    """Temporary files of :func:`write_atomic`, of writers that were killed or are at work: hold the lock of these.

    Args:
        folder: Of the files.
        name: Of what is written, a pattern.
    """
    return list(folder.glob(f".{name}.*.tmp"))


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 so that ``path`` holds either the old content or the new, never a part.

    Args:
        path: Target; its directory must exist.
        text: The whole content.

    Raises:
        OutputDirectoryError: If the disk is full or the directory cannot be written; ``path`` is untouched.
    """
    data = text.encode()
    write_atomic(Path(path), lambda file: file.write(data))


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
    write_atomic(Path(path), lambda file: np.save(file, array, allow_pickle=False))


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
    text = json.dumps(plain(obj), indent=2, allow_nan=False)
    write_text_atomic(path, text + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a run directory."""
    try:
        found = parse_object(path.read_bytes())
    except OSError as error:
        raise OutputDirectoryError(f"expected a readable {path}, got {error.strerror!r}; restore it") from error
    if found is None:
        raise OutputDirectoryError(
            f"expected a JSON object in {path}, got something else; restore it or start elsewhere"
        )
    return found


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
