"""Resamples of seeds and test instances, and the shares of a gap in them."""

import numpy as np

from rlkd.stats.estimates import Array

_BLOCK = 4_000_000


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


def positive_shares(gain: Array, gap: Array) -> Array:
    """``gain / gap`` of the resamples, shape (reps,), in which the gap is positive; there must be one."""
    usable = gap > 0
    return gain[usable] / gap[usable]
