"""What is left of a strategy when its teachers change while it asks: ``python benchmarks/moving.py``.

Teachers are the specialists by class of the suite ``travel``, whose answers are recorded. The first ``CHANGE`` of
``CALLS`` calls are answered by them; from then on two of them are swapped, or one of them is degraded (of half of the
rows it says what it would have said of another one), poisoned (it names one class and is sure of it: always, or where a
frequent word occurs), or has met its quota (it is asked, and gives no answer, which costs nothing). What was answered
before stays. Beside it stand a run in which nothing changes, and one that knows the changed teachers alone.

- One teacher a row, or as many as a strategy asks, without a label: bandits, also such as learn from the last 500 calls
  alone, ``explore``, ``verify``, ``reverify`` (which notices a change), a policy that saw no task of the family
  (``make_asker.py --without FAMILY`` has left it in ``FOLDER/askers``), and one that is told who was trained on what,
  and of the change (``oracle``).
- Everybody about each row (``all``, ...): the mean, votes, a trimmed mean, hedge, which alone has 100 labels, and the
  weights of the policy that is shipped.

Runs are kept in ``--folder`` by task and seed, and what is there is not run again. ``moving_figures.py`` says when an
arm is back on track.
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from asking import HERE, SUITE, Bench, opened
from moving_figures import Series
from moving_report import CALLS, CHANGE, UNCHANGED, key, write_records
from moving_rules import RULES, by_hedge, by_policy, by_rule
from moving_teachers import KINDS, AskWhoKnows, ChangingTeachers, World, recorded, with_a_frequent_word
from numpy.typing import NDArray

from rlkd.asking import Pool, Strategy
from rlkd.asking.strategies import build_strategy
from rlkd.benchmark.suite_files import load_suite
from rlkd.data.task import joined_inputs
from rlkd.devices import one_thread
from rlkd.records import environment, write_json_atomic

RECORD = HERE / "results" / "moving.json"
TASKS = ("banking77", "trec6-classes", "ag_news", "newsgroups20", "topics")
LABELS = 100
"""That hedge learns from."""
POLICY, ORACLE, HEDGE = "policy", "oracle", "all, hedge"
ARMS = (
    *("random", "bandit", "bandit:500", "thompson", "thompson:500", "explore+threshold:0.1", "verify", "reverify"),
    *(POLICY, ORACLE, *(f"all, {name}" for name in RULES), HEDGE, "all"),
)


@dataclass(frozen=True)
class Taught:
    """What a run comes to.

    Attributes:
        ids: Rows in the order in which they were first asked about, shape (n,).
        targets: What is taught of them, zeros where nobody answered, shape (n, C).
        series: When, and whether that is right; but for rows whose label is known.
        seconds: Of the processor.
    """

    ids: NDArray[np.int64]
    targets: NDArray[np.float64]
    series: Series
    seconds: float


class Moving:
    """One task, whose teachers change.

    Args:
        bench: The task with its teachers.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.labels = bench.task.table.labels

    @cached_property
    def contains(self) -> NDArray[np.bool_]:
        """Which rows contain the word that a poisoned teacher answers to, shape (N,)."""
        texts = joined_inputs(self.bench.task, np.arange(len(self.labels)))
        return with_a_frequent_word(list(texts), self.bench.task.splits["train"])

    @cached_property
    def world(self) -> World:
        """What the teachers have said."""
        right = self.bench.pool(0, 0).right
        assert right is not None
        return recorded(self.bench.cache, right)

    def after(self, kind: str, seed: int) -> World:
        """What they say when they have changed."""
        return KINDS[kind](self.world, self.contains, np.random.default_rng([seed, 4]))

    def strategy(self, arm: str, after: World) -> Strategy | AskWhoKnows:
        """Who asks."""
        if arm == ORACLE:
            return AskWhoKnows(self.world, after)
        asks = arm.partition(",")[0]
        return build_strategy(f"policy:{self.bench.policy}" if asks == POLICY else asks)

    def run(self, arm: str, kind: str, change: int, seed: int) -> Taught:
        """Ask, and see what is taught."""
        pool, after = self.bench.pool(LABELS if arm == HEDGE else 0, seed), self.after(kind, seed)
        bank = ChangingTeachers(tuple(self.bench.cache.teacher_names), self.world, after, change, CALLS)
        started = time.process_time()
        asked: Any = self.bench.pool(0, seed) if arm == HEDGE else pool  # hedge learns from labels, and asks as others
        self.strategy(arm, after).run(asked, bank, seed)
        assert bank.spent <= bank.budget
        met = np.flatnonzero(bank.first_call >= 0)
        ids = met[np.argsort(bank.first_call[met])]
        targets = _targets(arm, pool, bank, ids)
        seconds = time.process_time() - started
        right = (targets.argmax(1) == self.labels[ids]) & bank.answers.answered[ids].any(1)
        scored = pool.labels[ids] < 0
        return Taught(ids, targets, Series(bank.first_call[ids][scored], right[scored]), seconds)

    def lesson(self, found: Taught) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """What a student learns from a run: rows that somebody answered, and their targets."""
        told = found.targets.any(1)
        return found.ids[told], found.targets[told].astype(np.float32)


