"""Teachers that are scikit-learn classifiers: TF-IDF over texts, linear ones over vectors and pixels."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkd.data.task import Task, joined_inputs
from rlkd.errors import TeacherError, one_line

TFIDF = "tfidf"
LOGISTIC = "logistic"
RANDOM_FEATURES = "random-features"
ESTIMATORS: Mapping[str, tuple[str, ...]] = {
    TFIDF: ("text", "vectors"),
    LOGISTIC: ("vectors", "images"),
    RANDOM_FEATURES: ("vectors", "images"),
}
"""Kinds of teachers to what they read; ``tfidf`` of vectors is a logistic regression, as it always was."""
_NUM_FEATURES = 400
_RARE = 200
"""Rows from which on words that occur once are left out."""


def check_estimator(kind: str, task: Task) -> None:
    """Refuse a kind of ``ESTIMATORS`` that cannot read a task.

    Raises:
        TeacherError: Names those that can.
    """
    if task.table.holds not in ESTIMATORS[kind]:
        fitting = [name for name, reads in ESTIMATORS.items() if task.table.holds in reads]
        raise TeacherError(
            f"teachers of kind {kind!r} read {' or '.join(ESTIMATORS[kind])}, task {task.name!r} has "
            f"{task.table.holds}; choose {', '.join(fitting)} or a network"
        )


def fit_estimator(kind: str, task: Task, rows: NDArray[np.int64], seed: int) -> Any:
    """Fit a classifier of a kind of ``ESTIMATORS``; its classes are the names of the task's.

    Args:
        kind: The kind.
        task: The task.
        rows: Instance ids that it learns from, shape (N,).
        seed: Of random features.

    Raises:
        TeacherError: Nothing can be learned from the rows.
    """
    # imported here: every process that trains a network would load them for nothing
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    model = _unfitted(kind, task, len(rows), seed)
    # another number of threads sums in another order, and the fit ends somewhere else
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            return model.fit(joined_inputs(task, rows), np.array(task.label_names)[task.table.labels[rows]])
        except ValueError as error:
            raise TeacherError(
                f"expected rows that a teacher of kind {kind!r} can learn from, got {len(rows)} that it cannot "
                f"({one_line(error)}); give more rows or another kind of teacher"
            ) from error


def _unfitted(kind: str, task: Task, rows: int, seed: int) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.kernel_approximation import RBFSampler
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if task.table.holds == "text":
        # Words that occur once tell nothing, unless there are hardly any rows.
        words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2 if rows >= _RARE else 1)
        return make_pipeline(words, LogisticRegression(C=20.0, max_iter=300))
    classifier = LogisticRegression(C=1.0, max_iter=300)
    if kind == RANDOM_FEATURES:
        sampler = RBFSampler(gamma="scale", n_components=_NUM_FEATURES, random_state=seed)
        return make_pipeline(sampler, classifier.set_params(C=20.0))
    return classifier
