"""What a deployed policy costs beside equal weights: ``python benchmarks/performance/deployment.py --json FILE``.

On a cache, where the weights of a policy that does not observe the student are asked for once a row: a whole training
step with it over one with equal weights. Live, where it is asked about every batch: its weights alone, of 32 rows.
Arms take turns on the same batches; see :mod:`measure`. Of a ratio near 1, ``cpu`` is the figure to trust on a machine
that does something else too.

An encoder's first three layers are a student too where ``$ENCODER`` says where one lies.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported: no model is asked for by id

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from measure import WARM_UP, Arm, Bench, Seconds, asked_once, now, published, random_cache, take_turns

import rlkd
from rlkd.features import ObservationConfig
from rlkd.types import State
from rlkd.weighting import BaseWeighting, Policy, mixture
from rlkd.weighting.fixed import Uniform

ROWS = 32
"""Of a live batch."""
STUDENTS = ("rlkd/bilstm", "rlkd/tiny", "rlkd/mlp")
VECTORS = "rlkd/mlp"
"""The student that reads vectors."""


def measure_steps(bench: Bench, student: str, policy: Policy) -> list[dict[str, Any]]:
    """A step with the policy over one with equal weights: its weights asked for once a row, and batch by batch."""
    task, cache = bench.task, random_cache(bench.task)
    arms: list[BaseWeighting] = [Uniform(), asked_once(policy, task, cache), policy]
    took = take_turns(bench, student, [Arm(weighting, cache) for weighting in arms], bench.batches)
    equal, once, live = (took[:, :, arm] for arm in range(len(arms)))
    path, _, layers = student.partition(":")
    what = f"({path if path.startswith('rlkd/') else Path(path).name}{f', {layers} layers' if layers else ''})"
    return [
        bench.record(f"step, policy on a cache / equal weights {what}", np.median(once / equal, axis=1), "ratio", 1.02),
        bench.record(f"step, policy live / equal weights {what}", np.median(live / equal, axis=1), "ratio"),
        bench.record(f"step, equal weights {what}", 1000 * np.median(equal, axis=1), "ms"),
    ]


def measure_live(bench: Bench, policy: Policy, teachers: int, classes: int, calls: int) -> list[dict[str, Any]]:
    """Time of the weights of a batch, by the policy and equal, with the check of both."""
    state = State(teacher_logits=4 * torch.randn(ROWS, teachers, classes, generator=torch.Generator().manual_seed(0)))
    took = in_turns(bench.rounds, calls, [lambda: mixture(policy, state), lambda: mixture(Uniform(), state)])
    of = f"weights of {ROWS} rows (K={teachers}, C={classes})"
    return [
        bench.record(f"{of}, policy live", 1000 * took[:, 0], "ms"),
        bench.record(f"{of}, equal", 1000 * took[:, 1], "ms"),
    ]


def in_turns(rounds: int, calls: int, functions: Sequence[Callable[[], object]]) -> Seconds:
    """Median time of a call in each round, shape (rounds, functions, 2)."""
    medians = []
    for _ in range(rounds):
        took = []
        for _ in range(WARM_UP + calls):
            times = [now()]
            for function in functions:
                function()
                times.append(now())
            took.append(np.diff(np.stack(times), axis=0))
        medians.append(np.median(np.stack(took[WARM_UP:]), axis=0))
    return np.stack(medians)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, write."""
    encoder = os.environ.get("ENCODER")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the records here")
    parser.add_argument("--task", default="docstrings", help="a task of texts, as for rlkd.load_task")
    parser.add_argument("--vectors", default="digits", help=f"the task of {VECTORS}")
    students = [*STUDENTS, *([f"{encoder}:3"] if encoder else [])]
    parser.add_argument("--students", nargs="+", default=students, help="name, or path:layers")
    parser.add_argument("--teachers", nargs="+", type=int, default=[2, 4, 8, 16], help="K of the live path")
    parser.add_argument("--classes", nargs="+", type=int, default=[2, 20, 150, 1000], help="C of the live path")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=20, help="a round, for every arm of a student")
    parser.add_argument("--calls", type=int, default=30, help="a round, of the live path")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    policy = Policy.create(ObservationConfig(), training={}).eval()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(rlkd.load_task(arguments.task), "cpu", arguments.rounds, arguments.batches, Path(folder))
        vectors = replace(bench, task=rlkd.load_task(arguments.vectors))
        records = [
            record
            for student in arguments.students
            for record in measure_steps(vectors if student == VECTORS else bench, student, policy)
        ]
        records += [
            record
            for teachers in arguments.teachers
            for classes in arguments.classes
            for record in measure_live(bench, policy, teachers, classes, arguments.calls)
        ]
    return published(records, arguments.json)


if __name__ == "__main__":
    main()
