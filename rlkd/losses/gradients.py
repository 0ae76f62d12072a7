"""Gradients of the distillation loss at the student's logits, in closed form: no backward pass."""

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkd.losses.classes import difference, has_teacher, mixed, one_hot, soft_targets
from rlkd.settings import Divergence, LossSettings, Mix


def logit_gain(student_logits: Tensor, gradient: Tensor, labels: Tensor) -> Tensor:
    """First-order drop of an instance's own cross entropy when its logits move against ``gradient``.

    The step moves the logits against the gradient of the loss that the student is trained with, see
    :func:`loss_gradient`; the cross entropy falls by the inner product with its own gradient ``p - y``. For a student
    taught by the mixture q alone, at temperature 1, it is ``(p - q) . (p - y)``. Linear in the gradient: the gain of a
    mixture of probabilities is the mixture of the gains.

    Args:
        student_logits: Shape (..., C).
        gradient: Of the loss at these logits, shape (..., C).
        labels: Shape (...), -1 for unlabelled (gives zero).

    Returns:
        Gain per unit of learning rate, shape (...); in [-2, 2] at temperature 1.
    """
    p = F.softmax(student_logits.float(), dim=-1)
    gain: Tensor = (gradient * (p - one_hot(labels, p))).sum(-1)
    return torch.where(labels >= 0, gain, torch.zeros_like(gain))


def loss_gradient(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weights: Tensor,
    labels: Tensor,
    *,
    temperature: float = LossSettings.temperature,
    kd_ratio: float = LossSettings.kd_ratio,
    mix: Mix = LossSettings.mix,
    scale_by_temperature: bool = LossSettings.scale_by_temperature,
    scale: Tensor | None = None,
    divergence: Divergence = LossSettings.divergence,
) -> Tensor:
    """Gradient of :func:`distillation_loss` at the student's logits, in closed form: no backward pass.

    ``T (p - q)`` of ``T ** 2 * KL(q || p)``, both sides softened by T, or ``2 (z - mixture)`` of the squared error;
    ``p - y`` of the cross entropy. Arguments are those of :func:`distillation_loss`.

    Returns:
        Shape (..., C), float32.
    """
    logits = student_logits.detach().float()
    if divergence == "kl":
        targets = soft_targets(teacher_logits, weights, temperature=temperature, mix=mix)
        factor = temperature if scale_by_temperature else 1 / temperature
        gradient = factor * (F.softmax(logits / temperature, dim=-1) - targets)
    else:
        gradient = 2 * difference(logits, mixed(weights, teacher_logits.detach().float()), divergence)
    if scale is not None:
        gradient = gradient * scale.detach().unsqueeze(-1)
    p = F.softmax(logits, dim=-1)
    certain = torch.where((labels >= 0).unsqueeze(-1), p - one_hot(labels, p), torch.zeros_like(p))
    gradient = torch.where(has_teacher(weights).unsqueeze(-1), gradient, certain)
    return gradient if kd_ratio == 1 else (1 - kd_ratio) * certain + kd_ratio * gradient


def divergence_gradients(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = LossSettings.temperature,
    divergence: Divergence = LossSettings.divergence,
) -> Tensor:
    """Gradient of every teacher's own divergence at the student's logits: no backward pass.

    ``T (p - q_k)`` of ``T ** 2 * KL(q_k || p)``, both sides softened by T, or ``2 (z - z_k)`` of the squared error,
    as in :func:`distillation_loss`.

    Args:
        student_logits: Shape (..., C).
        teacher_logits: Shape (..., K, C).
        temperature: T > 0, of ``"kl"``.
        divergence: See :func:`distillation_loss`.

    Returns:
        Shape (..., K, C), float32, or float64 if the logits are: where the student is near its teachers the
        difference has the digits that the logits leave it.
    """
    wide = torch.promote_types(student_logits.dtype, torch.float32)
    student, teachers = student_logits.to(wide).unsqueeze(-2), teacher_logits.to(wide)
    if divergence != "kl":
        return 2 * difference(student, teachers, divergence)
    return temperature * (F.softmax(student / temperature, dim=-1) - F.softmax(teachers / temperature, dim=-1))
