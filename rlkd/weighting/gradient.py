"""Weights from the gradients that the teachers give the student, in closed form in logit space: no backward pass."""

from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rlkd.errors import WeightingError
from rlkd.features import finite_logits
from rlkd.losses import divergence_gradients
from rlkd.types import State
from rlkd.weighting.arguments import number
from rlkd.weighting.base import TIE, BaseWeighting, Evidence
from rlkd.weighting.simplex import normalised

RIDGE = 1e-6
"""Added to the diagonal of the Gram matrix, relative to its mean: K gradients of C - 1 dimensions may be dependent."""


def teacher_gradients(state: State) -> Tensor:
    """Gradient of every teacher's divergence at the student's logits, at the loss's temperature.

    A teacher that says what the student says has the gradient zero, and no trace of rounding.

    Returns:
        Shape (..., K, C), float64.
    """
    student, teachers = _wide_logits(state)
    gradients = divergence_gradients(
        student, teachers, temperature=state.temperature or 1.0, divergence=state.divergence or "kl"
    )
    return gradients * teacher_votes(state).any(-1, keepdim=True)


def teacher_votes(state: State) -> Tensor:
    """Whether the student's output should fall (1) or rise (-1) for a teacher, 0 where they differ by rounding alone.

    The signs of :func:`teacher_gradients`; under ``"kl"`` in log probabilities, which still differ where both
    probabilities are next to nothing.

    Returns:
        Shape (..., K, C), float64.
    """
    student, teachers = _wide_logits(state)
    student = student.unsqueeze(-2)
    if state.divergence == "mse_centred":  # a mean over classes is as uncertain as the largest of them
        size = torch.maximum(*(logits.abs().amax(-1, keepdim=True) for logits in (student, teachers)))
        student, teachers = (logits - logits.mean(-1, keepdim=True) for logits in (student, teachers))
    elif state.divergence == "mse":
        size = torch.maximum(student.abs(), teachers.abs())
    else:
        temperature = state.temperature or 1.0
        student, teachers = (F.log_softmax(logits / temperature, dim=-1) for logits in (student, teachers))
        size = torch.maximum(student.abs(), teachers.abs()).clamp_min(1)
    difference = student - teachers
    return difference.sign() * (difference.abs() > TIE * size)


def _wide_logits(state: State) -> tuple[Tensor, Tensor]:
    """Logits of the student and of the teachers, float64."""
    assert state.student_logits is not None
    return finite_logits(state.student_logits).double(), finite_logits(state.teacher_logits).double()


class AekdFlat(BaseWeighting):
    """One vector of weights for a batch: the mixture whose gradient is shortest, no weight above a cap.

    ``argmin || sum_k w_k g_k ||`` over the simplex with ``w_k <= C``, where g_k holds teacher k's gradients of all
    instances one after the other. C = 1 / K and below gives equal weights, C = 1 the min-norm point of MGDA.

    Source: Du et al. 2020, NeurIPS (AEKD). Deviation: gradients are not averaged over the batch first
    (:class:`AekdBatchMean` does); a small ridge makes the solution unique. Where a teacher is absent, the mean of
    those present stands in for its gradient, and the cap holds before its weight goes to the others.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"student_logits"})
    name: ClassVar[str] = "aekd_flat"

    def __init__(self, cap: float = 0.6) -> None:
        """Store the cap C, in (0, 1]; 0.6 in the published code."""
        if not 0 < cap <= 1:
            raise WeightingError(f"{self.name} needs a cap in (0, 1], got {cap}; 0.6 is the published one")
        self.cap = cap

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``aekd_flat`` or ``aekd_flat:C``; likewise ``aekd_batch_mean``."""
        return cls() if argument is None else cls(number(cls.name, argument))

    def vectors(self, gradients: Tensor) -> Tensor:
        """What is combined, shape (K, D), of gradients (N, K, C)."""
        return gradients.transpose(0, 1).flatten(1)

    def weights(self, state: State) -> Tensor:
        """Weights of one batch, all leading axes together, shape (..., K)."""
        gradients = teacher_gradients(state).flatten(0, -3)
        present = state.present.flatten(0, -2).unsqueeze(-1)
        mean = (gradients * present).sum(1, keepdim=True) / present.sum(1, keepdim=True)
        vectors = self.vectors(torch.where(present, gradients, mean))
        shared = torch.from_numpy(min_norm_weights((vectors @ vectors.T).cpu().numpy(), self.cap))
        return normalised(shared.to(state.present.device).expand(state.present.shape), state.present)


