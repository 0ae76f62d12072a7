"""Temperatures under which labels are likeliest, and what is left of the cross entropy at them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkd.losses.classes import cross_entropy

COLDEST, HOTTEST = 0.05, 20.0
"""Range of fitted temperatures: a classifier without a mistake would be sharpened for ever."""


def likeliest_temperatures(logits: Tensor, labels: Tensor) -> Tensor:
    """Temperature per classifier under which the labels are likeliest.

    The likelihood is convex in b = 1 / T, so its slope, the mean over rows of ``E_p[z] - z_y``, is bisected.

    Args:
        logits: Finite, of K classifiers, shape (N, K, C).
        labels: Shape (N,), all given.

    Returns:
        Shape (K,), in [0.05, 20], float32.
    """
    logits = logits.double()
    at_label = logits.gather(-1, labels[:, None, None].expand(-1, logits.shape[1], 1)).squeeze(-1)
    low = torch.full((logits.shape[1],), 1 / HOTTEST, dtype=torch.float64, device=logits.device)
    high = torch.full_like(low, 1 / COLDEST)
    for _ in range(50):
        middle = (low * high).sqrt()
        p = F.softmax(logits * middle[:, None], dim=-1)
        rising = ((p * logits).sum(-1) - at_label).mean(0) > 0
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    return (low * high).rsqrt().float()


def refined_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy to the label of a classifier whose temperature is refitted on these rows.

    What is left cannot be mended by making the classifier more or less sure of itself, so that it follows accuracy
    where plain cross entropy follows confidence.

    Args:
        logits: Shape (N, C).
        labels: Shape (N,), all given.

    Returns:
        Nats per instance, shape (N,), float32.

    Source:
        Berta, Holzmueller, Jordan, Bach 2025, arXiv:2501.19195: the refinement error, estimated by the loss after
        temperature scaling.
    """
    return cross_entropy(logits / likeliest_temperatures(logits.unsqueeze(1), labels), labels)
