"""Columns of a source: texts, domains and labels, checked row by row."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import UnionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkd.data.task import UNLABELLED
from rlkd.errors import TaskError

KNOWN_PAIRS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read."""

    text: str = "text"
    pair: str | None = None
    label: str = "label"
    domain: str = "domain"


@dataclass(frozen=True)
class Source:
    """The splits of a source as data sets of ``datasets``, and what is known about it."""

    name: str
    splits: Mapping[str, Any]
    label_names: Sequence[str] | None = None


def resolved_columns(source: Source, columns: Columns) -> Columns:
    """Choose the text columns, and require that every column is in every split."""
    present = set(source.splits["train"].column_names)
    if columns.text == Columns.text and columns.pair is None and columns.text not in present:
        for first, second in KNOWN_PAIRS:
            if {first, second} <= present:
                columns = replace(columns, text=first, pair=second)
                break
    wanted = [columns.text, columns.label, *([] if columns.pair is None else [columns.pair])]
    if columns.domain != Columns.domain or columns.domain in present:
        wanted.append(columns.domain)
    for split, data in source.splits.items():
        missing = [column for column in wanted if column not in data.column_names]
        if missing:
            raise TaskError(
                f"split {split!r} of {source.name!r} must have the column {missing[0]!r}, it has: "
                f"{', '.join(data.column_names)}; name the column to use"
            )
    return columns


def read_texts(source: Source, column: str) -> tuple[str, ...]:
    """The text of every row, splits in their order."""
    return tuple(text for text, _ in _checked_values(source, column, str, "texts"))


def read_domains(source: Source, column: str) -> tuple[list[str], NDArray[np.int64]]:
    """Sorted domain names and the domain index of every row, shape (N,); zeros without the column."""
    if column not in source.splits["train"].column_names:
        return [], np.zeros(sum(len(data) for data in source.splits.values()), dtype=np.int64)
    values = [
        class_names[value] if class_names and isinstance(value, int) else str(value)
        for value, class_names in _checked_values(source, column, str | int, "domain names")
    ]
    names, indices = np.unique(np.array(values, dtype=object), return_inverse=True)
    return [str(name) for name in names], indices.astype(np.int64)


def _checked_values(
    source: Source, column: str, kind: type | UnionType, what: str
) -> Iterator[tuple[Any, Sequence[str] | None]]:
    """Values of a column, splits in their order, each with the class names of its split's feature."""
    for split, data in source.splits.items():
        class_names = getattr(data.features[column], "names", None)
        for row, value in enumerate(data[column][:]):
            if not isinstance(value, kind):
                raise TaskError(
                    f"column {column!r} of {source.name!r} must hold {what}, row {row} of {split} is "
                    f"{value!r:.40}; fix the row or name another column"
                )
            yield value, class_names


def read_labels(source: Source, column: str) -> tuple[list[str], NDArray[np.int64]]:
    """Class names and the class index of every row, shape (N,), splits in their order."""
    raw = {split: [clean_label(value) for value in data[column][:]] for split, data in source.splits.items()}
    kinds = {type(value) for values in raw.values() for value in values if value is not None}
    if len(kinds) > 1 or not kinds <= {str, int}:
        raise TaskError(
            f"column {column!r} of {source.name!r} must hold integers or strings, got "
            f"{', '.join(sorted(kind.__name__ for kind in kinds))}; convert it"
        )
    given = source.label_names or getattr(source.splits["train"].features[column], "names", None)
    names = _class_names(source, raw["train"], None if given is None else list(given))
    index = {label: i for i, label in enumerate(names)}
    seen: set[int] = set()
    labels: list[int] = []
    for split, values in raw.items():
        ids = [_class_index(source.name, split, row, value, index) for row, value in enumerate(values)]
        if split == "train":
            seen = set(ids)
        else:
            _check_held_out(source.name, split, ids, seen, names)
        labels += ids
    return names, np.array(labels, dtype=np.int64)


def clean_label(value: Any) -> Any:
    """Make None of what means unlabelled, and an integer of whole floats and bools."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    return None if value == UNLABELLED else value


def _class_names(source: Source, train: list[Any], given: list[str] | None) -> list[str]:
    known = {value for value in train if value is not None}
    if given is not None:
        names = given
    elif all(isinstance(value, int) for value in known):
        # Numbers far beyond the rows are ids or scores; a class for each would be a huge model of nothing.
        if max(known, default=0) > len(train):
            raise TaskError(
                f"integer labels of {source.name!r} must count classes from 0, got {max(known)!r:.20} in "
                f"{len(train)} rows; renumber them, or store names"
            )
        names = [str(i) for i in range(max(known, default=-1) + 1)]
    else:
        names = sorted(known)
    if len(names) < 2 or len(set(names)) < len(names) or "" in names:
        raise TaskError(
            f"{source.name!r} must have at least 2 classes with distinct names that are not empty, got "
            f"{names!r:.80}; check the label column or label_names"
        )
    return names


def _class_index(task: str, split: str, row: int, value: Any, index: Mapping[str, int]) -> int:
    if value is None:
        return UNLABELLED
    if isinstance(value, int) and 0 <= value < len(index):
        return value
    if isinstance(value, str) and value in index:
        return index[value]
    if isinstance(value, str) and split != "train":
        raise TaskError(
            f"labels of {task!r} must all occur in train, row {row} of {split} has {value!r:.60}; add "
            "training rows of that class, or drop the row"
        )
    raise TaskError(
        f"labels of {task!r} must be among the {len(index)} classes {', '.join(index)!s:.80}, row {row} of "
        f"{split} is out of range: {value!r:.60}; fix the row or the label names"
    )


def _check_held_out(task: str, split: str, ids: list[int], seen: set[int], names: list[str]) -> None:
    if UNLABELLED in ids:
        raise TaskError(
            f"every row of {split} of {task!r} must have a label, row {ids.index(UNLABELLED)} has none "
            f"({ids.count(UNLABELLED)} in all); label or drop them, or leave the split "
            "out to carve it from train"
        )
    unseen = sorted({names[i] for i in set(ids) - seen})
    if unseen:
        raise TaskError(
            f"labels of {task!r} must all occur in train, {split} also has {', '.join(unseen)!s:.80}; add "
            "training rows of these classes, or drop theirs"
        )
