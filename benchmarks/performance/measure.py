"""Measure what rlkd costs, as ratios inside one run: ``python benchmarks/performance/measure.py --json FILE``.

Arms that are compared take turns, step by step on the same batches or call by call, so that a busy machine slows all
of them. Every round gives one value, the median of its repeats; reported are the median of the rounds and their
range. ``cpu`` is the same figure in processor time, which other jobs disturb less. The first repeats of every round
are warm-up and left out.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported: no model is asked for by id

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback

import rlkd
from rlkd.agents.prepared import ENV_ID
from rlkd.agents.run import PolicyRun
from rlkd.data.planted import planted, planted_logits
from rlkd.data.task import Task
from rlkd.logit_cache import LiveTeachers, LogitCache, build_cache, load_cache, read_state, stacks
from rlkd.models import ArrayTeacher, HfTeacher, load_student
from rlkd.models.networks import quiet_transformers
from rlkd.records import commit, source, write_json_atomic
from rlkd.report import format_table
from rlkd.settings import PolicyTraining, StudentSettings
from rlkd.trainer import TaskTrainer, make_trainer
from rlkd.trainer.task_trainer import TaskTeachers
from rlkd.types import LogitSource
from rlkd.weighting import BaseWeighting, Policy
from rlkd.weighting.by_row import RowWeights, once_a_row
from rlkd.weighting.fixed import Uniform

STUDENTS = ("rlkd/tiny", "rlkd/bilstm", "two-layer")
TEACHERS = ("a", "b", "c")
BATCH = 64
WARM_UP = 3
"""Batches at the start of every training run that are not counted."""
CACHE_ROWS = 20_000
CACHE_CALLS = 400
"""Reads a round."""
ROLLOUT = 30
"""Student steps a round of policy training."""

Seconds = NDArray[np.float64]
"""Wall and processor time on the last axis, (..., 2)."""


def now() -> Seconds:
    """Wall and processor time."""
    return np.array([time.perf_counter(), time.process_time()])


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    task: Task
    device: str
    rounds: int
    batches: int
    """Batches a round; every arm trains on each."""
    folder: Path
    """For temporary files."""

    def record(
        self, name: str, values: Seconds | Sequence[Seconds | float], unit: str, limit: float | None = None
    ) -> dict[str, Any]:
        """One line of the table: ``values`` is (rounds, 2), or (rounds,) where processor time has no meaning."""
        array = np.asarray(values, dtype=np.float64)
        wall = array[:, 0] if array.ndim == 2 else array
        value = round(float(np.median(wall)), 5)
        return {
            "name": name,
            "value": value,
            "low": round(float(wall.min()), 5),
            "high": round(float(wall.max()), 5),
            "cpu": round(float(np.median(array[:, 1])), 5) if array.ndim == 2 else None,
            "unit": unit,
            "limit": limit,
            "ok": None if limit is None else value <= limit,
            "rounds": len(array),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if self.device == "cuda" else self.device,
            "torch": torch.__version__,
        }


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    weighting: BaseWeighting
    source: LogitSource


class Turns(TrainerCallback):
    """Gives each batch to every arm in turn, starting with another arm each time, and times whole steps.

    A step lasts from the end of the one before to its own end: collating, forward, loss, backward, optimiser.
    """

    def __init__(self, arms: Sequence[Arm]) -> None:
        """Prepare."""
        self.arms, self.ends = arms, [now()]

    def attach(self, trainer: TaskTrainer) -> None:
        """Watch the trainer, and let every batch of it come once for each arm."""
        trainer.add_callback(self)
        self.trainer = trainer
        self._teachers = [TaskTeachers(trainer.task, arm.source, trainer.args.device) for arm in self.arms]
        sample = trainer._get_train_sampler

        def repeated(dataset: Any = None) -> Any:
            batches = np.array(list(sample(dataset)))
            batches = batches[: len(batches) // BATCH * BATCH].reshape(-1, 1, BATCH)
            return batches.repeat(len(self.arms), axis=1).ravel().tolist()

        trainer._get_train_sampler = repeated  # type: ignore[assignment, method-assign]
        self._switch(0)

    def arm_at(self, step: int) -> int:
        """Whose turn it is."""
        batch, turn = divmod(step, len(self.arms))
        return (batch + turn) % len(self.arms)

    def _switch(self, step: int) -> None:
        arm = self.arm_at(step)
        self.trainer.weighting, self.trainer.teachers = self.arms[arm].weighting, self._teachers[arm]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock and let the next arm have the next step."""
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(now())
        self._switch(state.global_step)

    def seconds(self) -> Seconds:
        """Time of every step, shape (batches, arms, 2)."""
        took = np.diff(np.stack(self.ends), axis=0).reshape(-1, len(self.arms), 2)
        arm = np.array([self.arm_at(step) for step in range(len(self.ends) - 1)]).reshape(-1, len(self.arms))
        return np.take_along_axis(took, arm.argsort(1)[..., None], axis=1)


