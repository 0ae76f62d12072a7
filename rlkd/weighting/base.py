"""The contract of a weighting, and what the entries of the registry are built from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from rlkd.data.task import Task
from rlkd.errors import WeightingError
from rlkd.logit_cache import answered_ids, read_state
from rlkd.types import LogitSource, State
from rlkd.weighting.absent import check_taught, has_somebody, rows_of, spread, without_absent
from rlkd.weighting.arguments import refuse_argument
from rlkd.weighting.checks import check_taught_logits, check_weights

Answers = Literal["classes", "numbers", "either"]
"""What a weighting takes the teachers' answers for: scores of classes, numbers of a regression, or nothing."""
TIE = 1e-6
"""Numbers that differ by less, relative to their size where that is above 1, are ties: float32 cannot tell them."""


@runtime_checkable
class Weighting(Protocol):
    """Anything that maps a state to weights over its teachers.

    That is all that a class of one's own needs, with ``build`` (:class:`WeightingBuilder`) if it is called by name.
    What it may have beside this: ``falls_back``, a few words on what it does for instances without a label although it
    requires labels (without them it is refused where labels are missing); ``adjust(state)``, the state with other
    teacher logits, which the student is taught then; ``loss_scale(state)``, shape (...), by which the divergence of an
    instance is multiplied; ``answers``, one of ``Answers``, without which it reads classes. A subclass of
    :class:`BaseWeighting` has defaults, and says all of a batch in ``taught``.
    """

    @property
    def requires(self) -> frozenset[str]:
        """Fields of the :class:`~rlkd.types.State` that it reads beside the teacher logits."""

    def weights(self, state: State) -> Tensor:
        """Weights of a batch.

        Args:
            state: With the fields that ``requires`` names.

        Returns:
            Rows on the simplex, shape (..., K), float32, zero where a teacher is absent, detached. A weighting that
            requires labels may give a row of zeros to an instance with a label: no teacher, the label alone is taught.
            :func:`mixture` refuses anything else.
        """


@runtime_checkable
class OnlineWeighting(Weighting, Protocol):
    """A weighting that learns while the student does; the trainer works on a copy and keeps it in its checkpoints."""

    def update(self, state: State) -> None:
        """Learn from a batch; called once a training batch, after its weights were taken.

        Args:
            state: With the student's logits from the forward pass of the step.
        """

    def state_dict(self) -> dict[str, Any]:
        """What was learned, as plain values that JSON can hold."""

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            WeightingError: If the values are not those of this weighting.
        """


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What a student is taught of a batch."""

    teacher_logits: Tensor
    """Shape (..., K, C)."""
    weights: Tensor
    """Rows on the simplex, shape (..., K)."""
    scale: Tensor | None = None
    """Factor of each instance's divergence, shape (...); None: 1."""
    checked: bool = False
    """Whether the weights were checked when they were computed, and need not be again."""
    complete: bool = False
    """Whether it is known that every row has a teacher: none is of zeros, which its label would teach alone."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a weighting may be fitted on: the task without its test rows, and its teachers' logits."""

    task: Task
    source: LogitSource
    seed: int = 0

    @classmethod
    def of(cls, task: Task, source: LogitSource, seed: int = 0) -> Self:
        """Cut a task and its teachers to what may be fitted on."""
        view = task.training_view()
        return cls(task=view, source=source.head(len(view.table)), seed=seed)

    def labelled_state(self, *splits: str) -> State:
        """The state of the labelled rows of some splits that somebody answered about."""
        ids = np.concatenate([self.task.labelled_ids(split) for split in splits])
        return read_state(self.task, self.source, torch.from_numpy(answered_ids(self.source, ids)))


class BaseWeighting:
    """A weighting with a default for everything but its weights: it needs nothing, and teaches the logits as they are.

    Subclasses say otherwise by a property, or by an attribute of the class.
    """

    name: ClassVar[str] = ""
    """In the registry; a user's own has none."""

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Make it from its name alone; see :class:`WeightingBuilder`."""
        refuse_argument(cls.name, argument)
        return cls()

    @property
    def requires(self) -> frozenset[str]:
        """Fields of the :class:`~rlkd.types.State` that it reads beside the teacher logits."""
        return frozenset()

    @property
    def falls_back(self) -> str:
        """What it does for instances without a label although it requires labels; empty: it cannot be used there."""
        return ""

    @property
    def answers(self) -> Answers:
        """What it takes the teachers' answers for: what reads classes makes nothing of the numbers of a regression."""
        return "classes"

    @property
    def by_row(self) -> bool:
        """Whether the weights of an instance follow from what task and cache say of it alone, to the last bit.

        Neither from others in its batch, nor the student or its age, nor chance. A trainer then asks once a row
        (:func:`~rlkd.weighting.by_row.once_a_row`). Of this and ``kept_as`` only what its own class says is believed:
        a subclass of one that says so says it again.
        """
        return False

    @property
    def kept_as(self) -> str | None:
        """Names what a weighting by row does: equal names, equal weights. None: they are computed anew each run."""
        return None

    @property
    def called(self) -> str:
        """What errors call it: ``module:Class``, which also names a user's own in the registry."""
        return _class_name(self)

    def weights(self, state: State) -> Tensor:
        """Weights of a batch, see :meth:`Weighting.weights`."""
        raise NotImplementedError(f"{self.called} needs a method weights(state)")

    def taught(self, state: State) -> Mixture:
        """Everything that a student is taught of a batch; :func:`mixture` asks for it, and checks it.

        Args:
            state: With the fields that ``requires`` names.

        Returns:
            Logits (..., K, C), weights (..., K), and a scale (...) >= 0 where the divergence is to be multiplied.
        """
        right = state.teacher_mask is None and "plainly_right" in vars(type(self))
        weights = self.weights(state)
        return Mixture(teacher_logits=state.teacher_logits, weights=weights, checked=right, complete=right)


