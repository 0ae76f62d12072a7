"""The documented face: one sub-environment per slot of the mini-batch, with its own observation, action and reward."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rlkd.data.planted import planted, planted_logits
from rlkd.data.several import check_pairs, one_each, several
from rlkd.data.task import Task
from rlkd.errors import ConfigError, PolicyError, TaskError
from rlkd.features import ObservationConfig, teacher_features
from rlkd.logit_cache import LogitCache
from rlkd.models.students import StudentFactory, smallest_student
from rlkd.settings import EpisodeSettings, PolicyStudents
from rlkd.types import LogitSource, State
from rlkd.weighting import Weighting
from rlkd.weighting.learned import action_weights

from .episode import DistillationEpisode
from .numbered import NumberedEpisodes
from .rewards import make_reward
from .setup import DistillationSetup
from .together import can_be_stacked, trial_losses_at_once

Array = NDArray[np.float32]
TRIALS = 1
"""Sets the seeds of trial students apart from those of episodes."""
TURNS = 2
"""Sets the order of tasks apart from both."""


class TeacherWeightingVectorEnv(NumberedEpisodes, VectorEnv[Array, Array, NDArray[Any]]):
    """Weight K teachers for every instance of a mini-batch while a student is distilled.

    ## Description
    A student is trained for ``horizon`` steps. At each step every slot of the mini-batch is a sub-environment: it
    shows its instance and teachers, takes an action, and gets the reward of its own instance. Only training and probe
    rows are in memory; the test split cannot be reached.

    With several tasks an episode is of one: each comes up once in as many episodes, in an order that is drawn from the
    seed. K is the largest number of teachers of a task, with its copies; in episodes of a task that has fewer, the last
    ones are absent: they show zeros, and what acts on them is cut off. Tasks need not share classes or inputs.

    ## Action Space
    ``Box(-1, 1, (K,))`` per sub-environment; weights are ``softmax(6 * action)`` over the present teachers.

    ## Observation Space
    ``Box(-1, 1, (K * F,))`` per sub-environment: the F features of teacher 0, then of teacher 1, and so on. By default:

    | Index | Feature | Min | Max |
    |-------|---------|-----|-----|
    | 0 | ``present``: 1 where the teacher is there; without it all are 0 | 0 | 1 |
    | 1 | ``max_probability``: of its prediction | 0 | 1 |
    | 2 | ``log_odds``: of that, as tanh(x / 8) | -1 | 1 |
    | 3 | ``margin``: largest less second largest probability | 0 | 1 |
    | 4 | ``entropy``: divided by log C | 0 | 1 |
    | 5 | ``logit_spread``: standard deviation s of its logits, as s / (s + 4) | 0 | 1 |
    | 6 | ``agreement``: overlap with the mean of the other teachers | 0 | 1 |
    | 7 | ``vote_share``: of the others with the same top class | 0 | 1 |
    | 8 | ``outlier_kl``: from it to the mean of the others, as x / (1 + x) | 0 | 1 |

    Further groups (student, affinity, reliability, label) follow where ``observation`` asks for them, see
    :mod:`rlkd.features`. A padded slot of a partial batch is all zeros.

    ## Rewards
    One number per instance, by name: ``logit_gain`` (default), ``student_gain``, ``influence``,
    ``refined_influence``, ``probe_gain``; see
    :mod:`rlkd_envs.rewards`. Padded slots get 0, and so do instances without a label where the reward reads labels:
    ``info["rewarded"]``, bool, is False for both, so that nothing is learned from a reward that is none.
    ``info["reward_over_equal"]`` is the reward less what equal weights would have earned at the same step; it is there
    for rewards that can tell: the first-order ones, ``logit_gain``, ``influence`` and ``refined_influence``.

    ## Starting State
    A fresh student, initialised from the episode's seed, before its first batch. ``reset(options={"episode": n})``
    starts the n-th episode of a seed, which makes interrupted training resume exactly.

    ## Episode End
    Terminated when the budget of ``horizon`` steps is spent; never truncated. Same-step autoreset: the observation
    returned with a termination is the first of the next episode, the last one is ``info["final_obs"]``.

    ## Arguments
    See :meth:`__init__`. Without a task, synthetic planted teachers are used.

    ## Version History
    * v0: observation version 1.
    """

    turns_key = (TURNS,)
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012 (Gymnasium's own shape)

    def __init__(
        self,
        num_envs: int | None = None,
        *,
        task: Task | Sequence[Task] | None = None,
        cache: LogitSource | Sequence[LogitSource] | None = None,
        student: str | StudentFactory | Sequence[str | StudentFactory | None] | None = None,
        reward: str = PolicyStudents.reward,
        credit: str = "instance",
        observation: ObservationConfig | None = None,
        settings: EpisodeSettings | None = None,
        device: str = "cpu",
        render_mode: str | None = None,
        **settings_kwargs: Any,
    ) -> None:
        """Build the environment.

        Args:
            num_envs: Slots of the mini-batch; the same as ``batch_size``, which it overrides.
            task: The task, or several; None together with ``cache``: synthetic planted teachers.
            cache: The teachers' logits, or those of each task in the same order.
            student: A student's name or path, or a function from a seed to a model, for all tasks or one for each in
                the same order. None: the smallest from scratch that reads the task.
            reward: Name of the reward.
            credit: ``instance``, or ``batch``: every instance gets the mean of its batch.
            observation: Feature groups; default label-free and without the student.
            settings: How the student is trained; None: made of ``settings_kwargs``.
            device: Of the student.
            render_mode: None; there is nothing to render.
            **settings_kwargs: Fields of :class:`~rlkd.settings.EpisodeSettings`.
        """
        if settings is not None and settings_kwargs:
            raise ConfigError(f"pass settings or its fields, got both; {', '.join(settings_kwargs)} would be ignored")
        settings = settings or EpisodeSettings(**settings_kwargs)
        if num_envs is not None:
            settings = replace(settings, batch_size=num_envs)
        tasks, caches = given_or_planted(task, cache)
        students = one_each("student", student, len(tasks))
        self.observation_config = observation or ObservationConfig()
        for number, source in enumerate(caches):
            _check_observed(self.observation_config, source, "" if len(tasks) == 1 else tasks[number].name)
        self._episodes = [
            DistillationEpisode(
                DistillationSetup(one, source, smallest_student(one) if who is None else who, settings, device),
                make_reward(reward, credit=credit),
            )
            for one, source, who in zip(tasks, caches, students, strict=True)
        ]
        self.episode = self._episodes[0]
        self.settings = settings
        self.num_envs, self.num_tasks = settings.batch_size, len(tasks)
        self.num_teachers = max(len(source.teacher_names) for source in caches) + settings.teacher_copies
        self.render_mode = render_mode
        width = self.num_teachers * self.observation_config.num_features
        self.single_observation_space = spaces.Box(-1.0, 1.0, (width,), np.float32)
        self.single_action_space = spaces.Box(-1.0, 1.0, (self.num_teachers,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode; a seed restarts the count of episodes, ``options={"episode": n}`` sets it."""
        self._go_to(seed, options)
        self._start_episode()
        return self._observe(), {}

    def _start_episode(self) -> None:
        sequence = np.random.SeedSequence([self._seed, self._episode_number])
        self.episode = self._episodes[self._task_of_episode(self._episode_number)]
        self.episode.start(int(sequence.generate_state(1)[0]))
        self._episode_number += 1

    @property
    def at_episode_start(self) -> bool:
        """Whether no action of the episode at hand was taken: the state can be rebuilt from its number."""
        return self.episode.step_index == 0

    def step(self, actions: Array) -> tuple[Array, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Weight the teachers of every slot, take the student's step, give each instance its reward."""
        acted = np.asarray(actions)[: len(self.episode.ids), : self.episode.num_places]
        weights = self._weights(torch.as_tensor(acted, dtype=torch.float32))
        rewards, loss = self.episode.step(weights)
        done = self.episode.done
        infos: dict[str, Any] = {
            "student_loss": np.full(self.num_envs, loss),
            "weights": self._padded(weights),
            "rewarded": self._padded(self.episode.rewarded).astype(bool),
        }
        if self.episode.over_equal is not None:
            infos["reward_over_equal"] = self._padded(self.episode.over_equal)
        observation = self._observe()
        if done:
            infos["final_obs"] = observation
            self._start_episode()
            observation = self._observe()
        flags = np.full(self.num_envs, done)
        return observation, self._padded(rewards), flags, np.zeros_like(flags), infos

    def _weights(self, actions: torch.Tensor) -> torch.Tensor:
        return action_weights(actions, self.episode.observed_state(student=False).present.cpu())

    def _observe(self) -> Array:
        state = self.episode.observed_state(student=self.observation_config.student)
        return self._padded(teacher_features(state, self.observation_config)).reshape(self.num_envs, -1)

    def _padded(self, values: torch.Tensor) -> Array:
        """Values (B', K', ...) of instances, or (B',), with zeros for padded slots and for teachers of other tasks."""
        shape = (self.num_envs, self.num_teachers)[: values.dim()]
        padded = np.zeros((*shape, *values.shape[2:]), dtype=np.float32)
        padded[tuple(slice(size) for size in values.shape)] = values.cpu().numpy()
        return padded

    def validation_states(self) -> list[State]:
        """The state of validation rows, one a task.

        Where a student is observed it is that of the episode; those of tasks that it is not of are new.
        """
        reads_student = self.observation_config.student
        for other in self._episodes:
            if reads_student and other is not self.episode:
                other.start(self.episode.seed)
        return [episode.validation_state(student=reads_student) for episode in self._episodes]

    def trial_losses(self, weighting: Weighting, trial: int, *, refined: bool = False) -> torch.Tensor:
        """Validation losses of a student that a weighting teaches, see :meth:`DistillationEpisode.trial_losses`.

        Args:
            weighting: Any.
            trial: Number n of the student, >= 0; it learns task n modulo their number. It is none that the agent meets
                in an episode, and the same one for all weightings of an environment's seed.
            refined: Refit the student's temperature first.
        """
        episode, reads_student = self._episodes[trial % self.num_tasks], self.observation_config.student
        return episode.trial_losses(weighting, self._trial_seed(trial), student=reads_student, refined=refined)

    def _trial_seed(self, trial: int) -> int:
        return int(np.random.SeedSequence([self._seed, trial], spawn_key=(TRIALS,)).generate_state(1)[0])

    @property
    def trials_at_once(self) -> bool:
        """Whether several trial students are trained faster at once: on an accelerator, those that can be stacked."""
        setups = [episode.setup for episode in self._episodes]
        return all(one.device.type != "cpu" and can_be_stacked(one) for one in setups)

    def trial_losses_at_once(
        self, weighting: Weighting, trials: Sequence[int], *, refined: bool = False
    ) -> list[torch.Tensor]:
        """Those of several trial students, trained together; arguments and results are those of :meth:`trial_losses`.

        They are the same students with the same batches, but for their draws of dropout and rounding.
        """
        found: dict[int, torch.Tensor] = {}
        for number, episode in enumerate(self._episodes):
            mine = [trial for trial in trials if trial % self.num_tasks == number]
            if mine:
                seeds = [self._trial_seed(trial) for trial in mine]
                reads_student = self.observation_config.student
                losses = trial_losses_at_once(episode.setup, weighting, seeds, student=reads_student, refined=refined)
                found |= zip(mine, losses, strict=True)
        return [found[trial] for trial in trials]


def given_or_planted(
    task: Task | Sequence[Task] | None, cache: LogitSource | Sequence[LogitSource] | None
) -> tuple[tuple[Task, ...], tuple[LogitSource, ...]]:
    """The tasks with their caches, or synthetic planted teachers where neither is given.

    Raises:
        TaskError: One is given without the other.
    """
    if (task is None) != (cache is None):
        raise TaskError("an environment needs task and cache together, got one of them; pass both, or neither")
    if task is not None and cache is not None:
        tasks, caches = several(task), several(cache)
        check_pairs([one.name for one in tasks], [" + ".join(one.teacher_names) for one in caches])
        if not tasks:
            raise TaskError("an environment needs a task or several, got an empty list; pass one, or None for planted")
        return tasks, caches
    task = planted()
    logits = planted_logits(task)
    return (task,), (LogitCache(list(logits.transpose(1, 0, 2)), [f"teacher-{k}" for k in range(logits.shape[1])]),)


def _check_observed(observation: ObservationConfig, cache: LogitSource, task: str) -> None:
    """Refuse an observation of what a cache does not have; the task is named where there are several."""
    place = f"the cache of task {task!r}" if task else "the cache"
    if observation.affinity and not cache.has_affinity:
        raise PolicyError(f"the observation reads 'affinity', {place} has none; build it with rlkd cache --embedder")
    if observation.reliability and cache.reliability is None:
        raise PolicyError(
            f"the observation reads 'reliability', {place} has none; open it with rlkd.load_cache for a task with "
            "labelled validation rows"
        )
    if observation.relative and not cache.has_sureness:
        raise PolicyError(
            f"the observation reads 'sureness', {place} has none; open it with rlkd.load_cache, which measures it"
        )
