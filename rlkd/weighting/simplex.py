"""Weights on the simplex: from scores, from shares, or equal, over the teachers that are present."""

import torch
from torch import Tensor


def masked_softmax(scores: Tensor, present: Tensor) -> Tensor:
    """Softmax over the present teachers.

    Args:
        scores: Shape (..., K), finite.
        present: Bool, shape (..., K).

    Returns:
        Shape (..., K), float32, zero where absent.
    """
    shares = torch.softmax(scores.float().masked_fill(~present, -torch.inf), dim=-1)
    return torch.where(present, shares, 0.0)  # where nobody is, they are 0 / 0


def normalised(shares: Tensor, present: Tensor) -> Tensor:
    """Scale non-negative shares (..., K) to the simplex over the present teachers; all-zero rows get equal weights.

    However small the shares are, only their ratios count: they are zero below the range of their type alone.
    """
    wide = shares.to(torch.promote_types(shares.dtype, torch.float32))
    kept = torch.where(present, wide, 0.0)
    largest = kept.amax(-1, keepdim=True)
    smallest = torch.finfo(kept.dtype).tiny
    far = (largest < 1e-12) | (largest > 1e12)  # where a sum could be lost, or be infinite
    kept = torch.where(far, kept / largest.clamp_min(smallest), kept)
    weights = kept / kept.sum(-1, keepdim=True).clamp_min(1e-12)
    return torch.where(largest < smallest, equal_weights(present), weights.float())


def equal_weights(present: Tensor) -> Tensor:
    """Equal weights over the present teachers, shape (..., K); zeros where nobody is."""
    return present.float() / present.sum(-1, keepdim=True).clamp_min(1)
