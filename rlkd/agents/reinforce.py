"""REINFORCE on Stable-Baselines3's rollouts, with the switches in which published selectors differ."""

from collections.abc import Callable
from typing import Any, cast

import torch
from stable_baselines3.common.distributions import BernoulliDistribution, DiagGaussianDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from torch import Tensor, nn

from rlkd.agents.protocols import SubsetActor
from rlkd.agents.sb3_env import MaskedRolloutBuffer
from rlkd.errors import ConfigError
from rlkd.weighting.fixed_teachers import TeacherBoundPolicy
from rlkd.weighting.subsets import draw_subsets, modal_subsets, subset_log_probability

UPDATES = ("reinforce", "grad_pi")
"""``reinforce`` follows the gradient of the log probability, ``grad_pi`` that of the probabilities of the single
decisions, as Yuan et al. 2021 (arXiv:2012.06048) print it: its expectation under a constant reward is not zero."""
BASELINES = ("none", "ema", "leave_one_out")
"""What is subtracted from a reward: nothing; a moving average of earlier rollouts; the mean of the other rewards."""
EMA_DECAY = 0.9


class SubsetDistribution(BernoulliDistribution):
    """Independent choices of the teachers under a rule for the empty set."""

    def __init__(self, action_dims: int, empty_set: str) -> None:
        """Remember the rule."""
        super().__init__(action_dims)
        self._empty_set = empty_set

    def _scores(self) -> Tensor:
        return self.distribution.logits

    def sample(self) -> Tensor:
        """Draw subsets, shape (B, K)."""
        scores = self._scores()
        return draw_subsets(scores, torch.rand_like(scores), self._empty_set)

    def mode(self) -> Tensor:
        """Who is more probable than not, shape (B, K)."""
        return modal_subsets(self._scores(), self._empty_set)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log probability of subsets (B, K), shape (B,)."""
        return subset_log_probability(self._scores(), actions, self._empty_set)


class _ActorLatent(nn.Module):
    """The actor in the place where Stable-Baselines3 expects two networks; there is no critic."""

    latent_dim_pi = latent_dim_vf = 1

    def __init__(self, actor: TeacherBoundPolicy) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(observations), self.forward_critic(observations)

    def forward_actor(self, observations: Tensor) -> Tensor:
        return self.actor(observations.unflatten(-1, (-1, self.actor.num_features)))  # type: ignore[no-any-return]

    def forward_critic(self, observations: Tensor) -> Tensor:
        return torch.zeros(len(observations), 1)


class ActorPolicy(ActorCriticPolicy):
    """A policy of Stable-Baselines3 around an actor of a published system, without a critic.

    The actor gives log odds of subsets, or means of Gaussian scores.
    """

    def __init__(
        self,
        *args: Any,
        make_actor: Callable[[], TeacherBoundPolicy],
        optimizer: str = "adam",
        deterministic: bool = False,
        **kwargs: Any,
    ) -> None:
        """Build around the actor that ``make_actor`` gives (a module cannot be held before ``Module.__init__``)."""
        self._make_actor, self._optimizer_name = make_actor, optimizer
        kwargs["ortho_init"] = False
        super().__init__(*args, **kwargs)
        self.deterministic = deterministic
        self.all_selected = False
        """Select everybody, whatever the probabilities are: how published selectors are pre-trained."""
        self.average_reward: Tensor
        self.register_buffer("average_reward", torch.tensor(float("nan")))

    @property
    def actor(self) -> TeacherBoundPolicy:
        """The module that is saved and deployed."""
        return cast(_ActorLatent, self.mlp_extractor).actor

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = _ActorLatent(self._make_actor())  # type: ignore[assignment]

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()
        if isinstance(self.action_dist, BernoulliDistribution):
            empty_set = cast(SubsetActor, self.actor).empty_set
            self.action_dist = SubsetDistribution(self.action_dist.action_dims, empty_set)
        else:
            assert isinstance(self.action_dist, DiagGaussianDistribution)
            self.log_std = nn.Parameter(torch.full((1,), self.log_std_init))
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[self._optimizer_name]
        self.optimizer = kind(self.parameters(), lr=lr_schedule(1))

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (B, K), values (B, 1), which are zero, and log probabilities (B,)."""
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic=deterministic or self.deterministic)
        if self.all_selected:
            actions = torch.ones_like(actions)
        return actions, torch.zeros(len(actions), 1), distribution.log_prob(actions)

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Zeros, shape (B, 1)."""
        return torch.zeros(len(obs), 1)

    def logged_decisions(self, observations: Tensor, actions: Tensor, update: str) -> Tensor:
        """What an update follows the gradient of, one number per instance, shape (B,).

        Args:
            observations: Shape (B, K * F).
            actions: Shape (B, K).
            update: One of ``UPDATES``.
        """
        distribution = self.get_distribution(observations)
        if update == "grad_pi":
            assert isinstance(distribution, SubsetDistribution)
            chosen: Tensor = distribution.distribution.log_prob(actions).exp()
            return chosen.sum(-1)
        return distribution.log_prob(actions)


class WithoutCritic(OnPolicyAlgorithm):
    """Rollouts without a critic: the reward of an action is its own, and nothing is discounted."""

    policy: ActorPolicy
    rollout_buffer: MaskedRolloutBuffer

    def __init__(self, policy: str | type[ActorCriticPolicy], env: GymEnv | str, **kwargs: Any) -> None:
        """Set up; ``learning_rate``, ``n_steps`` and what else the base class takes."""
        super().__init__(
            policy,
            env,
            gamma=0.0,
            gae_lambda=1.0,
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=float("inf"),
            use_sde=False,
            sde_sample_freq=-1,
            **kwargs,
        )

    def descend(self, loss: Tensor) -> None:
        """One step of the policy's own optimiser."""
        self.policy.optimizer.zero_grad()
        loss.backward()
        self.policy.optimizer.step()

    def log_update(self) -> None:
        """Count one training."""
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")


