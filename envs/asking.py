"""Ask teachers that cost: the documented face with a sub-environment a place, and the plain one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rlkd.asking.observation import NUM_SHARED, NUM_TEACHER
from rlkd.asking.walk import Finished, Walk
from rlkd.data.task import UNLABELLED, Task
from rlkd.errors import ConfigError, TaskError
from rlkd.settings import AskingEpisode
from rlkd.types import LogitSource

from .asking_scene import AskingGround, AskingScene, draw_scene
from .numbered import NumberedEpisodes
from .vector import given_or_planted

Array = NDArray[np.float32]
Actions = NDArray[np.int64]

LEAST_PROBABILITY = 0.1
"""Of a label, over the number of classes: one hopeless answer must not decide."""
LARGEST_GAIN = 3.0
"""In nats: gains are divided by it, and lie in [-1, 1]."""
DRAWS = 3
"""Sets the draws of episodes apart from those of other environments."""
FEW = 4
"""Places of the plain face, which has one space for all of them."""


class TeacherAskingVectorEnv(NumberedEpisodes, VectorEnv[Array, Actions, NDArray[Any]]):
    """Ask teachers about instances, within a budget.

    ## Description
    An episode walks over the rows of a task, several at once: every place is a sub-environment that holds one instance.
    A place asks a teacher about it, whose answer it sees at the next step, or stops and goes on to the next instance.
    What was answered is known to all places from then on. Everything was answered beforehand, so asking is counted and
    costs nothing. Tasks, rows, teachers and their order, prices, the budget and which labels are shown are drawn for
    every episode. Only training and validation rows are in memory; the test split cannot be reached.

    ## Action Space
    ``Discrete(K + 1)`` per sub-environment: 0 stops (before anything was asked: skips), k + 1 asks teacher k. Which
    actions mean something is in ``info["action_mask"]`` and :meth:`action_masks`: a teacher that was asked, or that
    costs more than is left of the budget, cannot be. An action that means nothing stops. Where several places ask at
    once and the budget does not suffice, the first are answered; the others see that nothing has changed.

    ## Observation Space
    ``Box(-1, 1, (K * F + S,))`` per sub-environment: the features of teacher 0, then of teacher 1, and so on, then what
    is shared, see :mod:`rlkd.asking.observation`. K is the largest number of teachers of a task; absent ones show
    zeros, and so does a place for which no instance is left.

    ## Rewards
    Of an instance, when its place stops: what its answers do for a student, less their price. That is
    ``log(q / p) / 3``, clipped to [-1, 1], where q is the probability of its label in what is taught (the mixture of
    the answers under the policy that is shipped) and p the one that a linear student gave it before, both at least 1 /
    (10 C); less ``price_weight`` times the price of the answers in units of what the budget holds for an instance. An
    instance that nobody was asked about is worth exactly 0, and so is an answer about a row whose label is shown, which
    teaches that label. At the end all places get ``final_weight`` times how much less than at the beginning the student
    loses on validation rows, at its best temperature, of what it would lose less if everybody had been asked.

    ## Starting State
    The first instances, of which those with a label come first; nothing was asked. ``reset(options={"episode": n})``
    starts the n-th episode of a seed.

    ## Episode End
    Terminated when every instance had its turn, or when no teacher can be paid any more: instances at hand are taught
    as they are. Never truncated. Same-step autoreset: the last observation is ``info["final_obs"]``.

    ## Arguments
    See :meth:`__init__`.

    ## Version History
    * v0: observation version 1.
    """

    turns_key = (DRAWS, 1)
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012 (Gymnasium's own shape)

    def __init__(
        self,
        num_envs: int | None = None,
        *,
        task: Task | Sequence[Task] | None = None,
        cache: LogitSource | Sequence[LogitSource] | None = None,
        vectors: Sequence[NDArray[np.float32]] | None = None,
        settings: AskingEpisode | None = None,
        render_mode: str | None = None,
        **settings_kwargs: Any,
    ) -> None:
        """Build the environment.

        Args:
            num_envs: Instances at hand at once; the same as ``places``, which it overrides.
            task: The task, or several, of which every episode draws one; None together with ``cache``: synthetic
                planted teachers.
            cache: The teachers' logits, or those of each task in the same order.
            vectors: Of the rows of each task, see :class:`~rlkd.asking.pool.Pool`; None: made of the tasks.
            settings: What is drawn; None: made of ``settings_kwargs``.
            render_mode: None; there is nothing to render.
            **settings_kwargs: Fields of :class:`~rlkd.settings.AskingEpisode`.
        """
        if settings is not None and settings_kwargs:
            raise ConfigError(f"pass settings or its fields, got both; {', '.join(settings_kwargs)} would be ignored")
        settings = settings or AskingEpisode(**settings_kwargs)
        self.settings = settings if num_envs is None else replace(settings, places=num_envs)
        tasks, caches = given_or_planted(task, cache)
        given = [None] * len(tasks) if vectors is None else list(vectors)
        if len(given) != len(tasks):
            raise TaskError(f"expected vectors of each of {len(tasks)} tasks, got {len(given)}; pass all, or none")
        self.grounds = [AskingGround(*one) for one in zip(tasks, caches, given, strict=True)]
        self.num_envs, self.num_tasks = self.settings.places, len(tasks)
        self.num_teachers = max(len(one.names) for one in self.grounds)
        self.render_mode = render_mode
        width = self.num_teachers * NUM_TEACHER + NUM_SHARED
        self.single_observation_space = spaces.Box(-1.0, 1.0, (width,), np.float32)
        self.single_action_space = spaces.Discrete(self.num_teachers + 1)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._start_episode()
        self._episode_number = 0

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode; a seed restarts the count of episodes, ``options={"episode": n}`` sets it."""
        self._go_to(seed, options)
        self._start_episode()
        return self._observe(), {"action_mask": self.action_masks()}

    def _start_episode(self) -> None:
        sequence = np.random.SeedSequence([self._seed, self._episode_number], spawn_key=(DRAWS,))
        random = np.random.default_rng(sequence)
        ground = self.grounds[self._task_of_episode(self._episode_number)]
        self.scene: AskingScene = draw_scene(ground, self.settings, random)
        self.walk = Walk(self.scene.pool, self.scene.bank, self.scene.order, self.num_envs)
        self._episode_number += 1

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions mean something, bool, shape (B, K + 1); those of absent teachers never do."""
        mask = self.walk.mask()
        padded = np.zeros((self.num_envs, self.num_teachers + 1), dtype=bool)
        padded[:, : mask.shape[1]] = mask
        return padded

    def step(
        self, actions: Actions
    ) -> tuple[Array, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Ask, or go on; each instance whose turn has ended gets its reward."""
        teachers = len(self.scene.bank.teacher_names)
        acted = np.asarray(actions, dtype=np.int64)
        finished = self.walk.act(np.where(acted <= teachers, acted, 0))
        rewards = np.zeros(self.num_envs)
        rewards[finished.places] = self._rewards(finished)
        done = self.walk.done
        infos: dict[str, Any] = {"spent": np.full(self.num_envs, self.walk.bank.spent)}
        if done:
            recovered = self.scene.recovered(self.walk.student)
            rewards += self.settings.final_weight * recovered
            infos["recovered"] = np.full(self.num_envs, recovered)
            infos["final_obs"] = self._observe()
            self._start_episode()
        infos["action_mask"] = self.action_masks()
        flags = np.full(self.num_envs, done)
        return self._observe(), rewards, flags, np.zeros_like(flags), infos

    def _rewards(self, ended: Finished) -> NDArray[np.float64]:
        """Of instances whose turn has ended, shape (n,)."""
        labels, rows = self.scene.truth[ended.ids], np.arange(len(ended.ids))
        least = LEAST_PROBABILITY / self.scene.pool.classes
        taught, said = (p[rows, labels].clip(least) for p in (ended.targets, ended.student))
        helped = ended.answered.any(1) & (self.scene.pool.labels[ended.ids] == UNLABELLED)
        gain = np.where(helped, (np.log(taught / said) / LARGEST_GAIN).clip(-1, 1), 0.0)
        price = (ended.asked * self.scene.bank.prices).sum(1)
        return np.asarray(gain - self.settings.price_weight * price / self.scene.budget_of_row)

    def _observe(self) -> Array:
        teachers, shared = self.walk.observe()
        padded = np.zeros((self.num_envs, self.num_teachers, NUM_TEACHER), dtype=np.float32)
        padded[:, : teachers.shape[1]] = teachers
        return np.concatenate([padded.reshape(self.num_envs, -1), shared], axis=1)


