"""How gains of weightings are drawn: each family in its colour and with its marker, intervals, limits, the legend."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlkd.report.plots import COLOURS, INK, MUTED
from rlkd.report.weighting_names import family

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
BAND = "#f1f4f7"


def limits(gains: Mapping[str, Interval], reach: float = 1.5) -> tuple[float, float]:
    """The range to draw: all that is above zero, and below it at most ``reach`` times as far (or 3 points)."""
    ends = [end for interval in gains.values() for end in interval if math.isfinite(end)]
    right = max([1.0, *(1.08 * end for end in ends)])
    return max(-max(reach * right, 3.0), min([-1.0, *(1.08 * end for end in ends)])), right


def looks_of(names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Looks of the families that weightings are of."""
    return [look for kind, look in LOOKS.items() if any(family(name) == kind for name in names)]


def legend(figure: Figure, looks: Sequence[tuple[str, str, str]], height: float) -> None:
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


def interval_of(row: Mapping[str, Any], name: str) -> Interval:
    """Mean, low and high of a figure in points; NaN for what is missing."""
    mean, low, high = (row.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    return tuple(math.nan if end is None else 100 * float(end) for end in (mean, low, high))  # type: ignore[return-value]
