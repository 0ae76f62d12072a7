"""Columns of training data that teachers read, and batches that carry what stands in them."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, Subset

from rlkd.errors import TeacherError
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


def columns_of(data: Any) -> Sequence[str]:
    """Columns of a data set, as far as they are known without reading it all."""
    names = getattr(data, "column_names", None)
    if names is not None:
        return list(names)
    first = data[0] if data is not None and hasattr(data, "__getitem__") and len(data) else None
    return list(first) if isinstance(first, Mapping) else []


def check_columns(teachers: BatchTeachers, there: Sequence[str]) -> None:
    """Refuse training data that lack a column which teachers read, where its columns are known.

    Raises:
        TeacherError: One is missing.
    """
    missing = [column for column in teachers.columns if there and column not in there]
    if missing:
        raise TeacherError(
            f"teachers read the column {missing[0]!r}, the training data has {', '.join(map(str, there))}; keep it in "
            "the data set, or name the column that holds it"
        )


def some_rows(data: Any, count: int) -> Any:
    """At most so many rows of a data set, evenly spaced; of a stream the first."""
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        return list(islice(iter(data), count))
    places = range(0, len(data), -(-len(data) // count))
    return data.select(places) if hasattr(data, "select") else Subset(data, places)
