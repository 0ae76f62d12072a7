"""Mini-batch slots as Stable-Baselines3 wants them: a vector environment, and a buffer that leaves padding out."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor

from rlkd.agents.one_env import OneEnvironment
from rlkd.agents.protocols import Array, WeightingEnvironment

DEFAULT_SLOTS = 64


def make_slots(env_id: str, episode: Mapping[str, Any] | None, **arguments: Any) -> WeightingEnvironment:
    """Make a vector environment with one slot for each place of the mini-batch.

    Args:
        env_id: Of Gymnasium, with the module that registers it.
        episode: Settings of the students' runs: fields of ``rlkd.settings.EpisodeSettings``.
        **arguments: Of the environment.
    """
    settings = dict(episode or {})
    slots = settings.pop("batch_size", DEFAULT_SLOTS)
    made = gymnasium.make_vec(env_id, num_envs=slots, vectorization_mode="vector_entry_point", **arguments, **settings)
    return cast(WeightingEnvironment, made.unwrapped)


class MiniBatchVecEnv(OneEnvironment):
    """A Gymnasium vector environment with same-step autoreset, as Stable-Baselines3 wants it."""

    env: WeightingEnvironment

    def __init__(self, env: WeightingEnvironment, *, seed: int = 0) -> None:
        """Wrap ``env``, whose resets start the episode ``first_episode`` of ``seed``."""
        self.env, self.first_episode, self._seed = env, 0, seed
        self._over_equal: list[Array] = []
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Array:
        """Start the first episode."""
        observation, _ = self.env.reset(seed=self._seed, options={"episode": self.first_episode})
        return np.asarray(observation)

    def step_wait(self) -> VecEnvStepReturn:
        """Take the step."""
        observation, rewards, terminated, truncated, infos = self.env.step(self._actions)
        if "reward_over_equal" in infos:
            self._over_equal.append(infos["reward_over_equal"][infos["rewarded"]])
        rewards = np.where(infos["rewarded"], rewards, np.nan)  # for the buffer, which leaves them out
        done = terminated | truncated
        slots: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            slots = [{"terminal_observation": last} for last in infos["final_obs"]]
        return observation, rewards, done, slots

    def mean_over_equal(self) -> float | None:
        """Mean of rewards less those of equal weights since this was last asked; None where no reward could tell."""
        found, self._over_equal = self._over_equal, []
        values = np.concatenate(found) if found else np.empty(0)
        return float(values.mean(dtype=np.float64)) if len(values) else None


class MaskedRolloutBuffer(RolloutBuffer):
    """A rollout buffer that leaves slots without a reward (NaN) out of every update.

    Those are padded slots, and instances without a label where the reward reads labels. For the returns such a slot
    ends what came before it in its place, so that nothing is discounted across it.
    """

    valid: NDArray[np.bool_]
    """Whether a slot was rewarded, shape (steps, slots)."""

    def reset(self) -> None:
        """Forget every step."""
        super().reset()
        self.valid = np.zeros((self.buffer_size, self.n_envs), dtype=bool)

    def add(
        self, obs: Array, action: Array, reward: Array, episode_start: Array, value: Tensor, log_prob: Tensor
    ) -> None:
        """Store one step of every slot."""
        rewarded = np.isfinite(reward)
        self.valid[self.pos] = rewarded
        reward, start = np.where(rewarded, reward, 0), np.maximum(episode_start, ~rewarded)
        super().add(obs, action, reward, start, value, log_prob)

    def get(self, batch_size: int | None = None) -> Iterator[RolloutBufferSamples]:  # type: ignore[override]
        """Yield minibatches of rewarded slots in random order."""
        assert self.full
        if not self.generator_ready:
            for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
                self.__dict__[name] = self.swap_and_flatten(self.__dict__[name])
            self.generator_ready = True
        valid = np.flatnonzero(self.swap_and_flatten(self.valid))
        order = np.random.permutation(valid)  # noqa: NPY002 (the generator that the library seeds and we restore)
        size = batch_size or len(order)
        for start in range(0, len(order), size):
            chunk = order[start : start + size]
            if len(chunk) > 1:  # advantages of a single row cannot be normalised
                yield self._get_samples(chunk)
