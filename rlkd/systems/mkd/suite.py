"""MKD in suites: teachers of all tasks and of each, students of all tasks and of each, refinement.

A run is scored task by task, so its records are those of any other suite: one line for a task, a student, an arm (where
others have a weighting) and a seed.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from rlkd.benchmark.jobs import Context, recorded
from rlkd.benchmark.measuring import answers, student_scores
from rlkd.benchmark.places import portable
from rlkd.benchmark.policies import SMOKE_STEPS
from rlkd.benchmark.reading import built
from rlkd.benchmark.running import Run, SuiteWorker, Teachers
from rlkd.benchmark.stages import arm_of, make_teachers, plan_data
from rlkd.benchmark.suites import Suite, System, TaskPlan
from rlkd.benchmark.workers import LOCKS_FOLDER, Busy, Unit, claim
from rlkd.cost import NO_COST, cost_in, metered, share_of
from rlkd.data.collection import TaskCollection
from rlkd.data.task import Task
from rlkd.errors import ConfigError
from rlkd.metrics import told_if_diverged
from rlkd.models import load_teachers
from rlkd.records import digest, folder_of
from rlkd.settings import Phase, StudentSettings
from rlkd.systems.mkd.arms import LABELS, TEACHERS, MkdArm, MkdBudget, parse_arm
from rlkd.systems.mkd.training import refinement_phase
from rlkd.trainer.multi_task_training import Lessons, teacher_phase, train_model

MODELS_FOLDER = "models"
"""Students between their training and the last run that needs them."""
_TEACHING = frozenset(
    {"kinds", "epochs", "learning_rate", "batch_size", "max_length", "seed", "num_layers", "bf16", "device"}
)


@dataclass(frozen=True, kw_only=True)
class MkdSystem(System):
    """One student of all tasks of a suite; entries of ``weightings`` are arms, see :mod:`rlkd.systems.mkd.arms`."""

    budget: MkdBudget

    @classmethod
    def read(cls, content: Mapping[str, Any], task: Mapping[str, Any], where: str) -> Self:
        """Read the budgets."""
        return cls(budget=built(MkdBudget, dict(content), f"{where}, mkd"))

    def weighting_in(self, name: str) -> str | None:
        """The weighting of an arm's two teachers; None where labels alone teach."""
        return parse_arm(name).weighting

    def smoke(self) -> Self:
        """Budgets that show that everything runs."""
        return replace(self, budget=self.budget.smoke())

    def check(self, suite: Suite) -> None:
        """Refuse tasks that differ in teachers, students, arms or seeds, and settings that would be ignored."""
        first = suite.tasks[0]
        for task in suite.tasks:
            for what in ("teachers", "students", "weightings", "seeds", "policy_seeds", "teacher_share", "system"):
                if getattr(task, what) != getattr(first, what):
                    raise ConfigError(f"tasks of MKD share their {what}, {task.name!r} has others; set them at the top")
            if task.planted is not None or task.labelled_only:
                raise ConfigError(f"MKD runs on texts with all their rows, {task.name!r} is planted or labelled_only")
            for key in task.teachers:
                if key not in _TEACHING or len(task.teachers["kinds"]) > 1:
                    raise ConfigError(f"teachers of MKD are one kind and how it is trained, got {key!r}; leave it out")
        default = StudentSettings()
        for name, settings in first.students.items():
            self.budget.epochs_of(name)
            _phase(self.budget, name, settings)
            if settings.max_steps not in (default.max_steps, SMOKE_STEPS):  # a smoke test sets the latter for policies
                raise ConfigError(f"max_steps of student {name!r} would be ignored; give epochs under mkd")
        _teaching(first)

    def units(self, suite: Suite, ordinary: list[Unit]) -> list[Unit]:
        """The teacher of all tasks, those of each and policies; then students, each with the runs that need it."""
        joint = Unit(f"teacher-{_teacher_key(suite)}", JointTeacher(0))
        stages = [joint]
        for unit in ordinary:
            if isinstance(unit.work, Teachers):
                stages.append(Unit(unit.name, TaskTeachers(unit.work.index), unit.needs or (joint.name,)))
            elif not isinstance(unit.work, Run):
                stages.append(unit)
        everything = tuple(unit.name for unit in stages)
        units = {unit.name: unit for unit in stages}
        for seed in suite.tasks[0].seeds:
            for student in suite.tasks[0].students:
                for index, task in enumerate(suite.tasks):
                    needs = tuple(unit.name for unit in stages if unit.work.index == index)
                    for name in task.weightings:
                        work = ScoredStudent(index, student, name, seed)
                        maker = work.maker(suite)
                        made = Unit(
                            maker, JointStudent(index, student, name, seed), needs if work.alone else everything
                        )
                        units.setdefault(maker, made)
                        run = f"run-{task.name}-{digest([student, name, seed])}"
                        units[run] = Unit(run, work, (maker,))
        return list(units.values())