class TeacherAskingEnv(gymnasium.Env[Array, Actions]):
    """Ask teachers about all instances at hand at once.

    ## Description
    The same episode as :class:`TeacherAskingVectorEnv`, seen as one environment: for libraries that know no vector
    environments. Train on the vector face (``gymnasium.make_vec``) where you can.

    ## Action Space
    ``MultiDiscrete([K + 1] * B)``: the actions of all places.

    ## Observation Space
    ``Box(-1, 1, (B * (K * F + S),))``: the observations of all places, one after the other.

    ## Rewards
    The mean reward of all places.

    ## Starting State
    That of the vector face.

    ## Episode End
    That of the vector face.

    ## Arguments
    Those of the vector face; ``places`` is 4 unless given.

    ## Version History
    * v0: observation version 1.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own shape)

    def __init__(self, render_mode: str | None = None, places: int = FEW, **kwargs: Any) -> None:
        """Build the environment; see the vector face for the arguments."""
        self._vector = TeacherAskingVectorEnv(num_envs=places, **kwargs)
        self.render_mode = render_mode
        vector, count = self._vector, self._vector.num_envs
        width = vector.single_observation_space.shape[0]  # type: ignore[index]  # of a box
        self.observation_space = spaces.Box(-1.0, 1.0, (count * width,), np.float32)
        self.action_space = spaces.MultiDiscrete([vector.num_teachers + 1] * count)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode with a seed drawn from ``self.np_random``."""
        super().reset(seed=seed)
        observation, info = self._vector.reset(seed=int(self.np_random.integers(2**31)), options=options)
        return observation.reshape(-1), info

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions mean something, bool, shape (B * (K + 1),)."""
        return self._vector.action_masks().reshape(-1)

    def step(self, action: Actions) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Ask, or go on, at all places."""
        observation, rewards, terminated, _, infos = self._vector.step(np.asarray(action))
        if terminated[0]:
            observation = infos["final_obs"]
        info = {"spent": float(infos["spent"][0]), "action_mask": infos["action_mask"]}
        return observation.reshape(-1), float(rewards.mean()), bool(terminated[0]), False, info
