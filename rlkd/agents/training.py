"""Train a weighting policy: task and teachers in, policy out."""

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium
from stable_baselines3.common.callbacks import BaseCallback

from rlkd.agents.run import PolicyRun, PolicyTraining
from rlkd.data.task import Task
from rlkd.errors import ConfigError
from rlkd.features import ObservationConfig
from rlkd.records import RunDirectory, commit
from rlkd.types import LogitSource
from rlkd.weighting.base import Evidence
from rlkd.weighting.learned import Policy, train_router
from rlkd.weighting.teacher_sets import TeacherSets

DEFAULT_SLOTS = 64
ENV_ID = "rlkd_envs:rlkd/TeacherWeighting-v0"


def train_policy(
    task: Task,
    cache: LogitSource,
    *,
    student: Any = None,
    reward: str = "logit_gain",
    training: PolicyTraining | None = None,
    observation: ObservationConfig | None = None,
    episode: dict[str, Any] | None = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = False,
    tensorboard: bool = False,
    callback: BaseCallback | None = None,
    **training_kwargs: Any,
) -> Policy:
    """Train a weighting policy on students that distil from the cached teachers.

    Args:
        task: The task; its test rows are cut off before anything sees them.
        cache: The teachers' logits.
        student: Name or path of the student, or a function of a seed; None: the smallest from scratch.
        reward: Name of the reward, see :mod:`rlkd_envs.rewards`.
        training: Settings of the agent; None: made of ``training_kwargs``.
        observation: Feature groups; default label-free, without the student.
        episode: Settings of the students' runs: fields of ``rlkd_envs.episode.EpisodeSettings``.
        output_dir: For config, metrics (the learning curve), checkpoints, TensorBoard and ``policy/``; None writes
            nothing.
        resume: Continue from the newest checkpoint that verifies; the settings must be the same.
        device: Of the students; the agent stays on the CPU.
        progress: Show a progress bar.
        tensorboard: Write TensorBoard logs to ``output_dir``.
        callback: A further Stable-Baselines3 callback.
        **training_kwargs: Fields of :class:`PolicyTraining`, when ``training`` is None.

    Returns:
        The policy that was best on validation, in eval mode.
    """
    if training is not None and training_kwargs:
        raise ConfigError("pass training= or its fields, got both; the fields would be ignored")
    training = training or PolicyTraining(**training_kwargs)
    observation = observation or ObservationConfig()
    if output_dir is None and (resume or tensorboard):
        raise ConfigError("resume and tensorboard need an output_dir, got none; pass one")
    env = _make_env(task, cache, student, reward, observation, device, episode or {})
    if env.episode.settings.horizon % training.n_steps:
        raise ConfigError(
            f"n_steps must divide the horizon {env.episode.settings.horizon}, got {training.n_steps}; checkpoints are "
            "written where episodes and rollouts end together"
        )
    settings = {
        "task": task.name,
        "data": task.fingerprint,
        "teachers": list(cache.teacher_names),
        "student": student if isinstance(student, str) else None,
        "reward": reward,
        "training": dataclasses.asdict(training),
        "observation": observation.to_dict(),
        "episode": dataclasses.asdict(env.episode.settings),
    }
    directory = None if output_dir is None else RunDirectory(output_dir, {"command": "train-policy", **settings})
    record: dict[str, Any] = {key: settings[key] for key in ("task", "reward", "training")}
    record |= {"teachers_seen": len(cache.teacher_names), "commit": commit()}
    policy = _initial_policy(task, cache, observation, training, record, env.episode.settings.teacher_sets)
    run = PolicyRun(env, policy, training, directory, tensorboard=tensorboard)
    if resume:
        run.resume()
    run.learn(progress=progress, callback=callback)
    env.close()
    if directory is not None:
        run.best.save_pretrained(directory.path / "policy")
    return run.best.eval()


def _make_env(
    task: Task,
    cache: LogitSource,
    student: Any,
    reward: str,
    observation: ObservationConfig,
    device: str,
    episode: dict[str, Any],
) -> Any:
    slots = {"num_envs": episode["batch_size"]} if "batch_size" in episode else {"num_envs": DEFAULT_SLOTS}
    others = {key: value for key, value in episode.items() if key != "batch_size"}
    return gymnasium.make_vec(
        ENV_ID,
        **slots,
        vectorization_mode="vector_entry_point",
        task=task,
        cache=cache,
        student=student,
        reward=reward,
        observation=observation,
        device=device,
        **others,
    ).unwrapped


def _initial_policy(
    task: Task,
    cache: LogitSource,
    observation: ObservationConfig,
    training: PolicyTraining,
    record: dict[str, Any],
    sets: TeacherSets,
) -> Policy:
    policy = Policy.create(observation, training=record, seed=training.seed)
    if training.warm_start:
        view = task.training_view()
        evidence = Evidence(task=view, source=cache.head(len(view.table)), seed=training.seed)
        router = train_router(evidence, observation, max_rows=training.warm_start_rows, sets=sets)
        policy.load_state_dict(router.state_dict())
    return policy
