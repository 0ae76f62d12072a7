"""How teachers and students of a suite of MKD are made: their names, their budgets, what they are taught."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rlkd.benchmark.jobs import Context
from rlkd.benchmark.running import SuiteWorker
from rlkd.benchmark.stages import compared_weighting
from rlkd.benchmark.suites import Suite, SuiteTask
from rlkd.data.collection import TaskCollection
from rlkd.records import digest, folder_of
from rlkd.settings import MultiTaskSettings, StudentSettings
from rlkd.systems.mkd.entries import LABELS, MkdBudget, MkdEntry, MkdTask, parse_entry
from rlkd.trainer.multi_task_training import TaughtTasks, multi_task_teacher_settings, train_model

MODELS_FOLDER = "models"
"""Students between their training and the last run that needs them."""


def budget_of(suite: Suite) -> MkdBudget:
    """What a suite of MKD says of its budgets."""
    assert isinstance(suite.system, MkdTask)
    return suite.system.budget


def teacher_key(suite: Suite) -> str:
    """What the teacher of all tasks is made of."""
    return digest([[task.teachers_key, task.name] for task in suite.tasks])


def student_name(suite: Suite, student: str, entry: str, seed: int, alone: int | None) -> str:
    """Names a student by what it is made of; entries that differ in refinement alone share it."""
    tasks = suite.tasks if alone is None else [suite.tasks[alone]]
    parsed, settings = parse_entry(entry), suite.tasks[0].students[student]
    made_of = [settings.record(), budget_of(suite).epochs_of(student), seed, parsed.teacher, teacher_key(suite)]
    made_of += [[task.teachers_key, task.labels, task.name] for task in tasks]
    return f"student-{folder_of(student)}-{parsed.student}-{digest(made_of)}"


def teaching_settings(plan: SuiteTask) -> MultiTaskSettings:
    """How a task's teachers learn.

    Raises:
        ConfigError: A budget is out of range.
    """
    settings = plan.teachers
    given = {key: settings[key] for key in ("epochs", "learning_rate", "batch_size") if key in settings}
    return multi_task_teacher_settings(
        settings["kinds"][0],
        max_length=settings.get("max_length", 128),
        bf16=settings.get("bf16", False),
        device=settings.get("device") or "cpu",
        **{key: float(value) if key != "batch_size" else value for key, value in given.items()},
    )


def student_settings(budget: MkdBudget, name: str, settings: StudentSettings) -> MultiTaskSettings:
    """How one of the suite's students learns.

    Raises:
        ConfigError: No epochs are given for it, or a setting is out of range.
    """
    return MultiTaskSettings.of(settings, epochs=budget.epochs_of(name))


def train_teacher(plan: SuiteTask, collection: TaskCollection, folder: Path) -> Path:
    """Train a teacher of one task or of several, unless it is there; returns its folder."""
    train_model(
        folder,
        plan.teachers["kinds"][0],
        TaughtTasks(collection=collection),
        teaching_settings(plan),
        num_layers=plan.teachers.get("num_layers"),
        seed=plan.teachers.get("seed", 0),
    )
    return folder


def multi_folder(worker: SuiteWorker) -> Path:
    """Where the teacher of all tasks lies."""
    return worker.folder / "teachers" / f"multi-{teacher_key(worker.suite)}"


def taught_tasks(worker: SuiteWorker, entry: MkdEntry, seed: int, alone: int | None) -> TaughtTasks:
    """Tasks, logits and weightings of a student, of all tasks or of one."""
    suite = worker.suite
    contexts: dict[int, Context] = worker.held.setdefault("contexts", {})
    chosen = range(len(suite.tasks)) if alone is None else [alone]
    for index in chosen:
        if index not in contexts:
            contexts[index] = worker.context(index, suite.tasks[index])
    taught = TaughtTasks(
        collection=TaskCollection(tuple(contexts[i].task for i in chosen)),
        caches={suite.tasks[i].name: contexts[i].cache for i in chosen},
    )
    if entry.weighting is None:
        return taught
    policies = worker.folder / "policies"
    specs = {
        plan.name: compared_weighting(plan, entry.weighting, seed, policies).spec
        for plan in (suite.tasks[i] for i in chosen)
    }
    return replace(taught, weighting={name: spec for name, spec in specs.items() if spec is not None})


def train_student(worker: SuiteWorker, student: str, name: str, seed: int, alone: int | None) -> tuple[Path, Any]:
    """Distil a student, of all tasks or of one, unless it is there; its folder, and what was noted of its training."""
    suite, entry = worker.suite, parse_entry(name)
    settings = suite.tasks[0].students[student]
    training = student_settings(budget_of(suite), student, settings)
    training = replace(training, kd_ratio=0.0) if entry.teacher == LABELS else training
    folder = worker.folder / MODELS_FOLDER / student_name(suite, student, name, seed, alone)
    folder.parent.mkdir(exist_ok=True)
    done = train_model(
        folder,
        settings.student,
        taught_tasks(worker, entry, seed, alone),
        training,
        num_layers=settings.num_layers,
        seed=seed,
        shared=worker.held.setdefault(("inputs", student, alone), {}),
    )
    return folder, done
