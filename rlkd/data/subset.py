"""Smaller tasks out of larger ones: fewer rows, fewer labels, one part for teachers and one for students."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rlkd.data.splitting import check_seed
from rlkd.data.task import SPLITS, UNLABELLED, Task
from rlkd.errors import ConfigError, unknown_name

LABEL_SHARES = {"train": 0.6, "probe": 0.2, "validation": 0.2}
"""How a small number of labels is dealt to the splits that are not the test split."""


def keep_rows(task: Task, ids: NDArray[np.int64]) -> Task:
    """The task with some of its rows; the order of rows stays.

    Args:
        task: The task.
        ids: Instance ids to keep, ascending, shape (M,). Row m of the result is row ``ids[m]`` of the task.
    """
    counts = {name: int(np.isin(rows, ids).sum()) for name, rows in task.splits.items()}
    bounds = np.cumsum([0, *(counts[name] for name in SPLITS if name in counts)])
    names = [name for name in SPLITS if name in counts]
    splits = {name: np.arange(bounds[i], bounds[i + 1]) for i, name in enumerate(names)}
    return replace(task, table=task.table.take(ids), splits=splits)


def limit_rows(task: Task, limits: Mapping[str, int], *, seed: int = 0) -> Task:
    """At most so many rows of each split, drawn at random.

    Args:
        task: The task.
        limits: Split name to rows, >= 1; splits that are not named stay whole.
        seed: Of the draw.
    """
    check_seed(seed)
    for name, limit in limits.items():
        if name not in task.splits:
            raise unknown_name("split", name, task.splits)
        if limit < 1:
            raise ConfigError(f"a split needs 1 row or more, got a limit of {limit} for {name!r}; raise it")
    if all(len(task.splits[name]) <= limit for name, limit in limits.items()):
        return task
    rng = np.random.default_rng(seed)
    kept = [
        rows if len(rows) <= limits.get(name, len(rows)) else np.sort(rng.permutation(rows)[: limits[name]])
        for name, rows in task.splits.items()
    ]
    return keep_rows(task, np.concatenate(kept))


def split_train(task: Task, share: float, *, seed: int = 0) -> tuple[Task, Task]:
    """One part of the train rows for teachers, the other for students; the other splits go to both.

    Teachers know the labels of their own train rows too well: on the students' part, what they say is out of fold.

    Args:
        task: The task.
        share: Of the labelled train rows that teachers learn from, in (0, 1). Unlabelled rows go to students.
        seed: Of the draw.
    """
    if not 0 < share < 1:
        raise ConfigError(f"the teachers' share of the train rows must lie between 0 and 1, got {share}; 0.5 is usual")
    check_seed(seed)
    labelled, train = task.labelled_ids("train"), task.splits["train"]
    taught = np.sort(np.random.default_rng(seed).permutation(labelled)[: round(share * len(labelled))])
    rest = np.arange(len(train), len(task.table))
    return (
        keep_rows(task, np.concatenate([taught, rest])),
        keep_rows(task, np.concatenate([np.setdiff1d(train, taught), rest])),
    )


def keep_labels(task: Task, count: int, *, seed: int = 0) -> Task:
    """Forget all but ``count`` labels outside the test split: 60% of them in train, 20% each in probe and validation.

    Args:
        task: The task; its rows stay.
        count: Labels kept, >= 10.
        seed: Of the draw.
    """
    check_seed(seed)
    if count < 10:
        raise ConfigError(f"a task needs 10 labels or more, got {count}; raise it")
    rng = np.random.default_rng(seed)
    labels = task.table.labels.copy()
    for name, share in LABEL_SHARES.items():
        ids, kept = task.labelled_ids(name), round(share * count)
        if kept > len(ids):
            raise ConfigError(f"{kept} labels were to be kept in {name!r}, it has {len(ids)}; keep fewer")
        labels[rng.permutation(ids)[kept:]] = UNLABELLED
    return replace(task, table=replace(task.table, labels=labels))


def drop_unlabelled(task: Task) -> tuple[Task, NDArray[np.int64]]:
    """The task without its unlabelled train rows, and the ids of the rows that are left."""
    rest = np.arange(len(task.splits["train"]), len(task.table))
    ids = np.concatenate([task.labelled_ids("train"), rest])
    return keep_rows(task, ids), ids
