"""Scores that are no mean over instances, spread over them all the same: Matthews' correlation and macro F1."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkd.errors import ConfigError
from rlkd.stats.estimates import Array

Classes = NDArray[np.integer[Any]]


def instance_values(metric: str, labels: Classes, predictions: Classes) -> Array:
    """What each test instance contributes to a score: values whose mean is the score, shape (N,).

    They are jackknife pseudo-values, N times the score minus N - 1 times the score without the instance, shifted so
    that their mean is the score itself. Their spread over instances is that of the score over test sets.

    Args:
        metric: A key of :data:`LEAVE_ONE_OUT`.
        labels: Class indices, shape (N,), N >= 2.
        predictions: Class indices, shape (N,).

    Source:
        Tukey 1958 (the jackknife); Efron and Stein 1981, The jackknife estimate of variance,
        doi:10.1214/aos/1176345462.
    """
    if metric not in LEAVE_ONE_OUT or len(labels) < 2 or len(labels) != len(predictions):
        raise ConfigError(
            f"expected one of {', '.join(LEAVE_ONE_OUT)} and two or more pairs, got {metric!r}, {len(labels)} labels, "
            f"{len(predictions)} predictions; pass a prediction for each label"
        )
    classes = int(max(labels.max(), predictions.max())) + 1
    cells, which = np.unique(labels.astype(np.int64) * classes + predictions, return_inverse=True)
    label, prediction = np.divmod(cells, classes)
    confusion = np.zeros((classes, classes))
    confusion[label, prediction] = np.bincount(which)
    score, without = LEAVE_ONE_OUT[metric](confusion, label, prediction)
    pseudo = (len(labels) - 1) * (score - without)[which]
    return np.asarray(score + pseudo - pseudo.mean())


def _matthews(confusion: Array, label: Classes, prediction: Classes) -> tuple[float, Array]:
    """Matthews' correlation, and without one instance of each cell; 0 where all labels or predictions are equal.

    Source:
        Gorodkin 2004, Comparing two K-category assignments by a K-category correlation coefficient,
        doi:10.1016/j.compbiolchem.2004.09.006.
    """
    true, said, size = confusion.sum(1), confusion.sum(0), confusion.sum()
    right = (label == prediction).astype(float)

    def correlation(count: Any, correct: Any, both: Any, labels: Any, predictions: Any) -> Any:
        scale = np.sqrt(np.maximum((count**2 - labels) * (count**2 - predictions), 0.0))
        return np.where(scale > 0, (correct * count - both) / np.where(scale > 0, scale, 1.0), 0.0)

    score = correlation(size, np.trace(confusion), true @ said, true @ true, said @ said)
    without = correlation(
        size - 1,
        np.trace(confusion) - right,
        true @ said - true[prediction] - said[label] + right,
        true @ true - 2 * true[label] + 1,
        said @ said - 2 * said[prediction] + 1,
    )
    return float(score), np.asarray(without)


def _macro_f1(confusion: Array, label: Classes, prediction: Classes) -> tuple[float, Array]:
    """Mean F1 of the classes that are labels or predictions, and without one instance of each cell."""
    hits, seen = np.diag(confusion), confusion.sum(1) + confusion.sum(0)
    right = label == prediction

    def f1(hit: Array, count: Array) -> Array:
        return np.asarray(np.where(count > 0, 2 * hit / np.maximum(count, 1), 0.0))

    whole, present = f1(hits, seen), int((seen > 0).sum())
    # without a right instance its class has one hit and two counts less; without a wrong one both classes a count less
    at_label = f1(hits[label] - right, seen[label] - 1 - right)
    gone = (seen[label] <= 1 + right).astype(int)
    total = whole.sum() - whole[label] + at_label
    at_prediction = f1(hits[prediction], seen[prediction] - 1)
    total = total + np.where(right, 0.0, at_prediction - whole[prediction])
    gone = gone + np.where(right, 0, seen[prediction] <= 1)
    return float(whole.sum() / present), np.asarray(total / np.maximum(present - gone, 1))


LEAVE_ONE_OUT: dict[str, Callable[[Array, Classes, Classes], tuple[float, Array]]] = {
    "matthews": _matthews,
    "macro_f1": _macro_f1,
}
"""Metric to the score of a confusion matrix (labels, predictions) and its value without one instance of each cell."""
