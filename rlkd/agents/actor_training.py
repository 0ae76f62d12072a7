"""Train a policy that brings its own observation and its own meaning of an action: what published systems share."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rlkd.agents.protocols import ActingEnvironment
from rlkd.agents.reinforce import ActorPolicy
from rlkd.agents.run import PolicyRun
from rlkd.agents.sb3_env import MaskedRolloutBuffer, MiniBatchVecEnv, make_slots
from rlkd.data.task import Task
from rlkd.errors import ConfigError, WeightingError, nearest
from rlkd.logit_cache import embedding_size, refuse_gaps
from rlkd.models.students import StudentFactory
from rlkd.records import RunDirectory, commit
from rlkd.settings import PolicyTraining
from rlkd.types import Actor, LogitSource
from rlkd.weighting.fixed_teachers import TeacherBoundPolicy

ACTING_ENV_ID = "rlkd_envs:rlkd/TeacherActing-v0"

ActorT = TypeVar("ActorT", bound=TeacherBoundPolicy)
SettingsT = TypeVar("SettingsT")


def make_acting_env(
    task: Task,
    cache: LogitSource,
    actor: Actor,
    *,
    student: str | StudentFactory | None = None,
    reward: str,
    credit: str = "instance",
    pretraining_steps: int = 0,
    episode: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> ActingEnvironment:
    """Make the environment that an actor observes and acts in.

    Args:
        task: The task; its test rows are cut off before anything sees them.
        cache: The teachers' logits.
        actor: Gives observations and the meaning of actions.
        student: Name or path of the student, or a function of a seed; None: the smallest from scratch.
        reward: Name of the reward, see ``rlkd_envs.rewards``.
        credit: ``instance`` or ``batch``.
        pretraining_steps: Steps with equal weights at the start of an episode.
        episode: Settings of the students' runs: fields of ``rlkd.settings.EpisodeSettings``.
        device: Of the students.
    """
    refuse_gaps(cache, "a published system's policy")
    env = make_slots(
        ACTING_ENV_ID,
        episode,
        task=task,
        cache=cache,
        actor=actor,
        student=student,
        reward=reward,
        credit=credit,
        pretraining_steps=pretraining_steps,
        device=device,
    )
    return cast(ActingEnvironment, env)


def make_agent(
    algorithm: type[OnPolicyAlgorithm],
    actor: TeacherBoundPolicy,
    slots: MiniBatchVecEnv,
    *,
    seed: int,
    policy: Mapping[str, Any] | None = None,
    **settings: Any,
) -> OnPolicyAlgorithm:
    """Put an algorithm around an actor, which learns in place.

    Args:
        algorithm: Such as :class:`~rlkd.agents.reinforce.Reinforce`.
        actor: The module that is saved and deployed.
        slots: The environment.
        seed: Of the actions.
        policy: Arguments of :class:`~rlkd.agents.reinforce.ActorPolicy`.
        **settings: Of the algorithm.
    """
    return algorithm(
        ActorPolicy,
        slots,
        rollout_buffer_class=MaskedRolloutBuffer,
        policy_kwargs={"make_actor": lambda: actor, **(policy or {})},
        seed=seed,
        device="cpu",
        **settings,
    )


def train_actor(
    env: ActingEnvironment,
    actor: ActorT,
    algorithm: type[OnPolicyAlgorithm],
    *,
    command: str,
    student: str | StudentFactory | None,
    n_steps: int,
    episodes: int,
    seed: int,
    output_dir: str | Path | None,
    resume: bool,
    progress: bool,
    callback: BaseCallback | None = None,
    policy: Mapping[str, Any] | None = None,
    **settings: Any,
) -> ActorT:
    """Train an actor over whole episodes and keep the last one.

    Args:
        env: Of this actor, see :func:`make_acting_env`; closed at the end.
        actor: Learns in place; its ``training_record`` is kept in the run's config.
        algorithm: See :func:`make_agent`.
        command: Name of the run in its ``config.json``.
        student: That ``env`` was made with; its name is kept in the run's config.
        n_steps: Steps of the student between two updates; must divide the steps of an episode.
        episodes: Students, one after the other.
        seed: Of students, batches and actions.
        output_dir: For config, metrics, checkpoints and ``policy/``; None writes nothing.
        resume: Continue from the newest checkpoint that verifies; the settings must be the same.
        progress: Show a progress bar.
        callback: A further Stable-Baselines3 callback.
        policy: See :func:`make_agent`.
        **settings: See :func:`make_agent`.

    Returns:
        The trained actor, in eval mode.
    """
    timesteps = episodes * _steps_of_an_episode(env, n_steps, episodes) * env.num_envs
    training = PolicyTraining(total_timesteps=timesteps, seed=seed)
    directory = None
    if output_dir is not None:
        named = {"student": student if isinstance(student, str) else None, "episode": env.settings.record()}
        directory = RunDirectory(output_dir, {"command": command, **actor.training_record, **named})
    elif resume:
        raise ConfigError("resume needs an output_dir, got none; pass one")
    make = partial(make_agent, algorithm, actor, seed=seed, policy=policy, n_steps=n_steps, **settings)
    run = PolicyRun(env, actor, training, directory, make_agent=make, keep_best=False)
    if resume:
        run.resume()
    run.learn(progress=progress, callback=callback)
    env.close()
    trained = run.best.eval()
    if directory is not None:
        trained.save_pretrained(directory.path / "policy")
    return trained


def _steps_of_an_episode(env: ActingEnvironment, n_steps: int, episodes: int) -> int:
    """Steps that the actor acts in; refuses what cannot be divided into rollouts."""
    if episodes < 1:
        raise ConfigError(f"episodes must be 1 or more, got {episodes}; raise it")
    steps = env.settings.horizon - env.pretraining_steps
    if n_steps < 1 or steps % n_steps:
        raise ConfigError(
            f"n_steps must divide the {steps} steps of an episode after pre-training, got {n_steps}; choose another"
        )
    return steps


def training_record(system: str, task: Task, cache: LogitSource, settings: Any, **others: Any) -> dict[str, Any]:
    """What a policy remembers of its training, and its run records, as plain values."""
    return {
        "system": system,
        "task": task.name,
        "data": task.fingerprint,
        "teachers": list(cache.teacher_names),
        "settings": dataclasses.asdict(settings),
        "commit": commit(),
        **others,
    }


def observed_embedding_size(task: Task, cache: LogitSource, wanted: bool | None) -> int:
    """D if embeddings are to be observed, else 0.

    Raises:
        WeightingError: If they are wanted and there are none.
    """
    size = embedding_size(task, cache)
    if wanted and not size:
        raise WeightingError(
            f"embeddings were asked for, the cache of task {task.name!r} has none; build it with an embedder and "
            "keep_embeddings, or leave them out"
        )
    return 0 if wanted is False else size


def with_switches(cls: type[SettingsT], system: str, switches: dict[str, Any]) -> SettingsT:
    """Make settings from keywords; what is not named has its default.

    Args:
        cls: A dataclass.
        system: What an error calls it.
        switches: Fields by name.

    Raises:
        ConfigError: If a switch is unknown or out of range.
    """
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in switches:
        if name not in known:
            raise ConfigError(
                f"{system} has no switch {name!r}; {nearest(name, known)}expected one of {', '.join(sorted(known))}"
            )
    return cls(**switches)
