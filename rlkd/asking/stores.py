"""Where a ledger keeps what teachers said: an answer store each, found by the instance."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlkd.asking.bank import Answers, Ids
from rlkd.errors import TeacherError
from rlkd.logit_cache.answers import AnswerStore, Keys
from rlkd.models.teachers import Teacher

log = logging.getLogger(__name__)

TOLD = 5
"""Rows that a warning names."""


class Stores:
    """Logits of K teachers.

    Args:
        folder: Of all of them.
        teachers: The K teachers.
        numbers: Names of their folders, (K,).

    Raises:
        CacheError: They are damaged, or those of others.
    """

    def __init__(self, folder: Path, teachers: Sequence[Teacher], numbers: Sequence[int]) -> None:
        self._folder, self._names = folder, [teacher.name for teacher in teachers]
        self._stores = [AnswerStore(folder / str(n), t.identity) for n, t in zip(numbers, teachers, strict=True)]

    def add(self, teacher: int, rows: Ids, logits: NDArray[np.float32]) -> None:
        """Keep logits (n, C) of rows (n,); of a row that has some already the first ones stay."""
        self._stores[teacher].add(keys_of(rows), logits, np.ones(len(rows), dtype=np.int64))

    def put_into(self, answers: Answers, teacher: int, rows: Ids) -> Ids:
        """Hand out what a teacher said of rows (n,) that it has answered; those of which it is gone."""
        places = self._stores[teacher].find(keys_of(rows))
        there = places >= 0
        if there.any():
            logits = self._stores[teacher].answers(places[there])
            answers.put(teacher, rows[there], logits, np.ones(there.sum(), dtype=bool))
        gone: Ids = rows[~there]
        if len(gone):
            log.warning(
                "%d answers of teacher %s were paid for and are gone (rows %s): restore %s from a copy",
                len(gone),
                self._names[teacher],
                named(gone.tolist()),
                self._folder,
            )
        return gone


def keys_of(rows: Ids) -> Keys:
    """Rows (n,) as an answer store finds them, (n, 2)."""
    return np.stack([rows.astype(np.uint64), np.zeros(len(rows), dtype=np.uint64)], axis=1)


def named(rows: Sequence[int]) -> str:
    """The first few rows, for a warning."""
    return ", ".join(map(str, rows[:TOLD])) + (", ..." if len(rows) > TOLD else "")


def checked_logits(teacher: Teacher, logits: NDArray[np.floating], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Logits (n, C) that can be kept.

    Raises:
        TeacherError: They are of another shape, or not finite.
    """
    if logits.shape != shape or not np.isfinite(logits).all():
        raise TeacherError(
            f"expected finite logits of shape {shape} from teacher {teacher.name!r}, got {logits.shape}, of which "
            f"{int((~np.isfinite(logits)).sum())} are not finite; mend the teacher"
        )
    return logits.astype(np.float32)
