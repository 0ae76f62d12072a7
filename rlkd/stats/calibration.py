"""Whether a classifier is as often right as it is sure."""

import numpy as np
from numpy.typing import ArrayLike

from rlkd.errors import ConfigError
from rlkd.stats.estimates import finite


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy, over equally wide bins of confidence.

    Bin m holds confidences in ((m - 1) / bins, m / bins]; its weight is its share of the instances.

    Args:
        probabilities: Rows on the simplex, shape (N, C).
        labels: Class indices in [0, C), shape (N,); unlabelled instances must be left out.
        bins: Number of bins; >= 1.

    Returns:
        In [0, 1]; 0 is perfectly calibrated.

    Raises:
        ConfigError: If the shapes do not fit, a label is out of range or a row is no distribution.

    Source:
        Guo et al. 2017, equation 3, arXiv:1706.04599.
    """
    array = finite(probabilities, "(instances, classes)")
    answers = np.asarray(labels)
    if bins < 1 or answers.shape != array.shape[:1]:
        raise ConfigError(
            f"expected {len(array)} labels and bins >= 1, got {answers.shape}, bins {bins}; pass one a row"
        )
    if answers.min() < 0 or answers.max() >= array.shape[1]:
        raise ConfigError(
            f"expected labels in [0, {array.shape[1]}), got {answers.min()} to {answers.max()}; "
            "leave unlabelled instances out"
        )
    if array.min() < 0 or np.abs(array.sum(axis=1) - 1).max() > 1e-3:
        raise ConfigError("expected rows that sum to one, got others; pass probabilities, not logits")
    confidence = array.max(axis=1)
    correct = array.argmax(axis=1) == answers
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    # |sum of correct - sum of confidence| in a bin is its size times the distance of the two means.
    distances = np.abs(np.bincount(bin_of, weights=correct - confidence, minlength=bins))
    return float(distances.sum() / len(array))
