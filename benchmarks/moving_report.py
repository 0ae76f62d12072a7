"""What ``moving.py`` has run, as lines, a page and a picture: ``benchmarks/results/moving.{json,md,svg}``."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from asking_runs import table
from moving_figures import WINDOW, WITHIN, Lag, Series

matplotlib.use("svg")
import matplotlib.pyplot as plt

from rlkd.records import write_text_atomic

CALLS, CHANGE = 4000, 2000
"""Of a run, and those of them that are answered by the teachers as they were."""
UNCHANGED = "unchanged"
GOAL = 300
"""Calls within which an arm should be back on track."""
BIN = 100
"""Calls over which the picture takes means."""
FEWEST_SEEDS = 2
"""Of a task that is reported."""
EVERY_TASK = "all tasks"
FIGURES = ("before", "after", "last", "knowing", "fall", "calls_a_row", "accuracy", "seconds")
"""Of a line, which are averaged over tasks."""
SHOWN = ("random", "thompson", "thompson:500", "verify", "reverify", "policy", "all", "oracle")
COLOURS = ("#999999", "#d9b382", "#a6761d", "#7570b3", "#e7298a", "#d95f02", "#1b9e77", "#000000")


def key(arm: str, kind: str, change: int) -> str:
    """Of a run, in the file of a task and seed."""
    return f"{arm}|{kind}|{change}"


@dataclass(frozen=True)
class Runs:
    """All runs of a task.

    Attributes:
        name: Of the task.
        runs: Seed to key to the run.
        students: Seed to key to the accuracy of a student.
    """

    name: str
    runs: Mapping[int, Mapping[str, Any]]
    students: Mapping[int, Mapping[str, float]]

    @classmethod
    def read(cls, folder: Path, name: str) -> "Runs":
        """Read those of all seeds."""
        found = (_by_seed(folder, one) for one in (name, f"students-{name}"))
        return cls(name, *found)

    def arms(self) -> list[str]:
        """Those that some seed has, in their order."""
        return list(dict.fromkeys(one.partition("|")[0] for run in self.runs.values() for one in run))

    def seeds(self, arm: str, kind: str) -> list[int]:
        """Of which everything is there."""
        wanted = {key(arm, kind, CHANGE), key(arm, kind, CHANGE if kind == UNCHANGED else 0)}
        return sorted(seed for seed, run in self.runs.items() if wanted <= run.keys())

    def series(self, arm: str, kind: str, change: int) -> list[Series]:
        """What an arm taught, by seed."""
        found = [self.runs[seed][key(arm, kind, change)] for seed in self.seeds(arm, kind)]
        return [Series(np.array(run["calls"]), np.array(list(run["right"])) == "1") for run in found]

    def lag(self, arm: str, kind: str) -> Lag:
        """How it lags behind a run that knew the changed teachers alone."""
        changed, always = (self.series(arm, kind, change) for change in (CHANGE, 0))
        return Lag.of(changed, always, CHANGE, CALLS)

    def line(self, arm: str, kind: str) -> dict[str, Any]:
        """The figures of an arm and a kind of change, means over seeds."""
        seeds, changed = self.seeds(arm, kind), self.series(arm, kind, CHANGE)
        always = changed if kind == UNCHANGED else self.series(arm, kind, 0)
        quarter = CALLS - (CALLS - CHANGE) // 2
        place = key(arm, kind, CHANGE)
        accuracies = [self.students[seed][place] for seed in seeds if place in self.students.get(seed, {})]
        figures = {
            "before": np.mean([one.share(0, CHANGE) for one in changed]),
            "after": np.mean([one.share(CHANGE) for one in changed]),
            "last": np.mean([one.share(quarter) for one in changed]),
            "knowing": np.mean([one.share(quarter) for one in always]),
            "calls_a_row": np.mean(
                [self.runs[seed][place]["calls"][-1] / len(one.right) for seed, one in zip(seeds, changed, strict=True)]
            ),
            "seconds": np.mean([self.runs[seed][place]["seconds"] for seed in seeds]),
            "accuracy": np.mean(accuracies) if accuracies else None,
        }
        line = {"task": self.name, "kind": kind, "arm": arm, "seeds": len(seeds), "students": len(accuracies)}
        line |= {name: None if value is None else round(float(value), 5) for name, value in figures.items()}
        return line | {"curve": curve(changed)}


def _by_seed(folder: Path, name: str) -> dict[int, Any]:
    files = sorted(folder.glob(f"{name}-[0-9]*.json"))
    return {int(file.stem.rpartition("-")[2]): json.loads(file.read_text(encoding="utf-8")) for file in files}


def curve(runs: Sequence[Series]) -> list[float | None]:
    """Share of right ones among the rows that were first asked about within each ``BIN`` calls, mean over runs."""
    shares = np.array([[one.share(start, start + BIN) for start in range(0, CALLS, BIN)] for one in runs])
    there = np.isfinite(shares)
    sums, counts = np.where(there, shares, 0).sum(0), there.sum(0)
    return [round(float(total / count), 4) if count else None for total, count in zip(sums, counts, strict=True)]


def lag_figures(lag: Lag) -> dict[str, Any]:
    """When an arm is back on track, with its interval; None: not, as far as can be seen."""
    found = {"back": lag.back()} | dict(zip(("low", "high"), lag.interval(), strict=True))
    return {name: None if value == inf else value for name, value in found.items()} | {"fall": round(lag.fall, 5)}


def lines(tasks: Sequence[Runs]) -> list[dict[str, Any]]:
    """One of each task, kind of change and arm, and of all tasks that have it."""
    made, lags = [], {}
    for task in tasks:
        for kind in dict.fromkeys(one.split("|")[1] for run in task.runs.values() for one in run):
            for arm in task.arms():
                if len(task.seeds(arm, kind)) >= FEWEST_SEEDS:
                    row = task.line(arm, kind)
                    if kind != UNCHANGED:
                        lags[task.name, kind, arm] = task.lag(arm, kind)
                        row |= lag_figures(lags[task.name, kind, arm])
                    made.append(row)
    return made + [
        _of_all(made, lags, kind, arm) for kind, arm in dict.fromkeys((one["kind"], one["arm"]) for one in made)
    ]


def _of_all(rows: Sequence[Mapping[str, Any]], lags: Mapping[Any, Lag], kind: str, arm: str) -> dict[str, Any]:
    mine = [row for row in rows if (row["kind"], row["arm"]) == (kind, arm)]
    seeds = min(row["seeds"] for row in mine)
    line: dict[str, Any] = {"task": EVERY_TASK, "kind": kind, "arm": arm, "tasks": len(mine), "seeds": seeds}
    line["students"] = min(row["students"] for row in mine)
    for name in FIGURES:
        values = [row.get(name) for row in mine]
        line[name] = None if None in values else round(float(np.mean(values)), 5)  # type: ignore[arg-type]
    if kind != UNCHANGED:
        some = [lags[row["task"], kind, arm] for row in mine]
        line |= lag_figures(Lag.mean([Lag(lag.near[:seeds], lag.whole[:seeds]) for lag in some]))
        line["within"] = sum(row["back"] is not None and row["back"] <= GOAL for row in mine)
    curves = np.array([row["curve"] for row in mine], dtype=float)
    line["curve"] = [None if np.isnan(one) else round(float(one), 4) for one in curves.mean(0)]
    return line


def write_records(folder: Path, path: Path, commit: str) -> list[dict[str, Any]]:
    """Write one record a task, kind and arm, and what is told and drawn of them; the records."""
    names = sorted({file.stem.rpartition("-")[0] for file in folder.glob("[!s]*-[0-9]*.json")})
    rows = [row | {"commit": commit} for row in lines([Runs.read(folder, name) for name in names])]
    write_text_atomic(path, "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    write_text_atomic(path.with_suffix(".md"), page(rows))
    draw(rows, path.with_suffix(".svg"))
    return rows


def calls(row: Mapping[str, Any]) -> str:
    """Calls until an arm is back on track, with the interval."""
    back, low, high = ("not" if row[name] is None else f"{row[name]:.0f}" for name in ("back", "low", "high"))
    return f"{back} [{low}, {high}]"


def share(value: float | None) -> str:
    """A share, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def goal_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """By arm and kind of change: calls until back on track, and of how many tasks that is within the goal."""
    by = {(row["kind"], row["arm"]): row for row in rows if row["task"] == EVERY_TASK}
    kinds, arms = (list(dict.fromkeys(one[part] for one in by)) for part in range(2))
    kinds.remove(UNCHANGED)
    body = []
    for arm in arms:
        found = [by[kind, arm] for kind in kinds]
        body.append([f"`{arm}`", *(f"{calls(row)}; {row['within']} of {row['tasks']}" for row in found)])
    return table(["arm", *kinds], body)


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """All tables."""
    parts = [INTRODUCTION, "## Calls until back on track", GOAL_SAYS, goal_table(rows)]
    names = dict.fromkeys(row["task"] for row in rows)
    for name in (EVERY_TASK, *(one for one in names if one != EVERY_TASK)):
        parts.append(f"## {name}")
        mine = [row for row in rows if row["task"] == name]
        for kind in dict.fromkeys(row["kind"] for row in mine):
            parts += [f"### {name}, {kind}", kind_table([row for row in mine if row["kind"] == kind])]
    return "\n\n".join(parts) + "\n"


