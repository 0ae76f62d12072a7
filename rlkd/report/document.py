"""A document of sections, rendered as Markdown and as one HTML page that needs nothing but itself.

Text is one line of plain words in which ```code``` and ``**strong**`` are marked up; names that come from data sets are
treated as hostile and escaped in both renderings.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import jinja2
from markupsafe import Markup, escape

from rlkd.report.plots import compact
from rlkd.report.tables import Row, cell_text, clean_text, markdown_escape, markdown_table, numeric_columns
from rlkd.report.template import PAGE

_INLINE = ((re.compile(r"`([^`]+)`"), r"<code>\1</code>"), (re.compile(r"\*\*([^*]+)\*\*"), r"<strong>\1</strong>"))


@dataclass(frozen=True)
class Table:
    """Rows with the columns in order of appearance."""

    rows: Sequence[Row]
    marked: Sequence[int] = ()
    """Rows that stand out, by position; HTML only."""
    kind: str = field(default="table", init=False)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


@dataclass(frozen=True)
class Figure:
    """A plot and what it shows in words; in Markdown only where it is a file too."""

    svg: Markup
    alt: str
    width: str = "wide"
    """A class of the page's style: ``wide``, ``middle`` or ``full``."""
    file: str = ""
    """Where it lies beside a page of Markdown; empty: nowhere."""
    kind: str = field(default="figure", init=False)


@dataclass(frozen=True)
class Bullets:
    """Sentences, one a line."""

    lines: Sequence[str]
    kind: str = field(default="bullets", init=False)


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    note: bool = False
    """Smaller and muted; HTML only."""
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Link:
    """Where more is told; Markdown only, since the HTML page is one."""

    text: str
    target: str
    kind: str = field(default="link", init=False)


@dataclass(frozen=True)
class Panel:
    """One of several plots, with its heading."""

    title: str
    svg: Markup
    alt: str
    lead: str = ""
    """A few words beside the heading."""


@dataclass(frozen=True)
class Panels:
    """Plots side by side, with one legend for all; HTML only."""

    panels: Sequence[Panel]
    legend: Sequence[tuple[str, str]] = ()
    """Names and their colours."""
    size: str = "small"
    """A class of the page's style: ``small`` or ``pair``."""
    kind: str = field(default="panels", init=False)


Block = Table | Figure | Bullets | Text | Link | Panels


@dataclass(frozen=True)
class Section:
    """A heading with blocks and sections below it."""

    title: str
    blocks: Sequence[Block] = ()
    sections: Sequence["Section"] = ()
    folded: bool = False
    """Closed until the reader opens it; HTML only."""
    lead: str = ""
    """One sentence beside the heading of a folded section; HTML only."""


@dataclass(frozen=True)
class Opening:
    """What the first screen of an HTML page shows."""

    verdict: str
    """What was found, in a sentence."""
    picture: Sequence[Block] = ()
    """What shows it."""
    beside: Sequence[Block] = ()
    """A few short sentences, or a small table."""


def markdown(title: str, blocks: Sequence[Block], sections: Sequence[Section]) -> str:
    """The document as Markdown, with the figures that are files; ends with a newline."""
    parts = [f"# {_markdown_line(title)}", *_markdown_blocks(blocks)]
    for section in sections:
        parts += _markdown_section(section, 2)
    return "\n\n".join(parts) + "\n"


def _markdown_section(section: Section, level: int) -> list[str]:
    below = [part for inner in section.sections for part in _markdown_section(inner, level + 1)]
    own = _markdown_blocks(section.blocks)
    return [f"{'#' * level} {_markdown_line(section.title)}", *own, *below] if own or below else []


def _markdown_blocks(blocks: Sequence[Block]) -> list[str]:
    parts = []
    for block in blocks:
        if isinstance(block, Table) and block.rows:
            parts.append(markdown_table(block.rows, block.columns))
        elif isinstance(block, Bullets) and block.lines:
            parts.append("\n".join(f"- {_markdown_line(line)}" for line in block.lines))
        elif isinstance(block, Text):
            parts.append(_markdown_line(block.text))
        elif isinstance(block, Link):
            parts.append(f"[{_markdown_line(block.text)}]({block.target})")
        elif isinstance(block, Figure) and block.file:
            parts.append(f"![{_markdown_line(block.alt)}]({block.file})")
    return parts


def _markdown_line(text: str) -> str:
    return markdown_escape(clean_text(text))


def html(title: str, opening: Opening, sections: Sequence[Section]) -> str:
    """The document as a page without script and without any reference outside itself."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_finalize)
    environment.filters |= {"inline": _inline, "cells": _cells, "compact": compact}
    return environment.from_string(PAGE).render(title=title, opening=opening, sections=sections) + "\n"


def _finalize(value: object) -> object:
    """Clean every text that enters the page; markup of ours passes."""
    return value if isinstance(value, Markup) else clean_text(str(value))


def plain(text: str) -> str:
    """The words of a line without its markup, for a terminal."""
    for pattern, _ in _INLINE:
        text = pattern.sub(r"\1", text)
    return clean_text(text)


def _inline(text: str) -> Markup:
    safe = str(escape(clean_text(text)))
    for pattern, replacement in _INLINE:
        safe = pattern.sub(replacement, safe)
    return Markup(safe)


def _cells(table: Table) -> dict[str, object]:
    """What the table macro draws."""
    columns = table.columns
    return {
        "columns": list(zip(columns, numeric_columns(table.rows, columns), strict=True)),
        "rows": [[cell_text(row.get(name)) for name in columns] for row in table.rows],
        "marked": set(table.marked),
    }
