"""Labels of a source: which classes there are, the class of every row, and what can only be a mistake."""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkd.data.columns import Source
from rlkd.data.task import UNLABELLED
from rlkd.errors import TaskError

logger = logging.getLogger(__name__)

MISSING_WORDS = frozenset({"nan", "NaN", "None", "null", "NULL", "<NA>"})
"""What libraries write for a missing value, once it is text."""

_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?", re.ASCII)
_ITEM = r"(?:'[^']*'|\"[^\"]*\"|[+-]?\d+(?:\.\d+)?)"
_LIST = re.compile(rf"\[\s*(?:{_ITEM}(?:\s*,\s*|\s+))*{_ITEM}?\s*\]|\({_ITEM},.*\)", re.ASCII)

Raw = Mapping[str, Sequence[Any]]
"""Labels of every split, cleaned."""


def read_labels(source: Source, column: str) -> tuple[list[str], NDArray[np.int64]]:
    """Class names and the class index of every row, shape (N,), splits in their order."""
    stored: Raw = {split: data[column][:] for split, data in source.splits.items()}
    named = {split: getattr(data.features[column], "names", None) for split, data in source.splits.items()}
    alike = all(names == named["train"] for names in named.values())
    raw = {
        split: [clean_label(value) for value in (values if alike else _by_name(values, named[split]))]
        for split, values in stored.items()
    }
    _check_kinds(source, column, raw)
    given = source.label_names or named["train"]
    names = _class_names(source, raw["train"], None if given is None else list(given))
    index = {label: i for i, label in enumerate(names)}
    _tell_unlabelled(source, stored["train"], raw["train"])
    _tell_odd_names(source, names)
    seen: set[int] = set()
    labels: list[int] = []
    for split, values in raw.items():
        ids = [_class_index(source.name, split, row, value, index) for row, value in enumerate(values)]
        if split == "train":
            seen = set(ids)
        else:
            _check_held_out(source.name, split, ids)
            if given is None:
                _check_seen(source.name, split, ids, seen, names)
        labels += ids
    if given is None:
        _tell_gaps(source, names, labels)
    return names, np.array(labels, dtype=np.int64)


def _by_name(values: Sequence[Any], names: Sequence[str] | None) -> Sequence[Any]:
    """Labels by the names that a split's own feature has for them: a number may be another class in another split."""
    if names is None:
        return values
    return [names[value] if isinstance(value, int) and value != UNLABELLED else value for value in values]


