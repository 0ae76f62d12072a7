"""Whether what a weighting says are weights: asked once, where a mixture is formed, for everybody who forms one."""

import math

import torch
from torch import Tensor

from rlkd.errors import WeightingError
from rlkd.types import State

TOLERANCE = 1e-4
"""How far from 1 a row may sum, in float32; types of less precision may be four of their roundings off."""


def check_weights(weights: Tensor, state: State, name: str, scale: Tensor | None = None) -> bool:
    """Refuse what are no weights of a batch: a wrong shape, a wrong device, or numbers that are no shares.

    Every row must be finite, not negative, zero where a teacher is absent, and sum to 1; or to 0 where the instance
    has a label, which teaches it alone then. That nothing is wrong is seen from a few extremes, in one transfer from
    the device; only if rows of zeros are among them, or something is wrong, is it looked at row by row.

    Args:
        weights: What the weighting gave.
        state: What it was asked about; of its logits only shape and device are read.
        name: Of the weighting, for the error.
        scale: Factors of the instances' divergences, where it gives them: shape (...), finite, not negative.

    Returns:
        Whether every row has a teacher; False: one may be of zeros.

    Raises:
        WeightingError: Says which rows are wrong, and how.
    """
    expected = state.teacher_logits.shape[:-1]
    _check_form(weights, expected, state, f"weighting {name!r} must give weights, a row an instance,")
    if scale is not None:
        _check_form(scale, expected[:-1], state, f"weighting {name!r} must give loss scales, one an instance,")
    if weights.numel() == 0 or _plainly_right(weights, state, scale):
        return True
    wrong = _wrong_rows(weights, state, scale)
    found = torch.stack([rows.any() for *_, rows in wrong]).tolist()
    for is_wrong, (what, mend, values, rows) in zip(found, wrong, strict=True):
        if is_wrong:
            raise _error(f"weighting {name!r} must give {what}", mend, values, rows, state)
    return False


def check_taught_logits(logits: Tensor, state: State, name: str) -> None:
    """Refuse logits to teach that are not the state's own and of other teachers or classes, or not numbers.

    Raises:
        WeightingError: Says what was got.
    """
    if logits is state.teacher_logits:
        return
    what = f"weighting {name!r} must adjust a state to one with teacher logits"
    _check_form(logits, state.teacher_logits.shape, state, what)
    if logits.isnan().any() and not state.teacher_logits.isnan().any():
        raise WeightingError(f"{what}, got NaN among them; look for 0 / 0 or inf - inf where it adjusts them")


def _check_form(values: Tensor, expected: torch.Size, state: State, what: str) -> None:
    device = state.teacher_logits.device
    if not isinstance(values, Tensor):
        raise WeightingError(f"{what} as a tensor, got {type(values).__name__}; return torch.as_tensor(...)")
    if values.shape != expected:
        raise WeightingError(
            f"{what} of shape {tuple(expected)}, got {tuple(values.shape)}; .expand(...) what is the same for all"
        )
    if values.is_complex() or values.device != device:
        raise WeightingError(
            f"{what} of real numbers on {device}, got {values.dtype} on {values.device}; return them where the state's "
            "logits are"
        )


def _tolerance(weights: Tensor) -> float:
    return max(TOLERANCE, 4 * torch.finfo(weights.dtype).eps) if weights.is_floating_point() else TOLERANCE


def _told(values: list[Tensor]) -> list[float]:
    """Numbers, in one transfer from an accelerator."""
    if values[0].device.type == "cpu":
        return [value.item() for value in values]
    told: list[float] = torch.stack(values).tolist()
    return told


def _plainly_right(weights: Tensor, state: State, scale: Tensor | None) -> bool:
    """Whether every row sums to 1, and all else is right; NaN makes every comparison false."""
    shares = weights.detach().float()
    extremes = [*torch.aminmax(shares.sum(-1)), shares.amin()]
    if state.teacher_mask is not None:
        extremes.append(shares.masked_fill(state.teacher_mask, 0).amax())
    if scale is not None:
        extremes += torch.aminmax(scale.detach().float())
    low, high, least, *others = _told(extremes)
    given_away = others.pop(0) if state.teacher_mask is not None else 0.0
    smallest, largest = others or (0.0, 0.0)
    margin = _tolerance(weights)
    one = 1 - margin <= low and high <= 1 + margin and least >= 0 and given_away == 0
    return one and smallest >= 0 and largest < math.inf


def _wrong_rows(weights: Tensor, state: State, scale: Tensor | None) -> list[tuple[str, str, Tensor, Tensor]]:
    """What was expected, what to do, the numbers, and where they are wrong, shape (...)."""
    shares = weights.detach().float()
    total = shares.sum(-1)
    alone = torch.zeros_like(total, dtype=torch.bool) if state.labels is None else state.labels >= 0
    off = ((total - 1).abs() > _tolerance(weights)) & ~((total == 0) & alone)
    wrong = [
        ("finite weights", "look for 0 / 0, log 0 or NaN logits in its weights()", shares, ~shares.isfinite().all(-1)),
        ("weights >= 0", "clamp them and divide each row by its sum", shares, (shares < 0).any(-1)),
        (
            "weight 0 to absent teachers",
            "multiply by state.present and divide each row by its sum",
            shares,
            ((shares != 0) & ~state.present).any(-1),
        ),
        ("rows that sum to 1, or to 0 where a label is to teach alone", "divide each row by its sum", shares, off),
    ]
    if scale is not None:
        factors = scale.detach().float()
        bad = ~(factors.isfinite() & (factors >= 0))
        wrong.append(("loss scales that are finite and >= 0", "mend what it scales them by", factors, bad))
    return wrong


def _error(what: str, mend: str, values: Tensor, rows: Tensor, state: State) -> WeightingError:
    first = int(rows.flatten().int().argmax())
    where = f"row {first}" if state.ids is None else f"instance {int(state.ids.flatten()[first])}"
    flat = values.reshape(rows.numel(), -1)[first].tolist()
    shown = ", ".join(f"{value:.6g}" for value in flat[:8]) + (", ..." if len(flat) > 8 else "")
    total = f", sum {sum(flat):.6g}," if len(flat) > 1 else ""
    return WeightingError(
        f"{what}, got [{shown}]{total} for {where} ({int(rows.sum())} of {rows.numel()} rows are wrong); {mend}"
    )
