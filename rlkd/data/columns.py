"""Columns of a source: texts and domains, checked row by row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import UnionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkd.errors import TaskError
from rlkd.settings import TaskSettings

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

    text: str = TaskSettings.text_column
    pair: str | None = TaskSettings.text_pair_column
    label: str = TaskSettings.label_column
    domain: str = TaskSettings.domain_column


@dataclass(frozen=True)
class Source:
    """The splits of a source as data sets of ``datasets``, and what is known about it."""

    name: str
    splits: Mapping[str, Any]
    label_names: Sequence[str] | None = None
    unlabelled: int = 0
    """Rows at the end of ``train`` that come from a file of unlabelled rows."""

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of every file."""
        sizes = {split: len(data) for split, data in self.splits.items()}
        return sizes | {"train": sizes["train"] - self.unlabelled, "unlabelled": self.unlabelled}


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
            # pandas writes a missing domain as an empty cell; a missing text is legal, and told of elsewhere
            if not isinstance(value, kind) or (value == "" and kind is not str):
                raise TaskError(
                    f"column {column!r} of {source.name!r} must hold {what}, row {row} of {split} is "
                    f"{value!r:.40}; fix the row or name another column"
                )
            yield value, class_names
