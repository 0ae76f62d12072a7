"""What is known of all instances, held where the students are, so that a step on an accelerator waits for no copy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlkd.types import State, on_device

Read = Callable[[Tensor], State]
"""The state of instances by their ids (B,), on the CPU."""
SHARE = 0.25
"""Of an accelerator's free memory, that may be taken."""
AT_ONCE = 4096
"""Rows that are read at once."""
EXPANDED = ("reliability", "sureness")
"""Fields that are the same for all instances: of a cache, one row of them is held."""


class HeldStates:
    """The states of N instances on one device; of a batch they are picked there."""

    def __init__(self, states: State) -> None:
        """Hold them: fields of shape (N, ...), those that are the same for all instances (1, ...)."""
        self._all = states

    def of(self, ids: Tensor) -> State:
        """The states of the instances ``ids`` (B,), on the device."""
        ids = ids.to(self._all.teacher_logits.device, non_blocking=True)
        held = {name: getattr(self._all, name) for name in self._all.available()}
        picked = {
            name: value.expand(len(ids), *value.shape[1:]) if name in EXPANDED else value.index_select(0, ids)
            for name, value in held.items()
        }
        return replace(self._all, **picked)


def held_states(read: Read, rows: int, device: torch.device) -> HeldStates | None:
    """The states of all instances on an accelerator, None where they do not fit, and on the CPU, which reads as fast.

    Args:
        read: Gives the state of instances, always the same of one.
        rows: N instances, with ids from 0.
        device: Of the students.
    """
    if device.type == "cpu" or rows == 0:
        return None
    one = read(torch.zeros(1, dtype=torch.int64))
    size = sum(getattr(one, name).nbytes for name in one.available() if name not in EXPANDED)
    free, _ = torch.accelerator.get_memory_info(device)
    if rows * size > SHARE * free:
        return None
    return HeldStates(read_all(read, rows, device))


def read_all(read: Read, rows: int, device: torch.device) -> State:
    """Fields of all instances on a device, see :class:`HeldStates`; they are read in pieces, each on the CPU once."""
    pieces = [on_device(read(ids), device) for ids in torch.arange(rows).split(AT_ONCE)]
    whole: dict[str, Any] = {
        name: getattr(pieces[0], name)[:1] if name in EXPANDED else torch.cat([getattr(one, name) for one in pieces])
        for name in pieces[0].available()
    }
    return replace(pieces[0], **whole)
