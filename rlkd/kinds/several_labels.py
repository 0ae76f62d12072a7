"""Several labels at once, each there or not."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlkd.errors import ConfigError, WeightingError
from rlkd.kinds.base import Kind, Measured, as_measured, of_settings
from rlkd.losses import multi_label_loss
from rlkd.settings import LossSettings
from rlkd.types import State
from rlkd.weighting.absent import without_absent
from rlkd.weighting.base import BaseWeighting, Mixture, OnlineWeighting, mixture
from rlkd.weighting.simplex import normalised


class MultiLabelClassification(Kind):
    """An instance may have each of L labels: log odds z of every label, and one weight per teacher for the instance.

    A student learns every label by itself: it is a choice of two classes, with a Bernoulli divergence to the mixture of
    the teachers' probabilities. What a weighting sees is the instance, not the label: a choice among L + 1 classes with
    the scores (z, 0), each label and none of them, which is what independent labels say where at most one is there.
    An instance that has several is as many choices, one of each, and its weights are their mean.

    Why not the two-class choices themselves, with weights (..., L, K)? Most labels are absent of most instances, and
    every teacher is sure of that, those that never saw such an instance surest of all. Averaged over the labels of an
    instance, weights of formulas and policies then come out nearly equal (``benchmarks/kinds.py`` has the figures),
    while among all labels a teacher that knows none of an instance's is plainly unsure which.
    """

    name = "multi-label classification"
    lacks = frozenset({"reliability"})

    def contexts(self, outputs: int) -> int:
        """The labels, and none of them."""
        return outputs + 1

    def check_settings(self, settings: LossSettings) -> None:
        """Log odds of a label have no mean over classes."""
        if settings.divergence == "mse_centred":
            raise ConfigError(
                f"divergence 'mse_centred' subtracts a mean over classes, which the labels of {self.name} do not "
                "share; set divergence to 'kl' or 'mse'"
            )

    def adapted(self, weighting: BaseWeighting) -> BaseWeighting:
        """Asked once for each label that an instance has, if it reads labels."""
        if "labels" not in weighting.requires:
            return weighting
        return (_OnlineByLabel if isinstance(weighting, OnlineWeighting) else ByLabel)(weighting)

    def choices(self, outputs: Tensor) -> Tensor:
        """Log odds of the labels, and 0 for none of them."""
        return torch.cat([outputs, torch.zeros_like(outputs[..., :1])], dim=-1)

    def known(self, labels: Tensor) -> Tensor:
        """0 or 1 of every label, NaN where it is below 0: not known.

        Raises:
            ConfigError: It is something else.
        """
        values = labels.float()
        values = values.masked_fill(values < 0, torch.nan)
        wrong = ~(values.isnan() | (values == 0) | (values == 1))
        if labels.ndim != 2 or wrong.any():
            got = f"shape {tuple(labels.shape)}" if labels.ndim != 2 else values[wrong].tolist()[:4]
            raise ConfigError(
                f"{self.name} needs labels (B, L), each 0 or 1, or -1 where it is not known, got {got}; make them so, "
                "or set problem_type of the student's config to what they are"
            )
        return values

    def state(self, known: State, student: Tensor, labels: Tensor | None) -> State:
        """The choices among L + 1 classes, none of them last.

        Raises:
            ConfigError: Labels and outputs are of different numbers.
        """
        if labels is not None and labels.shape != student.shape:
            raise ConfigError(
                f"{self.name} needs labels {tuple(student.shape)}, one for each output of the student, got "
                f"{tuple(labels.shape)}; set num_labels of the student to the number of labels"
            )
        return replace(
            known,
            teacher_logits=self.choices(known.teacher_logits),
            student_logits=self.choices(student.detach()),
            labels=None if labels is None else _one_label(labels),
            targets=labels,
            sureness=None,  # where it was measured, of choices without "none of them"
            reliability=None,
        )

    def losses(
        self, student: Tensor, state: State, taught: Mixture, settings: LossSettings, certain: Tensor | None = None
    ) -> Tensor:
        """Every label's own loss under the weights of the instance; a teacher that lacks a label is left out there."""
        log_odds = taught.teacher_logits[..., :-1] - taught.teacher_logits[..., -1:]
        weights = taught.weights.unsqueeze(-2).expand(*student.shape, -1)
        if self.covers is not None:
            told = self.covers.to(weights.device).T & state.present.unsqueeze(-2)
            somebody = told.any(-1, keepdim=True) & (weights.sum(-1, keepdim=True) > 0)
            weights = torch.where(somebody, normalised(weights * told, told), 0.0)
        return multi_label_loss(student, log_odds, weights, state.targets, scale=taught.scale, **of_settings(settings))

    def label_losses(self, student: Tensor, state: State) -> tuple[Tensor, Tensor] | None:
        """Mean cross entropy of its labels."""
        if state.targets is None:
            return None
        nobody = student.new_zeros(*student.shape, 1)
        losses = multi_label_loss(student.detach(), student.detach().unsqueeze(-2), nobody, state.targets)
        return losses, ~state.targets.isnan().all(-1)

    def measured_later(self, student: Tensor, state: State) -> Measured | None:
        """Computed at once."""
        told = self.label_losses(student, state)
        return None if told is None else Measured(self.measured, as_measured, *told)


