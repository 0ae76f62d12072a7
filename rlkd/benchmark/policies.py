"""Kinds of policy that a suite trains, once a task and policy seed, before students are distilled."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rlkd import plugins
from rlkd.agents import train_policy
from rlkd.agents.settings import OBSERVATION, PolicySettings, policy_settings
from rlkd.benchmark.compared import fit_router_into
from rlkd.benchmark.jobs import Context
from rlkd.errors import ConfigError
from rlkd.features import ObservationConfig
from rlkd.settings import EpisodeSettings, StudentSettings
from rlkd.settings.knobs import names_of

SMOKE_STEPS = 10
EPISODE_SHARED = ("batch_size", "learning_rate", "temperature", "kd_ratio", "max_length", "bf16", "divergence")
"""What the students of policy training have from the students that are reported, unless the suite says otherwise."""
RULES = 2
"""Of how routers and policies are made from their settings; another number asks for them anew. 2: a router's targets
are read from labels alone, and a policy's strength is full unless harm is sure."""


@dataclass(frozen=True, kw_only=True)
class SuitePolicy:
    """A learned weighting that is trained once a task (and policy seed), before students are."""

    name: str
    kind: str
    """One of :func:`policy_kinds`."""
    settings: Mapping[str, Any] = field(default_factory=dict)


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

    def check(self, plan: SuitePolicy, student: StudentSettings) -> None:
        """Refuse settings that are unknown or out of range.

        Raises:
            ConfigError: Names the setting.
        """

    def train(self, plan: SuitePolicy, student: StudentSettings, seed: int, context: Context, folder: Path) -> Path:
        """Train one, and say in which folder it lies.

        Args:
            plan: Its settings.
            student: That is reported, whose settings those of policy training share.
            seed: Of the training.
            context: Task and teachers.
            folder: Of the policy, below which everything is written.
        """


def policy_kinds() -> tuple[str, ...]:
    """Names of all kinds of policy."""
    return (*_OWN, *plugins.registered("policies"))


def policy_kind(name: str) -> PolicyKind:
    """A kind by its name, one of :func:`policy_kinds`."""
    found: PolicyKind = _OWN[name] if name in _OWN else plugins.load("policies", name)
    return found


class LearnedPolicy:
    """``policy``: learned with rewards, see :func:`rlkd.agents.train_policy`."""

    weighting = "policy"
    made_by: tuple[int, ...] = (RULES,)
    on_device = True
    smoke: Mapping[str, Any] = {"total_timesteps": 1, "horizon": SMOKE_STEPS, "n_steps": SMOKE_STEPS}

    def check(self, plan: SuitePolicy, student: StudentSettings) -> None:
        """Refuse settings that are unknown or out of range."""
        self._settings(plan, student, 0)

    def train(self, plan: SuitePolicy, student: StudentSettings, seed: int, context: Context, folder: Path) -> Path:
        """Train one, see :class:`PolicyKind`."""
        settings = self._settings(plan, student, seed)
        train_policy(
            context.task,
            context.cache,
            student=settings.student,
            reward=settings.reward,
            training=settings.training,
            observation=settings.observation,
            episode=dict(settings.episode),
            device=settings.device,
            output_dir=folder / "run",
        )
        return folder / "run" / "policy"

    def episode(self, plan: SuitePolicy, student: StudentSettings) -> dict[str, Any]:
        """Settings of the students of its training."""
        return dict(self._settings(plan, student, 0).episode)

    def _settings(self, plan: SuitePolicy, student: StudentSettings, seed: int) -> PolicySettings:
        flat = {"device": student.device, **plan.settings, "seed": seed}
        return policy_settings(flat, episode=_episode_shared(plan, student), student=student.student)


class FittedRouter:
    """``router``: the policy's network, fitted with labels, see :func:`rlkd.weighting.router.train_router`."""

    weighting = "policy"
    made_by: tuple[int, ...] = (RULES,)
    on_device = False
    smoke: Mapping[str, Any] = {}

    def check(self, plan: SuitePolicy, student: StudentSettings) -> None:
        """Refuse settings that are unknown."""
        self._settings(plan)

    def train(self, plan: SuitePolicy, student: StudentSettings, seed: int, context: Context, folder: Path) -> Path:
        """Fit one, see :class:`PolicyKind`."""
        observation, knows = self._settings(plan)
        fit_router_into(folder / "router", context.task, context.cache, seed, observation, knows=knows)
        return folder / "router"

    def _settings(self, plan: SuitePolicy) -> tuple[ObservationConfig, bool]:
        """What a router observes, and whether it is told what the teachers know."""
        switches = {name: switch for name, switch in OBSERVATION.items() if name != "observe_student"}
        for name in plan.settings:
            if name not in {*switches, "knows"}:
                raise ConfigError(
                    f"a router's settings are {', '.join(switches)} and knows, got {name!r}; leave it out"
                )
        observed = {switches[name]: value for name, value in plan.settings.items() if name in switches}
        return ObservationConfig(**observed), bool(plan.settings.get("knows", False))


_OWN: Mapping[str, PolicyKind] = {"policy": LearnedPolicy(), "router": FittedRouter()}


@dataclass(frozen=True, kw_only=True)
class SystemPolicy:
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

    def check(self, plan: SuitePolicy, student: StudentSettings) -> None:
        """Refuse switches that are unknown or out of range."""
        self.settings(**self._switches(plan))

    def train(self, plan: SuitePolicy, student: StudentSettings, seed: int, context: Context, folder: Path) -> Path:
        """Train one, see :class:`PolicyKind`."""
        self.training(
            context.task,
            context.cache,
            student=plan.settings.get("student", student.student),
            episode=self.episode(plan, student),
            output_dir=folder / "run",
            device=plan.settings.get("device", student.device),
            seed=seed,
            **self._switches(plan),
        )
        return folder / "run" / "policy"

    def episode(self, plan: SuitePolicy, student: StudentSettings) -> dict[str, Any]:
        """Settings of the students of its training."""
        own = {name: value for name, value in plan.settings.items() if name in names_of(EpisodeSettings)}
        return _episode_shared(plan, student) | own

    def _switches(self, plan: SuitePolicy) -> dict[str, Any]:
        others = {"student", "device", *names_of(EpisodeSettings)}
        return {name: value for name, value in plan.settings.items() if name not in others}


def _episode_shared(plan: SuitePolicy, student: StudentSettings) -> dict[str, Any]:
    """Settings of the reported student that those of policy training share; its layers, if they are alike in kind."""
    shared = {name: getattr(student, name) for name in EPISODE_SHARED}
    alike = plan.settings.get("student", student.student) == student.student
    return {**shared, "num_layers": student.num_layers} if alike else shared
