"""One number a run: point estimates, bootstrap intervals over runs, paired tests."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from rlkd.errors import ConfigError

Array = NDArray[np.float64]
Statistic = Callable[[Array], float]

_EXACT_SEEDS = 12


@dataclass(frozen=True)
class Estimate:
    """A value with its interval."""

    mean: float
    """The statistic of the data themselves, not of the resamples."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def finite(values: ArrayLike, axes: str) -> Array:
    """Check ``values`` against axes such as ``"(runs, tasks)"`` and return them as float64."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != len(axes.strip("(),").split(",")):
        raise ConfigError(f"expected an array {axes}, got shape {array.shape}; arrange it as {axes}")
    if array.size == 0 or not np.isfinite(array).all():
        raise ConfigError(
            f"expected finite numbers {axes}, got shape {array.shape} with "
            f"{(~np.isfinite(array)).sum()} others; leave failed runs out and say so"
        )
    return array


def _check_bootstrap(runs: int, reps: int, level: float) -> None:
    if runs < 2:
        raise ConfigError(f"an interval needs at least 2 runs, got {runs}; run more seeds or report the value alone")
    check_level(reps, level)


def check_level(reps: int, level: float) -> None:
    """Refuse a number of resamples or a level that gives no interval."""
    if reps < 1 or not 0 < level < 1:
        raise ConfigError(f"expected reps >= 1 and 0 < level < 1, got reps {reps}, level {level}; mend them")


def interval(mean: float, resampled: Array, level: float) -> Estimate:
    """``mean`` with the percentile interval of ``resampled``, shape (reps,)."""
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(mean), float(low), float(high))


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean: the mean of the middle half of all scores.

    With n scores, floor(n / 4) are dropped at each end.

    Args:
        scores: Any shape, at least one score; all of them are pooled.

    Returns:
        The mean of those that are left.

    Source:
        Agarwal et al. 2021, section 4.3, arXiv:2108.13264.
    """
    return float(scipy.stats.trim_mean(finite(np.ravel(scores), "(scores,)"), 0.25))


def bootstrap_interval(
    values: ArrayLike, statistic: Statistic, rng: np.random.Generator, reps: int = 2000, level: float = 0.95
) -> Estimate:
    """Bootstrap one statistic over runs.

    With fewer than about 10 runs a percentile interval is too narrow; say how many there were.

    Args:
        values: One value a run, shape (R,), R >= 2.
        statistic: Takes an array (R,), gives a number.
        rng: Draws the resamples.
        reps: Number of resamples; >= 1.
        level: Share of resamples inside the interval, in (0, 1).

    Returns:
        The statistic of ``values`` and its interval.

    Raises:
        ConfigError: If there are fewer than 2 runs or a value is not finite.
    """
    array = finite(values, "(runs,)")
    return stratified_bootstrap(array[:, None], lambda column: statistic(column[:, 0]), rng, reps, level)


def stratified_bootstrap(
    scores: ArrayLike, statistic: Statistic, rng: np.random.Generator, reps: int = 2000, level: float = 0.95
) -> Estimate:
    """Bootstrap one statistic over runs, resampled within each task.

    The tasks are fixed: the interval is about other seeds on these tasks, not about other tasks.

    Args:
        scores: Shape (runs, tasks), at least 2 runs.
        statistic: Takes an array (runs, tasks), gives a number; for example :func:`iqm`.
        rng: Draws the resamples.
        reps: Number of resamples; >= 1.
        level: Share of resamples inside the interval, in (0, 1).

    Returns:
        The statistic of ``scores`` and its interval.

    Raises:
        ConfigError: If there are fewer than 2 runs or a score is not finite.

    Source:
        Agarwal et al. 2021, section 4.1, arXiv:2108.13264.
    """
    array = finite(scores, "(runs, tasks)")
    runs, tasks = array.shape
    _check_bootstrap(runs, reps, level)
    columns = np.arange(tasks)
    resampled = [statistic(array[rng.integers(runs, size=(runs, tasks)), columns]) for _ in range(reps)]
    return interval(statistic(array), np.asarray(resampled, dtype=np.float64), level)


