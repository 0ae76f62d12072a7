"""What work costs, whatever else the machine does meanwhile: CPU seconds and optimisation steps beside the clock's."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook


@dataclass
class Cost:
    """Of a piece of work; filled when it ends."""

    seconds: float = 0.0
    """By the clock: on a shared machine it counts the neighbours' work too."""
    cpu_seconds: float = 0.0
    """Of this process, all threads, and of children that ended meanwhile."""
    steps: int = 0
    """Optimisation steps of everything that was trained: students, trial students, policies, critics."""

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return {"seconds": round(self.seconds, 2), "cpu_seconds": round(self.cpu_seconds, 2), "steps": self.steps}


UNKNOWN_COST: dict[str, Any] = {"seconds": None, "cpu_seconds": None, "steps": None}
NO_COST: dict[str, Any] = Cost().record()


def cpu_seconds() -> float:
    """CPU seconds of this process so far: user and system, all threads, and children that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


@contextmanager
def metered() -> Iterator[Cost]:
    """Measure what happens meanwhile; the process must do nothing else at the same time."""
    cost = Cost()

    def count(*_: Any) -> None:
        cost.steps += 1

    hook = register_optimizer_step_post_hook(count)
    wall, cpu = time.perf_counter(), cpu_seconds()
    try:
        yield cost
    finally:
        hook.remove()
        cost.seconds, cost.cpu_seconds = time.perf_counter() - wall, cpu_seconds() - cpu


def added(cost: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Two recorded costs as one; a sum with something unknown is unknown."""
    pairs = {name: (cost[name], more[name]) for name in UNKNOWN_COST}
    return {name: None if None in pair else round(sum(pair), 2) for name, pair in pairs.items()}


def share_of(cost: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Part of a recorded cost's seconds, where several runs use what was made once; its steps are whole."""
    seconds = {name: cost[name] for name in ("seconds", "cpu_seconds")}
    return {**cost, **{name: None if value is None else round(share * value, 2) for name, value in seconds.items()}}


def cost_in(done: Mapping[str, Any]) -> dict[str, Any]:
    """The cost that a finished stage tells; None for what it did not measure yet when it was made."""
    return {name: done.get(name) for name in UNKNOWN_COST}
