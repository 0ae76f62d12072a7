"""The weighted distillation loss of a batch, for a training loop of one's own: Lightning, Accelerate, or bare torch."""

from dataclasses import replace
from functools import partial

from torch import Tensor

from rlkd.errors import WeightingError
from rlkd.features import usual_sureness
from rlkd.kinds import kind_of_instances
from rlkd.settings import LossSettings
from rlkd.settings.students import Divergence, Mix
from rlkd.types import State
from rlkd.weighting.base import BaseWeighting, Weighting, adapted, mixture


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
    problem_type: str | None = None,
) -> Tensor:
    """The mean distillation loss of instances, or of tokens, with the weights that a weighting gives.

    Args:
        student_logits: Shape (..., C); the gradient flows here only.
        teacher_logits: Shape (..., K, C), in the same order of classes.
        weighting: A policy (:func:`rlkd.load_weighting`), or any other.
        labels: Shape (...), below 0 (-1, -100) for none; floats where an instance may have several labels, shape
            (..., C), 0, 1 or -1, or where it has numbers, shape (...) or (..., C), NaN for none. None: nobody has one.
        mask: Bool, shape (...): what counts, for padding. None: everything.
        sureness: How sure each teacher usually is, shape (K,), see :func:`rlkd.usual_sureness`, for policies that
            observe it: measured over many rows beforehand, of several labels with a column of zeros behind the logits.
            None: on this batch.
        teacher_mask: Bool, shape (..., K): teachers that are present. None: all.
        temperature: See :func:`rlkd.losses.distillation_loss`.
        kd_ratio: Share of the distillation term, likewise.
        mix: Likewise.
        divergence: Likewise.
        problem_type: ``single_label_classification``, ``multi_label_classification`` or ``regression``, as
            transformers calls them, see :mod:`rlkd.kinds`. None: by the labels; one output is a regression.

    Returns:
        A number with a gradient; 0 where nothing counts.

    Raises:
        WeightingError: The weighting reads what is not given here, or shapes do not fit.
        ConfigError: A setting means nothing for this kind of task.
    """
    chosen = adapted(weighting)
    _check_shapes(student_logits, teacher_logits)
    settings = LossSettings(temperature=temperature, kd_ratio=kd_ratio, mix=mix, divergence=divergence)
    kind = kind_of_instances(problem_type, student_logits.shape[-1], labels)()
    kind.check_settings(settings)
    kind.check(chosen, chosen.called)
    counted = partial(_counted, mask=mask, leading=student_logits.ndim - 1)
    student = counted(student_logits)
    if len(student) == 0:
        return student.sum()
    told = None if labels is None else kind.known(counted(labels))
    absent = None if teacher_mask is None else counted(teacher_mask)
    state = kind.state(State(teacher_logits=counted(teacher_logits), teacher_mask=absent), student, told)
    state = replace(_with_sureness(state, chosen, sureness), temperature=temperature, divergence=divergence)
    _check_told(chosen, state)
    return kind.losses(student, state, mixture(kind.adapted(chosen), state), settings).mean()


def _check_shapes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape != (*teacher_logits.shape[:-2], teacher_logits.shape[-1]):
        raise WeightingError(
            f"expected logits (..., C) of the student beside (..., K, C) of the teachers, got "
            f"{tuple(student_logits.shape)} beside {tuple(teacher_logits.shape)}"
        )


def _check_told(weighting: BaseWeighting, state: State) -> None:
    missing = sorted(weighting.requires - state.available())
    if missing:
        raise WeightingError(
            f"weighting {weighting.called!r} reads {', '.join(missing)}, which a loss is not told; choose another"
        )


def _counted(values: Tensor, *, mask: Tensor | None, leading: int) -> Tensor:
    """What counts of values with so many leading axes, in one axis."""
    return values.reshape(-1, *values.shape[leading:]) if mask is None else values[mask]


def _with_sureness(state: State, weighting: Weighting, sureness: Tensor | None) -> State:
    """The state, with how sure each teacher usually is, (K,), where the weighting reads it."""
    if "sureness" not in weighting.requires:
        return state
    usual = usual_sureness(state.teacher_logits) if sureness is None else sureness
    logits = state.teacher_logits
    return replace(state, sureness=usual.to(logits.device).expand(logits.shape[:-1]))
