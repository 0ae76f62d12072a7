"""The weighted distillation loss of a batch, for a training loop of one's own: Lightning, Accelerate, or bare torch."""

from dataclasses import replace

from torch import Tensor

from rlkd.errors import WeightingError
from rlkd.features import usual_sureness
from rlkd.losses import distillation_loss
from rlkd.settings import LossSettings
from rlkd.settings.students import Divergence, Mix
from rlkd.types import State
from rlkd.weighting.base import Weighting, adapted, mixture


def weighted_distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weighting: Weighting,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    sureness: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    temperature: float = LossSettings.temperature,
    kd_ratio: float = LossSettings.kd_ratio,
    mix: Mix = LossSettings.mix,
    divergence: Divergence = LossSettings.divergence,
) -> Tensor:
    """The mean distillation loss of instances, or of tokens, with the weights that a weighting gives.

    Args:
        student_logits: Shape (..., C); the gradient flows here only.
        teacher_logits: Shape (..., K, C), in the same order of classes.
        weighting: A policy (:func:`rlkd.load_weighting`), or any other.
        labels: Shape (...), below 0 (-1, -100) for none. None: nobody has one.
        mask: Bool, shape (...): what counts, for padding. None: everything.
        sureness: How sure each teacher usually is, shape (K,), see :func:`rlkd.usual_sureness`, for policies that
            observe it: measured over many rows beforehand. None: on this batch.
        teacher_mask: Bool, shape (..., K): teachers that are present. None: all.
        temperature: See :func:`rlkd.losses.distillation_loss`.
        kd_ratio: Share of the distillation term, likewise.
        mix: Likewise.
        divergence: Likewise.

    Returns:
        A number with a gradient; 0 where nothing counts.

    Raises:
        WeightingError: The weighting reads what is not given here, or shapes do not fit.
    """
    chosen = adapted(weighting)
    wanted = (*teacher_logits.shape[:-2], teacher_logits.shape[-1])
    if student_logits.shape != wanted:
        raise WeightingError(
            f"expected logits (..., C) of the student beside (..., K, C) of the teachers, got "
            f"{tuple(student_logits.shape)} beside {tuple(teacher_logits.shape)}"
        )
    known = State(
        teacher_logits=teacher_logits, teacher_mask=teacher_mask, labels=labels, student_logits=student_logits
    )
    if mask is not None:
        picked = {name: getattr(known, name)[mask] for name in known.available()}
        known = replace(known, **picked)
    if known.labels is not None:
        known = replace(known, labels=known.labels.clamp_min(-1))
    student = known.student_logits
    assert student is not None
    if len(student.reshape(-1, student.shape[-1])) == 0:
        return student.sum()
    if "sureness" in chosen.requires:
        rows = known.teacher_logits.reshape(-1, *known.teacher_logits.shape[-2:])
        usual = usual_sureness(rows) if sureness is None else sureness
        known = replace(known, sureness=usual.to(student.device).expand(known.teacher_logits.shape[:-1]))
    known = replace(known, student_logits=student.detach(), temperature=temperature, divergence=divergence)
    missing = sorted(chosen.requires - known.available())
    if missing:
        raise WeightingError(
            f"weighting {chosen.called!r} reads {', '.join(missing)}, which a loss is not told; choose another"
        )
    taught = mixture(chosen, known)
    losses = distillation_loss(
        student,
        taught.teacher_logits,
        taught.weights,
        known.labels,
        temperature=temperature,
        kd_ratio=kd_ratio,
        mix=mix,
        scale=taught.scale,
        divergence=divergence,
    )
    return losses.mean()
