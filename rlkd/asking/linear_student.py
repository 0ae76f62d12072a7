"""A student that learns in a moment: what it is still unsure of is worth asking about."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

POWERS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Of a student's probabilities, of which the best is taken before it is judged."""


class LinearStudent:
    """Ridge regression from the vectors of instances to what they are taught, solved in closed form.

    Args:
        size: Length D of the vectors.
        classes: C.
        ridge: Added to the diagonal, > 0.
    """

    def __init__(self, size: int, classes: int, ridge: float = 1.0) -> None:
        self._products = ridge * np.eye(size + 1)
        self._targets = np.zeros((size + 1, classes))
        self._solution: NDArray[np.float64] | None = None
        self.taught = 0
        """Instances that it was taught."""

    def learn(self, vectors: Floats, targets: Floats) -> None:
        """Be taught instances.

        Args:
            vectors: Shape (B, D).
            targets: Probabilities, shape (B, C).
        """
        wide = with_constant(vectors)
        self._products += wide.T @ wide
        self._targets += wide.T @ targets
        self.taught += len(wide)
        self._solution = None

    def probabilities(self, vectors: Floats) -> NDArray[np.float64]:
        """What it predicts, rows on the simplex, shape (B, C); equal ones before it was taught anything."""
        classes = self._targets.shape[1]
        if not self.taught:
            return np.full((len(vectors), classes), 1 / classes)
        if self._solution is None:
            self._solution = np.asarray(np.linalg.solve(self._products, self._targets))
        raw = (with_constant(vectors) @ self._solution).clip(1e-4)
        return np.asarray(raw / raw.sum(1, keepdims=True))


def margin(probabilities: Floats) -> NDArray[np.float64]:
    """Lead of the likeliest class over the second, of rows (B, C >= 2), shape (B,), in [0, 1]."""
    first = np.partition(probabilities, -2, axis=1)[:, -2:]
    return np.asarray(first[:, 1] - first[:, 0])


def refined_losses(student: LinearStudent, vectors: Floats, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """A student's cross entropies, in nats, shape (B,), at that of ``POWERS`` of its probabilities that is best.

    Args:
        student: Is judged.
        vectors: Shape (B, D).
        labels: Shape (B,).
    """
    log_p = np.log(student.probabilities(vectors))
    found: list[NDArray[np.float64]] = []
    for power in POWERS:
        sharp = power * log_p
        total = np.log(np.exp(sharp - sharp.max(1, keepdims=True)).sum(1)) + sharp.max(1)
        found.append(total - sharp[np.arange(len(labels)), labels])
    return min(found, key=lambda losses: float(losses.mean()))


def with_constant(vectors: Floats) -> NDArray[np.float64]:
    """Vectors (B, D) with a constant behind, float64, shape (B, D + 1)."""
    wide = np.asarray(vectors, dtype=np.float64)
    return np.concatenate([wide, np.ones((len(wide), 1))], axis=1)
