"""The only wiring: plain arguments to objects to results. One function per command; the command line calls these."""

from rlkd.workflow.askers import run_train_asker
from rlkd.workflow.asking import run_ask
from rlkd.workflow.bench import bench_plan_rows, plan_bench, report_bench, run_bench
from rlkd.workflow.comparing import run_compare
from rlkd.workflow.policies import run_train_policy
from rlkd.workflow.quickstart import run_quickstart
from rlkd.workflow.students import run_distill
from rlkd.workflow.teachers import run_cache, run_headroom, run_train_teachers, teacher_paths

__all__ = [
    "bench_plan_rows",
    "plan_bench",
    "report_bench",
    "run_ask",
    "run_bench",
    "run_cache",
    "run_compare",
    "run_distill",
    "run_headroom",
    "run_quickstart",
    "run_train_asker",
    "run_train_policy",
    "run_train_teachers",
    "teacher_paths",
]
