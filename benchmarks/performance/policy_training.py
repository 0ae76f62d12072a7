"""What training a policy costs, in distillations: ``python benchmarks/performance/policy_training.py --json FILE``.

All of :func:`rlkd.agents.train_policy` with its defaults (router, episodes, trial students) over one training of the
same student from the same cache with that policy, in one process and in two. Distillation and trainings take turns;
every round gives one ratio, and reported are the median of the rounds and their range. ``value`` is by the clock,
``cpu`` in processor time, of other processes too. Texts are weighted by TF-IDF specialists; ``rlkd/mlp`` is given
planted vectors.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported: no model is asked for by id

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from measure import BATCH, Bench, Seconds, published

import rlkd
from rlkd.agents import train_policy
from rlkd.cost import cpu_seconds
from rlkd.data.planted import planted, planted_logits
from rlkd.data.task import Task
from rlkd.logit_cache import LogitCache, build_cache
from rlkd.models import load_teachers, train_teachers
from rlkd.settings import PolicyTraining, StudentSettings
from rlkd.trainer import make_trainer

STUDENTS = ("rlkd/bilstm", "rlkd/tiny", "rlkd/mlp")
PLANTED_ROWS = 6000
MAX_LENGTH = 64


def now() -> Seconds:
    """Wall time, and processor time of this process and those that it has ended."""
    return np.array([time.perf_counter(), cpu_seconds()])


def teachers(bench: Bench, student: str) -> tuple[Task, LogitCache]:
    """A task that a student can read, and three teachers."""
    if student == "rlkd/mlp":
        task = planted(num_rows=PLANTED_ROWS)
        return task, LogitCache(list(planted_logits(task).transpose(1, 0, 2)), ["a", "b", "c"])
    paths = train_teachers(bench.task, bench.folder / "teachers", kinds=["tfidf"] * 3, specialize="class")
    asked = load_teachers([str(path) for path in paths], bench.task)
    return bench.task, build_cache(asked, bench.task, bench.folder / "cache")


def measure_training(bench: Bench, student: str, jobs: Sequence[int], timesteps: int) -> list[dict[str, Any]]:
    """Policy trainings over one distillation, for every number of processes; the distillation itself in seconds."""
    task, cache = teachers(bench, student)
    name, _, layers = student.partition(":")
    kept: dict[str, Any] = {"num_layers": int(layers)} if layers else {}
    settings = StudentSettings(
        student=name, max_steps=bench.batches, batch_size=BATCH, max_length=MAX_LENGTH, device=bench.device, **kept
    )
    took = np.empty((bench.rounds, 1 + len(jobs), 2))
    for seed in range(bench.rounds):
        for index, processes in enumerate(jobs, start=1):
            start = now()
            policy = train_policy(
                task,
                cache,
                student=name,
                training=PolicyTraining(total_timesteps=timesteps, seed=seed),
                episode={"max_length": MAX_LENGTH, **kept},
                device=bench.device,
                jobs=processes,
            )
            took[seed, index] = now() - start
        start = now()
        make_trainer(task, cache, policy, settings, bench.folder / "student", seed=seed).train()
        took[seed, 0] = now() - start
    shown = student if name.startswith("rlkd/") else Path(name).name + (f", {layers} layers" if layers else "")
    return [
        *(
            bench.record(
                f"policy training / one distillation ({shown}), jobs {processes}", took[:, index] / took[:, 0], "ratio"
            )
            for index, processes in enumerate(jobs, start=1)
        ),
        bench.record(f"one distillation of {bench.batches} steps of {BATCH} ({shown})", took[:, 0], "s"),
    ]


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the records here")
    parser.add_argument(
        "--students", nargs="+", default=STUDENTS, help="a name, or path:layers of a pretrained encoder"
    )
    parser.add_argument("--task", default="docstrings", help="a text task, as for rlkd.load_task")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--jobs", nargs="+", type=int, default=[1, 2], help="processes of a policy's training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400, help="of the distillation")
    parser.add_argument("--total-timesteps", type=int, default=PolicyTraining.total_timesteps)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    records = []
    for student in arguments.students:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(
                rlkd.load_task(arguments.task), arguments.device, arguments.rounds, arguments.steps, Path(folder)
            )
            records += measure_training(bench, student, arguments.jobs, arguments.total_timesteps)
    return published(records, arguments.json)


if __name__ == "__main__":
    main()
