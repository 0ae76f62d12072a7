"""What is known of the rows of a data set before it is trained on: of tables, lists and streams."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, Subset

from rlkd.errors import ConfigError, TeacherError
from rlkd.trainer.batch_teachers import BatchTeachers
from rlkd.trainer.randomness import generators_as_they_were

BY_PLACE = ("group_by_length", "batch_rebalance")
"""Orders of rows that have to be found by their place."""


def is_stream(data: Any) -> bool:
    """Whether rows come one after another and have no place to be found at."""
    return isinstance(data, IterableDataset) or not hasattr(data, "__len__")


def is_read_once(data: Any) -> bool:
    """Whether what was read of a stream does not come again: it hands out one iterator."""
    return is_stream(data) and iter(data) is iter(data)


def first_row(data: Any) -> Mapping[str, Any] | None:
    """The first row of a data set; None where there is none, it is no mapping, or is to be read but once."""
    if data is None or is_read_once(data):
        return None
    with generators_as_they_were():
        row = next(iter(data), None) if is_stream(data) else data[0] if len(data) else None
    return row if isinstance(row, Mapping) else None


def columns_of(data: Any, first: Mapping[str, Any] | None) -> Sequence[str]:
    """Columns of a data set, as far as they are known: they are named, or those of its first row."""
    return list(getattr(data, "column_names", None) or first or ())


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


def check_order(data: Any, strategy: str) -> None:
    """Refuse an order of rows that a stream cannot have.

    Raises:
        ConfigError: It would be ignored.
    """
    if data is not None and is_stream(data) and strategy in BY_PLACE:
        raise ConfigError(
            f"train_sampling_strategy would be ignored, got {strategy!r}: rows of a stream come in its own order; "
            "leave it out, or load the rows"
        )


def some_rows(data: Any, count: int) -> Any:
    """At most so many rows of a data set, evenly spaced; of a stream the first.

    Raises:
        ConfigError: They would then be missing in the stream, which is read once.
    """
    if is_read_once(data):
        raise ConfigError(
            f"expected a stream that begins anew whenever it is read, got {type(data).__name__}, whose first rows "
            "would be lost; let __iter__ make an iterator, or choose a weighting that is not told how sure teachers "
            "usually are, such as 'uniform' or 'entropy'"
        )
    if is_stream(data):
        return list(islice(iter(data), count))
    places = range(0, len(data), -(-len(data) // count))
    return data.select(places) if hasattr(data, "select") else Subset(data, places)
