"""Numbers that compare runs: point estimates, bootstrap intervals, paired tests, calibration, whole suites.

Axes: R runs or S seeds first, then tasks or N test instances. Every random draw comes from the generator
that is passed in. Intervals are percentile intervals.
"""

from rlkd.stats.calibration import expected_calibration_error
from rlkd.stats.estimates import (
    Estimate,
    bootstrap_interval,
    holm,
    iqm,
    paired_permutation_test,
    probability_of_improvement,
    rank_correlation,
    stratified_bootstrap,
)
from rlkd.stats.panel import Draws, Panel, over_tasks, task_iqm, task_mean
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

__all__ = [
    "ACCURACY",
    "ORACLE",
    "STATISTICS_SEED",
    "UNIFORM",
    "Draws",
    "Estimate",
    "Panel",
    "TaskRuns",
    "bootstrap_interval",
    "expected_calibration_error",
    "group_runs",
    "holm",
    "iqm",
    "label_curves",
    "over_tasks",
    "paired_permutation_test",
    "probability_of_improvement",
    "rank_correlation",
    "rival_row",
    "rival_rows",
    "spread",
    "stratified_bootstrap",
    "suite_rows",
    "task_iqm",
    "task_mean",
    "task_rows",
    "verdict",
]
