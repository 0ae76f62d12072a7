"""What ``asking.py`` has run, as lines, a page and a picture: ``benchmarks/results/asking.{json,md,svg}``."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt

from rlkd.records import write_text_atomic
from rlkd.stats import Panel

WHOLE = "all"
"""The arm that, with the whole budget, everything is measured against: ask everybody, weigh them by the policy."""
FEWEST_SEEDS = 2
"""Of a task that is reported."""
MARGIN = 0.005
"""Accuracy that a student may lose and count as no worse."""
CHEAP = 0.35
"""Share of the calls that may be spent for it."""
MIDDLE = (0.2, 0.35)
"""Budgets at which it is asked how far arms come from one at random to the right one."""
SHOWN = ("random", "bandit", "explore+threshold:0.1", "all", "verify", "policy", "oracle")
COLOURS = ("#999999", "#a6761d", "#e6ab02", "#1b9e77", "#7570b3", "#d95f02", "#000000")


@dataclass(frozen=True)
class Task:
    """All students of a task: what they scored, and what their teachers cost."""

    name: str
    figures: Mapping[int, Mapping[str, Mapping[str, float]]]
    """Seed to cell to its figures."""
    right: Mapping[int, np.ndarray]
    """Seed to packed answers."""

    @classmethod
    def read(cls, folder: Path, name: str) -> "Task":
        """Read the runs of all seeds."""
        files = sorted(folder.glob(f"{name}-[0-9]*.json"))
        seeds = {int(file.stem.rpartition("-")[2]): file for file in files}
        figures = {seed: json.loads(file.read_text(encoding="utf-8")) for seed, file in seeds.items()}
        return cls(name, figures, {seed: np.load(file.with_suffix(".npy")) for seed, file in seeds.items()})

    def cells(self) -> list[tuple[int, float, str]]:
        """Those that all seeds have: labels, budget, arm."""
        shared = set.intersection(*(set(one) for one in self.figures.values()))
        split = (key.split("|", 2) for key in shared)
        return sorted((int(labels), float(budget), arm) for labels, budget, arm in split)

    def values(self, cell: tuple[int, float, str]) -> dict[int, Any]:
        """Right or wrong on each test row, by seed."""
        key = key_of(cell)
        return {seed: np.unpackbits(self.right[seed][int(one[key]["place"])]) for seed, one in self.figures.items()}

    def mean(self, cell: tuple[int, float, str], what: str) -> float | None:
        """Mean over seeds of a figure; None where the cell was not run."""
        found = [one[key_of(cell)][what] for one in self.figures.values() if key_of(cell) in one]
        return float(np.mean(found)) if len(found) == len(self.figures) else None


def key_of(cell: tuple[int, float, str]) -> str:
    """As ``asking.py`` names cells."""
    return f"{cell[0]}|{cell[1]:g}|{cell[2]}"


def read_tasks(folder: Path) -> list[Task]:
    """Every task that was run."""
    names = {file.stem.rpartition("-")[0] for file in folder.glob("*-[0-9]*.json")}
    tasks = [Task.read(folder, name) for name in sorted(names)]
    return [task for task in tasks if len(task.figures) >= FEWEST_SEEDS]


def write_records(folder: Path, path: Path, commit: str) -> list[dict[str, Any]]:
    """Write one record a task, labels, budget and arm, and what is drawn of them; the records."""
    tasks = read_tasks(folder)
    rows = [row | {"commit": commit} for task in tasks for row in lines(task)]
    write_text_atomic(path, "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    write_text_atomic(path.with_suffix(".md"), page(rows))
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
        whole = (labels, 1.0, WHOLE)
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
    """How far an arm comes from one at random to the right one, at its budget; None where either was not run."""
    low, high = (task.mean((cell[0], cell[1], arm), "accuracy") for arm in ("random", "oracle"))
    here = task.mean(cell, "accuracy")
    if low is None or high is None or here is None or high <= low:
        return None
    return round((here - low) / (high - low), 4)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    cut = ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(cut)


def points(row: Mapping[str, Any]) -> str:
    """Accuracy and difference in points."""
    if "difference" not in row:
        return f"{100 * row['accuracy']:.1f}"
    low, high = 100 * row["low"], 100 * row["high"]
    return f"{100 * row['accuracy']:.1f} ({100 * row['difference']:+.1f} [{low:+.1f}, {high:+.1f}])"


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """All tables."""
    parts = [INTRODUCTION]
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
    "the labels that the table names, and no other."
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
    whole = [row["accuracy"] for row in rows if row["arm"] == WHOLE and row["budget"] == 1.0]
    if whole:
        place.axhline(whole[0] - MARGIN, color="#bbbbbb", linewidth=0.8, linestyle=":")
    place.tick_params(labelsize=7)


SHOWN_IN_TABLE = (
    *("random", "all", "explore:0.1", "explore+threshold:0.1", "margin*all", "bandit", "thompson", "verify"),
    *("margin*verify", "shuffled verify", "policy", "oracle"),
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
            found = [[by.get((one, budget, arm)) for one in some] for budget in MIDDLE]
            if all(row is not None for budget in found for row in budget):
                made.append({"task": task, "asks": f"`{arm}`", "seeds": found[0][0]["seeds"]} | _row(found))
    return made


def _row(found: Sequence[Sequence[Any]]) -> dict[str, str]:
    """Cells of one arm: means over tasks, with an interval where there is one task."""
    row = {
        f"accuracy at {budget:.0%}": f"{np.mean([one['accuracy'] for one in some]):.3f}"
        for budget, some in zip(MIDDLE, found, strict=True)
    }
    for budget, some in zip(MIDDLE, found, strict=True):
        row[f"of the way at {budget:.0%}"] = f"{np.mean([one['share'] for one in some]):.2f}"
    last = found[-1]
    row[f"points over asking everybody, at {MIDDLE[-1]:.0%}"] = (
        points(last[0]).partition(" (")[2].rstrip(")")
        if len(last) == 1
        else f"{100 * np.mean([one['difference'] for one in last]):+.1f}"
    )
    return row


def summary(rows: Sequence[Mapping[str, Any]], arm: str) -> dict[str, Any]:
    """What the goals ask of an arm."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    by = {(row["task"], row["labels"], row["budget"], row["arm"]): row for row in rows}

    def get(task: str, labels: int, budget: float, name: str) -> Mapping[str, Any] | None:
        return by.get((task, labels, budget, name))

    cheap = {
        task: max(
            (row["difference"] for labels in (0, 30, 100) if (row := get(task, labels, CHEAP, arm))), default=None
        )
        for task in tasks
    }
    ways = {task: [row["share"] for budget in MIDDLE if (row := get(task, 0, budget, arm))] for task in tasks}
    over = []
    for task in tasks:
        for budget in MIDDLE:
            found = [get(task, 0, budget, name) for name in (arm, "all", "explore+threshold:0.1")]
            if all(found):
                over.append(found[0]["accuracy"] - max(one["accuracy"] for one in found[1:]))  # type: ignore[index]
    return {
        "arm": arm,
        "not inferior at 35%": {task: value for task, value in cheap.items() if value is not None},
        "way": {task: [value for value in values if value is not None] for task, values in ways.items()},
        "over the better of all and explore": round(100 * float(np.mean(over)), 2) if over else None,
    }
