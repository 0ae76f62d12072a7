"""Batches of a trainer's own collator, and beside them what teachers read of the rows."""

from collections.abc import Callable, Sequence
from typing import Any

from rlkd.trainer.batch_teachers import BatchTeachers, Rows

CARRIED = "rlkd_teachers"
"""Of a batch: what goes with it for the teachers."""


class CarryingCollator:
    """Makes a batch as the trainer's own collator does, and puts beside it what teachers read of its rows."""

    def __init__(self, own: Callable[[Any], Any], teachers: BatchTeachers, kept: Sequence[str] | None = None) -> None:
        """Hold the trainer's own collator, the teachers, and the columns that the collator reads; None: all others."""
        self.own, self.teachers = own, teachers
        self._columns = frozenset(teachers.columns)
        self._kept = None if kept is None else frozenset(kept) - self._columns

    def of_columns(self, kept: Sequence[str]) -> "CarryingCollator":
        """The same whose own collator reads some columns only."""
        return CarryingCollator(self.own, self.teachers, kept)

    def __call__(self, rows: Rows) -> Any:
        """A batch; rows without the teachers' columns, as those of an evaluation may be, get none of it."""
        columns, kept = self._columns, self._kept
        if kept is not None and isinstance(rows[0], dict):  # as the Trainer asks
            own: Any = [{n: value for n, value in row.items() if n in kept} for row in rows]
        else:
            own = [{n: value for n, value in row.items() if n not in columns} for row in rows] if columns else rows
        batch = self.own(own)
        if not columns or columns <= set(rows[0]):
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            batch[CARRIED] = self.teachers.carry(rows, inputs)
        return batch
