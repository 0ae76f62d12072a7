"""What it costs to ask, and what students make of it: ``python benchmarks/asking.py``.

Teachers are those of the suite ``travel``. Strategies ask them about train rows within budgets that are shares of what
it costs to ask everybody about everything, with 0, 30 or 100 labels, which every arm may read and teaches its student.
Teachers have answered everything beforehand: asking is counted, not paid. A student learns, from each row that somebody
answered, the mixture of the answers under the policy that is shipped, and from each labelled row its label. Students
have one hidden layer over the directions in which texts differ most; those of a seed share initialisation and places
in their batches, and are trained at once; what dropout draws for one depends on who else is trained with it.

- Specialists of classes or domains, one price: eight tasks and one of images.
- Teachers that know the whole task, of unequal quality and price (``PRICES``): an encoder at 10.

Runs are kept in ``--folder`` by task and seed, and what is there is not run again. Where ``make_asker.py --without
FAMILY`` has left a policy that never saw a task's family in ``FOLDER/askers``, it is an arm (``policy``), its shuffle
and ``auto`` with it too. The policy that is shipped has seen all tasks: no arm asks with it. But the weighting policy
that is shipped, which has seen them too, mixes the answers: where ``asking_weighting.py`` has left others in
``FOLDER/weightings``, arms are run with those as well (``unseen ...``).
"""

import argparse
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported: no model is asked for by id

import numpy as np
import torch
from asking_report import write_records
from asking_runs import LABELS, UNEQUAL
from numpy.typing import NDArray
from rlkd_envs.together import StackedStudents

from rlkd.asking import Pool, RecordedTeachers
from rlkd.asking.pool import instance_vectors
from rlkd.asking.strategies import build_strategy
from rlkd.asking.trust import taught
from rlkd.benchmark.jobs import Context
from rlkd.benchmark.stages import make_teachers, open_context
from rlkd.benchmark.suite_files import load_suite
from rlkd.benchmark.suites import SuiteTask
from rlkd.devices import one_thread
from rlkd.losses import distillation_loss
from rlkd.models.architectures import MlpConfig, MlpForSequenceClassification
from rlkd.records import environment, write_array_atomic, write_json_atomic
from rlkd.weighting.learned import load_policy

HERE = Path(__file__).parent
SUITE = HERE / "suites" / "travel.yaml"
RECORD = HERE / "results" / "asking.json"
SPECIALISTS = (
    *("docstrings", "banking77", "newsgroups20", "trec6-classes", "ag_news", "goemotions", "topics", "amazon4"),
    "digits",
)
FAMILIES = {
    "questions": ("banking77", "trec6-classes", "qqp"),
    "subjects": ("newsgroups20", "ag_news", "topics"),
    "feelings": ("amazon4", "sst2", "goemotions"),
    "others": ("docstrings", "mnli", "digits"),
}
"""Tasks that are alike: a policy that is judged on one has seen none of its family."""
PLANTED = ("planted-classes", "planted-regions")
"""Synthetic tasks, which policies learn on and none is judged on."""
PRICES = {"encoder3": 10.0, "scratch": 2.0, "tfidf": 1.0}
"""Of an answer; specialists cost 1."""
BUDGETS = (0.1, 0.2, 0.35, 0.5)
"""Shares of what it costs to ask everybody about everything."""
WHOLE = 1.0
WITH_LABELS = {
    30: ("none", "all", "explore+threshold:0.1", "verify", "router+threshold"),
    100: (
        *("none", "all", "random", "explore+threshold:0.1", "verify", "margin*verify", "router", "router+threshold"),
        "oracle",
    ),
}
"""Rules that are also run with so many labels; policies always are."""
STUDENT_VECTOR, HIDDEN, STEPS, BATCH, RATE = 400, 128, 600, 64, 5e-3
AT_ONCE = 16
"""Students that are trained at once."""
RULES = (
    "none",
    "all",
    "random",
    "only:encoder3",
    "explore:0.1",
    "explore+threshold:0.1",
    "verify",
    "margin*verify",
    "pairs*verify",
    "bandit",
    "thompson",
    "router",
    "router+threshold",
    "oracle",
)
POLICY, AUTO = "policy", "auto"
"""The arms that ask as ``make_asker.py`` has learned on tasks of other families; ``auto`` asks labels how far."""
UNSEEN = ("all", "explore+threshold:0.1", "verify", "pairs*verify")
"""Rules that are also run with a weighting policy that has seen no task of the family, without a label."""
UNSEEN_BUDGETS = (0.2, 0.35, WHOLE)
SHUFFLED = "verify"
"""The rule whose pattern of asking is also given to other instances."""

Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class Cell:
    """One student: who may be asked, how, and what for."""

    labels: int
    budget: float
    arm: str

    @property
    def key(self) -> str:
        """In the file of a task and seed."""
        return f"{self.labels}|{self.budget:g}|{self.arm}"


