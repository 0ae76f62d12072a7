"""Train a weighting policy: task and teachers in, policy out."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from rlkd.agents.protocols import WeightingEnvironment
from rlkd.agents.run import PolicyRun
from rlkd.agents.sb3_env import make_slots
from rlkd.data.task import Task
from rlkd.devices import found_device
from rlkd.errors import ConfigError, PolicyError
from rlkd.features import ObservationConfig
from rlkd.models.students import StudentFactory
from rlkd.records import RunDirectory, commit, finished
from rlkd.settings import PolicyStudents, PolicyTraining, ResumableCommand, TrainPolicyCommand, student_rate
from rlkd.types import LogitSource
from rlkd.weighting.base import Evidence
from rlkd.weighting.learned import Policy, load_policy
from rlkd.weighting.router import RouterPlan, train_router

ENV_ID = "rlkd_envs:rlkd/TeacherWeighting-v0"


def train_policy(
    task: Task,
    cache: LogitSource,
    *,
    student: str | StudentFactory | None = None,
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
        task: The task; its test rows are cut off before anything sees them.
        cache: The teachers' logits.
        student: Name or path of the student, or a function of a seed; None: the smallest from scratch.
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
        from it than from equal weights. Its ``training_record`` says at which timestep it was kept (``kept_at``), and
        what students lost at each strength that was tried (``strength_losses``; 0 is equal weights).
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
        episode={"teacher_copies": PolicyStudents.teacher_copies, **_own_rate(student), **(episode or {})},
        device=found_device(device),
    )
    return prepared.run(output_dir, resume=resume, progress=progress, tensorboard=tensorboard, callback=callback)


def _own_rate(student: str | StudentFactory | None) -> dict[str, float]:
    """The learning rate of a student that has a name; of one that a function makes nothing is known."""
    return {"learning_rate": student_rate(student)} if isinstance(student, str) else {}


@dataclass(frozen=True, kw_only=True)
class PreparedTraining:
    """A policy's training that was found possible, before anything is written."""

    task: Task
    cache: LogitSource
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
        students = min(map(len, losses.values()))  # the same ones of each
        means = {str(tried): round(float(losses[tried][:students].mean()), 6) for tried in sorted(losses, reverse=True)}
        return at(strength, strength_losses=means)

    def _initial_policy(self) -> Policy:
        training, observation = self.training, self.observation
        record: dict[str, Any] = {key: self.settings[key] for key in ("task", "reward", "training")}
        record |= {"teachers_seen": len(self.cache.teacher_names), "commit": commit()}
        policy = Policy.create(observation, training=record, seed=training.seed)
        if training.warm_start:
            evidence = Evidence.of(self.task, self.cache, training.seed)
            router = train_router(evidence, RouterPlan(observation=observation), max_rows=training.warm_start_rows)
            policy.load_state_dict(router.state_dict())
        return policy


def prepare_training(
    task: Task,
    cache: LogitSource,
    *,
    student: str | StudentFactory | None,
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
    settings = {
        "task": task.name,
        "data": task.fingerprint,
        "teachers": list(cache.teacher_names),
        "student": student if isinstance(student, str) else None,
        "reward": reward,
        "training": asdict(training),
        "observation": observation.to_dict(),
        "episode": env.settings.record(),
    }
    return PreparedTraining(
        task=task, cache=cache, env=env, training=training, observation=observation, settings=settings
    )
