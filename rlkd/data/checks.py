"""What can only be a mistake in the rows of a task is refused; what may be meant is told, with the first rows."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkd.data.labels import MISSING_WORDS, shown_names, shown_rows
from rlkd.data.task import SPLITS, UNLABELLED, Table, Task
from rlkd.errors import TaskError

logger = logging.getLogger(__name__)

FEW_ROWS = 10
"""With fewer held-out rows one row is more than ten points."""


def check_table(name: str, table: Table, num_classes: int, num_domains: int) -> None:
    """Refuse columns that do not go together, or hold what is no label, no domain or no finite vector.

    Args:
        name: Of the task, for errors.
        table: N rows.
        num_classes: C.
        num_domains: Number of domain names; 0 where domains have none.
    """
    _check_shapes(name, table)
    for what, column, lowest, count in (
        ("labels", table.labels, UNLABELLED, num_classes),
        ("domains", table.domains, 0, num_domains or None),
    ):
        wrong = (column < lowest) if count is None else (column < lowest) | (column >= count)
        if wrong.any():
            rows = np.flatnonzero(wrong)
            raise TaskError(
                f"{what} of task {name!r} must lie between {lowest} and {'0 or more' if count is None else count - 1}, "
                f"got {column[rows[0]]} in {_places(table, rows)}; renumber them"
            )
    if table.vectors is not None and not np.isfinite(table.vectors).all():
        rows = np.flatnonzero(~np.isfinite(table.vectors).all(1))
        raise TaskError(
            f"vectors of task {name!r} must be finite, got NaN or infinity in {_places(table, rows)} "
            f"({len(rows)} in all); mend or drop them"
        )
    if table.texts is not None:
        _check_texts(name, table, table.texts)


def check_splits(task: Task, given: Sequence[str]) -> None:
    """Refuse a held-out file that is a copy of train rows, and tell of rows and classes that splits should not have.

    Args:
        task: The task, cut.
        given: The splits that its source has; the others were carved out of train.
    """
    _tell_small(task)
    _tell_untaught(task)
    if task.table.texts is not None:
        _check_overlap(task, _inputs(task.table, alike=True), given)
        _tell_contradictions(task, _inputs(task.table, alike=False))


def _check_shapes(name: str, table: Table) -> None:
    rows = len(table)
    columns: Mapping[str, Any] = {
        "domains": table.domains,
        "texts": table.texts,
        "text_pairs": table.text_pairs,
        "vectors": table.vectors,
        "images": table.images,
    }
    for what, column in columns.items():
        if column is not None and len(column) != rows:
            raise TaskError(
                f"{what} of task {name!r} must have one entry a row, got {len(column)} for {rows} rows; mend it"
            )
    for what, ids in (("labels", table.labels), ("domains", table.domains)):
        if ids.dtype.kind not in "iu":
            raise TaskError(f"{what} of task {name!r} must be whole numbers, got {ids.dtype}; convert them")


def _check_texts(name: str, table: Table, texts: tuple[str, ...]) -> None:
    blank = np.array([not text.strip() for text in texts], dtype=bool)
    if table.text_pairs is not None:
        blank &= np.array([not text.strip() for text in table.text_pairs], dtype=bool)
    if blank.all():
        raise TaskError(f"task {name!r} must have texts, got only empty ones; name the column that holds them")
    if blank.any():
        rows = np.flatnonzero(blank)
        logger.warning(
            "%d of %d texts of task %r are empty (%s); fill or drop them",
            len(rows),
            len(texts),
            name,
            _places(table, rows),
        )
    missing = np.array([text in MISSING_WORDS for text in texts], dtype=bool)
    if missing.any():
        rows = np.flatnonzero(missing)
        logger.warning(
            "%d of %d texts of task %r look like missing values: %r in %s; fill or drop them if they are",
            len(rows),
            len(texts),
            name,
            texts[rows[0]],
            _places(table, rows),
        )


def _tell_small(task: Task) -> None:
    small = {name: len(task.splits[name]) for name in SPLITS[1:] if len(task.splits[name]) < FEW_ROWS}
    if small:
        told = ", ".join(f"{rows} row{'s' if rows > 1 else ''} in {name}" for name, rows in small.items())
        logger.warning(
            "task %r has only %s: one row there moves an accuracy by %.0f points; give more rows",
            task.name,
            told,
            100 / max(1, min(small.values())),
        )


def _tell_untaught(task: Task) -> None:
    if task.untaught:
        classes = [task.label_names.index(name) for name in task.untaught]
        held = {
            name: rows for name in SPLITS[1:] if len(rows := task.splits[name][np.isin(task.labels(name), classes)])
        }
        where = "; ".join(f"{name} has {_places(task.table, rows)} of them" for name, rows in held.items())
        logger.warning(
            "no train row of task %r has the label %s%s; a student learns these classes from its teachers alone",
            task.name,
            shown_names(task.untaught),
            f" ({where})" if where else "",
        )


def _inputs(table: Table, *, alike: bool) -> NDArray[np.int64]:
    """A number for every row, the same for rows with the same input, shape (N,).

    Args:
        table: N rows of texts.
        alike: Texts that differ by case or blanks are the same.
    """
    texts, pairs = table.texts or (), table.text_pairs
    if alike:
        texts = tuple(" ".join(text.casefold().split()) for text in texts)
        pairs = None if pairs is None else tuple(" ".join(text.casefold().split()) for text in pairs)
    rows: Sequence[object] = texts if pairs is None else list(zip(texts, pairs, strict=True))
    seen: dict[object, int] = {}
    return np.array([seen.setdefault(row, len(seen)) for row in rows], dtype=np.int64)


def _check_overlap(task: Task, keys: NDArray[np.int64], given: Sequence[str]) -> None:
    """Rows that stand in an earlier split too flatter every figure: each split is held against all before it."""
    told = []
    for place, split in enumerate(SPLITS[1:], start=1):
        ids, before = task.splits[split], np.concatenate([task.splits[name] for name in SPLITS[:place]])
        both = ids[np.isin(keys[ids], keys[before])]
        if split in given and _is_copy(task, keys, ids, given):
            raise TaskError(
                f"{split} of task {task.name!r} must hold other rows than train, got {len(ids)} rows that all stand in "
                f"train with the same label; give rows of its own, or leave it out to carve it from train"
            )
        if len(both):
            twins = np.array([before[np.flatnonzero(keys[before] == keys[row])[0]] for row in both[:5]])
            told.append(
                f"{len(both)} of {len(ids)} rows of {split} ({_places(task.table, both)}; "
                f"the first are {_places(task.table, twins)})"
            )
    if told:
        logger.warning(
            "rows of task %r stand in an earlier split too, which flatters its figures: %s",
            task.name,
            " and ".join(told),
        )


def _is_copy(task: Task, keys: NDArray[np.int64], ids: NDArray[np.int64], given: Sequence[str]) -> bool:
    """Whether the rows of a split are all different, and stand in the file of train with their labels."""
    labels = task.table.labels
    train = np.concatenate([task.splits[name] for name in SPLITS if name == "train" or name not in given])
    known = set(zip(keys[train].tolist(), labels[train].tolist(), strict=True))
    own = set(zip(keys[ids].tolist(), labels[ids].tolist(), strict=True))
    return len(np.unique(keys[ids])) == len(ids) and own <= known


def _tell_contradictions(task: Task, keys: NDArray[np.int64]) -> None:
    """Rows with the same input in the same domain, and different labels."""
    labelled = np.flatnonzero(task.table.labels != UNLABELLED)
    domains = task.table.domains[labelled]
    place = keys[labelled] * (int(domains.max(initial=0)) + 1) + domains
    _, group = np.unique(place, return_inverse=True)
    pairs = np.unique(np.stack([group, task.table.labels[labelled]]), axis=1)
    rows = labelled[(np.bincount(pairs[0], minlength=1) > 1)[group]] if len(labelled) else labelled
    if len(rows):
        logger.warning(
            "%d labelled rows of task %r have the text of another row and another label (%s); at most one is right",
            len(rows),
            task.name,
            _places(task.table, rows[np.argsort(keys[rows], kind="stable")]),
        )


def _places(table: Table, ids: NDArray[np.int64], limit: int = 5) -> str:
    """The first rows by their place in the user's files; by their id in the task where there are none."""
    if table.origin is None:
        return shown_rows(ids, limit)
    files: dict[str, list[int]] = {}
    for file, row in table.origin.locate(ids[:limit]):
        files.setdefault(file, []).append(row)
    told = ", ".join(f"{shown_rows(rows, limit)} of {file}" for file, rows in files.items())
    return told if len(ids) <= limit else f"{told}, ..."
