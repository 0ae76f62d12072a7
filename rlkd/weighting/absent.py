"""Instances that not all teachers answered about: who is absent is not read, and where nobody is, nobody is asked.

Done once, where a mixture is formed: a weighting sees zeros for the logits of who is absent, and no instance without a
teacher, which its label alone teaches.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlkd.errors import TeacherError
from rlkd.types import State


def without_absent(state: State) -> State:
    """The same state, the logits of absent teachers zeros: whatever stood there is no answer."""
    if state.teacher_mask is None:
        return state
    shown = torch.where(state.teacher_mask.unsqueeze(-1), state.teacher_logits, 0.0)
    return replace(state, teacher_logits=shown)


def has_somebody(state: State) -> Tensor | None:
    """Which instances have a teacher, bool, shape (...); None: all."""
    if state.teacher_mask is None:
        return None
    somebody = state.teacher_mask.any(-1)
    return None if bool(somebody.all()) else somebody


def rows_of(state: State, chosen: Tensor) -> State:
    """Some instances of a state, one after the other.

    Args:
        state: With any leading axes (...).
        chosen: Bool, shape (...), N of them True.

    Returns:
        Every field with the one leading axis (N,).
    """
    shape = state.teacher_logits.shape[:-1]
    fields = {name: getattr(state, name) for name in state.available()}
    tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    if "sureness" in tensors:
        tensors["sureness"] = tensors["sureness"].expand(shape)
    picked: dict[str, Any] = {name: value[chosen] for name, value in tensors.items()}
    return replace(state, **picked)


def spread(taught: Mapping[str, Any], somebody: Tensor) -> dict[str, Any]:
    """What is taught of the instances that have a teacher, as it is of all: no weight where there is none.

    Args:
        taught: Fields of a :class:`~rlkd.weighting.base.Mixture` of N' instances.
        somebody: Which of all have a teacher, bool, shape (...), N' of them.

    Returns:
        Its tensors by name, of shape (..., K, C), (..., K) and (...).
    """
    empty = {"teacher_logits": 0.0, "weights": 0.0, "scale": 1.0}
    found: dict[str, Any] = {}
    for name, value in taught.items():
        if isinstance(value, Tensor):
            whole = value.new_full((*somebody.shape, *value.shape[1:]), empty[name])
            found[name] = whole.index_put((somebody,), value)
    return found


def learn(weighting: Any, state: State) -> None:
    """Let an :class:`~rlkd.weighting.OnlineWeighting` learn from a batch, but for instances without a teacher."""
    somebody = has_somebody(state)
    if somebody is None:
        weighting.update(without_absent(state))
    elif bool(somebody.any()):
        weighting.update(rows_of(without_absent(state), somebody))


def check_taught(state: State, somebody: Tensor) -> None:
    """Refuse instances that nothing teaches.

    Args:
        state: Of the batch.
        somebody: Which have a teacher, bool, shape (...).

    Raises:
        TeacherError: One has no teacher and no label.
    """
    untaught = ~somebody if state.labels is None else ~somebody & (state.labels < 0)
    if bool(untaught.any()):
        first = int(untaught.flatten().int().argmax())
        where = f"row {first}" if state.ids is None else f"instance {int(state.ids.flatten()[first])}"
        raise TeacherError(
            f"expected an answer of a teacher or a label, got neither for {where} ({int(untaught.sum())} of "
            f"{untaught.numel()} rows of a batch); leave such rows out, as rlkd.logit_cache.taught_rows does"
        )
