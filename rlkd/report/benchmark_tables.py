"""Figures of a benchmark as table cells."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlkd.report.document import Table
from rlkd.report.origins import untraced
from rlkd.report.plots import TIMES
from rlkd.report.tables import Cells, filled
from rlkd.report.weighting_names import is_policy, ordered
from rlkd.report.wording import NO_REGRET, p_text, points, spread_text
from rlkd.stats import ACCURACY, UNIFORM, TaskRuns

Figures = dict[str, Any]

_SCORE = "{} [95%]"
_BRIEF = (
    *("weighting", "seeds", _SCORE.format(ACCURACY), "points over uniform", "share of the gap", "mass early, late"),
)


def brief_table(rows: Sequence[Figures]) -> list[Cells]:
    """The rows of :func:`rlkd.stats.task_rows` as a terminal is wide, by accuracy; without columns that none fills.

    They stand in the order that every table keeps, whichever run ended first.
    """
    places = {name: place for place, name in enumerate(ordered(str(row["weighting"]) for row in rows))}
    cells = [_task_cells(row, ACCURACY, None) for row in sorted(rows, key=lambda row: places[str(row["weighting"])])]
    return filled([{name: row[name] for name in _BRIEF} for row in cells])


def task_table(runs: TaskRuns, rows: Sequence[Figures]) -> Table:
    """The table of one task and student."""
    equal = next((row for row in rows if row["weighting"] == UNIFORM), {})
    cells = [
        _task_cells(row, runs.metric, equal.get("regret")) | {"rows without labels": _without_labels(runs, row)}
        for row in rows
    ]
    return Table(filled(cells), _marked(rows))


def _without_labels(runs: TaskRuns, row: Figures) -> str | None:
    """What became of rows without labels under a weighting that needs them, where the records say so."""
    record = next((r for (name, _), r in runs.finished.items() if name == row["weighting"]), {})
    return "left out" if record.get("labelled_only") else record.get("falls_back")


def weight_table(runs: TaskRuns) -> Table | None:
    """Mean weight of each teacher on test rows at the end of training, over seeds; None where it was not recorded."""
    found: dict[str, list[Sequence[float]]] = {}
    teachers = list(runs.first("teachers") or [])
    for (name, _), record in runs.finished.items():
        if record.get("mean_weights") and len(record["mean_weights"]) == len(teachers):
            found.setdefault(name, []).append(record["mean_weights"])
    if not found:
        return None
    columns = [f"{number}: {teacher}" for number, teacher in enumerate(teachers, 1)]  # names may come twice
    rows: list[Cells] = []
    for name in ordered(found):
        means = [sum(column) / len(column) for column in zip(*found[name], strict=True)]
        shown: Cells = {column: f"{mean:.2f}" for column, mean in zip(columns, means, strict=True)}
        rows.append({"weighting": name, **shown})
    return Table(rows, [i for i, row in enumerate(rows) if is_policy(str(row["weighting"]))])


def _marked(rows: Sequence[Figures]) -> list[int]:
    return [index for index, row in enumerate(rows) if is_policy(row["weighting"])]


def _task_cells(row: Figures, metric: str, equal_regret: float | None) -> Cells:
    regret = row.get("regret")
    return {
        "weighting": row["weighting"],
        "seeds": row["seeds"],
        "failed": row["failed"] or None,
        _SCORE.format(metric): spread_text(row, "score", ".3f"),
        "points over uniform": points(row, "gain"),
        "points over best teacher": points(row, "over_best_teacher"),
        "share of the gap": spread_text(row, "gap_share", ".2f"),
        "p": _p(row.get("p_value")),
        "p Holm": _p(row.get("p_holm")),
        "P(better)": _number(row.get("improves"), ".2f"),
        "regret": spread_text(row, "regret", ".3f"),
        "of uniform's": _number(regret / equal_regret, ".2f")
        if regret is not None and (equal_regret or 0) > NO_REGRET
        else None,
        "right teacher": spread_text(row, "selection_accuracy", ".2f"),
        "mass early, late": _masses(row),
        "macro F1": _number(row.get("macro_f1"), ".3f"),
        "NLL": _number(row.get("nll"), ".3f"),
        "ECE": _number(row.get("ece"), ".3f"),
        "CPU seconds": _count(row.get("cpu_seconds")),
        "wall seconds": _count(row.get("seconds")),
        "steps": _count(row.get("steps")),
        "teacher passes": _count(row.get("teacher_passes")),
        "policy CPU seconds": _count(row.get("policy_cpu_seconds")),
        "policy wall seconds": _count(row.get("policy_seconds")),
        "policy steps": _count(row.get("policy_steps")),
        "peak MB": _number(row.get("peak_memory_mb"), ".0f"),
    }


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _count(value: float | None) -> str | None:
    """Two digits of small numbers, whole large ones with thousands set apart."""
    return None if value is None else f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _p(value: float | None) -> str | None:
    return None if value is None else p_text(value).removeprefix("p ").removeprefix("= ").replace("< ", "<")


def _masses(row: Figures) -> str | None:
    early, late = row.get("knowing_mass_early"), row.get("knowing_mass_late")
    return None if early is None or late is None else f"{early:.2f}, {late:.2f}"


def suite_table(rows: Sequence[Figures]) -> Table:
    """The table over the tasks of one student."""
    return Table(filled([_suite_cells(row) for row in rows]), _marked(rows))


def _suite_cells(row: Figures) -> Cells:
    several = row["tasks"] > 0
    return {
        "weighting": row["weighting"],
        "tasks": row["tasks"],
        "pays / same / costs": f"{row['pays']} / {row['same']} / {row['costs']}" if several else None,
        "mean points over uniform": points(row, "gain"),
        "IQM points over uniform": points(row, "gain_iqm"),
        "IQM share of the gap": spread_text(row, "share_iqm", ".2f"),
        "tasks with a gap": row.get("share_tasks"),
        "p": _p(row.get("p_value")),
        "p Holm": _p(row.get("p_holm")),
        "P(better)": _number(row.get("improves"), ".2f"),
        "cost, CPU": _times(row.get("cost")),
        "cost, wall": _times(row.get("wall_cost")),
    }


def _times(value: float | None) -> str | None:
    return None if value is None else f"{TIMES}{value:.2f}"


def score_table(tables: Sequence[TaskRuns], rows: Mapping[str, Sequence[Figures]]) -> Table:
    """Scores of tasks on which there is nothing that they could be differences to."""
    cells = [
        {"task": runs.task, "weighting": row["weighting"], "seeds": row["seeds"], "metric": runs.metric}
        | {"score [95%]": spread_text(row, "score", ".3f")}
        for runs in tables
        for row in rows[runs.task]
    ]
    return Table(cells)


def rival_table(rows: Mapping[str, Figures], tasks: Sequence[str], *, what: str = "minus") -> Table:
    """Differences of two weightings, in points, task by task and over them; keys fill the column ``what``."""
    return Table(
        filled(
            [
                {
                    what: name,
                    "mean": points(row, "mean"),
                    "IQM": points(row, "iqm"),
                    "p": _p(row["p_value"]),
                    "p Holm": _p(row.get("p_holm")),
                    **{f"on {task}": points(row["by_task"].get(task, {}), "gain") for task in tasks},
                }
                for name, row in rows.items()
            ]
        )
    )


def seed_table(runs: TaskRuns) -> list[Cells]:
    """Every score of a task, one row a weighting, one column a seed."""
    seeds = sorted({seed for _, seed in runs.finished})
    return [
        {"weighting": name}
        | {f"seed {seed}": _seed_cell(runs.finished.get((name, seed)), runs.metric) for seed in seeds}
        for name in ordered(name for name, _ in runs.finished)
    ]


def _seed_cell(record: Mapping[str, Any] | None, metric: str) -> str | None:
    return None if record is None else f"{float(record[metric]):.4f}"


def setting_line(runs: TaskRuns) -> list[str]:
    """What was run and on what, and the teachers' headroom: what the records know of it."""
    parts, settings = untraced(runs.records), runs.first("settings") or {}
    if runs.first("description"):
        parts.append(str(runs.first("description")).rstrip(".") + ".")
    teachers = runs.first("teachers") or []
    if teachers:
        parts.append(f"Teachers {', '.join(f'`{name}`' for name in teachers)}.")
    if runs.student:
        layers = f", first {settings['num_layers']} layers" if settings.get("num_layers") else ""
        known = {"max_steps": "steps", "epochs": "epochs", "batch_size": "batch", "learning_rate": "learning rate"}
        known |= {"kd_ratio": "kd_ratio"}
        figures = [f"{label} {settings[key]:g}" for key, label in known.items() if settings.get(key) is not None]
        parts.append(f"Student `{runs.student}`{layers}{''.join(f', {figure}' for figure in figures)}.")
    seeds = sorted({int(record["seed"]) for record in runs.records})
    parts.append(f"Seeds {', '.join(map(str, seeds))}.")
    versions = (runs.first("environment") or {}).get("versions") or {}
    named = [f"{name} {versions[name]}" for name in ("rlkd", "torch", "transformers") if versions.get(name)]
    parts += [f"{', '.join(named)}."] if named else []
    headroom = runs.first("headroom")
    lines = [" ".join(parts)]
    if isinstance(headroom, Mapping):
        figures = [f"{k.replace('_', ' ')} {v:.3f}" for k, v in headroom.items() if isinstance(v, int | float)]
        lines.append(f"Headroom on validation: {', '.join(figures)}.")
    return lines
