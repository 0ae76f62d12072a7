"""Does headroom predict who profits from weighting?

What is reachable, where runs say it; in older records what a perfect choice of teachers would gain.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlkd.report.benchmark_plots import HEADROOM_PANELS, headroom_plot, prediction_plot
from rlkd.report.document import Block, Bullets, Figure, Section, Text
from rlkd.report.families import interval_of
from rlkd.report.headroom_points import Fit, Point, best_fit, learned_points, one_each
from rlkd.report.weighting_names import family, ordered, policies
from rlkd.report.wording import correlation_sentence, p_text
from rlkd.stats import UNIFORM, TaskRuns, spread

Figures = dict[str, Any]


def _room(runs: TaskRuns) -> float | None:
    """Points that a perfect choice of teacher per instance would gain over the equal mixture."""
    figures = runs.first("headroom")
    if not isinstance(figures, Mapping) or None in (figures.get("best_per_instance"), figures.get("equal_mixture")):
        return None
    return 100 * (float(figures["best_per_instance"]) - float(figures["equal_mixture"]))


def headroom_blocks(
    tables: Sequence[TaskRuns], rows: Mapping[str, Sequence[Figures]], names: Sequence[str], rng: np.random.Generator
) -> list[Block]:
    """Plot and sentences over the tasks of one student; nothing where too few know their headroom."""
    known = [(runs, room) for runs in tables if (room := _room(runs)) is not None]
    if len(known) < 3:
        return []  # two points always lie on a line
    rooms = [room for _, room in known]
    gains = {name: [interval_of(_row_of(rows[runs.task], name), "gain") for runs, _ in known] for name in names}
    shown = {name: gains[name] for name in _worth_showing(names) if np.isfinite([g[0] for g in gains[name]]).any()}
    if not shown:
        return []
    keys = [chr(ord("a") + i % 26) * (1 + i // 26) for i in range(len(known))]
    legend = ", ".join(f"**{key}** {runs.task} ({room:.1f})" for key, (runs, room) in zip(keys, known, strict=True))
    sentences = [correlation_sentence(name, *_pairs(rooms, [gain[0] for gain in gains[name]]), rng) for name in shown]
    note = (
        "Gain against headroom: what a perfect choice of teacher per instance would gain over the teachers' equal "
        f"mixture on validation, in points. {legend}."
    )
    alt = f"Gain over uniform against headroom for {', '.join(shown)}."
    return [Text(note, note=True), Figure(headroom_plot(rooms, shown, keys), alt, "full"), Bullets(sentences)]


def _row_of(rows: Sequence[Figures], name: str) -> Figures:
    return next((row for row in rows if row["weighting"] == name), {})


def _pairs(rooms: Sequence[float], gains: Sequence[float]) -> tuple[list[float], list[float]]:
    there = [(room, gain) for room, gain in zip(rooms, gains, strict=True) if np.isfinite(gain)]
    return [room for room, _ in there], [gain for _, gain in there]


def _worth_showing(names: Sequence[str]) -> list[str]:
    """The policies, then what competes with them."""
    rivals = ["router", "hedge", "entropy", "calibrated_uniform", "best_teacher"]
    chosen = policies(names)[:2] + [name for name in rivals if name in names]
    chosen += [name for name in names if name not in chosen and family(name) in ("learned", "other")]
    return chosen[:HEADROOM_PANELS]


TITLE = "Does headroom predict who profits?"
OVERALL = ("policy", "router", "hedge", "entropy")
"""Weightings of the plot over all suites; of the policies the first of each task."""


def headroom_overall(
    suites: Mapping[str, Sequence[TaskRuns]], rng: np.random.Generator, file: str = ""
) -> list[Section]:
    """Does headroom predict who profits, over the tasks of all suites?

    By what is reachable, where enough runs say it; else by what a perfect choice would gain, for two suites or more.

    Args:
        suites: Tasks of each suite.
        rng: Of the rank correlations.
        file: Where the plot lies beside a page of Markdown.
    """
    tables = [runs for group in suites.values() for runs in group]
    points = one_each(learned_points(tables))
    fit = best_fit(points)
    if fit is not None:
        return [Section(TITLE, _predicted(points, fit, file))]
    if len(suites) < 2:
        return []
    known = [(runs, room) for runs in tables if (room := _room(runs)) is not None and runs.panel is not None]
    sentences = []
    for name in _worth_showing(ordered(name for runs, _ in known for name in runs.weightings)):
        found = [
            (room, gain.value)
            for runs, room in known
            if runs.panel is not None and (gain := runs.panel.difference(name, UNIFORM)) is not None
        ]
        if found:
            sentences.append(correlation_sentence(name, [r for r, _ in found], [g for _, g in found], rng))
    note = Text("Tasks of all suites together, every student apart.", note=True)
    plot = _overall_plot([(runs, room) for runs, room in known if runs.panel is not None], file)
    return [Section(TITLE, [note, plot, Bullets(sentences)])] if sentences else []


def _predicted(points: Sequence[Point], fit: Fit, file: str) -> list[Block]:
    """The picture of predicted and measured gains, and how good the predictions are."""
    shown = [(one.mean, one.low, one.high) for one in fit.predictions]
    gains = [_ends(point) for point in points]
    tasks = len({point.family for point in points})
    note = (
        "What `rlkd headroom` expects of the shipped policy (where it was not run, of the policy or router trained "
        "there), from the cache alone, by a line that was fitted on all other tasks (lines across: 95% prediction "
        "intervals), and what its students gained (lines up: 95% intervals). Over all tasks were "
        f"chosen the noise of imagined students ({fit.student}, of two), and that those who average 1, 3 and 5 alike "
        "rows count together. Dashed: half a point."
    )
    said = (
        f"Over {len(points)} students of {tasks} tasks Spearman's rho of predicted and measured gain is "
        f"{fit.rank_correlation:+.2f} ({p_text(fit.chance)}); the verdict (above or below half a point) is right for "
        f"{100 * fit.right:.0f}%, and for {100 * fit.right_where_sure:.0f}% of the {fit.sure} whose own interval lies "
        f"on one side; {100 * fit.covered:.0f}% lie in their prediction interval, "
        f"and predictions are {fit.off:.1f} points off on the mean."
    )
    alt = "Measured against predicted points over equal weights: a mark a task and student."
    plot = prediction_plot(shown, gains, [point.weighting for point in points])
    return [Text(note, note=True), Figure(plot, alt, "middle", file), Bullets([said])]


def _ends(point: Point) -> tuple[float, float, float]:
    """Its gain with the interval, NaN where there is none."""
    low, high = (math.nan if end is None else end for end in (point.gain_low, point.gain_high))
    return point.gain, low, high


def _overall_plot(known: Sequence[tuple[TaskRuns, float]], file: str) -> Figure:
    """A point for each task and student."""
    panels = {}
    for name in OVERALL:
        gains = []
        for runs, _ in known:
            own = next(iter(policies(runs.weightings)), name) if name == "policy" else name
            there = runs.panel is not None and own in runs.panel.names
            gain = runs.panel.difference(own, UNIFORM) if there and runs.panel is not None else None
            gains.append(interval_of({} if gain is None else spread("gain", gain), "gain"))
        panels[name] = gains
    alt = f"Points over uniform against headroom on validation, for {', '.join(OVERALL)}: a point a task and student."
    return Figure(headroom_plot([room for _, room in known], panels, [""] * len(known)), alt, "full", file)
