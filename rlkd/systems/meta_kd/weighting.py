"""Meta-KD's domain expertise: teachers count by how probable they hold the label."""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from rlkd.features import finite_logits
from rlkd.losses import teacher_cross_entropy
from rlkd.types import State
from rlkd.weighting.base import BaseWeighting, Mixture
from rlkd.weighting.heuristic import FALLS_BACK
from rlkd.weighting.simplex import normalised


def domain_expertise(teacher_logits: Tensor, labels: Tensor, scores: Tensor | None = None) -> Tensor:
    """Meta-KD's lambda, ``(1 + t) / (1 + exp((1 - p[y]) ** 2))`` with p the teacher: its weight on an instance.

    Hardly varies: from 0.2689 to 0.5 at t = 0, and a teacher that is fairly sure of the label is near 0.5.

    Args:
        teacher_logits: Shape (..., K, C).
        labels: Shape (...), >= 0.
        scores: Prototype scores t, shape (...), in [-1, 1]. None: 0.

    Returns:
        Shape (..., K), float32.

    Source:
        Pan et al. 2021, arXiv:2012.01266, section 3.3, as its released code computes it.
    """
    right = (-teacher_cross_entropy(finite_logits(teacher_logits), labels)).exp()
    weight = torch.sigmoid(-((1 - right) ** 2))
    return weight if scores is None else (1 + scores.float().unsqueeze(-1)) * weight


class MetaKd(BaseWeighting):
    """In proportion to the domain expertise with t = 0; as flat as that is, the largest ratio of two weights is 1.86.

    Source: see :func:`domain_expertise`. Deviation: the paper has one teacher; several are weighted against each other.
    """

    name: ClassVar[str] = "meta_kd"
    requires: ClassVar[frozenset[str]] = frozenset({"labels"})
    falls_back: ClassVar[str] = FALLS_BACK

    def __init__(self, scores: Tensor | None = None) -> None:
        """Hold the prototype scores t of all instances by id, shape (N,); None: 0."""
        self._scores = scores

    def weights(self, state: State) -> Tensor:
        """Expertise, scaled to the simplex; equal where there is no label."""
        assert state.labels is not None
        known = (state.labels >= 0).unsqueeze(-1)
        expertise = self._expertise(state)
        return normalised(torch.where(known, expertise, torch.ones_like(expertise)), state.present)

    def _expertise(self, state: State) -> Tensor:
        assert state.labels is not None
        scores = None
        if self._scores is not None and state.ids is not None:
            scores = self._scores.to(state.labels.device)[state.ids]
        return domain_expertise(state.teacher_logits.detach(), state.labels, scores)


class DomainExpertise(MetaKd):
    """As :class:`MetaKd`, and its mean over teachers is the factor of the instance's loss, as in the paper."""

    def taught(self, state: State) -> Mixture:
        """The scale is the mean expertise of the present teachers; needs labels."""
        present = state.present.float()
        mean = (self._expertise(state) * present).sum(-1) / present.sum(-1)
        return replace(super().taught(state), scale=mean)
