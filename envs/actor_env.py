"""The vector face for policies that bring their own state and their own meaning of an action: RL-KD and MTKD-RL."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from rlkd.errors import ConfigError
from rlkd.features import ObservationConfig
from rlkd.types import Actor, on_device
from rlkd.weighting.simplex import equal_weights

from .vector import TeacherWeightingVectorEnv


class TeacherActingVectorEnv(TeacherWeightingVectorEnv):
    """Weight teachers by the actions of a published system while a student is distilled.

    ## Description
    As :class:`~rlkd_envs.vector.TeacherWeightingVectorEnv`, but for what is observed and what an action means: both are
    the actor's. The first ``pretraining_steps`` of every episode are taken with equal weights before the first
    observation.

    ## Action Space
    ``MultiBinary(K)`` per sub-environment for an actor that selects subsets, else ``Box(-bound, bound, (K,))``.

    ## Observation Space
    ``Box(-bound, bound, (K * F,))`` per sub-environment, with the actor's bound and features. Labels may be in it: the
    published systems read the teachers' cross entropies.

    ## Rewards
    By name, as in the other faces. With ``credit="batch"`` every instance gets the mean of its batch.

    ## Starting State
    A student that was distilled for ``pretraining_steps`` with equal weights.

    ## Episode End
    Terminated when the budget of ``horizon`` steps, those of the start included, is spent.

    ## Arguments
    ``actor``, ``pretraining_steps``, and those of the other vector face but ``observation``.

    ## Version History
    * v0
    """

    def __init__(self, num_envs: int | None = None, *, actor: Actor, pretraining_steps: int = 0, **kwargs: Any) -> None:
        """Build the environment.

        Args:
            num_envs: See the other vector face.
            actor: Gives observations and turns actions into weights.
            pretraining_steps: Steps with equal weights at the start of an episode, < horizon.
            **kwargs: Arguments of the other vector face but ``observation``.
        """
        super().__init__(num_envs, observation=ObservationConfig(student=actor.reads_student), **kwargs)
        horizon = self.settings.horizon
        if not 0 <= pretraining_steps < horizon:
            raise ConfigError(
                f"expected 0 <= pretraining_steps < horizon {horizon}, got {pretraining_steps}; mend one of them"
            )
        if self.num_tasks > 1:
            raise ConfigError(
                f"an actor of a published system is trained on one task, got {self.num_tasks}; train one for each"
            )
        self.actor, self.pretraining_steps = actor, pretraining_steps
        bound, width = actor.observation_bound, self.num_teachers * actor.num_features
        self.single_observation_space = spaces.Box(-bound, bound, (width,), np.float32)
        self.single_action_space = _action_space(actor, self.num_teachers)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def _start_episode(self) -> None:
        super()._start_episode()
        while self.episode.step_index < self.pretraining_steps:
            self.episode.step(equal_weights(self.episode.observed_state(student=False).present.cpu()))

    @property
    def at_episode_start(self) -> bool:
        """Whether no action of the episode at hand was taken."""
        return self.episode.step_index == self.pretraining_steps

    @torch.no_grad()
    def _weights(self, actions: Tensor) -> Tensor:
        return self.actor.mix(actions, self._rows)

    @torch.no_grad()
    def _observe(self) -> NDArray[np.float32]:
        state = self.episode.observed_state(student=self.actor.reads_student)
        self._rows = self.actor.observe(on_device(state, torch.device("cpu")))  # where the agent is
        return self._padded(self._rows).reshape(self.num_envs, -1)


def _action_space(actor: Actor, teachers: int) -> spaces.MultiBinary | spaces.Box:
    if actor.action_kind == "subset":
        return spaces.MultiBinary(teachers)
    return spaces.Box(-actor.action_bound, actor.action_bound, (teachers,), np.float32)
