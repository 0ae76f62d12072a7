"""What a teacher's answers say of how they were made: other rows, other columns, or another teacher's answers."""

import logging
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlkd.data.task import SPLITS, Task

if TYPE_CHECKING:
    from rlkd.logit_cache.sources import LogitCache

log = logging.getLogger(__name__)

Ints = NDArray[np.integer[Any]]

LEAST_ROWS = 20
"""Labelled rows of a split below which it says nothing about chance."""
_CHANCE, _GOOD = 0.1, 0.3  # agreement beyond chance that is next to none, and some
_NOISE, _SURE = 2.0, 4.0  # standard errors that chance may be off, and that tell two splits apart
_ROWS_A_CLASS = 5  # fewer, and the best order of columns fits noise
_SAME = 1e-5
_BLOCK = 8192


def tell_of_teachers(cache: "LogitCache", task: Task) -> None:
    """Warn of teachers that are near chance on one split alone, whose columns are re-ordered, or that are the same.

    Args:
        cache: Their logits.
        task: Gives the labels.
    """
    names, rows = cache.teacher_names, len(cache)
    answers = np.empty((rows, len(names)), dtype=np.int64)
    apart = np.zeros((len(names), len(names)))
    for start in range(0, rows, _BLOCK):
        logits = cache.rows(torch.arange(start, min(start + _BLOCK, rows)))
        answers[start : start + _BLOCK] = logits.argmax(-1).numpy()
        shares = logits.softmax(-1)
        for first, second in combinations(range(len(names)), 2):
            difference = float((shares[:, first] - shares[:, second]).abs().max())
            apart[first, second] = max(apart[first, second], difference)
    for k, name in enumerate(names):
        _tell_misplaced_rows(name, answers[:, k], task)
        _tell_misplaced_columns(name, answers[:, k], task)
    for first, second in combinations(range(len(names)), 2):
        if apart[first, second] < _SAME:
            log.warning(
                "teachers %r and %r give the same answers to all %d rows: such a teacher counts twice; leave one out",
                names[first],
                names[second],
                rows,
            )


def beyond_chance(answers: Ints, labels: Ints) -> tuple[float, float]:
    """Cohen's kappa: the share of right answers, over that of the same answers in another order; and its error.

    Args:
        answers: Shape (N,).
        labels: Shape (N,).

    Returns:
        Kappa (0 at chance, 1 where all answers are right), and its standard error at chance; 0 and infinity where the
        answers or the labels are all the same.
    """
    classes = int(max(answers.max(), labels.max())) + 1
    chance = float(
        (np.bincount(answers, minlength=classes) / len(answers))
        @ (np.bincount(labels, minlength=classes) / len(labels))
    )
    if chance >= 1 or len(np.unique(answers)) == 1 or len(np.unique(labels)) == 1:
        return 0.0, float("inf")
    error = (chance / (1 - chance) / len(answers)) ** 0.5
    return (float((answers == labels).mean()) - chance) / (1 - chance), error


def _tell_misplaced_rows(name: str, answers: Ints, task: Task) -> None:
    found = {}
    for split in SPLITS:
        ids = task.labelled_ids(split) if split in task.splits else np.zeros(0, dtype=np.int64)
        if len(ids) >= LEAST_ROWS:
            found[split] = beyond_chance(answers[ids], task.table.labels[ids])
    if not found:
        return
    best = max(found, key=lambda split: found[split][0])
    kappa, error = found[best]
    low = [
        split
        for split, (other, off) in found.items()
        if other < max(_CHANCE, _NOISE * off) and kappa > _GOOD and kappa - other > _SURE * (off**2 + error**2) ** 0.5
    ]
    if low:
        told = ", ".join(f"{_right(answers, task, split):.3f} on {split}" for split in (best, *low))
        log.warning(
            "teacher %r is near chance on %s and not on %s (right: %s); are its rows there those of the task, in their "
            "order?",
            name,
            " and ".join(low),
            best,
            told,
        )


def _right(answers: Ints, task: Task, split: str) -> float:
    ids = task.labelled_ids(split)
    return float((answers[ids] == task.table.labels[ids]).mean())


def _tell_misplaced_columns(name: str, answers: Ints, task: Task) -> None:
    """The order of columns that fits the train rows best is tried on validation, where it is right by merit only."""
    train, held = task.labelled_ids("train"), task.labelled_ids("validation")
    classes = task.num_classes
    if len(train) < _ROWS_A_CLASS * classes or len(held) < LEAST_ROWS:
        return
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (answers[train], task.table.labels[train]), 1)
    meant = linear_sum_assignment(counts, maximize=True)[1]
    labels = task.table.labels[held]
    kappa, error = beyond_chance(answers[held], labels)
    better, off = beyond_chance(meant[answers[held]], labels)
    if kappa < _CHANCE and better > _GOOD and better - kappa > _SURE * (off**2 + error**2) ** 0.5:
        log.warning(
            "teacher %r is right on %.3f of the validation rows, and on %.3f if its columns are taken in another "
            "order; name its columns (label_names), or put them into the order of the task's classes: %s",
            name,
            (answers[held] == labels).mean(),
            (meant[answers[held]] == labels).mean(),
            ", ".join(task.label_names)[:80],
        )
