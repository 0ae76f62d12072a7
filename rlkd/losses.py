"""The distillation loss, in its one home: the trainer and the environment both call :func:`distillation_loss`.

Losses are per instance and reduced once, by the caller.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkd.errors import ConfigError

Mix = Literal["probability", "logit"]
MIXES: tuple[str, ...] = get_args(Mix)


def check_loss_settings(temperature: float, kd_ratio: float, mix: str) -> None:
    """Refuse loss settings out of range, before any long work.

    Raises:
        ConfigError: If a value is out of its range.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature must be > 0, got {temperature}; pass a positive number (1.0 is usual)")
    if not 0 <= kd_ratio <= 1:
        raise ConfigError(f"kd_ratio must lie in [0, 1], got {kd_ratio}; 1 distils from the teachers alone")
    if mix not in MIXES:
        raise ConfigError(f"mix must be one of {', '.join(MIXES)}, got {mix!r}")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy to the label, zero where the label is -1.

    Args:
        logits: Unnormalised scores, shape (..., C).
        labels: Class indices, shape (...), -1 for unlabelled.

    Returns:
        Nats per instance, shape (...), float32.
    """
    log_probabilities = F.log_softmax(logits.float(), dim=-1)
    picked = log_probabilities.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.where(labels >= 0, -picked, torch.zeros_like(picked))


def teacher_cross_entropy(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of every teacher to the label.

    Args:
        teacher_logits: Shape (..., K, C).
        labels: Shape (...), -1 for unlabelled (gives zeros).

    Returns:
        Nats, shape (..., K), float32.
    """
    return cross_entropy(teacher_logits, labels.unsqueeze(-1).expand(teacher_logits.shape[:-1]))


def soft_targets(
    teacher_logits: Tensor, weights: Tensor, *, temperature: float = 1.0, mix: Mix = "probability"
) -> Tensor:
    """Mix the teachers into one distribution per instance.

    Args:
        teacher_logits: Shape (..., K, C).
        weights: Rows on the simplex, shape (..., K).
        temperature: Softens each teacher; > 0.
        mix: ``"probability"`` averages the softened probabilities; ``"logit"`` averages the logits and
            softens then (TextBrewer's convention).

    Returns:
        Probabilities, shape (..., C), float32, detached.

    Source:
        Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2 (temperature); You et al. 2017 (averaging).
    """
    logits = teacher_logits.detach().float()
    if mix == "logit":
        return F.softmax(_mixed(weights, logits) / temperature, dim=-1)
    return _mixed(weights, F.softmax(logits / temperature, dim=-1))


def _mixed(weights: Tensor, values: Tensor) -> Tensor:
    # scaled by K on the way, so that equal weights give the plain mean to the last bit
    teachers = weights.shape[-1]
    shares = (weights.detach().float() * teachers).unsqueeze(-1)
    return (shares * values).sum(-2) / teachers


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weights: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    kd_ratio: float = 1.0,
    mix: Mix = "probability",
    scale_by_temperature: bool = True,
) -> Tensor:
    """``(1 - kd_ratio) * CE + kd_ratio * KL(mixture || student)``, one value per instance.

    With ``mix="probability"`` the student's gradient equals that of the weighted sum of the K single
    divergences, for detached weights.

    Args:
        student_logits: Shape (..., C); the gradient flows here only.
        teacher_logits: Shape (..., K, C).
        weights: Rows on the simplex, shape (..., K).
        labels: Shape (...), -1 for unlabelled rows, whose cross entropy counts zero. May be None when
            ``kd_ratio`` is 1.
        temperature: Softens both sides of the divergence; > 0.
        kd_ratio: Share of the distillation term, in [0, 1].
        mix: See :func:`soft_targets`.
        scale_by_temperature: Multiply the divergence by ``temperature ** 2``, so that its gradient keeps its
            size as the temperature grows.

    Returns:
        Nats per instance, shape (...), float32.

    Source:
        Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2.
    """
    targets = soft_targets(teacher_logits, weights, temperature=temperature, mix=mix)
    log_student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    divergence: Tensor = -(targets * log_student).sum(-1) + torch.special.xlogy(targets, targets).sum(-1)
    if scale_by_temperature:
        divergence = divergence * temperature**2
    if kd_ratio == 1:
        return divergence
    if labels is None:
        raise ConfigError(f"kd_ratio {kd_ratio} needs labels, got none; pass labels or set kd_ratio=1")
    mixed: Tensor = (1 - kd_ratio) * cross_entropy(student_logits, labels) + kd_ratio * divergence
    return mixed