def _budget(suite: Suite) -> MkdBudget:
    assert isinstance(suite.system, MkdSystem)
    return suite.system.budget


def _teacher_key(suite: Suite) -> str:
    return digest([[task.teachers_key, task.name] for task in suite.tasks])


def _student_name(suite: Suite, student: str, arm: str, seed: int, alone: int | None) -> str:
    """Names a student by what it is made of; arms that differ in refinement alone share it."""
    tasks = suite.tasks if alone is None else [suite.tasks[alone]]
    parsed, settings = parse_arm(arm), suite.tasks[0].students[student]
    made_of = [settings.record(), _budget(suite).epochs_of(student), seed, parsed.teacher, _teacher_key(suite)]
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


def _phase(budget: MkdBudget, name: str, settings: StudentSettings) -> Phase:
    return Phase(
        epochs=budget.epochs_of(name),
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        max_length=settings.max_length,
        kd_ratio=settings.kd_ratio,
        divergence=settings.divergence,
        temperature=settings.temperature,
        bf16=settings.bf16,
        device=settings.device,
    )


def _train_teacher(plan: TaskPlan, collection: TaskCollection, folder: Path) -> Path:
    train_model(
        folder,
        plan.teachers["kinds"][0],
        Lessons(collection=collection),
        _teaching(plan),
        num_layers=plan.teachers.get("num_layers"),
        seed=plan.teachers.get("seed", 0),
    )
    return folder


def _multi_folder(worker: SuiteWorker) -> Path:
    return worker.folder / "teachers" / f"multi-{_teacher_key(worker.suite)}"


def _lessons(worker: SuiteWorker, arm: MkdArm, seed: int, alone: int | None) -> Lessons:
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
    return replace(lessons, weighting={name: spec for name, spec in specs.items() if spec is not None})


def _train_student(worker: SuiteWorker, student: str, name: str, seed: int, alone: int | None) -> tuple[Path, Any]:
    """Distil a student, of all tasks or of one, unless it is there."""
    suite, arm = worker.suite, parse_arm(name)
    settings = suite.tasks[0].students[student]
    phase = _phase(_budget(suite), student, settings)
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


# -- the units -------------------------------------------------------------------------------------


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
                _train_teacher(task, collection, _multi_folder(worker))
            return {**cost.record(), "tasks": list(collection.names)}

        return worker.stage(name, task, {"kind": "teacher", "weighting": "multi-task teacher", "seed": 0}, make)


@dataclass(frozen=True)
class TaskTeachers(Teachers):
    """The teacher of one task alone, and the teacher of all, asked about every instance."""

    def make(self, worker: SuiteWorker, task: TaskPlan, folder: Path) -> dict[str, Any]:
        """See :class:`rlkd.benchmark.running.Teachers`."""

        def train(plan: TaskPlan, taught: Task, place: Path) -> dict[str, Path]:
            single = _train_teacher(plan, TaskCollection((taught,)), place / "single")
            return {"single": single, "multi": _multi_folder(worker)}

        return make_teachers(task, folder, train=train)


