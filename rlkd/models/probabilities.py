"""Probabilities are no logits: they are recognised, and either refused or replaced by their logarithms."""

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkd.errors import TeacherError

logger = logging.getLogger(__name__)

SMALLEST_PROBABILITY = 1e-6
FEWEST_ROWS = 4
"""Of which probabilities are told from logits."""
_TOLERANCE = 0.01  # of a sum: float16, or numbers rounded to two decimals

Rows = NDArray[np.floating[Any]]


def are_probabilities(rows: Rows) -> bool:
    """Whether no number is negative and every row sums to 1; of fewer than four rows logits may do so by chance.

    Args:
        rows: What a teacher gave, shape (N, C).
    """
    return len(rows) >= FEWEST_ROWS and rows.shape[1] > 1 and _sum_to(rows, 1.0)


def check_logits(name: str, rows: Rows) -> None:
    """Refuse probabilities where logits are expected: a softmax over 0.95 and 0.05 is 0.71 and 0.29."""
    if are_probabilities(rows):
        raise TeacherError(
            f"expected logits from teacher {name!r}, got probabilities (no number is negative, each of {len(rows)} "
            f"rows sums to 1); give their logarithms, numpy.log(numpy.clip(p, {SMALLEST_PROBABILITY}, None))"
        )


def logarithms(name: str, probabilities: Any) -> NDArray[np.float64]:
    """Logits of probabilities (N, C); one below 1e-6, zero too, counts as 1e-6.

    Raises:
        TeacherError: They are not one distribution over the classes a row, as those of a multi-label classifier.
    """
    rows = np.asarray(probabilities, dtype=np.float64)
    if rows.ndim != 2 or (np.isfinite(rows).all() and not _sum_to(rows, 1.0)):
        got = f"rows that sum to {rows.sum(1).min():.3g} to {rows.sum(1).max():.3g}" if rows.ndim == 2 else rows.shape
        raise TeacherError(
            f"expected probabilities from teacher {name!r} that sum to 1 over the classes, got {got}; a classifier "
            "of several labels a row cannot teach one of a single label"
        )
    return np.log(np.clip(rows, SMALLEST_PROBABILITY, None))


def log_odds(name: str, probabilities: Any) -> NDArray[np.float64]:
    """Log odds of the probabilities (N, L) of labels that are each there or not; within 1e-6 of 0 and 1.

    Raises:
        TeacherError: They are no probabilities, a column a label.
    """
    rows = np.asarray(probabilities, dtype=np.float64)
    if rows.ndim != 2 or not ((rows >= 0) & (rows <= 1)).all():
        got = f"numbers from {rows.min():.3g} to {rows.max():.3g}" if rows.ndim == 2 else f"shape {rows.shape}"
        raise TeacherError(
            f"expected probabilities of labels (B, L) from teacher {name!r}, got {got}; give a classifier such as "
            "OneVsRestClassifier, or a function that returns log odds"
        )
    kept = np.clip(rows, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return np.log(kept) - np.log1p(-kept)


def check_log_odds(name: str, rows: Rows) -> None:
    """Refuse probabilities where log odds of labels are expected; fewer than four rows may lie in [0, 1] by chance."""
    if len(rows) >= FEWEST_ROWS and rows.min() >= 0 and rows.max() <= 1:
        raise TeacherError(
            f"expected log odds of labels from teacher {name!r}, got probabilities (all numbers of {len(rows)} rows "
            "lie in 0 to 1); give numpy.log(p / (1 - p)), p clipped to 1e-6 to 1 - 1e-6"
        )


def as_logits(name: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits that an array (N, C) holds: itself, or its logarithms where it holds probabilities, which is told."""
    if are_probabilities(rows):
        logger.warning(
            "the array of teacher %r holds probabilities (no number is negative, each row sums to 1): their logarithms "
            "are used",
            name,
        )
        return logarithms(name, rows).astype(np.float32)
    if len(rows) >= FEWEST_ROWS and np.isfinite(rows).all():
        if _sum_to(rows, 100.0):
            raise TeacherError(
                f"expected logits or probabilities from teacher {name!r}, got rows that are not negative and sum to "
                "100; divide percentages by 100"
            )
        if rows.min() >= 0 and rows.max() <= 1 and rows.min() < rows.max():
            logger.warning(
                "all numbers of teacher %r lie between 0 and 1 and are taken for logits, which then say next to "
                "nothing; if they are probabilities, each row must sum to 1",
                name,
            )
    return rows


def _sum_to(rows: Rows, total: float) -> bool:
    sums = rows.sum(1, dtype=np.float64)
    return bool((rows >= 0).all() and (np.abs(sums - total) <= _TOLERANCE * total).all())
