"""Scores of students, teachers and weightings; rewards and reports share these functions."""

import logging
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from rlkd.stats import expected_calibration_error

logger = logging.getLogger(__name__)

DIVERGED = 10.0
"""A likelihood that is worse than a uniform guess by this factor is no learning; a student that is sure of all its
answers and wrong in some can be two or three times worse, and still be useful."""

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


def classification_metrics(logits: Floats, labels: Labels) -> dict[str, float]:
    """Accuracy, macro F1, negative log likelihood (nats) and calibration error of one classifier.

    Args:
        logits: Shape (N, C).
        labels: Shape (N,), all labelled.
    """
    from sklearn.metrics import f1_score

    predictions = logits.argmax(-1)
    return {
        "accuracy": float((predictions == labels).mean()),
        "macro_f1": float(f1_score(labels, predictions, average="macro", zero_division=0.0)),
        "nll": negative_log_likelihood(logits, labels),
        "ece": expected_calibration_error(softmax(logits, axis=-1), labels),
    }


def negative_log_likelihood(logits: Floats, labels: Labels) -> float:
    """Mean negative log likelihood in nats, logits (N, C), labels (N,)."""
    return float(-log_softmax(logits, axis=-1)[np.arange(len(labels)), labels].mean())


def told_if_diverged(what: str, nll: float, num_classes: int) -> dict[str, bool]:
    """Warn of a model that is far worse than a uniform guess, whose loss is log C, or not finite.

    Args:
        what: The model and the split, for the warning.
        nll: Its mean negative log likelihood in nats.
        num_classes: C.

    Returns:
        ``{"diverged": True}`` for its record, or nothing.
    """
    guess = math.log(num_classes)
    if nll <= DIVERGED * guess:
        return {}
    logger.warning(
        "%s has a negative log likelihood of %.4g nats, a uniform guess has %.2f: it diverged, or is sure of wrong "
        "answers; lower the learning rate, and look at the scale of the teachers' logits",
        what,
        nll,
        guess,
    )
    return {"diverged": True}


def compute_metrics(prediction: Any) -> dict[str, float]:
    """The ``compute_metrics`` of a :class:`transformers.Trainer`: takes an ``EvalPrediction``."""
    return classification_metrics(np.asarray(prediction.predictions), np.asarray(prediction.label_ids))


def headroom(teacher_logits: Floats, labels: Labels) -> dict[str, float]:
    """What the teachers know together, from their logits alone; what of it can be reached: :mod:`rlkd.headroom`.

    Args:
        teacher_logits: Shape (N, K, C).
        labels: Shape (N,).

    Returns:
        ``best_teacher`` (accuracy), ``equal_mixture`` (accuracy of the mean probabilities), ``best_per_instance``
        (share of rows on which at least one teacher is right), ``room`` (the last minus the larger of the first
        two), ``disagreement`` (share of rows on which not all teachers predict the same class).
    """
    predictions = teacher_logits.argmax(-1)
    right = predictions == labels[:, None]
    equal = softmax(teacher_logits, axis=-1).mean(1).argmax(-1) == labels
    best, mixed, any_right = float(right.mean(0).max()), float(equal.mean()), float(right.any(1).mean())
    return {
        "best_teacher": best,
        "equal_mixture": mixed,
        "best_per_instance": any_right,
        "room": any_right - max(best, mixed),
        "disagreement": disagreement(teacher_logits),
    }


def disagreement(teacher_logits: Floats) -> float:
    """Share of rows on which not all teachers predict the same class, logits (N, K, C)."""
    predictions = teacher_logits.argmax(-1)
    return float((predictions != predictions[:, :1]).any(1).mean())
