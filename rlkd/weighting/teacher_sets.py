"""Other sets of teachers for the instances of a batch: what is learned on one set is to serve on others."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.errors import ConfigError
from rlkd.features import usual_sureness
from rlkd.settings import EpisodeSettings
from rlkd.settings.knobs import check
from rlkd.types import State, pick_teachers


@dataclass(frozen=True, kw_only=True)
class TeacherSets:
    """How an instance's set of teachers differs from the real one.

    A network that only ever saw three teachers learns what agreement means among three. Copies make sets larger and
    agreement cheap: a teacher and its copy agree without being right.
    """

    copies: int = EpisodeSettings.teacher_copies
    """At most so many further places in the set, each held by a copy of a teacher drawn for the instance; how many are
    held is drawn too, so that the real set is met beside larger ones. Range: >= 0."""
    dropout: float = EpisodeSettings.teacher_dropout
    """Chance that a place is empty. Range: [0, 1)."""

    sharpness: float = 0.0
    """Largest factor, as its logarithm, by which the logits in a place are multiplied or divided: how sure a teacher
    sounds says little of how often it is right. Range: >= 0."""
    classes: bool = False
    """Let the instances be of other tasks, see :func:`other_tasks`; only where no student is taught them."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check(EpisodeSettings, teacher_copies=self.copies, teacher_dropout=self.dropout)
        if not 0 <= self.sharpness < float("inf"):
            raise ConfigError(f"the sharpness of drawn teachers must be finite and >= 0, got {self.sharpness}")

    @property
    def vary(self) -> bool:
        """Whether any set differs from the real one."""
        return self.copies > 0 or self.dropout > 0 or self.sharpness > 0 or self.classes

    def draws(self, state: State, random: np.random.Generator, times: int) -> Iterator[tuple[State, Tensor]]:
        """Draw sets for all instances several times, of other tasks too where ``classes`` says so.

        Args:
            state: Of K teachers, shape (B, K, C), every instance with a label.
            random: The only source of randomness.
            times: How often every instance is met, but for what :func:`other_tasks` leaves out.

        Yields:
            What :meth:`draw` gives, of instances that share their classes.
        """
        for _ in range(times):
            for part in other_tasks(state, random) if self.classes else [state]:
                yield self.draw(part, random)

    def draw(self, state: State, random: np.random.Generator) -> tuple[State, Tensor]:
        """Draw a set of J = K + copies places for every instance.

        Args:
            state: Of K teachers, shape (B, K, C).
            random: The only source of randomness.

        Returns:
            The same instances with their drawn sets, and which teacher holds each place, int64, shape (B, J).
        """
        rows, teachers = state.teacher_logits.shape[:2]
        chosen = torch.arange(teachers).expand(rows, teachers)
        held, there = np.ones((rows, teachers), dtype=bool), state.present.numpy()
        if self.copies > 0:
            drawn = torch.from_numpy(random.integers(teachers, size=(rows, self.copies)))
            copied = np.arange(self.copies) < random.integers(self.copies + 1, size=(rows, 1))
            chosen, held = torch.cat([chosen, drawn], dim=1), np.concatenate([held, copied], axis=1)
            state = pick_teachers(state, chosen)
            there = state.present.numpy()
        if self.dropout > 0:
            kept = held & (random.random(chosen.shape) >= self.dropout)
            held = np.where((kept & there).any(axis=1, keepdims=True), kept, held)  # somebody has to be there
        if not held.all():
            state = replace(state, teacher_mask=torch.from_numpy(held) & state.present)
        if self.sharpness > 0:
            factors = torch.from_numpy(np.exp(random.uniform(-self.sharpness, self.sharpness, size=(*chosen.shape, 1))))
            usually = None if state.sureness is None else state.sureness * factors.squeeze(-1).float()
            state = replace(state, teacher_logits=state.teacher_logits * factors.float(), sureness=usually)
        return state, chosen


PARTS = 6
"""Tasks that the instances of one are dealt to."""


def other_tasks(state: State, random: np.random.Generator) -> Iterator[State]:
    """Deal labelled instances to tasks of other classes: as they are, with some merged, or with some left out.

    Merged classes have the sum of their probabilities; what is left of others keeps its proportions. So one task of 77
    classes is met as many of 2 to 77, finer and coarser, in which teachers are sure of other things.

    Args:
        state: Shape (B, K, C), every instance with a label.
        random: The only source of randomness.

    Yields:
        Instances with logits and labels of C' classes, 2 <= C' <= C; those of classes left out are in none.
    """
    assert state.labels is not None
    rows, classes = len(state.labels), state.teacher_logits.shape[-1]
    for part in np.array_split(random.permutation(rows), min(PARTS, rows)):
        dealt = _rows_of(state, torch.from_numpy(part))
        how = random.integers(3) if classes > 2 else 0
        if how > 0:
            count = int(random.integers(2, classes + 1))
            dealt = (_merged if how == 1 else _reduced)(dealt, random.permutation(classes), count)
        if len(dealt.teacher_logits):
            yield dealt if how == 0 or dealt.sureness is None else _surer(dealt)


def _surer(state: State) -> State:
    """As usually sure as the teachers are of its classes."""
    usual = usual_sureness(state.teacher_logits, state.teacher_mask)
    return replace(state, sureness=usual.expand(len(state.teacher_logits), -1))


def _merged(state: State, order: NDArray[np.int64], count: int) -> State:
    """With so many classes, each the sum of some; classes in a random order are dealt in turn."""
    assert state.labels is not None
    place = torch.from_numpy(order % count)
    log_p = torch.log_softmax(state.teacher_logits.float(), dim=-1)
    logits = torch.stack([log_p[..., place == group].logsumexp(-1) for group in range(count)], dim=-1)
    return replace(state, teacher_logits=logits, labels=place[state.labels])


def _reduced(state: State, order: NDArray[np.int64], count: int) -> State:
    """With the first so many classes of an order, and the instances of these."""
    assert state.labels is not None
    kept = torch.from_numpy(np.sort(order[:count]))
    dealt = _rows_of(state, torch.isin(state.labels, kept).nonzero().squeeze(-1))
    assert dealt.labels is not None
    return replace(dealt, teacher_logits=dealt.teacher_logits[..., kept], labels=torch.searchsorted(kept, dealt.labels))


def _rows_of(state: State, rows: Tensor) -> State:
    """Some instances of a state whose fields all begin with the instances' axis."""
    tensors = {name: getattr(state, name) for name in state.available()}
    picked: dict[str, Any] = {name: value[rows] for name, value in tensors.items() if isinstance(value, Tensor)}
    return replace(state, **picked)


ROUTER_SETS = TeacherSets(copies=2, dropout=0.1, sharpness=0.35, classes=True)
"""What scorers that are fitted with labels meet unless they are told otherwise."""
