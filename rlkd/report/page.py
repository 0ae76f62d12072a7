"""One HTML page that needs nothing but itself: no script, no external resource.

Names come from data sets and are treated as hostile: cleaned of control characters and escaped in HTML.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkd.errors import ConfigError
from rlkd.records import write_text_atomic
from rlkd.report.document import Table, render
from rlkd.report.plots import (
    COLOURS,
    as_number,
    curve_plot,
    first_seen,
    forest_plot,
    interval_words,
    last_seen,
    line_colour,
    plot_style,
    three_digits,
    weights_panel,
)
from rlkd.report.tables import Row, clean_text
from rlkd.report.template import PAGE

MAX_PANELS = 16
"""Groups that get a panel of their own; the rest is told in words."""


def _accuracy_part(accuracy: Sequence[Row]) -> dict[str, Any] | None:
    if not accuracy:
        return None
    for row in accuracy:
        if row.get("weighting") is None or not math.isfinite(as_number(row.get("accuracy"))):
            raise ConfigError(f"expected rows with 'weighting' and a finite 'accuracy', got {dict(row)}; leave it out")
    rows = sorted(accuracy, key=lambda row: -as_number(row["accuracy"]))
    words = "; ".join(f"{row['weighting']} {interval_words(row)}" for row in rows)
    return {
        "svg": forest_plot(rows),
        "alt": f"Test accuracy in percent per weighting, with intervals, best first: {words}.",
        "has_uniform": any(row["weighting"] == "uniform" for row in rows),
    }


def _curve_part(curve: Mapping[str, Sequence[object]] | None) -> list[dict[str, Any]]:
    if curve is None:
        return []
    steps = np.array([as_number(value) for value in curve["timesteps"]])
    parts = []
    series = (
        ("reward", "Training reward", COLOURS[0], None),
        ("validation", "Validation loss of trial students, nats", COLOURS[1], "kept"),
    )
    for key, title, colour, least in series:
        values = np.array([as_number(value) for value in curve.get(key, ())])
        if not np.isfinite(values).any():
            continue
        if len(values) != len(steps):
            raise ConfigError(
                f"expected one {key} for each of {len(steps)} timesteps, got {len(values)}; None is a gap"
            )
        ends = [three_digits(first_seen(values)), three_digits(last_seen(values))]
        alt = f"{title} over environment steps, from {ends[0]} to {ends[1]}."
        parts.append({"title": title, "svg": curve_plot(steps, values, colour, mark_least=least), "alt": alt})
    return parts


def _lead(mean: NDArray[np.float64], teachers: Sequence[str]) -> str:
    """Which teacher has the largest last weight, in words; empty if the group was never seen."""
    ends = np.array([last_seen(mean[:, k]) for k in range(len(teachers))])
    if not np.isfinite(ends).any():
        return "never seen"
    best = int(np.nanargmax(ends))
    return f"{teachers[best]} leads with {ends[best]:.2f}"


def _panel_alt(group: str, mean: NDArray[np.float64], teachers: Sequence[str]) -> str:
    lines = [
        f"{name} from {first_seen(mean[:, k]):.2f} to {last_seen(mean[:, k]):.2f}"
        for k, name in enumerate(teachers)
        if np.isfinite(mean[:, k]).any()
    ]
    return f"Mean teacher weight on {group} over training: {'; '.join(lines) or 'never seen'}."


def weights_part(weights: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the weights macro draws; None without weights.

    Raises:
        ConfigError: If the lengths do not fit.
    """
    if weights is None:
        return None
    teachers = [clean_text(str(name)) for name in weights["teachers"]]
    groups = [clean_text(str(name)) for name in weights["groups"]]
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
            "svg": weights_panel(bins, mean[:, g], teachers, top),
            "alt": _panel_alt(group, mean[:, g], teachers),
        }
        for g, group in enumerate(groups[:MAX_PANELS])
    ]
    rest = [f"{groups[g]}: {_lead(mean[:, g], teachers)}" for g in range(MAX_PANELS, len(groups))]
    legend = [{"name": name, "colour": line_colour(k)} for k, name in enumerate(teachers)]
    equal = f"{1 / len(teachers):.2f}"
    return {"panels": panels, "rest": rest, "legend": legend, "equal": equal}


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
        summary: Sentences, the most important first; marked up as in :mod:`rlkd.report.document`.
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
    with plot_style():
        parts = {
            "accuracy": _accuracy_part(accuracy),
            "curves": _curve_part(learning_curve),
            "weights": weights_part(weights),
        }
    shown = [{"caption": caption, "table": Table(rows)} for caption, rows in tables if rows]
    write_text_atomic(path, render(PAGE, title=title, summary=list(summary), tables=shown, **parts))
