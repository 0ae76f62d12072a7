"""What each way of drawing sets of teachers adds on tasks left out, from the teachers' answers alone.

``python benchmarks/drawn_sets.py --folder runs/bench/travel`` fits, for every task of the suite ``travel`` that has
specialists, the router that is shipped on the tasks of all other families, with the real sets of teachers, with drawn
ones, and with those that differ in one way. On the task's test rows it is asked how probable the teachers, as it mixes
them, make the label. No student is trained: that it pays for students is for the suite to show.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlkd.benchmark.policies import FittedRouter
from rlkd.benchmark.stages import open_context
from rlkd.benchmark.suite_files import load_suite
from rlkd.benchmark.suites import SuiteTask
from rlkd.devices import one_thread
from rlkd.headroom import reachable
from rlkd.records import environment, write_json_atomic
from rlkd.weighting.base import Evidence
from rlkd.weighting.router import train_router
from rlkd.weighting.router_targets import SETS

HERE = Path(__file__).parent
SUITE = HERE / "suites" / "travel.yaml"
RECORD = HERE / "results" / "drawn-sets.json"
POLICY = "policy_shipped"
ROWS = 500
"""Labelled rows of a task at most."""


def main() -> None:
    """Fit, ask, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/travel"), help="Of the suite's teachers.")
    parser.add_argument("--json", type=Path, default=RECORD, help="File of the record.")
    arguments = parser.parse_args()
    suite, made_by = load_suite(SUITE), environment()
    tasks = {task.name: task for task in suite.tasks if task.weightings and task.labels is None}
    records = []
    with one_thread():
        contexts = {
            one.teachers_key: open_context(one, arguments.folder / "teachers" / one.teachers_key)
            for one in tasks.values()
        }
        for task in tasks.values():
            if POLICY in task.needed_policies() and "oracle" in task.weightings and len(task.students) == 1:
                for sets in SETS:
                    records.append(asked(task, tasks, contexts, sets) | {"commit": made_by["commit"]})
                    print(records[-1], flush=True)
    write_json_atomic(arguments.json, records)


def asked(task: SuiteTask, tasks: Mapping[str, SuiteTask], contexts: Mapping[str, Any], sets: str) -> dict[str, Any]:
    """What a router that was fitted elsewhere makes of a task's teachers."""
    plan = task.policies[POLICY]
    others: Sequence[Any] = [contexts[tasks[name].teachers_key] for name in plan.others]
    started = time.process_time()
    fitted = replace(FittedRouter().router_settings(plan), sets=sets, rows=ROWS)
    router = train_router([Evidence.of(other.task, other.cache) for other in others], fitted)
    seconds = time.process_time() - started
    context = contexts[task.teachers_key]
    figures = reachable(router, context.task, context.cache, context.task.labelled_ids("test"))
    return {
        "task": task.name,
        "sets": sets,
        "probability": round(figures["own"]["probability"], 5),
        "of_equal_weights": round(figures["equal"]["probability"], 5),
        "geometric": round(figures["own"]["geometric"], 5),
        "cpu_seconds": round(seconds, 2),
    }


if __name__ == "__main__":
    main()
