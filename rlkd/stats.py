"""Numbers that compare runs: point estimates, bootstrap intervals, a paired test, calibration.

Axes: R runs or S seeds first, then tasks or N test instances. Every random draw comes from the generator
that is passed in. Intervals are percentile intervals.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from rlkd.errors import ConfigError

Array = NDArray[np.float64]
Statistic = Callable[[Array], float]

_BLOCK = 4_000_000
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


def _finite(values: ArrayLike, axes: str) -> Array:
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
    _check_level(reps, level)


def _check_level(reps: int, level: float) -> None:
    if reps < 1 or not 0 < level < 1:
        raise ConfigError(f"expected reps >= 1 and 0 < level < 1, got reps {reps}, level {level}; mend them")


def _interval(mean: float, resampled: Array, level: float) -> Estimate:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(mean), float(low), float(high))


# -- runs and tasks --------------------------------------------------------------------------------


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
    return float(scipy.stats.trim_mean(_finite(np.ravel(scores), "(scores,)"), 0.25))


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
    array = _finite(values, "(runs,)")
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
    array = _finite(scores, "(runs, tasks)")
    runs, tasks = array.shape
    _check_bootstrap(runs, reps, level)
    columns = np.arange(tasks)
    resampled = [statistic(array[rng.integers(runs, size=(runs, tasks)), columns]) for _ in range(reps)]
    return _interval(statistic(array), np.asarray(resampled, dtype=np.float64), level)


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
    left, right = _finite(a, "(seeds,)")[:, None], _finite(b, "(seeds,)")[None, :]
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
    array = _finite(differences, "(seeds,)")
    size = len(array)
    exact = size <= _EXACT_SEEDS
    if exact:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=size)))
    else:
        signs = 1.0 - 2.0 * rng.integers(2, size=(reps, size))
    # The margin keeps patterns that equal the observed one up to rounding.
    extreme = np.abs(signs @ array) >= abs(array.sum()) - 1e-12 * np.abs(array).sum()
    return float(extreme.mean()) if exact else float((1 + extreme.sum()) / (1 + reps))


# -- seeds and test instances ----------------------------------------------------------------------


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


def _two_level(values: Array, reps: int, rng: np.random.Generator) -> Array:
    """Resample seeds and instances; means of ``values`` (arms, S, N) in each resample, shape (reps, arms)."""
    arms, seeds, size = values.shape
    # Instances with equal columns are interchangeable, so drawing N of them is a multinomial draw over the
    # distinct columns: exact, and far cheaper than drawing indices.
    patterns, counts = np.unique(values.reshape(arms * seeds, size), axis=1, return_counts=True)
    block = max(1, _BLOCK // len(counts))
    means = []
    for start in range(0, reps, block):
        draws = min(block, reps - start)
        instances = rng.multinomial(size, counts / size, size=draws)
        by_seed = (instances @ patterns.T / size).reshape(draws, arms, seeds)
        chosen = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws)
        means.append(np.einsum("ras,rs->ra", by_seed, chosen) / seeds)
    return np.concatenate(means)


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
    _check_level(reps, level)
    values = _correct(correct)
    return _interval(values.mean(), _two_level(values, reps, rng)[:, 0], level)


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
    _check_level(reps, level)
    arms = _correct(correct_a, correct_b)
    values = arms[:1] - arms[1:]
    return _interval(values.mean(), _two_level(values, reps, rng)[:, 0], level)


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
    _check_level(reps, level)
    values = _correct(correct_x, correct_uniform, correct_oracle)
    x, uniform, oracle = values.mean(axis=(1, 2))
    means = _two_level(values, reps, rng)
    gaps = means[:, 2] - means[:, 1]
    if _interval(oracle - uniform, gaps, level).low <= 0:
        return None
    usable = gaps > 0
    shares = (means[usable, 0] - means[usable, 1]) / gaps[usable]
    return _interval((x - uniform) / (oracle - uniform), shares, level)


# -- calibration -----------------------------------------------------------------------------------


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy, over equally wide bins of confidence.

    Bin m holds confidences in ((m - 1) / bins, m / bins]; its weight is its share of the instances.

    Args:
        probabilities: Rows on the simplex, shape (N, C).
        labels: Class indices in [0, C), shape (N,); unlabelled instances must be left out.
        bins: Number of bins; >= 1.

    Returns:
        In [0, 1]; 0 is perfectly calibrated.

    Raises:
        ConfigError: If the shapes do not fit, a label is out of range or a row is no distribution.

    Source:
        Guo et al. 2017, equation 3, arXiv:1706.04599.
    """
    array = _finite(probabilities, "(instances, classes)")
    answers = np.asarray(labels)
    if bins < 1 or answers.shape != array.shape[:1]:
        raise ConfigError(
            f"expected {len(array)} labels and bins >= 1, got {answers.shape}, bins {bins}; pass one a row"
        )
    if answers.min() < 0 or answers.max() >= array.shape[1]:
        raise ConfigError(
            f"expected labels in [0, {array.shape[1]}), got {answers.min()} to {answers.max()}; "
            "leave unlabelled instances out"
        )
    if array.min() < 0 or np.abs(array.sum(axis=1) - 1).max() > 1e-3:
        raise ConfigError("expected rows that sum to one, got others; pass probabilities, not logits")
    confidence = array.max(axis=1)
    correct = array.argmax(axis=1) == answers
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    # |sum of correct - sum of confidence| in a bin is its size times the distance of the two means.
    distances = np.abs(np.bincount(bin_of, weights=correct - confidence, minlength=bins))
    return float(distances.sum() / len(array))
