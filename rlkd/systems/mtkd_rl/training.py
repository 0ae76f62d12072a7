"""MTKD-RL: multi-teacher distillation with reinforcement learning, as released and with a gradient of a policy.

Source:
    Yang, Yu, Yang, An, Yu, Huang, Xu 2025, "Multi-Teacher Knowledge Distillation with Reinforcement Learning for
    Visual Recognition", arXiv:2502.18510, and its released code.
Deviation:
    See :class:`rlkd.systems.mtkd_rl.weighting.MtkdRlAgent`: logits only. The reward is ``rl_kd_2``, minus the student's
    cross entropies to label and mixture, at temperature 1 and after the step, where the code has tau = 4 and the
    forward pass of the step. The epoch with equal weights is ``pretraining_steps``, with 1 / K as in the paper, where
    the code has 1. ``policy_gradient`` is ours: Gaussian scores under the softmax (a logistic-normal policy), REINFORCE
    with a leave-one-out baseline.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd.agents.actor_training import (
    make_acting_env,
    observed_embedding_size,
    train_actor,
    training_record,
    with_switches,
)
from rlkd.agents.reinforce import Reinforce
from rlkd.data.splitting import check_seed
from rlkd.data.task import Task
from rlkd.errors import ConfigError, unknown_name
from rlkd.models.students import StudentFactory, seeded_weights
from rlkd.systems.mtkd_rl.released import Released
from rlkd.systems.mtkd_rl.weighting import MtkdRlAgent
from rlkd.types import LogitSource

OBJECTIVES = ("released", "policy_gradient")


@dataclass(frozen=True, kw_only=True)
class MtkdRlSettings:
    """How an MTKD-RL agent is trained."""

    agent_objective: str = "released"
    """``released``: what the code does, which contains no action and ends at uniform weights;
    ``policy_gradient``: what the paper says."""
    reward: str = "rl_kd_2"
    """Name of the reward, per instance, see ``rlkd_envs.rewards``."""
    learning_rate: float | None = None
    """Of the agent. None: 0.1 with SGD for ``released``, as in the code; 0.002 with Adam for ``policy_gradient``."""
    log_std: float = 0.0
    """Initial log standard deviation of the scores; for ``policy_gradient``."""
    pretraining_steps: int = 20
    """Steps of every student with equal weights before the first action. Range: >= 0, < horizon."""
    embeddings: bool | None = None
    """Observe the instance's embedding. None: if the cache or the task has one; the answer is recorded."""
    hidden_size: int = 128
    """Width of the agent's hidden layer. Range: >= 1."""
    n_steps: int = 10
    """Steps of the student between two trainings of the agent; must divide horizon - pretraining_steps."""
    episodes: int = 10
    """Students, one after the other. Range: >= 1."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if self.agent_objective not in OBJECTIVES:
            raise unknown_name("agent_objective", self.agent_objective, OBJECTIVES)
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be > 0, got {self.learning_rate}; leave it out for the default")
        if self.agent_objective == "released" and self.log_std != 0:
            raise ConfigError("log_std would be ignored: the released agent does not explore; leave it out")


def train_mtkd_rl(
    task: Task,
    cache: LogitSource,
    *,
    student: str | StudentFactory | None = None,
    episode: Mapping[str, Any] | None = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = False,
    callback: Any = None,
    seed: int = 0,
    **switches: Any,
) -> MtkdRlAgent:
    """Train an MTKD-RL agent on students that distil from the cached teachers.

    Args:
        task: The task; its test rows are cut off before anything sees them.
        cache: The teachers' logits.
        student: Name or path of the student, or a function of a seed; None: the smallest from scratch.
        episode: Settings of the students' runs: fields of ``rlkd.settings.EpisodeSettings``.
        output_dir: For config, metrics, checkpoints and ``policy/``; None writes nothing.
        resume: Continue from the newest checkpoint that verifies; the settings must be the same.
        device: Of the students; the agent stays on the CPU while it is trained.
        progress: Show a progress bar.
        callback: A further Stable-Baselines3 callback.
        seed: Of the agent's initialisation, students, batches and actions.
        **switches: Fields of :class:`MtkdRlSettings`.

    Returns:
        The agent after its last update, in eval mode; deployed as the weighting ``mtkd_rl:OUTPUT_DIR/policy``.
    """
    check_seed(seed)
    settings = mtkd_rl_settings(**switches)
    agent = make_mtkd_rl_agent(task, cache, settings, seed=seed)
    algorithm, algorithm_settings = agent_algorithm(settings)
    env = make_acting_env(
        task,
        cache,
        agent,
        student=student,
        reward=settings.reward,
        pretraining_steps=settings.pretraining_steps,
        episode=episode,
        device=device,
    )
    return train_actor(
        env,
        agent,
        algorithm,
        command="train-mtkd-rl",
        student=student,
        episodes=settings.episodes,
        seed=seed,
        output_dir=output_dir,
        resume=resume,
        progress=progress,
        callback=callback,
        **algorithm_settings,
    )


def mtkd_rl_settings(**switches: Any) -> MtkdRlSettings:
    """Settings with some switches set by hand.

    Raises:
        ConfigError: If a switch is unknown or out of range.
    """
    return with_switches(MtkdRlSettings, "MTKD-RL", switches)


def agent_algorithm(settings: MtkdRlSettings) -> tuple[Any, dict[str, Any]]:
    """The algorithm of an objective, and what it is given."""
    if settings.agent_objective == "released":
        rate = 0.1 if settings.learning_rate is None else settings.learning_rate
        chosen = {"learning_rate": rate, "policy": {"optimizer": "sgd", "deterministic": True}}
        return Released, chosen | {"n_steps": settings.n_steps}
    rate = 0.002 if settings.learning_rate is None else settings.learning_rate
    chosen = {"learning_rate": rate, "policy": {"log_std_init": settings.log_std}}
    return Reinforce, chosen | {"n_steps": settings.n_steps, "update": "reinforce", "baseline": "leave_one_out"}


def make_mtkd_rl_agent(task: Task, cache: LogitSource, settings: MtkdRlSettings, *, seed: int = 0) -> MtkdRlAgent:
    """An untrained agent, initialised from ``seed``."""
    size = observed_embedding_size(task, cache, settings.embeddings)
    with seeded_weights(seed):
        return MtkdRlAgent(
            teachers=list(cache.teacher_names),
            num_classes=task.num_classes,
            embedding_size=size,
            hidden_size=settings.hidden_size,
            training=training_record("mtkd_rl", task, cache, settings, seed=seed, embedding_size=size),
        )
