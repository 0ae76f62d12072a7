"""Kinds of task: what is taught of a batch, what a weighting sees of it, and the loss. A new kind is one class.

Weightings know one kind, the choice of one of C classes by one instance. Every other kind shows them its batch as such
choices on the leading axes of a :class:`~rlkd.types.State`, so that none of them knows of it; what cannot be shown so
is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlkd.errors import ConfigError, TeacherError, WeightingError
from rlkd.losses import cross_entropy, distillation_loss, multi_label_loss, regression_loss, squared_error
from rlkd.settings import LossSettings
from rlkd.types import State
from rlkd.weighting.base import Answers, BaseWeighting, Mixture, OnlineWeighting, normalised


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
    """Which of its outputs each teacher tells at all, bool, shape (K, D). None: all. Read where outputs are alone."""
    name: ClassVar[str] = "single-label classification"
    answers: ClassVar[Answers] = "classes"
    lacks: ClassVar[frozenset[str]] = frozenset()
    """Fields of a state that teachers may tell, and that mean nothing here."""
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
        return torch.where(labels >= 0, labels, -1)

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
        return replace(known, labels=known.labels if labels is None else labels, student_logits=student.detach())

    def losses(self, student: Tensor, state: State, taught: Mixture, settings: LossSettings) -> Tensor:
        """The loss of every instance, shape (...), of the student's own outputs, whose gradient is wanted."""
        return class_losses(student, state.labels, taught, settings)

    def label_losses(self, student: Tensor, state: State) -> tuple[Tensor, Tensor] | None:
        """Loss to the label of every instance, 0 where it has none, and whether it has one; None: nobody has."""
        return None if state.labels is None else (cross_entropy(student, state.labels), state.labels >= 0)


def class_losses(student: Tensor, labels: Tensor | None, taught: Mixture, settings: LossSettings) -> Tensor:
    """:func:`rlkd.losses.distillation_loss` with the settings of a run."""
    return distillation_loss(
        student, taught.teacher_logits, taught.weights, labels, scale=taught.scale, **_all(settings)
    )


def _all(settings: LossSettings) -> dict[str, Any]:
    return {
        "temperature": settings.temperature,
        "kd_ratio": settings.kd_ratio,
        "mix": settings.mix,
        "scale_by_temperature": settings.scale_by_temperature,
        "divergence": settings.divergence,
    }


class TokenClassification(Kind):
    """Every token has one of C classes; those without a label, padding among them, are not taught."""

    name = "token classification"
    causal: ClassVar[bool] = False

    def positions(self, batch: Mapping[str, Any]) -> Positions:
        """Tokens with a label; without labels all that the ``attention_mask`` has."""
        labels, causal = batch.get("labels"), self.causal
        if labels is None:
            mask = batch.get("attention_mask")
            taken = torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
            taken = taken[:, 1:] if causal else taken
            return Positions(taken, None, int(taken.sum()), causal)
        told = labels[:, 1:] if causal else labels
        taken = told >= 0
        return Positions(taken, told[taken], int(taken.sum()), causal)

    def state(self, known: State, student: Tensor, labels: Tensor | None) -> State:
        """The tokens that are taught, one after the other.

        Raises:
            TeacherError: Teachers tell something of rows, as caches do.
        """
        if len(known.teacher_logits) != len(student):
            raise TeacherError(
                f"{self.name} needs an answer of every teacher for each of {len(student)} tokens, got one for each of "
                f"{len(known.teacher_logits)} rows, as a cache or a classifier of texts has them; pass models of the "
                "student's kind"
            )
        return super().state(known, student, labels)


class CausalTokens(TokenClassification):
    """Every token is told by those before it."""

    name = "tokens of a causal model"
    causal = True


