"""Make the policy that is shipped with the package: ``python benchmarks/make_policy.py``, the same bytes every time.

It is learned on all tasks of the suite ``travel``, whose teachers are trained first if they are not there. What it is
worth on a task that it never saw is measured in that suite, where the same is learned without the task's family. The
same machine and versions give the same bytes; ``benchmarks/policy.json`` has them, with the commit that made them.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from model_card import RECORD, write_card
from safetensors.torch import load_file

from rlkd.benchmark.policies import FittedRouter
from rlkd.benchmark.stages import make_teachers, open_context
from rlkd.benchmark.suite_files import load_suite
from rlkd.benchmark.suites import Suite, SuiteTask
from rlkd.devices import one_thread
from rlkd.features import USUAL_LEAD
from rlkd.records import environment, file_hash, write_json_atomic
from rlkd.types import State
from rlkd.weighting.base import Evidence
from rlkd.weighting.policy_files import CONFIG, SHIPPED, WEIGHTS
from rlkd.weighting.router import train_router

HERE = Path(__file__).parent
SUITE = HERE / "suites" / "travel.yaml"
POLICY = "policy_shipped"
"""The policy of the suite that is shipped."""


def main() -> None:
    """Make the file, its card and its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/travel"), help="Of the suite's teachers.")
    parser.add_argument("--output", type=Path, default=SHIPPED, help="Folder of the policy.")
    parser.add_argument("--record", type=Path, default=RECORD, help="File of its record.")
    arguments = parser.parse_args()
    suite, made_by = load_suite(SUITE), environment()
    started = time.perf_counter()
    with one_thread():
        figures = ship(suite, arguments.folder / "teachers", arguments.output)
    seconds = round(time.perf_counter() - started, 1)
    write_json_atomic(arguments.record, {**figures, "environment": made_by, "seconds": seconds})
    write_card(arguments.output, arguments.record)


def ship(suite: Suite, teachers: Path, output: Path) -> dict[str, Any]:
    """Learn the policy on all tasks of a suite and save it; what is recorded of it."""
    tasks = {task.teachers_key: task for task in reversed(suite.tasks) if task.labels is None}
    plan = suite.tasks[0].policies[POLICY]
    evidence, seen = [], []
    for key, task in sorted(tasks.items(), key=lambda item: item[1].name):
        make_teachers(task, teachers / key)
        context = open_context(task, teachers / key)
        evidence.append(Evidence.of(context.task, context.cache))
        seen.append(described(task, context.task, context.cache.teacher_names))
    policy = train_router(evidence, FittedRouter().router_settings(plan))
    policy.save_pretrained(output)
    logits = torch.tensor([[[6.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0]], [[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]])
    return {
        "golden": policy.weights(State(teacher_logits=logits, sureness=torch.full((2,), USUAL_LEAD))).tolist(),
        "files": {name: file_hash(output / name) for name in (CONFIG, WEIGHTS)},
        "bytes": sum((output / name).stat().st_size for name in (CONFIG, WEIGHTS)),
        "numbers": sum(value.numel() for value in load_file(output / WEIGHTS).values()),
        "plan": {"kind": plan.kind, **plan.settings},
        "seen": seen,
    }


def described(task: SuiteTask, data: Any, teachers: Any) -> dict[str, Any]:
    """What a policy has seen of a task."""
    sets = task.teachers.get("sets", {"": task.teachers})
    kinds = [Path(str(kind)).name for own in sets.values() for kind in own.get("kinds", [])] or ["planted"]
    return {
        "task": task.name,
        "classes": data.num_classes,
        "teachers": len(teachers),
        "kinds": sorted(set(kinds)),
        "know": task.teachers.get("specialize") or ("slices" if task.planted else "everything"),
        "rows": len(data.labelled_ids("train")) + len(data.labelled_ids("probe")),
    }


if __name__ == "__main__":
    main()
