"""A student that learns in a moment: what it is still unsure of is worth asking about."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


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


def with_constant(vectors: Floats) -> NDArray[np.float64]:
    """Vectors (B, D) with a constant behind, float64, shape (B, D + 1)."""
    wide = np.asarray(vectors, dtype=np.float64)
    return np.concatenate([wide, np.ones((len(wide), 1))], axis=1)
