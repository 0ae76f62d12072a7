"""The distillation loss of instances that have one of C classes each, and what it is made of."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkd.errors import ConfigError
from rlkd.settings import Divergence, LossSettings, Mix, check_loss_settings


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
    teacher_logits: Tensor,
    weights: Tensor,
    *,
    temperature: float = LossSettings.temperature,
    mix: Mix = LossSettings.mix,
    labels: Tensor | None = None,
) -> Tensor:
    """Mix the teachers into one distribution per instance.

    Args:
        teacher_logits: Shape (..., K, C).
        weights: Rows on the simplex, shape (..., K).
        temperature: Softens each teacher; > 0.
        mix: ``"probability"`` averages the softened probabilities; ``"logit"`` averages the logits and
            softens then (TextBrewer's convention).
        labels: Shape (...), -1 for unlabelled. If given, a row of zero weights, which has no teacher, gets its
            label's own distribution.

    Returns:
        Probabilities, shape (..., C), float32, detached.

    Source:
        Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2 (temperature); You et al. 2017 (averaging).
    """
    logits = teacher_logits.detach().float()
    if mix == "logit":
        targets = F.softmax(mixed(weights, logits) / temperature, dim=-1)
    else:
        targets = mixed(weights, F.softmax(logits / temperature, dim=-1))
    if labels is None:
        return targets
    certain = one_hot(labels, targets)
    alone = ~has_teacher(weights) & (labels >= 0)
    return torch.where(alone.unsqueeze(-1), certain, targets)


def one_hot(labels: Tensor, like: Tensor) -> Tensor:
    """Labels (...) as rows of ``like`` (..., C); class 0 where the label is -1."""
    return F.one_hot(labels.clamp_min(0), like.shape[-1]).to(like.dtype)


def has_teacher(weights: Tensor) -> Tensor:
    """Whether weights (..., K) are more than zeros, shape (...)."""
    return weights.detach().sum(-1) > 0


def mixed(weights: Tensor, values: Tensor) -> Tensor:
    """The mean of values (..., K, C) under weights (..., K), shape (..., C)."""
    # scaled by K on the way, so that equal weights give the plain mean to the last bit
    teachers = weights.shape[-1]
    shares = (weights.detach().float() * teachers).unsqueeze(-1)
    return (shares * values).sum(-2) / teachers


def kl_to_mixture(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weights: Tensor,
    *,
    temperature: float = LossSettings.temperature,
    mix: Mix = LossSettings.mix,
    scale_by_temperature: bool = LossSettings.scale_by_temperature,
) -> Tensor:
    """``KL(mixture || student)``, one value per instance; arguments are those of :func:`distillation_loss`.

    Returns:
        Nats, shape (...), float32.

    Source:
        Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2.
    """
    targets = soft_targets(teacher_logits, weights, temperature=temperature, mix=mix)
    log_student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    divergence: Tensor = -(targets * log_student).sum(-1) + torch.special.xlogy(targets, targets).sum(-1)
    return divergence * temperature**2 if scale_by_temperature else divergence


def cost_of_mixture(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weights: Tensor,
    labels: Tensor,
    *,
    temperature: float = LossSettings.temperature,
    mix: Mix = LossSettings.mix,
    divergence: Divergence = LossSettings.divergence,
) -> Tensor:
    """What a student pays for what it is taught: ``T ** 2 * CE(mixture, student)``, or the squared error to it.

    The divergence of :func:`distillation_loss` with the entropy of the mixture left in; arguments are those. A row of
    zero weights pays the cross entropy to its label.

    Returns:
        Shape (...), float32, >= 0.
    """
    if divergence == "kl":
        targets = soft_targets(teacher_logits, weights, temperature=temperature, mix=mix)
        log_student = F.log_softmax(student_logits.float() / temperature, dim=-1)
        cost = -(targets * log_student).sum(-1) * temperature**2
    else:
        cost = squared_error_to_mixture(student_logits, teacher_logits, weights, centred=divergence == "mse_centred")
    return torch.where(has_teacher(weights), cost, cross_entropy(student_logits, labels))


def squared_error_to_mixture(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, *, centred: bool = False
) -> Tensor:
    """Squared distance of the student's logits to the mixed logits, summed over classes, one value per instance.

    Its gradient is that of the weighted sum of the K single squared errors, for detached weights that add up to 1.

    Args:
        student_logits: z, shape (..., C); the gradient flows here only.
        teacher_logits: Shape (..., K, C).
        weights: Rows on the simplex, shape (..., K).
        centred: Subtract the mean over classes from both sides. A softmax does not see such a shift; plain squared
            error makes the student copy it.

    Returns:
        Shape (...), float32, >= 0.

    Source:
        Tang et al. 2019, arXiv:1903.12136, section 3.2; Liu et al. 2019 (MKD), arXiv:1911.03588: no temperature.
        Deviation: the sum over classes, of several teachers, centred on request.
    """
    target = mixed(weights, teacher_logits.detach().float())
    error: Tensor = difference(student_logits.float(), target, "mse_centred" if centred else "mse").square().sum(-1)
    return error


def difference(logits: Tensor, others: Tensor, divergence: Divergence) -> Tensor:
    """Logits (..., C) minus others, less their mean over classes for ``"mse_centred"``."""
    apart = logits - others
    return apart - apart.mean(-1, keepdim=True) if divergence == "mse_centred" else apart


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weights: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = LossSettings.temperature,
    kd_ratio: float = LossSettings.kd_ratio,
    mix: Mix = LossSettings.mix,
    scale_by_temperature: bool = LossSettings.scale_by_temperature,
    scale: Tensor | None = None,
    divergence: Divergence = LossSettings.divergence,
    certain: Tensor | None = None,
    complete: bool = False,
) -> Tensor:
    """``(1 - kd_ratio) * CE + kd_ratio * D(mixture, student)``, one value per instance.

    With ``mix="probability"`` the student's gradient equals that of the weighted sum of the K single
    divergences, for detached weights.

    Args:
        student_logits: Shape (..., C); the gradient flows here only.
        teacher_logits: Shape (..., K, C).
        weights: Rows on the simplex, shape (..., K). A row of zeros has no teacher: the label alone teaches it, its
            loss is the cross entropy whatever ``kd_ratio`` is.
        labels: Shape (...), -1 for unlabelled rows, whose cross entropy counts zero. May be None when
            ``kd_ratio`` is 1 and every row has a teacher.
        temperature: Softens both sides of the divergence; > 0.
        kd_ratio: Share of the distillation term, in [0, 1].
        mix: See :func:`soft_targets`.
        scale_by_temperature: Multiply the divergence by ``temperature ** 2``, so that its gradient keeps its
            size as the temperature grows.
        scale: Multiplies the divergence of each instance, shape (...); None: 1. With probability mixing a sum of
            single divergences whose weights add up to s is a mixture with ``scale`` s.
        divergence: D. ``"kl"`` is :func:`kl_to_mixture`; ``"mse"`` and ``"mse_centred"`` are
            :func:`squared_error_to_mixture`, for which the two ways to mix have the same gradient and the temperature
            must be 1.
        certain: The cross entropy to the labels, shape (...), where it is computed anyway; None: of ``labels``.
        complete: Whether it is known that every row has a teacher, so that none is looked for.

    Returns:
        Per instance, shape (...), float32; nats with ``"kl"``.

    Source:
        Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2.
    """
    logits = (student_logits, teacher_logits, weights)
    if divergence == "kl":
        softened: dict[str, Any] = {"temperature": temperature, "mix": mix}
        distance = kl_to_mixture(*logits, **softened, scale_by_temperature=scale_by_temperature)
    else:
        check_loss_settings(temperature, kd_ratio, mix, divergence)
        distance = squared_error_to_mixture(*logits, centred=divergence == "mse_centred")
    alone = complete and kd_ratio == 1  # no label teaches
    if certain is None and labels is not None and not alone:
        certain = cross_entropy(student_logits, labels)
    return beside_the_label(distance, certain, weights, kd_ratio, scale, complete=complete)


def beside_the_label(
    distance: Tensor,
    certain: Tensor | None,
    weights: Tensor,
    kd_ratio: float,
    scale: Tensor | None,
    *,
    complete: bool = False,
) -> Tensor:
    """A distillation term beside what the label teaches, which stands alone without a teacher; None: nobody has one."""
    if scale is not None:
        distance = distance * scale.detach()
    if certain is None:
        if kd_ratio < 1:
            raise ConfigError(f"kd_ratio {kd_ratio} needs labels, got none; pass labels or set kd_ratio=1")
        if not complete and not has_teacher(weights).all():
            raise ConfigError("a row of zero weights is taught by its label, got no labels; pass labels")
        return distance
    if not complete:
        distance = torch.where(has_teacher(weights), distance, certain)
    if kd_ratio == 1:
        return distance
    both: Tensor = (1 - kd_ratio) * certain + kd_ratio * distance
    return both
