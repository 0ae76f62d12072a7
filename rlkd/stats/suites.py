"""Run records of a suite to rows of figures: one table a task, one table over tasks.

A record is a flat mapping, one run: ``task, student, weighting, seed, status`` and what was measured; keys that are
absent are figures that are absent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlkd.errors import ConfigError
from rlkd.records import unpack_bits
from rlkd.stats.estimates import bootstrap_interval, holm, paired_permutation_test, probability_of_improvement
from rlkd.stats.panel import Draws, Panel, over_tasks, task_iqm, task_mean

Record = Mapping[str, Any]
Figures = dict[str, Any]

UNIFORM, ORACLE = "uniform", "oracle"
ACCURACY = "accuracy"
MEASURED = (
    *("accuracy", "matthews", "macro_f1", "nll", "ece", "seconds", "peak_memory_mb", "teacher_passes"),
    *("policy_seconds", "knowing_mass_early", "knowing_mass_late"),
)
"""Means over seeds, as they are."""
PLANTED = ("regret", "selection_accuracy")
"""Means over seeds with intervals; only where the best action is known."""
STATISTICS_SEED = 0
"""Of the generator that a report draws from: the same records give the same figures."""


@dataclass(frozen=True, eq=False)
class TaskRuns:
    """The runs of one table: one task and one student, every weighting under paired seeds."""

    task: str
    student: str
    metric: str
    """The primary metric, a key of every record."""
    weightings: tuple[str, ...]
    """As first seen, failed ones included."""
    finished: Mapping[tuple[str, int], Record]
    """Finished runs by weighting and seed; the newest counts."""
    failed: Sequence[Record]
    """Runs that no later line finished."""
    panel: Panel | None
    """What can be compared; None without a finished run."""

    @property
    def records(self) -> list[Record]:
        """The runs that count, failed ones last."""
        return [*self.finished.values(), *self.failed]

    def first(self, key: str) -> Any:
        """The first value of a key that the runs of a task share; None if no run has it."""
        return next((record[key] for record in self.records if record.get(key) is not None), None)


def group_runs(records: Sequence[Record], rng: np.random.Generator, reps: int = 2000) -> list[TaskRuns]:
    """Sort records into tables, one for each task and student, in order of first appearance.

    Args:
        records: Lines of one suite, in any order; of several lines of one run the last finished one counts.
        rng: Draws the resamples.
        reps: Number of resamples; >= 1.

    Raises:
        ConfigError: If the runs of one table name several metrics, or lack theirs.
    """
    tables: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        tables.setdefault((str(record["task"]), str(record.get("student", ""))), []).append(record)
    return [_task_runs(task, student, runs, rng, reps) for (task, student), runs in tables.items()]


def label_curves(tables: Sequence[TaskRuns]) -> list[dict[int, str]]:
    """Tasks that differ in how many labels there are: number of labels, ascending, to the name of the task.

    Tasks belong together where their runs read the same logits of the same teachers; three points make a curve.
    """
    found: dict[str, dict[int, str]] = {}
    for runs in tables:
        logits, count = runs.first("logits"), runs.first("labelled_rows")
        if logits is not None and count is not None:
            found.setdefault(str(logits), {})[int(count)] = runs.task
    return [dict(sorted(curve.items())) for curve in found.values() if len(curve) > 2]


def _task_runs(task: str, student: str, records: Sequence[Record], rng: np.random.Generator, reps: int) -> TaskRuns:
    finished = {(str(r["weighting"]), int(r["seed"])): r for r in records if r["status"] == "ok"}
    broken = {(str(r["weighting"]), int(r["seed"])): r for r in records if r["status"] != "ok"}
    metrics = {str(record.get("metric") or ACCURACY) for record in finished.values()} or {ACCURACY}
    if len(metrics) > 1:
        raise ConfigError(f"task {task!r} has runs scored by {', '.join(sorted(metrics))}; report one metric a task")
    metric = metrics.pop()
    # Answers per instance give an accuracy; of any other score, only its value per run is known.
    per_instance = metric == ACCURACY and all(record.get("correct") for record in finished.values())
    answers: dict[str, dict[int, Any]] = {}
    for (name, seed), record in finished.items():
        if record.get(metric) is None:
            raise ConfigError(f"a run of {name!r} on {task!r} has no {metric!r}; leave it out or score it")
        run = unpack_bits(record["correct"]) if per_instance else float(record[metric])
        answers.setdefault(name, {})[seed] = run
    return TaskRuns(
        task=task,
        student=student,
        metric=metric,
        weightings=tuple(dict.fromkeys(str(record["weighting"]) for record in records)),
        finished=finished,
        failed=[record for key, record in broken.items() if key not in finished],
        # sorted, so that the order in which runs ended changes no figure
        panel=Panel({name: answers[name] for name in sorted(answers)}, rng, reps) if answers else None,
    )


def task_rows(runs: TaskRuns, rng: np.random.Generator) -> list[Figures]:
    """One row per weighting of a table.

    Args:
        runs: As :func:`group_runs` gives them.
        rng: For tests of more than 12 seeds and intervals of the planted figures.

    Returns:
        Rows with ``weighting, seeds, failed`` and, where there are runs: ``score`` (once more under the metric's own
        name), ``gain`` over equal weights, ``over_best_teacher`` and ``gap_share``, each with ``_low`` and ``_high``
        (95%; None where nothing could be resampled), ``p_value`` and ``p_holm`` (corrected for the weightings of this
        table), ``improves`` (probability of improvement over equal weights), ``verdict`` and the means of what else
        was measured, None where it is not known for every seed. Figures of a difference are over the seeds that both
        weightings have; ``score`` is over those shared with uniform.
    """
    rows = [_task_row(runs, name, rng) for name in runs.weightings]
    _correct_for_many(rows)
    return rows


def _task_row(runs: TaskRuns, name: str, rng: np.random.Generator) -> Figures:
    panel = runs.panel
    row: Figures = {
        "weighting": name,
        "seeds": 0,
        "failed": sum(record["weighting"] == name for record in runs.failed),
    }
    if panel is None or name not in panel.names:
        return row
    paired = panel.common_seeds(name, UNIFORM)
    seeds = paired or panel.common_seeds(name)
    row["seeds"] = len(seeds)
    score = panel.score(name, paired_with=UNIFORM if paired else None)
    row |= spread("score", score) | _measured([runs.finished[name, seed] for seed in seeds], rng)
    row |= spread(runs.metric, score)
    if paired and name != UNIFORM:
        mine, equal = panel.scores(name, paired), panel.scores(UNIFORM, paired)
        row |= spread("gain", panel.difference(name, UNIFORM)) | {
            "p_value": paired_permutation_test(mine - equal, rng),
            "improves": probability_of_improvement(mine, equal),
        }
        row["verdict"] = verdict(row, "gain")
        if name != ORACLE:
            row |= spread("gap_share", panel.gap_share(name, UNIFORM, ORACLE))
    if name != "best_teacher":
        row |= spread("over_best_teacher", panel.difference(name, "best_teacher"))
    return row


def _measured(records: Sequence[Record], rng: np.random.Generator) -> Figures:
    figures: Figures = {}
    for key in (*MEASURED, *PLANTED):
        values = [float(record[key]) for record in records if record.get(key) is not None]
        if len(values) < len(records):
            if any(key in record for record in records):
                figures[key] = None  # a mean over some of the seeds is not the mean of the row
            continue
        figures[key] = float(np.mean(values))
        if key in PLANTED and len(values) > 1:
            estimate = bootstrap_interval(values, lambda runs: float(runs.mean()), rng)
            figures |= {f"{key}_low": estimate.low, f"{key}_high": estimate.high}
    return figures


def _correct_for_many(rows: Sequence[Figures]) -> None:
    tested = [row for row in rows if row.get("p_value") is not None]
    if tested:
        for row, corrected in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
            row["p_holm"] = float(corrected)


def spread(name: str, draws: Draws | None) -> Figures:
    """A figure with its interval under ``name``, ``name_low`` and ``name_high``; None where there is none."""
    estimate = None if draws is None else draws.estimate()
    return {
        name: None if draws is None else draws.value,
        f"{name}_low": None if estimate is None else estimate.low,
        f"{name}_high": None if estimate is None else estimate.high,
    }


def verdict(row: Record, name: str) -> str | None:
    """``pays``, ``costs`` or ``same`` by the side of zero on which the interval lies; None without an interval."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    if low is None or high is None:
        return None
    return "pays" if low > 0 else "costs" if high < 0 else "same"


