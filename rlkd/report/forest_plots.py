"""Forest plots: a row a weighting, or several, with the interval of its gain over uniform."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlkd.report.families import BAND, LOOKS, Interval, legend, limits, looks_of
from rlkd.report.plots import INK, MUTED, bare, svg_of
from rlkd.report.tables import shortened
from rlkd.report.weighting_names import family

FOREST_PANELS = 5


class _Size(NamedTuple):
    """Of a mark, in points."""

    text: float
    line: float
    marker: float
    edge: float


_LARGE, _SMALL = _Size(9.5, 2, 6, 1.4), _Size(8, 1.8, 4.6, 1.1)


@dataclass(frozen=True)
class ForestPanel:
    """Differences to uniform on one task, in points."""

    title: str
    gains: Mapping[str, Interval]


def forest_rows(panels: Sequence[ForestPanel], names: Sequence[str]) -> list[Markup]:
    """Forest plots of every weighting (rows, in this order) on every task (panels), up to five tasks a figure.

    The vertical line is uniform. A marker is filled where the interval leaves zero out. What lies far below the rest
    is named at the left edge rather than drawn, so that it does not squeeze the others.
    """
    if not panels:
        return []
    width = math.ceil(len(panels) / math.ceil(len(panels) / FOREST_PANELS))
    chunks = [panels[i : i + width] for i in range(0, len(panels), width)]
    return [_forest_figure(chunk, names, max(width, 3)) for chunk in chunks]


def _forest_figure(panels: Sequence[ForestPanel], names: Sequence[str], width: int) -> Markup:
    height, top, bottom = 1.45 + 0.27 * len(names), 0.85, 0.55
    figure = Figure(figsize=(12.6, height))
    # Panels keep their width when the last row of them is not full.
    grid = figure.add_gridspec(
        1, width, left=0.185, right=0.995, top=1 - top / height, bottom=bottom / height, wspace=0.09
    )
    for column, panel in enumerate(panels):
        axes = figure.add_subplot(grid[0, column])
        _forest_axes(axes, panel, names)
        axes.set_yticks(range(len(names)), [shortened(name, 30) for name in names] if column == 0 else [])
        axes.tick_params(axis="y", labelcolor=INK, labelsize=11)
    told = [(MUTED, "o", "interval without zero"), (MUTED, "open", "with zero")]
    legend(figure, [*looks_of(names), *told], height)
    return svg_of(figure)


def _forest_axes(axes: Axes, panel: ForestPanel, names: Sequence[str]) -> None:
    left = _striped(axes, len(names), panel.gains)
    for y, name in enumerate(names):
        if name in panel.gains:
            _mark(axes, y, name, panel.gains[name], left)
    axes.set_title(shortened(panel.title, 24), loc="left", fontsize=12, color=INK, fontweight="bold", pad=6)
    axes.set_xlabel("points over uniform", color=MUTED, fontsize=10)
    axes.locator_params(axis="x", nbins=5)


def _striped(axes: Axes, rows: int, gains: Mapping[str, Interval]) -> float:
    """Rows from the top, every other one on a band, and a line at zero; the lowest gain that is drawn."""
    bare(axes)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(rows - 0.4, -0.6)
    for y in range(0, rows, 2):
        axes.axhspan(y - 0.5, y + 0.5, color=BAND, zorder=0, linewidth=0)
    axes.axvline(0, color=INK, linewidth=1.1, zorder=1)
    left, right = limits(gains)
    axes.set_xlim(left, right)
    return left


def _mark(axes: Axes, y: float, name: str, gain: Interval, left: float, *, size: _Size = _LARGE) -> None:
    """A mean with its interval; one too far below is named at the edge."""
    mean, low, high = gain
    colour, marker, _ = LOOKS[family(name)]
    if mean < left:
        text = f" \N{BLACK LEFT-POINTING SMALL TRIANGLE} {mean:+.1f}"
        axes.text(left, y, text, va="center", color=colour, fontsize=size.text)
        return
    axes.plot([max(low, left), high], [y, y], color=colour, linewidth=size.line, alpha=0.55, solid_capstyle="round")
    face = colour if low > 0 or high < 0 else "white"
    axes.plot(
        [mean], [y], marker, color=colour, markersize=size.marker, markerfacecolor=face, markeredgewidth=size.edge
    )


def gain_plot(rows: Mapping[str, Mapping[str, Interval]], labels: Mapping[str, str] | None = None) -> Markup:
    """Gains over uniform: a row each, the marks of its weightings one below the other, the first's gain in words.

    Args:
        rows: What a row is called to the gain of each weighting in it, by name.
        labels: What the legend calls these weightings; None: families.
    """
    height = 1.0 + 0.31 * len(rows)
    figure = Figure(figsize=(7.4, height))
    axes = figure.add_subplot()
    every = {f"{row}/{name}": gain for row, marks in rows.items() for name, gain in marks.items()}
    left = _striped(axes, len(rows), every)
    for y, marks in enumerate(rows.values()):
        places = np.linspace(-0.27, 0.27, len(marks)) if len(marks) > 1 else [0.0]
        for place, (name, gain) in zip(places, marks.items(), strict=True):
            _mark(axes, y + place, name, gain, left, size=_SMALL)
        mean, low, high = next(iter(marks.values()))
        words = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" if math.isfinite(low) else f"{mean:+.1f}"
        axes.text(1.02, y, words, transform=axes.get_yaxis_transform(), va="center", color=INK, fontsize=9.5)
    axes.set_yticks(range(len(rows)), [shortened(name, 24) for name in rows], color=INK, fontsize=10.5)
    axes.set_xlabel("points over equal weights", color=MUTED, fontsize=10)
    axes.locator_params(axis="x", nbins=6)
    names = list(dict.fromkeys(name for marks in rows.values() for name in marks))
    looks = [(*LOOKS[family(name)][:2], label) for name, label in (labels or {}).items() if name in names]
    legend(figure, looks or looks_of(names), height)
    figure.subplots_adjust(left=0.235, right=0.79, top=1 - 0.36 / height, bottom=0.52 / height)
    return svg_of(figure)