class AdaptedWeighting(BaseWeighting):
    """A weighting that is no :class:`BaseWeighting`, asked once for what it may have; see :func:`adapted`."""

    def __init__(self, own: Weighting) -> None:
        """Hold a user's own weighting."""
        self.own = own
        self._adjust, self._loss_scale = getattr(own, "adjust", None), getattr(own, "loss_scale", None)

    @property
    def requires(self) -> frozenset[str]:
        """What the user's own requires; None, which :func:`~rlkd.weighting.check_requirements` refuses, without it."""
        return cast(frozenset[str], getattr(self.own, "requires", None))

    @property
    def falls_back(self) -> str:
        """What the user's own does without labels, if it says so."""
        return str(getattr(self.own, "falls_back", ""))

    @property
    def answers(self) -> Answers:
        """What the user's own says, classes if it says nothing."""
        return cast(Answers, getattr(self.own, "answers", "classes"))

    @property
    def called(self) -> str:
        """The user's own class."""
        return _class_name(self.own)

    def weights(self, state: State) -> Tensor:
        """The user's own."""
        return self.own.weights(state)

    def taught(self, state: State) -> Mixture:
        """The user's own weights and scale, of the logits that it adjusts.

        Raises:
            WeightingError: What it adjusts a state to is none.
        """
        if self._adjust is not None:
            state = self._adjust(state)
            if not isinstance(state, State):
                raise WeightingError(
                    f"weighting {self.called!r} must adjust a state to a state with teacher logits, got "
                    f"{type(state).__name__}; return dataclasses.replace(state, ...)"
                )
        scale = None if self._loss_scale is None else self._loss_scale(state)
        return Mixture(teacher_logits=state.teacher_logits, weights=self.weights(state), scale=scale)


class _AdaptedOnlineWeighting(AdaptedWeighting):
    """The same of an :class:`OnlineWeighting`."""

    own: OnlineWeighting

    def update(self, state: State) -> None:
        self.own.update(state)

    def state_dict(self) -> dict[str, Any]:
        return self.own.state_dict()

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        self.own.load_state_dict(values)


def adapted(weighting: Weighting) -> BaseWeighting:
    """A weighting where it enters: ours as it is, a user's own with defaults for what it does not have."""
    if isinstance(weighting, BaseWeighting):
        return weighting
    return (_AdaptedOnlineWeighting if isinstance(weighting, OnlineWeighting) else AdaptedWeighting)(weighting)


def _class_name(weighting: object) -> str:
    cls = type(weighting)
    return f"{cls.__module__}:{cls.__qualname__}"


def mixture(weighting: BaseWeighting, state: State) -> Mixture:
    """Ask a weighting for everything it says about a batch, and check it: everybody who teaches a student does it here.

    It is not asked about instances without a teacher, which their labels teach; logits of absent teachers are zeros.

    Raises:
        WeightingError: If what it says are no weights, see :func:`~rlkd.weighting.checks.check_weights`.
        TeacherError: An instance has no teacher and no label.
    """
    somebody = has_somebody(state)
    if somebody is None:
        return _mixture(weighting, without_absent(state))
    check_taught(state, somebody)
    part = rows_of(without_absent(state), somebody)
    nothing = Mixture(teacher_logits=part.teacher_logits, weights=part.teacher_logits[..., 0])
    taught = _mixture(weighting, part) if len(part.teacher_logits) else nothing
    return Mixture(**spread(vars(taught), somebody), checked=True)


def _mixture(weighting: BaseWeighting, state: State) -> Mixture:
    taught = weighting.taught(state)
    if taught.checked:
        return taught
    name = weighting.called
    check_taught_logits(taught.teacher_logits, state, name)
    complete = check_weights(taught.weights, state, name, taught.scale)
    return Mixture(
        teacher_logits=taught.teacher_logits,
        weights=taught.weights.detach().float(),
        scale=None if taught.scale is None else taught.scale.detach().float(),
        complete=complete,
    )


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
