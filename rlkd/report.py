"""Tables for terminals and Markdown, and one HTML page that needs nothing but itself.

The page has no script and no external resource: plots are inline SVG with their text kept as text, sized so
that a phone stacks them. Names come from data sets and are treated as hostile: cleaned of control characters,
escaped in HTML, and never read as mathematics by the plotting library.
"""

import io
import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rlkd.errors import ConfigError
from rlkd.records import write_text_atomic

Row = Mapping[str, object]

MAX_PANELS = 16
"""Groups that get a panel of their own; the rest is told in words."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#8A6D00", "#444444")
"""Okabe and Ito's palette, safe for colour-blind readers; yellow darkened to be legible as text."""
DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))
INK, MUTED, FAINT = "#1b2733", "#5b6875", "#dfe4ea"
_DIRECT_LABELS = 4


# -- text tables -----------------------------------------------------------------------------------


def _clean(text: str) -> str:
    """One printable line: control characters, terminal escapes and lone surrogates become a mark."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def _short(text: str, limit: int) -> str:
    text = _clean(text)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _cell(value: object) -> str:
    """A value as text: a dash for what is missing, four decimals for ordinary floats."""
    if value is None:
        return "-"
    if isinstance(value, float | np.floating):
        number = float(value)
        ordinary = number == 0 or 1e-4 <= abs(number) < 1000
        return f"{number:.4f}" if ordinary else f"{number:.4g}"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return _clean(str(value))


def _width(text: str) -> int:
    """Terminal columns: wide East Asian characters take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)


