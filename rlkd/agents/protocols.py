"""What agents ask of the environment that Gymnasium makes for them by its id; they know none by its import name."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rlkd.settings import EpisodeSettings
from rlkd.types import State
from rlkd.weighting.base import Weighting

Array = NDArray[np.float32]
Flags = NDArray[np.bool_]


@runtime_checkable
class WeightingEnvironment(Protocol):
    """A vector environment with one slot for each place of the mini-batch, and with same-step autoreset.

    A slot shows its instance and the K teachers with F features each; its action is one number a teacher.
    """

    @property
    def num_envs(self) -> int:
        """Slots of the mini-batch, B."""

    @property
    def single_observation_space(self) -> gymnasium.Space[Any]:
        """Of one slot, shape (K * F,)."""

    @property
    def single_action_space(self) -> gymnasium.Space[Any]:
        """Of one slot, shape (K,)."""

    @property
    def num_tasks(self) -> int:
        """Tasks, each of which comes up once in as many episodes."""

    @property
    def settings(self) -> EpisodeSettings:
        """How a student is trained; an episode is one student."""

    @property
    def episode_number(self) -> int:
        """Number of the episode at hand, counted from 0."""

    @property
    def at_episode_start(self) -> bool:
        """Whether no action of the episode at hand was taken: the state can be rebuilt from its number."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start the episode ``options["episode"]`` of a seed; the observation of every slot, shape (B, K * F)."""

    def step(self, actions: Array) -> tuple[Array, NDArray[Any], Flags, Flags, dict[str, Any]]:
        """Weight the teachers of every slot by actions (B, K) and take the student's step.

        Returns:
            Observation, reward, termination and truncation of every slot, and infos: ``rewarded``, bool, shape (B,),
            is False where a reward is none; ``reward_over_equal``, shape (B,), is there if the reward can tell it;
            ``final_obs``, shape (B, K * F), at a termination.
        """

    def validation_states(self) -> list[State]:
        """The state of labelled validation rows, one a task."""

    def trial_losses(self, weighting: Weighting, trial: int, *, refined: bool = False) -> Tensor:
        """Validation losses, shape (N,), in nats, of trial student ``trial`` >= 0 that a weighting teaches.

        It learns task ``trial % num_tasks``, and N is the number of that task's labelled validation rows.
        """

    @property
    def trials_at_once(self) -> bool:
        """Whether several trial students are trained faster at once."""

    def trial_losses_at_once(
        self, weighting: Weighting, trials: Sequence[int], *, refined: bool = False
    ) -> Sequence[Tensor]:
        """Those of several trial students that are trained together."""

    def close(self) -> None:
        """Nothing is asked of it afterwards."""


@runtime_checkable
class ActingEnvironment(WeightingEnvironment, Protocol):
    """One whose observation and whose meaning of an action are those of an :class:`~rlkd.types.Actor`."""

    @property
    def pretraining_steps(self) -> int:
        """Steps with equal weights at the start of an episode, in [0, horizon)."""


class SubsetActor(Protocol):
    """What is asked beside of an actor whose actions are subsets of the teachers."""

    empty_set: str
    """What an empty subset stands for, one of ``rlkd.weighting.subsets.EMPTY_SETS``."""
