"""JSON lines that several processes may append to and that a killed writer cannot spoil."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlkd.errors import OutputDirectoryError
from rlkd.records.files import cannot_write, parse_object, plain
from rlkd.records.locks import lock_open_file


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
    line = json.dumps(plain(record, nan_as_null=True), allow_nan=False).encode() + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            with suppress(ImportError, OSError):  # without one, lines are whole all the same
                lock_open_file(descriptor)
            _append_line(descriptor, line)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise cannot_write(path, error) from error


def _append_line(descriptor: int, line: bytes) -> None:
    size = os.fstat(descriptor).st_size
    tail = _tail(descriptor, size)
    if tail and parse_object(tail) is None:
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
        record = parse_object(line)
        if record is None:
            raise OutputDirectoryError(
                f"{path} line {number}: expected a JSON object, got {line[:40]!r}; mend or delete that line"
            )
        records.append(record)
    tail = parse_object(last)
    return records if tail is None else [*records, tail]
