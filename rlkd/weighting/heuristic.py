"""Weights from a formula: no fitting, one screen each."""

from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkd.errors import WeightingError
from rlkd.features import finite_logits
from rlkd.losses import teacher_cross_entropy
from rlkd.types import Knowledge, State
from rlkd.weighting.base import Evidence, equal_weights, masked_softmax, normalised, refuse_argument


class Entropy:
    """Softmax over teachers of minus the entropy of their prediction, in nats: trust who is sure.

    Source: Kwon et al. 2020, ICASSP (EBKD). Deviation: a softmax of minus the entropy in place of
    ``1 - H_k / sum_j H_j``, whose weights cannot leave the neighbourhood of 1 / K for K >= 3.
    """

    requires: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``entropy``."""
        refuse_argument("entropy", argument)
        return cls()

    def weights(self, state: State) -> Tensor:
        """Weights, shape (..., K)."""
        log_p = F.log_softmax(finite_logits(state.teacher_logits), dim=-1)
        return masked_softmax((log_p.exp() * log_p).sum(-1), state.present)


class CrossEntropy:
    """Softmax over teachers of minus their cross entropy to the label; equal weights where there is no label.

    Source: the confidence term of CA-MKD, Zhang, Chen, Wang 2022, arXiv:2201.00007. Deviation: softmax(-CE)
    itself, not ``(1 - softmax(CE)) / (K - 1)``.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"labels"})

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``cross_entropy``."""
        refuse_argument("cross_entropy", argument)
        return cls()

    def weights(self, state: State) -> Tensor:
        """Weights, shape (..., K)."""
        assert state.labels is not None
        logits = finite_logits(state.teacher_logits)
        return masked_softmax(-teacher_cross_entropy(logits, state.labels), state.present)


class Oracle:
    """Equal weights over the teachers that were trained on the instance's class or domain."""

    def __init__(self, knowledge: Knowledge) -> None:
        """Store who knows what."""
        self.matrix = torch.from_numpy(knowledge.matrix.copy())
        self.by = knowledge.by
        self.requires = frozenset({"labels" if knowledge.by == "class" else "domains"})

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``oracle``: the teachers must say what they were trained on."""
        refuse_argument("oracle", argument)
        if evidence.source.knowledge is None:
            raise WeightingError(
                "weighting 'oracle' needs teachers that all say what they were trained on (teacher.json, 'knows'), "
                "got none that do; drop 'oracle' or train specialists with rlkd train-teachers --specialize"
            )
        return cls(evidence.source.knowledge)

    def knows(self, state: State) -> Tensor:
        """Which teachers know each instance, bool, shape (..., K)."""
        groups = state.labels if self.by == "class" else state.domains
        assert groups is not None
        return self.matrix.to(groups.device).T[groups.clamp_min(0)] & (groups >= 0).unsqueeze(-1)

    def weights(self, state: State) -> Tensor:
        """Weights, shape (..., K); equal where no present teacher knows the instance."""
        knows = self.knows(state) & state.present
        anybody = knows.any(-1, keepdim=True)
        return torch.where(anybody, normalised(knows, state.present), equal_weights(state.present))