def _one_label(targets: Tensor) -> Tensor:
    """The first label of every instance, L for none of them; -1 where that is not known."""
    has = targets == 1
    first = torch.where(has.any(-1), has.int().argmax(-1), targets.shape[-1])
    return torch.where(has.any(-1) | ~targets.isnan().any(-1), first, -1)


class ByLabel(BaseWeighting):
    """A weighting that reads labels, of instances with several: its weights are the mean over their labels."""

    def __init__(self, own: BaseWeighting) -> None:
        """Hold the weighting."""
        self.own = own

    @property
    def requires(self) -> frozenset[str]:
        """What the weighting requires."""
        return self.own.requires

    @property
    def called(self) -> str:
        """The weighting's own class."""
        return self.own.called

    def taught(self, state: State) -> Mixture:
        """Weights (N, K) of N instances: the mean over their labels for which somebody teaches.

        Raises:
            WeightingError: It changes the logits that are taught.
        """
        one, instance = by_label(state)
        taught = mixture(self.own, one)
        if not _are_those_of(one, taught.teacher_logits):
            raise WeightingError(
                f"weighting {self.called!r} reads labels and changes logits, which those of "
                f"{MultiLabelClassification.name} share; choose one that does one of the two"
            )
        count = len(state.teacher_logits)
        sums = _added(taught.weights.float(), instance, count)
        weights = sums / sums.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        scale = None
        if taught.scale is not None:
            scale = _added(taught.scale.float(), instance, count) / torch.bincount(instance, minlength=count)
        return Mixture(teacher_logits=state.teacher_logits, weights=weights, scale=scale)


def _are_those_of(state: State, logits: Tensor) -> bool:
    """Whether logits are those of a state, but for absent teachers, whose are not read."""
    if state.teacher_mask is None:
        return logits is state.teacher_logits
    return torch.equal(logits, without_absent(state).teacher_logits)


class _OnlineByLabel(ByLabel):
    own: Any

    def update(self, state: State) -> None:
        self.own.update(by_label(state)[0])


def by_label(state: State) -> tuple[State, Tensor]:
    """The choices of the instances of a batch, one for each label that one has, one for an instance that has none.

    Args:
        state: Of :class:`MultiLabelClassification`, N instances.

    Returns:
        The state of N' >= N choices, whose labels are single classes, and the instance of each, shape (N',).
    """
    if state.targets is None:
        return state, torch.arange(len(state.teacher_logits), device=state.teacher_logits.device)
    has = state.targets == 1
    none = ~has.any(-1)
    instance, label = torch.cat([has, none.unsqueeze(-1)], dim=-1).nonzero(as_tuple=True)
    assert state.labels is not None
    picked = {name: getattr(state, name) for name in state.available()}
    rows: dict[str, Any] = {name: value[instance] for name, value in picked.items() if isinstance(value, Tensor)}
    rows["labels"] = torch.where(none[instance], state.labels[instance], label)
    return replace(state, **rows), instance


def _added(values: Tensor, instance: Tensor, count: int) -> Tensor:
    return values.new_zeros(count, *values.shape[1:]).index_add_(0, instance, values)
