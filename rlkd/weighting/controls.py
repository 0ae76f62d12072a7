"""The two controls of a policy: its average weights, and its weights on other instances."""

from typing import ClassVar, Self

import torch
from torch import Tensor

from rlkd.errors import PolicyError
from rlkd.logit_cache import answered_ids, read_state
from rlkd.types import State
from rlkd.weighting.arguments import require_argument
from rlkd.weighting.base import BaseWeighting, Evidence
from rlkd.weighting.learned import Policy, load_policy
from rlkd.weighting.simplex import normalised


class PolicyMean(BaseWeighting):
    """Control: the policy's average weights over the training split, the same for every instance."""

    by_row: ClassVar[bool] = True

    def __init__(self, policy: Policy, evidence: Evidence) -> None:
        """Average the policy's weights over the training rows."""
        if policy.observation.student:
            raise PolicyError(
                "policy_mean needs a policy without student features: its average is taken before there is a student; "
                "train the policy with a portable observation"
            )
        rows = torch.from_numpy(answered_ids(evidence.source, evidence.task.splits["train"]))
        self.mean = policy.weights(read_state(evidence.task, evidence.source, rows)).mean(0)

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``policy_mean:PATH``."""
        return cls(load_policy(require_argument("policy_mean", argument, "policy_mean:runs/policy")), evidence)

    def weights(self, state: State) -> Tensor:
        """The average weights over the present teachers, shape (..., K)."""
        return normalised(self.mean.to(state.teacher_logits.device).expand(state.present.shape), state.present)


class PolicyShuffle(BaseWeighting):
    """Control: the policy's weights, permuted over the instances of the batch.

    If a student distilled with it is as good as with the policy, choosing per instance did nothing. The permutation
    is a function of the set of instance ids, so runs resume exactly and reordering a batch reorders the weights.
    """

    def __init__(self, policy: Policy) -> None:
        """Wrap a policy."""
        self.policy = policy

    @property
    def requires(self) -> frozenset[str]:
        """What the policy requires, and the ids that the permutation is drawn by."""
        return self.policy.requires | {"ids"}

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``policy_shuffle:PATH``."""
        return cls(load_policy(require_argument("policy_shuffle", argument, "policy_shuffle:runs/policy")))

    def weights(self, state: State) -> Tensor:
        """The policy's weights with rows permuted, over the teachers present in each, shape (..., K)."""
        assert state.ids is not None
        weights = self.policy.weights(state)
        rows, ids = weights.flatten(0, -2), state.ids.flatten()
        by_id = ids.argsort()
        seed = int((ids.long() ** 2).sum().item()) % 2**31  # of integers: a sum of floats depends on the order
        shift = torch.randperm(len(by_id), generator=torch.Generator().manual_seed(seed)).to(by_id.device)
        shuffled = torch.empty_like(rows)
        shuffled[by_id] = rows[by_id[shift]]
        return normalised(shuffled.view_as(weights), state.present)
