"""What ``asking.py`` has run, as lines, a page and a picture: ``benchmarks/results/asking.{json,md,svg}``."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from asking_goals import goals
from asking_runs import MARGIN, MIDDLE, REFERENCE, Task, has_gap, read_tasks, table

matplotlib.use("svg")
import matplotlib.pyplot as plt

from rlkd.records import write_text_atomic
from rlkd.stats import Panel

SHOWN = ("random", "bandit", "explore+threshold:0.1", "all", "verify", "policy", "oracle")
COLOURS = ("#999999", "#a6761d", "#e6ab02", "#1b9e77", "#7570b3", "#d95f02", "#000000")


def write_records(folder: Path, path: Path, commit: str) -> list[dict[str, Any]]:
    """Write one record a task, labels, budget and arm, and what is drawn of them; the records, none of one seed."""
    tasks = read_tasks(folder)
    if not tasks:
        return []
    rows = [row | {"commit": commit} for task in tasks for row in lines(task)]
    write_text_atomic(path, "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    write_text_atomic(path.with_suffix(".md"), page(rows, goals(tasks)))
    draw(rows, path.with_suffix(".svg"))
    return rows


def lines(task: Task) -> Iterable[dict[str, Any]]:
    """The records of a task."""
    for cell in task.cells():
        labels, budget, arm = cell
        values = task.values(cell)
        row: dict[str, Any] = {"task": task.name, "labels": labels, "budget": budget, "arm": arm, "seeds": len(values)}
        row |= {
            what: round(task.mean(cell, what) or 0.0, 5) for what in ("accuracy", "spent", "rows", "right", "seconds")
        }
        whole = (labels, 1.0, REFERENCE)
        if cell != whole and whole in task.cells():
            row |= against(values, task.values(whole))
        yield row | {"share": way(task, cell)}


def against(values: Mapping[int, Any], other: Mapping[int, Any]) -> dict[str, float]:
    """The paired difference to another arm, with its interval."""
    contrast = Panel({"this": values, "other": other}).difference("this", "other")
    estimate = None if contrast is None else contrast.estimate()
    assert estimate is not None
    return {"difference": round(estimate.mean, 5), "low": round(estimate.low, 5), "high": round(estimate.high, 5)}


def way(task: Task, cell: tuple[int, float, str]) -> float | None:
    """How far an arm comes from one at random to the right one, at its budget; None where there is no sure gap."""
    if not has_gap(task, *cell[:2]):
        return None
    low, here, high = (task.mean((*cell[:2], arm), "accuracy") for arm in ("random", cell[2], "oracle"))
    assert low is not None
    assert high is not None
    return None if here is None else round((here - low) / (high - low), 4)


def points(row: Mapping[str, Any]) -> str:
    """Accuracy and difference in points."""
    if "difference" not in row:
        return f"{100 * row['accuracy']:.1f}"
    low, high = 100 * row["low"], 100 * row["high"]
    return f"{100 * row['accuracy']:.1f} ({100 * row['difference']:+.1f} [{low:+.1f}, {high:+.1f}])"


def page(rows: Sequence[Mapping[str, Any]], goals: str) -> str:
    """All tables, below what they come to."""
    parts = [INTRODUCTION, goals]
    for name in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == name]
        parts.append(f"## {name}")
        for labels in sorted({row["labels"] for row in mine}):
            some = [row for row in mine if row["labels"] == labels]
            budgets = sorted({row["budget"] for row in some if row["budget"]})
            by = {(row["arm"], row["budget"]): row for row in some}
            arms = dict.fromkeys(row["arm"] for row in some)
            body = []
            for arm in arms:
                found = [by.get((arm, budget), by.get((arm, 0.0))) for budget in budgets]
                body.append([f"`{arm}`", *(points(row) if row else "" for row in found)])
            parts += [f"With {labels} labels.", table(["arm", *(f"{budget:.0%}" for budget in budgets)], body)]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = (
    "# Asking within a budget\n\n"
    "Test accuracy of students in per cent, and points over asking everybody about everything (`all` at 100%) with 95% "
    "intervals, by the share of that cost that might be spent. Made by `python benchmarks/asking.py`, which says how. "
    "**What a stranger lacks**: `oracle` is told who was trained on what. `router` needs labels. All the others read "
    "the labels that the table names, and no other. What answers are mixed with, and trusted by, is the weighting "
    "policy that is shipped, which all arms share: it has seen the teachers and labels of these tasks, and would be "
    "worth less on others (the suite `travel` has what it is worth where it saw neither). `policy`, the asking policy, "
    "has seen no task of the family; `auto` is the same, as far as labels do not surely speak against it."
)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy against cost, a picture a task, without labels."""
    names = list(dict.fromkeys(row["task"] for row in rows))
    across = min(4, max(1, len(names)))
    down = -(-len(names) // across)
    figure, axes = plt.subplots(down, across, figsize=(3.4 * across, 2.7 * down), squeeze=False)
    for place in axes.flat[len(names) :]:
        place.set_visible(False)
    for place, name in zip(axes.flat, names, strict=False):
        draw_task([row for row in rows if row["task"] == name and row["labels"] == 0], place)
        place.set_title(name, fontsize=9)
    axes[-1][0].set_xlabel("share of the cost of asking everybody", fontsize=8)
    axes[-1][0].set_ylabel("test accuracy", fontsize=8)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(SHOWN), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    plt.rcParams["svg.hashsalt"] = "rlkd"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_task(rows: Sequence[Mapping[str, Any]], place: Any) -> None:
    """One picture."""
    for arm, colour in zip(SHOWN, COLOURS, strict=True):
        mine = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["spent"])
        if mine:
            x, y = [row["spent"] for row in mine], [row["accuracy"] for row in mine]
            place.plot(x, y, marker="o", markersize=3, linewidth=1.2, color=colour, label=arm)
    whole = [row["accuracy"] for row in rows if row["arm"] == REFERENCE and row["budget"] == 1.0]
    if whole:
        place.axhline(whole[0] - MARGIN, color="#bbbbbb", linewidth=0.8, linestyle=":")
    place.tick_params(labelsize=7)


