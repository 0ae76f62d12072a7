"""A policy's training that was found possible: what it is made of, and its run."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from rlkd.agents.protocols import WeightingEnvironment
from rlkd.agents.run import PolicyRun
from rlkd.agents.sb3_env import make_slots
from rlkd.agents.trials import EQUAL, Losses, TrialStudents, TrialWorker, beside, choose, most_students, of_every_task
from rlkd.data.several import one_each, several
from rlkd.data.task import Task
from rlkd.devices import one_thread
from rlkd.errors import ConfigError, PolicyError
from rlkd.features import ObservationConfig
from rlkd.models.students import StudentFactory, smallest_student
from rlkd.records import RunDirectory, commit, finished
from rlkd.settings import (
    CompareCommand,
    PolicyStudents,
    PolicyTraining,
    ResumableCommand,
    TrainPolicyCommand,
    common_rate,
    proxy_of,
)
from rlkd.types import LogitSource
from rlkd.weighting.base import Evidence, Weighting
from rlkd.weighting.learned import Policy, load_policy
from rlkd.weighting.router import train_router
from rlkd.weighting.router_targets import RouterSettings

ENV_ID = "rlkd_envs:rlkd/TeacherWeighting-v0"
LEAST_STEPS_BESIDE = 400
"""Of text students that another process is sure to take, before it is started unasked: that takes it five seconds."""
Candidate = Callable[..., Policy]
"""From a strength to a policy at this strength, see :data:`rlkd.agents.trials.AtStrength`; what else it is to remember
are keyword arguments."""
Students = str | StudentFactory | None
"""A student by its name or path, or as a function of a seed; None is the smallest from scratch."""


@dataclass(frozen=True, kw_only=True)
class PreparedTraining:
    """A policy's training that was found possible, before anything is written."""

    tasks: Sequence[Task]
    caches: Sequence[LogitSource]
    """One a task."""
    env: WeightingEnvironment
    make_env: Callable[[], WeightingEnvironment]
    """Makes another one like it."""
    named: bool
    """Whether the student has a name, so that another process can make it."""
    training: PolicyTraining
    observation: ObservationConfig
    settings: Mapping[str, Any]
    """Everything the result depends on, for the run directory."""

    def run(
        self,
        output_dir: str | Path | None = None,
        *,
        resume: bool = ResumableCommand.resume,
        jobs: int | None = CompareCommand.jobs,
        progress: bool = False,
        tensorboard: bool = TrainPolicyCommand.tensorboard,
        callback: BaseCallback | None = None,
    ) -> Policy:
        """Train; arguments and result are those of :func:`train_policy`."""
        wanted = self._beside(jobs)
        directory = (
            None if output_dir is None else RunDirectory(output_dir, {"command": "train-policy", **self.settings})
        )
        if directory is not None and resume and finished(directory.path / "policy") is not None:
            with suppress(PolicyError):  # damaged since: it is made again
                return load_policy(directory.path / "policy")
        with one_thread():
            run = PolicyRun(self.env, self._initial_policy(), self.training, directory, tensorboard=tensorboard)
            if resume:
                run.resume()
            worker = partial(TrialWorker, self.make_env, self.training.seed, self.training.refined_trials)
            with beside(worker, wanted=wanted) as pool:
                most = most_students(self.training.trials, self.training.strength_students, len(self.tasks))
                at_once = self._distil_at_once if self.env.trials_at_once else None
                students = TrialStudents(self._distil, pool, at_once=at_once, most=most, progress=progress)
                start, first = self._candidate(run.best, run.best_at), range(self._trials)
                if self.training.strength_students:
                    students.begin(EQUAL, start(0.0), first)
                students.begin(str(run.best_at), start(1.0), first)
                run.learn(progress=progress, callback=callback)
                kept = self._kept(run, start, students)
                students.close()
        self.env.close()
        if directory is not None:
            kept.save_pretrained(directory.path / "policy")
        return kept.eval()

    def _beside(self, jobs: int | None) -> bool:
        """Whether another process distils trial students."""
        if jobs is not None and jobs < 1:
            raise ConfigError(f"a policy's training needs jobs >= 1, got {jobs}; 1 does all in this process")
        if not self.named or (jobs is None and self.env.trials_at_once):
            return False
        if jobs is not None:
            return jobs > 1
        texts = all(task.table.vectors is None for task in self.tasks)  # vectors are done before a process starts
        return (
            (os.cpu_count() or 1) > 1 and texts and 2 * self._trials * self.env.settings.horizon >= LEAST_STEPS_BESIDE
        )

    @property
    def _trials(self) -> int:
        """Students by which policies are compared."""
        return of_every_task(self.training.trials, len(self.tasks))

    def _distil(self, weighting: Weighting, trial: int) -> Losses:
        return self.env.trial_losses(weighting, trial, refined=self.training.refined_trials).numpy()

    def _distil_at_once(self, weighting: Weighting, trials: Sequence[int]) -> list[Losses]:
        found = self.env.trial_losses_at_once(weighting, trials, refined=self.training.refined_trials)
        return [losses.numpy() for losses in found]

    def _candidate(self, network: Policy, at_step: int) -> Candidate:
        """A network as it is now, at any strength; it remembers at which timestep: 0 is what training started from."""
        weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}

        def at(strength: float, **figures: Any) -> Policy:
            record = {**network.training_record, "kept_at": at_step, **figures}
            policy = Policy.create(self.observation, training=record, seed=self.training.seed, strength=strength)
            policy.load_state_dict(weights)
            return policy

        return at

    def _kept(self, run: PolicyRun[Policy], start: Candidate, students: TrialStudents) -> Policy:
        """The better of what training started from and what it ended with."""
        step = run.agent.num_timesteps
        candidates = {str(run.best_at): start, str(step): self._candidate(run.policy, step)}
        training, tasks = self.training, len(self.tasks)
        choice = choose(students, candidates, training.trials, tasks, strength_students=training.strength_students)
        figures: dict[str, Mapping[str, Any]] = {
            "trial_losses": choice.trial_losses,
            "strength_losses": choice.strength_losses,
        }
        if choice.gain:
            figures["gain_over_equal"] = choice.gain
        return candidates[choice.name](choice.strength, **{name: dict(one) for name, one in figures.items()})

    def _initial_policy(self) -> Policy:
        training, observation = self.training, self.observation
        record: dict[str, Any] = {
            key: self.settings[key] for key in ("task", "reward", "training", "proxy") if key in self.settings
        }
        record |= {"teachers_seen": _told([len(one.teacher_names) for one in self.caches]), "commit": commit()}
        policy = Policy.create(observation, training=record, seed=training.seed)
        if training.warm_start:
            evidence = [
                Evidence.of(task, cache, training.seed) for task, cache in zip(self.tasks, self.caches, strict=True)
            ]
            router = train_router(evidence, RouterSettings(observation=observation, rows=training.warm_start_rows))
            policy.load_state_dict(router.state_dict())
        return policy


