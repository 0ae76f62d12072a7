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
from rlkd.report.document import Block, Bullets, Figure, Opening, Panel, Panels, Section, Table, Text, html
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

MAX_PANELS = 16
"""Groups that get a panel of their own; the rest is told in words."""


def _accuracy_blocks(accuracy: Sequence[Row]) -> list[Block]:
    for row in accuracy:
        if row.get("weighting") is None or not math.isfinite(as_number(row.get("accuracy"))):
            raise ConfigError(f"expected rows with 'weighting' and a finite 'accuracy', got {dict(row)}; leave it out")
    if not accuracy:
        return []
    rows = sorted(accuracy, key=lambda row: -as_number(row["accuracy"]))
    words = "; ".join(f"{row['weighting']} {interval_words(row)}" for row in rows)
    alt = f"Test accuracy in percent per weighting, with intervals, best first: {words}."
    dashed = " Dashed line: equal weights." if any(row["weighting"] == "uniform" for row in rows) else ""
    return [Figure(forest_plot(rows), alt), Text(f"Dot: mean over students; bar: 95% interval.{dashed}", note=True)]


OVER_EQUAL = "Reward less that of equal weights at the same step"
UNKNOWN = (
    "What equal weights would have earned at the same step was not recorded: only first-order rewards tell it without "
    "another step of the student. So the reward itself is drawn; it falls with the age of each student and rises with "
    "the next."
)


def _curve_blocks(curve: Mapping[str, Any] | None) -> list[Block]:
    """Reward and trial loss over training; of the reward its lead over equal weights, where it was recorded."""
    if curve is None:
        return []
    steps = np.array([as_number(value) for value in curve["timesteps"]])
    series = {
        key: np.array([as_number(value) for value in curve.get(key) or ()])
        for key in ("over_equal", "reward", "validation")
    }
    for key, values in series.items():
        if np.isfinite(values).any() and len(values) != len(steps):
            raise ConfigError(
                f"expected one {key} for each of {len(steps)} timesteps, got {len(values)}; None is a gap"
            )
    led = bool(np.isfinite(series["over_equal"]).any())
    equal = as_number(curve.get("equal_loss"))
    shown = (
        ("over_equal", OVER_EQUAL, COLOURS[0], None, 0.0) if led else ("reward", "Reward", COLOURS[0], None, None),
        ("validation", "Validation loss of trial students, nats", COLOURS[1], "kept", equal),
    )
    panels = []
    for key, title, colour, least, line in shown:
        values = series[key]
        if not np.isfinite(values).any():
            continue
        ends = [three_digits(first_seen(values)), three_digits(last_seen(values))]
        alt = f"{title} over environment steps, from {ends[0]} to {ends[1]}."
        panels.append(Panel(title, curve_plot(steps, values, colour, mark_least=least, equal=line), alt))
    said = [] if led or not np.isfinite(series["reward"]).any() else [UNKNOWN]
    if math.isfinite(equal):
        kept = as_number(curve.get("kept_loss"))
        also = f"; there the policy that was kept loses {kept:.3f}" if math.isfinite(kept) else ""
        said.append(f"Dashed, of the losses: equal weights, {equal:.3f} nats, measured on trial students{also}.")
    return [Panels(panels, size="pair"), *(Text(line, note=True) for line in said)] if panels else []


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


def weights_blocks(weights: Mapping[str, Any] | None) -> list[Block]:
    """Plots of teacher weights over a student's training; nothing without weights.

    Raises:
        ConfigError: If the lengths do not fit.
    """
    if weights is None:
        return []
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
        return []
    seen = mean[np.isfinite(mean)]
    top = min(1.0, 0.1 * math.ceil(10.5 * seen.max())) if seen.size and seen.max() > 0 else 1.0
    panels = [
        Panel(
            group,
            weights_panel(bins, mean[:, g], teachers, top),
            _panel_alt(group, mean[:, g], teachers),
            _lead(mean[:, g], teachers),
        )
        for g, group in enumerate(groups[:MAX_PANELS])
    ]
    rest = [f"{groups[g]}: {_lead(mean[:, g], teachers)}" for g in range(MAX_PANELS, len(groups))]
    note = (
        "Mean weight on each group, over the student's training in percent. Dotted line: equal weights, "
        f"{1 / len(teachers):.2f}."
    )
    return [
        Text(note, note=True),
        Panels(panels, [(name, line_colour(k)) for k, name in enumerate(teachers)]),
        *([Text(f"Not drawn: {'; '.join(rest)}.", note=True)] if rest else []),
    ]


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: Sequence[str],
    details: Sequence[str] = (),
    accuracy: Sequence[Row] = (),
    learning_curve: Mapping[str, Any] | None = None,
    weights: Mapping[str, Any] | None = None,
    tables: Sequence[tuple[str, Sequence[Row]]] = (),
    glossary: Sequence[str] = (),
) -> None:
    """Write the report of a run or a comparison as one self-contained HTML page.

    The page opens on the summary and the first picture there is, or the first table; everything else unfolds. Parts
    that are missing are left out. The same input gives the same bytes.

    Args:
        path: The page; written atomically, its directory must exist.
        title: Heading of the page.
        summary: What was found, then at most a few short sentences; marked up as in :mod:`rlkd.report.document`.
        details: All else that is to be said, folded.
        accuracy: Rows with ``weighting``, ``accuracy`` in [0, 1] and optionally ``low`` and ``high``.
        learning_curve: ``timesteps``, ``reward``, ``over_equal`` (the reward less that of equal weights at the same
            step) and ``validation``, equally long, None where unknown; ``equal_loss`` and ``kept_loss``, what the
            trial students that decided its strength lose with equal weights and with the policy that was kept.
        weights: ``teachers`` (K names), ``groups`` (names), ``bins`` (progress in [0, 1]) and ``mean``,
            nested lists of shape (bins, groups, K), None where a group was not seen. 16 groups are drawn, the
            rest is told in words.
        tables: Caption and rows of each table; the columns are the keys in order of appearance.
        glossary: Words of the page, a line each, folded at its end.

    Raises:
        ConfigError: If a row lacks its accuracy or the lengths do not fit.
        OutputDirectoryError: If the page cannot be written.
    """
    with plot_style():
        parts: dict[str, list[Block]] = {
            "Student accuracy by weighting": _accuracy_blocks(accuracy),
            "Learning curve of the policy": _curve_blocks(learning_curve),
            "Teacher weights over training": weights_blocks(weights),
        }
    verdict, *beside = [*summary] or [""]
    said: list[Block] = [Bullets(beside)] if beside else []
    sections = [
        *(Section(heading, blocks, folded=True) for heading, blocks in parts.items() if blocks),
        *(Section(caption, [Table(rows)], folded=True) for caption, rows in tables if rows),
    ]
    picture = sections.pop(0).blocks if sections else []
    if details:
        sections.insert(0, Section("In full", [Bullets(details)], folded=True))
    if glossary:
        sections.append(Section("Words", [Bullets(glossary)], folded=True))
    write_text_atomic(path, html(title, Opening(verdict, picture, said), sections))
