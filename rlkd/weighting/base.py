"""The contract of a weighting, and what the entries of the registry are built from."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rlkd.data.task import Task
from rlkd.errors import WeightingError
from rlkd.logit_cache import read_state
from rlkd.types import LogitSource, State


@runtime_checkable
class Weighting(Protocol):
    """Anything that maps a state to weights over its teachers."""

    @property
    def requires(self) -> frozenset[str]:
        """Fields of the :class:`~rlkd.types.State` that it reads beside the teacher logits."""

    def weights(self, state: State) -> Tensor:
        """Weights of a batch.

        Args:
            state: With the fields that ``requires`` names.

        Returns:
            Rows on the simplex, shape (..., K), float32, zero where a teacher is absent, detached.
        """


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a weighting may be fitted on: the task without its test rows, and its teachers' logits."""

    task: Task
    source: LogitSource
    seed: int = 0

    def labelled_state(self, split: str) -> State:
        """The state of the labelled rows of one split."""
        return read_state(self.task, self.source, torch.from_numpy(self.task.labelled_ids(split)))


class WeightingBuilder(Protocol):
    """An entry of the registry: a class that makes a weighting from ``name:argument`` and evidence."""

    def build(self, argument: str | None, evidence: Evidence) -> Weighting:
        """Make the weighting; a class method of the weighting's class.

        Args:
            argument: What stood behind the colon, or None.
            evidence: What it may be fitted on.

        Raises:
            WeightingError: If the argument is missing, unexpected or malformed.
        """


def refuse_argument(name: str, argument: str | None) -> None:
    """Raise if an argument was given to a weighting that takes none."""
    if argument is not None:
        raise WeightingError(f"weighting {name!r} takes no argument, got {argument!r}; write just {name!r}")


def require_argument(name: str, argument: str | None, example: str) -> str:
    """Return the argument, or raise with an example of one."""
    if not argument:
        raise WeightingError(f"weighting {name!r} needs an argument, got none; write for example {example!r}")
    return argument


def masked_softmax(scores: Tensor, present: Tensor) -> Tensor:
    """Softmax over the present teachers.

    Args:
        scores: Shape (..., K), finite.
        present: Bool, shape (..., K), at least one True a row.

    Returns:
        Shape (..., K), float32, zero where absent.
    """
    return torch.softmax(scores.float().masked_fill(~present, -torch.inf), dim=-1)


def normalised(shares: Tensor, present: Tensor) -> Tensor:
    """Scale non-negative shares (..., K) to the simplex over the present teachers; all-zero rows get equal weights."""
    kept = shares.float() * present
    total = kept.sum(-1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp_min(1e-12), equal_weights(present))


def equal_weights(present: Tensor) -> Tensor:
    """Equal weights over the present teachers, shape (..., K)."""
    return present.float() / present.sum(-1, keepdim=True)
