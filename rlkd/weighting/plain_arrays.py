"""Plain arrays of teachers' logits as the state that a policy observes: numpy or torch, with nothing else at hand."""

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.errors import PolicyError
from rlkd.features import ObservationConfig, usual_sureness
from rlkd.types import State

FEWEST_ROWS = 100
"""Rows that a teacher must have said something of before they tell how sure it usually is.

Of planted teachers 100 tell it to a seventh, and an instance's weights move by 0.02 from what they are when it is known
of 4,000; with 30 rows it is a quarter and 0.04, with 10 almost half and 0.1."""

ArrayT = TypeVar("ArrayT", Tensor, NDArray[Any])


def plain_state(
    logits: Tensor | NDArray[Any],
    observation: ObservationConfig,
    *,
    mask: Tensor | NDArray[Any] | None = None,
    sureness: Tensor | NDArray[Any] | None = None,
) -> State:
    """The state of a batch of which nothing is known but the teachers' logits.

    Args:
        logits: Unnormalised, shape (..., K, C), K >= 1, C >= 2, floats or integers; NaN only where a teacher is absent.
        observation: What the policy sees.
        mask: Bool, shape (..., K) or (K,), False where a teacher is absent. None: all are there.
        sureness: How sure each teacher usually is, :func:`rlkd.usual_sureness`, shape (..., K) or (K,), > 0 where a
            teacher is there; for policies that see teachers as relative to it. None: it is measured on these logits if
            they have ``FEWEST_ROWS`` rows of each teacher: what is said of a row then depends on the others.

    Returns:
        With float32 logits, on the device of ``logits``.

    Raises:
        PolicyError: Something is of another shape or type, the policy observes more than logits, or it cannot be told
            how sure the teachers usually are.
    """
    unknown = observation.requires - {"sureness"}
    if unknown:
        fields = ", ".join(sorted(unknown))
        raise PolicyError(
            f"this policy observes {fields} beside logits, got plain logits; pass rlkd.State(teacher_logits=..., "
            f"{'=..., '.join(sorted(observation.requires))}=...)"
        )
    if sureness is not None and not observation.relative:
        raise PolicyError("this policy does not see how sure teachers usually are, got sureness; leave it out")
    wide = _logits(logits)
    present = None if mask is None else _mask(mask, wide)
    state = State(teacher_logits=wide, teacher_mask=present)
    _check_numbers(state)
    if not observation.relative:
        return state
    known = _measured(state) if sureness is None else _given(sureness, state)
    return State(teacher_logits=wide, teacher_mask=present, sureness=known)


def like(weights: Tensor, example: ArrayT) -> ArrayT:
    """Weights as an array of the kind of an example: numpy for numpy."""
    return weights if isinstance(example, Tensor) else weights.numpy()


def _tensor(value: object, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "bfiu":
        return torch.from_numpy(value.astype(bool if value.dtype.kind == "b" else np.float32))
    kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    raise PolicyError(f"expected {what} as a numpy array or a tensor of numbers, got {kind}; pass np.asarray(...)")


def _logits(logits: object) -> Tensor:
    found = _tensor(logits, "teachers' logits (..., K, C), or a State,")
    if found.dtype == torch.bool or found.is_complex():
        raise PolicyError(f"expected teachers' logits as real numbers, got {found.dtype}; pass what the teachers gave")
    if found.ndim < 2 or found.shape[-2] < 1 or found.shape[-1] < 2:
        raise PolicyError(
            "expected teachers' logits of shape (..., K, C) with K >= 1 teachers and C >= 2 classes, got "
            f"{tuple(found.shape)}; stack those of all teachers on the axis before the classes"
        )
    return found.detach().float()


def _mask(mask: object, logits: Tensor) -> Tensor:
    found, shape = _tensor(mask, "a mask of present teachers"), logits.shape[:-1]
    if found.dtype != torch.bool or found.shape not in (shape, shape[-1:]):
        raise PolicyError(
            f"expected a bool mask of present teachers of shape {tuple(shape)} or {tuple(shape[-1:])}, got "
            f"{found.dtype} {tuple(found.shape)}; True where a teacher is there"
        )
    found = found.to(logits.device).expand(shape)
    if not found.any(-1).all():
        raise PolicyError("expected at least one teacher a row, some rows have none; leave these rows out")
    return found


def _check_numbers(state: State) -> None:
    """Refuse NaN and +inf of present teachers; -inf is a class that a teacher does not have."""
    logits = state.teacher_logits
    wrong = (logits.isnan() | logits.isposinf()).any(-1) & state.present
    if wrong.any():
        row = tuple(wrong.nonzero()[0].tolist())
        raise PolicyError(
            f"expected numbers as logits, got NaN or inf of {int(wrong.sum())} rows of teachers, the first at {row}; "
            "pass a mask that is False where a teacher is absent"
        )


def _given(sureness: object, state: State) -> Tensor:
    found, shape = _tensor(sureness, "sureness"), state.teacher_logits.shape[:-1]
    if found.dtype == torch.bool or found.shape not in (shape, shape[-1:]):
        raise PolicyError(
            f"expected sureness as numbers of shape {tuple(shape)} or {tuple(shape[-1:])}, got {found.dtype} "
            f"{tuple(found.shape)}; rlkd.usual_sureness(logits) gives it"
        )
    known = found.detach().to(state.teacher_logits.device).float().expand(shape)
    if not ((known >= 0) & known.isfinite() | ~state.present).all():
        raise PolicyError("expected sureness >= 0, got negative or other numbers; rlkd.usual_sureness(logits) gives it")
    return known


def _measured(state: State) -> Tensor:
    logits = state.teacher_logits.flatten(0, -3) if state.teacher_logits.ndim > 2 else state.teacher_logits[None]
    present = state.present.reshape(logits.shape[:-1])
    rows = present.sum(0)
    few = (rows < FEWEST_ROWS) & ((rows > 0) | (len(logits) < FEWEST_ROWS))
    if few.any():
        teacher = int(few.nonzero()[0])
        raise PolicyError(
            "this policy sees how sure a teacher is for one that is usually as sure as it is, which takes "
            f"{FEWEST_ROWS} rows to tell, got {int(rows[teacher])} of teacher {teacher}; pass more rows, or "
            "sureness=rlkd.usual_sureness(logits of many rows, unlabelled ones too)"
        )
    return usual_sureness(logits, present).expand(state.present.shape)
