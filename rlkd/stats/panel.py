"""All weightings of one task under paired seeds, so that any two of them can be compared."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkd.errors import ConfigError
from rlkd.stats.contrasts import Block, Contrast, Seeds, Share
from rlkd.stats.estimates import Array


class Panel:
    """Scores of several arms on one task, arms paired by seed.

    Intervals are about other students (seeds) and other test instances. All seeds answered the same instances, so
    what instances do under every seed does not average out over seeds; :class:`rlkd.stats.variation.Variation` keeps
    the parts apart. Arms may lack seeds: what is compared is compared on the seeds that both have.

    Args:
        answers: Arm to seed to its values on the test instances, shape (N,), whose mean is the score (right or wrong;
            :func:`rlkd.stats.scores.instance_values`), or to one score where only that is known.

    Raises:
        ConfigError: If there is no run, or the runs answered different numbers of instances.

    Source:
        Bouthillier et al. 2021, arXiv:2103.03098 (seeds and test sets are both drawn).
    """

    def __init__(self, answers: Mapping[str, Mapping[int, NDArray[Any] | float]]) -> None:
        self.names: tuple[str, ...] = tuple(answers)
        self.seeds: Seeds = tuple(sorted({seed for runs in answers.values() for seed in runs}))
        sizes = {np.atleast_1d(run).size for runs in answers.values() for run in runs.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ConfigError(
                f"expected runs scored on the same test instances, got {sorted(sizes) or 'none'} of them; "
                "report runs of one test set together"
            )
        self.instances: int = sizes.pop()
        """Test instances; 1 where only one score a run is known, and then intervals are about seeds alone."""
        self._values = np.zeros((len(self.names), len(self.seeds), self.instances))
        self._there = np.zeros(self._values.shape[:2], dtype=bool)
        for a, runs in enumerate(answers.values()):
            for seed, run in runs.items():
                self._values[a, self.seeds.index(seed)] = run
                self._there[a, self.seeds.index(seed)] = True

    def common_seeds(self, *names: str) -> Seeds:
        """The seeds that all of these arms have; empty where an arm is unknown."""
        if not set(names) <= set(self.names):
            return ()
        return tuple(seed for seed, there in zip(self.seeds, self._common(names), strict=True) if there)

    def scores(self, name: str, seeds: Seeds) -> Array:
        """The scores of an arm under these seeds, shape (seeds,)."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return np.asarray(self._values[self.names.index(name), rows].mean(-1))

    def score(self, name: str, *, paired_with: str | None = None) -> Contrast | None:
        """Mean score of an arm over its seeds, or over those it shares with another arm; None without one."""
        return self._contrast({name: 1.0}, (name,) if paired_with is None else (name, paired_with))

    def difference(self, a: str, b: str) -> Contrast | None:
        """Mean of a minus b over the seeds that both have; None without one."""
        return self._contrast({b: -1.0} | {a: 1.0 - (a == b)}, (a, b))

    def gap_share(self, name: str, low: str, high: str, level: float = 0.95) -> Share | None:
        """Share of the gap from arm ``low`` to arm ``high`` that an arm recovers: (x - low) / (high - low) of means.

        0 is as good as ``low``, 1 as good as ``high``; below 0 and above 1 both happen. None where the interval of
        the gap reaches down to zero, since a share of nothing is noise, or there is one seed.
        """
        arms = (name, low, high)
        gap = self._contrast({low: -1.0, high: 1.0}, arms)
        sure = None if gap is None else gap.estimate(level)
        if gap is None or sure is None or sure.low <= 0:
            return None
        gain = self._contrast({low: -1.0} | {name: 1.0 - (name == low)}, arms)
        assert gain is not None
        return Share(gain, gap)

    def _common(self, names: Sequence[str]) -> NDArray[np.bool_]:
        return np.asarray(self._there[[self.names.index(name) for name in names]].all(0))

    def _contrast(self, weights: Mapping[str, float], arms: Sequence[str]) -> Contrast | None:
        """A weighted sum of arms over the seeds that all of ``arms`` have; None without one."""
        seeds = self.common_seeds(*arms)
        if not seeds:
            return None
        there = self._common(arms)
        values = sum(weight * self._values[self.names.index(name), there] for name, weight in weights.items())
        return Contrast(float(np.mean(values)), (Block(seeds, np.asarray(values)),))
