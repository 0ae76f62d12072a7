"""Who teaches the batches of a trainer: several teachers together, each asked about every batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.errors import TeacherError
from rlkd.kinds import Kind, MultiLabelClassification, Regression
from rlkd.models.labels import MISSING, aligned_logits
from rlkd.models.probabilities import FEWEST_ROWS, check_log_odds, check_logits
from rlkd.types import State

Pick = Callable[[Tensor], Tensor]
"""From what a network says of a batch, (B, ..., C), to the rows that are taught, (N, C)."""
Rows = Sequence[Mapping[str, Any]]


class BatchTeachers(Protocol):
    """K teachers of a trainer that knows batches, not a task."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the teachers."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the training data that they read beside what the student reads."""

    @property
    def gives(self) -> frozenset[str]:
        """Fields of a state that they know beside the logits."""

    def carry(self, rows: Rows, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """What goes with a batch for them.

        Args:
            rows: Of the data, with ``columns``.
            inputs: What the student reads of them, every tensor (B, ...).

        Raises:
            TeacherError: A row lacks one of ``columns``.
        """

    def state(self, inputs: Mapping[str, Tensor], carried: Mapping[str, Any], pick: Pick) -> State:
        """What they say of a batch.

        Args:
            inputs: What the student reads, every tensor (B, ...).
            carried: What :meth:`carry` gave, on the student's device.
            pick: Takes the rows that are taught, where those are not the rows of the batch.

        Returns:
            With logits (N, K, C) in the student's order of classes, and what else is known.
        """


class AskingTeacher(Protocol):
    """One teacher that is asked about every batch."""

    name: str
    reads_text: bool
    """Whether it reads texts, not what the student reads."""

    def reads(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What it reads of what the student reads."""

    def carry(self, texts: Sequence[Any]) -> Any:
        """What goes with a batch of B texts, or pairs of texts, for it."""

    def logits(self, read: Any) -> Tensor:
        """Its answers to what :meth:`carry` gave, or to what the student reads: (B, ..., its own classes)."""

    columns: NDArray[np.int64] | None
    """Its own column of each of the student's classes; None: they are the student's."""

    @property
    def identity(self) -> str:
        """Hash of what decides its answers; beginning with ``ONCE`` where that cannot be told."""


_CHECKS: Mapping[type[Kind], Callable[[str, Any], None] | None] = {
    MultiLabelClassification: check_log_odds,
    Regression: None,
}
"""Whether answers may be probabilities, by the kind of task where that is no choice of a class."""


class AskedTeachers:
    """Teachers that are asked about every batch: :class:`BatchTeachers`."""

    gives: frozenset[str] = frozenset()

    def __init__(
        self, teachers: Sequence[AskingTeacher], text_columns: Sequence[str], classes: int, kind: type[Kind] = Kind
    ) -> None:
        """Hold them.

        Args:
            teachers: K of them, with different names.
            text_columns: The column of texts, or two of pairs; empty: none of them reads texts.
            classes: C of the student.
            kind: Of the task.
        """
        self._teachers, self._text_columns, self._classes = list(teachers), tuple(text_columns), classes
        self._check = _CHECKS.get(kind, check_logits)
        self._unknown = set(self.names)  # whether they give logits or probabilities

    @property
    def covers(self) -> Tensor | None:
        """Which of the student's classes each teacher has, bool, shape (K, C); None: all have all."""
        columns = [teacher.columns for teacher in self._teachers]
        if not any(own is not None and (own == MISSING).any() for own in columns):
            return None
        everything = np.ones(self._classes, dtype=bool)
        return torch.from_numpy(np.stack([everything if own is None else own != MISSING for own in columns]))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the teachers."""
        return tuple(teacher.name for teacher in self._teachers)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of texts, if one of the teachers reads them."""
        return self._text_columns if any(teacher.reads_text for teacher in self._teachers) else ()

    def texts(self, rows: Rows) -> list[Any]:
        """The texts, or pairs of texts, of rows, if one of the teachers reads them."""
        return [_texts_of(row, self._text_columns) for row in rows] if self.columns else []

    def carry(self, rows: Rows, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """What each of those that read texts reads of these rows."""
        texts = self.texts(rows)
        return {teacher.name: teacher.carry(texts) for teacher in self._teachers if teacher.reads_text}

    def state(self, inputs: Mapping[str, Tensor], carried: Mapping[str, Any], pick: Pick) -> State:
        """Ask them all."""
        answers = [self._answer(teacher, inputs, carried, pick) for teacher in self._teachers]
        logits = torch.stack(answers, dim=-2)
        if not logits.isfinite().all():  # of all together: each such question waits for the device
            bad = (~logits.isfinite()).any(-1).any(0).int().argmax()
            raise TeacherError(f"expected finite logits from teacher {self.names[bad]!r}, got NaN or infinity")
        return State(teacher_logits=logits)

    def _answer(
        self, teacher: AskingTeacher, inputs: Mapping[str, Tensor], carried: Mapping[str, Any], pick: Pick
    ) -> Tensor:
        device = next(iter(inputs.values())).device
        logits = pick(self._said(teacher, inputs, carried).to(device))
        if self._classes == 1 and logits.ndim == 1:
            logits = logits.unsqueeze(-1)
        self._check_answer(teacher, logits)
        return logits if teacher.columns is None else aligned_logits(logits, teacher.columns)

    def _check_answer(self, teacher: AskingTeacher, logits: Tensor) -> None:
        """Refuse what are no logits of instances or tokens, (N, the teacher's own classes)."""
        own = self._classes if teacher.columns is None else logits.shape[-1]
        if logits.ndim != 2 or logits.shape[-1] != own:
            raise TeacherError(
                f"expected logits (B, {self._classes}) from teacher {teacher.name!r}, a row an instance in the "
                f"student's order of classes, got {tuple(logits.shape)}"
            )
        if self._check and teacher.name in self._unknown and len(logits) >= FEWEST_ROWS:
            self._check(teacher.name, logits.cpu().numpy())  # once: it would wait for the device
            self._unknown.remove(teacher.name)

    def _said(self, teacher: AskingTeacher, inputs: Mapping[str, Tensor], carried: Mapping[str, Any]) -> Tensor:
        return teacher.logits(carried[teacher.name] if teacher.reads_text else inputs)


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """What a row has in a column.

    Raises:
        TeacherError: It has none.
    """
    if column not in row:
        raise TeacherError(
            f"teachers read the column {column!r}, the training data has {', '.join(map(str, row)) or 'none'}; keep it "
            "in the data set, or name the column that holds it"
        )
    return row[column]


def _texts_of(row: Mapping[str, Any], columns: Sequence[str]) -> Any:
    texts = tuple(value_of(row, column) for column in columns)
    return texts[0] if len(texts) == 1 else texts
