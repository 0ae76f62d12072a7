"""Teachers that are scikit-learn classifiers: TF-IDF over texts, linear ones over vectors and pixels."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.data.task import Task, joined_inputs
from rlkd.errors import TeacherError, one_line
from rlkd.models.identity import estimator_identity
from rlkd.models.probabilities import logarithms
from rlkd.models.teachers import KnowsBy, LabelledTeacher

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


class SklearnTeacher(LabelledTeacher):
    """A fitted scikit-learn classifier over raw texts, vectors or pixels; logits are clipped log-probabilities.

    Second texts of pairs are joined to the first by a line break.

    Args:
        name: Unique among the teachers of a run.
        model: Has ``classes_`` and ``predict_proba`` or ``decision_function``.
        label_names: Names of ``classes_``, in order. None: the classes as text.
        knows: See :class:`~rlkd.models.teachers.LabelledTeacher`.
        knows_by: See :class:`~rlkd.models.teachers.LabelledTeacher`.
        allow_missing: See :class:`~rlkd.models.teachers.LabelledTeacher`.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        *,
        label_names: Sequence[str] | None = None,
        knows: Iterable[str] | None = None,
        knows_by: KnowsBy | None = None,
        allow_missing: bool | None = None,
    ) -> None:
        scorer = getattr(model, "predict_proba", None) or getattr(model, "decision_function", None)
        if scorer is None or not hasattr(model, "classes_"):
            raise TeacherError(
                "expected a fitted classifier with predict_proba or decision_function for teacher "
                f"{name!r}, got {type(model).__name__}; fit one"
            )
        names = label_names or [str(label) for label in model.classes_]
        super().__init__(name, names, knows=knows, knows_by=knows_by, allow_missing=allow_missing)
        self.model = model

    @cached_property
    def identity(self) -> str:
        """Hash of the fitted state."""
        return estimator_identity(self.model, self.label_names)

    def raw_logits(self, task: Task, ids: NDArray[np.int64], batch_size: int, max_length: int) -> Tensor:
        """See :meth:`~rlkd.models.teachers.LabelledTeacher.raw_logits`."""
        step = self.rows_at_once(batch_size)
        parts = [
            estimator_logits(self.name, self.model, joined_inputs(task, ids[i : i + step]))
            for i in range(0, len(ids), step)
        ]
        return torch.from_numpy(np.concatenate(parts).astype(np.float32))

    def rows_at_once(self, batch_size: int) -> int:
        """Larger than a network's batch: the cost of a call outweighs its memory here."""
        return max(batch_size, 2048)


def estimator_logits(name: str, model: Any, rows: Any) -> NDArray[np.float64]:
    """What a fitted scikit-learn classifier says of rows, (B, its classes): logarithms of probabilities, or its scores.

    Args:
        name: Of the teacher, for errors.
        model: Has ``predict_proba`` or ``decision_function``.
        rows: B rows as it reads them.
    """
    if hasattr(model, "predict_proba"):
        return logarithms(name, model.predict_proba(rows))
    scores = np.asarray(model.decision_function(rows), dtype=np.float64)
    # Two classes have one score, the log-odds of the second.
    return np.stack([-scores / 2, scores / 2], axis=1) if scores.ndim == 1 else scores
