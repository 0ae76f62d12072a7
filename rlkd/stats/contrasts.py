"""Figures made of mean scores, with their intervals: differences of weightings, shares of a gap, means over tasks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.optimize
import scipy.stats

from rlkd.errors import ConfigError
from rlkd.stats.estimates import Array, Estimate, check_level
from rlkd.stats.variation import Variation

Seeds = tuple[int, ...]

_DRAWS = 1000
_DRAWN = 0.5
_WIDEST = 1e6


@dataclass(frozen=True, eq=False)
class Block:
    """Values of seeds and test instances, crossed."""

    seeds: Seeds
    """Names of the seeds, shape (S,)."""
    values: Array
    """Shape (S, N); N = 1 where only one score a run is known."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """A weighted sum of mean scores, and what it is made of: one block, or several that are added up."""

    value: float
    """Of the data themselves."""
    blocks: tuple[Block, ...]
    """Their means add up to the value, or to what it is around its own value."""

    @cached_property
    def variation(self) -> Variation | None:
        """What seeds and instances add to the variance; None where a part of it rests on one seed.

        Seeds of one name are taken to be one draw wherever they appear (the student's initialisation is the same on
        every task), so that a mean over tasks has the spread of its means per seed, with S - 1 degrees of freedom.
        Where no block shares a seed with another they are apart draws, and their degrees of freedom are pooled.
        """
        fewest = min(len(block.seeds) for block in self.blocks)
        if fewest < 2:
            return None
        apart: dict[int, float] = {}
        main = sampling = in_doubt = 0.0
        for block in self.blocks:
            count, size = block.values.shape
            around = block.values - block.values.sum() / (count * size)
            deviations = around.sum(1) / size
            for seed, deviation in zip(block.seeds, deviations, strict=True):
                apart[seed] = apart.get(seed, 0.0) + deviation / math.sqrt(count * (count - 1))
            if size > 1:
                rows = around.sum(0) / count
                spread = float(rows @ rows) / (size - 1) / size
                squares = np.vdot(around, around) - size * deviations @ deviations - count * rows @ rows
                main += spread - float(squares) / ((count - 1) * (size - 1)) / (count * size)
                sampling += spread
                in_doubt += spread**2 / _degrees(rows)
        return Variation(
            by_seed=sum(part**2 for part in apart.values()),
            seed_df=self._seed_df(apart),
            by_instance=max(0.0, main),
            instance_df=sampling**2 / in_doubt if in_doubt > 0 else np.inf,
            sampling=sampling,
        )

    def _seed_df(self, apart: Mapping[int, float]) -> float:
        """Degrees of freedom of the variance that seeds show, to which each adds the square of its own part.

        Source:
            Satterthwaite 1946, doi:10.2307/3002019, for seeds that no two blocks share.
        """
        counts = [len(block.seeds) for block in self.blocks]
        if len(counts) == 1 or sum(counts) > len(apart):
            return min(counts) - 1
        variances = [sum(apart[seed] ** 2 for seed in block.seeds) for block in self.blocks]
        in_doubt = sum(one**2 / (count - 1) for one, count in zip(variances, counts, strict=True))
        return float(sum(variances) ** 2 / in_doubt) if in_doubt > 0 else min(counts) - 1

    def estimate(self, level: float = 0.95) -> Estimate | None:
        """The figure with its interval; None with one seed."""
        check_level(level)
        if self.variation is None:
            return None
        half = self.variation.half_width(level)
        return Estimate(self.value, self.value - half, self.value + half)

    def p_value(self) -> float | None:
        """Two-sided, of no difference: below 0.05 where the 95% interval leaves zero out. None with one seed."""
        return None if self.variation is None else self.variation.p_value(self.value)


def _degrees(rows: Array) -> float:
    """Degrees of freedom of the variance of ``rows`` (N,), mean zero, from their kurtosis: 2 N for equal magnitudes."""
    squares = rows * rows
    square = float(squares.sum()) / len(rows)
    excess = float(squares @ squares) / len(rows) / square**2 - 1 if square > 0 else 0.0
    return max(1.0, 2 * len(rows) / excess) if excess > 1e-9 else np.inf


def combine(figures: Sequence[Contrast], weights: Sequence[float], value: float | None = None) -> Contrast:
    """The weighted sum of figures.

    Blocks of the same seeds and as many instances are added up element by element: where they are the same instances
    (tasks with one test set, arms of one task) what they share counts, and where they are others it is zero but for
    chance.

    Args:
        figures: At least one.
        weights: One a figure.
        value: Of the sum, where it is another than the sum of the values.
    """
    found: dict[tuple[Seeds, int], Array] = {}
    for figure, weight in zip(figures, weights, strict=True):
        for block in figure.blocks:
            key = (block.seeds, block.values.shape[1])
            found[key] = found.get(key, 0.0) + weight * block.values
    if value is None:
        value = float(sum(weight * figure.value for figure, weight in zip(figures, weights, strict=True)))
    return Contrast(value, tuple(Block(seeds, values) for (seeds, _), values in found.items()))


@dataclass(frozen=True, eq=False)
class Share:
    """A ratio of two differences, the lower of which is surely positive."""

    gain: Contrast
    gap: Contrast

    @property
    def value(self) -> float:
        """The ratio of the data themselves."""
        return self.gain.value / self.gap.value

    def linear(self) -> Contrast:
        """The share as a sum, to the first order around its value."""
        return combine([self.gain, self.gap], [1 / self.gap.value, -self.value / self.gap.value], self.value)

    def estimate(self, level: float = 0.95) -> Estimate | None:
        """The share with its interval: every share whose rest, gain minus share times gap, may be zero.

        Source:
            Fieller 1954, Some problems in interval estimation, jstor.org/stable/2984043.
        """
        if self.gap.variation is None:
            return None
        check_level(level)
        low, high = (self.value + side * self._reach(side, level) for side in (-1, 1))
        return Estimate(self.value, low, high)

    def _reach(self, side: int, level: float) -> float:
        """How far the interval reaches to one side; as far as is searched where the gap is not sure at this level."""

        def beyond(distance: float) -> float:
            rest = combine([self.gain, self.gap], [1.0, -(self.value + side * distance)])
            assert rest.variation is not None
            return abs(rest.value) - rest.variation.half_width(level)

        nearby = self.linear().variation
        step = 1e-3 if nearby is None else max(1e-3, nearby.half_width(level))
        while beyond(step) < 0 and step < _WIDEST:
            step *= 2
        if beyond(step) < 0:
            return math.inf
        return float(scipy.optimize.brentq(beyond, 0.0, step, xtol=1e-6)) if beyond(0.0) < 0 else 0.0


def task_mean(figures: Sequence[Contrast]) -> Contrast:
    """The mean of a figure over tasks; the tasks are held fixed. At least one."""
    return combine(figures, [1 / len(figures)] * len(figures))


def task_iqm(figures: Sequence[Contrast], rng: np.random.Generator) -> Contrast:
    """The interquartile mean over tasks, the tasks held fixed: floor(tasks / 4) are dropped at each end.

    Which tasks are dropped is a matter of chance where they are close: the variance is that of a sum in which each
    task has its mean weight over draws around the figures. The figures are spread by chance already, so they are
    drawn with half their standard error, with which intervals cover what they should, by simulation.

    Args:
        figures: One a task; at least one.
        rng: Makes the draws.

    Source:
        Agarwal et al. 2021, section 4, arXiv:2108.13264.
    Deviation:
        A t interval instead of a stratified bootstrap, which is too narrow with few seeds.
    """
    if not figures:
        raise ConfigError("expected figures of at least one task, got none; leave the mean over tasks out")
    values = np.array([figure.value for figure in figures])
    noise = np.array([math.sqrt(figure.variation.total) if figure.variation else 0.0 for figure in figures])
    cut = len(figures) // 4
    draws = values + _DRAWN * noise * rng.standard_normal((_DRAWS, len(figures)))
    place = draws.argsort(1).argsort(1)
    weights = ((place >= cut) & (place < len(figures) - cut)).mean(0) / (len(figures) - 2 * cut)
    return combine(figures, weights.tolist(), float(scipy.stats.trim_mean(values, 0.25)))
