"""The instances that teachers may be asked about, and what is known of them before."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlkd.asking.bank import Ids
from rlkd.data.task import UNLABELLED, Task, joined_inputs
from rlkd.errors import TaskError
from rlkd.prototypes import unit_rows
from rlkd.types import Knowledge
from rlkd.weighting import Policy

VECTOR_SIZE = 128
"""Length of the vectors by which instances are near one another, unless the task has fewer words or numbers."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What a strategy may look at before it asks.

    Attributes:
        ids: Of the instances that may be asked about, shape (M,).
        vectors: Of all N instances of the task, unit rows, float32, shape (N, D).
        labels: Of all N, -1 where a strategy knows none, shape (N,).
        classes: Number of classes C.
        right: Bool, shape (N, K): who was trained on an instance's class or domain, where that is known; for controls.
        weighting: Says how far answers are trusted where no label does; None: the policy that is shipped.
    """

    ids: Ids
    vectors: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: int
    right: NDArray[np.bool_] | None = None
    weighting: Policy | None = None

    @classmethod
    def of(
        cls,
        task: Task,
        labelled: Ids | None = None,
        vectors: NDArray[np.float32] | None = None,
        knowledge: Knowledge | None = None,
    ) -> "Pool":
        """The train rows of a task.

        Args:
            task: The task.
            labelled: Rows whose labels may be read; None: all train rows that have one.
            vectors: See the class; None: :func:`instance_vectors`.
            knowledge: Of the teachers, for controls.

        Raises:
            TaskError: A row to be labelled has no label.
        """
        rows = task.labelled_ids("train") if labelled is None else labelled
        if (task.table.labels[rows] == UNLABELLED).any():
            raise TaskError(f"expected rows of task {task.name!r} with a label, got some without; name others")
        labels = np.full(len(task.table), UNLABELLED)
        labels[rows] = task.table.labels[rows]
        known = instance_vectors(task) if vectors is None else vectors
        right = None
        if knowledge is not None:
            groups = task.table.labels if knowledge.by == "class" else task.table.domains
            right = knowledge.matrix.T[groups] & (groups >= 0)[:, None]
        return cls(ids=task.splits["train"], vectors=known, labels=labels, classes=task.num_classes, right=right)

    @property
    def labelled(self) -> Ids:
        """Those that a strategy knows the label of."""
        known: Ids = self.ids[self.labels[self.ids] != UNLABELLED]
        return known


def instance_vectors(task: Task, size: int = VECTOR_SIZE) -> NDArray[np.float32]:
    """Vectors of all instances, near where instances are alike: no label and no teacher is read for them.

    Of texts their weighted words, of vectors and images their numbers, in the directions in which the train rows differ
    most.

    Args:
        task: The task.
        size: Length D at most.

    Returns:
        Unit rows, float32, shape (N, D).

    Source:
        Deerwester et al. 1990, indexing by latent semantic analysis.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import StandardScaler

    rows, train = joined_inputs(task, np.arange(len(task.table))), task.splits["train"]
    if isinstance(rows, list):
        words = TfidfVectorizer(sublinear_tf=True, min_df=2, stop_words=None)
        words.fit([rows[index] for index in train])
        numbers = words.transform(rows)
    else:
        numbers = StandardScaler().fit(rows[train]).transform(rows)
    size = min(size, numbers.shape[1] - 1, len(train) - 1)
    if size < 1:
        raise TaskError(f"expected instances of task {task.name!r} that differ in two words or numbers, got none")
    directions = TruncatedSVD(size, random_state=0).fit(numbers[train])
    return unit_rows(directions.transform(numbers)).astype(np.float32)
