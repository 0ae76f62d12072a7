"""The units of an MKD suite: teachers of all tasks and of each, students of all tasks and of each, refinement.

A run is scored task by task, so its records are those of any other suite: one line for a task, a student, an arm (where
others have a weighting) and a seed.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rlkd.benchmark.comparing import Ledger
from rlkd.benchmark.jobs import Context, failure
from rlkd.benchmark.measuring import answers, peak_memory_mb, reset_peak_memory, student_scores
from rlkd.benchmark.mkd import LABELS, TEACHERS, MkdArm, MkdSettings, parse_arm
from rlkd.benchmark.places import portable
from rlkd.benchmark.policies import SMOKE_STEPS
from rlkd.benchmark.stages import arm_of, make_teachers, plan_data
from rlkd.benchmark.suites import Suite, TaskPlan, digest
from rlkd.benchmark.workers import LOCKS_FOLDER, Busy, Unit, claim
from rlkd.cost import NO_COST, added, cost_in, metered, share_of
from rlkd.data.collection import TaskCollection
from rlkd.data.task import Task
from rlkd.errors import ConfigError
from rlkd.metrics import told_if_diverged
from rlkd.models import load_teachers
from rlkd.models.teacher_files import TeacherInfo, write_info
from rlkd.records import folder_of
from rlkd.settings import StudentSettings
from rlkd.systems.mkd import Lessons, Phase, refinement_phase, teacher_phase, train_model

MODELS_FOLDER = "models"
"""Students between their training and the last run that needs them."""
_TEACHING = frozenset(
    {"kinds", "epochs", "learning_rate", "batch_size", "max_length", "seed", "num_layers", "bf16", "device"}
)


class Worker(Protocol):
    """What the units need of :class:`rlkd.benchmark.running.SuiteWorker`."""

    suite: Suite
    folder: Path
    ledger: Ledger
    environment: Mapping[str, Any]
    held: dict[Any, Any]

    def stage(self, unit: Unit, task: TaskPlan, head: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> Any:
        """Make a stage once, and its record once."""

    def context(self, index: int, task: TaskPlan) -> Context:
        """A task with its teachers' logits."""

    def teachers_folder(self, task: TaskPlan) -> Path:
        """Where the teachers of a task and their cache are."""


# -- what there is to do ---------------------------------------------------------------------------


def plan_mkd_teachers(suite: Suite) -> list[Unit]:
    """The multi-task teacher; nothing for other suites."""
    return [] if suite.mkd is None else [Unit(f"teacher-{_teacher_key(suite)}", ("mkd_teacher", 0))]


def plan_mkd_runs(suite: Suite, before: Sequence[Unit]) -> list[Unit]:
    """Students and runs, after the units of teachers and policies; nothing for other suites."""
    units: dict[str, Unit] = {}
    if suite.mkd is None:
        return []
    needs = {index: tuple(u.name for u in before if u.work[1] == index) for index in range(len(suite.tasks))}
    everything = tuple(unit.name for unit in before)
    for seed in suite.tasks[0].seeds:
        for student in suite.tasks[0].students:
            for index, task in enumerate(suite.tasks):
                for name in task.weightings:
                    alone = index if parse_arm(name).student == "single" else None
                    maker = _student_name(suite, student, name, seed, alone)
                    work = ("mkd_student", index, student, name, seed)
                    units.setdefault(maker, Unit(maker, work, everything if alone is None else needs[index]))
                    run = f"run-{task.name}-{digest([student, name, seed])}"
                    units[run] = Unit(run, ("mkd_run", index, student, name, seed), (maker,))
    return list(units.values())


