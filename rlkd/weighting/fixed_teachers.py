"""What the policies of published systems share: they are tied to their teachers, and need labels."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from rlkd.errors import PolicyError, WeightingError
from rlkd.types import Actor, State
from rlkd.weighting.arguments import require_argument
from rlkd.weighting.base import Evidence
from rlkd.weighting.heuristic import FALLS_BACK
from rlkd.weighting.policy_files import SavedPolicy, load_module
from rlkd.weighting.simplex import equal_weights

LARGEST_SIZE = 100_000
OBSERVED = frozenset({"labels", "student_logits", "embeddings"})
"""What may be missing from a state that is observed; ids only decide draws."""
CARD = """---
{{ card_data }}
---
# A published teacher-weighting policy, trained with [rlkd]

Tied to the teachers, their order and the classes it was trained with; `config.json` names them and every switch of
the training. It needs labels wherever it is used. No pickle is involved: weights are `model.safetensors`.
"""


class TeacherBoundPolicy(SavedPolicy, Actor, model_card_template=CARD):
    """A policy that knows its teachers by their place, and its classes."""

    system: ClassVar[str]
    """Its name in the registry of weightings."""
    falls_back: ClassVar[str] = FALLS_BACK

    def __init__(
        self, teachers: Sequence[str], num_classes: int, embedding_size: int, training: dict[str, Any] | None
    ) -> None:
        """Remember what the policy is tied to.

        Args:
            teachers: Names of the K teachers, in order.
            num_classes: C.
            embedding_size: D of the instance embeddings; 0 leaves them out.
            training: What is remembered of the training.

        Raises:
            PolicyError: If a size is out of range.
        """
        super().__init__()
        sizes = {"teachers": (len(teachers), 1), "classes": (num_classes, 2), "embedding size": (embedding_size, 0)}
        for what, (size, least) in sizes.items():
            self.check_size(what, size, least)
        self.teachers, self.num_classes, self.embedding_size = tuple(teachers), num_classes, embedding_size
        self.training_record = dict(training or {})

    def check_size(self, what: str, size: int, least: int) -> None:
        """Refuse a size that is not an integer from ``least`` to 100,000."""
        if not isinstance(size, int) or not least <= size <= LARGEST_SIZE:
            raise PolicyError(f"{self.system} needs {what} of {least} to {LARGEST_SIZE:,}, got {size!r}; mend it")

    @property
    def requires(self) -> frozenset[str]:
        """Labels; embeddings where they are observed."""
        return frozenset({"labels", "embeddings"} if self.embedding_size else {"labels"})

    def check_state(self, state: State) -> None:
        """Refuse other teachers or classes, and a state without what is observed.

        Raises:
            PolicyError: Says what was expected.
        """
        shape = tuple(state.teacher_logits.shape[-2:])
        if shape != (len(self.teachers), self.num_classes):
            raise PolicyError(
                f"this {self.system} was trained for {len(self.teachers)} teachers and {self.num_classes} classes, got "
                f"{shape}; train one for these teachers"
            )
        missing = (self.requires & OBSERVED) - state.available()
        if missing:
            raise PolicyError(f"{self.system} observes {', '.join(sorted(missing))}, the state has none; pass them")

    def embedding_rows(self, state: State) -> list[Tensor]:
        """The instance's embedding for every teacher, shape (..., K, D), as the only entry; none where unobserved."""
        if not self.embedding_size:
            return []
        assert state.embeddings is not None
        shape = (*state.teacher_logits.shape[:-1], state.embeddings.shape[-1])
        return [state.embeddings.float().unsqueeze(-2).expand(shape)]

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``SYSTEM:PATH``; the teachers must be those it was trained with, in their order."""
        path = require_argument(cls.system, argument, f"{cls.system}:runs/{cls.system}/policy")
        policy = load_module(cls, path)
        came = tuple(evidence.source.teacher_names)
        if came != policy.teachers:
            raise WeightingError(
                f"weighting '{cls.system}:{path}' is tied to the teachers {', '.join(policy.teachers)}, in this "
                f"order, got {', '.join(came)}; train one for these"
            )
        return policy


def fallen_back(weights: Tensor, state: State) -> Tensor:
    """The same weights (..., K), but equal ones for instances without a label."""
    assert state.labels is not None
    return torch.where((state.labels >= 0).unsqueeze(-1), weights, equal_weights(state.present))