# -- over tasks ------------------------------------------------------------------------------------


def suite_rows(tables: Sequence[TaskRuns], rng: np.random.Generator) -> list[Figures]:
    """One row per weighting over the tasks of one student.

    Args:
        tables: Of one student, one a task.
        rng: For the tests.

    Returns:
        Rows with ``weighting``, ``tasks`` (on which it and uniform were run), ``gain`` (mean over tasks), ``gain_iqm``
        and ``share_iqm`` with intervals, ``share_tasks`` (with a gap to share), ``p_value`` (sign flips of every task
        and seed), ``p_holm``, ``improves`` (mean over tasks), ``pays``, ``same`` and ``costs`` (tasks by verdict),
        ``cost`` (seconds with policy training over those of uniform, geometric mean over tasks).
    """
    names = dict.fromkeys(name for table in tables for name in table.weightings)
    rows = [_suite_row(tables, name, rng) for name in names if name != UNIFORM]
    _correct_for_many(rows)
    return rows


def _suite_row(tables: Sequence[TaskRuns], name: str, rng: np.random.Generator) -> Figures:
    row: Figures = {"weighting": name, "tasks": 0}
    pairs = [(table, table.panel) for table in tables if table.panel and table.panel.common_seeds(name, UNIFORM)]
    if not pairs:
        return row
    gains = [gain for _, panel in pairs if (gain := panel.difference(name, UNIFORM)) is not None]
    verdicts = [verdict(spread("gain", gain), "gain") for gain in gains]
    row |= {"tasks": len(pairs), **{word: verdicts.count(word) for word in ("pays", "same", "costs")}}
    row |= spread("gain", over_tasks(gains, task_mean)) | spread("gain_iqm", over_tasks(gains, task_iqm))
    flips, improves = [], []
    for _, panel in pairs:
        seeds = panel.common_seeds(name, UNIFORM)
        mine, equal = panel.scores(name, seeds), panel.scores(UNIFORM, seeds)
        flips.append((mine - equal) / len(seeds))  # every task weighs the same, however many seeds it has
        improves.append(probability_of_improvement(mine, equal))
    row |= {"p_value": paired_permutation_test(np.concatenate(flips), rng), "improves": float(np.mean(improves))}
    row["cost"] = _cost([table for table, _ in pairs], name)
    if name != ORACLE:
        found = [panel.gap_share(name, UNIFORM, ORACLE) for _, panel in pairs]
        shares = [share for share in found if share is not None]
        row["share_tasks"] = len(shares)
        row |= spread("share_iqm", over_tasks(shares, task_iqm) if shares else None)
    return row