def _numeric_columns(rows: Sequence[Row], columns: Sequence[str]) -> list[bool]:
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
    cells = [[escape(_clean(name)) for name in columns]]
    cells += [[escape(_cell(row.get(name))) for name in columns] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    right = _numeric_columns(rows, columns)
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


def _markdown_escape(text: str) -> str:
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
    header, *body = _aligned(rows, columns, _markdown_escape)
    right = _numeric_columns(rows, columns)
    rule = ["-" * (max(_width(c), 3) - r) + ":" * r for c, r in zip(header, right, strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *body])


# -- plots -----------------------------------------------------------------------------------------


@contextmanager
def _quiet_style() -> Iterator[None]:
    """Style for one drawing; every setting is put back after it."""
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "rlkd",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "axes.unicode_minus": True,
        "text.parse_math": False,
        "text.usetex": False,
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # The reader's browser has the glyphs that the measuring font lacks.
        warnings.filterwarnings("ignore", message="(?s).*Glyph")
        yield


_METADATA = ("Date", "Creator", "Format", "Type")
_NUMBERED_ID = re.compile(r' id="[\w.]+_\d+"')


def _svg(figure: Figure) -> Markup:
    """Render a figure as an ``<svg>`` element that scales with its container."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    text = buffer.getvalue()
    # The page has its own font stack; the measuring font is only a fallback.
    text = text[text.index("<svg") :].replace("'DejaVu Sans'", "system-ui, 'Segoe UI', sans-serif")
    # Ids such as axes_1 would come again in the next plot. The library escaped every text that went in.
    return Markup(_NUMBERED_ID.sub("", text))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    _bare(axes)
    return figure, axes


def _bare(axes: Axes) -> None:
    """Only what carries numbers: no frame, faint grid, muted ticks."""
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelsize=10, labelcolor=MUTED)
    axes.grid(axis="both", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def _spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move label positions apart to ``gap`` where they fit into [low, high], keeping their order.

    Neighbours that are too close give way by the same amount, so a label stays near its line.
    """
    order = np.argsort(positions, kind="stable")
    moved = np.clip(np.asarray(positions, dtype=np.float64)[order], low, high)
    for _ in range(100):
        for i in range(1, len(moved)):
            lack = gap - (moved[i] - moved[i - 1])
            if lack > 0:
                moved[i - 1] -= lack / 2
                moved[i] += lack / 2
        moved = np.clip(moved, low, high)
    result = np.empty_like(moved)
    result[order] = moved
    return [float(value) for value in result]


def _number(value: object) -> float:
    """A number, or NaN for None."""
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval_words(row: Row) -> str:
    mean, low, high = (_number(row.get(key)) for key in ("accuracy", "low", "high"))
    interval = f" [{_percent(low)}, {_percent(high)}]" if math.isfinite(low + high) else ""
    return _percent(mean) + interval


def _forest(rows: Sequence[Row]) -> Markup:
    """Accuracy per weighting with intervals, best on top; a dashed line marks equal weights."""
    figure, axes = _figure(6.4, 0.7 + 0.36 * len(rows))
    names = [_short(str(row["weighting"]), 22) for row in rows]
    for y, row in enumerate(rows):
        mean, low, high = (100 * _number(row.get(key)) for key in ("accuracy", "low", "high"))
        uniform = row["weighting"] == "uniform"
        colour = MUTED if uniform else COLOURS[0]
        if uniform:
            axes.axvline(mean, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.plot([low, high], [y, y], color=colour, linewidth=2.6, solid_capstyle="round", alpha=0.55)
        axes.plot([mean], [y], "o", color=colour, markersize=7.5, markeredgecolor="white")
        axes.text(
            1.02,
            y,
            _interval_words(row),
            transform=axes.get_yaxis_transform(),
            va="center",
            color=INK,
            fontsize=10.5,
        )
    axes.set_yticks(range(len(rows)), names, color=INK, fontsize=11.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.06)
    axes.set_xlabel("test accuracy, %", color=MUTED, fontsize=10.5)
    axes.locator_params(axis="x", nbins=5)
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.285, right=0.705, top=1 - 0.05 / height, bottom=0.52 / height)
    return _svg(figure)


def _curve(steps: NDArray[np.float64], values: NDArray[np.float64], colour: str) -> Markup:
    """One series over training, its last value written at its end."""
    figure, axes = _figure(5.2, 2.5)
    seen = np.isfinite(steps) & np.isfinite(values)
    steps, values = steps[seen], values[seen]
    axes.plot(
        steps, values, color=colour, linewidth=2.2, marker="o" if len(steps) <= 12 else "", markersize=4.5
    )
    axes.margins(y=0.12)
    if len(steps):
        axes.plot(steps[-1:], values[-1:], "o", color=colour, markersize=6)
        axes.annotate(
            _three(values[-1]),
            (steps[-1], values[-1]),
            (7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=11,
            fontweight="bold",
            annotation_clip=False,
        )
    axes.grid(axis="x", visible=False)
    axes.locator_params(axis="both", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: _thousands(value))
    axes.set_xlabel("environment steps", color=MUTED, fontsize=10.5)
    figure.subplots_adjust(left=0.13, right=0.88, top=0.97, bottom=0.2)
    return _svg(figure)


def _three(value: float) -> str:
    """Three significant digits, zeros kept."""
    return f"{value:#.3g}".rstrip(".")


def _thousands(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _panel(
    bins: NDArray[np.float64], mean: NDArray[np.float64], teachers: Sequence[str], top: float
) -> Markup:
    """Weights of one group, shape (bins, K), over training; lines are named at their ends if they are few."""
    direct = len(teachers) <= _DIRECT_LABELS
    figure, axes = _figure(3.3, 2.05)
    for k in range(len(teachers)):
        axes.plot(bins, mean[:, k], color=_colour(k), linestyle=_dash(k), linewidth=2, clip_on=False)
    axes.axhline(1 / len(teachers), color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    axes.set_ylim(0, top)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "50", "100 %"])
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="x", visible=False)
    if direct:
        ends = [_last(mean[:, k]) for k in range(len(teachers))]
        drawn = [k for k, end in enumerate(ends) if math.isfinite(end)]
        places = _spread([ends[k] for k in drawn], 0.125 * top, 0.03 * top, 0.97 * top)
        for k, y in zip(drawn, places, strict=True):
            axes.text(
                1.03, y, _short(teachers[k], 13), va="center", color=_colour(k), fontsize=10, clip_on=False
            )
    figure.subplots_adjust(left=0.105, right=0.67 if direct else 0.95, top=0.955, bottom=0.15)
    return _svg(figure)


def _colour(k: int) -> str:
    return COLOURS[k % len(COLOURS)]


def _dash(k: int) -> Any:
    # Past the end of the palette, the dash tells two lines of one colour apart.
    return DASHES[(k // len(COLOURS)) % len(DASHES)]


def _last(values: NDArray[np.float64]) -> float:
    seen = values[np.isfinite(values)]
    return float(seen[-1]) if len(seen) else math.nan


def _first(values: NDArray[np.float64]) -> float:
    return _last(values[::-1])


# -- the page --------------------------------------------------------------------------------------


def _accuracy_part(accuracy: Sequence[Row]) -> dict[str, Any] | None:
    if not accuracy:
        return None
    for row in accuracy:
        if row.get("weighting") is None or not math.isfinite(_number(row.get("accuracy"))):
            raise ConfigError(
                f"expected rows with 'weighting' and a finite 'accuracy', got {dict(row)}; leave it out"
            )
    rows = sorted(accuracy, key=lambda row: -_number(row["accuracy"]))
    words = "; ".join(f"{row['weighting']} {_interval_words(row)}" for row in rows)
    return {
        "svg": _forest(rows),
        "alt": f"Test accuracy in percent per weighting, with intervals, best first: {words}.",
        "has_uniform": any(row["weighting"] == "uniform" for row in rows),
    }


def _curve_part(curve: Mapping[str, Sequence[object]] | None) -> list[dict[str, Any]]:
    if curve is None:
        return []
    steps = np.array([_number(value) for value in curve["timesteps"]])
    parts = []
    series = (("reward", "Training reward", COLOURS[0]), ("validation", "Validation score", COLOURS[1]))
    for key, title, colour in series:
        values = np.array([_number(value) for value in curve.get(key, ())])
        if not np.isfinite(values).any():
            continue
        if len(values) != len(steps):
            raise ConfigError(
                f"expected one {key} for each of {len(steps)} timesteps, got {len(values)}; None is a gap"
            )
        alt = f"{title} over environment steps, from {_three(_first(values))} to {_three(_last(values))}."
        parts.append({"title": title, "svg": _curve(steps, values, colour), "alt": alt})
    return parts


def _lead(mean: NDArray[np.float64], teachers: Sequence[str]) -> str:
    """Which teacher has the largest last weight, in words; empty if the group was never seen."""
    ends = np.array([_last(mean[:, k]) for k in range(len(teachers))])
    if not np.isfinite(ends).any():
        return "never seen"
    best = int(np.nanargmax(ends))
    return f"{teachers[best]} leads with {ends[best]:.2f}"


def _panel_alt(group: str, mean: NDArray[np.float64], teachers: Sequence[str]) -> str:
    lines = [
        f"{name} from {_first(mean[:, k]):.2f} to {_last(mean[:, k]):.2f}"
        for k, name in enumerate(teachers)
        if np.isfinite(mean[:, k]).any()
    ]
    return f"Mean teacher weight on {group} over training: {'; '.join(lines) or 'never seen'}."


def _weights_part(weights: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if weights is None:
        return None
    teachers = [_clean(str(name)) for name in weights["teachers"]]
    groups = [_clean(str(name)) for name in weights["groups"]]
    bins = np.asarray(weights["bins"], dtype=np.float64)
    mean = np.asarray(weights["mean"], dtype=np.float64)
    expected = (len(bins), len(groups), len(teachers))
    if mean.shape != expected:
        raise ConfigError(
            f"expected mean weights (bins, groups, teachers) of shape {expected}, got {mean.shape}; mend it"
        )
    if 0 in expected:
        return None
    seen = mean[np.isfinite(mean)]
    top = min(1.0, 0.1 * math.ceil(10.5 * seen.max())) if seen.size and seen.max() > 0 else 1.0
    panels = [
        {
            "title": group,
            "lead": _lead(mean[:, g], teachers),
            "svg": _panel(bins, mean[:, g], teachers, top),
            "alt": _panel_alt(group, mean[:, g], teachers),
        }
        for g, group in enumerate(groups[:MAX_PANELS])
    ]
    rest = [f"{groups[g]}: {_lead(mean[:, g], teachers)}" for g in range(MAX_PANELS, len(groups))]
    legend = [{"name": name, "colour": _colour(k)} for k, name in enumerate(teachers)]
    equal = f"{1 / len(teachers):.2f}"
    return {"panels": panels, "rest": rest, "legend": legend, "equal": equal}


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _table_part(caption: str, rows: Sequence[Row]) -> dict[str, Any]:
    columns = _columns(rows)
    return {
        "caption": caption,
        "columns": list(zip(columns, _numeric_columns(rows, columns), strict=True)),
        "rows": [[_cell(row.get(name)) for name in columns] for row in rows],
    }


def _finalize(value: object) -> object:
    """Clean every text that enters the page; markup of ours passes."""
    return value if isinstance(value, Markup) else _clean(str(value))


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: Sequence[str],
    accuracy: Sequence[Row] = (),
    learning_curve: Mapping[str, Sequence[object]] | None = None,
    weights: Mapping[str, Any] | None = None,
    tables: Sequence[tuple[str, Sequence[Row]]] = (),
) -> None:
    """Write the report of a run or a comparison as one self-contained HTML page.

    Parts that are missing are left out. The same input gives the same bytes.

    Args:
        path: The page; written atomically, its directory must exist.
        title: Heading of the page.
        summary: Sentences, the most important first.
        accuracy: Rows with ``weighting``, ``accuracy`` in [0, 1] and optionally ``low`` and ``high``.
        learning_curve: ``timesteps``, ``reward`` and ``validation``, equally long; None where unknown.
        weights: ``teachers`` (K names), ``groups`` (names), ``bins`` (progress in [0, 1]) and ``mean``,
            nested lists of shape (bins, groups, K), None where a group was not seen. 16 groups are drawn, the
            rest is told in words.
        tables: Caption and rows of each table; the columns are the keys in order of appearance.

    Raises:
        ConfigError: If a row lacks its accuracy or the lengths do not fit.
        OutputDirectoryError: If the page cannot be written.
    """
    with _quiet_style():
        parts = {
            "accuracy": _accuracy_part(accuracy),
            "curves": _curve_part(learning_curve),
            "weights": _weights_part(weights),
        }
    environment = jinja2.Environment(
        autoescape=True, finalize=_finalize, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(_PAGE).render(
        title=title,
        summary=list(summary),
        tables=[_table_part(caption, rows) for caption, rows in tables if rows],
        **parts,
    )
    write_text_atomic(path, page + "\n")


_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; --ink: #1b2733; --muted: #5b6875; --line: #dfe4ea; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7f9; color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.6rem, 5vw, 2.3rem); text-wrap: balance;
 line-height: 1.2; letter-spacing: -.02em; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; letter-spacing: -.01em; margin: 0 0 .25rem; }
h3 { font-size: .95rem; margin: 0; }
section { background: #fff; border: 1px solid var(--line); border-radius: 14px; padding: 1.4rem;
  margin-top: 1.25rem; }
.summary { list-style: none; margin: 0; padding: 0; }
.summary li { margin-top: .35rem; }
.summary li:first-child { font-size: 1.12rem; font-weight: 600; }
.note { color: var(--muted); font-size: .9rem; margin: 0 0 1rem; }
.scroll { overflow-x: auto; }
.plot svg { display: block; width: 100%; height: auto; }
.plot text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }
.wide { min-width: 24rem; max-width: 39rem; margin: 0 auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15.5rem), 1fr));
  gap: 1.4rem 1.2rem; }