def probability_of_improvement(a: ArrayLike, b: ArrayLike) -> float:
    """Probability that a run of ``a`` beats a run of ``b``; ties count one half.

    All pairs of runs are compared (the Mann-Whitney U statistic over the number of pairs).

    Args:
        a: Scores, shape (S,).
        b: Scores, shape (S,), or another number of runs.

    Returns:
        In [0, 1]; 0.5 means no difference.

    Source:
        Agarwal et al. 2021, section 4.3, arXiv:2108.13264.
    """
    left, right = finite(a, "(seeds,)")[:, None], finite(b, "(seeds,)")[None, :]
    return float(np.mean((left > right) + 0.5 * (left == right)))


def paired_permutation_test(differences: ArrayLike, rng: np.random.Generator, reps: int = 10_000) -> float:
    """Two-sided sign-flip test that paired differences have mean zero.

    Exact for up to 12 seeds (all 2^S sign patterns); beyond, ``reps`` random patterns and the observed one.
    The smallest p-value that S seeds can give is 2^(1 - S): 0.0625 for 5 seeds.

    Args:
        differences: One difference a seed, shape (S,).
        rng: Draws the patterns when there are more than 12 seeds.
        reps: Number of random patterns; >= 1.

    Returns:
        The p-value, in (0, 1].

    Source:
        Fisher 1935, The Design of Experiments, section 21.
    """
    array = finite(differences, "(seeds,)")
    size = len(array)
    exact = size <= _EXACT_SEEDS
    if exact:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=size)))
    else:
        signs = 1.0 - 2.0 * rng.integers(2, size=(reps, size))
    # The margin keeps patterns that equal the observed one up to rounding.
    extreme = np.abs(signs @ array) >= abs(array.sum()) - 1e-12 * np.abs(array).sum()
    return float(extreme.mean()) if exact else float((1 + extreme.sum()) / (1 + reps))


def holm(p_values: ArrayLike) -> Array:
    """Correct p-values for the number of tests; the chance of one false alarm among them stays below the level.

    Sorted from the smallest, the i-th of m (from 0) is multiplied by m - i; none may fall below the one before it.

    Args:
        p_values: In [0, 1], shape (tests,), in any order.

    Returns:
        Corrected p-values in the same order, at most 1.

    Source:
        Holm 1979, A simple sequentially rejective multiple test procedure, jstor.org/stable/4615733.
    """
    array = finite(p_values, "(tests,)")
    order = np.argsort(array, kind="stable")
    raised = np.maximum.accumulate(array[order] * np.arange(len(array), 0, -1))
    corrected = np.empty_like(array)
    corrected[order] = np.minimum(raised, 1.0)
    return corrected


def rank_correlation(x: ArrayLike, y: ArrayLike, rng: np.random.Generator) -> tuple[float, float] | None:
    """Spearman's rho of pairs, with the p-value of a permutation test over pairings (exact for up to 7 pairs).

    Args:
        x: Shape (pairs,).
        y: Shape (pairs,).
        rng: Draws the pairings when there are more than 7.

    Returns:
        Rho in [-1, 1] and a two-sided p-value; None with fewer than 3 pairs or where one side is constant.
    """
    left, right = scipy.stats.rankdata(finite(x, "(pairs,)")), scipy.stats.rankdata(finite(y, "(pairs,)"))
    if len(left) != len(right):
        raise ConfigError(f"expected pairs, got {len(left)} and {len(right)} numbers; pass one y for each x")
    if len(left) < 3 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    centred = (right - right.mean()) / (right.std() * left.std() * len(left))
    # Spearman's rho is the correlation of the ranks; the ranks' means and spreads are the same in every pairing.
    test = scipy.stats.permutation_test(
        (left,), lambda ranks, axis: np.sum(ranks * centred, axis=axis), permutation_type="pairings", vectorized=True,
        rng=rng,
    )  # fmt: skip
    return float(test.statistic), float(test.pvalue)
