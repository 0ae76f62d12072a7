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
from rlkd.records import unpack_bits, unpack_classes
from rlkd.stats.contrasts import Contrast, Share, task_iqm, task_mean
from rlkd.stats.estimates import holm, mean_interval, probability_of_improvement
from rlkd.stats.panel import Panel
from rlkd.stats.scores import LEAVE_ONE_OUT, instance_values

Record = Mapping[str, Any]
Figures = dict[str, Any]

UNIFORM, ORACLE = "uniform", "oracle"
ACCURACY = "accuracy"
MEASURED = (
    *("accuracy", "matthews", "macro_f1", "nll", "ece", "peak_memory_mb", "teacher_passes"),
    *("seconds", "cpu_seconds", "steps", "policy_seconds", "policy_cpu_seconds", "policy_steps"),
    *("knowing_mass_early", "knowing_mass_late"),
)
"""Means over seeds, as they are."""
PLANTED = ("regret", "selection_accuracy")
"""Means over seeds with intervals; only where the best action is known."""
STATISTICS_SEED = 0
"""Of the generator that a report draws from: the same records give the same figures."""
BOUNDS = {ACCURACY: (0.0, 1.0), "macro_f1": (0.0, 1.0), "matthews": (-1.0, 1.0)}
"""Within which a score lies, and so its interval."""


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


def group_runs(records: Sequence[Record]) -> list[TaskRuns]:
    """Sort records into tables, one for each task and student, in order of first appearance.

    Args:
        records: Lines of one suite, in any order; of several lines of one run the last finished one counts.

    Raises:
        ConfigError: If the runs of one table name several metrics, lack theirs, or have other labels.
    """
    tables: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        tables.setdefault((str(record["task"]), str(record.get("student", ""))), []).append(record)
    return [_task_runs(task, student, runs) for (task, student), runs in tables.items()]


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


def _task_runs(task: str, student: str, records: Sequence[Record]) -> TaskRuns:
    finished = {(str(r["weighting"]), int(r["seed"])): r for r in records if r["status"] == "ok"}
    broken = {(str(r["weighting"]), int(r["seed"])): r for r in records if r["status"] != "ok"}
    metrics = {str(record.get("metric") or ACCURACY) for record in finished.values()} or {ACCURACY}
    if len(metrics) > 1:
        raise ConfigError(f"task {task!r} has runs scored by {', '.join(sorted(metrics))}; report one metric a task")
    metric = metrics.pop()
    for (name, _), record in finished.items():
        if record.get(metric) is None:
            raise ConfigError(f"a run of {name!r} on {task!r} has no {metric!r}; leave it out or score it")
    if metric in LEAVE_ONE_OUT and len({r["labels"] for r in finished.values() if r.get("labels")}) > 1:
        raise ConfigError(f"expected runs of {task!r} with the same test labels, got others; report them apart")
    answers: dict[str, dict[int, Any]] = {}
    for (name, seed), run in zip(finished, _answers(metric, list(finished.values())), strict=True):
        answers.setdefault(name, {})[seed] = run
    return TaskRuns(
        task=task,
        student=student,
        metric=metric,
        weightings=tuple(dict.fromkeys(str(record["weighting"]) for record in records)),
        finished=finished,
        failed=[record for key, record in broken.items() if key not in finished],
        # sorted, so that the order in which runs ended changes no figure
        panel=Panel({name: answers[name] for name in sorted(answers)}) if answers else None,
    )


def _answers(metric: str, records: Sequence[Record]) -> list[Any]:
    """Values per test instance of each run; one score a run where a record does not say what it answered."""
    if metric == ACCURACY and all(record.get("correct") for record in records):
        return [unpack_bits(record["correct"]) for record in records]
    if metric in LEAVE_ONE_OUT and all(record.get("labels") and record.get("predictions") for record in records):
        pairs = [(unpack_classes(record["labels"]), unpack_classes(record["predictions"])) for record in records]
        return [instance_values(metric, labels, predictions) for labels, predictions in pairs]
    return [float(record[metric]) for record in records]


