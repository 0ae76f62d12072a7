"""Plots of a benchmark's gains over uniform: against headroom, what was predicted, labels, and cost."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from rlkd.report.families import LOOKS, Interval, legend, limits, looks_of
from rlkd.report.plots import COLOURS, DASHES, INK, MUTED, TIMES, bare, move_apart, svg_of
from rlkd.report.tables import shortened
from rlkd.report.weighting_names import family
from rlkd.stats.prediction import WORTH

HEADROOM_PANELS = 4


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
    legend(figure, looks_of(names), 5.4)
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
    left, right = limits({name: gains[name] for name in names}, 0.8)
    margin = 0.05 * (right - left)
    return left - margin, right + margin


def _cost_ticks(smallest: float, largest: float) -> list[float]:
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    inside = [step for step in steps if smallest / 1.12 <= step <= largest * 1.12]
    if len(inside) >= 3 or not inside:
        return list(inside) or [1.0]
    return [float(tick) for tick in np.unique(np.round([smallest, 1.0, largest], 2))]
