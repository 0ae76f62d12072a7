"""The agent of a library: PPO of skrl 2.1 on the environment of rlkd; what it learns is a weighting of one's own.

Needs ``pip install "skrl>=2.1"`` (https://skrl.readthedocs.io), which rlkd does not depend on. The networks are plain
ones over the whole observation, as one has them: what they learned is for these teachers, in this order. A weighting is
any object that has ``requires`` and ``weights``.

    python benchmarks/agents/skrl_ppo.py
"""

from typing import Any

import gymnasium
import torch
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from torch import Tensor, nn

import rlkd
from rlkd.features import teacher_features
from rlkd.weighting.learned import action_weights

ROLLOUT, NUM_ENVS, HORIZON = 30, 64, 60


def layers(inputs: int, outputs: int, *last: nn.Module) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs), *last)


class Actor(GaussianMixin, Model):
    """Means and one spread of the actions, given an observation."""

    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        GaussianMixin.__init__(self)
        self.net = layers(self.num_observations, self.num_actions, nn.Tanh())
        self.log_std = nn.Parameter(torch.full((self.num_actions,), -0.7))

    def compute(self, inputs: dict[str, Any], role: str) -> tuple[Tensor, dict[str, Any]]:
        """See skrl."""
        return self.net(inputs["observations"]), {"log_std": self.log_std}


class Critic(DeterministicMixin, Model):
    """What an instance will earn."""

    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        DeterministicMixin.__init__(self)
        self.net = layers(self.num_observations, 1)

    def compute(self, inputs: dict[str, Any], role: str) -> tuple[Tensor, dict[str, Any]]:
        """See skrl."""
        return self.net(inputs["observations"]), {}


class FlatWeighting:
    """A network over the features of all teachers, as a :class:`rlkd.Weighting`."""

    requires: frozenset[str] = frozenset()

    def __init__(self, net: nn.Module) -> None:
        """Hold a network from observations (..., K * F) to actions (..., K)."""
        self.net, self.observation = net.eval(), rlkd.ObservationConfig()

    @torch.no_grad()
    def weights(self, state: rlkd.State) -> Tensor:
        """Rows on the simplex, shape (..., K)."""
        actions = self.net(teacher_features(state, self.observation).flatten(-2))
        return action_weights(actions, state.present)


def train(task: rlkd.Task, cache: rlkd.LogitCache, *, seed: int = 0, total_timesteps: int = 30_720) -> FlatWeighting:
    """Learn to weight the teachers of a task.

    Args:
        task: Whose students are distilled.
        cache: The teachers' logits.
        seed: Of networks, students and draws.
        total_timesteps: Instances that are weighted.
    """
    set_seed(seed)
    envs = gymnasium.make_vec(
        "rlkd_envs:rlkd/TeacherWeighting-v0",
        num_envs=NUM_ENVS,
        vectorization_mode="vector_entry_point",
        task=task,
        cache=cache,
        horizon=HORIZON,
    )
    env = wrap_env(envs, wrapper="gymnasium", verbose=False)
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space, "device": env.device}
    actor, critic = Actor(**spaces), Critic(**spaces)
    config = PPO_CFG(
        rollouts=ROLLOUT,
        learning_epochs=10,
        mini_batches=4,
        learning_rate=1e-3,
        discount_factor=0.0,  # the next instance of a slot has nothing to do with this one
        value_clip=0.0,
        experiment={"write_interval": 0, "checkpoint_interval": 0},
    )
    agent = PPO(
        models={"policy": actor, "value": critic},
        memory=RandomMemory(memory_size=ROLLOUT, num_envs=NUM_ENVS, device=env.device),
        cfg=config,
        **spaces,
    )
    steps = total_timesteps // NUM_ENVS
    trainer = {"timesteps": steps, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}
    SequentialTrainer(env=env, agents=agent, cfg=trainer).train()
    return FlatWeighting(actor.net)


if __name__ == "__main__":
    from measure_agents import planted_teachers, regret

    teachers = planted_teachers("class-3", seed=0)
    print("regret", regret(train(*teachers), *teachers))