def task_rows(runs: TaskRuns) -> list[Figures]:
    """One row per weighting of a table.

    Args:
        runs: As :func:`group_runs` gives them.

    Returns:
        Rows with ``weighting, seeds, failed`` and, where there are runs: ``score`` (once more under the metric's own
        name), ``gain`` over equal weights, ``over_best_teacher`` and ``gap_share``, each with ``_low`` and ``_high``
        (95%; None with one seed), ``p_value`` (of the gain, below 0.05 where its interval leaves zero out) and
        ``p_holm`` (corrected for the weightings of this table), ``improves`` (probability of improvement over equal
        weights), ``verdict`` and the means of what else was measured, None where it is not known for every seed.
        Figures of a difference are over the seeds that both weightings have; ``score`` is over those shared with
        uniform.
    """
    rows = [_task_row(runs, name) for name in runs.weightings]
    _correct_for_many(rows)
    return rows


def _task_row(runs: TaskRuns, name: str) -> Figures:
    panel = runs.panel
    row: Figures = {"weighting": name, "seeds": 0, "failed": sum(record["weighting"] == name for record in runs.failed)}
    if panel is None or name not in panel.names:
        return row
    paired = panel.common_seeds(name, UNIFORM)
    seeds = paired or panel.common_seeds(name)
    row["seeds"] = len(seeds)
    score = panel.score(name, paired_with=UNIFORM if paired else None)
    row |= _within(spread("score", score), *BOUNDS.get(runs.metric, (-math.inf, math.inf)))
    row |= _measured([runs.finished[name, seed] for seed in seeds])
    row |= {f"{runs.metric}{end}": row[f"score{end}"] for end in ("", "_low", "_high")}
    if paired and name != UNIFORM:
        mine, equal = panel.scores(name, paired), panel.scores(UNIFORM, paired)
        gain = panel.difference(name, UNIFORM)
        row |= spread("gain", gain) | {
            "p_value": None if gain is None else gain.p_value(),
            "improves": probability_of_improvement(mine, equal),
        }
        row["verdict"] = verdict(row, "gain")
        if name != ORACLE:
            row |= spread("gap_share", panel.gap_share(name, UNIFORM, ORACLE))
    if name != "best_teacher":
        row |= spread("over_best_teacher", panel.difference(name, "best_teacher"))
    return row


def _measured(records: Sequence[Record]) -> Figures:
    figures: Figures = {}
    for key in (*MEASURED, *PLANTED):
        values = [float(record[key]) for record in records if record.get(key) is not None]
        if len(values) < len(records):
            if any(key in record for record in records):
                figures[key] = None  # a mean over some of the seeds is not the mean of the row
            continue
        figures[key] = float(np.mean(values))
        if key in PLANTED and len(values) > 1:
            estimate = mean_interval(values)
            ends = {f"{key}_low": estimate.low, f"{key}_high": estimate.high}
            figures |= _within(ends, 0.0, 1.0)
    return figures


def _within(figures: Figures, low: float, high: float) -> Figures:
    """The ends of intervals, no further than the figure can be."""
    return {
        key: min(max(value, low), high) if value is not None and key.endswith(("_low", "_high")) else value
        for key, value in figures.items()
    }


def _correct_for_many(rows: Sequence[Figures]) -> None:
    tested = [row for row in rows if row.get("p_value") is not None]
    if tested:
        for row, corrected in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
            row["p_holm"] = float(corrected)


