"""Weights from a formula: no fitting, one screen each.

Weights read predictions at temperature 1, whatever the temperature of the loss. Formulas that read labels give equal
weights to instances without one.
"""

from dataclasses import replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkd.errors import WeightingError
from rlkd.features import finite_logits
from rlkd.losses import teacher_cross_entropy
from rlkd.types import Knowledge, State
from rlkd.weighting.arguments import number, refuse_argument
from rlkd.weighting.base import TIE, Answers, BaseWeighting, Evidence, Mixture
from rlkd.weighting.simplex import equal_weights, masked_softmax, normalised

FALLS_BACK = "equal weights"
"""What the formulas with labels give instances without one."""


def exclusion_weights(blame: Tensor, present: Tensor) -> Tensor:
    """Weights ``(1 - blame) / (n - 1)`` over the n present teachers: none can exceed 1 / (n - 1).

    Args:
        blame: Rows on the simplex, zero where absent, shape (..., K).
        present: Bool, shape (..., K).
    """
    return normalised((1 - blame).clamp_min(0), present)


def prediction_entropies(teacher_logits: Tensor) -> Tensor:
    """Entropy of every teacher's prediction in nats, shape (..., K), float64, exact however sure a teacher is.

    With d_c the distance of class c's logit from the largest and s the sum of ``exp(-d_c)`` over the other classes it
    is ``log(1 + s) + sum_c p_c d_c``: a sum of positive terms. In ``-sum_c p_c log p_c`` the top class's own log is
    lost as soon as it rounds to 0.
    """
    logits = finite_logits(teacher_logits).double()
    top = logits.max(-1, keepdim=True)
    distances = top.values - logits
    odds = (-distances).exp()
    others = odds.scatter(-1, top.indices, 0.0).sum(-1)
    return torch.log1p(others) + (odds * distances).sum(-1) / (1 + others)


def overlaps(teacher_logits: Tensor, present: Tensor) -> Tensor:
    """Overlap ``sum_c min(p_c, q_c)`` of each teacher's p with q, the mean of the other present teachers.

    The others are added up, not taken as what is left of all: what sure teachers that disagree have in common is far
    smaller than the rounding of a sum that holds both.

    Args:
        teacher_logits: Shape (..., K, C).
        present: Bool, shape (..., K).

    Returns:
        Shape (..., K), float64; 1 for a teacher that is alone, 0 for one that is absent.
    """
    p = F.softmax(finite_logits(teacher_logits).double(), dim=-1)
    another = present.unsqueeze(-2) & ~torch.eye(p.shape[-2], dtype=torch.bool, device=p.device)
    count = another.sum(-1, keepdim=True)
    mean = another.double() @ p / count.clamp_min(1)
    overlap = torch.minimum(p, torch.where(count > 0, mean, p)).sum(-1)
    return overlap * present


def label_cross_entropy(state: State) -> Tensor:
    """Cross entropy of every teacher to the label, finite, zero where there is no label, shape (..., K)."""
    assert state.labels is not None
    return teacher_cross_entropy(finite_logits(state.teacher_logits), state.labels)


class Entropy(BaseWeighting):
    """Softmax over teachers of minus the entropy of their prediction, in nats: trust who is sure.

    Source: Kwon et al. 2020, ICASSP (EBKD). Deviation: a softmax of minus the entropy in place of
    ``1 - H_k / sum_j H_j`` (:class:`Ebkd`), whose weights cannot exceed 1 / (K - 1).
    """

    name: ClassVar[str] = "entropy"
    by_row: ClassVar[bool] = True

    def weights(self, state: State) -> Tensor:
        """Weights, shape (..., K)."""
        log_p = F.log_softmax(finite_logits(state.teacher_logits), dim=-1)
        return masked_softmax((log_p.exp() * log_p).sum(-1), state.present)


class Ebkd(BaseWeighting):
    """Weights ``(1 - H_k / sum_j H_j) / (K - 1)`` with H the entropy of a teacher's prediction.

    They can exclude the least certain teacher, never select one (K >= 3). No entropy anywhere: equal weights.

    Source: Kwon et al. 2020, ICASSP (EBKD), in the form of the CA-MKD code. Deviation: rows sum to 1, not to K - 1.
    """

    name: ClassVar[str] = "ebkd"
    by_row: ClassVar[bool] = True

    def weights(self, state: State) -> Tensor:
        """Weights, shape (..., K)."""
        blame = normalised(prediction_entropies(state.teacher_logits), state.present)
        return exclusion_weights(blame, state.present)


