"""What MTKD-RL's released code optimises, and how."""

import torch
from torch import Tensor

from rlkd.agents.reinforce import WithoutCritic


class Released(WithoutCritic):
    """What MTKD-RL's released code does to its agent: no action, no exploration, no gradient of a policy.

    Minimises ``-sum_i r_i mean_k log w_ik`` over the stored batches, with w the final weights and r_i the reward of the
    instance, standardised over its batch and cut to [0, 1]. For weights that sum to one the minimum is uniform.

    Source:
        The released code of Yang et al. 2025, arXiv:2502.18510 (MTKD-RL): binary cross entropy of the weights to ones.
    """

    def train(self) -> None:
        """One pass over the batches of the rollout, a step for each."""
        self.policy.set_training_mode(True)
        actor, buffer = self.policy.actor, self.rollout_buffer
        for step in range(buffer.buffer_size):
            observations, valid = torch.as_tensor(buffer.observations[step]), torch.as_tensor(buffer.valid[step])
            rows = observations[valid].unflatten(-1, (-1, actor.num_features))
            self.descend(released_loss(actor.mix(actor(rows), rows), torch.as_tensor(buffer.rewards[step])[valid]))
        self.log_update()


def released_loss(weights: Tensor, rewards: Tensor) -> Tensor:
    """The objective of MTKD-RL's released agent.

    Args:
        weights: Rows on the simplex, shape (B, K).
        rewards: Shape (B,).

    Returns:
        A scalar: binary cross entropy of the weights to ones, weighted by the standardised, clamped rewards.
    """
    spread = rewards.std() if len(rewards) > 1 else torch.zeros(())
    credit = ((rewards - rewards.mean()) / spread.clamp_min(1e-8)).clamp(0, 1)
    return -(credit.unsqueeze(-1) * weights.clamp_min(1e-12).log()).mean()
