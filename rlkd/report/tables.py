"""Tables as text: for terminals and for Markdown."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Row = Mapping[str, object]
Cells = dict[str, object]


def clean_text(text: str) -> str:
    """One printable line: control characters, terminal escapes and lone surrogates become a mark."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def shortened(text: str, limit: int) -> str:
    """One printable line of ``limit`` characters at the most, cut with an ellipsis."""
    text = clean_text(text)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def cell_text(value: object) -> str:
    """A value as text: a dash for what is missing, four decimals for ordinary floats."""
    if value is None:
        return "-"
    if isinstance(value, float | np.floating):
        number = float(value)
        ordinary = number == 0 or 1e-4 <= abs(number) < 1000
        return f"{number:.4f}" if ordinary else f"{number:.4g}"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return clean_text(str(value))


def _width(text: str) -> int:
    """Terminal columns: wide East Asian characters take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)


def numeric_columns(rows: Sequence[Row], columns: Sequence[str]) -> list[bool]:
    """Which columns hold only numbers and gaps, and so are aligned to the right."""
    found = []
    for name in columns:
        values = [row[name] for row in rows if row.get(name) is not None]
        found.append(bool(values) and all(map(_is_number, values)))
    return found


def _pad(text: str, width: int, right: bool) -> str:
    gap = " " * (width - _width(text))
    return gap + text if right else text + gap


def _aligned(rows: Sequence[Row], columns: Sequence[str], escape: Callable[[str], str]) -> list[list[str]]:
    """Header and body as cells of equal width a column."""
    cells = [[escape(clean_text(name)) for name in columns]]
    cells += [[escape(cell_text(row.get(name))) for name in columns] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    right = numeric_columns(rows, columns)
    return [[_pad(*item) for item in zip(line, widths, right, strict=True)] for line in cells]


def format_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Lay rows out as aligned plain text for a terminal.

    Floats have four decimals, numbers are aligned to the right, what is missing is a dash.

    Args:
        rows: Column name to value; names that are not in ``columns`` are left out.
        columns: Names of the columns, in order; at least one.

    Returns:
        Header, rule and one line a row, without a last newline.
    """
    header, *body = _aligned(rows, columns, str)
    rule = ["─" * _width(cell) for cell in header]
    return "\n".join("  ".join(line).rstrip() for line in [header, rule, *body])


def filled(rows: Sequence[Cells]) -> list[Cells]:
    """Rows of equal keys without the columns that no row fills."""
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)] if rows else []
    return [{name: row[name] for name in names} for row in rows]


def markdown_escape(text: str) -> str:
    """Text in which nothing is HTML, an escape or the end of a cell."""
    for character, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\\", "\\\\"), ("|", "\\|")):
        text = text.replace(character, safe)
    return text


def markdown_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Lay rows out as a Markdown table that is also readable as text.

    Args:
        rows: Column name to value; names that are not in ``columns`` are left out.
        columns: Names of the columns, in order; at least one.

    Returns:
        The table without a last newline; pipes and HTML in cells are escaped.
    """
    header, *body = _aligned(rows, columns, markdown_escape)
    right = numeric_columns(rows, columns)
    rule = ["-" * (max(_width(c), 3) - r) + ":" * r for c, r in zip(header, right, strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *body])
