"""The distillation loss where a label is no single class: several labels at once, and numbers."""

import torch
from torch import Tensor

from rlkd.losses.classes import beside_the_label, distillation_loss, mixed
from rlkd.settings import Divergence, LossSettings, Mix


def multi_label_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weights: Tensor,
    targets: Tensor | None = None,
    *,
    temperature: float = LossSettings.temperature,
    kd_ratio: float = LossSettings.kd_ratio,
    mix: Mix = LossSettings.mix,
    scale_by_temperature: bool = LossSettings.scale_by_temperature,
    scale: Tensor | None = None,
    divergence: Divergence = LossSettings.divergence,
) -> Tensor:
    """:func:`distillation_loss` of every label that an instance may have, mean over them.

    A label is a choice of two classes with the scores 0 and z: its divergence is that of two Bernoulli distributions,
    the mixture is that of the teachers' probabilities of the label, the cross entropy is that of
    :func:`torch.nn.functional.binary_cross_entropy_with_logits`.

    Args:
        student_logits: Log odds z of D labels, shape (..., D); the gradient flows here only.
        teacher_logits: Shape (..., K, D).
        weights: Of the teachers for each label, rows on the simplex, or of zeros for a label that no teacher tells,
            shape (..., D, K).
        targets: 0 or 1, NaN where unknown, shape (..., D). None: all unknown.
        temperature: As there, and so are all others.
        kd_ratio: Share of the divergences.
        mix: How the teachers are mixed.
        scale_by_temperature: See there.
        scale: Multiplies the divergences of each instance, shape (...).
        divergence: See there; the squared error is that of the log odds.

    Returns:
        Per instance, shape (...), float32; nats a label with ``"kl"``.
    """
    labels = None if targets is None else torch.where(targets.isnan(), -1, targets.nan_to_num()).long()
    losses = distillation_loss(
        _two_classes(student_logits),
        _two_classes(teacher_logits).transpose(-3, -2),
        weights,
        labels,
        temperature=temperature,
        kd_ratio=kd_ratio,
        mix=mix,
        scale_by_temperature=scale_by_temperature,
        scale=None if scale is None else scale.unsqueeze(-1),
        divergence=divergence,
    )
    return losses.mean(-1)


def _two_classes(log_odds: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(log_odds), log_odds], dim=-1)


def regression_loss(
    student_numbers: Tensor,
    teacher_numbers: Tensor,
    weights: Tensor,
    targets: Tensor | None = None,
    *,
    kd_ratio: float = LossSettings.kd_ratio,
    scale: Tensor | None = None,
) -> Tensor:
    """``(1 - kd_ratio) * SE(label) + kd_ratio * SE(mean of the teachers)`` with SE the squared error of a number.

    Args:
        student_numbers: Shape (..., D), D numbers an instance; the gradient flows here only.
        teacher_numbers: Shape (..., K, D).
        weights: Rows on the simplex, or of zeros where the label alone teaches, shape (..., K).
        targets: Shape (..., D), NaN where unknown. None: all unknown.
        kd_ratio: Share of the distillation term, in [0, 1].
        scale: Multiplies the distillation term of each instance, shape (...).

    Returns:
        Mean over the D numbers, per instance, shape (...), float32.
    """
    numbers = student_numbers.float()
    distance = (numbers - mixed(weights, teacher_numbers.detach().float())).square().mean(-1)
    certain = None if targets is None else squared_error(numbers, targets)
    return beside_the_label(distance, certain, weights, kd_ratio, scale)


def squared_error(numbers: Tensor, targets: Tensor) -> Tensor:
    """Squared error of numbers to labels (..., D), 0 where the label is NaN, mean over the D, shape (...)."""
    known = ~targets.isnan()
    error: Tensor = (torch.where(known, numbers - targets.nan_to_num(), 0.0)).square().mean(-1)
    return error
