"""Subsets of the teachers: drawing them, and how probable they are, under a rule for the empty one."""

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

EMPTY_SETS = ("label_only", "all", "argmax", "resample")
"""What happens to an instance for which no teacher was selected: its label alone; all teachers; the most probable
teacher; or it cannot happen, because the draw is repeated until it is not empty."""
SMALLEST = torch.finfo(torch.float32).tiny
"""What somebody's being selected is at least: its inverse stays finite."""


def draw_subsets(scores: Tensor, uniforms: Tensor, empty_set: str) -> Tensor:
    """Draw a subset of the teachers for every instance.

    Args:
        scores: Log odds, shape (..., K).
        uniforms: Random numbers in [0, 1), shape (..., K).
        empty_set: One of ``EMPTY_SETS``; ``argmax`` and ``resample`` give no empty subset.

    Returns:
        0 or 1, shape (..., K), float32.
    """
    if empty_set == "resample":
        return _draw_nonempty(scores, uniforms)
    chosen = (uniforms < torch.sigmoid(scores)).float()
    return filled(chosen, scores) if empty_set == "argmax" else chosen


def _draw_nonempty(scores: Tensor, uniforms: Tensor) -> Tensor:
    """What drawing until something is selected gives, in one pass: each teacher given that nobody was before."""
    p = torch.sigmoid(scores)
    nobody_from = F.logsigmoid(-scores).flip(-1).cumsum(-1).flip(-1)
    given_nobody = p / -torch.expm1(nobody_from).clamp_max(-SMALLEST)
    anybody = torch.zeros_like(p[..., 0], dtype=torch.bool)
    chosen = []
    for k in range(p.shape[-1]):
        chosen.append(uniforms[..., k] < torch.where(anybody, p[..., k], given_nobody[..., k]))
        anybody = anybody | chosen[-1]
    return filled(torch.stack(chosen, dim=-1).float(), scores)  # rounding can leave a row empty


def modal_subsets(scores: Tensor, empty_set: str) -> Tensor:
    """The teachers whose probability is above one half; 0 or 1, shape (..., K)."""
    chosen = (scores > 0).float()
    return filled(chosen, scores) if empty_set in ("argmax", "resample") else chosen


def filled(chosen: Tensor, scores: Tensor) -> Tensor:
    """Put the most probable teacher into empty subsets (..., K)."""
    return torch.where(chosen.any(-1, keepdim=True), chosen, _top(scores))


def _top(scores: Tensor) -> Tensor:
    return F.one_hot(scores.argmax(-1), scores.shape[-1]).float()


def subset_log_probability(scores: Tensor, chosen: Tensor, empty_set: str) -> Tensor:
    """Log probability of drawing these subsets under the rule for the empty set.

    Under ``argmax`` the mass of the empty subset falls to that of the most probable teacher alone; under
    ``resample`` it is shared out over all others.

    Args:
        scores: Log odds, shape (..., K).
        chosen: 0 or 1, shape (..., K).
        empty_set: One of ``EMPTY_SETS``.

    Returns:
        Nats, shape (...).
    """
    nobody = F.logsigmoid(-scores)
    independent = (chosen * F.logsigmoid(scores) + (1 - chosen) * nobody).sum(-1)
    if empty_set == "resample":
        return independent - torch.log(-torch.expm1(nobody.sum(-1)).clamp_max(-SMALLEST))
    if empty_set == "argmax":
        top = _top(scores)
        alone = ((1 - top) * nobody).sum(-1)
        return torch.where((chosen == top).all(-1), alone, independent)
    return independent


def keyed_uniforms(ids: Tensor, count: int, key: tuple[int, float]) -> Tensor:
    """Random numbers in [0, 1) that are a function of instance id, position and key; shape (..., count).

    Args:
        ids: Shape (...), int64.
        count: K.
        key: Seed, and share of the run that is spent.

    Source:
        The finaliser of splitmix64, Steele, Lea, Flood 2014.
    """
    salt = np.uint64(xxhash.xxh3_64_intdigest(repr(key).encode()))
    place = np.arange(1, count + 1, dtype=np.uint64)
    x: NDArray[np.uint64] = ids.cpu().numpy().astype(np.uint64)[..., None] * np.uint64(count) + place
    with np.errstate(over="ignore"):
        x = (x * np.uint64(0x9E3779B97F4A7C15)) ^ salt
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return torch.from_numpy((x >> np.uint64(40)).astype(np.float32) / np.float32(2**24)).to(ids.device)
