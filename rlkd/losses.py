"""The distillation loss, in its one home: the trainer and the environment both call :func:`distillation_loss`.

Losses are per instance and reduced once, by the caller.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkd.errors import ConfigError
from rlkd.settings import Divergence, LossSettings, Mix, check_loss_settings

COLDEST, HOTTEST = 0.05, 20.0
"""Range of fitted temperatures: a classifier without a mistake would be sharpened for ever."""


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


def teacher_cross_entropy(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of every teacher to the label.

    Args:
        teacher_logits: Shape (..., K, C).
        labels: Shape (...), -1 for unlabelled (gives zeros).

    Returns:
        Nats, shape (..., K), float32.
    """
    return cross_entropy(teacher_logits, labels.unsqueeze(-1).expand(teacher_logits.shape[:-1]))


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
    gain: Tensor = (gradient * (p - _one_hot(labels, p))).sum(-1)
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
        gradient = 2 * _difference(logits, _mixed(weights, teacher_logits.detach().float()), divergence)
    if scale is not None:
        gradient = gradient * scale.detach().unsqueeze(-1)
    p = F.softmax(logits, dim=-1)
    certain = torch.where((labels >= 0).unsqueeze(-1), p - _one_hot(labels, p), torch.zeros_like(p))
    gradient = torch.where(_has_teacher(weights).unsqueeze(-1), gradient, certain)
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
        return 2 * _difference(student, teachers, divergence)
    return temperature * (F.softmax(student / temperature, dim=-1) - F.softmax(teachers / temperature, dim=-1))


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
        targets = F.softmax(_mixed(weights, logits) / temperature, dim=-1)
    else:
        targets = _mixed(weights, F.softmax(logits / temperature, dim=-1))
    if labels is None:
        return targets
    certain = _one_hot(labels, targets)
    alone = ~_has_teacher(weights) & (labels >= 0)
    return torch.where(alone.unsqueeze(-1), certain, targets)


def _one_hot(labels: Tensor, like: Tensor) -> Tensor:
    """Labels (...) as rows of ``like`` (..., C); class 0 where the label is -1."""
    return F.one_hot(labels.clamp_min(0), like.shape[-1]).to(like.dtype)


def _has_teacher(weights: Tensor) -> Tensor:
    return weights.detach().sum(-1) > 0


def _mixed(weights: Tensor, values: Tensor) -> Tensor:
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
    return torch.where(_has_teacher(weights), cost, cross_entropy(student_logits, labels))


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
    target = _mixed(weights, teacher_logits.detach().float())
    error: Tensor = _difference(student_logits.float(), target, "mse_centred" if centred else "mse").square().sum(-1)
    return error


def _difference(logits: Tensor, others: Tensor, divergence: Divergence) -> Tensor:
    difference = logits - others
    return difference - difference.mean(-1, keepdim=True) if divergence == "mse_centred" else difference


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

    Returns:
        Per instance, shape (...), float32; nats with ``"kl"``.

    Source:
        Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2.
    """
    if divergence == "kl":
        distance = kl_to_mixture(
            student_logits,
            teacher_logits,
            weights,
            temperature=temperature,
            mix=mix,
            scale_by_temperature=scale_by_temperature,
        )
    else:
        check_loss_settings(temperature, kd_ratio, mix, divergence)
        distance = squared_error_to_mixture(
            student_logits, teacher_logits, weights, centred=divergence == "mse_centred"
        )
    certain = None if labels is None else cross_entropy(student_logits, labels)
    return _beside_the_label(distance, certain, weights, kd_ratio, scale)


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
    distance = (numbers - _mixed(weights, teacher_numbers.detach().float())).square().mean(-1)
    certain = None if targets is None else squared_error(numbers, targets)
    return _beside_the_label(distance, certain, weights, kd_ratio, scale)


def squared_error(numbers: Tensor, targets: Tensor) -> Tensor:
    """Squared error of numbers to labels (..., D), 0 where the label is NaN, mean over the D, shape (...)."""
    known = ~targets.isnan()
    error: Tensor = (torch.where(known, numbers - targets.nan_to_num(), 0.0)).square().mean(-1)
    return error


def _beside_the_label(
    distance: Tensor, certain: Tensor | None, weights: Tensor, kd_ratio: float, scale: Tensor | None
) -> Tensor:
    """A distillation term beside what the label teaches, which stands alone without a teacher; None: nobody has one."""
    if scale is not None:
        distance = distance * scale.detach()
    if certain is None:
        if kd_ratio < 1:
            raise ConfigError(f"kd_ratio {kd_ratio} needs labels, got none; pass labels or set kd_ratio=1")
        if not _has_teacher(weights).all():
            raise ConfigError("a row of zero weights is taught by its label, got no labels; pass labels")
        return distance
    distance = torch.where(_has_teacher(weights), distance, certain)
    if kd_ratio == 1:
        return distance
    mixed: Tensor = (1 - kd_ratio) * certain + kd_ratio * distance
    return mixed
