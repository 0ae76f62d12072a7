"""A policy's training out of flat names and values, as command lines and suites give them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any

from rlkd.agents.prepared import ENV_ID
from rlkd.errors import ConfigError, nearest
from rlkd.features import ObservationConfig
from rlkd.settings import FROM_NOTHING, EpisodeSettings, PolicyStudents, PolicyTraining
from rlkd.settings.knobs import names_of

OF_SUITES = {"warm_start": False, **FROM_NOTHING}
"""What a policy of a suite has of its agent unless the suite says otherwise, a warm start or not: as in every suite so
far. Its episodes have no copies of teachers."""
OBSERVATION: Mapping[str, str] = {switch.metadata["flag"]: switch.name for switch in fields(ObservationConfig)}
"""Flat name to switch of an :class:`ObservationConfig`."""


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """All arguments of :func:`rlkd.agents.train_policy` that are settings."""

    student: str
    proxy: str = PolicyStudents.proxy
    reward: str = PolicyStudents.reward
    device: str = "cpu"
    training: PolicyTraining = field(default_factory=PolicyTraining)
    observation: ObservationConfig = field(default_factory=ObservationConfig)
    episode: Mapping[str, Any] = field(default_factory=dict)


def check_reward(name: str) -> None:
    """Refuse a reward that the registered environment does not know, before any long work.

    Raises:
        UnknownNameError: Names the nearest.
    """
    package, _, _ = ENV_ID.partition(":")
    import_module(f"{package}.rewards").make_reward(str(name))


def policy_settings(flat: Mapping[str, Any], *, episode: Mapping[str, Any], student: str) -> PolicySettings:
    """Sort flat settings of a suite into those of the agent, the observation, and the episode's students.

    Args:
        flat: Names of :class:`PolicyTraining`, of the episode, ``observe_*``, ``student``, ``proxy``, ``reward`` and
            ``device``.
        episode: Settings of the episode that ``flat`` may override.
        student: That ``flat`` may override.

    Raises:
        ConfigError: A name is unknown; names the nearest.
        UnknownNameError: The reward is unknown.
    """
    agent, steps = names_of(PolicyTraining), names_of(EpisodeSettings)
    known = agent | steps | set(OBSERVATION) | {"student", "proxy", "reward", "device"}
    for name in flat:
        if name not in known:
            raise ConfigError(
                f"unknown policy setting {name!r}; {nearest(name, known)}known are: {', '.join(sorted(known))}"
            )
    if "reward" in flat:
        check_reward(flat["reward"])
    single = {name: flat[name] for name in ("proxy", "reward", "device") if name in flat}
    return PolicySettings(
        student=flat.get("student", student),
        training=PolicyTraining(**(OF_SUITES | {name: value for name, value in flat.items() if name in agent})),
        observation=ObservationConfig(**{OBSERVATION[n]: value for n, value in flat.items() if n in OBSERVATION}),
        episode={"teacher_copies": 0, **episode, **{name: value for name, value in flat.items() if name in steps}},
        **single,
    )
