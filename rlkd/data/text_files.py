"""Files of text: in which encoding they are, how their cells are separated, and which columns they have."""

import csv
import re
from pathlib import Path
from typing import Any

from rlkd.data.columns import KNOWN_PAIRS, TEXT_NAMES, Columns, folded, resolved_columns
from rlkd.errors import TaskError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
"""Suffix of a file to what separates its cells, if its first line has one."""
_OTHERS = (",", ";", "\t", "|")
_BYTE_ORDER = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def check_encoding(path: Path) -> None:
    """Refuse a file that is not UTF-8: read as if it were, its texts would be others.

    Raises:
        TaskError: Names the line, what the file may be instead, and how to convert it.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = _BYTE_ORDER.get(line[:2], "Windows-1252") if number == 1 else "Windows-1252"
                also = " or Latin-1" if found == "Windows-1252" else ""
                raise TaskError(
                    f"{str(path)!r} must be UTF-8, line {number} has the byte 0x{line[error.start]:02x}, as in a file "
                    f"of the encoding {found}{also}; convert it: iconv -f {found} -t UTF-8 '{path}' > "
                    f"'{path.with_stem(f'{path.stem}-utf8')}'"
                ) from error


def csv_options(path: Path, columns: Columns) -> dict[str, Any]:
    """Options of the reader for one file.

    Texts such as "NA", "null" or "007" stay texts; only an empty or NaN label is missing. Cells are separated as the
    suffix says; where the first line has none of that, by the only other separator in it.

    Args:
        path: A file of :data:`SEPARATORS`.
        columns: What is text and what is a label, where the format does not say.
    """
    separator, names = _header(path)
    own = resolved_columns(names, columns, str(path))
    texts = {own.text, own.domain, *(column for pair in KNOWN_PAIRS for column in pair)}
    texts |= {name for name in names if folded(name) in TEXT_NAMES}
    if own.pair is not None:
        texts.add(own.pair)
    return {
        "sep": separator,
        "quoting": csv.QUOTE_NONE if separator == "\t" and _has_bare_quotes(path) else csv.QUOTE_MINIMAL,
        "index_col": False,
        "keep_default_na": False,
        "na_values": {own.label: ["", "NaN", "nan"]},
        "converters": dict.fromkeys(sorted(texts - {own.label}), str),
    }


def _header(path: Path) -> tuple[str, list[str]]:
    """What separates the cells of a file, and the names in its first line."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        bare, own = _QUOTED.sub("", first), SEPARATORS[path.suffix.lower()]
        others = [separator for separator in _OTHERS if separator in bare]
        separator = others[0] if own not in bare and len(others) == 1 else own
        file.seek(0)
        return separator, next(csv.reader(file, delimiter=separator), [])


def _has_bare_quotes(path: Path) -> bool:
    """Whether quotes in a file of tabs are part of its texts, as in those of GLUE: read as quotes they join rows.

    So it is where every line has as many tabs as the first, and some cell begins with a quote that does not end it.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        tabs, bare = file.readline().count("\t"), False
        for line in file:
            cells = line.rstrip("\r\n").split("\t")
            if len(cells) != tabs + 1 and cells != [""]:
                return False
            bare |= any(cell.startswith('"') and not _QUOTED.fullmatch(cell) for cell in cells)
    return bare