def kind_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """All figures of a task and a kind of change."""
    made = [cells(row) for row in rows]
    return table(list(made[0]), [list(one.values()) for one in made])


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """A line of a table."""
    found = {
        "asks": f"`{row['arm']}`",
        "calls a row": f"{row['calls_a_row']:.2f}",
        "right before": share(row["before"]),
        "right after": share(row["after"]),
        "right in the last quarter": share(row["last"]),
    }
    if row["kind"] != UNCHANGED:
        found |= {"where it knew no others": share(row["knowing"]), "falls by": share(row["fall"])}
        found["calls until back on track"] = calls(row)
    return found | {"student's accuracy": share(row["accuracy"])}


def results_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of all tasks: what each kind of change does to each arm, and when that is over."""
    made = []
    for row in rows:
        if row["task"] == EVERY_TASK and row["kind"] != UNCHANGED:
            told = {"change": row["kind"], "asks": f"`{row['arm']}`", "seeds": row["seeds"], **cells(row)}
            told[f"tasks within {GOAL}"] = f"{row['within']} of {row['tasks']}"
            made.append(told)
    return made


INTRODUCTION = (
    "# Teachers that change while they are asked\n\n"
    f"After {CHANGE} of {CALLS} calls two teachers are `swapped`, or one of them is `degraded` (of half of the "
    "rows it says what it would have said of another one), `poisoned` (it names one class, and is sure of it), "
    "`triggered` (the same where a word occurs that a fifth of the rows contain), or has met its `quota` (it is "
    "asked, gives no answer, and costs nothing). Answers of before stay. Made by `python benchmarks/moving.py`, "
    "which says how.\n\n"
    "`right` is the share of the rows, but for those whose label is known, that are taught their class; a row "
    "of which nobody gave an answer is not. A row belongs to the call at which it was first asked about. The "
    "last quarter is that of the calls, and `where it knew no others` the same in a run of the same seed whose "
    "teachers were the changed ones from the first call on. Where several answered a row, it is taught what the "
    "shipped policy makes of all answers in the end, which reads how sure a teacher was on the whole: so a change "
    "can spoil rows that were asked about before it.\n\n"
    "**Back on track** is an arm at the first call after the change from which, on the mean over seeds, no more "
    f"than {100 * WITHIN:.0f} points are missing to that run at the same calls: over the next {WINDOW} rows, and "
    "over all rows that are left, so that a window that is right by luck does not count. `not`: at no call of "
    f"which {WINDOW} rows are left. `falls by` is what is missing over the first {WINDOW} rows; below zero, that "
    "much is gained. In brackets the middle 95% over all ways to draw as many seeds, with return, as there are. "
    f"Noise enters through the rows of a window (a share of {WINDOW} rows is good to three points, a mean over "
    "five seeds to one or two; where two runs ask about the same rows in the same order, their difference is "
    "better than that) and through the seeds, which also draw who changes, and how; with so few seeds intervals "
    "are too narrow. An arm that learns nothing is on track at once, however bad it is: read it beside what is "
    "right.\n\n"
    "**What a stranger lacks**: `oracle` is told who was trained on what, which teacher has changed, how, and "
    "when; `all, hedge` reads 100 labels, of which it meets as many as its rows contain. The others read none, "
    "and nobody tells them of the change. `policy` is reported and drawn on tasks alone that it has not learned "
    "on. The constants of `reverify` were chosen by a look at the first seeds of banking77, trec6-classes and topics; "
    "ag_news and newsgroups20 were not looked at."
)
GOAL_SAYS = (
    f"On the mean of all tasks, and on how many of them within {GOAL} calls. `all` and what begins with it ask "
    "everybody about each row and differ in what they make of the answers."
)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rightness around the change, a panel a kind of change, means over tasks and seeds."""
    mine = [row for row in rows if row["task"] == EVERY_TASK]
    kinds = [kind for kind in dict.fromkeys(row["kind"] for row in mine) if kind != UNCHANGED]
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.0 * len(kinds), 3.0), sharey=True, squeeze=False)
    for place, kind in zip(axes.flat, kinds, strict=True):
        for arm, colour in zip(SHOWN, COLOURS, strict=True):
            for row in mine:
                if (row["kind"], row["arm"]) == (kind, arm):
                    draw_curve(row["curve"], place, colour, arm)
        place.axvline(0, color="#bbbbbb", linewidth=0.8)
        place.axvline(GOAL, color="#bbbbbb", linewidth=0.8, linestyle=":")
        place.set_title(kind, fontsize=9)
        place.tick_params(labelsize=7)
    axes[0][0].set_xlabel("calls since the change", fontsize=8)
    axes[0][0].set_ylabel("share of rows taught right", fontsize=8)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(SHOWN), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    plt.rcParams["svg.hashsalt"] = "rlkd"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_curve(shares: Sequence[float | None], place: Any, colour: str, arm: str) -> None:
    """One arm; the mean of two neighbours, that of the change apart."""
    x = np.arange(0, CALLS, BIN) + BIN / 2 - CHANGE
    y = np.array(shares, dtype=float)
    for half in (x < 0, x > 0):
        smooth = np.convolve(np.pad(y[half], (0, 1), mode="edge"), [0.5, 0.5], mode="valid")
        place.plot(x[half], smooth, linewidth=1.1, color=colour, label=arm if x[half][0] < 0 else None)
