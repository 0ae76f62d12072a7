"""A document of sections, rendered as Markdown and as one HTML page that needs nothing but itself.

Text is one line of plain words in which ```code``` and ``**strong**`` are marked up; names that come from data sets are
treated as hostile and escaped in both renderings.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import jinja2
from markupsafe import Markup, escape

from rlkd.report.tables import Row, cell_text, clean_text, markdown_escape, markdown_table, numeric_columns
from rlkd.report.template import STYLE, TABLE, WEIGHTS

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
class Weights:
    """Panels of teacher weights, as :func:`rlkd.report.page.weights_part` gives them; HTML only."""

    part: object
    kind: str = field(default="weights", init=False)


Block = Table | Figure | Bullets | Text | Link | Weights


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


def html(title: str, blocks: Sequence[Block], sections: Sequence[Section]) -> str:
    """The document as a page without script and without any reference outside itself."""
    return render(STYLE + TABLE + WEIGHTS + _PAGE, title=title, blocks=blocks, sections=sections)


def render(template: str, **parts: object) -> str:
    """Fill a page's template: every text is cleaned and escaped; ``inline`` and ``cells`` are its filters."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_finalize)
    environment.filters["inline"] = _inline
    environment.filters["cells"] = _cells
    return environment.from_string(template).render(**parts) + "\n"


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


_PAGE = """\
{% macro block_of(block, label) %}
{% if block.kind == "table" and block.rows %}
{{ table_of(block | cells, label) }}
{% elif block.kind == "figure" %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ label }}, plot">
<div class="plot {{ block.width }}" role="img" aria-label="{{ block.alt }}">
{{ block.svg }}
</div>
</div>
{% elif block.kind == "bullets" and block.lines %}
<ul class="points">
{% for line in block.lines %}
<li>{{ line | inline }}</li>
{% endfor %}
</ul>
{% elif block.kind == "text" %}
<p{% if block.note %} class="note"{% endif %}>{{ block.text | inline }}</p>
{% elif block.kind == "weights" %}
{{ weights_of(block.part) }}
{% endif %}
{% endmacro %}
{% macro inner(section) %}
{% for block in section.blocks %}
{{ block_of(block, section.title) }}
{% endfor %}
{% for below in section.sections %}
{% if below.folded %}
<details>
<summary><h3>{{ below.title | inline }}</h3> <span>{{ below.lead | inline }}</span></summary>
{{ inner(below) }}
</details>
{% else %}
<h3 class="apart">{{ below.title | inline }}</h3>
{{ inner(below) }}
{% endif %}
{% endfor %}
{% endmacro %}
<body>
<main class="broad">
<header>
<h1>{{ title }}</h1>
{% for block in blocks %}
{{ block_of(block, title) }}
{% endfor %}
{% if sections | length > 1 %}
<nav aria-label="Sections"><ul>
{% for section in sections %}
<li><a href="#part-{{ loop.index }}">{{ section.title | inline }}</a></li>
{% endfor %}
</ul></nav>
{% endif %}
</header>
{% for section in sections %}
<section id="part-{{ loop.index }}">
<h2>{{ section.title | inline }}</h2>
{{ inner(section) }}
</section>
{% endfor %}
</main>
</body>
</html>
"""
