"""Accuracy of students on shared test instances: intervals that resample seeds and instances together."""

import numpy as np
from numpy.typing import ArrayLike

from rlkd.errors import ConfigError
from rlkd.stats.estimates import Array, Estimate, check_level, interval

_BLOCK = 4_000_000


def _correct(*arms: ArrayLike) -> Array:
    """Stack arms (S, N) of the same seeds and instances to (arms, S, N), float64 zeros and ones."""
    arrays = [np.asarray(arm) for arm in arms]
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) > 1 or arrays[0].ndim != 2 or arrays[0].size == 0:
        raise ConfigError(
            f"expected the same (seeds, instances) for every arm, got shapes {', '.join(map(str, shapes))}; "
            "score all arms on the same seeds and test instances"
        )
    if any(array.dtype != np.bool_ for array in arrays):
        raise ConfigError(
            f"expected bool arrays of answers, got {', '.join(str(array.dtype) for array in arrays)}; "
            "pass predictions == labels"
        )
    return np.stack(arrays).astype(np.float64)


def resample_instances(values: Array, reps: int, rng: np.random.Generator) -> Array:
    """Mean of ``values`` (rows, N) over instances drawn anew, the same ones for every row; shape (reps, rows)."""
    size = values.shape[1]
    # Instances with equal columns are interchangeable, so drawing N of them is a multinomial draw over the
    # distinct columns: exact, and far cheaper than drawing indices.
    patterns, counts = np.unique(values, axis=1, return_counts=True)
    block = max(1, _BLOCK // len(counts))
    draws = [min(block, reps - start) for start in range(0, reps, block)]
    return np.concatenate([rng.multinomial(size, counts / size, size=n) @ patterns.T / size for n in draws])


def resample_seeds(seeds: int, reps: int, rng: np.random.Generator) -> Array:
    """Share of each of ``seeds`` seeds in a draw of as many, shape (reps, seeds); rows sum to one."""
    return rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=reps) / seeds


def _two_level(values: Array, reps: int, rng: np.random.Generator) -> Array:
    """Resample seeds and instances; means of ``values`` (arms, S, N) in each resample, shape (reps, arms)."""
    arms, seeds, size = values.shape
    by_seed = resample_instances(values.reshape(arms * seeds, size), reps, rng).reshape(reps, arms, seeds)
    return np.asarray(np.einsum("ras,rs->ra", by_seed, resample_seeds(seeds, reps, rng)))


def mean_accuracy(correct: ArrayLike, rng: np.random.Generator, reps: int = 2000, level: float = 0.95) -> Estimate:
    """Accuracy over seeds with a two-level bootstrap interval.

    Resamples as :func:`paired_difference` does; one seed is allowed, and then only instances vary.

    Args:
        correct: Whether each test instance was answered rightly, bool, shape (S, N).
        rng: Draws the resamples.
        reps: Number of resamples; >= 1.
        level: Share of resamples inside the interval, in (0, 1).

    Returns:
        Mean accuracy in [0, 1] and its interval.

    Raises:
        ConfigError: If the array is not bool of shape (S, N).
    """
    check_level(reps, level)
    values = _correct(correct)
    return interval(values.mean(), _two_level(values, reps, rng)[:, 0], level)


def paired_difference(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    rng: np.random.Generator,
    reps: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Difference in accuracy, a minus b, with a two-level bootstrap interval.

    Seed s of ``a`` is paired with seed s of ``b``, and column n is the same test instance in every row. Each
    resample draws seeds and, independently, instances; a drawn instance is drawn for every seed and for both
    arms. Drawing instances anew for each seed would treat one test set as S different ones and give an
    interval that is too narrow. Few seeds (3) still make it somewhat narrow.

    Args:
        correct_a: Whether each test instance was answered rightly, bool, shape (S seeds, N instances).
        correct_b: The same seeds and instances under the other arm, shape (S, N).
        rng: Draws the resamples.
        reps: Number of resamples; >= 1.
        level: Share of resamples inside the interval, in (0, 1).

    Returns:
        Mean difference in [-1, 1] and its interval.

    Raises:
        ConfigError: If the shapes differ or the arrays are not bool.

    Source:
        Owen 2007, The pigeonhole bootstrap, doi:10.1214/07-AOAS122.
    """
    check_level(reps, level)
    arms = _correct(correct_a, correct_b)
    values = arms[:1] - arms[1:]
    return interval(values.mean(), _two_level(values, reps, rng)[:, 0], level)


def gap_share(
    correct_x: ArrayLike,
    correct_uniform: ArrayLike,
    correct_oracle: ArrayLike,
    rng: np.random.Generator,
    reps: int = 2000,
    level: float = 0.95,
) -> Estimate | None:
    """Share of the gap from equal weights to the oracle that x recovers: (x - uniform) / (oracle - uniform).

    0 is as good as equal weights, 1 as good as the oracle; below 0 and above 1 both happen. The ratio is of
    mean accuracies, and all three arms are resampled together as in :func:`paired_difference`.

    Args:
        correct_x: Whether each test instance was answered rightly, bool, shape (S, N).
        correct_uniform: The same seeds and instances with equal weights, shape (S, N).
        correct_oracle: The same seeds and instances with the oracle's weights, shape (S, N).
        rng: Draws the resamples.
        reps: Number of resamples; >= 1.
        level: Share of resamples inside the interval, in (0, 1).

    Returns:
        The share and its interval; None when the interval of the gap itself reaches down to zero, since a
        share of nothing is noise. Resamples in which the gap is not positive are left out of the interval.

    Raises:
        ConfigError: If the shapes differ or the arrays are not bool.
    """
    check_level(reps, level)
    values = _correct(correct_x, correct_uniform, correct_oracle)
    x, uniform, oracle = values.mean(axis=(1, 2))
    means = _two_level(values, reps, rng)
    gain, gap = means[:, 0] - means[:, 1], means[:, 2] - means[:, 1]
    if interval(oracle - uniform, gap, level).low <= 0:
        return None
    return interval((x - uniform) / (oracle - uniform), positive_shares(gain, gap), level)


def positive_shares(gain: Array, gap: Array) -> Array:
    """``gain / gap`` of the resamples, shape (reps,), in which the gap is positive; there must be one."""
    usable = gap > 0
    return gain[usable] / gap[usable]