class MultiLabelClassification(Kind):
    """An instance may have each of L labels: log odds z of every label, and one weight per teacher for the instance.

    A student learns every label by itself: it is a choice of two classes, with a Bernoulli divergence to the mixture of
    the teachers' probabilities. What a weighting sees is the instance, not the label: a choice among L + 1 classes with
    the scores (z, 0), each label and none of them, which is what independent labels say where at most one is there.
    An instance that has several is as many choices, one of each, and its weights are their mean.

    Why not the two-class choices themselves, with weights (..., L, K)? Most labels are absent of most instances, and
    every teacher is sure of that, those that never saw such an instance surest of all. Averaged over the labels of an
    instance, weights of formulas and policies then come out equal (``benchmarks/kinds.py`` has the figures), while
    among all labels a teacher that knows none of an instance's is plainly unsure which.
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

    def losses(self, student: Tensor, state: State, taught: Mixture, settings: LossSettings) -> Tensor:
        """Every label's own loss under the weights of the instance; a teacher that lacks a label is left out there."""
        log_odds = taught.teacher_logits[..., :-1] - taught.teacher_logits[..., -1:]
        weights = taught.weights.unsqueeze(-2).expand(*student.shape, -1)
        if self.covers is not None:
            told = self.covers.to(weights.device).T.expand(weights.shape)
            somebody = told.any(-1, keepdim=True) & (weights.sum(-1, keepdim=True) > 0)
            weights = torch.where(somebody, normalised(weights * told, told), 0.0)
        return multi_label_loss(student, log_odds, weights, state.targets, scale=taught.scale, **_all(settings))

    def label_losses(self, student: Tensor, state: State) -> tuple[Tensor, Tensor] | None:
        """Mean cross entropy of its labels."""
        if state.targets is None:
            return None
        nobody = student.new_zeros(*student.shape, 1)
        losses = multi_label_loss(student.detach(), student.detach().unsqueeze(-2), nobody, state.targets)
        return losses, ~state.targets.isnan().all(-1)


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
        taught = self.own.taught(one)
        if taught.teacher_logits is not one.teacher_logits:
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


class Regression(Kind):
    """An instance has D numbers, mostly one: the squared error to the teachers' weighted mean.

    There are no classes that a teacher could be sure of: what is observed is what the teachers say, and how far apart
    they are. So formulas of probabilities and policies that observe them are refused, and ``gate`` is there.
    """

    name = "regression"
    answers = "numbers"
    lacks = frozenset({"reliability", "sureness"})
    choose = "'uniform', 'fixed:1,0,...' or 'gate', which learns from the labels"
    measured = "squared_error"

    def check_settings(self, settings: LossSettings) -> None:
        """Numbers have neither a temperature nor probabilities; the divergence is the squared error."""
        wrong = {
            "temperature": settings.temperature != LossSettings.temperature,
            "mix": settings.mix != LossSettings.mix,
            "divergence": settings.divergence not in (LossSettings.divergence, "mse"),
        }
        for setting, is_so in wrong.items():
            if is_so:
                raise ConfigError(
                    f"{setting} {getattr(settings, setting)!r} is of classes, and {self.name} has numbers, whose loss "
                    "is the squared error; leave it out"
                )

    def known(self, labels: Tensor) -> Tensor:
        """The numbers (B, D); NaN where one is not known."""
        return labels.float().reshape(len(labels), -1)

    def state(self, known: State, student: Tensor, labels: Tensor | None) -> State:
        """The teachers' numbers, and whether an instance has a label: 0 or -1.

        Raises:
            ConfigError: Labels and outputs are of different numbers.
        """
        if labels is not None and labels.shape != student.shape:
            raise ConfigError(
                f"{self.name} needs labels {tuple(student.shape)}, a number for each output of the student, got "
                f"{tuple(labels.shape)}; set num_labels of the student to 1, or give classes as integers"
            )
        return replace(
            known,
            student_logits=student.detach(),
            labels=None if labels is None else labels.isnan().all(-1).long().neg(),
            targets=labels,
            sureness=None,
            reliability=None,
        )

    def losses(self, student: Tensor, state: State, taught: Mixture, settings: LossSettings) -> Tensor:
        """Squared errors to the teachers' mean and to the label."""
        return regression_loss(
            student,
            taught.teacher_logits,
            taught.weights,
            state.targets,
            kd_ratio=settings.kd_ratio,
            scale=taught.scale,
        )

    def label_losses(self, student: Tensor, state: State) -> tuple[Tensor, Tensor] | None:
        """Squared error to the label."""
        if state.targets is None:
            return None
        return squared_error(student.detach().float(), state.targets), ~state.targets.isnan().all(-1)


PROBLEM_TYPES: Mapping[str, type[Kind]] = {
    "single_label_classification": Kind,
    "multi_label_classification": MultiLabelClassification,
    "regression": Regression,
}
"""What transformers calls the kinds of instances (``config.problem_type``)."""


def kind_of_instances(problem_type: str | None, outputs: int, labels: Tensor | None) -> type[Kind]:
    """The kind of task of instances, as transformers tells it.

    Args:
        problem_type: What is said of it; None: it follows from the rest.
        outputs: Of the student.
        labels: Of a batch, if there are any.

    Raises:
        ConfigError: There is no such problem type.
    """
    if problem_type is not None:
        if problem_type not in PROBLEM_TYPES:
            raise ConfigError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {problem_type!r}; mend it")
        return PROBLEM_TYPES[problem_type]
    if outputs == 1:
        return Regression
    if labels is None or not labels.is_floating_point():
        return Kind
    return MultiLabelClassification if labels.ndim == 2 and labels.shape[1] > 1 else Regression
