"""Kinds of policy that a suite trains, once a task and policy seed, before students are distilled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rlkd import plugins
from rlkd.agents import train_policy
from rlkd.agents.settings import OBSERVATION, PolicySettings, policy_settings
from rlkd.benchmark.compared import fit_router_into
from rlkd.benchmark.jobs import Context
from rlkd.benchmark.reading import check_keys
from rlkd.choosing import choose
from rlkd.errors import ConfigError
from rlkd.features import ObservationConfig
from rlkd.settings import EpisodeSettings, StudentSettings
from rlkd.settings.knobs import names_of
from rlkd.weighting import load_policy
from rlkd.weighting.router_targets import RouterSettings

SMOKE_STEPS = 10
EPISODE_SHARED = ("batch_size", "learning_rate", "temperature", "kd_ratio", "max_length", "bf16", "divergence")
"""What the students of policy training have from the students that are reported, unless the suite says otherwise."""
RULES = 3
"""Of how routers and policies are made from their settings; another number asks for them anew. 2: a router's targets
are read from labels alone, and a policy's strength is full unless harm is sure. 3: routers are fitted on drawn sets of
teachers, in fewer steps, and only the start and the end of a policy's training are compared."""


@dataclass(frozen=True, kw_only=True)
class SuitePolicy:
    """A learned weighting that is trained once a task (and policy seed), before students are."""

    name: str
    kind: str
    """One of :func:`policy_kinds`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    elsewhere: tuple[str, ...] | None = None
    """Learn on other tasks of the suite, those of these names, or all of another family where it names none: of what
    the task is, nothing was seen. None: learn on the task itself."""
    others: tuple[str, ...] = ()
    """Names of these tasks, once the suite is whole."""
    others_key: str = ""
    """What they are made of."""


@dataclass(frozen=True)
class Ground:
    """What a policy is trained on."""

    tasks: Sequence[tuple[Context, StudentSettings]]
    """Each with the student that is reported there, whose settings those of policy training share."""
    policies: Mapping[str, Path]
    """Folders of the finished policies that it reads."""

    def single(self) -> tuple[Context, StudentSettings]:
        """The one task of a kind that learns on one."""
        ((context, student),) = self.tasks
        return context, student


class PolicyKind(Protocol):
    """How policies of a kind are trained."""

    weighting: str
    """Name of the weighting that reads what was trained."""
    made_by: tuple[int, ...]
    """Rules by which such a policy is made of its settings: part of its key."""
    on_device: bool
    """Whether it has a setting ``device``."""
    smoke: Mapping[str, Any]
    """Settings that are done in seconds."""

    def check(self, policy: SuitePolicy, student: StudentSettings) -> None:
        """Refuse settings that are unknown or out of range.

        Raises:
            ConfigError: Names the setting.
        """

    def reads(self, policy: SuitePolicy) -> tuple[str, ...]:
        """Names of the suite's policies that it is made of."""

    def train(self, policy: SuitePolicy, ground: Ground, seed: int, folder: Path) -> Path:
        """Train one, and say in which folder it lies.

        Args:
            policy: Its settings.
            ground: Tasks, teachers and students.
            seed: Of the training.
            folder: Of the policy, below which everything is written.
        """


def policy_kinds() -> tuple[str, ...]:
    """Names of all kinds of policy."""
    return (*_OWN, *plugins.registered("policies"))


def policy_kind(name: str) -> PolicyKind:
    """A kind by its name, one of :func:`policy_kinds`."""
    found: PolicyKind = _OWN[name] if name in _OWN else plugins.load("policies", name)
    return found


class OwnKind:
    """What kinds of ours share: they are made of no other policy of the suite."""

    def reads(self, policy: SuitePolicy) -> tuple[str, ...]:
        """None."""
        return ()


class LearnedPolicy(OwnKind):
    """``policy``: learned with rewards, see :func:`rlkd.agents.train_policy`."""

    weighting = "policy"
    made_by: tuple[int, ...] = (RULES,)
    on_device = True
    smoke: Mapping[str, Any] = {"total_timesteps": 1, "horizon": SMOKE_STEPS, "n_steps": SMOKE_STEPS}

    def check(self, policy: SuitePolicy, student: StudentSettings) -> None:
        """Refuse settings that are unknown or out of range."""
        self._settings(policy, student, 0)

    def train(self, policy: SuitePolicy, ground: Ground, seed: int, folder: Path) -> Path:
        """Train one, see :class:`PolicyKind`."""
        students = [student for _, student in ground.tasks]
        settings = self._settings(policy, students[0], seed)
        alone = len(students) == 1 or "student" in policy.settings
        train_policy(
            [context.task for context, _ in ground.tasks],
            [context.cache for context, _ in ground.tasks],
            student=settings.student if alone else [student.student for student in students],
            proxy=settings.proxy,
            reward=settings.reward,
            training=settings.training,
            observation=settings.observation,
            episode=dict(settings.episode),
            device=settings.device,
            output_dir=folder / "run",
            jobs=1,  # a suite has processes of its own
        )
        return folder / "run" / "policy"

    def episode(self, policy: SuitePolicy, student: StudentSettings) -> dict[str, Any]:
        """Settings of the students of its training."""
        return dict(self._settings(policy, student, 0).episode)

    def _settings(self, policy: SuitePolicy, student: StudentSettings, seed: int) -> PolicySettings:
        flat = {"device": student.device, **policy.settings, "seed": seed}
        return policy_settings(flat, episode=_episode_shared(policy, student), student=student.student)


