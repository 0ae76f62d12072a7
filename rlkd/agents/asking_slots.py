"""Places of an asking environment as Stable-Baselines3 wants them, and the actor-critic that acts in them."""

from collections.abc import Callable
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
from torch import Tensor, nn

from rlkd.agents.one_env import OneEnvironment
from rlkd.agents.protocols import Array, Flags
from rlkd.asking.observation import NUM_SHARED, NUM_TEACHER
from rlkd.asking.policy import AskingPolicy

MASKS = "action_masks"
"""The method by which the library asks which actions mean something."""


class AskingEnvironment(Protocol):
    """A vector environment with one instance a place, and with same-step autoreset."""

    @property
    def num_envs(self) -> int:
        """Places, B."""

    @property
    def num_teachers(self) -> int:
        """Of the task that has most, K."""

    @property
    def episode_number(self) -> int:
        """Number of the episode at hand, counted from 0."""

    @property
    def single_observation_space(self) -> gymnasium.Space[Any]:
        """Of one place."""

    @property
    def single_action_space(self) -> gymnasium.Space[Any]:
        """Of one place."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start the episode ``options["episode"]`` of a seed."""

    def step(self, actions: NDArray[np.int64]) -> tuple[Array, NDArray[Any], Flags, Flags, dict[str, Any]]:
        """Ask, or go on; ``infos["recovered"]``, shape (B,), is there at the end of an episode."""

    def action_masks(self) -> Flags:
        """Which actions mean something, shape (B, K + 1)."""

    def close(self) -> None:
        """Nothing is asked of it afterwards."""


def unflattened(observations: Tensor) -> tuple[Tensor, Tensor]:
    """Features of teachers (..., K, NUM_TEACHER) and of instances (..., NUM_SHARED), of observations (..., W)."""
    teachers, shared = observations[..., :-NUM_SHARED], observations[..., -NUM_SHARED:]
    return teachers.unflatten(-1, (-1, NUM_TEACHER)), shared


class AskingSlots(OneEnvironment):
    """An asking environment as Stable-Baselines3 wants it."""

    env: AskingEnvironment

    def __init__(self, env: AskingEnvironment, *, seed: int = 0) -> None:
        """Wrap ``env``, whose first reset starts the first episode of ``seed``."""
        self.env, self._seed = env, seed
        self.first_episode = 0
        """Where a reset starts."""
        self.taken: list[NDArray[np.int64]] = []
        """Actions of all places in the episode at hand, by which it can be walked to again; a reset does."""
        self.recovered: list[float] = []
        """At the ends of episodes so far."""
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Array:
        """Start the first episode, and take the actions that were taken there."""
        observation, _ = self.env.reset(seed=self._seed, options={"episode": self.first_episode})
        for actions in self.taken:
            observation, *_ = self.env.step(actions)
        return observation

    def step_wait(self) -> VecEnvStepReturn:
        """Take the step."""
        self.taken.append(np.array(self._actions))
        observation, rewards, terminated, truncated, infos = self.env.step(self._actions)
        done = terminated | truncated
        slots: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            self.taken = []
            self.recovered.append(float(infos["recovered"][0]))
            slots = [{"terminal_observation": last} for last in infos["final_obs"]]
        return observation, rewards.astype(np.float32), done, slots

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call the method; of masks each place gets its own."""
        if method_name == MASKS:
            masks = self.env.action_masks()
            return [masks[place] for place in self._get_indices(indices)]
        return super().env_method(method_name, *args, indices=indices, **kwargs)


class AskingExtractor(nn.Module):
    """Actor and critic over the set of teachers; the actor is the policy that is saved and deployed."""

    def __init__(self, actor: AskingPolicy) -> None:
        """Hold the actor, and a critic of the same kind."""
        super().__init__()
        self.actor = actor
        self.critic = AskingPolicy.create(training={}, hidden_size=actor.hidden_size)
        self.latent_dim_pi = 1  # of the layer that the actor's own output replaces
        self.latent_dim_vf = 2 * actor.hidden_size

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the actor (B, K + 1) and latents of the critic (B, 2H)."""
        return self.forward_actor(observations), self.forward_critic(observations)

    def forward_actor(self, observations: Tensor) -> Tensor:
        """Logits of the actions, shape (B, K + 1)."""
        logits: Tensor = self.actor(*unflattened(observations))
        return logits

    def forward_critic(self, observations: Tensor) -> Tensor:
        """Pooled codes, shape (B, 2H)."""
        return self.critic.embed(*unflattened(observations))[1]


class AskingActorCritic(MaskableActorCriticPolicy):
    """Masked categorical actor-critic whose logits are those of an :class:`~rlkd.asking.policy.AskingPolicy`."""

    def __init__(self, *args: Any, make_actor: Callable[[], AskingPolicy], **kwargs: Any) -> None:
        """Build around the actor that ``make_actor`` gives (a module cannot be held before ``Module.__init__``)."""
        self._make_actor = make_actor
        kwargs["ortho_init"] = False  # the actor comes initialised, and maybe trained
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = AskingExtractor(self._make_actor())  # type: ignore[assignment]

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1), eps=1e-5)
