"""The actor-critic whose actor is the policy that is saved and deployed."""

from collections.abc import Callable
from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from rlkd.weighting.learned import Policy


class SetExtractor(nn.Module):
    """Actor and critic over the set of teachers; the actor is the policy that is saved and deployed."""

    def __init__(self, actor: Policy, hidden_size: int = 64) -> None:
        """Hold the actor, and a critic of the same kind that pools over teachers."""
        super().__init__()
        self.actor = actor
        self.critic = Policy.create(actor.observation, training={})
        self.latent_dim_pi = 1  # of the layer that the actor's own output replaces
        self.latent_dim_vf = hidden_size
        self._width = actor.observation.num_features

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of actor (B, K) and critic (B, H)."""
        return self.forward_actor(observations), self.forward_critic(observations)

    def forward_actor(self, observations: Tensor) -> Tensor:
        """Mean actions, shape (B, K)."""
        return self.actor(observations.unflatten(-1, (-1, self._width)))  # type: ignore[no-any-return]

    def forward_critic(self, observations: Tensor) -> Tensor:
        """Pooled codes, shape (B, H)."""
        return self.critic.embed(observations.unflatten(-1, (-1, self._width)))[1].squeeze(-2)


class TeacherSetPolicy(ActorCriticPolicy):
    """Gaussian actor-critic whose mean is a :class:`~rlkd.weighting.learned.Policy`; runs at any number of teachers."""

    def __init__(self, *args: Any, make_actor: Callable[[], Policy], **kwargs: Any) -> None:
        """Build around the actor that ``make_actor`` gives (a module cannot be held before ``Module.__init__``)."""
        self._make_actor = make_actor
        kwargs["ortho_init"] = False  # the actor comes initialised, and maybe trained
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = SetExtractor(self._make_actor())  # type: ignore[assignment]

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()
        self.log_std = nn.Parameter(torch.full((1,), self.log_std_init))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1), eps=1e-5)