def asked_once(policy: BaseWeighting, task: Task, cache: LogitCache) -> RowWeights:
    """A policy that was asked about every train row of a cache, as a trainer asks it."""
    asked = once_a_row(policy, cache, task.splits["train"], partial(read_state, task, cache))
    if not isinstance(asked, RowWeights):
        sys.exit(f"expected weights by row, which are read in a step, got {asked.called}, which is asked in each")
    return asked


def random_cache(task: Task) -> LogitCache:
    """Three teachers that know nothing; what they say does not change how long it takes to read."""
    rng = np.random.default_rng(0)
    shape = (len(task.table), task.num_classes)
    return LogitCache([4 * rng.standard_normal(shape, dtype=np.float32) for _ in TEACHERS], TEACHERS)


def two_layer(task: Task, folder: Path) -> str:
    """Save a transformer of two layers of width 128, and give its path."""
    model, tokenizer = load_student("rlkd/tiny", task)
    assert tokenizer is not None
    model.config.num_hidden_layers = 2
    with quiet_transformers():
        type(model)(model.config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def take_turns(bench: Bench, student: str, arms: Sequence[Arm], batches: int, *, bf16: bool = False) -> Seconds:
    """Train so that every arm has its turn on each batch; time of a step, shape (rounds, batches, arms, 2).

    The student is a name, or ``PATH:LAYERS`` for the first layers of an encoder.
    """
    name, _, layers = student.partition(":")
    settings = StudentSettings(
        student=name,
        num_layers=int(layers) if layers else None,
        batch_size=BATCH,
        max_steps=(WARM_UP + batches) * len(arms),
        device=bench.device,
        bf16=bf16,
    )
    shared: dict[str, Any] = {}
    rounds = []
    for seed in range(bench.rounds):
        turns = Turns(arms)
        trainer = make_trainer(
            bench.task, arms[0].source, arms[0].weighting, settings, bench.folder, seed=seed, shared=shared
        )
        turns.attach(trainer)
        trainer.train()
        rounds.append(turns.seconds()[WARM_UP:])
    return np.stack(rounds)


def measure_steps(bench: Bench, student: str) -> list[dict[str, Any]]:
    """A training step from the cache over one with live teachers: three networks of the student's own kind and size."""
    path = two_layer(bench.task, bench.folder / student) if student == "two-layer" else student
    cache = random_cache(bench.task)
    networks = [load_student(path, bench.task, seed=seed) for seed in range(len(TEACHERS))]
    live = LiveTeachers(
        [HfTeacher(name, *network, device=bench.device) for name, network in zip(TEACHERS, networks, strict=True)],
        bench.task,
    )
    live.rows(torch.arange(BATCH))  # tokenises the task
    asked = take_turns(bench, path, [Arm(Uniform(), cache), Arm(Uniform(), live)], max(bench.batches // 4, 1))
    cached = np.median(asked[:, :, 0] / asked[:, :, 1], axis=1)
    return [
        bench.record(f"step, cache / three live teachers ({student})", cached, "ratio"),
        bench.record(f"step, cache ({student})", 1000 * np.median(asked[:, :, 0], axis=1), "ms"),
    ]


def measure_cache(bench: Bench, classes: int) -> list[dict[str, Any]]:
    """64 random rows of a cache of 20,000 instances and three teachers, held in memory and memory-mapped.

    Beside it what one writes by hand: the same rows of the same data in a memmap of numpy, as a tensor.
    """
    task = planted(num_rows=CACHE_ROWS, num_classes=classes)
    logits = planted_logits(task, len(TEACHERS))
    teachers = [ArrayTeacher(name, logits[:, k]) for k, name in enumerate(TEACHERS)]
    folder, size = bench.folder / f"cache-{classes}", f"(N={CACHE_ROWS}, K={len(TEACHERS)}, C={classes})"
    reads = {"in memory": build_cache(teachers, task, folder).rows}
    limit, stacks.RAM_LIMIT = stacks.RAM_LIMIT, 0
    try:
        reads["memory-mapped"] = load_cache(folder, task).rows
    finally:
        stacks.RAM_LIMIT = limit
    np.save(bench.folder / "plain.npy", logits.astype(np.float32))
    plain = np.load(bench.folder / "plain.npy", mmap_mode="r")
    reads["numpy's memmap"] = lambda ids: torch.from_numpy(plain[ids.numpy()])
    columns = dict(zip(reads, read_in_turns(bench, list(reads.values())), strict=True))
    by_hand = columns["numpy's memmap"]
    return [
        bench.record(f"{BATCH} random rows, {kind} / numpy's memmap {size}", columns[kind] / by_hand, "ratio", 1.0)
        for kind in ("in memory", "memory-mapped")
    ] + [bench.record(f"{BATCH} random rows, {kind} {size}", column, "ms") for kind, column in columns.items()]


def read_in_turns(bench: Bench, reads: Sequence[Callable[[torch.Tensor], torch.Tensor]]) -> Seconds:
    """Milliseconds that each takes to read the same random rows, shape (ways to read, rounds, 2).

    Each goes first at times, which finds the ids less near at hand.
    """
    generator = torch.Generator().manual_seed(0)
    calls, rounds = CACHE_CALLS + CACHE_CALLS // 10, []
    for _ in range(bench.rounds):
        took = np.empty((calls, len(reads), 2))
        for call, ids in enumerate(torch.randint(CACHE_ROWS, (calls, BATCH), generator=generator)):
            for turn in range(len(reads)):
                way = (call + turn) % len(reads)
                start = now()
                reads[way](ids)
                took[call, way] = now() - start
        rounds.append(1000 * np.median(took[CACHE_CALLS // 10 :], axis=0))
    return np.stack(rounds, axis=1)


class Stopwatch:
    """Adds up the time spent in a function."""

    def __init__(self) -> None:
        """Start at zero."""
        self.seconds = np.zeros(2)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += now() - start

        return timed


def measure_agent(bench: Bench) -> list[dict[str, Any]]:
    """Stable-Baselines3's part in training a policy: its forward passes, buffer and updates.

    That is the time of ``learn`` less the environment's and less that of looking at the policy; its share is that of
    the environment's steps and this together.
    """
    env: Any = gymnasium.make_vec(
        ENV_ID,
        BATCH,
        vectorization_mode="vector_entry_point",
        task=bench.task,
        cache=random_cache(bench.task),
        student="rlkd/tiny",
        device=bench.device,
    ).unwrapped
    policy = Policy.create(env.observation_config, training={"task": bench.task.name})
    env_step, env_reset, student_step = env.step, env.reset, env.episode.step
    shares, ratios = [], []
    for number in range(bench.rounds + 1):
        whole, step, student, others = (Stopwatch() for _ in range(4))
        env.step, env.reset, env.episode.step = (
            step.around(env_step),
            others.around(env_reset),
            student.around(student_step),
        )
        training = PolicyTraining(total_timesteps=ROLLOUT * BATCH, n_steps=ROLLOUT, seed=number)
        run: Any = PolicyRun(env, policy, training, keep_best=False)  # no trial students, which take no part in this
        run.note_policy = others.around(run.note_policy)
        whole.around(run.learn)(progress=False, callback=None)
        agent = whole.seconds - step.seconds - others.seconds
        shares.append(agent / (agent + step.seconds))
        ratios.append(agent / student.seconds)
    # the first round is warm-up
    return [
        bench.record("Stable-Baselines3's share of an environment step (rlkd/tiny)", shares[1:], "share"),
        bench.record("Stable-Baselines3 / the student's own step (rlkd/tiny)", ratios[1:], "ratio"),
    ]


def measure_memory(bench: Bench) -> list[dict[str, Any]]:
    """The most memory that this whole run held at once."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    peaks = {"peak resident memory of this run": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if bench.device == "cuda":
        peaks["peak memory on the device"] = torch.cuda.max_memory_allocated() / 2**20
    return [bench.record(name, [value], "MiB") for name, value in peaks.items()]


def published(records: Sequence[dict[str, Any]], path: Path | None) -> list[dict[str, Any]]:
    """Print records and write them where a path is given, each with the commit that was measured and its source."""
    print(format_table(records, list(records[0])))
    traced = [{**record, "commit": commit(), "source": source()} for record in records]
    if path is not None:
        write_json_atomic(path, traced)
    return traced


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the records here")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of students and live teachers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=20, help="a round, for every arm")
    parser.add_argument("--task", default="docstrings", help="a text task, as for rlkd.load_task")
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=STUDENTS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            rlkd.load_task(arguments.task), arguments.device, arguments.rounds, arguments.batches, Path(folder)
        )
        agent_records = measure_agent(bench)
        records = [record for student in arguments.students for record in measure_steps(bench, student)]
        records += [record for classes in (13, 150) for record in measure_cache(bench, classes)]
        records += agent_records + measure_memory(bench)
    return published(records, arguments.json)


if __name__ == "__main__":
    main()
