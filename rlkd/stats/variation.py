"""How wide an interval is, from what seeds and what test instances add to the variance of a mean."""

from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.special

_POWER = 4 / 3
_FLOOR = 4 / 9
_FEW = 10.0
_SMALLEST_P = 1e-9
_NORMAL_FROM = 1e6


@dataclass(frozen=True)
class Variation:
    """The variance of a mean over seeds and test instances, by where it comes from.

    With seeds s and instances i crossed, a value is d_si = m + a_s + b_i + c_si. The mean over S seeds and N instances
    has the variance var(a) / S + var(b) / N + var(c) / (S N). The spread of the means of S seeds shows the first and
    the last of these with S - 1 degrees of freedom; what instances do under every seed is known from all N.
    """

    by_seed: float
    """Variance that the means of the seeds show: (var(a) + var(c) / N) / S."""
    seed_df: float
    """Degrees of freedom of ``by_seed``; >= 1."""
    by_instance: float = 0.0
    """Variance from instances that are hard or easy under every seed: var(b) / N."""
    instance_df: float = np.inf
    """Degrees of freedom of ``by_instance``: few where few instances make all the difference."""
    sampling: float = 0.0
    """Variance if seeds did nothing but err on other instances: var(b) / N + var(c) / (S N)."""

    @property
    def total(self) -> float:
        """The variance of the mean."""
        return self.by_seed + self.by_instance

    def half_width(self, level: float) -> float:
        """Half the width of the interval of a level in (0, 1)."""
        return float(np.sqrt(self._square(1 - level)))

    def p_value(self, value: float) -> float:
        """The smallest p at which the interval of level 1 - p around ``value`` leaves zero out; two-sided."""
        square = value * value
        if square <= self._square(1.0):
            return 1.0
        if square >= self._square(_SMALLEST_P):
            return 0.0
        found = scipy.optimize.brentq(lambda log: self._square(np.exp(log)) - square, np.log(_SMALLEST_P), 0.0)
        return float(np.exp(found))

    def _square(self, alpha: float) -> float:
        """The squared half width at level 1 - alpha.

        It is the variance times a squared critical value, which runs from Student's for instances to Student's for
        seeds with the share of the variance that seeds show. With the share itself (power 1) the interval covers at
        least as often as it should, whatever the true share, because the distribution function of a squared normal
        is concave; at 3 seeds that is up to 97.7% for 95%. Satterthwaite's degrees of freedom (the share to the
        power -2) cover down to 92% at 3 seeds and 87% at 2. The power 4/3 lies between the two and covers 95 to 97%
        at 3 seeds. Where seeds agree by chance, the interval is two thirds as wide as instances alone would make it,
        and as wide where a handful of instances makes all the difference: few counts agree often.

        Source:
            Banerjee 1961, On confidence interval for two-means problem based on separate estimates of variances and
            tabulated values of t-table, Sankhya A 23 (the power 1); Satterthwaite 1946, doi:10.2307/3002019.
        Deviation:
            The power 4/3 and the floor are our own; the tests work out what they cover.
        """
        seeds, instances = _critical(self.seed_df, alpha) ** 2, _critical(self.instance_df, alpha) ** 2
        share = self.by_seed / self.total if self.total > 0 else 0.0
        mixed = instances + share**_POWER * (seeds - instances)
        floor = min(1.0, max(_FLOOR, _FEW / self.instance_df))
        return float(max(self.total * mixed, floor * instances * self.sampling))


def _critical(df: float, alpha: float) -> float:
    """Student's two-sided critical value."""
    lower = scipy.special.ndtri(alpha / 2) if df > _NORMAL_FROM else scipy.special.stdtrit(df, alpha / 2)
    return -float(lower)
