"""Train a weighting policy: task and teachers in, policy out."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from rlkd.agents.protocols import WeightingEnvironment
from rlkd.agents.run import PolicyRun, mean_loss
from rlkd.agents.sb3_env import make_slots
from rlkd.data.several import one_each, several
from rlkd.data.task import Task
from rlkd.devices import found_device
from rlkd.errors import ConfigError, PolicyError
from rlkd.features import ObservationConfig
from rlkd.models.students import StudentFactory
from rlkd.records import RunDirectory, commit, finished
from rlkd.settings import PolicyStudents, PolicyTraining, ResumableCommand, TrainPolicyCommand, common_rate
from rlkd.types import LogitSource
from rlkd.weighting.base import Evidence
from rlkd.weighting.learned import Policy, load_policy
from rlkd.weighting.router import RouterPlan, train_router

ENV_ID = "rlkd_envs:rlkd/TeacherWeighting-v0"


Students = str | StudentFactory | None
"""A student by its name or path, or as a function of a seed; None is the smallest from scratch."""


def train_policy(
    task: Task | Sequence[Task],
    cache: LogitSource | Sequence[LogitSource],
    *,
    student: Students | Sequence[Students] = None,
    reward: str = PolicyStudents.reward,
    training: PolicyTraining | None = None,
    observation: ObservationConfig | None = None,
    episode: dict[str, Any] | None = None,
    output_dir: str | Path | None = None,
    resume: bool = ResumableCommand.resume,
    device: str = PolicyStudents.device,
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
        reward: Name of the reward, see :mod:`rlkd_envs.rewards`.
        training: Settings of the agent; None: made of ``training_kwargs``.
        observation: Feature groups; default label-free, without the student.
        episode: Settings of the students' runs: fields of ``rlkd.settings.EpisodeSettings``;
            ``teacher_copies`` is 2 unless it is given, ``learning_rate`` that of the kind of student.
        output_dir: For config, metrics (the learning curve), checkpoints, TensorBoard and ``policy/``; None writes
            nothing.
        resume: Continue from the newest checkpoint that verifies; the settings must be the same.
        device: Of the students, ``auto`` for an accelerator where there is one; the agent stays on the CPU.
        progress: Show a progress bar.
        tensorboard: Write TensorBoard logs to ``output_dir``.
        callback: A further Stable-Baselines3 callback.
        **training_kwargs: Fields of :class:`rlkd.settings.PolicyTraining`, when ``training`` is None.

    Returns:
        The policy whose trial students lost least on validation, in eval mode; weakened where others surely learn less
        from it than from equal weights; with several tasks, on the mean over them. Its ``training_record`` says at
        which timestep it was kept (``kept_at``), and what students lost at each strength that was tried
        (``strength_losses``; 0 is equal weights).
    """
    if training is not None and training_kwargs:
        raise ConfigError("pass training= or its fields, got both; the fields would be ignored")
    if output_dir is None and (resume or tensorboard):
        raise ConfigError("resume and tensorboard need an output_dir, got none; pass one")
    prepared = prepare_training(
        task,
        cache,
        student=student,
        reward=reward,
        training=training or PolicyTraining(**training_kwargs),
        observation=observation or ObservationConfig(),
        episode={"teacher_copies": PolicyStudents.teacher_copies, **own_rate(student, episode), **(episode or {})},
        device=found_device(device),
    )
    return prepared.run(output_dir, resume=resume, progress=progress, tensorboard=tensorboard, callback=callback)


def own_rate(student: Students | Sequence[Students], episode: Mapping[str, Any] | None) -> dict[str, float]:
    """The learning rate of students of whom no other is said; of one that a function makes nothing is known."""
    named = [one for one in several(student) if not callable(one)]
    return {} if "learning_rate" in (episode or {}) or not named else {"learning_rate": common_rate(named)}