def clean_label(value: Any) -> Any:
    """Make None of what means unlabelled, and an integer of whole floats and bools."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    return None if value == UNLABELLED else value


def shown_rows(rows: Sequence[int] | NDArray[np.int64], limit: int = 5) -> str:
    """``row 3``, or ``rows 3, 4, 9, ...``: the first of them."""
    first = ", ".join(str(row) for row in list(rows)[:limit])
    return f"row {first}" if len(rows) == 1 else f"rows {first}{', ...' if len(rows) > limit else ''}"


def shown_names(names: Iterable[str], limit: int = 8) -> str:
    """Names, the first of them quoted."""
    every = list(names)
    rest = f", ... ({len(every)} in all)" if len(every) > limit else ""
    return ", ".join(f"{name!r:.60}" for name in every[:limit]) + rest


def _check_kinds(source: Source, column: str, raw: Raw) -> None:
    first: dict[type, str] = {}
    for split, values in raw.items():
        for row, value in enumerate(values):
            if isinstance(value, list | tuple | dict) or (isinstance(value, str) and _LIST.fullmatch(value.strip())):
                raise TaskError(
                    f"column {column!r} of {source.name!r} must hold one class a row, got the list {value!r:.40} in "
                    f"row {row} of {split}; choose one label for each row, or name another column"
                )
            if value is not None:
                first.setdefault(type(value), f"{value!r:.40} in row {row} of {split}")
    if len(first) > 1 or not set(first) <= {str, int}:
        kinds = sorted(first, key=lambda kind: kind.__name__)
        raise TaskError(
            f"column {column!r} of {source.name!r} must hold integers or strings, got "
            f"{', '.join(kind.__name__ for kind in kinds)} ({'; '.join(first[kind] for kind in kinds)}); convert it"
        )


def _class_names(source: Source, train: Sequence[Any], given: list[str] | None) -> list[str]:
    known = {value for value in train if value is not None}
    if given is not None:
        names = given
    elif all(isinstance(value, int) for value in known):
        names = _counted(source.name, known, train)
    else:
        # As text "10" would come before "2", and the columns of a teacher would be other classes than their numbers.
        numbers = all(_NUMBER.fullmatch(name) for name in known)
        names = sorted(known, key=lambda name: (float(name), name)) if numbers else sorted(known)
    if len(names) < 2 or len(set(names)) < len(names) or "" in names:
        raise TaskError(
            f"{source.name!r} must have at least 2 classes with distinct names that are not empty, got "
            f"{names!r:.80}; check the label column or label_names"
        )
    return names


def _counted(task: str, known: set[int], train: Sequence[Any]) -> list[str]:
    """The numbers from 0 to the largest label."""
    # Numbers far beyond the rows are ids or scores; a class for each would be a huge model of nothing.
    if max(known, default=0) > len(train):
        raise TaskError(
            f"integer labels of {task!r} must count classes from 0, got {max(known)!r:.20} in "
            f"{len(train)} rows; renumber them, or store names"
        )
    if known and min(known) > 0:
        bare = sum(value is None for value in train)
        rest = f", and {bare} rows that are taken as unlabelled (None, NaN or -1)" if bare else ""
        raise TaskError(
            f"integer labels of {task!r} must count classes from 0, got no 0 but "
            f"{', '.join(map(str, sorted(known)[:8]))}{rest}; renumber them, give label_names, or store names"
        )
    return [str(i) for i in range(max(known, default=-1) + 1)]


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
            "training rows of that class, give label_names, or drop the row"
        )
    raise TaskError(
        f"labels of {task!r} must be among the {len(index)} classes {', '.join(index)!s:.80}, row {row} of "
        f"{split} is out of range: {value!r:.60}; fix the row or the label names"
    )


def _check_held_out(task: str, split: str, ids: list[int]) -> None:
    if UNLABELLED in ids:
        raise TaskError(
            f"every row of {split} of {task!r} must have a label, row {ids.index(UNLABELLED)} has none "
            f"({ids.count(UNLABELLED)} in all; None, NaN and -1 mean unlabelled); label or drop them, or leave the "
            "split out to carve it from train"
        )


def _check_seen(task: str, split: str, ids: list[int], seen: set[int], names: list[str]) -> None:
    """Without given names, the classes are those of the train rows."""
    unseen = sorted(set(ids) - seen)
    if unseen:
        first = [ids.index(index) for index in unseen]
        raise TaskError(
            f"labels of {task!r} must all occur in train, {split} also has "
            f"{', '.join(names[index] for index in unseen)!s:.80} ({shown_rows(first)}); add training rows of these "
            "classes, give label_names, or drop theirs"
        )


def _tell_unlabelled(source: Source, stored: Sequence[Any], train: Sequence[Any]) -> None:
    """Say which rows of a train file count as unlabelled: they may be meant as a class, or be holes."""
    rows = [row for row, value in enumerate(train[: len(train) - source.unlabelled]) if value is None]
    if not rows:
        return
    minus = sum(stored[row] == UNLABELLED for row in rows)
    logger.warning(
        "%d of %d train rows of %r have no label and are distilled on without one (%s)%s",
        len(rows),
        len(train) - source.unlabelled,
        source.name,
        shown_rows(rows),
        f"; of {minus} the label is -1: if that is a class, renumber the labels" if minus else "",
    )


def _tell_odd_names(source: Source, names: Sequence[str]) -> None:
    missing = [name for name in names if name in MISSING_WORDS]
    if missing:
        logger.warning(
            "%r has the class %s, which is how a missing label looks as text; if it is one, leave the cell empty",
            source.name,
            shown_names(missing),
        )
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(" ".join(name.casefold().split()), []).append(name)
    for group in alike.values():
        if len(group) > 1:
            logger.warning(
                "%r has the classes %s, which differ by case or blanks only; if they are one, write them alike",
                source.name,
                shown_names(group),
            )


def _tell_gaps(source: Source, names: Sequence[str], labels: Sequence[int]) -> None:
    found = set(labels)
    empty = [name for index, name in enumerate(names) if index not in found]
    if empty:
        logger.warning(
            "%r counts %d classes from 0 and has no row of %s; renumber the labels, or give label_names",
            source.name,
            len(names),
            shown_names(empty),
        )
