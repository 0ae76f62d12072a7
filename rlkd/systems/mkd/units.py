"""The units of work of a suite of MKD: teachers of all tasks and of each, students of all and of each, runs.

A run is scored task by task, so its records are those of any other suite: one line for a task, a student, an entry
(where others have a weighting) and a seed.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd.benchmark.jobs import recorded
from rlkd.benchmark.measuring import answers, student_scores
from rlkd.benchmark.paths import portable
from rlkd.benchmark.running import Run, SuiteWorker, Teachers
from rlkd.benchmark.stages import compared_weighting, make_teachers, plan_data
from rlkd.benchmark.suites import Suite, SuiteTask
from rlkd.benchmark.workers import Busy
from rlkd.cost import NO_COST, cost_in, metered, share_of
from rlkd.data.collection import TaskCollection
from rlkd.data.task import Task
from rlkd.metrics import told_if_diverged
from rlkd.models import load_teachers
from rlkd.records import LOCKS_FOLDER, claim, digest
from rlkd.systems.mkd.entries import LABELS, TEACHERS, MkdEntry, parse_entry
from rlkd.systems.mkd.making import (
    MODELS_FOLDER,
    budget_of,
    multi_folder,
    student_name,
    student_settings,
    taught_tasks,
    train_student,
    train_teacher,
)
from rlkd.systems.mkd.training import refinement_settings
from rlkd.trainer.multi_task_training import train_model


@dataclass(frozen=True)
class JointTeacher:
    """The teacher of all tasks."""

    index: int

    def do(self, worker: SuiteWorker, name: str) -> Any:
        """See :class:`rlkd.benchmark.running.Work`."""
        task = worker.suite.tasks[self.index]

        def make() -> dict[str, Any]:
            collection = TaskCollection(tuple(plan_data(plan)[0] for plan in worker.suite.tasks))
            with metered() as cost:
                train_teacher(task, collection, multi_folder(worker))
            return {**cost.record(), "tasks": list(collection.names)}

        return worker.stage(name, task, {"kind": "teacher", "weighting": "multi-task teacher", "seed": 0}, make)


@dataclass(frozen=True)
class TaskTeachers(Teachers):
    """The teacher of one task alone, and the teacher of all, asked about every instance."""

    def make(self, worker: SuiteWorker, task: SuiteTask, folder: Path) -> dict[str, Any]:
        """See :class:`rlkd.benchmark.running.Teachers`."""

        def train(plan: SuiteTask, taught: Task, place: Path) -> dict[str, Path]:
            single = train_teacher(plan, TaskCollection((taught,)), place / "single")
            return {"single": single, "multi": multi_folder(worker)}

        return make_teachers(task, folder, train=train)


@dataclass(frozen=True)
class JointStudent(Run):
    """A student of an entry, of all tasks or of one; runs refine and score it."""

    def do(self, worker: SuiteWorker, name: str) -> Any:
        """See :class:`rlkd.benchmark.running.Work`."""
        head = {"kind": "student", "student": self.student, "weighting": self.weighting, "seed": self.seed}

        def make() -> dict[str, Any]:
            _, done = train_student(worker, self.student, self.weighting, self.seed, _alone(self))
            return {**cost_in(done), "mean_weights": done["weights"]}

        return worker.stage(name, worker.suite.tasks[self.index], head, make)


@dataclass(frozen=True)
class ScoredStudent(Run):
    """A student of an entry, refined on one task if the entry says so, and scored there."""

    @property
    def alone(self) -> bool:
        """Whether the student is of one task."""
        return parse_entry(self.weighting).student == "single"

    def maker(self, suite: Suite) -> str:
        """Name of the unit that makes the student."""
        return student_name(suite, self.student, self.weighting, self.seed, _alone(self))

    def key(self, suite: Suite) -> str:
        """Of the record: equal keys are equal runs."""
        budget = budget_of(suite)
        refined = [budget.refine_epochs, budget.refine_kd_ratio] if parse_entry(self.weighting).refined else None
        described = [suite.name, suite.tasks[self.index].name, self.student, self.weighting, self.seed]
        return digest([*described, self.maker(suite), refined], 16, algorithm="sha256")

    def do(self, worker: SuiteWorker, name: str) -> Any:
        """See :class:`rlkd.benchmark.running.Work`."""
        key, maker = self.key(worker.suite), self.maker(worker.suite)
        with claim(worker.folder / LOCKS_FOLDER, f"use-{maker}") as ours:  # a student is used by one run at a time
            if not ours:
                return Busy()
            head = self._head(worker, key)
            made = worker.ledger.once(key, lambda: portable(recorded(head, lambda: _scored(worker, self))))
            if not isinstance(made, Busy):
                _forget(worker, maker)
            return made

    def _head(self, worker: SuiteWorker, key: str) -> dict[str, Any]:
        task = worker.suite.tasks[self.index]
        return {
            "kind": "run",
            "key": key,
            "suite": worker.suite.name,
            "task": task.name,
            "weighting": self.weighting,
            "seed": self.seed,
            "student": self.student,
            "metric": task.metric,
            "labelled_only": False,
            "teachers": ["single", "multi"],
            "settings": _settings(worker.suite, task, self.student),
            "policy": None,
            "regret": None,
            "environment": dict(worker.environment),
        }


def _alone(work: Run) -> int | None:
    """The one task of a student; None: all."""
    return work.index if parse_entry(work.weighting).student == "single" else None


def _settings(suite: Suite, task: SuiteTask, student: str) -> dict[str, Any]:
    """What all entries of a student share: passes stand for steps, of which a joint student takes more."""
    given = task.students[student].record() | {"epochs": budget_of(suite).epochs_of(student)}
    given |= {"refine_epochs": budget_of(suite).refine_epochs, "refine_kd_ratio": budget_of(suite).refine_kd_ratio}
    return {key: value for key, value in given.items() if key != "max_steps"}


def _scored(worker: SuiteWorker, run: ScoredStudent) -> dict[str, Any]:
    """Refine the student, if the entry says so, and score it."""
    suite, entry, alone = worker.suite, parse_entry(run.weighting), _alone(run)
    index, student, name, seed = run.index, run.student, run.weighting, run.seed
    folder, done = train_student(worker, student, name, seed, alone)
    plan, taught = suite.tasks[index], taught_tasks(worker, entry, seed, index)
    task, cache = worker.held["contexts"][index].task, worker.held["contexts"][index].cache
    path = folder
    settings = plan.students[student]
    if entry.refined:
        path = folder.with_name(f"{folder.name}-{plan.name}")
        training = refinement_settings(
            student_settings(budget_of(suite), student, settings),
            epochs=budget_of(suite).refine_epochs,
            kd_ratio=0.0 if entry.teacher == LABELS else budget_of(suite).refine_kd_ratio,
        )
        shared = worker.held.setdefault(("inputs", student, alone), {})
        train_model(path, folder, taught, training, seed=seed, shared=shared)
    (model,) = load_teachers([path], task, device=settings.device, bf16=settings.bf16)
    logits = model.logits(task, task.splits["test"], batch_size=256, max_length=settings.max_length).numpy()
    if entry.refined:
        shutil.rmtree(path)
    labels = task.labels("test")
    found = plan.policy_of(name)
    spent = share_of(cost_in(done), 1 / (len(suite.tasks) if alone is None else 1))
    asked = 0 if entry.teacher == LABELS else 1 if entry.teacher in TEACHERS else len(cache.teacher_names)
    scores = student_scores(logits, labels)
    return {
        **scores,
        **told_if_diverged(f"the student of {name}, seed {seed}, on test", scores["nll"], task.num_classes),
        "cost_before": spent,
        "student_seconds": spent["seconds"],
        "teacher_passes": asked * len(task.splits["train"]),
        **_policy_cost(worker, plan, entry, seed, found is not None),
        "mean_weights": None if entry.teacher == LABELS else done["weights"][plan.name],
        "data": task.fingerprint,
        "logits": cache.identity,
        "rows": {split: len(ids) for split, ids in task.splits.items()},
        **answers(logits, labels, plan.metric),
    }


def _policy_cost(worker: SuiteWorker, plan: SuiteTask, entry: MkdEntry, seed: int, learned: bool) -> dict[str, Any]:
    spent = (
        compared_weighting(plan, entry.weighting or "", seed, worker.folder / "policies").policy_cost
        if learned
        else NO_COST
    )
    return {f"policy_{name}": value for name, value in spent.items()}


def _forget(worker: SuiteWorker, maker: str) -> None:
    """Delete a student when no unfinished run of the suite needs it; a later run would distil it again."""
    suite, finished = worker.suite, worker.ledger.finished()
    for unit in suite.system.units(suite, []):
        if isinstance(unit.work, ScoredStudent) and maker in unit.needs and unit.work.key(suite) not in finished:
            return
    shutil.rmtree(worker.folder / MODELS_FOLDER / maker, ignore_errors=True)
