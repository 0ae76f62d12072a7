"""From how much change on ``auto`` is to be trusted: what policies would change of what is taught, set by set.

``python benchmarks/change.py --folder runs/bench`` looks at the teachers of the suites ``travel``, ``planted`` and
``images``, which were run into folders of their names there, and at the tasks of several labels of ``kinds.py``, whose
teachers it makes. Of ``travel`` it is the policy that was learned on all other families, elsewhere the one that is
shipped. No label is read and no student trained: what students gained stands in the suites' own records.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kinds import benches

from rlkd.benchmark.stages import open_context
from rlkd.benchmark.suite_files import load_suite
from rlkd.benchmark.suites import SuiteTask, family_of
from rlkd.devices import one_thread
from rlkd.features import usual_sureness
from rlkd.kinds import Regression
from rlkd.records import environment, read_jsonl, write_json_atomic
from rlkd.types import State
from rlkd.weighting import load_policy
from rlkd.weighting.shipped import LEAST_CHANGE, change, evenly, mean_change

HERE = Path(__file__).parent
RECORD = HERE / "results" / "change.json"
SUITES = {"travel": "policy_shipped", "planted": "policy:auto", "images": "auto"}
"""And the arm whose students gained what such a policy brings, however little it changes."""
SHIPPED = "auto"


def main() -> None:
    """Look, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="Of the suites' folders.")
    parser.add_argument("--json", type=Path, default=RECORD, help="File of the record.")
    arguments = parser.parse_args()
    made_by = {"commit": environment()["commit"], "least": LEAST_CHANGE}
    with one_thread():
        rows = [row for suite in SUITES for row in changes(suite, arguments.folder / suite)]
        rows += several_labels()
    write_json_atomic(arguments.json, [{**row, "change": round(row["change"], 4), **made_by} for row in rows])


def changes(suite: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of the tasks of a suite that have all their labels, each set of teachers once."""
    tasks = load_suite(HERE / "suites" / f"{suite}.yaml").tasks
    elsewhere = policies(folder, tasks)
    seen = set()
    for task in tasks:
        if task.labels is not None or task.teachers_key in seen:
            continue
        seen.add(task.teachers_key)
        context = open_context(task, folder / "teachers" / task.teachers_key)
        evidence = context.task.training_view()
        policy = load_policy(elsewhere.get(family_of(task), SHIPPED))
        found = mean_change(policy, evidence, context.cache.head(len(evidence.table)))
        yield {"suite": suite, "task": task.name, "arm": SUITES[suite], "change": found}
        print(suite, task.name, f"{found:.3f}", flush=True)


def policies(folder: Path, tasks: Sequence[SuiteTask]) -> dict[str, Path]:
    """Of every family of tasks the policy that was learned on all others, where there is one."""
    families = {task.name: family_of(task) for task in tasks}
    lines = [one for one in read_jsonl(folder / "results.jsonl") if one.get("policy") == "policy_shipped"]
    return {
        families[one["task"]]: folder / "policies" / one["key"].removeprefix("policy-") / one["path"]
        for one in lines
        if one["status"] == "ok"
    }


def several_labels() -> Iterator[dict[str, Any]]:
    """Rows of tasks whose instances have several labels."""
    policy = load_policy(SHIPPED)
    for name, make in benches().items():
        bench = make()
        if isinstance(bench.kind, Regression) or bench.kind.covers is not None:
            continue
        said = bench.kind.choices(bench.train.said.float())
        state = State(teacher_logits=said, sureness=usual_sureness(said).expand(len(said), -1))
        found = float(change(policy, rows_of(state)).double().mean())
        yield {"suite": "kinds", "task": name, "arm": SHIPPED, "change": found}


def rows_of(state: State) -> State:
    """Some rows, evenly spaced."""
    places = evenly(np.arange(len(state.teacher_logits)))
    assert state.sureness is not None
    return State(teacher_logits=state.teacher_logits[places], sureness=state.sureness[places])


if __name__ == "__main__":
    main()
