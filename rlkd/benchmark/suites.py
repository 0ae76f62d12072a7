"""Suites: which tasks, teachers, students, policies, weightings and seeds are run, and by which system.

:mod:`rlkd.benchmark.suite_files` reads them from YAML.
"""

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from rlkd.benchmark.jobs import Context, Distiller
from rlkd.benchmark.paths import as_usual
from rlkd.benchmark.policies import SuitePolicy, policy_kind
from rlkd.benchmark.workers import Unit
from rlkd.data.planted import PlantedSettings
from rlkd.errors import ConfigError, unknown_name
from rlkd.records import digest
from rlkd.settings import StudentSettings
from rlkd.weighting import WeightingSpec

CONTROLS = ("shuffle", "mean")
METRICS = ("accuracy", "macro_f1", "matthews")


class System:
    """What a suite's tasks are run by; as it stands, what runs every ordinary task.

    The one seam between suites and published systems: a system derives a class from this one, overrides what it does
    otherwise, and registers it (``suites`` of :mod:`rlkd.plugins`) under the name that a suite gives as ``system``.
    There is one object a task, made of what the task says under that name.
    """

    brings_teachers: ClassVar[bool] = False
    """Whether tasks have the system's own teachers, and say nothing of others."""

    @classmethod
    def read(cls, content: Mapping[str, Any], task: Mapping[str, Any], where: str) -> Self:
        """Read what a task says of the system.

        Args:
            content: What stands under the system's name; empty where nothing does.
            task: Everything that the task says.
            where: Names the task in errors.

        Raises:
            ConfigError: A key is unknown or missing, a value out of range, or a key of the task would be ignored.
        """
        return cls()

    def weighting_in(self, name: str) -> str | None:
        """The weighting of :func:`rlkd.weighting.build_weighting` that an entry of ``weightings`` is made of.

        Args:
            name: The entry.

        Returns:
            The weighting, or the name of a policy of the suite; None for entries in which the system needs none.
        """
        return name

    def made_of(self) -> list[Any]:
        """What teachers and their cache are made of, beside what every task says; part of their key."""
        return []

    def smoke(self) -> Self:
        """A version that is done in seconds."""
        return self

    def on_device(self, device: str) -> Self:
        """With networks of its own on a device."""
        return self

    def check(self, suite: "Suite") -> None:
        """Refuse a suite that cannot run, as far as it can be told without data.

        Raises:
            ConfigError: Says what to change.
        """

    def units(self, suite: "Suite", ordinary: list[Unit]) -> list[Unit]:
        """The units of a suite, of those that an ordinary suite with the same tasks would have."""
        return ordinary

    def open(self, task: "SuiteTask", folder: Path) -> Context | None:
        """The task with the system's own teachers, which are made if they are not there; None: the ordinary ones.

        Args:
            task: The task.
            folder: Of its teachers.
        """
        return None

    def distiller(self, weighting: str) -> Distiller | None:
        """What distils the students of an entry of ``weightings``; None: one run of the trainer."""
        return None


ORDINARY = System()


class PolicyUse(NamedTuple):
    """A weighting that is made of a policy of the suite."""

    policy: str
    control: str
    """``shuffle`` or ``mean``; empty: the policy itself."""

    @classmethod
    def found(cls, weighting: str | None, policies: Container[str]) -> "PolicyUse | None":
        """Read a weighting's name; None where it is made of none of the policies."""
        if weighting is None or weighting in policies:
            return None if weighting is None else cls(weighting, "")
        name, _, control = weighting.rpartition("_")
        return cls(name, control) if name in policies and control in CONTROLS else None


@dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """Everything that is run on one task."""

    name: str
    source: Mapping[str, Any]
    """Arguments of :func:`rlkd.data.load_task`."""
    planted: PlantedSettings | None = None
    """Synthetic rows and teachers instead of a source."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """At most so many rows of each split."""
    teachers: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of :func:`rlkd.models.train_teachers`; or ``sets``, named, each with arguments of its own over those
    that all share; or ``paths`` of teachers that are there."""
    teacher_share: float | None = None
    """Share of the train rows that teachers learn from; students get the others. None: both get all."""
    embedder: str | None = None
    """Encoder for the affinity feature."""
    embeddings: bool = False
    """Keep its embeddings for the weightings that read them."""
    labels: int | None = None
    """Labels that policies and students may use outside the test split; None: all."""
    students: Mapping[str, StudentSettings]
    policies: Mapping[str, SuitePolicy]
    weightings: tuple[str, ...]
    labelled_only: frozenset[str] = frozenset()
    """Weightings whose students are distilled on the labelled train rows alone, because they need labels."""
    family: str = ""
    """Tasks of one family share data: what is learned elsewhere is learned on none of them. Empty: a family by its
    source."""
    metric: str = "accuracy"
    """The score that counts."""
    seeds: tuple[int, ...]
    policy_seeds: tuple[int, ...] = (0,)
    """Student seed number i is given the policy of seed number i modulo their count."""
    resample: int = 0
    """Seed of row limits, of the teachers' share and of the labels that are kept."""
    system: System = ORDINARY
    """What runs the task."""

    @property
    def teachers_key(self) -> str:
        """Names what the teachers and their cache are made of: tasks that agree in it share them."""
        planted = None if self.planted is None else asdict(self.planted)
        made_of: list[Any] = [dict(self.source), planted, dict(self.rows), dict(self.teachers), self.teacher_share]
        made_of += [self.embedder, self.embeddings, self.resample]
        made_of += self.system.made_of()
        name = re.sub(r"[^\w.-]+", "-", Path(str(self.source.get("source", "planted"))).name)
        return f"{name}-{digest(as_usual(made_of))}"

    @property
    def teachers_may_say_what_they_know(self) -> bool:
        """False where teachers are trained here and not all on classes, or all on domains, of their own."""
        if "paths" in self.teachers or not self.teachers:
            return True
        sets = [{**self.teachers, **own} for own in self.teachers.get("sets", {"": {}}).values()]
        kinds = {settings.get("specialize") for settings in sets}
        return len(kinds) == 1 and None not in kinds

    def policy_key(self, policy: str, seed: int) -> str:
        """Names what a trained policy is made of."""
        plan = self.policies[policy]
        if plan.others:  # whatever labels of this task are kept, and however it is distilled
            made_of = [plan.others_key, plan.kind, dict(plan.settings), seed, *policy_kind(plan.kind).made_by]
            return f"elsewhere-{policy}-{digest(made_of)}"
        student = next(iter(self.students.values())).record()
        made_of = [self.teachers_key, self.labels, plan.kind, dict(plan.settings), student, seed]
        made_of += policy_kind(plan.kind).made_by
        made_of += [self.policy_key(name, seed) for name in policy_kind(plan.kind).reads(plan)]
        return f"{self.name}-{policy}-{digest(as_usual(made_of))}"

    def needed_policies(self) -> list[str]:
        """Names of the policies that its weightings are made of, those that policies are made of before them."""
        found: dict[str, None] = {}

        def need(name: str) -> None:
            plan = self.policies[name]
            for other in policy_kind(plan.kind).reads(plan):
                need(other)
            found[name] = None

        for entry in self.weightings:
            use = self.policy_of(entry)
            if use is not None:
                need(use.policy)
        return list(found)

    def policy_seed(self, seed: int) -> int:
        """Seed of the policy that the student of a seed is given."""
        return self.policy_seeds[self.seeds.index(seed) % len(self.policy_seeds)]

    def policy_of(self, entry: str) -> PolicyUse | None:
        """The policy of the suite that an entry of ``weightings`` is made of; None for one that reads none."""
        return PolicyUse.found(self.system.weighting_in(entry), self.policies)

    def spec_of(self, entry: str) -> WeightingSpec | None:
        """The weighting of an entry that is made of no policy of the suite; None where the system needs none.

        Raises:
            UnknownNameError: There is no such weighting.
            WeightingError: A user's module has no such class.
        """
        weighting = self.system.weighting_in(entry)
        return None if weighting is None else WeightingSpec.parse(weighting)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A named list of tasks."""

    name: str
    description: str
    tasks: tuple[SuiteTask, ...]

    @property
    def system(self) -> System:
        """What runs the suite: that of its first task, all are of one kind."""
        return self.tasks[0].system

    @property
    def num_runs(self) -> int:
        """How many students it distils."""
        return sum(len(t.seeds) * len(t.students) * len(t.weightings) for t in self.tasks)


def check_weighting(task: SuiteTask, entry: str) -> None:
    """Refuse an entry of ``weightings`` whose weighting does not exist.

    Raises:
        UnknownNameError: Names the nearest.
        ConfigError: The entry is not written as the system wants it.
    """
    if task.policy_of(entry) is None:
        task.spec_of(entry)


def with_router(task: SuiteTask) -> SuiteTask:
    """The task with a policy ``router``, where a weighting asks for one that the suite does not describe."""
    asked = any(PolicyUse.found(task.system.weighting_in(entry), ("router",)) for entry in task.weightings)
    if "router" in task.policies or not asked:
        return task
    return replace(task, policies={**task.policies, "router": SuitePolicy(name="router", kind="router")})


def with_others(suite: Suite) -> Suite:
    """The suite, in which policies that learn elsewhere know the tasks that they learn on.

    Raises:
        ConfigError: There is no other task, or a policy reads one that does not exist.
    """
    return replace(suite, tasks=tuple(_with_others(task, suite.tasks) for task in suite.tasks))


def _with_others(task: SuiteTask, everybody: Sequence[SuiteTask]) -> SuiteTask:
    strangers = {one.name: one for one in everybody if family_of(one) != family_of(task) and one.labels is None}
    for name, plan in task.policies.items():
        for read in policy_kind(plan.kind).reads(plan):
            if read not in task.policies:
                raise unknown_name(f"policy that {name!r} of task {task.name!r} reads", read, task.policies)
    policies = {name: replace(plan, others=(), others_key="") for name, plan in task.policies.items()}
    for name in task.needed_policies():
        if policies[name].elsewhere is not None:
            policies[name] = _learning_on(policies[name], strangers, task.name)
    return replace(task, policies=policies)


def _learning_on(policy: SuitePolicy, strangers: Mapping[str, SuiteTask], task: str) -> SuitePolicy:
    """A policy that knows the tasks that it learns on: one of those that share their teachers."""
    if not strangers:
        raise ConfigError(f"policy {policy.name!r} learns on other tasks than {task!r}, got none; add some")
    by_teachers: dict[str, SuiteTask] = {}
    for name in policy.elsewhere or strangers:
        if name not in strangers:
            raise ConfigError(
                f"policy {policy.name!r} of task {task!r} learns on {name!r}, no task of another family that has all "
                f"labels; name some of {', '.join(strangers)}"
            )
        by_teachers.setdefault(strangers[name].teachers_key, strangers[name])
    students = [next(iter(one.students.values())).record() for one in by_teachers.values()]
    key = digest(as_usual([list(by_teachers), students]))
    return replace(policy, others=tuple(one.name for one in by_teachers.values()), others_key=key)


def family_of(task: SuiteTask) -> str:
    """Tasks of one family share data."""
    return task.family or str(task.source.get("source", "planted"))