def check_mkd_suite(suite: Suite) -> None:
    """Refuse an MKD suite that cannot run, as far as it can be told without data.

    Raises:
        ConfigError: Tasks differ in teachers, students, arms or seeds, or a setting would be ignored.
    """
    if suite.mkd is None:
        return
    first = suite.tasks[0]
    for task in suite.tasks:
        for what in ("teachers", "students", "weightings", "seeds", "policy_seeds", "teacher_share"):
            if getattr(task, what) != getattr(first, what):
                raise ConfigError(f"tasks of MKD share their {what}, {task.name!r} has others; set them at the top")
        if task.planted is not None or task.labelled_only:
            raise ConfigError(f"MKD runs on texts with all their rows, {task.name!r} is planted or labelled_only")
        for key in task.teachers:
            if key not in _TEACHING or len(task.teachers["kinds"]) > 1:
                raise ConfigError(f"teachers of MKD are one kind and how it is trained, got {key!r}; leave it out")
    default = StudentSettings()
    for name, settings in first.students.items():
        suite.mkd.epochs_of(name)
        _phase(suite.mkd, name, settings)
        if settings.max_steps not in (default.max_steps, SMOKE_STEPS):  # a smoke test sets the latter for policies
            raise ConfigError(f"max_steps of student {name!r} would be ignored; give epochs under mkd")
    _teaching(first)


def _teacher_key(suite: Suite) -> str:
    return digest([[task.teachers_key, task.name] for task in suite.tasks])


def _student_name(suite: Suite, student: str, arm: str, seed: int, alone: int | None) -> str:
    """Names a student by what it is made of; arms that differ in refinement alone share it."""
    assert suite.mkd is not None
    tasks = suite.tasks if alone is None else [suite.tasks[alone]]
    parsed, settings = parse_arm(arm), suite.tasks[0].students[student]
    made_of = [settings.record(), suite.mkd.epochs_of(student), seed, parsed.teacher, _teacher_key(suite)]
    made_of += [[task.teachers_key, task.labels, task.name] for task in tasks]
    return f"student-{folder_of(student)}-{parsed.student}-{digest(made_of)}"


# -- how -------------------------------------------------------------------------------------------


def _teaching(plan: TaskPlan) -> Phase:
    settings = plan.teachers
    given = {key: settings[key] for key in ("epochs", "learning_rate", "batch_size") if key in settings}
    return teacher_phase(
        settings["kinds"][0],
        max_length=settings.get("max_length", 128),
        bf16=settings.get("bf16", False),
        device=settings.get("device") or "cpu",
        **{key: float(value) if key != "batch_size" else value for key, value in given.items()},
    )


def _phase(mkd: MkdSettings, name: str, settings: StudentSettings) -> Phase:
    return Phase(
        epochs=mkd.epochs_of(name),
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        max_length=settings.max_length,
        kd_ratio=settings.kd_ratio,
        divergence=settings.divergence,
        temperature=settings.temperature,
        bf16=settings.bf16,
        device=settings.device,
    )


def _train_teacher(plan: TaskPlan, collection: TaskCollection, folder: Path, name: str) -> Path:
    kind = plan.teachers["kinds"][0]
    done = train_model(
        folder,
        kind,
        Lessons(collection=collection),
        _teaching(plan),
        num_layers=plan.teachers.get("num_layers"),
        seed=plan.teachers.get("seed", 0),
    )
    write_info(folder, TeacherInfo(name, kind=kind, metrics={"seconds": done["seconds"]}))
    return folder


def _multi_folder(worker: Worker) -> Path:
    return worker.folder / "teachers" / f"multi-{_teacher_key(worker.suite)}"


def _do_teacher(worker: Worker, unit: Unit, index: int, task: TaskPlan) -> Any:
    """Train the multi-task teacher."""

    def make() -> dict[str, Any]:
        collection = TaskCollection(tuple(plan_data(plan)[0] for plan in worker.suite.tasks))
        with metered() as cost:
            _train_teacher(task, collection, _multi_folder(worker), "multi")
        return {**cost.record(), "tasks": list(collection.names)}

    return worker.stage(unit, task, {"kind": "teacher", "weighting": "multi-task teacher", "seed": 0}, make)


def _do_task(worker: Worker, unit: Unit, index: int, task: TaskPlan) -> Any:
    """Train the teacher of one task alone, and ask it and the multi-task teacher about every instance."""

    def train(plan: TaskPlan, taught: Task, folder: Path) -> dict[str, Path]:
        single = _train_teacher(plan, TaskCollection((taught,)), folder / "single", "single")
        return {"single": single, "multi": _multi_folder(worker)}

    folder = worker.teachers_folder(task)
    return worker.stage(unit, task, {"kind": "task"}, lambda: make_teachers(task, folder, train=train))


