"""What teachers were worth on the instances that they have answered, near an instance, by class and overall."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

SIGNALS = ("trusted", "confidence", "correct")
"""What is remembered of an answer, in [0, 1]: how far it was trusted among several, ``x / (1 + x)`` of its weight times
their number, so that 1/2 is as far as the others; how sure the teacher was, relative to how sure it usually is; whether
it was right, where the label is known."""
KEPT = 4096
"""Instances that are remembered one by one, the latest: what lies near is looked for among them."""
SHARPNESS = 10.0
"""Of the kernel exp(SHARPNESS * (cosine - 1)) by which instances are near."""
BEFORE = 0.5
"""Answers, as far trusted as all others of their teacher, that stand in before any is known."""


class AnswerRecord:
    """A record of answers, by teacher.

    Args:
        size: Length D of the vectors of instances.
        classes: C.
        teachers: K.
    """

    def __init__(self, size: int, classes: int, teachers: int) -> None:
        self._vectors = np.zeros((KEPT, size), dtype=np.float32)
        self._kept = np.zeros((KEPT, 2, teachers, len(SIGNALS)), dtype=np.float32)
        self._by_class = np.zeros((classes, 2, teachers, len(SIGNALS)))
        self._overall = np.zeros((2, teachers, len(SIGNALS)))
        self.instances = 0
        """That were added so far."""

    def add(self, vectors: Floats, classes: Floats, signals: Floats, known: NDArray[np.bool_]) -> None:
        """Remember instances.

        Args:
            vectors: Unit rows, shape (n, D).
            classes: Of which class they are as far as is known, probabilities, shape (n, C).
            signals: ``SIGNALS`` of every teacher, shape (n, K, S).
            known: Which of them are known, bool, shape (n, K, S).
        """
        both = np.stack([np.where(known, signals, 0), known], axis=1)
        places = (self.instances + np.arange(len(both))) % KEPT
        self._vectors[places], self._kept[places] = vectors, both
        self._by_class += np.tensordot(classes.T, both, 1)
        self._overall += both.sum(0)
        self.instances += len(both)

    def overall(self) -> tuple[Floats, Floats]:
        """Mean signals and their number, both of shape (K, S)."""
        sums, counts = self._overall
        # a teacher that nothing is known of is taken for one like all others
        usual = (sums.sum(0) + BEFORE / 2) / (counts.sum(0) + BEFORE)
        return (sums + BEFORE * usual) / (counts + BEFORE), counts

    def near(self, vectors: Floats) -> tuple[Floats, Floats, Floats]:
        """The same near instances (B, D).

        Returns:
            Mean signals and effective numbers, both of shape (B, K, S), and the cosine to the nearest of those
            remembered, in [0, 1], shape (B,).
        """
        means, _ = self.overall()
        filled = min(self.instances, KEPT)
        cosine = np.asarray(vectors, dtype=np.float32) @ self._vectors[:filled].T
        kernel = np.exp(SHARPNESS * (cosine - 1))
        both = (kernel @ self._kept[:filled].reshape(filled, self._kept[0].size)).reshape(
            len(vectors), *self._kept.shape[1:]
        )
        nearest = cosine.max(1, initial=0).clip(0, 1)
        return (both[:, 0] + BEFORE * means) / (both[:, 1] + BEFORE), both[:, 1], nearest

    def by_class(self) -> Floats:
        """Mean signals on instances of each class, shape (C, K, S)."""
        means, _ = self.overall()
        sums, counts = self._by_class[:, 0], self._by_class[:, 1]
        return np.asarray((sums + BEFORE * means) / (counts + BEFORE))