def prepare_training(
    task: Task | Sequence[Task],
    cache: LogitSource | Sequence[LogitSource],
    *,
    student: Students | Sequence[Students],
    proxy: str = PolicyStudents.proxy,
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
    tasks, caches = several(task), several(cache)
    students = one_each("student", student, len(tasks))
    stand_ins = [_stand_in(one, proxy, read) for one, read in zip(students, tasks, strict=True)]
    present = [one if stand_in is None else stand_in for one, stand_in in zip(students, stand_ins, strict=True)]
    if any(stand_ins):
        episode = {name: value for name, value in episode.items() if name not in ("num_layers", "bf16")}
        episode |= {"learning_rate": common_rate([name for name in present if not callable(name)])}
    make_env = partial(
        make_slots,
        ENV_ID,
        episode,
        task=task,
        cache=cache,
        student=present if any(stand_ins) else student,
        reward=reward,
        observation=observation,
        device=device,
    )
    _check_budget(training, env := make_env())
    settings = {
        **_data_record(tasks, caches, students),
        "reward": reward,
        "training": training.record(),
        "observation": observation.to_dict(),
        "episode": env.settings.record(),
        **({"proxy": _told(stand_ins)} if any(stand_ins) else {}),
    }
    return PreparedTraining(
        tasks=tasks,
        caches=caches,
        env=env,
        make_env=make_env,
        named=not any(map(callable, present)),
        training=training,
        observation=observation,
        settings=settings,
    )


def _data_record(tasks: Sequence[Task], caches: Sequence[LogitSource], students: Sequence[Students]) -> dict[str, Any]:
    return {
        "task": _told([one.name for one in tasks]),
        "data": _told([one.fingerprint for one in tasks]),
        "teachers": _told([list(one.teacher_names) for one in caches]),
        "student": _told([one if isinstance(one, str) else None for one in students]),
    }


def _check_budget(training: PolicyTraining, env: WeightingEnvironment) -> None:
    """Refuse rollouts that do not fit into episodes, and too few steps for an episode of each task."""
    horizon, tasks = env.settings.horizon, env.num_tasks
    if horizon % training.n_steps:
        raise ConfigError(
            f"n_steps must divide the horizon {horizon}, got {training.n_steps}; checkpoints are "
            "written where episodes and rollouts end together"
        )
    needed = tasks * horizon * env.num_envs
    if tasks > 1 and training.total_timesteps < needed:
        raise ConfigError(
            f"expected total_timesteps >= {needed}, an episode of each of {tasks} tasks, got "
            f"{training.total_timesteps}; raise it, or leave tasks out"
        )


def _stand_in(student: Students, proxy: str, task: Task) -> str | None:
    """Name of the student that stands in for another on a task, see :func:`rlkd.settings.proxy_of`."""
    found = proxy_of(student, proxy)
    if found is not None and proxy == PolicyStudents.proxy and task.table.holds != "text":
        return smallest_student(task)
    return found


def _told(values: list[Any]) -> Any:
    """One value a task, as they are recorded: of one task the value itself."""
    return values[0] if len(values) == 1 else values
