"""Weights that do not look at the instance."""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
import xxhash
from torch import Tensor
from torch.nn import functional as F

from rlkd.errors import WeightingError
from rlkd.types import State
from rlkd.weighting.arguments import refuse_argument, require_argument
from rlkd.weighting.base import Answers, BaseWeighting, Evidence
from rlkd.weighting.simplex import equal_weights, normalised


class Uniform(BaseWeighting):
    """Equal weights: what everybody does.

    Source: You, Xu, Xu, Tao 2017, "Learning from multiple teacher networks".
    """

    name: ClassVar[str] = "uniform"
    answers: ClassVar[Answers] = "either"
    plainly_right: ClassVar[bool] = True
    """Its weights need no check where no teacher is absent; of a class that inherits from it they do."""

    def weights(self, state: State) -> Tensor:
        """Equal weights over the present teachers, shape (..., K)."""
        if state.teacher_mask is None:
            shape = state.teacher_logits.shape[:-1]
            return torch.full(shape, 1 / shape[-1], device=state.teacher_logits.device)
        return equal_weights(state.teacher_mask)


class Labels(BaseWeighting):
    """No teacher where there is a label: what the labels at hand teach alone."""

    requires: ClassVar[frozenset[str]] = frozenset({"labels"})
    falls_back: ClassVar[str] = "equal weights"
    name: ClassVar[str] = "labels"
    answers: ClassVar[Answers] = "either"

    def weights(self, state: State) -> Tensor:
        """Zeros where there is a label, else equal weights over the present teachers, shape (..., K)."""
        assert state.labels is not None
        return torch.where((state.labels >= 0).unsqueeze(-1), 0.0, equal_weights(state.present))


class Fixed(BaseWeighting):
    """The same given weights for every instance."""

    answers: ClassVar[Answers] = "either"

    def __init__(self, shares: Tensor) -> None:
        """Store the shares, shape (K,), non-negative, not all zero; they are normalised."""
        if shares.ndim != 1 or not torch.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
            raise WeightingError(
                f"fixed weights must be finite, >= 0 and not all zero, got {shares.tolist()}; pass one number a teacher"
            )
        self.shares = normalised(shares, torch.ones_like(shares, dtype=torch.bool))

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``fixed:0.5,0.3,0.2``, one number a teacher."""
        text = require_argument("fixed", argument, "fixed:0.5,0.3,0.2")
        try:
            shares = torch.tensor([float(part) for part in text.split(",")])
        except ValueError as error:
            raise WeightingError(f"fixed weights must be numbers with commas, got {text!r}") from error
        teachers = len(evidence.source.teacher_names)
        if len(shares) != teachers:
            raise WeightingError(f"fixed weights need one number for each of {teachers} teachers, got {len(shares)}")
        return cls(shares)

    def weights(self, state: State) -> Tensor:
        """The shares, over the present teachers, shape (..., K)."""
        return normalised(self.shares.to(state.teacher_logits.device).expand(state.present.shape), state.present)


class BestTeacher(Fixed):
    """All weight on the teacher with the highest accuracy on validation; ties share it."""

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``best_teacher``: reads the labelled validation rows."""
        refuse_argument("best_teacher", argument)
        state = evidence.labelled_state("validation")
        assert state.labels is not None
        if len(state.labels) == 0:
            raise WeightingError(
                "weighting 'best_teacher' needs labelled validation rows that teachers answered about, got none; label "
                "some, or choose the teacher yourself with 'fixed'"
            )
        right = (state.teacher_logits.argmax(-1) == state.labels.unsqueeze(-1)) & state.present
        accuracy = right.sum(0).double() / state.present.sum(0).clamp_min(1)
        return cls((accuracy == accuracy.max()).float())


class RandomTeacher(BaseWeighting):
    """All weight on one teacher, drawn anew for every mini-batch.

    The draw ranks the teachers by a hash of the seed, the batch's instance ids and the teacher's name, and every
    instance goes to the first that is present: runs resume exactly, and a teacher's rank does not depend on its place.

    Source: Fukuda et al. 2017, Interspeech; the Rand-Single-Ensemble baseline of RL-KD, arXiv:2012.06048.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"ids"})
    answers: ClassVar[Answers] = "either"

    def __init__(self, teacher_names: Sequence[str], seed: int = 0) -> None:
        """Remember the K names and the seed of the run."""
        self.teacher_names, self.seed = tuple(teacher_names), seed

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``random_teacher``; drawn by the seed of the run."""
        refuse_argument("random_teacher", argument)
        return cls(evidence.source.teacher_names, evidence.seed)

    def weights(self, state: State) -> Tensor:
        """Weights of one mini-batch, all leading axes together, shape (..., K)."""
        assert state.ids is not None
        batch = state.ids.flatten().sort().values.cpu().numpy().tobytes()
        draws = [xxhash.xxh3_64_intdigest(f"{self.seed}/{name}/".encode() + batch) >> 1 for name in self.teacher_names]
        ranks = torch.tensor(draws, device=state.present.device).masked_fill(~state.present, -1)
        return F.one_hot(ranks.argmax(-1), len(draws)).float()
