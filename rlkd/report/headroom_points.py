"""What was reachable on a task, and what its students gained: the points that lines and the picture are made of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlkd.report.weighting_names import AUTO, POLICY, ROUTER, base, is_control, is_policy
from rlkd.stats import ACCURACY, UNIFORM, Estimate, TaskRuns, rank_correlation, spread
from rlkd.stats.prediction import (
    FEWEST_TASKS,
    WORTH,
    GainLine,
    left_out_predictions,
    noise_of,
    right_verdicts,
    rise,
)

MEASURED, HINTED = "gain", "hint"
"""Keys of what is reachable: with labels, and without."""
JUDGED_ROWS = 100
"""Labelled rows that what is reachable must be measured on where a line is judged by it: fewer tell little."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A learned weighting on a task, with one kind of student."""

    task: str
    student: str
    weighting: str
    reachable: Mapping[str, Mapping[str, float]]
    """By imagined student, see ``STUDENTS`` in :mod:`rlkd.headroom`: ``gain`` and ``hint`` with their standard errors,
    means over seeds, which share their rows."""
    gain: float
    """Of students over equal weights, in points of accuracy."""
    gain_low: float | None
    """Lower end of its interval; None with one seed, or where another metric counts."""
    gain_high: float | None
    """Upper end."""

    @property
    def family(self) -> str:
        """Whose data it has, the first word of its name (``trec6-30``, ``trec6-tiny``): what is left out together."""
        return self.task.partition("-")[0]

    @property
    def side_is_sure(self) -> bool:
        """Whether the interval of the gain has no half a point in it."""
        return (self.gain_low is not None and self.gain_low >= WORTH) or (
            self.gain_high is not None and self.gain_high < WORTH
        )

    def surely(self, noise: str, kind: str) -> float:
        """What is surely reachable: with labels or without, for imagined students of some noise."""
        return rise(self.reachable, noise, kind).sure

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """An imagined student, and how well it told what tasks gain on which its line was not fitted."""

    student: str
    """Its noise."""
    line: GainLine
    predictions: Sequence[Estimate]
    """Of each point, leave-one-task-out."""
    rank_correlation: float
    """Spearman's, of predictions and gains."""
    chance: float
    """Its p-value."""
    right: float
    """Share of points whose gain is on the predicted side of half a point."""
    sure: int
    """Points whose own interval lies on one side of it: where students tell which verdict is right."""
    right_where_sure: float
    """Share of those that are on the predicted side; 0 where there are none."""
    off: float
    """Mean absolute difference of predictions and gains, in points."""
    covered: float
    """Share of points in their prediction interval."""


def learned_points(tables: Iterable[TaskRuns]) -> list[Point]:
    """Of all policies, routers and choices between them whose runs say what was reachable; old records do not."""
    points = []
    for runs in tables:
        for name in runs.weightings:
            seeds = [s for arm, s in runs.finished if arm == name and (UNIFORM, s) in runs.finished]
            records = [runs.finished[name, seed] for seed in seeds]
            found = [record.get("reachable") or {"rows": 0} for record in records]
            named = is_policy(name) or base(name).split("_")[0] in (ROUTER, AUTO)
            learned = not is_control(name) and (named or any(record.get("policy") for record in records))
            if not learned or not found or min(one["rows"] for one in found) < JUDGED_ROWS:
                continue
            equal = [runs.finished[UNIFORM, seed] for seed in seeds]
            more = [record[ACCURACY] - other[ACCURACY] for record, other in zip(records, equal, strict=True)]
            difference = runs.panel.difference(name, UNIFORM) if runs.panel and runs.metric == ACCURACY else None
            ends = spread("gain", difference)
            points.append(
                Point(
                    task=runs.task,
                    student=runs.student,
                    weighting=name,
                    reachable={
                        student: {
                            kind: float(np.mean([one["by_student"][student][kind] for one in found]))
                            for kind in found[0]["by_student"][student]
                        }
                        for student in found[0]["by_student"]
                    },
                    gain=100 * float(np.mean(more)),
                    gain_low=None if ends["gain_low"] is None else 100 * ends["gain_low"],
                    gain_high=None if ends["gain_high"] is None else 100 * ends["gain_high"],
                )
            )
    return points


PREFERRED = (f"{POLICY}:{AUTO}", AUTO, "policy_shipped", "policy", ROUTER)
"""Which weighting stands for a task: what ``rlkd headroom`` looks at without any training there, else what is there."""


def one_each(points: Iterable[Point]) -> list[Point]:
    """One point a task and student: the first of ``PREFERRED``, else the first there is; so every task counts alike."""
    chosen: dict[tuple[str, str], Point] = {}
    for point in points:
        key = (point.task, point.student)
        if key not in chosen or _place(point) < _place(chosen[key]):
            chosen[key] = point
    return list(chosen.values())


def _place(point: Point) -> int:
    return PREFERRED.index(point.weighting) if point.weighting in PREFERRED else len(PREFERRED)


def best_fit(points: Sequence[Point], kind: str = MEASURED, student: str | None = None) -> Fit | None:
    """The imagined student whose lines tell best what other tasks gain.

    By rank correlation and share of right verdicts, to a tenth of their sum, which is as far as chance lets tell them
    apart with some tens of tasks; then by the least error.

    Args:
        points: All that is known.
        kind: What is reachable with labels, or without.
        student: Take the one of this noise.

    Returns:
        The fit; None where it takes more tasks.
    """
    families = [point.family for point in points]
    if len(set(families)) <= FEWEST_TASKS:
        return None
    gains = [point.gain for point in points]
    fits = []
    noises = dict.fromkeys(noise_of(name) for name in points[0].reachable)
    for name in noises if student is None else [student]:
        x = [point.surely(name, kind) for point in points]
        if len(set(x)) < FEWEST_TASKS:
            continue
        predictions = left_out_predictions(x, gains, families)
        means = [one.mean for one in predictions]
        sure = [place for place, point in enumerate(points) if point.side_is_sure]
        told = rank_correlation(means, gains, np.random.default_rng(0)) or (0.0, 1.0)
        fits.append(
            Fit(
                student=name,
                line=GainLine.fit(x, gains, families),
                predictions=predictions,
                rank_correlation=told[0],
                chance=told[1],
                right=right_verdicts(means, gains),
                sure=len(sure),
                right_where_sure=right_verdicts([means[i] for i in sure], [gains[i] for i in sure]) if sure else 0.0,
                off=float(np.mean([abs(one.mean - gain) for one, gain in zip(predictions, gains, strict=True)])),
                covered=float(np.mean([p.low <= gain <= p.high for p, gain in zip(predictions, gains, strict=True)])),
            )
        )
    return max(fits, key=lambda fit: (round(fit.rank_correlation + fit.right, 1), -fit.off)) if fits else None
