"""Where a run put its weight: means per teacher and group, over its progress."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.data.task import Task
from rlkd.types import LogitSource, State


class WeightRecord:
    """Mean weight per teacher and group over the run, in bins of progress."""

    BINS = 20
    AT_ONCE = 64
    """Batches that are added up together, and fetched from an accelerator together."""

    def __init__(self, groups: Sequence[str], teachers: int) -> None:
        """Start empty: sums of shape (bins, groups, K)."""
        self.groups = tuple(groups)
        self._sums = np.zeros((self.BINS, len(groups), teachers))
        self._counts = np.zeros((self.BINS, len(groups)))
        self._waiting: list[tuple[int, Tensor | None, Tensor]] = []

    @property
    def sums(self) -> NDArray[np.float64]:
        """Of weights, shape (bins, groups, K)."""
        self._fetch()
        return self._sums

    @property
    def counts(self) -> NDArray[np.float64]:
        """Of instances, shape (bins, groups)."""
        self._fetch()
        return self._counts

    def add(self, progress: float, groups: Tensor | None, weights: Tensor) -> None:
        """Add a batch: ``groups`` (B,) (-1: none; None: all are of the one group), ``weights`` (B, K).

        They are added up some batches later, or when they are read.
        """
        self._wait(progress, groups, weights.detach().clone())

    def add_total(self, progress: float, total: Tensor) -> None:
        """Add what several processes have of a batch: sums of weights and their number, (K + 1,), of the one group."""
        self._wait(progress, None, total)

    def _wait(self, progress: float, groups: Tensor | None, values: Tensor) -> None:
        self._waiting.append((min(int(progress * self.BINS), self.BINS - 1), groups, values))
        if len(self._waiting) >= self.AT_ONCE:
            self._fetch()

    def _fetch(self) -> None:
        """Add up what waits, in its order: row after row, whatever is added together."""
        waiting, self._waiting = self._waiting, []
        for (bin_, has_groups, axes), batches in groupby(
            waiting, lambda one: (one[0], one[1] is not None, one[2].ndim)
        ):
            together = [*batches]
            if axes == 1:
                for _, _, total in together:
                    self._sums[bin_, 0] += total[:-1].cpu().numpy()
                    self._counts[bin_, 0] += float(total[-1])
                continue
            weights = torch.cat([values for _, _, values in together]).cpu().numpy()
            if not has_groups:  # a sum over the first axis adds row to row, in a tenth of the time of what follows
                self._sums[bin_, 0] = np.concatenate([self._sums[bin_], weights]).sum(0)
                self._counts[bin_, 0] += len(weights)
                continue
            numbers = torch.cat([groups for _, groups, _ in together if groups is not None]).cpu().numpy()
            kept = numbers >= 0
            np.add.at(self._sums[bin_], numbers[kept], weights[kept])
            np.add.at(self._counts[bin_], numbers[kept], 1)

    def clear(self) -> None:
        """Start again."""
        self._sums, self._counts, self._waiting = np.zeros_like(self._sums), np.zeros_like(self._counts), []

    def means(self) -> NDArray[np.float64]:
        """Mean weights, shape (bins, groups, K); NaN where nothing was seen."""
        with np.errstate(invalid="ignore"):
            return self.sums / self.counts[..., None]

    def knowing_mass(self, matrix: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Mean weight on the teachers that know the instance's group, per bin: ``matrix`` (K, G) to (bins,)."""
        mass = (self.sums * matrix.T[None]).sum((1, 2))
        with np.errstate(invalid="ignore"):
            return np.asarray(mass / self.counts.sum(1))

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"sums": self.sums.tolist(), "counts": self.counts.tolist()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` gave."""
        self._sums, self._counts, self._waiting = np.array(state["sums"]), np.array(state["counts"]), []


def group_names(task: Task, source: LogitSource) -> tuple[str, ...]:
    """The groups that weights are reported by: what the teachers know, else domains, else classes."""
    if source.knowledge is not None:
        return source.knowledge.groups
    return task.domain_names or task.label_names


def groups_of(task: Task, source: LogitSource, state: State) -> Tensor:
    """The group of every instance of a batch, int64, shape (B,); -1: none."""
    by_class = source.knowledge.by == "class" if source.knowledge is not None else not task.domain_names
    groups = state.labels if by_class else state.domains
    assert groups is not None
    return groups