class Bench:
    """One task with its teachers."""

    def __init__(self, task: SuiteTask, context: Context, policy: Path | None, weighting: Path | None) -> None:
        """Look at the instances; ``policy`` and ``weighting`` are folders of policies that saw no such task."""
        self.policy = policy
        self.unseen = None if weighting is None else load_policy(weighting)
        self.name, self.task, self.cache = task.name, context.task, context.cache
        names = self.cache.teacher_names
        self.prices = np.array([PRICES.get(name, 1.0) if task.name in UNEQUAL else 1.0 for name in names])
        self.vectors = instance_vectors(self.task)
        wide = instance_vectors(self.task, STUDENT_VECTOR)
        self.inputs = torch.from_numpy(wide * np.sqrt(wide.shape[1])).float()  # of variance about one

    @cached_property
    def everything(self) -> float:
        """What it costs to ask everybody about every train row."""
        return float(self.prices.sum()) * len(self.task.splits["train"])

    def pool(self, labels: int, seed: int) -> Pool:
        """Train rows, of which so many have a label, the same ones whatever is asked; more contain the fewer."""
        drawn = np.random.default_rng([seed, 1]).permutation(self.task.labelled_ids("train"))[:labels]
        return Pool.of(self.task, np.sort(drawn), self.vectors, self.cache.knowledge)

    def cells(self, arms: Sequence[str]) -> Iterator[Cell]:
        """Every student of a seed; arms that mean nothing here are left out."""
        for labels in LABELS:
            for arm in arms:
                if arm.startswith("unseen "):
                    budgets = [one for one in UNSEEN_BUDGETS if one < WHOLE or arm == "unseen all"]
                    yield from (Cell(labels, budget, arm) for budget in budgets if not labels)
                    continue
                if labels and arm in RULES and arm not in WITH_LABELS[labels]:
                    continue
                if (labels and arm.startswith(("shuffled", "only"))) or (arm == AUTO and not labels):
                    continue
                if ("router" in arm and labels == 0) or (arm == "oracle" and self.cache.knowledge is None):
                    continue
                if arm.startswith("only:") and arm.partition(":")[2] not in self.cache.teacher_names:
                    continue
                if arm == "none":
                    if labels:
                        yield Cell(labels, 0.0, arm)
                    continue
                whole = (WHOLE,) if arm in ("all", "oracle") or arm.startswith("only:") else ()
                yield from (Cell(labels, budget, arm) for budget in (*BUDGETS, *whole))

    def strategy(self, arm: str) -> Any:
        """The strategy of an arm."""
        return build_strategy(f"{arm}:{self.policy}" if arm in (POLICY, AUTO) else arm)

    def asked(self, cell: Cell, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float32], dict[str, float]]:
        """What a strategy comes back with: rows that are taught (M,), their targets (M, C), and what it cost."""
        pool, arm = self.pool(cell.labels, seed), cell.arm.removeprefix("unseen ")
        if arm != cell.arm:
            pool = replace(pool, weighting=self.unseen)
        bank = RecordedTeachers(self.cache, self.prices, cell.budget * self.everything)
        started = time.process_time()
        if cell.arm.startswith("shuffled "):
            shuffled(self.strategy(cell.arm.removeprefix("shuffled ")), pool, bank, seed, self.cache)
        else:
            self.strategy(arm).run(pool, bank, seed)
        seconds = time.process_time() - started
        answers, ids = bank.answers, pool.ids
        assert bank.spent <= bank.budget * (1 + 1e-9)
        rows = ids[answers.answered[ids].any(1) | (pool.labels[ids] >= 0)]
        targets = taught(pool, answers, rows).astype(np.float32)
        known = pool.labels[rows] >= 0
        right = float((targets.argmax(1) == self.task.table.labels[rows])[~known].mean()) if (~known).any() else 1.0
        figures = {"spent": bank.spent / self.everything, "calls": float(answers.asked[ids].sum()), "right": right}
        return rows, targets, figures | {"rows": len(rows) / len(ids), "seconds": seconds}

    def students(self, lessons: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]], seed: int) -> Bits:
        """Train a student of each lesson at once; whether each is right on each test row, shape (E, N_test)."""
        classes = self.task.num_classes
        config = MlpConfig(input_size=self.inputs.shape[1], hidden_size=HIDDEN, num_labels=classes)
        torch.manual_seed(seed)
        first = MlpForSequenceClassification(config)
        copies = [MlpForSequenceClassification(config) for _ in lessons]
        for one in copies:
            one.load_state_dict(first.state_dict())
        students = StackedStudents(copies, RATE, bf16=False)
        draws = np.random.default_rng([seed, 2]).random((STEPS, BATCH))  # the same for all, of rows of their own
        certain = torch.ones(len(lessons), BATCH, 1)
        for step in range(STEPS):
            places = [(draws[step] * len(rows)).astype(np.int64) for rows, _ in lessons]
            inputs = torch.stack([self.inputs[rows[at]] for (rows, _), at in zip(lessons, places, strict=True)])
            taught = [targets[at] for (_, targets), at in zip(lessons, places, strict=True)]
            logits = torch.from_numpy(np.stack(taught)).clamp_min(1e-8).log().unsqueeze(-2)
            out = students.logits({"input_values": inputs}, train=True)
            nobody = torch.full((len(lessons), BATCH), -1)
            losses = distillation_loss(out, logits, certain, nobody, kd_ratio=1.0, temperature=1.0)
            students.step(losses, RATE * (1 - step / STEPS))
        test = self.task.splits["test"]
        with torch.no_grad():
            out = students.logits({"input_values": self.inputs[test]}, train=False, shared=True)
        return np.asarray(out.argmax(-1).numpy() == self.task.table.labels[test])


