"""PPO in one file, in the manner of CleanRL, on the environment of rlkd: what it learns is a policy of rlkd.

After ``ppo_continuous_action.py`` of CleanRL (https://github.com/vwxyzjn/cleanrl, MIT licence), with three changes that
the environment asks for: nothing is discounted, since the next instance of a slot has nothing to do with this one, so
that returns are rewards; slots without an instance are left out of the update; and the actor is :class:`rlkd.Policy`,
whose score of a teacher is shared, so that it can be saved, loaded and put on other teachers.

    python benchmarks/agents/cleanrl_ppo.py runs/agent
"""

import sys
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal

import rlkd


@dataclass(frozen=True, kw_only=True)
class Args:
    """What CleanRL calls its arguments."""

    seed: int = 0
    total_timesteps: int = 30_720
    """Instances that are weighted."""
    learning_rate: float = 2e-3
    num_envs: int = 64
    """Slots of the mini-batch."""
    num_steps: int = 30
    """Steps of a rollout."""
    horizon: int = 60
    """Steps of a student."""
    num_minibatches: int = 4
    update_epochs: int = 10
    clip_coef: float = 0.2
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    log_std: float = -0.7


class Agent(nn.Module):
    """An actor, which is the policy, and a critic."""

    def __init__(self, observation: rlkd.ObservationConfig, num_teachers: int, args: Args) -> None:
        super().__init__()
        self.shape = (num_teachers, observation.num_features)
        self.policy = rlkd.Policy.create(observation, training={"method": "cleanrl_ppo"}, seed=args.seed)
        self.log_std = nn.Parameter(torch.full((1,), args.log_std))
        width = num_teachers * observation.num_features
        self.critic = nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def value(self, obs: Tensor) -> Tensor:
        """Of observations (B, K * F), shape (B,)."""
        value: Tensor = self.critic(obs).squeeze(-1)
        return value

    def actions(self, obs: Tensor) -> Normal:
        """The distribution of actions, (B, K), given observations (B, K * F)."""
        mean = self.policy(obs.unflatten(-1, self.shape))
        return Normal(mean, self.log_std.exp().expand_as(mean))


def train(task: rlkd.Task, cache: rlkd.LogitCache, args: Args | None = None) -> rlkd.Policy:
    """Learn to weight the teachers of a task.

    Args:
        task: Whose students are distilled.
        cache: The teachers' logits.
        args: Of the training.

    Returns:
        A weighting: ``save_pretrained`` saves it, :func:`rlkd.load_weighting` loads it.
    """
    args = args or Args()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    envs: Any = gymnasium.make_vec(
        "rlkd_envs:rlkd/TeacherWeighting-v0",
        num_envs=args.num_envs,
        vectorization_mode="vector_entry_point",
        task=task,
        cache=cache,
        horizon=args.horizon,
    )
    agent = Agent(rlkd.ObservationConfig(), envs.single_action_space.shape[0], args)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    num_iterations = args.total_timesteps // (args.num_steps * args.num_envs)
    first, _ = envs.reset(seed=args.seed)
    obs = torch.from_numpy(first)
    for iteration in range(num_iterations):
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - iteration / num_iterations)
        rollout = []
        for _ in range(args.num_steps):
            with torch.no_grad():
                distribution, value = agent.actions(obs), agent.value(obs)
                action = distribution.sample()
            after, reward, _, _, infos = envs.step(action.numpy())
            kept = torch.from_numpy(infos["rewarded"])
            step = (obs, action, distribution.log_prob(action).sum(-1), torch.from_numpy(reward), value)
            rollout.append([values[kept] for values in step])
            obs = torch.from_numpy(after)
        update(agent, optimizer, [torch.cat(values) for values in zip(*rollout, strict=True)], args, rng)
    envs.close()
    return agent.policy.eval()


def update(
    agent: Agent, optimizer: torch.optim.Optimizer, rollout: list[Tensor], args: Args, rng: np.random.Generator
) -> None:
    """Some epochs over a rollout: observations, actions, their log probabilities, rewards and values, (N, ...)."""
    obs, actions, log_probs, rewards, values = rollout
    advantages = rewards - values
    for _ in range(args.update_epochs):
        for rows in np.array_split(rng.permutation(len(obs)), args.num_minibatches):
            gain = advantages[rows]
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
            ratio = (agent.actions(obs[rows]).log_prob(actions[rows]).sum(-1) - log_probs[rows]).exp()
            policy_loss = -torch.min(gain * ratio, gain * ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)).mean()
            value_loss = 0.5 * (agent.value(obs[rows]) - rewards[rows]).square().mean()
            optimizer.zero_grad()
            (policy_loss + args.vf_coef * value_loss).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()


if __name__ == "__main__":
    from measure_agents import planted_teachers

    train(*planted_teachers("class-3", seed=0)).save_pretrained(sys.argv[1])
    print(rlkd.load_weighting(sys.argv[1]).training_record)
