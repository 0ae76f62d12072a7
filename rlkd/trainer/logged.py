"""What a run logs beside the weights: means of losses and of the weights' entropy."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import TrainingArguments


class Sums:
    """Means of what is logged, over what was taught since they were told last."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # and how many values they are of

    def add(self, losses: Tensor, weights: Tensor) -> None:
        """Add a batch: losses (N,), weights (N, K)."""
        self.add_some("distillation_loss", losses)
        self.add_some("weight_entropy", torch.special.entr(weights).sum(-1))

    def add_some(self, name: str, values: Tensor, counted: Tensor | None = None) -> None:
        """Add values (N,) of a name; those that do not count, bool (N,), are 0."""
        total = values.detach().double().sum()
        count = total.new_full((), len(values)) if counted is None else counted.sum()
        self._sums[name] = self._sums.get(name, 0) + torch.stack([total, count.double()])

    def totals(self, over_processes: Callable[[Tensor], Tensor]) -> dict[str, list[float]]:
        """Sums by name, and how many values they are of, of all processes.

        Args:
            over_processes: Adds up what each process has.
        """
        totals = over_processes(torch.stack([*self._sums.values()])).tolist() if self._sums else []
        return dict(zip(self._sums, totals, strict=True))

    def load(self, totals: Mapping[str, Sequence[float]], args: TrainingArguments) -> None:
        """Go on from :meth:`totals`, which the first process holds for all."""
        share = 1.0 if args.process_index == 0 else 0.0
        self._sums = {
            name: torch.tensor(pair, dtype=torch.float64, device=args.device) * share for name, pair in totals.items()
        }

    def means(self, over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means by name, in nats; then they start anew."""
        totals = self.totals(over_processes)
        self._sums = {}
        return {name: total / max(count, 1) for name, (total, count) in totals.items()}