SHOWN_IN_TABLE = (
    *("random", "all", "explore:0.1", "explore+threshold:0.1", "bandit", "thompson", "verify"),
    *("margin*verify", "pairs*verify", "shuffled verify", "policy", "shuffled policy", "unseen all"),
    *("unseen explore+threshold:0.1", "unseen verify", "unseen pairs*verify", "oracle"),
)
EVERYBODY = "all tasks"


def results_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What strategies come to without a label at the middle budgets, by task, and their means over tasks."""
    by = {(row["task"], row["budget"], row["arm"]): row for row in rows if row["labels"] == 0}
    tasks = [name for name in dict.fromkeys(row["task"] for row in rows) if (name, MIDDLE[0], "oracle") in by]
    made = []
    for task in [*tasks, EVERYBODY]:
        for arm in SHOWN_IN_TABLE:
            some = tasks if task == EVERYBODY else [task]
            if all((one, budget, arm) in by for one in some for budget in MIDDLE):
                found = [[by[one, budget, arm] for one in some] for budget in MIDDLE]
                made.append({"task": task, "asks": f"`{arm}`", "seeds": found[0][0]["seeds"]} | _row(found))
    return made


def _row(found: Sequence[Sequence[Any]]) -> dict[str, str]:
    """Cells of one arm: means over tasks, with an interval where there is one task."""
    row = {
        f"accuracy at {budget:.0%}": f"{np.mean([one['accuracy'] for one in some]):.3f}"
        for budget, some in zip(MIDDLE, found, strict=True)
    }
    for budget, some in zip(MIDDLE, found, strict=True):
        ways = [one["share"] for one in some if one["share"] is not None]
        row[f"of the way at {budget:.0%}"] = f"{np.mean(ways):.2f}" if ways else "no gap"
    last = found[-1]
    row[f"points over asking everybody, at {MIDDLE[-1]:.0%}"] = (
        points(last[0]).partition(" (")[2].rstrip(")")
        if len(last) == 1
        else f"{100 * np.mean([one['difference'] for one in last]):+.1f}"
    )
    return row
