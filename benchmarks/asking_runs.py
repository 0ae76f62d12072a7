"""What ``asking.py`` has run, read back, and what its tables share."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlkd.stats import Estimate, Panel

REFERENCE = "all"
"""The arm that, with the whole budget, everything is measured against: ask everybody, weigh them by the policy."""
FEWEST_SEEDS = 2
"""Of a task that is reported."""
UNEQUAL = {"sst2": "encoder3", "qqp": "encoder3", "mnli": "encoder3"}
"""Tasks whose teachers know everything at unequal prices, with the dearest of them."""
LABELS = (0, 30, 100)
"""Numbers of labels that arms had."""
MARGIN = 0.005
"""Accuracy that a student may lose and count as no worse."""
CHEAP = 0.35
"""Share of the calls that may be spent for it."""
MIDDLE = (0.2, 0.35)
"""Budgets at which it is asked how far arms come from one at random to the right one."""


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
        found = {}
        for seed, one in self.figures.items():
            figures = one[key_of(cell)]
            bits = np.unpackbits(self.right[seed][int(figures["place"])])
            # packed bits fill their last byte: the accuracy tells how many there were
            found[seed] = bits[: round(bits.sum() / figures["accuracy"])] if figures["accuracy"] else bits
        return found

    def mean(self, cell: tuple[int, float, str], what: str) -> float | None:
        """Mean over seeds of a figure; None where the cell was not run."""
        found = [one[key_of(cell)][what] for one in self.figures.values() if key_of(cell) in one]
        return float(np.mean(found)) if len(found) == len(self.figures) else None


def key_of(cell: tuple[int, float, str]) -> str:
    """As ``asking.py`` names cells."""
    return f"{cell[0]}|{cell[1]:g}|{cell[2]}"


def has_gap(task: Task, labels: int, budget: float) -> bool:
    """Whether the right teacher is surely better than one at random: a way of nothing is noise."""
    low, high = ((labels, budget, arm) for arm in ("random", "oracle"))
    if low not in task.cells() or high not in task.cells():
        return False
    gap = Panel({"low": task.values(low), "high": task.values(high)}).difference("high", "low")
    estimate = None if gap is None else gap.estimate()
    return estimate is not None and estimate.low > 0


def read_tasks(folder: Path) -> list[Task]:
    """Every task that was run."""
    names = {file.stem.rpartition("-")[0] for file in folder.glob("*-[0-9]*.json")}
    tasks = [Task.read(folder, name) for name in sorted(names)]
    return [task for task in tasks if len(task.figures) >= FEWEST_SEEDS]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    cut = ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(cut)


def points_of(estimate: Estimate) -> str:
    """A difference in points, with its interval."""
    return f"{100 * estimate.mean:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"
