"""Plots as inline SVG with their text kept as text, never read as mathematics by the plotting library."""

import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rlkd.report.tables import Row, shortened

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#8A6D00", "#444444")
"""Okabe and Ito's palette, safe for colour-blind readers; yellow darkened to be legible as text."""
DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))
TIMES = "\N{MULTIPLICATION SIGN}"
INK, MUTED, FAINT = "#1b2733", "#5b6875", "#dfe4ea"
_DIRECT_LABELS = 4
_DIRECT_LENGTH = 13
"""Signs of a name that have room beside a small plot."""


@contextmanager
def plot_style() -> Iterator[None]:
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
_SHAPE_ID = re.compile(r'( id="|="#|url\(#)(?=[mp][0-9a-f]{10}[")])')
_NUMBERED_ID = re.compile(r' id="[\w.]+_\d+"')


def svg_of(figure: Figure) -> Markup:
    """Render a figure as an ``<svg>`` element that scales with its container."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    text = buffer.getvalue()
    # The page has its own font stack; the measuring font is only a fallback.
    text = text[text.index("<svg") :].replace("'DejaVu Sans'", "system-ui, 'Segoe UI', sans-serif")
    # Ids such as axes_1 would come again in the next plot, and those of markers and clips do where shapes are alike: a
    # reference to a shape in a part of the page that is folded away may draw nothing.
    text = _NUMBERED_ID.sub("", text)
    own = hashlib.sha256(text.encode()).hexdigest()[:8]
    # The library escaped every text that went in.
    return Markup(_SHAPE_ID.sub(rf"\g<1>{own}-", text))


_NEEDLESS = re.compile(r"<!--.*?-->\s*|(?<=>)\s+(?=<)|<g/>", re.S)
_TAG = re.compile(r"<[^>]+>")
_IN_TAGS = re.compile(r" font-family: [^;\"]*;| transform=\"rotate\(-0 [^)]*\)\"|(?<=[:;LMzZ]) |\s+(?=[LMzZ \"])")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")


def compact(svg: Markup) -> Markup:
    """A plot in half as many characters, exact to a hundredth of a point, in the letters of the page around it."""
    text = _NEEDLESS.sub("", str(svg))
    return Markup(_TAG.sub(lambda tag: _LONG_NUMBER.sub(_short, _IN_TAGS.sub("", tag[0].replace("\n", " "))), text))


def _short(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def as_file(svg: Markup) -> str:
    """A plot as a file of its own: white, since nobody knows how dark the page is that shows it."""
    return str(svg).replace("<svg ", '<svg style="background: white" ', 1)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    bare(axes)
    return figure, axes


def bare(axes: Axes) -> None:
    """Only what carries numbers: no frame, faint grid, muted ticks."""
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelsize=10, labelcolor=MUTED)
    axes.grid(axis="both", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def move_apart(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
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


def as_number(value: object) -> float:
    """A number, or NaN for None."""
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def interval_words(row: Row) -> str:
    """Accuracy in percent, with its interval where there is one."""
    mean, low, high = (as_number(row.get(key)) for key in ("accuracy", "low", "high"))
    interval = f" [{_percent(low)}, {_percent(high)}]" if math.isfinite(low + high) else ""
    return _percent(mean) + interval


def forest_plot(rows: Sequence[Row]) -> Markup:
    """Accuracy per weighting with intervals, best on top; a dashed line marks equal weights."""
    figure, axes = _figure(6.4, 0.7 + 0.36 * len(rows))
    names = [shortened(str(row["weighting"]), 22) for row in rows]
    for y, row in enumerate(rows):
        mean, low, high = (100 * as_number(row.get(key)) for key in ("accuracy", "low", "high"))
        uniform = row["weighting"] == "uniform"
        colour = MUTED if uniform else COLOURS[0]
        if uniform:
            axes.axvline(mean, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.plot([low, high], [y, y], color=colour, linewidth=2.6, solid_capstyle="round", alpha=0.55)
        axes.plot([mean], [y], "o", color=colour, markersize=7.5, markeredgecolor="white")
        axes.text(
            1.02, y, interval_words(row), transform=axes.get_yaxis_transform(), va="center", color=INK, fontsize=10.5
        )
    axes.set_yticks(range(len(rows)), names, color=INK, fontsize=11.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.06)
    axes.set_xlabel("test accuracy, %", color=MUTED, fontsize=10.5)
    axes.locator_params(axis="x", nbins=5)
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.285, right=0.705, top=1 - 0.05 / height, bottom=0.52 / height)
    return svg_of(figure)


def curve_plot(
    steps: NDArray[np.float64],
    values: NDArray[np.float64],
    colour: str,
    *,
    mark_least: str | None = None,
    equal: float | None = None,
) -> Markup:
    """One series over training, its last value written at its end.

    Args:
        steps: Environment steps, ascending.
        values: One for each; NaN is a gap.
        colour: Of the line.
        mark_least: The least value is ringed and gets this name.
        equal: What equal weights have, a dashed line.
    """
    figure, axes = _figure(5.2, 2.5)
    seen = np.isfinite(steps) & np.isfinite(values)
    steps, values = steps[seen], values[seen]
    axes.plot(steps, values, color=colour, linewidth=2.2, marker="o" if len(steps) <= 12 else "", markersize=4.5)
    axes.margins(y=0.12)
    if equal is not None and math.isfinite(equal):
        axes.axhline(equal, color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
        axes.text(
            0.01, equal, "equal weights", transform=axes.get_yaxis_transform(), va="bottom", color=MUTED, fontsize=10
        )
    if len(steps):
        axes.plot(steps[-1:], values[-1:], "o", color=colour, markersize=6)
        axes.annotate(
            three_digits(values[-1]),
            (steps[-1], values[-1]),
            (7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=11,
            fontweight="bold",
            annotation_clip=False,
        )
    if mark_least is not None and len(steps):
        _ring(axes, steps, values, int(values.argmin()), mark_least, colour)
    axes.grid(axis="x", visible=False)
    axes.locator_params(axis="both", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: _thousands(value))
    axes.set_xlabel("environment steps", color=MUTED, fontsize=10.5)
    figure.subplots_adjust(left=0.13, right=0.88, top=0.97, bottom=0.2)
    return svg_of(figure)


def _ring(
    axes: Axes, steps: NDArray[np.float64], values: NDArray[np.float64], index: int, name: str, colour: str
) -> None:
    place = (steps[index], values[index])
    axes.plot(*place, "o", markersize=11, fillstyle="none", color=colour, clip_on=False)
    axes.annotate(name, place, (0, 10), textcoords="offset points", ha="center", color=colour, fontsize=10.5)


def three_digits(value: float) -> str:
    """Three significant digits, zeros kept."""
    return f"{value:#.3g}".rstrip(".")


def _thousands(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def weights_panel(bins: NDArray[np.float64], mean: NDArray[np.float64], teachers: Sequence[str], top: float) -> Markup:
    """Weights of one group, shape (bins, K), over training; lines are named at their ends if they are few and short.

    A name is never cut: two that begin alike would look the same. The legend has them all.
    """
    direct = len(teachers) <= _DIRECT_LABELS and max(map(len, teachers)) <= _DIRECT_LENGTH
    figure, axes = _figure(3.3, 2.05)
    for k in range(len(teachers)):
        axes.plot(bins, mean[:, k], color=line_colour(k), linestyle=_dash(k), linewidth=2, clip_on=False)
    axes.axhline(1 / len(teachers), color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    axes.set_ylim(0, top)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "50", "100 %"])
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="x", visible=False)
    if direct:
        ends = [last_seen(mean[:, k]) for k in range(len(teachers))]
        drawn = [k for k, end in enumerate(ends) if math.isfinite(end)]
        places = move_apart([ends[k] for k in drawn], 0.125 * top, 0.03 * top, 0.97 * top)
        for k, y in zip(drawn, places, strict=True):
            axes.text(1.03, y, teachers[k], va="center", color=line_colour(k), fontsize=10, clip_on=False)
    figure.subplots_adjust(left=0.105, right=0.67 if direct else 0.95, top=0.955, bottom=0.15)
    return svg_of(figure)


def line_colour(k: int) -> str:
    """The colour of teacher ``k``'s line."""
    return COLOURS[k % len(COLOURS)]


def _dash(k: int) -> Any:
    # Past the end of the palette, the dash tells two lines of one colour apart.
    return DASHES[(k // len(COLOURS)) % len(DASHES)]


def last_seen(values: NDArray[np.float64]) -> float:
    """The last finite value; NaN without one."""
    seen = values[np.isfinite(values)]
    return float(seen[-1]) if len(seen) else math.nan


def first_seen(values: NDArray[np.float64]) -> float:
    """The first finite value; NaN without one."""
    return last_seen(values[::-1])
