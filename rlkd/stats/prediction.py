"""From what a weighting gains in what students are taught to what the students gain: a line, with its doubt."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from rlkd.errors import ConfigError
from rlkd.stats.estimates import Estimate, check_level, finite

WORTH = 0.5
"""Points from which on a gain is worth having: what verdicts are about."""
EASE = 0.02
"""Spread of students' gains where nothing is reachable, as what is reachable: at no slope would they agree better."""
FEWEST_ROWS = 10
"""Labelled rows below which what is reachable is not measured."""
FEWEST_TASKS = 3
"""Tasks from which on a line has a spread worth the name."""
SURE = 2.0
"""Standard errors by which something must be reachable to count: rows that are few must not promise."""


def surely(reachable: float, error: float) -> float:
    """What of it is reachable beyond chance: the end of its interval that is next to nothing, 0 if 0 lies within.

    Left out, tasks are told apart better by this than by the mean: of a difference that some hundred rows leave open,
    students gained nothing.

    Args:
        reachable: A rise or a fall.
        error: Its standard error, >= 0.
    """
    return math.copysign(max(abs(reachable) - SURE * error, 0.0), reachable)


class Rise(NamedTuple):
    """What is reachable, as a mean over imagined students."""

    mean: float
    error: float
    """Of the mean, at most: the students look at the same rows."""
    sure: float
    """Mean of what each of them surely reaches: how many alike rows a student averages is not known."""


def rise(by_student: Mapping[str, Mapping[str, float]], noise: str, kind: str) -> Rise:
    """What is reachable for students of some noise, however many alike rows they average.

    Args:
        by_student: What records keep: by name (``3 alike, 0.25 nats``) figures with their standard errors.
        noise: The end of a name, ``0.25 nats``.
        kind: Of the figure.
    """
    found = [(one[kind], one[f"{kind}_error"]) for name, one in by_student.items() if noise_of(name) == noise]
    means, errors, sure = zip(*((mean, error, surely(mean, error)) for mean, error in found), strict=True)
    return Rise(*(math.fsum(values) / len(found) for values in (means, errors, sure)))


def noise_of(student: str) -> str:
    """The noise in the name of an imagined student."""
    return student.rpartition(", ")[2]


@dataclass(frozen=True, kw_only=True)
class GainLine:
    """Points that a student gains by what is reachable: a line through the origin.

    Where nothing is reachable nothing is gained but for chance; the more is reachable, the further tasks lie apart. So
    the standard deviation of a gain about the line is ``spread * sqrt(x^2 + EASE^2)``, and the line is fitted by least
    squares with these weights.
    """

    slope: float
    """Points for what is reachable."""
    error: float
    """Standard error of the slope."""
    spread: float
    """Of tasks about the line, as a slope."""
    tasks: int
    """That it was fitted on."""

    @classmethod
    def fit(cls, reachable: ArrayLike, gains: ArrayLike, tasks: Sequence[Hashable]) -> Self:
        """Fit the line; every task counts once, however many points it has.

        Args:
            reachable: What of it is sure, see :func:`surely`, shape (points,).
            gains: Of students, in points, shape (points,).
            tasks: Of each point.

        Raises:
            ConfigError: There are fewer than ``FEWEST_TASKS`` tasks, or nothing is reachable on any.
        """
        x, y = finite(reachable, "(points,)"), finite(gains, "(points,)")
        count = len(set(tasks))
        if count < FEWEST_TASKS or not x.any() or not len(x) == len(y) == len(tasks):
            raise ConfigError(
                f"expected points of {FEWEST_TASKS} tasks, some with something to reach, got {len(x)} reachable gains, "
                f"{len(y)} gains and {count} tasks; run students on more tasks"
            )
        share = np.array([1 / list(tasks).count(task) for task in tasks])
        weights = share / (x**2 + EASE**2)
        information = float(weights @ x**2)
        slope = float(weights @ (x * y)) / information
        spread = math.sqrt(float(weights @ (y - slope * x) ** 2) / (count - 1))
        return cls(slope=slope, error=spread / math.sqrt(information), spread=spread, tasks=count)

    def predicted(self, reachable: float, error: float = 0.0, level: float = 0.95) -> Estimate:
        """The gain of a student on a new task in points, from -100 to 100, with its prediction interval.

        Args:
            reachable: What is surely reachable there.
            error: Its standard error: how well the rows at hand tell.
            level: Of the interval, in (0, 1).
        """
        check_level(level)
        doubt = (self.spread**2 * (reachable**2 + EASE**2)) + (self.error * reachable) ** 2 + (self.slope * error) ** 2
        half = float(scipy.stats.t.ppf((1 + level) / 2, self.tasks - 1)) * math.sqrt(doubt)
        mean = self.slope * reachable
        return Estimate(*(min(max(end, -100.0), 100.0) for end in (mean, mean - half, mean + half)))

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def left_out_predictions(reachable: ArrayLike, gains: ArrayLike, tasks: Sequence[Hashable]) -> list[Estimate]:
    """What the lines of all other tasks say of each point; arguments are those of :meth:`GainLine.fit`.

    Raises:
        ConfigError: Without a task, fewer than ``FEWEST_TASKS`` are left.
    """
    x, y = finite(reachable, "(points,)"), finite(gains, "(points,)")
    lines = {}
    for task in dict.fromkeys(tasks):
        kept = [place for place, other in enumerate(tasks) if other != task]
        lines[task] = GainLine.fit(x[kept], y[kept], [tasks[place] for place in kept])
    return [lines[task].predicted(float(value)) for task, value in zip(tasks, x, strict=True)]


def right_verdicts(predictions: Sequence[float], gains: Sequence[float]) -> float:
    """Share of points on whose side of ``WORTH`` the prediction lies, in [0, 1]."""
    return float(np.mean([(one >= WORTH) == (other >= WORTH) for one, other in zip(predictions, gains, strict=True)]))
