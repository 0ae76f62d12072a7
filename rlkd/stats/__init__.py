"""Numbers that compare runs: point estimates, intervals, tests, calibration, whole suites.

Axes: R runs or S seeds first, then tasks or N test instances. An interval is about other seeds and other test
instances, and a difference is called one where its 95% interval leaves zero out: said without a difference, that is
wrong in at most 5% of cases, at 3 seeds as at 10.
"""

from rlkd.stats.calibration import expected_calibration_error
from rlkd.stats.contrasts import Contrast, Share, task_iqm, task_mean
from rlkd.stats.estimates import Estimate, holm, iqm, mean_interval, probability_of_improvement, rank_correlation
from rlkd.stats.panel import Panel
from rlkd.stats.scores import instance_values
from rlkd.stats.suites import (
    ACCURACY,
    ORACLE,
    STATISTICS_SEED,
    UNIFORM,
    TaskRuns,
    group_runs,
    label_curves,
    rival_row,
    rival_rows,
    spread,
    suite_rows,
    task_rows,
    verdict,
)
from rlkd.stats.variation import Variation

__all__ = [
    "ACCURACY",
    "ORACLE",
    "STATISTICS_SEED",
    "UNIFORM",
    "Contrast",
    "Estimate",
    "Panel",
    "Share",
    "TaskRuns",
    "Variation",
    "expected_calibration_error",
    "group_runs",
    "holm",
    "instance_values",
    "iqm",
    "label_curves",
    "mean_interval",
    "probability_of_improvement",
    "rank_correlation",
    "rival_row",
    "rival_rows",
    "spread",
    "suite_rows",
    "task_iqm",
    "task_mean",
    "task_rows",
    "verdict",
]
