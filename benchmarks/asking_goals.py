"""What the suite ``asking`` was run to find out: goals, each with its figure, for every arm alike."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from asking_runs import CHEAP, LABELS, MARGIN, MIDDLE, REFERENCE, UNEQUAL, Task, has_gap, points_of, table

from rlkd.stats import Contrast, Estimate, Panel, task_mean

ASKERS = ("verify", "margin*verify", "pairs*verify", "explore+threshold:0.1", "policy", "auto")
BEFORE = ("all", "explore:0.1", "explore+threshold:0.1")
"""Rules that were there before: everybody, and everybody about a share."""
BANDITS = ("bandit", "thompson")
RULES = ("random", *BEFORE, "verify", "margin*verify", "pairs*verify")
FAR = 0.75
"""Of the way from one at random to the right one."""
POINTS = 100.0


def goals(tasks: Sequence[Task]) -> str:
    """A section of the page."""
    specialists = [task for task in tasks if task.name not in UNEQUAL]
    unequal = [task for task in tasks if task.name in UNEQUAL]
    return "\n\n".join(
        [
            "## What it was run to find out",
            "**As good as asking everybody, at 35% of the cost?** Points over `all` at 100% with the same labels. A "
            f"task counts where the difference is at least -{POINTS * MARGIN:g} points, and counts surely where its "
            "interval is too. Best of no label, 30 and 100; the cost is the least share that any of them suffices at.",
            table(("task", *(f"`{arm}`" for arm in ASKERS)), [_cheap_row(task) for task in specialists]),
            table(("tasks that count", *(f"`{arm}`" for arm in ASKERS)), _counts(specialists)),
            "**How far from one at random (0) to the right one (1), without a label?** Mean of 20% and 35%. Area: mean "
            "accuracy over 10% to 50% of the cost.",
            table(("task", *(f"`{arm}`" for arm in (*ASKERS, *BANDITS, "all"))), _ways(specialists)),
            "**Over what stood before, without a label** (points, mean over tasks and the two middle budgets, with 95% "
            "intervals). Chosen on other tasks: for every task the one that is best on the mean of all the others.",
            table(("arm", *(name for name, _ in _rivals(specialists))), _overs(specialists)),
            "**With a weighting policy that saw no task of the family** (`asking_weighting.py`), in place of the "
            "shipped one, by which answers are mixed and trusted: what its having seen these tasks is worth, and what "
            "is left of the lead. Points, without a label, mean over tasks and the two middle budgets, with 95% "
            "intervals.",
            table(("arm", "less than with the shipped one", "over `all`, both unseen"), _unseen(specialists)),
            "**Unequal prices**: the accuracy of the dearest teacher alone, what it costs, and the least share of that "
            "cost at which a student is as good (point estimates).",
            table(("task", "alone", "its cost", *(f"`{arm}`" for arm in ASKERS)), [_alone_row(one) for one in unequal]),
        ]
    )


def _difference(task: Task, arm: tuple[int, float, str], other: tuple[int, float, str]) -> Contrast | None:
    cells = task.cells()
    if arm not in cells or other not in cells:
        return None
    return Panel({"this": task.values(arm), "other": task.values(other)}).difference("this", "other")


def _cheap(task: Task, arm: str) -> Estimate | None:
    """Over asking everybody about everything, at ``CHEAP``: the best of all numbers of labels."""
    found = [_difference(task, (labels, CHEAP, arm), (labels, 1.0, REFERENCE)) for labels in LABELS]
    estimates = [one.estimate() for one in found if one is not None]
    return max((one for one in estimates if one is not None), key=lambda one: one.mean, default=None)


def _enough(task: Task, arm: str) -> float | None:
    """The least share of the cost at which a student is not worse by more than ``MARGIN``."""
    budgets = sorted({budget for _, budget, name in task.cells() if name == arm})
    for budget in budgets:
        found = [_difference(task, (labels, budget, arm), (labels, 1.0, REFERENCE)) for labels in LABELS]
        if any(one is not None and one.value >= -MARGIN for one in found):
            return budget
    return None


def _cheap_row(task: Task) -> list[str]:
    cells = [task.name]
    for arm in ASKERS:
        found, enough = _cheap(task, arm), _enough(task, arm)
        cost = "more than 50%" if enough is None else f"{enough:.0%}"
        cells.append("" if found is None else f"{points_of(found)}, {cost}")
    return cells


def _counts(tasks: Sequence[Task]) -> list[list[str]]:
    found = {arm: [one for task in tasks if (one := _cheap(task, arm)) is not None] for arm in ASKERS}
    counted = [f"{sum(one.mean >= -MARGIN for one in some)} of {len(some)}" for some in found.values()]
    surely = [f"{sum(one.low >= -MARGIN for one in some)} of {len(some)}" for some in found.values()]
    return [["by its mean", *counted], ["surely", *surely]]


def _way(task: Task, arm: str) -> float | None:
    """Mean of the middle budgets, of means over seeds; None where there is no sure gap."""
    if any((0, budget, arm) not in task.cells() or not has_gap(task, 0, budget) for budget in MIDDLE):
        return None
    means = [
        [task.mean((0, budget, name), "accuracy") or 0.0 for name in ("random", arm, "oracle")] for budget in MIDDLE
    ]
    return float(np.mean([(here - low) / (high - low) for low, here, high in means]))


def _area(task: Task, arm: str) -> float | None:
    """Mean accuracy over budgets of the curve that is piecewise linear."""
    budgets = sorted({budget for labels, budget, name in task.cells() if name == arm and not labels and budget < 1})
    values = [task.mean((0, budget, arm), "accuracy") for budget in budgets]
    if len(budgets) < 2 or None in values:
        return None
    return float(np.trapezoid(np.array(values, dtype=float), budgets)) / (budgets[-1] - budgets[0])


def _ways(tasks: Sequence[Task]) -> list[list[str]]:
    arms = (*ASKERS, *BANDITS, "all")
    rows, reached = [], dict.fromkeys(arms, 0)
    counted = dict.fromkeys(arms, 0)
    for task in tasks:
        cells = [task.name]
        for arm in arms:
            way, area = _way(task, arm), _area(task, arm)
            gone = "no gap" if way is None else f"{way:.2f}"
            cells.append("" if area is None else f"{gone}, area {area:.3f}")
            reached[arm] += way is not None and way >= FAR
            counted[arm] += way is not None
        rows.append(cells)
    return [*rows, [f"at least {FAR}", *(f"{reached[arm]} of {counted[arm]}" for arm in arms)]]


def _over(task: Task, arm: str, other: str) -> Contrast | None:
    """Of the mean over the middle budgets, without a label."""
    if any((0, budget, name) not in task.cells() for budget in MIDDLE for name in (arm, other)):
        return None
    values: dict[str, dict[int, Any]] = {}
    for role, name in (("this", arm), ("other", other)):
        by_budget = [task.values((0, budget, name)) for budget in MIDDLE]
        values[role] = {seed: np.mean([one[seed] for one in by_budget], axis=0) for seed in by_budget[0]}
    return Panel(values).difference("this", "other")


def _middle(task: Task, arm: str) -> float:
    values = [task.mean((0, budget, arm), "accuracy") for budget in MIDDLE]
    return -np.inf if None in values else float(np.mean(np.array(values, dtype=float)))


def _best(tasks: Sequence[Task], arms: Sequence[str]) -> str:
    """The arm that is best on the mean of tasks."""
    return max(arms, key=lambda arm: float(np.mean([_middle(task, arm) for task in tasks])))


def _rivals(tasks: Sequence[Task], arm: str = "") -> list[tuple[str, Mapping[str, str]]]:
    """Heading to task to the arm that is compared with, another one."""
    before = _best(tasks, BEFORE)
    rules = [one for one in RULES if one != arm]
    chosen = {
        head: {task.name: _best([one for one in tasks if one is not task] or tasks, arms) for task in tasks}
        for head, arms in (("the best bandit on other tasks", BANDITS), ("the best other rule on other tasks", rules))
    }
    return [(f"`{before}`, the better of all and explore", {task.name: before for task in tasks}), *chosen.items()]


def _overs(tasks: Sequence[Task]) -> list[list[str]]:
    rows = []
    for arm in ("verify", "margin*verify", "pairs*verify", "policy"):
        cells = [f"`{arm}`"]
        for _, rival in _rivals(tasks, arm):
            found = [one for task in tasks if (one := _over(task, arm, rival[task.name])) is not None]
            estimate = task_mean(found).estimate() if found else None
            cells.append("" if estimate is None else points_of(estimate))
        rows.append(cells)
    return rows


def _unseen(tasks: Sequence[Task]) -> list[list[str]]:
    rows = []
    for arm in ("all", "explore+threshold:0.1", "verify", "pairs*verify"):
        pairs = ((arm, f"unseen {arm}"), (f"unseen {arm}", "unseen all"))
        cells = [f"`{arm}`"]
        for one, other in pairs:
            found = [each for task in tasks if (each := _over(task, one, other)) is not None]
            estimate = task_mean(found).estimate() if found and one != other else None
            cells.append("" if estimate is None else points_of(estimate))
        rows.append(cells)
    return rows


def _alone_row(task: Task) -> list[str]:
    alone = (0, 1.0, f"only:{UNEQUAL[task.name]}")
    accuracy, cost = task.mean(alone, "accuracy"), task.mean(alone, "spent")
    assert accuracy is not None
    assert cost is not None
    cells = [task.name, f"{POINTS * accuracy:.1f}", f"{cost:.0%}"]
    for arm in ASKERS:
        budgets = sorted({budget for labels, budget, name in task.cells() if name == arm and not labels})
        enough = (one for one in budgets if (task.mean((0, one, arm), "accuracy") or 0) >= accuracy)
        reached = next(enough, None)
        best = max((task.mean((0, one, arm), "accuracy") or 0 for one in budgets), default=0)
        short = "" if not budgets else f"not reached, {POINTS * (best - accuracy):+.1f}"
        cells.append(short if reached is None else f"{reached / cost:.0%}")
    return cells
