"""A gate over teachers that tell numbers: it learns from their errors while the student does."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from rlkd.errors import WeightingError
from rlkd.types import State
from rlkd.weighting.arguments import refuse_argument
from rlkd.weighting.base import Answers, BaseWeighting, Evidence
from rlkd.weighting.simplex import masked_softmax

RATE = 0.2
"""First step of the table, in nats of a score; later ones are smaller the more was learned."""
FARTHEST = 10.0
"""Standard deviations from its mean beyond which a teacher's number counts as that far."""


class Gate(BaseWeighting):
    """Weights ``softmax(W x)`` with x all teachers' numbers, learned online by the squared error of their mean.

    x holds 1, and of every teacher's number how many of its standard deviations it is from its mean, and how far
    regardless of the side: who is right may show in any of them. A teacher of low numbers only is right where all say
    little; one far from its own mean has seen something that it knows. How far a number is from the others' median
    added nothing where this was tried. Labels update the table and are not read to use it. It starts from equal
    weights, and is tied to its teachers by their place.

    Source: Jacobs, Jordan, Nowlan, Hinton 1991, "Adaptive mixtures of local experts", whose gate reads the input;
    Duchi, Hazan, Singer 2011 (AdaGrad). Deviation: the gate reads what the experts say, who do not learn with it.
    """

    name: ClassVar[str] = "gate"
    requires: ClassVar[frozenset[str]] = frozenset({"targets"})
    falls_back: ClassVar[str] = "weights learned on the labelled instances"
    answers: ClassVar[Answers] = "numbers"

    def __init__(self, num_teachers: int, num_numbers: int = 1) -> None:
        """Start with equal weights, for K teachers of D numbers each."""
        shape = (num_teachers, 2 * num_teachers * num_numbers + 1)
        self.table = torch.zeros(shape, dtype=torch.float64)
        self.slopes = torch.zeros(shape, dtype=torch.float64)
        self.moments = torch.zeros(3, num_teachers, num_numbers, dtype=torch.float64)
        """Of each teacher's numbers: how many were seen, their mean, and the sum of squares about it."""

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``gate``; one for each student."""
        refuse_argument(cls.name, argument)
        return cls(len(evidence.source.teacher_names), evidence.task.num_classes)

    def weights(self, state: State) -> Tensor:
        """Weights, shape (..., K)."""
        numbers, present = _seen(state)
        return self._weights(self._features(numbers, present), present).float().to(state.present.device)

    def update(self, state: State) -> None:
        """Learn from the labelled rows of a batch."""
        assert state.targets is not None
        numbers, present = (values.flatten(0, -3 + axis) for axis, values in enumerate(_seen(state)))
        self._count(numbers, present.unsqueeze(-1))
        targets = state.targets.detach().double().cpu().flatten(0, -2)
        known = ~targets.isnan()
        labelled = known.any(-1)
        if not labelled.any():
            return
        numbers, present, targets, known = (v[labelled] for v in (numbers, present, targets.nan_to_num(), known))
        features = self._features(numbers, present)
        weights = self._weights(features, present)
        numbers = torch.where(present.unsqueeze(-1), numbers, 0.0)
        mean = (weights.unsqueeze(-1) * numbers).sum(-2)
        size = self._variance().mean(0).clamp_min(torch.finfo(torch.float32).tiny)
        error = torch.where(known, mean - targets, 0.0) / size
        pull = 2 * weights * (error.unsqueeze(-2) * (numbers - mean.unsqueeze(-2))).mean(-1)
        slope = pull.T @ features / len(features)
        self.slopes += slope.square()
        self.table -= RATE * slope / self.slopes.sqrt().clamp_min(torch.finfo(torch.float32).tiny)

    def _weights(self, features: Tensor, present: Tensor) -> Tensor:
        return masked_softmax(features @ self.table.T, present).double()

    def _features(self, numbers: Tensor, present: Tensor) -> Tensor:
        """Shape (..., 2 K D + 1): an absent teacher's are 0, as if it had said its mean."""
        deviation = self._variance().sqrt()
        far = (numbers - self.moments[1]) / torch.where(deviation > 0, deviation, 1.0)
        far = torch.where(present.unsqueeze(-1), far, 0.0).clamp(-FARTHEST, FARTHEST).flatten(-2)
        return torch.cat([far, far.abs(), torch.ones_like(far[..., :1])], dim=-1)

    def _variance(self) -> Tensor:
        variance: Tensor = self.moments[2] / self.moments[0].clamp_min(1)
        return variance

    def _count(self, numbers: Tensor, present: Tensor) -> None:
        """Add numbers (N, K, D) of those that are present, (N, K, 1), to the moments."""
        count, mean, squares = self.moments
        shown = torch.where(present, numbers, 0.0)
        more = present.sum(0).double()
        own = shown.sum(0) / more.clamp_min(1)
        about = torch.where(present, numbers - own, 0.0).square().sum(0)
        total = (count + more).clamp_min(1)
        moved = own - mean
        self.moments = torch.stack(
            [count + more, mean + moved * more / total, squares + about + moved.square() * count * more / total]
        )

    def state_dict(self) -> dict[str, Any]:
        """Table, what its steps are divided by, and the moments, as lists."""
        return {name: getattr(self, name).tolist() for name in ("table", "slopes", "moments")}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        try:
            loaded = {name: torch.tensor(values[name], dtype=torch.float64) for name in self.state_dict()}
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise WeightingError(
                "expected the saved table, slopes and moments of 'gate', got something else; start anew"
            ) from error
        for name, value in loaded.items():
            shape = tuple(getattr(self, name).shape)
            if value.shape != shape or not value.isfinite().all():
                raise WeightingError(
                    f"expected finite {name} of shape {shape} for 'gate', got shape {tuple(value.shape)}; resume with "
                    "the teachers of the run"
                )
        for name, value in loaded.items():
            setattr(self, name, value)


def _seen(state: State) -> tuple[Tensor, Tensor]:
    """The teachers' numbers (..., K, D) in float64, and who is there (..., K), on the CPU."""
    return state.teacher_logits.detach().double().cpu(), state.present.cpu()
