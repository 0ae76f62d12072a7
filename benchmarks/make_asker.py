"""Make the asking policy that is shipped with the package: ``python benchmarks/make_asker.py``, always the same bytes.

It is learned with rewards in the environment ``rlkd/TeacherAsking-v0``, on the tasks of ``asking.py``, whose teachers
are trained first if they are not there, and on planted ones: all of their answers are known, so that asking is free.
What it is worth on a task that it never saw is measured in that suite, where the same is learned without the task's
family: ``--without FAMILY``, of every family. The same machine and versions give the same bytes;
``benchmarks/asker.json`` has their hashes, with the commit that made them.
"""

import argparse
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asker_card import RECORD, write_card
from asking import FAMILIES, SUITE, context_of, family_of

from rlkd.agents.asking import train_asker
from rlkd.asking.observation import NUM_SHARED, NUM_TEACHER
from rlkd.asking.policy import SHIPPED, AskingPolicy
from rlkd.benchmark.jobs import Context
from rlkd.benchmark.suite_files import load_suite
from rlkd.records import environment, file_hash, write_json_atomic
from rlkd.weighting.policy_files import CONFIG, WEIGHTS


def main() -> None:
    """Make a file; of the one that is shipped its card and its record too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/asking"), help="Of the suite's teachers.")
    parser.add_argument("--without", choices=sorted(FAMILIES), help="A family of tasks that it does not see.")
    parser.add_argument("--output", type=Path, help="Folder of the policy; with --without FOLDER/askers/FAMILY.")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    made_by, started = environment(), time.perf_counter()
    suite = {task.name: task for task in load_suite(SUITE).tasks}
    names = [name for name in suite if family_of(name) not in (None, arguments.without)]
    contexts = {name: context_of(suite[name], arguments.folder / "teachers") for name in names}
    elsewhere = SHIPPED if arguments.without is None else arguments.folder / "askers" / arguments.without
    output = arguments.output or elsewhere
    policy = learned(contexts)
    policy.save_pretrained(output)
    print(output, policy.training_record["trials"], flush=True)
    if arguments.without is None:
        seconds = round(time.perf_counter() - started, 1)
        write_json_atomic(RECORD, {**figures(policy, contexts, output), "environment": made_by, "seconds": seconds})
        write_card(output)


def learned(contexts: dict[str, Context]) -> AskingPolicy:
    """Learn on some tasks, with the settings that are usual; the commit is the record's, so that bytes can be equal."""
    tasks, caches = [one.task for one in contexts.values()], [one.cache for one in contexts.values()]
    return train_asker(tasks, caches).with_record(commit=None)


def figures(policy: AskingPolicy, contexts: dict[str, Context], folder: Path) -> dict[str, Any]:
    """What is recorded of a file: hashes, a golden value, what it saw."""
    files = (CONFIG, WEIGHTS)
    return {
        "golden": golden(policy),
        "files": {name: file_hash(folder / name) for name in files},
        "bytes": sum((folder / name).stat().st_size for name in files),
        "numbers": sum(value.numel() for value in policy.state_dict().values()),
        "trials": policy.training_record["trials"],
        "seen": [
            {
                "task": name,
                "family": family_of(name),
                "classes": one.task.num_classes,
                "teachers": list(one.cache.teacher_names),
                "rows": len(one.task.labelled_ids("train")),
            }
            for name, one in contexts.items()
        ],
    }


def golden(policy: AskingPolicy) -> list[float]:
    """Logits of the actions at a made-up observation of two teachers, shape (3,)."""
    teachers = torch.from_numpy(np.linspace(0, 1, 2 * NUM_TEACHER, dtype=np.float32).reshape(1, 2, -1))
    shared = torch.from_numpy(np.linspace(1, 0, NUM_SHARED, dtype=np.float32)[None])
    teachers[..., 0] = 1
    with torch.no_grad():
        return [round(float(value), 5) for value in policy(teachers, shared)[0]]


if __name__ == "__main__":
    main()
