"""All weightings of one task, resampled together, so that any two of them can be compared and tasks be pooled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from rlkd.errors import ConfigError
from rlkd.stats.estimates import Array, Estimate, check_level, interval
from rlkd.stats.resampling import positive_shares, resample_instances, resample_seeds

Seeds = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Draws:
    """A figure and what it was in each resample."""

    value: float
    """Of the data themselves."""
    resampled: Array
    """Shape (reps,); empty where nothing could be resampled (one seed and no answers per instance)."""

    def estimate(self, level: float = 0.95) -> Estimate | None:
        """The figure with its interval; None where nothing could be resampled."""
        return interval(self.value, self.resampled, level) if self.resampled.size else None


class Panel:
    """Scores of several arms on one task, arms paired by seed.

    In a resample, instances are drawn once for all arms and seeds, and seeds once for all arms that have the same
    ones, so differences between any two arms keep their pairing. Drawing instances anew for each seed would treat one
    test set as several and give an interval that is too narrow; few seeds (3) still make it somewhat narrow. Arms may
    lack seeds: what is compared is compared on the seeds that both have.

    Args:
        answers: Arm to seed to its answers on the test set, bool (N,), or to one score where only that is known.
        rng: Draws the resamples.
        reps: Number of resamples; >= 1.

    Raises:
        ConfigError: If there is no run, or the runs answered different numbers of instances.

    Source:
        Owen 2007, The pigeonhole bootstrap, doi:10.1214/07-AOAS122.
    """

    def __init__(
        self,
        answers: Mapping[str, Mapping[int, NDArray[np.bool_] | float]],
        rng: np.random.Generator,
        reps: int = 2000,
    ) -> None:
        check_level(reps, 0.95)
        self.names: tuple[str, ...] = tuple(answers)
        self.seeds: Seeds = tuple(sorted({seed for runs in answers.values() for seed in runs}))
        sizes = {np.atleast_1d(run).size for runs in answers.values() for run in runs.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ConfigError(
                f"expected runs scored on the same test instances, got {sorted(sizes) or 'none'} of them; "
                "report runs of one test set together"
            )
        self.instances: int = sizes.pop()
        """Test instances that are resampled; 1 where only one score a run is known, and then seeds alone vary."""
        values = np.zeros((len(self.names), len(self.seeds), self.instances))
        self._there = np.zeros(values.shape[:2], dtype=bool)
        for a, runs in enumerate(answers.values()):
            for seed, run in runs.items():
                values[a, self.seeds.index(seed)] = run
                self._there[a, self.seeds.index(seed)] = True
        self._observed = values.mean(-1)
        rows = resample_instances(values.reshape(-1, self.instances), reps, rng)
        self._by_seed = rows.reshape(reps, *values.shape[:2])
        self._reps, self._rng = reps, rng
        self._shares: dict[tuple[bool, ...], Array] = {}

    def common_seeds(self, *names: str) -> Seeds:
        """The seeds that all of these arms have; empty where an arm is unknown."""
        if not set(names) <= set(self.names):
            return ()
        return tuple(seed for seed, there in zip(self.seeds, self._common(names), strict=True) if there)

    def scores(self, name: str, seeds: Seeds) -> Array:
        """The scores of an arm under these seeds, shape (seeds,)."""
        return np.asarray(self._observed[self.names.index(name), [self.seeds.index(seed) for seed in seeds]])

    def score(self, name: str, *, paired_with: str | None = None) -> Draws | None:
        """Mean score of an arm over its seeds, or over those it shares with another arm; None without one."""
        found = self._means(*((name,) if paired_with is None else (name, paired_with)))
        return None if found is None else Draws(found[0][0], found[1][:, 0])

    def difference(self, a: str, b: str) -> Draws | None:
        """Mean of a minus b over the seeds that both have; None without one."""
        found = self._means(a, b)
        return None if found is None else Draws(found[0][0] - found[0][1], found[1][:, 0] - found[1][:, 1])

    def gap_share(self, name: str, low: str, high: str, level: float = 0.95) -> Draws | None:
        """Share of the gap from arm ``low`` to arm ``high`` that an arm recovers: (x - low) / (high - low) of means.

        0 is as good as ``low``, 1 as good as ``high``; below 0 and above 1 both happen. None where the interval of
        the gap reaches down to zero, since a share of nothing is noise, or nothing could be resampled. Resamples in
        which the gap is not positive are left out.
        """
        found = self._means(name, low, high)
        if found is None or not found[1].size:
            return None
        (x, bottom, top), drawn = found
        gain, gap = drawn[:, 0] - drawn[:, 1], drawn[:, 2] - drawn[:, 1]
        if interval(top - bottom, gap, level).low <= 0:
            return None
        # As many as there are resamples again, so that shares of several tasks can be put side by side.
        return Draws((x - bottom) / (top - bottom), np.resize(positive_shares(gain, gap), self._reps))

    def _common(self, names: Sequence[str]) -> NDArray[np.bool_]:
        return np.asarray(self._there[[self.names.index(name) for name in names]].all(0))

    def _means(self, *names: str) -> tuple[Array, Array] | None:
        """Means over common seeds, shape (names,), and in each resample, (reps, names)."""
        if not self.common_seeds(*names):
            return None
        rows, there = [self.names.index(name) for name in names], self._common(names)
        observed = self._observed[rows][:, there].mean(-1)
        if self.instances == 1 and there.sum() == 1:
            return observed, np.empty((0, len(names)))
        key = tuple(map(bool, there))
        if key not in self._shares:
            self._shares[key] = resample_seeds(int(there.sum()), self._reps, self._rng)
        drawn = np.einsum("ras,rs->ra", self._by_seed[:, rows][:, :, there], self._shares[key])
        return observed, np.asarray(drawn)


def over_tasks(figures: Sequence[Draws], statistic: Callable[[Array], Array]) -> Draws:
    """Pool one figure of several tasks; each task is resampled by itself, the tasks are fixed.

    Args:
        figures: One a task; at least one.
        statistic: Over the first axis, for example :func:`task_mean` or :func:`task_iqm`.

    Source:
        Agarwal et al. 2021, section 4.1 (stratified bootstrap), arXiv:2108.13264.
    Deviation:
        Test instances are resampled besides seeds.
    """
    value = float(statistic(np.array([[figure.value] for figure in figures]))[0])
    if not all(figure.resampled.size for figure in figures):
        return Draws(value, np.empty(0))
    return Draws(value, statistic(np.stack([figure.resampled for figure in figures])))


def task_mean(values: Array) -> Array:
    """Mean over tasks of an array (tasks, reps)."""
    return np.asarray(values.mean(0))


def task_iqm(values: Array) -> Array:
    """Interquartile mean over tasks of an array (tasks, reps): floor(tasks / 4) are dropped at each end."""
    return np.asarray(scipy.stats.trim_mean(values, 0.25, axis=0))