def shuffled(strategy: Any, pool: Pool, bank: RecordedTeachers, seed: int, cache: Any) -> None:
    """Ask whom a strategy would ask, about other instances."""
    rehearsed = RecordedTeachers(cache, bank.prices, bank.budget)
    strategy.run(pool, rehearsed, seed)
    ids = pool.ids
    pattern = np.random.default_rng([seed, 3]).permutation(rehearsed.answers.asked[ids])
    for teacher in range(pattern.shape[1]):
        bank.ask(teacher, ids[pattern[:, teacher]])


def run(bench: Bench, arms: Sequence[str], seed: int, folder: Path) -> None:
    """Run the students of a task and seed that are not there yet."""
    place = folder / f"{bench.name}-{seed}.npy"
    known = folder / f"{bench.name}-{seed}.json"
    figures = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    bits = list(np.load(place)) if place.exists() else []
    wanted = [cell for cell in bench.cells(arms) if cell.key not in figures]
    for start in range(0, len(wanted), AT_ONCE):
        cells = wanted[start : start + AT_ONCE]
        found = [bench.asked(cell, seed) for cell in cells]
        right = bench.students([(rows, targets) for rows, targets, _ in found], seed)
        for cell, (_, _, costs), one in zip(cells, found, right, strict=True):
            figures[cell.key] = {**costs, "accuracy": float(one.mean()), "place": len(bits)}
            bits.append(np.packbits(one))
        write_array_atomic(place, np.stack(bits))
        write_json_atomic(known, figures)
    print(bench.name, seed, len(figures), flush=True)


def family_of(task: str) -> str | None:
    """The family of a task's name; None: this suite does not use it."""
    return "planted" if task in PLANTED else next((name for name, some in FAMILIES.items() if task in some), None)


def context_of(task: SuiteTask, teachers: Path) -> Context:
    """A task with its teachers' answers; they are trained first if they are not there."""
    if task.teachers and "sets" in task.teachers:
        sets = {name: value for name, value in task.teachers["sets"].items() if name in PRICES}
        task = replace(task, teachers={**task.teachers, "sets": sets})
    make_teachers(task, teachers / task.teachers_key)
    return open_context(task, teachers / task.teachers_key)


def opened(task: SuiteTask, folder: Path) -> Bench:
    """A task with its teachers, and with those policies in a folder that saw none of its family."""
    places = [folder / kind / str(family_of(task.name)) for kind in ("askers", "weightings")]
    policy, weighting = (place if place.is_dir() else None for place in places)
    return Bench(task, context_of(task, folder / "teachers"), policy, weighting)


def main() -> None:
    """Run, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/asking"), help="Of runs and teachers.")
    parser.add_argument("--task", action="append", choices=(*SPECIALISTS, *UNEQUAL), help="Of these tasks alone.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RECORD)
    parser.add_argument("--only-report", action="store_true", help="Run nothing.")
    arguments = parser.parse_args()
    made_by = environment()
    logging.disable(logging.WARNING)
    suite = {task.name: task for task in load_suite(SUITE).tasks}
    folder = arguments.folder / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    names = arguments.task or (*SPECIALISTS, *UNEQUAL)
    with one_thread():
        for name in () if arguments.only_report else names:
            bench = opened(suite[name], arguments.folder)
            learned = (POLICY, f"shuffled {POLICY}", AUTO) if bench.policy else ()
            unseen = (f"unseen {arm}" for arm in UNSEEN if bench.unseen)
            arms = (*RULES, f"shuffled {SHUFFLED}", *learned, *unseen)
            for seed in range(arguments.seeds):
                run(bench, arms, seed, folder)
    write_records(folder, arguments.json, made_by["commit"])


if __name__ == "__main__":
    main()
