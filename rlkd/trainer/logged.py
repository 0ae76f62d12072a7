"""What a run logs beside the weights: means of losses and of the weights' entropy."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments


class Sums:
    """Means of what is logged, over what was taught since they were told last."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Any, Any]] = {}
        """And how many values they are of, in double precision: numbers, or of an accelerator tensors, which are not
        waited for."""

    def add(
        self, losses: Tensor, weights: Tensor, measured: str = "", told: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Add a batch.

        Args:
            losses: Shape (N,).
            weights: Shape (N, K).
            measured: What the loss to the label is called.
            told: That loss (N,), 0 where there is no label, and whether there is one, bool (N,); None: nobody has.
        """
        values = [losses.detach(), torch.special.entr(weights).sum(-1)]
        if told is not None:
            values += [told[0].detach(), told[1]]
        totals = torch.stack(values).double().sum(-1)
        loss, entropy, *labelled = totals.tolist() if totals.device.type == "cpu" else totals.unbind()
        self._add("distillation_loss", loss, len(losses))
        self._add("weight_entropy", entropy, len(losses))
        if told is not None:
            self._add(measured, *labelled)

    def _add(self, name: str, total: Any, count: Any) -> None:
        sums = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (sums[0] + total, sums[1] + count)

    def totals(self, over_processes: Callable[[Tensor], Tensor]) -> dict[str, list[float]]:
        """Sums by name, and how many values they are of, of all processes.

        Args:
            over_processes: Adds up what each process has.
        """
        if not self._sums:
            return {}
        own = torch.tensor([[*map(float, pair)] for pair in self._sums.values()], dtype=torch.float64)
        return dict(zip(self._sums, over_processes(own).tolist(), strict=True))

    def load(self, totals: Mapping[str, Sequence[float]], args: TrainingArguments) -> None:
        """Go on from :meth:`totals`, which the first process holds for all."""
        share = 1.0 if args.process_index == 0 else 0.0
        self._sums = {name: (total * share, count * share) for name, (total, count) in totals.items()}

    def means(self, over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means by name, in nats; then they start anew."""
        totals = self.totals(over_processes)
        self._sums = {}
        return {name: total / max(count, 1) for name, (total, count) in totals.items()}