def spread(name: str, figure: Contrast | Share | None) -> Figures:
    """A figure with its interval under ``name``, ``name_low`` and ``name_high``; None where there is none."""
    estimate = None if figure is None else figure.estimate()
    return {
        name: None if figure is None else figure.value,
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
        rng: For interquartile means.

    Returns:
        Rows with ``weighting``, ``tasks`` (on which it and uniform were run), ``gain`` (mean over tasks), ``gain_iqm``
        and ``share_iqm`` with intervals, ``share_tasks`` (with a gap to share), ``p_value`` (of the mean gain),
        ``p_holm``, ``improves`` (mean over tasks), ``pays``, ``same`` and ``costs`` (tasks by verdict), ``cost`` (CPU
        seconds with policy training over those of uniform, geometric mean over tasks) or, where records know the clock
        alone, ``wall_cost``.
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
    mean = task_mean(gains)
    row |= spread("gain", mean) | spread("gain_iqm", task_iqm(gains, rng))
    improves = []
    for _, panel in pairs:
        seeds = panel.common_seeds(name, UNIFORM)
        improves.append(probability_of_improvement(panel.scores(name, seeds), panel.scores(UNIFORM, seeds)))
    row |= {"p_value": mean.p_value(), "improves": float(np.mean(improves))}
    row["cost"] = _cost([table for table, _ in pairs], name, "cpu_seconds")
    row["wall_cost"] = _cost([table for table, _ in pairs], name, "seconds") if row["cost"] is None else None
    if name != ORACLE:
        found = [panel.gap_share(name, UNIFORM, ORACLE) for _, panel in pairs]
        shares = [share.linear() for share in found if share is not None]
        row["share_tasks"] = len(shares)
        row |= spread("share_iqm", task_iqm(shares, rng) if shares else None)
    return row


def _cost(tables: Sequence[TaskRuns], name: str, unit: str) -> float | None:
    """What a weighting costs, policy training counted, over what uniform does: geometric mean over tasks."""
    logs = []
    for table in tables:
        seeds = [seed for weighting, seed in table.finished if weighting == name]
        pairs = [(table.finished[name, s], table.finished[UNIFORM, s]) for s in seeds if (UNIFORM, s) in table.finished]
        mine, equal = sum(_spent(run, unit) for run, _ in pairs), sum(_spent(run, unit) for _, run in pairs)
        if not (mine > 0 and equal > 0):
            return None
        logs.append(math.log(mine / equal))
    return math.exp(float(np.mean(logs)))


def _spent(record: Record, unit: str) -> float:
    """Of a run and its policy's training; NaN where the run's own is unknown."""
    return float(record.get(unit) or math.nan) + float(record.get(f"policy_{unit}") or 0)


def rival_rows(tables: Sequence[TaskRuns], focus: str, rng: np.random.Generator) -> list[Figures]:
    """One weighting against every other, over the tasks of one student.

    Args:
        tables: Of one student, one a task.
        focus: The weighting that the others are taken from.
        rng: For interquartile means.

    Returns:
        Rows with ``rival``, ``by_task`` (task to ``gain`` with its interval), ``mean`` and ``iqm`` over tasks with
        intervals, ``p_value`` of the mean and ``p_holm``: all are ``focus`` minus the rival.
    """
    rivals = dict.fromkeys(name for table in tables for name in table.weightings if name != focus)
    rows = [row for rival in rivals if (row := rival_row(tables, focus, rival, rng)) is not None]
    _correct_for_many(rows)
    return rows


def rival_row(tables: Sequence[TaskRuns], focus: str, rival: str, rng: np.random.Generator) -> Figures | None:
    """One of the rows of :func:`rival_rows`, without ``p_holm``; None where no seed of a task has both weightings."""
    found = {table.task: table.panel.difference(focus, rival) for table in tables if table.panel is not None}
    differences = {task: difference for task, difference in found.items() if difference is not None}
    if not differences:
        return None
    mean = task_mean(list(differences.values()))
    row: Figures = {"rival": rival, "by_task": {task: spread("gain", d) for task, d in differences.items()}}
    row |= spread("mean", mean) | spread("iqm", task_iqm(list(differences.values()), rng))
    return row | {"p_value": mean.p_value()}
