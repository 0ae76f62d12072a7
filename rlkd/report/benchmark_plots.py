"""Plots of a benchmark: differences to uniform per task, gain against headroom, gain against cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlkd.report.plots import COLOURS, DASHES, INK, MUTED, TIMES, bare, move_apart, svg_of
from rlkd.report.tables import shortened
from rlkd.report.weighting_names import family
from rlkd.stats.prediction import WORTH

Interval = tuple[float, float, float]
"""Mean, low and high in points; the ends are NaN where there is no interval."""

LOOKS: Mapping[str, tuple[str, str, str]] = {
    "policy": (COLOURS[0], "o", "learned policy"),
    "control": (COLOURS[3], "s", "its controls"),
    "learned": (COLOURS[1], "D", "published learned systems"),
    "ceiling": (COLOURS[2], "^", "needs the answer"),
    "other": (COLOURS[6], "o", "other weightings"),
}
"""Colour, marker and name of each family; markers differ too, so colour is never needed."""
FOREST_PANELS, HEADROOM_PANELS = 5, 4
BAND = "#f1f4f7"


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
    _legend(figure, [*_family_looks(names), *told], height)
    return svg_of(figure)


def _forest_axes(axes: Axes, panel: ForestPanel, names: Sequence[str]) -> None:
    bare(axes)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    for y in range(0, len(names), 2):
        axes.axhspan(y - 0.5, y + 0.5, color=BAND, zorder=0, linewidth=0)
    axes.axvline(0, color=INK, linewidth=1.1, zorder=1)
    left, right = _limits(panel.gains)
    axes.set_xlim(left, right)
    for y, name in enumerate(names):
        if name not in panel.gains:
            continue
        mean, low, high = panel.gains[name]
        colour, marker, _ = LOOKS[family(name)]
        if mean < left:
            axes.text(left, y, f" ◂ {mean:+.1f}", va="center", color=colour, fontsize=9.5)
            continue
        surely = low > 0 or high < 0
        axes.plot([max(low, left), high], [y, y], color=colour, linewidth=2, alpha=0.55, solid_capstyle="round")
        face = colour if surely else "white"
        axes.plot([mean], [y], marker, color=colour, markersize=6, markerfacecolor=face, markeredgewidth=1.4)
    axes.set_title(shortened(panel.title, 24), loc="left", fontsize=12, color=INK, fontweight="bold", pad=6)
    axes.set_xlabel("points over uniform", color=MUTED, fontsize=10)
    axes.locator_params(axis="x", nbins=5)


def _limits(gains: Mapping[str, Interval], reach: float = 1.5) -> tuple[float, float]:
    """The range to draw: all that is above zero, and below it at most ``reach`` times as far (or 3 points)."""
    ends = [end for interval in gains.values() for end in interval if math.isfinite(end)]
    right = max([1.0, *(1.08 * end for end in ends)])
    return max(-max(reach * right, 3.0), min([-1.0, *(1.08 * end for end in ends)])), right


def _family_looks(names: Sequence[str]) -> list[tuple[str, str, str]]:
    return [look for kind, look in LOOKS.items() if any(family(name) == kind for name in names)]


def _legend(figure: Figure, looks: Sequence[tuple[str, str, str]], height: float) -> None:
    """A line of markers; muted ones stand for no line."""
    handles = [
        Line2D(
            [],
            [],
            color=colour,
            marker="o" if marker == "open" else marker,
            markerfacecolor="white" if marker == "open" else colour,
            linewidth=0 if colour == MUTED else 2,
            label=label,
        )
        for colour, marker, label in looks
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.0, 1 - 0.04 / height),
        ncols=len(handles),
        frameon=False,
        fontsize=10.5,
        labelcolor=INK,
        handletextpad=0.5,
        columnspacing=1.6,
        borderaxespad=0.2,
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
    bare(axes)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.axvline(0, color=INK, linewidth=1.1, zorder=1)
    left, right = _limits({f"{row}/{name}": gain for row, marks in rows.items() for name, gain in marks.items()})
    axes.set_xlim(left, right)
    for y, marks in enumerate(rows.values()):
        if y % 2 == 0:
            axes.axhspan(y - 0.5, y + 0.5, color=BAND, zorder=0, linewidth=0)
        places = np.linspace(-0.27, 0.27, len(marks)) if len(marks) > 1 else [0.0]
        for place, (name, gain) in zip(places, marks.items(), strict=True):
            _gain_mark(axes, y + place, name, gain, left)
        mean, low, high = next(iter(marks.values()))
        words = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" if math.isfinite(low) else f"{mean:+.1f}"
        axes.text(1.02, y, words, transform=axes.get_yaxis_transform(), va="center", color=INK, fontsize=9.5)
    axes.set_yticks(range(len(rows)), [shortened(name, 24) for name in rows], color=INK, fontsize=10.5)
    axes.set_xlabel("points over equal weights", color=MUTED, fontsize=10)
    axes.locator_params(axis="x", nbins=6)
    names = list(dict.fromkeys(name for marks in rows.values() for name in marks))
    looks = [(*LOOKS[family(name)][:2], label) for name, label in (labels or {}).items() if name in names]
    _legend(figure, looks or _family_looks(names), height)
    figure.subplots_adjust(left=0.235, right=0.79, top=1 - 0.36 / height, bottom=0.52 / height)
    return svg_of(figure)


def _gain_mark(axes: Axes, y: float, name: str, gain: Interval, left: float) -> None:
    """A mean with its interval; one too far below is named at the edge."""
    mean, low, high = gain
    colour, marker, _ = LOOKS[family(name)]
    if mean < left:
        axes.text(
            left, y, f" \N{BLACK LEFT-POINTING SMALL TRIANGLE} {mean:+.1f}", va="center", color=colour, fontsize=8
        )
        return
    axes.plot([max(low, left), high], [y, y], color=colour, linewidth=1.8, alpha=0.55, solid_capstyle="round")
    face = colour if low > 0 or high < 0 else "white"
    axes.plot([mean], [y], marker, color=colour, markersize=4.6, markerfacecolor=face, markeredgewidth=1.1)


def headroom_plot(rooms: Sequence[float], panels: Mapping[str, Sequence[Interval]], keys: Sequence[str]) -> Markup:
    """Gain over uniform against headroom, one panel a weighting, one letter a task.

    Args:
        rooms: Headroom of each task in points, shape (tasks,).
        panels: Weighting to its gain on each task; NaN where it was not run.
        keys: The letter of each task; empty: a small point.
    """
    figure = Figure(figsize=(12.6, 3.5))
    grid = figure.add_gridspec(1, HEADROOM_PANELS, left=0.055, right=0.99, top=0.9, bottom=0.16, wspace=0.2)
    ends = [end for gains in panels.values() for interval in gains for end in interval if math.isfinite(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    margin = 0.08 * max(high - low, 1e-9)
    for column, (name, gains) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[0, column])
        bare(axes)
        axes.axhline(0, color=INK, linewidth=1.1, zorder=1)
        colour = LOOKS[family(name)][0]
        for room, (mean, bottom, top), key in zip(rooms, gains, keys, strict=True):
            if not math.isfinite(mean):
                continue
            axes.plot([room, room], [bottom, top], color=colour, linewidth=1.8, alpha=0.45, solid_capstyle="round")
            axes.plot([room], [mean], "o", color=colour, markersize=13 if key else 6, markeredgecolor="white")
            axes.text(
                room, mean, key, color="white", fontsize=9.5, fontweight="bold", ha="center", va="center_baseline"
            )
        axes.set_ylim(low - margin, high + margin)
        axes.margins(x=0.12)
        axes.set_title(shortened(name, 30), loc="left", fontsize=12, color=INK, fontweight="bold", pad=6)
        axes.set_xlabel("headroom, points", color=MUTED, fontsize=10)
        if column == 0:
            axes.set_ylabel("points over uniform", color=MUTED, fontsize=10)
        axes.locator_params(nbins=5)
    return svg_of(figure)


def prediction_plot(predicted: Sequence[Interval], measured: Sequence[Interval], names: Sequence[str]) -> Markup:
    """Measured against predicted gain over uniform, a point a task; on the diagonal they are the same.

    Args:
        predicted: With prediction intervals, in points.
        measured: With intervals, in points.
        names: The weighting of each point, which gives its colour and marker.
    """
    figure = Figure(figsize=(7.4, 5.4))
    axes = figure.add_subplot()
    bare(axes)
    means = [value[0] for value in (*predicted, *measured)]
    low, high = min([0.0, *means]), max([1.0, *means])
    margin = 0.1 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(low - margin, high + margin)
    axes.plot([low - margin, high + margin], [low - margin, high + margin], color=INK, linewidth=1.1, zorder=1)
    for draw in (axes.axhline, axes.axvline):
        draw(WORTH, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for (x, left, right), (y, bottom, top), name in zip(predicted, measured, names, strict=True):
        colour, marker, _ = LOOKS[family(name)]
        axes.plot([left, right], [y, y], color=colour, linewidth=1.2, alpha=0.22, solid_capstyle="round")
        axes.plot([x, x], [bottom, top], color=colour, linewidth=1.8, alpha=0.45, solid_capstyle="round")
        axes.plot([x], [y], marker, color=colour, markersize=6, markeredgecolor="white")
    axes.set_xlabel("predicted gain, points over equal weights", color=MUTED, fontsize=10)
    axes.set_ylabel("measured gain, points", color=MUTED, fontsize=10)
    axes.locator_params(nbins=6)
    _legend(figure, _family_looks(names), 5.4)
    figure.subplots_adjust(left=0.11, right=0.98, top=0.93, bottom=0.11)
    return svg_of(figure)


def label_plot(counts: Sequence[int], gains: Mapping[str, Sequence[Interval]]) -> Markup:
    """Gain over uniform against the number of labels (logarithmic), a line a weighting.

    Args:
        counts: Labels, ascending.
        gains: Weighting to its gain at each count.
    """
    figure = Figure(figsize=(9.6, 3.8))
    axes = figure.add_subplot()
    bare(axes)
    axes.set_xscale("log")
    axes.axhline(0, color=INK, linewidth=1.1, zorder=1)
    for index, (name, found) in enumerate(gains.items()):
        means, lows, highs = np.array(found).T
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]
        beside = np.array(counts) * 1.05 ** (index - (len(gains) - 1) / 2)  # intervals would hide each other
        axes.plot(beside, means, color=colour, linestyle=dash, marker="o", label=shortened(name, 30))
        axes.vlines(beside, lows, highs, color=colour, alpha=0.4, linewidth=1.8)
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("labels", color=MUTED, fontsize=10)
    axes.set_ylabel("points over uniform", color=MUTED, fontsize=10)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=10.5, labelcolor=INK)
    figure.subplots_adjust(left=0.085, right=0.7, top=0.95, bottom=0.14)
    return svg_of(figure)


def cost_plot(costs: Mapping[str, float], gains: Mapping[str, Interval]) -> Markup:
    """Mean gain over uniform against cost (a multiple of uniform's seconds, logarithmic); every point is named.

    Names stand in a column at the right, joined to their points, so that many of them stay readable.
    """
    names = sorted(costs, key=lambda name: gains[name][0])
    height = max(3.6, 1.0 + 0.235 * len(names))
    figure = Figure(figsize=(9.6, height))
    axes = figure.add_subplot()
    bare(axes)
    axes.set_xscale("log")
    axes.axhline(0, color=INK, linewidth=1.1, zorder=1)
    axes.axvline(1, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    bottom, top = _cost_limits(gains, names)
    axes.set_ylim(bottom, top)
    smallest, largest = min([1.0, *costs.values()]), max([1.0, *costs.values()])
    axes.set_xlim(smallest / 1.12, largest * 1.12)
    gap = 0.235 / (height - 0.85) * (top - bottom)
    means = [max(gains[name][0], bottom) for name in names]
    places = move_apart(means, gap, bottom + gap / 2, top - gap / 2)
    for name, mean, place in zip(names, means, places, strict=True):
        colour, marker, _ = LOOKS[family(name)]
        _, low, high = gains[name]
        drawn = gains[name][0] >= bottom
        axes.plot([costs[name]] * 2, [max(low, bottom), high], color=colour, linewidth=1.8, alpha=0.4)
        axes.plot([costs[name]], [mean], marker if drawn else "v", color=colour, markersize=7, markeredgecolor="white")
        label = f"{shortened(name, 30)}  {gains[name][0]:+.1f}, {TIMES}{costs[name]:.{1 if costs[name] >= 10 else 2}f}"
        axes.annotate(
            label,
            (costs[name], mean),
            (1.045, place),
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            fontsize=10,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "alpha": 0.28,
                "linewidth": 0.8,
                "shrinkA": 1,
                "shrinkB": 4,
            },
            annotation_clip=False,
        )
    axes.xaxis.set_major_formatter(lambda value, _: f"{TIMES}{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xticks(_cost_ticks(smallest, largest))
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("seconds, policy training counted, as a multiple of uniform's", color=MUTED, fontsize=10)
    axes.set_ylabel("mean points over uniform", color=MUTED, fontsize=10)
    figure.subplots_adjust(left=0.085, right=0.64, top=1 - 0.25 / height, bottom=0.6 / height)
    return svg_of(figure)


def _cost_limits(gains: Mapping[str, Interval], names: Sequence[str]) -> tuple[float, float]:
    left, right = _limits({name: gains[name] for name in names}, 0.8)
    margin = 0.05 * (right - left)
    return left - margin, right + margin


def _cost_ticks(smallest: float, largest: float) -> list[float]:
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    inside = [step for step in steps if smallest / 1.12 <= step <= largest * 1.12]
    if len(inside) >= 3 or not inside:
        return list(inside) or [1.0]
    return [float(tick) for tick in np.unique(np.round([smallest, 1.0, largest], 2))]


def interval_of(row: Mapping[str, Any], name: str) -> Interval:
    """Mean, low and high of a figure in points; NaN for what is missing."""
    mean, low, high = (row.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    return tuple(math.nan if end is None else 100 * float(end) for end in (mean, low, high))  # type: ignore[return-value]
