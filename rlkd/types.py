"""What a weighting sees, what gives logits, and what acts in an environment: the seams of the house."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ONCE = "once-"
"""Begins the identity of a teacher whose code cannot be told apart from another's: no cache is reused for it."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything known about a batch of instances when the teachers are weighted.

    Leading axes ``...`` are free: a batch (B,), a batch of tokens (B, L), students by batch (E, B).
    Axes: K teachers, C classes, D embedding, H student hidden.
    """

    teacher_logits: Tensor
    """Shape (..., K, C), unnormalised; of a regression the teachers' numbers (..., K, D)."""
    teacher_mask: Tensor | None = None
    """Shape (..., K), bool; False where a teacher is absent. None: all present."""
    student_logits: Tensor | None = None
    """Shape (..., C), detached."""
    student_hidden: Tensor | None = None
    """Shape (..., H), input of the student's last layer."""
    labels: Tensor | None = None
    """Shape (...), int64; -1 where an instance has no label."""
    targets: Tensor | None = None
    """Shape (..., D), where a label is no single class: the D numbers of a regression, or 0 and 1 of the D labels that
    an instance may have; NaN where unknown. ``labels`` then says whether anything is known."""
    embeddings: Tensor | None = None
    """Shape (..., D), of the instances."""
    affinity: Tensor | None = None
    """Shape (..., K), cosine to each teacher's training data, centred over teachers, in [-1, 1]."""
    reliability: Tensor | None = None
    """Shape (..., K, 2), of each teacher on the labelled validation rows: log odds of its accuracy, and its mean
    confidence minus its accuracy."""
    sureness: Tensor | None = None
    """Shape (..., K) or (K,), how sure each teacher usually is: mean lead of its largest logit over the second, see
    :func:`rlkd.features.usual_sureness`. No label is read for it."""
    ids: Tensor | None = None
    """Shape (...), int64 instance ids."""
    domains: Tensor | None = None
    """Shape (...), int64 domain ids."""
    progress: float | None = None
    """Share of the student's training budget that is spent, in [0, 1]."""
    temperature: float | None = None
    """Of the distillation loss, > 0, for weightings that read its gradient. None: 1."""
    divergence: Literal["kl", "mse", "mse_centred"] | None = None
    """Of the distillation loss, likewise. None: ``"kl"``."""

    def available(self) -> frozenset[str]:
        """Names of the fields that are given."""
        return frozenset(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def but(self, **changes: Any) -> "State":
        """The same with other fields, as :func:`dataclasses.replace` makes it, in a quarter of the time."""
        if not changes.keys() <= FIELDS:
            return replace(self, **changes)  # which says what is wrong
        other = object.__new__(State)
        vars(other).update(vars(self), **changes)
        return other

    @property
    def present(self) -> Tensor:
        """Bool mask of present teachers, shape (..., K)."""
        if self.teacher_mask is not None:
            return self.teacher_mask
        return torch.ones(self.teacher_logits.shape[:-1], dtype=torch.bool, device=self.teacher_logits.device)


FIELDS = frozenset(field.name for field in fields(State))


def on_device(state: State, device: torch.device) -> State:
    """The same state with every tensor on ``device``."""
    there = {name: value for name, value in vars(state).items() if isinstance(value, Tensor) and value.device != device}
    moved: dict[str, Any] = {name: value.to(device) for name, value in there.items()}
    return replace(state, **moved) if moved else state


def in_parts(state: State, most: int) -> Iterator[State]:
    """The instances of a batch (B,), so many at once; one part where they are no more, whatever the leading axes.

    Args:
        state: The batch.
        most: At least 1.
    """
    if state.teacher_logits.ndim != 3 or len(state.teacher_logits) <= most:
        yield state
        return
    by_row = {
        name: value
        for name in state.available()
        if isinstance(value := getattr(state, name), Tensor) and (name != "sureness" or value.ndim > 1)
    }
    for start in range(0, len(state.teacher_logits), most):
        part: dict[str, Any] = {name: value[start : start + most] for name, value in by_row.items()}
        yield replace(state, **part)


def pick_teachers(state: State, chosen: Tensor) -> State:
    """The same instances with another set of teachers each.

    Args:
        state: Of K teachers.
        chosen: Which teacher holds each of the J places of an instance's set, int64, shape (..., J).
    """
    logits = state.teacher_logits
    index = chosen.unsqueeze(-1).expand(*chosen.shape, logits.shape[-1])
    picked = {name: getattr(state, name) for name in ("teacher_mask", "affinity", "sureness")}
    known = state.reliability
    return replace(
        state,
        teacher_logits=logits.gather(-2, index),
        reliability=None if known is None else known.gather(-2, chosen.unsqueeze(-1).expand(*chosen.shape, 2)),
        **{
            name: None if value is None else value.expand(logits.shape[:-1]).gather(-1, chosen)
            for name, value in picked.items()
        },
    )


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """Which teacher was trained on which classes or domains, where that is known."""

    by: Literal["class", "domain"]
    groups: tuple[str, ...]
    """Names of the G classes or domains."""
    matrix: NDArray[np.bool_]
    """Shape (K, G); True where the teacher knows the group."""


@dataclass(frozen=True, kw_only=True)
class InnerStates:
    """What a transformer holds while it reads a batch; of its states and layers those that were asked for."""

    mask: Tensor
    """Shape (B, L), bool; False at padding."""
    hidden: Mapping[int, Tensor]
    """State number to (B, L, H): 0 is the output of the embeddings, j that of layer j."""
    attention: Mapping[int, Tensor]
    """Layer number from 0 to (B, heads, L, L): scores before the softmax, unmasked."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which inner states are asked for."""

    hidden: tuple[int, ...] = ()
    attention: tuple[int, ...] = ()

    def __or__(self, other: "Wanted") -> "Wanted":
        """What either asks for."""
        return Wanted(
            hidden=tuple(sorted({*self.hidden, *other.hidden})),
            attention=tuple(sorted({*self.attention, *other.attention})),
        )


class LogitSource(Protocol):
    """Anything that gives the teachers' logits of instances: a cache on disk, or live teachers."""

    @property
    def teacher_names(self) -> Sequence[str]:
        """Names of the K teachers, in the order of the K axis."""

    @property
    def knowledge(self) -> Knowledge | None:
        """Who knows what, or None where it is not known of every teacher."""

    @property
    def reliability(self) -> Tensor | None:
        """How far each teacher is to be trusted, shape (K, 2), see :class:`State`; None where it was not measured."""

    def rows(self, ids: Tensor) -> Tensor:
        """Teacher logits of the instances ``ids`` (B,), float32, shape (B, K, C)."""

    def mask_rows(self, ids: Tensor) -> Tensor | None:
        """Which teachers answered about the instances, bool, shape (B, K); None: all about all of them."""

    @property
    def has_affinity(self) -> bool:
        """Whether :meth:`affinity_rows` gives anything."""

    def affinity_rows(self, ids: Tensor) -> Tensor | None:
        """Affinity of the instances to each teacher, shape (B, K), or None where it was not computed."""

    @property
    def has_sureness(self) -> bool:
        """Whether it was measured how sure each teacher usually is."""

    def sureness_rows(self, ids: Tensor) -> Tensor | None:
        """How sure each teacher usually is, once for each of the instances, shape (B, K), or None; see `State`."""

    @property
    def embedding_size(self) -> int:
        """Length D of the instance embeddings; 0 where there are none."""

    def embedding_rows(self, ids: Tensor) -> Tensor | None:
        """Embeddings of the instances, float32, shape (B, D), or None where none were kept."""

    def head(self, rows: int) -> "LogitSource":
        """The same source over the first ``rows`` instances only."""


class LogitsAlone:
    """What a :class:`LogitSource` says that gives logits, everybody's about everything, and nothing beside them."""

    knowledge: Knowledge | None = None
    reliability = None
    has_affinity = False
    has_sureness = False
    embedding_size = 0

    def nothing(self, ids: Tensor) -> None:
        """None: it is not known of any instance."""
        return

    mask_rows = affinity_rows = sureness_rows = embedding_rows = nothing


@runtime_checkable
class InnerStateSource(LogitSource, Protocol):
    """A source that also tells what its teachers hold inside: live encoders."""

    def inner_states(self, ids: Tensor, wanted: Sequence[Wanted]) -> tuple[InnerStates, ...]:
        """Inner states of the K teachers on the instances ``ids`` (B,), detached; ``wanted`` has K entries."""

    def tokens(self, ids: NDArray[np.int64]) -> Sequence[Mapping[str, Tensor]]:
        """What each of the K teachers reads of the instances ``ids`` (B,)."""


def is_teacher(thing: object) -> bool:
    """Whether something gives logits itself, as a :class:`rlkd.models.teachers.Teacher` does; it is not asked."""
    return callable(getattr(thing, "logits", None))


class Actor(Protocol):
    """A policy that brings its own observation and its own meaning of an action, as those of published systems do."""

    num_features: int
    """F of one teacher; the first is 1 where the teacher is there, 0 where it is not."""
    observation_bound: float
    action_kind: str
    """``subset``: actions select teachers; ``scores``: actions are real numbers, one a teacher."""
    action_bound: float

    @property
    def reads_student(self) -> bool:
        """Whether :meth:`observe` reads the student's logits."""

    def observe(self, state: State) -> Tensor:
        """Observation, shape (B, K, F)."""

    def mix(self, actions: Tensor, rows: Tensor) -> Tensor:
        """Weights of actions (B, K) at observations (B, K, F); a row of zeros is taught by its label."""