def _lessons(worker: Worker, arm: MkdArm, seed: int, alone: int | None) -> Lessons:
    """Tasks, logits and weightings of a student, of all tasks or of one."""
    suite = worker.suite
    contexts: dict[int, Context] = worker.held.setdefault("contexts", {})
    chosen = range(len(suite.tasks)) if alone is None else [alone]
    for index in chosen:
        if index not in contexts:
            contexts[index] = worker.context(index, suite.tasks[index])
    lessons = Lessons(
        collection=TaskCollection(tuple(contexts[i].task for i in chosen)),
        caches={suite.tasks[i].name: contexts[i].cache for i in chosen},
    )
    if arm.weighting is None:
        return lessons
    policies = worker.folder / "policies"
    specs = {plan.name: arm_of(plan, arm.weighting, seed, policies).spec for plan in (suite.tasks[i] for i in chosen)}
    return replace(lessons, weighting=specs)


def _train_student(worker: Worker, student: str, name: str, seed: int, alone: int | None) -> tuple[Path, Any]:
    """Distil a student, of all tasks or of one, unless it is there."""
    suite, arm = worker.suite, parse_arm(name)
    assert suite.mkd is not None
    settings = suite.tasks[0].students[student]
    phase = _phase(suite.mkd, student, settings)
    phase = replace(phase, kd_ratio=0.0) if arm.teacher == LABELS else phase
    folder = worker.folder / MODELS_FOLDER / _student_name(suite, student, name, seed, alone)
    folder.parent.mkdir(exist_ok=True)
    done = train_model(
        folder,
        settings.student,
        _lessons(worker, arm, seed, alone),
        phase,
        num_layers=settings.num_layers,
        seed=seed,
        shared=worker.held.setdefault(("inputs", student, alone), {}),
    )
    return folder, done


def _do_student(worker: Worker, unit: Unit, index: int, task: TaskPlan, student: str, name: str, seed: int) -> Any:
    """Distil a student; runs refine and score it."""
    alone = index if parse_arm(name).student == "single" else None
    head = {"kind": "student", "student": student, "weighting": name, "seed": seed}

    def make() -> dict[str, Any]:
        _, done = _train_student(worker, student, name, seed, alone)
        return {**cost_in(done), "mean_weights": done["weights"]}

    return worker.stage(unit, task, head, make)


def _do_run(worker: Worker, unit: Unit, index: int, task: TaskPlan, student: str, name: str, seed: int) -> Any:
    """Refine a student on one task, if the arm says so, and score it there."""
    alone = index if parse_arm(name).student == "single" else None
    maker = _student_name(worker.suite, student, name, seed, alone)
    key = _run_key(worker.suite, task, student, name, seed, maker)

    def record() -> Mapping[str, Any]:
        base = _head(worker, task, student, name, seed) | {"key": key}
        reset_peak_memory()
        with metered() as cost:
            try:
                base |= _scored(worker, index, student, name, seed, alone) | {"status": "ok"}
            except Exception as error:
                base |= failure(error)
        spent = added(cost.record(), base.pop("student_cost", NO_COST))
        made: dict[str, Any] = portable(base | spent | {"peak_memory_mb": peak_memory_mb()})
        return made

    with claim(worker.folder / LOCKS_FOLDER, f"use-{maker}") as ours:  # a student is used by one run at a time
        if not ours:
            return Busy()
        made = worker.ledger.once(key, record)
        if not isinstance(made, Busy):
            _forget(worker, student, name, seed, alone)
        return made


def _run_key(suite: Suite, task: TaskPlan, student: str, name: str, seed: int, maker: str) -> str:
    assert suite.mkd is not None
    refinement = [suite.mkd.refine_epochs, suite.mkd.refine_kd_ratio] if parse_arm(name).refined else None
    described = [suite.name, task.name, student, name, seed, maker, refinement]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _head(worker: Worker, task: TaskPlan, student: str, name: str, seed: int) -> dict[str, Any]:
    return {
        "kind": "run",
        "suite": worker.suite.name,
        "task": task.name,
        "weighting": name,
        "seed": seed,
        "student": student,
        "metric": task.metric,
        "labelled_only": False,
        "teachers": ["single", "multi"],
        "settings": _settings(worker.suite, task, student),
        "policy": None,
        "regret": None,
        "environment": dict(worker.environment),
    }


