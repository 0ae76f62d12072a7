"""Weightings that learn while the student does."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkd.errors import WeightingError
from rlkd.features import finite_logits
from rlkd.losses import divergence_gradients, logit_gain
from rlkd.types import State
from rlkd.weighting.arguments import refuse_argument
from rlkd.weighting.base import TIE, BaseWeighting, Evidence
from rlkd.weighting.simplex import equal_weights, masked_softmax


class Hedge(BaseWeighting):
    """Exponentiated-gradient weights, one vector for each class that the equal mixture predicts; no sampling.

    All teachers' logits are known, so what each of them would have been worth is known too: ``g_k = (p - q_k) .
    (p - y)``, the closed-form gain of :func:`rlkd.losses.logit_gain`, linear in the mixture; with another temperature
    or divergence its gradient takes the place of ``p - q_k``, divided by the temperature. The weights of context c
    after n labelled rows are ``softmax(eta G_c)`` with G the summed gains and ``eta = sqrt(8 ln K / (n + 1)) / R``. On
    a row the gains of the teachers lie within R = 2 of each other, and then the summed gain of the mixtures stays
    within ``R (sqrt(2 n ln K) + sqrt(ln K / 8))`` of that of the context's best teacher, whatever the data and however
    long the run (up to a delay of one batch, whose rows are weighted before any of them is learned from).

    Labels update the table and are not read to use it: rows without one are weighted by what others taught. An absent
    teacher sleeps: it is credited with what the mixture of those present earned. Gains of squared errors have no bound:
    where a row's lie further apart than R they are scaled to it.

    Source: Freund, Schapire 1997 (Hedge); Cesa-Bianchi, Lugosi 2006, theorem 2.3 (step size without a horizon);
    Blum, Mansour 2007 (sleeping). Deviation: gains to a student that itself learns from the mixture, and contexts; both
    are ours.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"labels", "student_logits"})
    falls_back: ClassVar[str] = "weights learned on the labelled instances"
    RANGE = 2.0

    def __init__(self, num_classes: int, num_teachers: int) -> None:
        """Start with equal weights: gains (C, K) and counts (C,) of zero."""
        self.gains = torch.zeros(num_classes, num_teachers, dtype=torch.float64)
        self.counts = torch.zeros(num_classes, dtype=torch.float64)

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``hedge``; one for each student."""
        refuse_argument("hedge", argument)
        return cls(evidence.task.num_classes, len(evidence.source.teacher_names))

    def context(self, state: State) -> Tensor:
        """The class that the equal mixture predicts, the first of those that tie, shape (...), on the CPU."""
        p = F.softmax(finite_logits(state.teacher_logits), dim=-1)
        mixed = (equal_weights(state.present).unsqueeze(-1) * p).sum(-2)
        return (mixed >= mixed.amax(-1, keepdim=True) - TIE).int().argmax(-1).cpu()

    def weights(self, state: State) -> Tensor:
        """Weights, shape (..., K)."""
        eta = math.sqrt(8 * math.log(self.gains.shape[1])) / self.RANGE / (self.counts + 1).sqrt()
        scores = (eta.unsqueeze(-1) * self.gains)[self.context(state)]
        return masked_softmax(scores.to(state.present.device), state.present)

    def update(self, state: State) -> None:
        """Add the gains of the labelled rows of a batch."""
        assert state.labels is not None
        assert state.student_logits is not None
        gains = self._gains(state, finite_logits(state.student_logits), state.labels)
        asleep = (self.weights(state) * gains).sum(-1, keepdim=True)
        gains = torch.where(state.present, gains, asleep).double().cpu()
        labelled = (state.labels >= 0).cpu()
        context = self.context(state)[labelled]
        self.gains.index_add_(0, context, gains[labelled])
        self.counts.index_add_(0, context, torch.ones(len(context), dtype=torch.float64))

    def _gains(self, state: State, student: Tensor, labels: Tensor) -> Tensor:
        """What each teacher alone would have earned, shape (..., K), no two further apart than ``RANGE``."""
        temperature, divergence = state.temperature or 1.0, state.divergence or "kl"
        teachers = finite_logits(state.teacher_logits)
        gradients = divergence_gradients(student, teachers, temperature=temperature, divergence=divergence)
        everybody = teachers.shape[:-1]
        logits, labels = student.unsqueeze(-2).expand(teachers.shape), labels.unsqueeze(-1).expand(everybody)
        gains = logit_gain(logits, gradients / temperature, labels)
        if divergence == "kl":
            return gains
        spread = gains.masked_fill(~state.present, -torch.inf).amax(-1) - gains.masked_fill(
            ~state.present, torch.inf
        ).amin(-1)
        return gains * (self.RANGE / spread.clamp_min(self.RANGE)).unsqueeze(-1)

    def state_dict(self) -> dict[str, Any]:
        """Summed gains (C, K) and counts (C,), as lists."""
        return {"gains": self.gains.tolist(), "counts": self.counts.tolist()}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        try:
            gains, counts = (torch.tensor(values[name], dtype=torch.float64) for name in ("gains", "counts"))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise WeightingError(
                "expected the saved gains and counts of 'hedge', got something else; start anew"
            ) from error
        if gains.shape != self.gains.shape or counts.shape != self.counts.shape or not (counts >= 0).all():
            raise WeightingError(
                f"expected gains of shape {tuple(self.gains.shape)} and counts >= 0 for 'hedge', got shape "
                f"{tuple(gains.shape)}; resume with the task and the teachers of the run"
            )
        self.gains, self.counts = gains, counts