@dataclass(frozen=True)
class JointStudent(Run):
    """A student of an arm, of all tasks or of one; runs refine and score it."""

    def do(self, worker: SuiteWorker, name: str) -> Any:
        """See :class:`rlkd.benchmark.running.Work`."""
        head = {"kind": "student", "student": self.student, "weighting": self.weighting, "seed": self.seed}

        def make() -> dict[str, Any]:
            _, done = _train_student(worker, self.student, self.weighting, self.seed, _alone(self))
            return {**cost_in(done), "mean_weights": done["weights"]}

        return worker.stage(name, worker.suite.tasks[self.index], head, make)


@dataclass(frozen=True)
class ScoredStudent(Run):
    """A student of an arm, refined on one task if the arm says so, and scored there."""

    @property
    def alone(self) -> bool:
        """Whether the student is of one task."""
        return parse_arm(self.weighting).student == "single"

    def maker(self, suite: Suite) -> str:
        """Name of the unit that makes the student."""
        return _student_name(suite, self.student, self.weighting, self.seed, _alone(self))

    def key(self, suite: Suite) -> str:
        """Of the record: equal keys are equal runs."""
        budget = _budget(suite)
        refined = [budget.refine_epochs, budget.refine_kd_ratio] if parse_arm(self.weighting).refined else None
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
    return work.index if parse_arm(work.weighting).student == "single" else None


def _settings(suite: Suite, task: TaskPlan, student: str) -> dict[str, Any]:
    """What all arms of a student share: passes stand for steps, of which a joint student takes more."""
    given = task.students[student].record() | {"epochs": _budget(suite).epochs_of(student)}
    given |= {"refine_epochs": _budget(suite).refine_epochs, "refine_kd_ratio": _budget(suite).refine_kd_ratio}
    return {key: value for key, value in given.items() if key != "max_steps"}


def _scored(worker: SuiteWorker, run: ScoredStudent) -> dict[str, Any]:
    """Refine the student, if the arm says so, and score it."""
    suite, arm, alone = worker.suite, parse_arm(run.weighting), _alone(run)
    index, student, name, seed = run.index, run.student, run.weighting, run.seed
    folder, done = _train_student(worker, student, name, seed, alone)
    plan, lessons = suite.tasks[index], _lessons(worker, arm, seed, index)
    task, cache = worker.held["contexts"][index].task, worker.held["contexts"][index].cache
    path = folder
    settings = plan.students[student]
    if arm.refined:
        path = folder.with_name(f"{folder.name}-{plan.name}")
        phase = refinement_phase(
            _phase(_budget(suite), student, settings),
            epochs=_budget(suite).refine_epochs,
            kd_ratio=0.0 if arm.teacher == LABELS else _budget(suite).refine_kd_ratio,
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
        "cost_before": spent,
        "student_seconds": spent["seconds"],
        "teacher_passes": asked * len(task.splits["train"]),
        **_policy_cost(worker, plan, arm, seed, found is not None),
        "mean_weights": None if arm.teacher == LABELS else done["weights"][plan.name],
        "data": task.fingerprint,
        "logits": cache.identity,
        "rows": {split: len(ids) for split, ids in task.splits.items()},
        **answers(logits, labels, plan.metric),
    }


def _policy_cost(worker: SuiteWorker, plan: TaskPlan, arm: MkdArm, seed: int, learned: bool) -> dict[str, Any]:
    spent = arm_of(plan, arm.weighting or "", seed, worker.folder / "policies").policy_cost if learned else NO_COST
    return {f"policy_{name}": value for name, value in spent.items()}


def _forget(worker: SuiteWorker, maker: str) -> None:
    """Delete a student when no unfinished run of the suite needs it; a later run would distil it again."""
    suite, finished = worker.suite, worker.ledger.finished()
    for unit in suite.system.units(suite, []):
        if isinstance(unit.work, ScoredStudent) and maker in unit.needs and unit.work.key(suite) not in finished:
            return
    shutil.rmtree(worker.folder / MODELS_FOLDER / maker, ignore_errors=True)
