"""Numbers that compare runs: point estimates, bootstrap intervals, paired tests, calibration, whole suites.

Axes: R runs or S seeds first, then tasks or N test instances. Every random draw comes from the generator
that is passed in. Intervals are percentile intervals.
"""

from rlkd.stats.answers import gap_share, mean_accuracy, paired_difference
from rlkd.stats.calibration import expected_calibration_error
from rlkd.stats.estimates import (
    Estimate,
    bootstrap_interval,
    iqm,
    paired_permutation_test,
    probability_of_improvement,
    stratified_bootstrap,
)

__all__ = [
    "Estimate",
    "bootstrap_interval",
    "expected_calibration_error",
    "gap_share",
    "iqm",
    "mean_accuracy",
    "paired_difference",
    "paired_permutation_test",
    "probability_of_improvement",
    "stratified_bootstrap",
]