def _settings(suite: Suite, task: TaskPlan, student: str) -> dict[str, Any]:
    """What all arms of a student share: passes stand for steps, of which a joint student takes more."""
    assert suite.mkd is not None
    given = task.students[student].record() | {"epochs": suite.mkd.epochs_of(student)}
    given |= {"refine_epochs": suite.mkd.refine_epochs, "refine_kd_ratio": suite.mkd.refine_kd_ratio}
    return {key: value for key, value in given.items() if key != "max_steps"}


def _scored(worker: Worker, index: int, student: str, name: str, seed: int, alone: int | None) -> dict[str, Any]:
    suite, arm = worker.suite, parse_arm(name)
    assert suite.mkd is not None
    folder, done = _train_student(worker, student, name, seed, alone)
    plan, lessons = suite.tasks[index], _lessons(worker, arm, seed, index)
    task, cache = worker.held["contexts"][index].task, worker.held["contexts"][index].cache
    path = folder
    settings = plan.students[student]
    if arm.refined:
        path = folder.with_name(f"{folder.name}-{plan.name}")
        phase = refinement_phase(
            _phase(suite.mkd, student, settings),
            epochs=suite.mkd.refine_epochs,
            kd_ratio=0.0 if arm.teacher == LABELS else suite.mkd.refine_kd_ratio,
        )
        shared = worker.held.setdefault(("inputs", student, alone), {})
        train_model(path, folder, lessons, phase, seed=seed, shared=shared)
    (model,) = load_teachers([path], task, device=settings.device, bf16=settings.bf16)
    logits = model.logits(task, task.splits["test"], batch_size=256, max_length=settings.max_length).numpy()
    if arm.refined:
        shutil.rmtree(path)
    labels = task.labels("test")
    found = plan.policy_of(name)
    spent = share_of(cost_in(done), 1 / (len(suite.tasks) if alone is None else 1))
    asked = 0 if arm.teacher == LABELS else 1 if arm.teacher in TEACHERS else len(cache.teacher_names)
    scores = student_scores(logits, labels)
    return {
        **scores,
        **told_if_diverged(f"the student of {name}, seed {seed}, on test", scores["nll"], task.num_classes),
        "student_cost": spent,
        "student_seconds": spent["seconds"],
        "teacher_passes": asked * len(task.splits["train"]),
        **_policy_cost(worker, plan, arm, seed, found is not None),
        "mean_weights": None if arm.teacher == LABELS else done["weights"][plan.name],
        "data": task.fingerprint,
        "logits": cache.identity,
        "rows": {split: len(ids) for split, ids in task.splits.items()},
        **answers(logits, labels, plan.metric),
    }


def _policy_cost(worker: Worker, plan: TaskPlan, arm: MkdArm, seed: int, learned: bool) -> dict[str, Any]:
    spent = arm_of(plan, arm.weighting or "", seed, worker.folder / "policies").policy_cost if learned else NO_COST
    return {f"policy_{name}": value for name, value in spent.items()}


def _forget(worker: Worker, student: str, name: str, seed: int, alone: int | None) -> None:
    """Delete a student when no unfinished run of the suite needs it; a later run would distil it again."""
    suite = worker.suite
    maker = _student_name(suite, student, name, seed, alone)
    finished = worker.ledger.finished()
    for index, task in enumerate(suite.tasks):
        for other in task.weightings:
            theirs = index if parse_arm(other).student == "single" else None
            if _student_name(suite, student, other, seed, theirs) != maker:
                continue
            if _run_key(suite, task, student, other, seed, maker) not in finished:
                return
    shutil.rmtree(worker.folder / MODELS_FOLDER / maker, ignore_errors=True)


MKD_DOES: Mapping[str, Callable[..., Any]] = {
    "mkd_teacher": _do_teacher,
    "mkd_task": _do_task,
    "mkd_student": _do_student,
    "mkd_run": _do_run,
}
"""Kind of unit to what does it."""