class Reinforce(WithoutCritic):
    """REINFORCE without a critic: one update of the policy a rollout.

    The reward of an action is its own, nothing is discounted: the next instance of a slot has nothing to do with it.

    Source:
        Williams 1992; Yuan et al. 2021, arXiv:2012.06048, algorithm 2, for ``grad_pi`` without a baseline;
        Kool, van Hoof, Welling 2019 for the leave-one-out baseline.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        *,
        learning_rate: float = 0.01,
        n_steps: int = 1,
        update: str = "reinforce",
        baseline: str = "leave_one_out",
        shared_reward: bool = False,
        all_selected_steps: int = 0,
        **kwargs: Any,
    ) -> None:
        """Set the algorithm up.

        Args:
            policy: :class:`ActorPolicy`.
            env: Its environment.
            learning_rate: Of the policy's own optimiser.
            n_steps: Steps of the student a rollout.
            update: One of ``UPDATES``.
            baseline: One of ``BASELINES``.
            shared_reward: All instances of a step have one reward, so a step is what leave-one-out leaves out.
            all_selected_steps: In the first steps of the students everybody is selected.
            **kwargs: Of the base class.
        """
        if update not in UPDATES or baseline not in BASELINES:
            raise ConfigError(
                f"expected update of {', '.join(UPDATES)} and baseline of {', '.join(BASELINES)}, got {update!r} and "
                f"{baseline!r}; choose one of these"
            )
        if baseline == "leave_one_out" and shared_reward and n_steps < 2:
            raise ConfigError(
                "leave_one_out needs others to compare with: with one reward a batch a rollout needs n_steps >= 2, got "
                f"{n_steps}; raise it, or give each instance its own reward"
            )
        self.update, self.baseline, self.shared_reward = update, baseline, shared_reward
        self.all_selected_steps = all_selected_steps
        super().__init__(policy, env, learning_rate=learning_rate, n_steps=n_steps, **kwargs)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """Collect a rollout; early ones select everybody, if asked for."""
        self.policy.all_selected = self.num_timesteps < self.all_selected_steps * self.n_envs
        return super().collect_rollouts(*args, **kwargs)

    def train(self) -> None:
        """One step of the policy, up the gradient of reward less baseline times (log) probability."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        buffer = self.rollout_buffer
        observations, actions = torch.as_tensor(buffer.observations), torch.as_tensor(buffer.actions).float()
        valid, rewards = torch.as_tensor(buffer.valid), torch.as_tensor(buffer.rewards)
        advantages = (rewards - self._baseline_of(rewards, valid))[valid]
        followed = self.policy.logged_decisions(observations[valid], actions[valid], self.update)
        self.descend(-(advantages * followed).mean())
        self.log_update()
        self.logger.record("train/advantage_std", float(advantages.std(correction=0)))

    def _baseline_of(self, rewards: Tensor, valid: Tensor) -> Tensor:
        if self.baseline == "none":
            return torch.zeros_like(rewards)
        if self.baseline == "ema":
            return self._moving_average(rewards[valid].mean()).expand_as(rewards)
        if self.shared_reward:
            return others_mean(_mean_of_valid(rewards, valid), valid.any(1), dim=0).unsqueeze(1).expand_as(rewards)
        return others_mean(rewards, valid, dim=1)

    def _moving_average(self, mean: Tensor) -> Tensor:
        """The average before this rollout; the first rollout only starts it."""
        average = self.policy.average_reward
        before = mean if average.isnan() else average.clone()
        average.copy_(EMA_DECAY * before + (1 - EMA_DECAY) * mean)
        return before


def others_mean(rewards: Tensor, valid: Tensor, dim: int) -> Tensor:
    """Mean of the other valid rewards along one axis; a reward without others is its own baseline.

    Args:
        rewards: Any shape.
        valid: Bool, the same shape.
        dim: The axis.
    """
    kept = rewards * valid
    count = valid.sum(dim, keepdim=True) - 1
    others = (kept.sum(dim, keepdim=True) - kept) / count.clamp_min(1)
    return torch.where(count > 0, others, rewards)


def _mean_of_valid(rewards: Tensor, valid: Tensor) -> Tensor:
    return (rewards * valid).sum(1) / valid.sum(1).clamp_min(1)
