"""MKD in suites: teachers of all tasks and of each, students of all tasks and of each, refinement."""

from dataclasses import dataclass
from itertools import product

from rlkd.benchmark.policies import SMOKE_STEPS
from rlkd.benchmark.running import Run, Teachers
from rlkd.benchmark.suites import Suite
from rlkd.benchmark.workers import Unit
from rlkd.errors import ConfigError
from rlkd.records import digest
from rlkd.settings import StudentSettings
from rlkd.systems.mkd.entries import MkdTask
from rlkd.systems.mkd.making import student_settings, teacher_key, teaching_settings
from rlkd.systems.mkd.units import JointStudent, JointTeacher, ScoredStudent, TaskTeachers

_TEACHING = frozenset(
    {"kinds", "epochs", "learning_rate", "batch_size", "max_length", "seed", "num_layers", "bf16", "device"}
)


@dataclass(frozen=True, kw_only=True)
class MkdSystem(MkdTask):
    """One student of all tasks of a suite."""

    def check(self, suite: Suite) -> None:
        """Refuse tasks that differ in teachers, students, entries or seeds, and settings that would be ignored."""
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
            student_settings(self.budget, name, settings)
            if settings.max_steps not in (default.max_steps, SMOKE_STEPS):  # a smoke test sets the latter for policies
                raise ConfigError(f"max_steps of student {name!r} would be ignored; give epochs under mkd")
        teaching_settings(first)

    def units(self, suite: Suite, ordinary: list[Unit]) -> list[Unit]:
        """The teacher of all tasks, those of each and policies; then students, each with the runs that need it."""
        joint = Unit(f"teacher-{teacher_key(suite)}", JointTeacher(0))
        stages = [joint]
        for unit in ordinary:
            if isinstance(unit.work, Teachers):
                stages.append(Unit(unit.name, TaskTeachers(unit.work.index), unit.needs or (joint.name,)))
            elif not isinstance(unit.work, Run):
                stages.append(unit)
        everything = tuple(unit.name for unit in stages)
        units = {unit.name: unit for unit in stages}
        first = suite.tasks[0]
        for seed, student, (index, task) in product(first.seeds, first.students, enumerate(suite.tasks)):
            needs = tuple(unit.name for unit in stages if unit.work.index == index)
            for name in task.weightings:
                work = ScoredStudent(index, student, name, seed)
                maker = work.maker(suite)
                made = Unit(maker, JointStudent(index, student, name, seed), needs if work.alone else everything)
                units.setdefault(maker, made)
                run = f"run-{task.name}-{digest([student, name, seed])}"
                units[run] = Unit(run, work, (maker,))
        return list(units.values())