class AekdBatchMean(AekdFlat):
    """As published: gradients are averaged over the batch first, so it sees the batch's class marginals alone.

    With C classes the K averages lie in C - 1 dimensions: for K >= C the solution rests on the ridge.

    Source: Du et al. 2020, NeurIPS (AEKD), and its code. Deviation: the code solves the same problem as a one-class
    support vector machine; a small ridge makes the solution unique.
    """

    name: ClassVar[str] = "aekd_batch_mean"

    def vectors(self, gradients: Tensor) -> Tensor:
        """What is combined, shape (K, C), of gradients (N, K, C)."""
        return gradients.mean(0)


def min_norm_weights(gram: NDArray[np.float64], cap: float = 1.0) -> NDArray[np.float64]:
    """Minimise ``w' G w`` over the simplex with ``w <= cap``: a primal active set, exact up to rounding.

    Args:
        gram: Inner products of the K vectors, shape (K, K).
        cap: Largest weight; one below 1 / K acts as 1 / K.

    Returns:
        Weights, shape (K,).
    """
    size = len(gram)
    weights = np.full(size, 1 / size)
    mean_square = np.trace(gram) / size
    if cap <= 1 / size or mean_square <= 0:
        return weights
    matrix = gram / mean_square + RIDGE * np.eye(size)
    free = np.ones(size, dtype=bool)
    for _ in range(50 * size):  # each pass fixes a weight at a bound or lowers the objective; a handful suffice
        step = _free_minimum(matrix, weights, free) - weights
        room = np.where(step < 0, weights, cap - weights)
        reach = np.divide(room, np.abs(step), out=np.full(size, np.inf), where=free & (np.abs(step) > 1e-15))
        first = int(reach.argmin())
        if reach[first] < 1:
            weights = weights + reach[first] * step
            weights[first] = 0.0 if step[first] < 0 else cap
            free[first] = False
            continue
        weights = weights + step
        leaving = _leaving(matrix @ weights, weights, free, cap)
        if not leaving:
            break
        free[leaving] = True
    return weights.clip(0, cap)


def _free_minimum(
    matrix: NDArray[np.float64], weights: NDArray[np.float64], free: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The weights with the free ones at their minimum on the plane of sum 1, bounds left aside."""
    count = int(free.sum())
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = matrix[np.ix_(free, free)]
    system[:count, count] = system[count, :count] = 1
    right = np.append(-matrix[np.ix_(free, ~free)] @ weights[~free], 1 - weights[~free].sum())
    moved = weights.copy()
    if count:
        moved[free] = np.linalg.solve(system, right)[:count]
    return moved


def _leaving(
    slopes: NDArray[np.float64], weights: NDArray[np.float64], free: NDArray[np.bool_], cap: float
) -> list[int]:
    """Which fixed weights the objective would fall by moving off their bounds; none at the solution."""
    at_zero, at_cap = ~free & (weights < cap / 2), ~free & (weights >= cap / 2)
    if not free.any():  # a corner: mass moves from a capped weight to an empty one
        if not (at_zero.any() and at_cap.any()):
            return []
        up, down = np.where(at_zero, slopes, np.inf).argmin(), np.where(at_cap, slopes, -np.inf).argmax()
        return [int(up), int(down)] if slopes[down] - slopes[up] > 1e-12 else []
    level = slopes[free].mean()
    gains = np.where(at_zero, level - slopes, np.where(at_cap, slopes - level, -np.inf))
    return [int(gains.argmax())] if gains.max() > 1e-12 else []


class Govern(BaseWeighting):
    """Equal weights over the teachers that pull the student the way most teachers pull it.

    For every class each teacher votes whether the student's probability should rise or fall. A teacher is elected if
    the majority goes its way on more than half of its gradient's mass. With two classes this is the rule for one
    score: the majority's sign elects those that share it. A tie elects nobody, and then all have equal weights.

    Source: Zhou et al. 2024, arXiv:2405.03764 (GOVERN), the unsupervised stage. Deviation: rebuilt from the paper's
    summary, which votes on one relevance score; the step from one score to C classes is ours.
    """

    name: ClassVar[str] = "govern"
    requires: ClassVar[frozenset[str]] = frozenset({"student_logits"})

    def weights(self, state: State) -> Tensor:
        """Weights, shape (..., K)."""
        gradients = teacher_gradients(state).abs()
        votes = teacher_votes(state) * state.present.unsqueeze(-1)
        majority = votes.sum(-2, keepdim=True).sign()
        followed, whole = (gradients * (votes * majority > 0)).sum(-1), gradients.sum(-1)
        return normalised(followed - whole / 2 > TIE * whole, state.present)