figure { margin: 0; min-width: 0; }
.panels figure { max-width: 23rem; }
figcaption { margin-bottom: .3rem; }
figcaption span { color: var(--muted); font-size: .82rem; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; list-style: none; padding: 0; margin: 0 0 1.1rem;
  font-size: .9rem; }
.chip { display: inline-block; width: 1.3em; height: .28em; border-radius: 1em; vertical-align: middle;
  margin-right: .45em; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { padding: .45rem .7rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 600; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
@media print { body { background: #fff; } section { break-inside: avoid; border: 0; padding: 0; } }
</style>
</head>
<body>
<main>
<header>
<h1>{{ title }}</h1>
{% if summary %}
<ul class="summary">
{% for line in summary %}
<li>{{ line }}</li>
{% endfor %}
</ul>
{% endif %}
</header>
{% if accuracy %}
<section>
<h2>Student accuracy by weighting</h2>
<p class="note">Dot: mean; bar: interval.
{% if accuracy.has_uniform %} Dashed line: equal weights.{% endif %}</p>
<div class="scroll" tabindex="0" role="region" aria-label="Accuracy plot">
<div class="plot wide" role="img" aria-label="{{ accuracy.alt }}">
{{ accuracy.svg }}
</div>
</div>
</section>
{% endif %}
{% if curves %}
<section>
<h2>Learning curve of the policy</h2>
<p class="note">Each panel has its own scale.</p>
<div class="pair">
{% for curve in curves %}
<figure>
<figcaption><h3>{{ curve.title }}</h3></figcaption>
<div class="plot" role="img" aria-label="{{ curve.alt }}">
{{ curve.svg }}
</div>
</figure>
{% endfor %}
</div>
</section>
{% endif %}
{% if weights %}
<section>
<h2>Teacher weights over training</h2>
<p class="note">Mean weight on each group, over the student's training in percent. Dotted line: equal weights,
{{ weights.equal }}.</p>
<ul class="legend">
{% for teacher in weights.legend %}
<li><span class="chip" style="background: {{ teacher.colour }}"></span>{{ teacher.name }}</li>
{% endfor %}
</ul>
<div class="panels">
{% for panel in weights.panels %}
<figure>
<figcaption><h3>{{ panel.title }}</h3><span>{{ panel.lead }}</span></figcaption>
<div class="plot" role="img" aria-label="{{ panel.alt }}">
{{ panel.svg }}
</div>
</figure>
{% endfor %}
</div>
{% if weights.rest %}
<p class="note" style="margin: 1.2rem 0 0">Not drawn: {{ weights.rest | join("; ") }}.</p>
{% endif %}
</section>
{% endif %}
{% for table in tables %}
<section>
<h2 id="table-{{ loop.index }}">{{ table.caption }}</h2>
<div class="scroll" tabindex="0" role="region" aria-labelledby="table-{{ loop.index }}">
<table>
<thead><tr>
{% for name, number in table.columns %}
<th scope="col"{% if number %} class="number"{% endif %}>{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>
{% for cell in row %}
<td{% if table.columns[loop.index0][1] %} class="number"{% endif %}>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
</section>
{% endfor %}
</main>
</body>
</html>
"""