class MaxProbability(BaseWeighting):
    """Softmax over teachers of their largest probability over a temperature (1 by default): odds up to e.

    Source: maximum softmax probability as confidence, Hendrycks, Gimpel 2017, arXiv:1610.02136. Deviation: that paper
    weights nothing; the softmax and its temperature are ours.
    """

    by_row: ClassVar[bool] = True

    def __init__(self, temperature: float = 1.0) -> None:
        """Store the temperature; > 0, small ones select the most certain teacher."""
        if not 0 < temperature < float("inf"):
            raise WeightingError(f"max_probability needs a temperature > 0, got {temperature}; 1 is usual")
        self.temperature = temperature

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``max_probability`` or ``max_probability:TEMPERATURE``."""
        return cls(1.0 if argument is None else number("max_probability", argument))

    def weights(self, state: State) -> Tensor:
        """Weights, shape (..., K)."""
        confidence = F.softmax(finite_logits(state.teacher_logits), dim=-1).amax(-1)
        behind = (confidence * state.present).amax(-1, keepdim=True) - confidence
        return masked_softmax(torch.where(behind > TIE, -behind, 0.0) / self.temperature, state.present)


class Agreement(BaseWeighting):
    """Weights in proportion to how far a teacher's prediction overlaps with the mean of the others'.

    The overlap of p and q is ``sum_c min(p_c, q_c)``, the ``agreement`` of :mod:`rlkd.features`, here to its last
    digit (:func:`overlaps`). No overlap anywhere: equal weights.

    Source: ours; the rule "trust the consensus" in its simplest form.
    """

    name: ClassVar[str] = "agreement"
    by_row: ClassVar[bool] = True

    def weights(self, state: State) -> Tensor:
        """Weights, shape (..., K)."""
        return normalised(overlaps(state.teacher_logits, state.present), state.present)


class CrossEntropy(BaseWeighting):
    """Softmax over teachers of minus their cross entropy to the label; equal weights where there is no label.

    Source: the confidence term of CA-MKD, Zhang, Chen, Wang 2022, arXiv:2201.00007. Deviation: softmax(-CE)
    itself, not ``(1 - softmax(CE)) / (K - 1)``, which is :class:`CaMkd`.
    """

    name: ClassVar[str] = "cross_entropy"
    requires: ClassVar[frozenset[str]] = frozenset({"labels"})
    falls_back: ClassVar[str] = FALLS_BACK

    def weights(self, state: State) -> Tensor:
        """Weights, shape (..., K)."""
        return masked_softmax(-label_cross_entropy(state), state.present)


class CaMkd(BaseWeighting):
    """Weights ``(1 - softmax(CE)_k) / (K - 1)`` with CE the teacher's cross entropy to the label.

    They equal softmax(-CE) for two teachers only: beyond, they can exclude the worst teacher, never select one.

    Source: Zhang, Chen, Wang 2022, arXiv:2201.00007 (CA-MKD), equation 3. Deviation: the weights of the logits alone,
    without the second set for the features; the released code divides the loss by K once more.
    """

    name: ClassVar[str] = "ca_mkd"
    requires: ClassVar[frozenset[str]] = frozenset({"labels"})
    falls_back: ClassVar[str] = FALLS_BACK

    def weights(self, state: State) -> Tensor:
        """Weights, shape (..., K)."""
        return exclusion_weights(masked_softmax(label_cross_entropy(state), state.present), state.present)


class BestPerInstance(BaseWeighting):
    """All weight on the teacher with the lowest cross entropy to the label; ties share it. An oracle: it knows labels.

    Source: the Best-Single-Ensemble baseline of RL-KD, Yuan et al. 2021, arXiv:2012.06048.
    """

    name: ClassVar[str] = "best_per_instance"
    requires: ClassVar[frozenset[str]] = frozenset({"labels"})
    falls_back: ClassVar[str] = FALLS_BACK

    def weights(self, state: State) -> Tensor:
        """Weights, shape (..., K)."""
        costs = label_cross_entropy(state).masked_fill(~state.present, torch.inf)
        least = costs.amin(-1, keepdim=True)
        return normalised(costs <= least + TIE * least.clamp_min(1), state.present)


class MtBert(BaseWeighting):
    """Weights in proportion to ``1 / (1 + CE)`` with CE the teacher's cross entropy to the label.

    Source: Wu, Wu, Huang 2021, arXiv:2106.01023 (MT-BERT), the distillation loss. Deviation: normalised over the
    teachers; :class:`MtBertRaw` is not. No hidden loss, teachers are not fine-tuned together.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"labels"})
    falls_back: ClassVar[str] = FALLS_BACK
    name: ClassVar[str] = "mt_bert"

    def shares(self, state: State) -> Tensor:
        """Before normalisation, in (0, 1], shape (..., K)."""
        return state.present / (1 + label_cross_entropy(state))

    def weights(self, state: State) -> Tensor:
        """Weights, shape (..., K)."""
        return normalised(self.shares(state), state.present)


class MtBertRaw(MtBert):
    """As published: the sum of the single divergences with weights ``1 / (1 + CE)``, which add up to nearly K.

    The weights are the normalised ones; what they added up to scales the instance's loss, so good teachers make it
    up to K times as large as under equal weights. Instances without a label: equal weights, scale 1.
    """

    name: ClassVar[str] = "mt_bert_raw"

    def taught(self, state: State) -> Mixture:
        """The scale is the sum of the raw weights, in (0, K]; 1 where there is no label."""
        assert state.labels is not None
        scale = torch.where(state.labels >= 0, self.shares(state).sum(-1), 1.0)
        return replace(super().taught(state), scale=scale)


class Oracle(BaseWeighting):
    """Equal weights over the teachers that were trained on the instance's class or domain."""

    falls_back: ClassVar[str] = FALLS_BACK

    def __init__(self, knowledge: Knowledge) -> None:
        """Store who knows what."""
        self.matrix = torch.from_numpy(knowledge.matrix.copy())
        self.by = knowledge.by

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

    @property
    def answers(self) -> Answers:
        """It looks at labels or domains alone."""
        return "classes" if self.by == "class" else "either"

    @property
    def requires(self) -> frozenset[str]:
        """What teachers are known by."""
        return frozenset({"labels" if self.by == "class" else "domains"})

    def knows(self, state: State) -> Tensor:
        """Which teachers know each instance, bool, shape (..., K)."""
        groups = state.labels if self.by == "class" else state.domains
        assert groups is not None
        table = self.matrix.to(groups.device).T
        known = (groups >= 0) & (groups < len(table))  # "none of the labels" comes after them, and is nobody's
        return table[torch.where(known, groups, 0)] & known.unsqueeze(-1)

    def weights(self, state: State) -> Tensor:
        """Weights, shape (..., K); equal where no present teacher knows the instance."""
        knows = self.knows(state) & state.present
        anybody = knows.any(-1, keepdim=True)
        return torch.where(anybody, normalised(knows, state.present), equal_weights(state.present))
