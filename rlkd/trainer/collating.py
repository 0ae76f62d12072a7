"""Batches of a trainer's own collator, and beside them what teachers read of the rows."""

from collections.abc import Callable
from typing import Any

from rlkd.trainer.batch_teachers import BatchTeachers, Rows

CARRIED = "rlkd_teachers"
"""Of a batch: what goes with it for the teachers."""


class CarryingCollator:
    """Makes a batch as the trainer's own collator does, and puts beside it what teachers read of its rows."""

    def __init__(self, own: Callable[[Any], Any], teachers: BatchTeachers) -> None:
        """Hold the trainer's own collator, and the teachers."""
        self.own, self.teachers = own, teachers

    def __call__(self, rows: Rows) -> Any:
        """A batch; rows without the teachers' columns, as those of an evaluation may be, get none of it."""
        columns = set(self.teachers.columns)
        own = [{n: value for n, value in row.items() if n not in columns} for row in rows] if columns else rows
        batch = self.own(own)
        if not columns or columns <= set(rows[0]):
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            batch[CARRIED] = self.teachers.carry(rows, inputs)
        return batch
