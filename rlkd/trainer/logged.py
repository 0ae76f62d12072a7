"""What a run logs beside the weights: means of losses and of the weights' entropy."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainingArguments

from rlkd.kinds import Measured

AT_ONCE = 64
"""Batches that are added up together."""
MOST_HELD = 2**20
"""Numbers of them that are held until then, 4 MB."""


class _Batch(NamedTuple):
    """What is held of a batch until it is added up: losses (N,), weights (N, K), and the loss to the label."""

    losses: Tensor
    weights: Tensor
    measured: Measured | None

    @property
    def size(self) -> int:
        """Numbers that are held."""
        more = 0 if self.measured is None else self.measured.values.numel() + self.measured.labels.numel()
        return self.losses.numel() + self.weights.numel() + more

    @property
    def form(self) -> Any:
        """Equal in batches that may be added up together."""
        measured = self.measured
        told = None if measured is None else (measured.name, measured.compute, measured.values.shape)
        return self.weights.shape, told


class Sums:
    """Means of what is logged, over what was taught since they were told last."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Any, Any]] = {}
        """And how many values they are of, in double precision: numbers, or of an accelerator tensors, which are not
        waited for."""
        self._waiting: list[_Batch] = []
        self._held = 0

    def add(self, losses: Tensor, weights: Tensor, measured: Measured | None) -> None:
        """Add a batch; it is added up some batches later, or when sums are asked for.

        Args:
            losses: Shape (N,), detached.
            weights: Shape (N, K), detached.
            measured: The loss to the label; None: nobody has one.
        """
        batch = _Batch(losses, weights.clone(), measured)
        self._waiting.append(batch)
        self._held += batch.size
        if len(self._waiting) >= AT_ONCE or self._held > MOST_HELD:
            self._fetch()

    def _fetch(self) -> None:
        """Add up what waits: first the rows of each batch, then batch after batch."""
        waiting, self._waiting, self._held = self._waiting, [], 0
        for _, batches in groupby(waiting, lambda batch: batch.form):
            self._add(*batches)

    @torch.no_grad()
    def _add(self, first: _Batch, *others: _Batch) -> None:
        """Add batches of one form."""
        batches = [first, *others]
        losses, weights = (torch.stack(parts) for parts in ([b.losses for b in batches], [b.weights for b in batches]))
        values, names = [losses, torch.special.entr(weights).sum(-1)], ["distillation_loss", "weight_entropy"]
        if first.measured is not None:
            told = [batch.measured for batch in batches if batch.measured is not None]
            parts = torch.stack([one.values for one in told]), torch.stack([one.labels for one in told])
            values += first.measured.compute(*parts)
            names.append(first.measured.name)
        totals = torch.stack(values, dim=1).double().sum(-1)
        for of_batch in totals.tolist() if totals.device.type == "cpu" else [row.unbind() for row in totals]:
            loss, entropy, *labelled = of_batch
            counted = [(loss, losses.shape[1]), (entropy, losses.shape[1]), *([labelled] if labelled else [])]
            for name, (total, count) in zip(names, counted, strict=True):
                sums = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = (sums[0] + total, sums[1] + count)

    def totals(self, over_processes: Callable[[Tensor], Tensor]) -> dict[str, list[float]]:
        """Sums by name, and how many values they are of, of all processes.

        Args:
            over_processes: Adds up what each process has.
        """
        self._fetch()
        if not self._sums:
            return {}
        own = torch.tensor([[*map(float, pair)] for pair in self._sums.values()], dtype=torch.float64)
        return dict(zip(self._sums, over_processes(own).tolist(), strict=True))

    def load(self, totals: Mapping[str, Sequence[float]], args: TrainingArguments) -> None:
        """Go on from :meth:`totals`, which the first process holds for all."""
        self._waiting, self._held = [], 0
        share = 1.0 if args.process_index == 0 else 0.0
        self._sums = {name: (total * share, count * share) for name, (total, count) in totals.items()}

    def means(self, over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means by name, in nats; then they start anew."""
        totals = self.totals(over_processes)
        self._sums = {}
        return {name: total / max(count, 1) for name, (total, count) in totals.items()}