class FittedRouter(OwnKind):
    """``router``: the policy's network, fitted with labels, see :func:`rlkd.weighting.router.train_router`."""

    weighting = "policy"
    made_by: tuple[int, ...] = (RULES,)
    on_device = False
    smoke: Mapping[str, Any] = {}
    OWN = ("lesson", "sets", "rows", "fit_strength")
    """Its settings beside those of the observation."""

    def check(self, policy: SuitePolicy, student: StudentSettings) -> None:
        """Refuse settings that are unknown."""
        self.router_settings(policy)

    def train(self, policy: SuitePolicy, ground: Ground, seed: int, folder: Path) -> Path:
        """Fit one, see :class:`PolicyKind`."""
        pairs = [(context.task, context.cache) for context, _ in ground.tasks]
        fit_router_into(folder / "router", pairs, seed, self.router_settings(policy))
        return folder / "router"

    def router_settings(self, policy: SuitePolicy) -> RouterSettings:
        """How it is fitted."""
        switches = {name: switch for name, switch in OBSERVATION.items() if name != "observe_student"}
        others = {name: policy.settings[name] for name in self.OWN if name in policy.settings}
        for name in policy.settings:
            if name not in {*switches, *self.OWN}:
                raise ConfigError(
                    f"a router's settings are {', '.join(switches)}, lesson (labels, gain or knows), sets, rows and "
                    f"fit_strength, got {name!r}; leave it out"
                )
        observed = {switches[name]: value for name, value in policy.settings.items() if name in switches}
        return RouterSettings(observation=ObservationConfig(**observed), **others)


class ChosenPolicy:
    """``auto``: chosen with the labels at hand among a prior and other policies of the suite, see :mod:`rlkd.choosing`.

    Settings: ``prior``, the name of a policy, and ``among``, names of others.
    """

    weighting = "policy"
    made_by: tuple[int, ...] = (RULES,)
    on_device = False
    smoke: Mapping[str, Any] = {"students": 2}

    def reads(self, policy: SuitePolicy) -> tuple[str, ...]:
        """The prior and the others."""
        named = (policy.settings.get("prior"), *policy.settings.get("among", ()))
        return tuple(name for name in named if name is not None)

    def check(self, policy: SuitePolicy, student: StudentSettings) -> None:
        """Refuse settings that are unknown or missing."""
        check_keys(policy.settings, {"prior", "among", "students"}, f"policy {policy.name!r}")
        if "prior" not in policy.settings:
            raise ConfigError(f"policy {policy.name!r} needs a prior, the name of a policy of the suite, got none")

    def train(self, policy: SuitePolicy, ground: Ground, seed: int, folder: Path) -> Path:
        """Choose one, see :class:`PolicyKind`."""
        context, student = ground.single()
        candidates = {name: load_policy(path) for name, path in ground.policies.items()}
        students = {name: value for name, value in policy.settings.items() if name == "students"}
        chosen = choose(context.task, context.cache, candidates, student, prior=policy.settings["prior"], **students)
        chosen.save_pretrained(folder / "chosen")
        return folder / "chosen"


_OWN: Mapping[str, PolicyKind] = {"policy": LearnedPolicy(), "router": FittedRouter(), "auto": ChosenPolicy()}


@dataclass(frozen=True, kw_only=True)
class SystemPolicy(OwnKind):
    """A kind whose settings are those of an episode's students and switches of a published system."""

    weighting: str
    training: Callable[..., Any]
    """Takes a task, a cache, ``student``, ``episode``, ``output_dir``, ``device``, ``seed`` and switches."""
    settings: Callable[..., Any]
    """Takes the switches, and refuses those that are wrong."""
    made_by: tuple[int, ...] = ()
    on_device: bool = True
    smoke: Mapping[str, Any] = field(
        default_factory=lambda: {"episodes": 1, "horizon": 40}  # they begin with 20 steps of equal weights
    )

    def check(self, policy: SuitePolicy, student: StudentSettings) -> None:
        """Refuse switches that are unknown or out of range."""
        self.settings(**self._switches(policy))

    def train(self, policy: SuitePolicy, ground: Ground, seed: int, folder: Path) -> Path:
        """Train one, see :class:`PolicyKind`."""
        context, student = ground.single()
        self.training(
            context.task,
            context.cache,
            student=policy.settings.get("student", student.student),
            episode=self.episode(policy, student),
            output_dir=folder / "run",
            device=policy.settings.get("device", student.device),
            seed=seed,
            **self._switches(policy),
        )
        return folder / "run" / "policy"

    def episode(self, policy: SuitePolicy, student: StudentSettings) -> dict[str, Any]:
        """Settings of the students of its training."""
        own = {name: value for name, value in policy.settings.items() if name in names_of(EpisodeSettings)}
        return _episode_shared(policy, student) | own

    def _switches(self, policy: SuitePolicy) -> dict[str, Any]:
        others = {"student", "device", *names_of(EpisodeSettings)}
        return {name: value for name, value in policy.settings.items() if name not in others}


def _episode_shared(policy: SuitePolicy, student: StudentSettings) -> dict[str, Any]:
    """Settings of the reported student that those of policy training share; its layers, if they are alike in kind."""
    shared = {name: getattr(student, name) for name in EPISODE_SHARED}
    alike = policy.settings.get("student", student.student) == student.student
    return {**shared, "num_layers": student.num_layers} if alike else shared