def _cost(tables: Sequence[TaskRuns], name: str) -> float | None:
    """Seconds of a weighting, policy training counted, over those of uniform: geometric mean over tasks."""
    logs = []
    for table in tables:
        seeds = [seed for weighting, seed in table.finished if weighting == name]
        pairs = [(table.finished[name, s], table.finished[UNIFORM, s]) for s in seeds if (UNIFORM, s) in table.finished]
        mine, equal = sum(_seconds(run) for run, _ in pairs), sum(_seconds(run) for _, run in pairs)
        if not (mine > 0 and equal > 0):
            return None
        logs.append(math.log(mine / equal))
    return math.exp(float(np.mean(logs)))


def _seconds(record: Record) -> float:
    return float(record.get("seconds") or math.nan) + float(record.get("policy_seconds") or 0)


def rival_rows(tables: Sequence[TaskRuns], focus: str, rng: np.random.Generator) -> list[Figures]:
    """One weighting against every other, over the tasks of one student.

    Args:
        tables: Of one student, one a task.
        focus: The weighting that the others are taken from.
        rng: For the tests.

    Returns:
        Rows with ``rival``, ``by_task`` (task to ``gain`` with its interval), ``mean`` and ``iqm`` over tasks with
        intervals, ``p_value`` and ``p_holm``: all are ``focus`` minus the rival.
    """
    rivals = dict.fromkeys(name for table in tables for name in table.weightings if name != focus)
    rows = [row for rival in rivals if (row := rival_row(tables, focus, rival, rng)) is not None]
    _correct_for_many(rows)
    return rows


def rival_row(tables: Sequence[TaskRuns], focus: str, rival: str, rng: np.random.Generator) -> Figures | None:
    """One of the rows of :func:`rival_rows`, without ``p_holm``; None where no seed of a task has both weightings."""
    found = {table.task: table.panel.difference(focus, rival) for table in tables if table.panel is not None}
    differences = {task: draws for task, draws in found.items() if draws is not None}
    if not differences:
        return None
    pooled = list(differences.values())
    flips = []
    for table in tables:
        if table.panel is not None and (seeds := table.panel.common_seeds(focus, rival)):
            scores = table.panel.scores(focus, seeds) - table.panel.scores(rival, seeds)
            flips.append(scores / len(seeds))
    row: Figures = {"rival": rival, "by_task": {task: spread("gain", d) for task, d in differences.items()}}
    row |= spread("mean", over_tasks(pooled, task_mean)) | spread("iqm", over_tasks(pooled, task_iqm))
    return row | {"p_value": paired_permutation_test(np.concatenate(flips), rng)}
