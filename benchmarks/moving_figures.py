"""When an arm is back on track after its teachers have changed, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import factorial, inf, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW = 200
"""Rows over which rightness is measured."""
WITHIN = 0.02
"""Of the rightness of an arm that has never known other teachers, this much may be missing."""
STEP = 20
"""Calls between the places at which it is measured."""

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Series:
    """What an arm taught, row by row.

    Attributes:
        calls: Made before a row was first asked about, ascending, shape (n,).
        right: Bool, whether the row is taught its class; one that nobody gave an answer to is not, shape (n,).
    """

    calls: NDArray[np.int64]
    right: NDArray[np.bool_]

    def share(self, start: float, end: float = inf) -> float:
        """Share of right ones among the rows that were first asked about in [start, end) calls; NaN of none."""
        some = self.right[np.searchsorted(self.calls, start) : np.searchsorted(self.calls, end)]
        return float(some.mean()) if len(some) else float("nan")

    def ahead(self, places: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Of the rows from some numbers of calls on: share of right ones of the next ``WINDOW``, and of all.

        Both have shape (G,); NaN where fewer than ``WINDOW`` rows are left.
        """
        sums = np.concatenate([[0], np.cumsum(self.right)])
        first = np.searchsorted(self.calls, places)
        last = np.minimum(first + WINDOW, len(self.right))
        enough = first + WINDOW <= len(self.right)
        left = (len(self.right) - first).clip(1)
        whole = np.where(enough, (sums[-1] - sums[first]) / left, np.nan)
        return np.where(enough, (sums[last] - sums[first]) / WINDOW, np.nan), whole


@dataclass(frozen=True)
class Lag:
    """How an arm whose teachers change lags behind the same arm in a run that never knew other teachers.

    Attributes:
        near: Of each seed, over the next ``WINDOW`` rows of every place: its rightness less the other's, (S, G).
        whole: Likewise over all rows that are left, (S, G).
    """

    near: Floats
    whole: Floats

    @classmethod
    def of(cls, changed: Sequence[Series], always: Sequence[Series], change: int, end: int) -> "Lag":
        """Measure it, at every ``STEP`` calls from the change to the end, in runs of the same seeds."""
        places = np.arange(change, end, STEP)
        pairs = [(one.ahead(places), two.ahead(places)) for one, two in zip(changed, always, strict=True)]
        near, whole = (np.array([one[part] - two[part] for one, two in pairs]) for part in range(2))
        return cls(near, whole)

    @classmethod
    def mean(cls, lags: Sequence["Lag"]) -> "Lag":
        """That of several tasks, seed by seed, as far as all of them go."""
        return cls(*(np.mean([getattr(lag, part) for lag in lags], axis=0) for part in ("near", "whole")))

    def back(self, weights: Floats | None = None) -> float:
        """Calls after the change at which the arm is back on track; infinity: it is not, as far as can be seen.

        That is the first place from which, on the mean over seeds, no more than ``WITHIN`` is missing over the next
        ``WINDOW`` rows, and no more over all rows that are left: a window that is right by luck does not count.

        Args:
            weights: Of the seeds, shape (S,); None: equal ones.
        """
        near, whole = (np.average(part, axis=0, weights=weights) for part in (self.near, self.whole))
        on = np.flatnonzero((near >= -WITHIN - 1e-9) & (whole >= -WITHIN - 1e-9))
        return float(on[0] * STEP) if len(on) else inf

    def interval(self) -> tuple[float, float]:
        """The middle 95% of :meth:`back` over all ways to draw as many seeds, with return, as there are."""
        seeds = len(self.near)
        drawn = []
        for chosen in combinations_with_replacement(range(seeds), seeds):
            counts = np.bincount(chosen, minlength=seeds)
            ways = factorial(seeds) / prod(factorial(int(count)) for count in counts)
            drawn.append((self.back(counts.astype(float)), ways))
        drawn.sort()
        reached = np.cumsum([ways for _, ways in drawn]) / sum(ways for _, ways in drawn)
        low, high = (int(np.searchsorted(reached, share - 1e-12)) for share in (0.025, 0.975))
        return drawn[low][0], drawn[min(high, len(drawn) - 1)][0]

    @property
    def fall(self) -> float:
        """What is missing over the first ``WINDOW`` rows after the change, on the mean over seeds."""
        return float(-self.near[:, 0].mean())
