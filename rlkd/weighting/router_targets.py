"""What a router is taught: rows of tasks with targets, under every set of teachers that they are met with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlkd.errors import ConfigError, PolicyError, WeightingError, unknown_name
from rlkd.features import ObservationConfig, teacher_features
from rlkd.logit_cache import answered_ids, read_state
from rlkd.losses import teacher_cross_entropy
from rlkd.types import State
from rlkd.weighting.base import Evidence
from rlkd.weighting.gain import gain_actions, student_of_any_age, teacher_gains
from rlkd.weighting.heuristic import Oracle
from rlkd.weighting.simplex import normalised
from rlkd.weighting.teacher_sets import ROUTER_SETS, TeacherSets

SURE = 0.99
"""Probability of a label from which on a teacher is as right as can be. Teachers have seen the rows that routers learn
from; what they say of them beyond this is memory."""
ROUTER_DRAWS = 4
"""Sets of teachers that a router meets for every row, where they are drawn; they share the steps."""
Lesson = Literal["labels", "gain", "knows"]
LESSONS: tuple[str, ...] = get_args(Lesson)
"""What a router is taught: who is right by the labels (:func:`router_targets`), what each teacher gains a student
(:func:`~rlkd.weighting.gain.teacher_gains`), or what the oracle says, which is told what teachers were trained on."""
SETS: Mapping[str, TeacherSets] = {
    "drawn": ROUTER_SETS,
    "fixed": TeacherSets(),
    "copies": TeacherSets(copies=ROUTER_SETS.copies),
    "absent": TeacherSets(dropout=ROUTER_SETS.dropout),
    "sharpness": TeacherSets(sharpness=ROUTER_SETS.sharpness),
    "classes": TeacherSets(classes=ROUTER_SETS.classes),
}
"""Which sets of teachers a router meets: other ones beside its own, its own alone, or those that differ in one way."""


@dataclass(frozen=True, kw_only=True)
class RouterSettings:
    """How a router is fitted."""

    observation: ObservationConfig = field(default_factory=ObservationConfig)
    lesson: Lesson = "labels"
    sets: str = "drawn"
    """A key of ``SETS``."""
    rows: int | None = None
    """Labelled rows of a task at most; None: all. Range: >= 1."""
    fit_strength: bool = False
    """Go as far as what is taught gets likelier by it, not as far as the lesson says: for routers that travel."""

    def __post_init__(self) -> None:
        """Check names.

        Raises:
            UnknownNameError: There is no such lesson, or no such choice of sets.
            PolicyError: The observation has the student in it.
        """
        if self.lesson not in LESSONS:
            raise unknown_name("lesson of a router", self.lesson, LESSONS)
        if self.sets not in SETS:
            raise unknown_name("choice of a router's sets of teachers", self.sets, SETS)
        if self.lesson == "knows" and self.sets != "fixed":
            raise ConfigError(
                "what an oracle knows of drawn sets and merged classes is nowhere written, got sets "
                f"{self.sets!r}; set sets to 'fixed'"
            )
        if self.rows is not None and self.rows < 1:
            raise ConfigError(f"a router needs rows >= 1 to learn from, got {self.rows}; raise it, or leave it out")
        if self.observation.student:
            raise PolicyError(
                "a router needs a portable observation, got one with student features; leave observe_student off, or "
                "switch the warm start off"
            )

    def described(self) -> list[Any]:
        """Plain values that change with anything that changes the fit."""
        values = [self.observation.to_dict(), self.lesson, asdict(SETS[self.sets]), self.rows]
        return [*values, "fit_strength"] if self.fit_strength else values


@dataclass(frozen=True, kw_only=True)
class RouterRows:
    """What a router learns from: N rows of a task, each with J places for teachers."""

    features: Tensor
    """Shape (N, J, F)."""
    targets: Tensor
    """Shape (N, J), see ``Lesson``."""
    said: Tensor
    """The probability that each teacher gives the label, 0 where there is none, shape (N, J)."""
    unseen: Tensor
    """Rows that no teacher was trained on, bool, shape (N,)."""

    @classmethod
    def together(cls, parts: Sequence[Self]) -> Self:
        """One after the other."""
        return cls(**{one.name: torch.cat([getattr(part, one.name) for part in parts]) for one in fields(cls)})

    def take(self, rows: Tensor, places: int) -> Self:
        """These rows, with this many places for teachers; those that are more are empty."""
        empty = places - self.targets.shape[1]
        return type(self)(
            features=F.pad(self.features[rows], (0, 0, 0, empty)),
            targets=F.pad(self.targets[rows], (0, empty)),
            said=F.pad(self.said[rows], (0, empty)),
            unseen=self.unseen[rows],
        )


def router_targets(state: State) -> Tensor:
    """What a router learns to say, shape (..., K), from labels alone: who is right, and how surely.

    In proportion to the odds that a teacher gives the label, cut at those of ``SURE``: it is no better to be surer.
    """
    assert state.labels is not None
    probability = torch.exp(-teacher_cross_entropy(state.teacher_logits, state.labels)).clamp(1e-6, SURE)
    return normalised(probability / (1 - probability), state.present)


def check_teachers(evidence: Evidence, settings: RouterSettings) -> None:
    """Refuse teachers that lack what settings ask for, before any fit.

    Raises:
        WeightingError: Says what they lack.
    """
    if settings.observation.reliability and evidence.source.reliability is None:
        raise WeightingError(
            "router:reliability needs the teachers' reliability, got teachers without; use a cache and a task with "
            "labelled validation rows"
        )
    if settings.lesson == "knows" and evidence.source.knowledge is None:
        raise WeightingError(
            "router:knows needs teachers that all say what they were trained on (teacher.json, 'knows'), got none "
            "that do; 'router' reads labels alone"
        )


def router_rows(evidence: Evidence, settings: RouterSettings) -> RouterRows:
    """The rows of a task with every set of teachers that they are met with."""
    task, sets = evidence.task, SETS[settings.sets]
    labelled = np.concatenate([task.labelled_ids(split) for split in ("train", "probe")])
    ids = torch.from_numpy(answered_ids(evidence.source, labelled))
    if len(ids) == 0:
        raise WeightingError(
            "a router needs labelled train or probe rows that teachers answered about, got none; label some, or leave "
            "'router' out"
        )
    rows = torch.randperm(len(ids), generator=torch.Generator().manual_seed(evidence.seed))[: settings.rows]
    state, random = read_state(task, evidence.source, ids[rows]), np.random.default_rng(evidence.seed)
    told = None
    if settings.lesson == "knows":
        told = Oracle.build(None, evidence).weights(state)
    met = []
    for other, chosen in sets.draws(state, random, ROUTER_DRAWS if sets.vary else 1):
        if told is not None:
            targets = normalised(told.gather(-1, chosen), other.present)
        elif settings.lesson == "gain":
            gains = teacher_gains(other, student_of_any_age(other, random))
            targets = gain_actions(gains, other.present)
        else:
            targets = router_targets(other)
        assert other.labels is not None
        assert other.ids is not None
        said = torch.exp(-teacher_cross_entropy(other.teacher_logits, other.labels)) * other.present
        met.append(
            RouterRows(
                features=teacher_features(other, settings.observation),
                targets=targets,
                said=said,
                unseen=torch.isin(other.ids, torch.from_numpy(task.splits["probe"])),
            )
        )
    return RouterRows.together(met)


def in_equal_shares(tasks: Sequence[RouterRows], seed: int) -> RouterRows:
    """Rows of all tasks in one, in equal shares: those of small tasks repeated, places of small sets left empty."""
    if len(tasks) == 1:
        return tasks[0]
    generator = torch.Generator().manual_seed(seed)
    share = round(sum(len(one.unseen) for one in tasks) / len(tasks))
    places = max(one.targets.shape[1] for one in tasks)
    parts = []
    for one in tasks:
        order = torch.randperm(len(one.unseen), generator=generator)
        parts.append(one.take(order.repeat(-(-share // len(order)))[:share], places))
    return RouterRows.together(parts)