@dataclass(frozen=True, kw_only=True)
class PreparedTraining:
    """A policy's training that was found possible, before anything is written."""

    tasks: Sequence[Task]
    caches: Sequence[LogitSource]
    """One a task."""
    env: WeightingEnvironment
    training: PolicyTraining
    observation: ObservationConfig
    settings: Mapping[str, Any]
    """Everything the result depends on, for the run directory."""

    def run(
        self,
        output_dir: str | Path | None = None,
        *,
        resume: bool = ResumableCommand.resume,
        progress: bool = False,
        tensorboard: bool = TrainPolicyCommand.tensorboard,
        callback: BaseCallback | None = None,
    ) -> Policy:
        """Train; arguments and result are those of :func:`train_policy`."""
        directory = (
            None if output_dir is None else RunDirectory(output_dir, {"command": "train-policy", **self.settings})
        )
        if directory is not None and resume and finished(directory.path / "policy") is not None:
            with suppress(PolicyError):  # damaged since: it is made again
                return load_policy(directory.path / "policy")
        run = PolicyRun(self.env, self._initial_policy(), self.training, directory, tensorboard=tensorboard)
        if resume:
            run.resume()
        run.learn(progress=progress, callback=callback)
        kept = self._kept(run, progress=progress)
        self.env.close()
        if directory is not None:
            kept.save_pretrained(directory.path / "policy")
        return kept.eval()

    def _kept(self, run: PolicyRun[Policy], *, progress: bool) -> Policy:
        """The policy that was best, which remembers when that was: at 0 it is what training started from."""

        def at(strength: float, **figures: Any) -> Policy:
            record = {**run.best.training_record, "kept_at": run.best_at, **figures}
            policy = Policy.create(self.observation, training=record, seed=self.training.seed, strength=strength)
            policy.load_state_dict(run.best.state_dict())
            return policy

        strength, losses = run.strength(at, progress=progress)
        students, tasks = min(map(len, losses.values())), len(self.tasks)  # the same ones of each strength
        means = {
            str(tried): round(mean_loss(losses[tried][:students], tasks), 6) for tried in sorted(losses, reverse=True)
        }
        return at(strength, strength_losses=means)

    def _initial_policy(self) -> Policy:
        training, observation = self.training, self.observation
        record: dict[str, Any] = {key: self.settings[key] for key in ("task", "reward", "training")}
        record |= {"teachers_seen": _told([len(one.teacher_names) for one in self.caches]), "commit": commit()}
        policy = Policy.create(observation, training=record, seed=training.seed)
        if training.warm_start:
            evidence = [
                Evidence.of(task, cache, training.seed) for task, cache in zip(self.tasks, self.caches, strict=True)
            ]
            router = train_router(evidence, RouterPlan(observation=observation, rows=training.warm_start_rows))
            policy.load_state_dict(router.state_dict())
        return policy


def prepare_training(
    task: Task | Sequence[Task],
    cache: LogitSource | Sequence[LogitSource],
    *,
    student: Students | Sequence[Students],
    reward: str,
    training: PolicyTraining,
    observation: ObservationConfig,
    episode: Mapping[str, Any],
    device: str,
) -> PreparedTraining:
    """Make the environment and check that settings fit together; arguments are those of :func:`train_policy`.

    Raises:
        ConfigError: A setting is out of range or does not fit another.
        PolicyError: The observation reads what the cache does not have, or a warm start what a router does not see.
    """
    if training.warm_start and observation.student:
        raise PolicyError(
            "a warm start clones a router, which has a portable observation: it sees no student; switch one of the two "
            "off"
        )
    env = make_slots(
        ENV_ID,
        episode,
        task=task,
        cache=cache,
        student=student,
        reward=reward,
        observation=observation,
        device=device,
    )
    if env.settings.horizon % training.n_steps:
        raise ConfigError(
            f"n_steps must divide the horizon {env.settings.horizon}, got {training.n_steps}; checkpoints are "
            "written where episodes and rollouts end together"
        )
    tasks, caches = several(task), several(cache)
    needed = len(tasks) * env.settings.horizon * env.num_envs
    if len(tasks) > 1 and training.total_timesteps < needed:
        raise ConfigError(
            f"expected total_timesteps >= {needed}, an episode of each of {len(tasks)} tasks, got "
            f"{training.total_timesteps}; raise it, or leave tasks out"
        )
    students = one_each("student", student, len(tasks))
    settings = {
        "task": _told([one.name for one in tasks]),
        "data": _told([one.fingerprint for one in tasks]),
        "teachers": _told([list(one.teacher_names) for one in caches]),
        "student": _told([one if isinstance(one, str) else None for one in students]),
        "reward": reward,
        "training": asdict(training),
        "observation": observation.to_dict(),
        "episode": env.settings.record(),
    }
    return PreparedTraining(
        tasks=tasks, caches=caches, env=env, training=training, observation=observation, settings=settings
    )


def _told(values: list[Any]) -> Any:
    """One value a task, as they are recorded: of one task the value itself."""
    return values[0] if len(values) == 1 else values
