"""Train a weighting policy: task and teachers in, policy out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from rlkd.agents.prepared import Students, prepare_training
from rlkd.data.several import several
from rlkd.data.task import Task
from rlkd.devices import found_device
from rlkd.errors import ConfigError
from rlkd.features import ObservationConfig
from rlkd.settings import (
    CompareCommand,
    PolicyStudents,
    PolicyTraining,
    ResumableCommand,
    TrainPolicyCommand,
    common_rate,
)
from rlkd.types import LogitSource
from rlkd.weighting.learned import Policy


def train_policy(
    task: Task | Sequence[Task],
    cache: LogitSource | Sequence[LogitSource],
    *,
    student: Students | Sequence[Students] = None,
    proxy: str = PolicyStudents.proxy,
    reward: str = PolicyStudents.reward,
    training: PolicyTraining | None = None,
    observation: ObservationConfig | None = None,
    episode: dict[str, Any] | None = None,
    output_dir: str | Path | None = None,
    resume: bool = ResumableCommand.resume,
    device: str = PolicyStudents.device,
    jobs: int | None = CompareCommand.jobs,
    progress: bool = False,
    tensorboard: bool = TrainPolicyCommand.tensorboard,
    callback: BaseCallback | None = None,
    **training_kwargs: Any,
) -> Policy:
    """Train a weighting policy on students that distil from the cached teachers.

    Args:
        task: The task, or several, of which every episode draws one; test rows are cut off before anything sees them.
        cache: The teachers' logits, or those of each task in the same order. Numbers of teachers and classes may
            differ.
        student: Name or path of the student, or a function of a seed, for all tasks or one for each; None: the smallest
            from scratch that reads the task.
        proxy: Name of a student that stands in for those: ``auto`` for one from scratch in place of each pretrained
            one, which costs a tenth or less, ``itself`` for none.
        reward: Name of the reward, see :mod:`rlkd_envs.rewards`.
        training: Settings of the agent; None: made of ``training_kwargs``.
        observation: Feature groups; default label-free, without the student.
        episode: Settings of the students' runs: fields of ``rlkd.settings.EpisodeSettings``;
            ``teacher_copies`` is 2 unless it is given, ``learning_rate`` that of the kind of student.
        output_dir: For config, metrics (the learning curve), checkpoints, TensorBoard and ``policy/``; None writes
            nothing.
        resume: Continue from the newest checkpoint that verifies; the settings must be the same.
        device: Of the students, ``auto`` for an accelerator where there is one; the agent stays on the CPU.
        jobs: Processes, 2 at most: another one distils trial students meanwhile, where the student has a name. Each has
            one thread, so the policy does not depend on it. None: 2 where that saves time. A script that asks for more
            than 1 needs its ``if __name__ == "__main__":``.
        progress: Show a progress bar.
        tensorboard: Write TensorBoard logs to ``output_dir``.
        callback: A further Stable-Baselines3 callback.
        **training_kwargs: Fields of :class:`rlkd.settings.PolicyTraining`, when ``training`` is None.

    Returns:
        What training started from or what it ended with, in eval mode: that whose trial students lost less on
        validation; weakened where they surely learn less from it than from equal weights; with several tasks, on the
        mean over them. Its ``training_record`` says at which timestep it was kept (``kept_at``), what students of both
        lost (``trial_losses``, by timestep), and what they lost at each strength that was tried (``strength_losses``; 0
        is equal weights).
    """
    if training is not None and training_kwargs:
        raise ConfigError("pass training= or its fields, got both; the fields would be ignored")
    if output_dir is None and (resume or tensorboard):
        raise ConfigError("resume and tensorboard need an output_dir, got none; pass one")
    prepared = prepare_training(
        task,
        cache,
        student=student,
        proxy=proxy,
        reward=reward,
        training=training or PolicyTraining(**training_kwargs),
        observation=observation or ObservationConfig(),
        episode={"teacher_copies": PolicyStudents.teacher_copies, **own_rate(student, episode), **(episode or {})},
        device=found_device(device),
    )
    return prepared.run(
        output_dir, resume=resume, jobs=jobs, progress=progress, tensorboard=tensorboard, callback=callback
    )


def own_rate(student: Students | Sequence[Students], episode: Mapping[str, Any] | None) -> dict[str, float]:
    """The learning rate of students of whom no other is said; of one that a function makes nothing is known."""
    named = [one for one in several(student) if not callable(one)]
    return {} if "learning_rate" in (episode or {}) or not named else {"learning_rate": common_rate(named)}
