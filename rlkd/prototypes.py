"""Prototypes: mean embeddings of groups of instances, and how near to them an instance lies.

One home for Meta-KD's prototype score, which weights instances, and for the affinity feature, which tells teachers
apart.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkd.errors import TaskError
from rlkd.settings import PrototypeSettings

Floats = NDArray[np.floating[Any]]


def group_means(embeddings: Floats, members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean embedding of every group.

    Args:
        embeddings: Shape (N, D), finite.
        members: Who belongs to which group, shape (G, N).

    Returns:
        Shape (G, D); zeros for a group without members, to which every cosine is 0.
    """
    sums = members.astype(np.float64) @ embeddings
    return np.asarray(sums / members.sum(1, keepdims=True).clip(1))


def cosines(embeddings: Floats, prototypes: Floats) -> NDArray[np.float64]:
    """Cosine of every embedding (N, D) to every prototype (G, D), shape (N, G); 0 where one of the two is zero."""
    return np.asarray(unit_rows(embeddings) @ unit_rows(prototypes).T)


def unit_rows(vectors: Floats) -> NDArray[np.float64]:
    """Rows (N, D) scaled to length 1; zeros stay zeros."""
    wide = np.asarray(vectors, dtype=np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True).clip(1e-12))


def prototype_scores(
    embeddings: Floats,
    labels: NDArray[np.int64],
    domains: NDArray[np.int64],
    *,
    rows: NDArray[np.int64],
    settings: PrototypeSettings | None = None,
) -> NDArray[np.float64]:
    """Meta-KD's prototype score t: how typical an instance is of its domain, and of the other domains.

    With ``class``: ``t = a cos(E, p_own) + (1 - a) / (D - 1) * sum of cos(E, p_other)`` over the prototypes of the
    instance's own class. With ``domain``: ``t = a cos(E, c_own) + (1 - a) cos(E, mean of the other domains' c)``.
    Where the own domain has no prototype (none of its rows is in ``rows``), or no other domain has one, the score is
    the part that is there.

    Args:
        embeddings: Of all instances, shape (N, D), mean-pooled over real tokens only.
        labels: Shape (N,); -1 for unlabelled, whose score is NaN with ``class``.
        domains: Shape (N,).
        rows: Labelled instances that prototypes are made of.
        settings: How. None: class-wise, equal shares, not centred.

    Returns:
        Shape (N,), in [-1, 1].

    Raises:
        TaskError: An instance's class has no prototype in any domain, or embeddings are not finite.

    Source:
        Pan et al. 2021, arXiv:2012.01266, section 3.2; its released code (``generate_meta_weights.py``). Deviation:
        padding is left out of the mean; missing prototypes are skipped.
    """
    chosen = settings or PrototypeSettings()
    if not np.isfinite(embeddings).all():
        raise TaskError("embeddings must be finite, got NaN or infinity; use another embedder")
    wide = np.asarray(embeddings, dtype=np.float64)
    if chosen.centred:
        wide = wide - wide[rows].mean(0)
    count = int(domains.max(initial=0)) + 1
    if chosen.kind == "domain":
        return _scores(wide, domains, _members(domains, rows, count), wide, chosen)
    scores = np.full(len(wide), np.nan)
    for label in np.unique(labels[labels >= 0]):
        own = labels == label
        members = _members(domains, rows[labels[rows] == label], count)
        scores[own] = _scores(wide[own], domains[own], members, wide, chosen)
    return scores


def _members(domains: NDArray[np.int64], rows: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    members = np.zeros((count, len(domains)), dtype=bool)
    members[domains[rows], rows] = True
    return members


def _scores(
    embeddings: Floats,
    domains: NDArray[np.int64],
    members: NDArray[np.bool_],
    everybody: Floats,
    settings: PrototypeSettings,
) -> NDArray[np.float64]:
    """Cosines of M instances to the prototypes of their own and of the other domains, mixed; shape (M,)."""
    there = members.any(1)
    if not there.any():
        raise TaskError("a prototype needs labelled training rows, got a class without any; add some of every class")
    means = group_means(everybody, members)
    is_own = np.eye(len(means), dtype=bool)[domains]
    own, others = is_own & there, ~is_own & there
    near = cosines(embeddings, means)
    if settings.kind == "domain":  # one cosine to the mean of the other centroids, not the mean of the cosines to them
        foreign = means.sum(0) - means  # (G, D): those of all domains but one; only its direction counts
        other = cosines(embeddings, foreign)[np.arange(len(embeddings)), domains]
    else:
        other = (near * others).sum(1) / others.sum(1).clip(1)
    share = np.where(own.any(1), np.where(others.any(1), settings.own_share, 1.0), 0.0)
    return np.asarray(share * (near * own).sum(1) + (1 - share) * other)
