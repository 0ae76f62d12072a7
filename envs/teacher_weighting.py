"""The plain face: one :class:`gymnasium.Env` whose action weights a whole mini-batch."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from .vector import TeacherWeightingVectorEnv

Array = NDArray[np.float32]


class TeacherWeightingEnv(gymnasium.Env[Array, Array]):
    """Weight K teachers for a whole mini-batch at once while a student is distilled.

    ## Description
    The same episode as :class:`~rlkd_envs.vector.TeacherWeightingVectorEnv`, seen as one environment: for libraries
    that know no vector environments. Credit is shared by the mini-batch, so it learns more slowly; train on the
    vector face (``gymnasium.make_vec``) where you can.

    ## Action Space
    ``Box(-1, 1, (B * K,))``: the actions of all slots, one after the other.

    ## Observation Space
    ``Box(-1, 1, (B * K * F,))``: the observations of all slots, one after the other.

    ## Rewards
    The mean reward of the instances in the batch, those without a label left out where the reward reads labels.

    ## Starting State
    A fresh student, initialised from the episode's seed.

    ## Episode End
    Terminated after ``horizon`` steps; never truncated.

    ## Arguments
    Those of the vector face; ``batch_size`` is 8 unless given.

    ## Version History
    * v0: observation version 1.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own shape)

    def __init__(self, render_mode: str | None = None, batch_size: int = 8, **kwargs: Any) -> None:
        """Build the environment; see the vector face for the arguments."""
        self._vector = TeacherWeightingVectorEnv(num_envs=batch_size, **kwargs)
        self.render_mode = render_mode
        vector = self._vector
        width = vector.num_teachers * vector.observation_config.num_features
        self.observation_space = spaces.Box(-1.0, 1.0, (vector.num_envs * width,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (vector.num_envs * vector.num_teachers,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode with a seed drawn from ``self.np_random``."""
        super().reset(seed=seed)
        episode_seed = int(self.np_random.integers(2**31))
        observation, info = self._vector.reset(seed=episode_seed, options=options)
        return observation.reshape(-1), info

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Weight the teachers of all slots, take the student's step."""
        slots = np.asarray(action, dtype=np.float32).reshape(self._vector.num_envs, -1)
        observation, rewards, terminated, _, infos = self._vector.step(slots)
        if terminated[0]:
            observation = infos["final_obs"]
        info = {"student_loss": float(infos["student_loss"][0])}
        rewarded = rewards[infos["rewarded"]]
        reward = float(rewarded.mean()) if len(rewarded) else 0.0
        return observation.reshape(-1), reward, bool(terminated[0]), False, info
