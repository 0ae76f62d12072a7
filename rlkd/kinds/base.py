"""What follows from the kind of task, and the kind that all others are shown as."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlkd.errors import WeightingError
from rlkd.losses import cross_entropy, distillation_loss
from rlkd.settings import LossSettings
from rlkd.types import State
from rlkd.weighting.base import Answers, BaseWeighting, Mixture


@dataclass(frozen=True)
class Positions:
    """Which places of a batch are taught: its instances, or those of its tokens that have a label."""

    taken: Tensor | None
    """Of tokens: bool, (B, L), or (B, L - 1) of causal models, whose tokens are told by those before."""
    labels: Tensor | None
    """Shape (N,), -1 for none, or (N, D) where a label is no single class; None: nobody has one."""
    count: int
    causal: bool = False

    def none(self) -> "Positions":
        """None of them."""
        taken = None if self.taken is None else torch.zeros_like(self.taken)
        return Positions(taken, None if self.labels is None else self.labels[:0], 0, self.causal)

    def pick(self, values: Tensor) -> Tensor:
        """What is said at these places: (B, C) as it is, of tokens (B, L, C) to (N, C)."""
        if self.taken is None:
            return values[: self.count]
        return (values[:, :-1] if self.causal else values)[self.taken]


@dataclass(frozen=True)
class Kind:
    """Single-label classification: an instance has one of C classes. Other kinds say where they differ."""

    covers: Tensor | None = None
    """Which outputs each teacher tells, bool, shape (K, D); None: all. Read where they are told one by one."""
    name: ClassVar[str] = "single-label classification"
    answers: ClassVar[Answers] = "classes"
    lacks: ClassVar[frozenset[str]] = frozenset({"targets"})
    """Fields of a state that mean nothing here."""
    choose: ClassVar[str] = "'uniform', 'entropy' or 'auto'"
    """Weightings that every batch of this kind can feed."""
    measured: ClassVar[str] = "cross_entropy"
    """What logs call the loss to the label."""

    def contexts(self, outputs: int) -> int:
        """Classes that a weighting sees, of a student with so many outputs."""
        return outputs

    def check(self, weighting: BaseWeighting, called: str) -> None:
        """Refuse a weighting that reads what this kind does not have.

        Args:
            weighting: The weighting.
            called: What it was called where it was chosen.

        Raises:
            WeightingError: Names both, and what to choose instead.
        """
        missing = sorted(weighting.requires & self.lacks)
        if weighting.answers not in (self.answers, "either"):
            missing = [f"the teachers' {weighting.answers}"]
        if missing:
            raise WeightingError(
                f"weighting {called!r} reads {', '.join(missing)}, which {self.name} does not have; choose "
                f"{self.choose}, or a class of your own with answers = {self.answers!r}"
            )

    def check_settings(self, settings: LossSettings) -> None:
        """Refuse settings of the loss that would mean nothing.

        Raises:
            ConfigError: Says which.
        """

    def adapted(self, weighting: BaseWeighting) -> BaseWeighting:
        """The weighting as it is asked about states of this kind."""
        return weighting

    def positions(self, batch: Mapping[str, Any]) -> Positions:
        """What is taught of a batch with or without ``labels``, -100 or below for none."""
        labels = batch.get("labels")
        if labels is None:
            return Positions(None, None, len(next(iter(batch.values()))))
        return Positions(None, self.known(labels), len(labels))

    def known(self, labels: Tensor) -> Tensor:
        """Labels as a state has them: -1 where there is none."""
        return labels.clamp_min(-1) if labels.dtype == torch.int64 else torch.where(labels >= 0, labels, -1)

    def choices(self, outputs: Tensor) -> Tensor:
        """Scores (..., C) of the classes that a weighting sees, of outputs of a network (..., D)."""
        return outputs

    def state(self, known: State, student: Tensor, labels: Tensor | None) -> State:
        """What a weighting sees.

        Args:
            known: Of the teachers, logits (..., K, C), and what else they tell.
            student: Logits (..., C).
            labels: Of :class:`Positions`; None: what the teachers know of them.
        """
        return known.but(labels=known.labels if labels is None else labels, student_logits=student.detach())

    def losses(
        self, student: Tensor, state: State, taught: Mixture, settings: LossSettings, certain: Tensor | None = None
    ) -> Tensor:
        """The loss of every instance, shape (...), of the student's own outputs, whose gradient is wanted.

        Args:
            student: Outputs, (..., D).
            state: What the weighting saw.
            taught: What it said.
            settings: Of the loss.
            certain: Of :meth:`label_losses`, with its gradient where labels teach; None: it is computed here.
        """
        return class_losses(student, state.labels, taught, settings, certain)

    def label_losses(self, student: Tensor, state: State) -> tuple[Tensor, Tensor] | None:
        """Loss to the label of every instance, 0 where it has none, and whether it has one; None: nobody has."""
        return None if state.labels is None else class_label_losses(student, state.labels)

    def measured_later(self, student: Tensor, state: State) -> "Measured | None":
        """:meth:`label_losses` without a gradient, of what is kept of a batch; None: nobody has a label."""
        if state.labels is None:
            return None
        return Measured(self.measured, class_label_losses, student.detach(), state.labels)


@dataclass(frozen=True)
class Measured:
    """The loss to the label of a batch, which is computed when it is asked for, of several batches at once."""

    name: str
    """What logs call it."""
    compute: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """From the values and labels of batches, each (M, N, ...), to losses, 0 without a label, and whether there is one,
    each (M, N); as it would be for each by itself, to the last bit."""
    values: Tensor
    """Shape (N, ...)."""
    labels: Tensor
    """Shape (N, ...)."""


def as_measured(losses: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Losses that were computed already, and whether there is a label."""
    return losses, counted


def class_label_losses(student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy to the label, (...), 0 where that is -1, and whether there is one."""
    return cross_entropy(student, labels), labels >= 0


def class_losses(
    student: Tensor, labels: Tensor | None, taught: Mixture, settings: LossSettings, certain: Tensor | None = None
) -> Tensor:
    """:func:`rlkd.losses.distillation_loss` with the settings of a run."""
    return distillation_loss(
        student,
        taught.teacher_logits,
        taught.weights,
        labels,
        scale=taught.scale,
        certain=certain,
        complete=taught.complete,
        **of_settings(settings),
    )


def of_settings(settings: LossSettings) -> dict[str, Any]:
    """What a loss of classes or labels is told of the settings of a run."""
    return {
        "temperature": settings.temperature,
        "kd_ratio": settings.kd_ratio,
        "mix": settings.mix,
        "scale_by_temperature": settings.scale_by_temperature,
        "divergence": settings.divergence,
    }