def _targets(arm: str, pool: Pool, bank: ChangingTeachers, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    name = arm.partition(", ")[2]
    if arm == HEDGE:
        return by_hedge(pool, bank.answers, ids)
    return by_rule(name, bank.answers, ids) if name else by_policy(pool, bank.answers, ids)


def places(arm: str) -> Iterator[tuple[str, str, int]]:
    """Every run of an arm and seed: arm, kind of change, and the call at which it comes."""
    yield arm, UNCHANGED, CHANGE
    yield from ((arm, kind, change) for kind in KINDS if kind != UNCHANGED for change in (CHANGE, 0))


def run(moving: Moving, arms: Sequence[str], seed: int, folder: Path) -> None:
    """Run what is not there yet of a task and seed."""
    started, path = time.monotonic(), folder / f"{moving.bench.name}-{seed}.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for arm in arms:
        wanted = [place for place in places(arm) if key(*place) not in known]
        for place in wanted:
            found = moving.run(*place, seed)
            right = "".join("01"[value] for value in found.series.right.astype(int))
            known[key(*place)] = {"calls": found.series.calls.tolist(), "right": right, "seconds": found.seconds}
        if wanted:
            write_json_atomic(path, known)
    print(moving.bench.name, seed, len(known), f"{time.monotonic() - started:.0f} s", flush=True)


def teach(moving: Moving, arms: Sequence[str], seed: int, folder: Path) -> None:
    """Train the students of a task and seed that are not there yet: those of a kind of change at once."""
    started, path = time.monotonic(), folder / f"students-{moving.bench.name}-{seed}.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for kind in KINDS:
        wanted = [arm for arm in arms if key(arm, kind, CHANGE) not in known]
        if wanted:
            lessons = [moving.lesson(moving.run(arm, kind, CHANGE, seed)) for arm in wanted]
            right = moving.bench.students(lessons, seed).mean(1)
            known |= {key(arm, kind, CHANGE): float(one) for arm, one in zip(wanted, right, strict=True)}
            write_json_atomic(path, known)
    print("students", moving.bench.name, seed, len(known), f"{time.monotonic() - started:.0f} s", flush=True)


def forget(folder: Path, name: str, arms: Sequence[str]) -> None:
    """Leave out what was kept of some arms of a task."""
    for path in (*folder.glob(f"{name}-[0-9]*.json"), *folder.glob(f"students-{name}-[0-9]*.json")):
        known = json.loads(path.read_text(encoding="utf-8"))
        write_json_atomic(path, {one: value for one, value in known.items() if one.partition("|")[0] not in arms})


def main() -> None:
    """Run, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/moving"), help="Of runs and teachers.")
    parser.add_argument("--task", action="append", choices=TASKS, help="Of these tasks alone.")
    parser.add_argument("--arm", action="append", choices=ARMS, help="Of these arms alone.")
    parser.add_argument("--again", action="store_true", help="Run them anew, also those that are there.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--students", type=int, default=5, help="Seeds of which students are trained too.")
    parser.add_argument("--json", type=Path, default=RECORD)
    parser.add_argument("--no-report", action="store_true", help="Write none.")
    parser.add_argument("--only-report", action="store_true", help="Run nothing.")
    arguments = parser.parse_args()
    made_by = environment()
    logging.disable(logging.WARNING)
    suite = {task.name: task for task in load_suite(SUITE).tasks}
    folder = arguments.folder / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    with one_thread():
        for name in () if arguments.only_report else arguments.task or TASKS:
            moving = Moving(opened(suite[name], arguments.folder))
            arms = [arm for arm in arguments.arm or ARMS if arm != POLICY or moving.bench.policy]
            if arguments.again:
                forget(folder, name, arms)
            for seed in range(arguments.seeds):
                run(moving, arms, seed, folder)
            for seed in range(arguments.students):
                teach(moving, arms, seed, folder)
    if not arguments.no_report:
        write_records(folder, arguments.json, made_by["commit"])


if __name__ == "__main__":
    main()
