"""The plan of a teacher: all that decides its weights, checked before anything is trained."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from torch import Tensor, nn

from rlkd.data.splitting import check_seed
from rlkd.data.task import Task
from rlkd.errors import ConfigError, StudentError, TaskError, TeacherError, nearest
from rlkd.models.estimators import ESTIMATORS, check_estimator
from rlkd.models.specialists import known_names, known_rows
from rlkd.models.students import STUDENTS, check_student
from rlkd.models.teachers import KnowsBy
from rlkd.records import digest
from rlkd.settings import FINE_TUNING_RATE, FROM_SCRATCH_RATE, TeacherTraining
from rlkd.types import InnerStates, Wanted


class Objective(Protocol):
    """What a network is trained on instead of the cross entropy to the label."""

    wanted: Wanted
    """Inner states of the network that it reads."""
    module: nn.Module
    """Trained beside the network; no part of the classifier that is saved."""

    def losses(self, logits: Tensor, inside: InnerStates, ids: Tensor, labels: Tensor) -> Tensor:
        """One value for each instance of a batch, shape (B,), of logits (B, C), ``ids`` (B,) and ``labels`` (B,)."""

    def described(self) -> Mapping[str, Any]:
        """Plain values that change with anything that changes the losses."""

    def save(self, directory: Path) -> None:
        """Write what was trained beside the network."""


@dataclass(frozen=True)
class TeacherSettings:
    """All that decides one teacher's weights."""

    kind: str
    known: tuple[str, ...] | None
    knows_by: KnowsBy | None
    max_length: int
    epochs: float
    learning_rate: float
    batch_size: int
    seed: int
    num_layers: int | None
    bf16: bool = False

    def fingerprint(self, task: Task, objective: Objective | None = None) -> str:
        """Hash of the plan, of the task's data and of the objective."""
        special = [] if objective is None else [dict(objective.described())]
        plan = {name: value for name, value in asdict(self).items() if name != "bf16" or value}  # older than bf16
        return digest([task.fingerprint, plan, *special], 16, in_order=True)

    def name(self, index: int) -> str:
        """Of the teacher at that place, and of its directory."""
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", self.kind.rstrip("/").rpartition("/")[2]) or "teacher"
        return f"{slug}-{index}"


def teacher_settings(task: Task, *, kinds: Sequence[str], **settings: Any) -> list[TeacherSettings]:
    """The plans of :func:`~rlkd.models.training.train_teachers`, one a kind, from the same arguments; writes nothing.

    Raises:
        ConfigError: See :func:`~rlkd.models.training.train_teachers`.
        TaskError: Likewise.
        TeacherError: Likewise.
    """
    training = TeacherTraining(**settings)
    if not kinds:
        raise ConfigError("expected at least one kind of teacher, got none; name for example 'tfidf'")
    check_seed(training.seed)
    layers, knows_by = training.num_layers, cast("KnowsBy | None", training.specialize)
    if layers is not None and all(kind in STUDENTS or kind in ESTIMATORS for kind in kinds):
        raise ConfigError(f"num_layers {layers} would be ignored: no kind is pretrained; leave it out")
    if len(task.labelled_ids("train")) == 0:
        raise TaskError(f"task {task.name!r} has no labelled training rows to train teachers on; add labels")
    if training.bf16 and all(kind in ESTIMATORS for kind in kinds):
        raise ConfigError("bf16 would be ignored: no kind is a network; leave it out")
    known = known_names(task, knows_by, len(kinds), training.variant, training.share)
    plans = [
        TeacherSettings(
            kind=kind,
            known=known[index],
            knows_by=knows_by,
            max_length=training.max_length,
            epochs=training.epochs,
            learning_rate=training.learning_rate or (FROM_SCRATCH_RATE if kind in STUDENTS else FINE_TUNING_RATE),
            batch_size=training.batch_size,
            seed=training.seed + index,
            num_layers=None if kind in STUDENTS or kind in ESTIMATORS else layers,
            bf16=training.bf16 and kind not in ESTIMATORS,
        )
        for index, kind in enumerate(kinds)
    ]
    for index, plan in enumerate(plans):
        check_rows(task, plan, plan.name(index))
    for kind, kept in {(plan.kind, plan.num_layers) for plan in plans}:
        _check_kind(task, kind, kept, training.max_length)
    return plans


def check_rows(task: Task, plan: TeacherSettings, name: str) -> None:
    """Refuse a teacher whose training rows are of fewer than two classes.

    Raises:
        TeacherError: Names the teacher.
    """
    rows = known_rows(task, task.labelled_ids("train"), plan.known, plan.knows_by)
    if len(np.unique(task.table.labels[rows])) < 2:
        raise TeacherError(
            f"expected training rows of two or more classes for teacher {name!r}, got {len(rows)} "
            "rows of fewer; give more labelled rows or train fewer teachers"
        )


def _check_kind(task: Task, kind: str, num_layers: int | None, max_length: int) -> None:
    if kind in ESTIMATORS:
        check_estimator(kind, task)
        return
    try:
        check_student(kind, task, num_layers=num_layers, max_length=max_length)
    except StudentError as error:
        if kind in STUDENTS:
            raise
        raise TeacherError(
            f"expected kinds of teachers among {', '.join([*ESTIMATORS, *STUDENTS])}, hub ids and paths, got {kind!r}; "
            f"{nearest(kind, [*ESTIMATORS, *STUDENTS])}{error}"
        ) from error
