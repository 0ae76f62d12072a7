"""One batch on several processes: who works on which rows, and how everybody gets to know all answers.

A batch is that of one process at the same global batch, row for row, the partial one at the end of an epoch too. Every
process forwards its share; where a weighting looks at whole batches, it learns what is known of the other shares.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainingArguments
from transformers.trainer_utils import seed_worker

from rlkd.ranks import told_by_the_first
from rlkd.types import State
from rlkd.weighting import Mixture

WHOLE = "whole_batch_ids"
"""Of a batch that is dealt out: which rows all processes have together."""


def share_of(rows: int, processes: int, rank: int) -> slice:
    """The rows of a batch that a process works on: consecutive, all but the last processes equally many, maybe none."""
    each = -(-rows // processes)
    return slice(min(rank * each, rows), min((rank + 1) * each, rows))


class Numbered(Dataset[int]):
    """Numbers of the rows of a data set: which of them a process reads is decided when a batch is dealt out."""

    def __init__(self, data: Any, collate: Callable[[list[Any]], Any]) -> None:
        """Hold a data set that has a length, and what makes a batch of its rows."""
        self._data, self._collate = data, collate

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> int:
        return index

    def batch(self, numbers: list[int]) -> Any:
        """The batch of some rows, read together where the data set can do that."""
        together = getattr(self._data, "__getitems__", None)
        return self._collate(together(numbers) if together else [self._data[number] for number in numbers])


class ToldOrder(Sampler[int]):
    """The order of the first process, in all of them."""

    def __init__(self, own: Sampler[int]) -> None:
        """Hold what orders the rows in the first process."""
        self._own = own
        if hasattr(own, "set_epoch"):
            self.set_epoch = own.set_epoch

    def __iter__(self) -> Iterator[int]:
        return iter(told_by_the_first(list(self._own)))

    def __len__(self) -> int:
        return len(self._own)  # type: ignore[arg-type]  # torch leaves it to the samplers, and they all have one


@dataclass(frozen=True)
class Dealer:
    """Makes the batch of one process of the rows of all."""

    collate: Callable[[list[Any]], Any]
    processes: int
    rank: int
    numbered: bool
    """Whether rows are given as their numbers; those of a stream have none."""

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        """The batch, and beside it whose share it is of; a process without rows gets one that counts nothing."""
        share = rows[share_of(len(rows), self.processes, self.rank)]
        numbers = np.asarray(rows) if self.numbered else np.arange(len(rows))
        return {**self.collate(share or rows[:1]), WHOLE: torch.from_numpy(numbers)}


def whole_batches(
    data: Dataset[Any],
    sampler: Sampler[int] | None,
    collate: Callable[[list[Any]], Any],
    batch_size: int,
    args: TrainingArguments,
) -> Any:
    """A loader that deals every batch out to the processes.

    Args:
        data: Instance ids; or a stream of rows, which every process reads whole.
        sampler: The same in every process; a random one is made so. None: a stream's own order.
        collate: Makes a batch of ids, or of rows.
        batch_size: Of all processes together.
        args: Of the run.
    """
    numbered = sampler is not None
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=Dealer(collate, args.world_size, args.process_index, numbered),
        drop_last=args.dataloader_drop_last and numbered,  # as the Trainer, which drops nothing of a stream
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
        in_order=args.dataloader_in_order,
        worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
    )
    return prepare_data_loader(
        loader,
        args.device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
        dispatch_batches=False,  # it would deal the batches of a stream out once more
        use_seedable_sampler=True,
        data_seed=args.data_seed,
    )


@dataclass(frozen=True)
class Shares:
    """How many rows each process has of what all have together, in their order."""

    accelerator: Accelerator
    sizes: tuple[int, ...]

    @classmethod
    def of_batch(cls, accelerator: Accelerator, rows: int) -> "Shares":
        """Of a batch of so many rows that was dealt out."""
        count = accelerator.num_processes
        shares = [share_of(rows, count, rank) for rank in range(count)]
        return cls(accelerator, tuple(share.stop - share.start for share in shares))

    @classmethod
    def of_rows(cls, accelerator: Accelerator, own: Tensor) -> "Shares":
        """Of whatever each process has, as are tokens: (n, ...) here."""
        sizes = accelerator.gather(torch.tensor([len(own)], device=own.device))
        return cls(accelerator, tuple(sizes.tolist()))

    @property
    def own(self) -> slice:
        """Where the rows of this process are among all."""
        start = sum(self.sizes[: self.accelerator.process_index])
        return slice(start, start + self.sizes[self.accelerator.process_index])

    def whole(self, own: Tensor) -> Tensor:
        """The rows of all processes, (N, ...), of those of this one, (n, ...)."""
        padded = own.new_zeros(max(self.sizes), *own.shape[1:])
        padded[: len(own)] = own
        everybody = self.accelerator.gather(padded).unflatten(0, (len(self.sizes), -1))
        return torch.cat([part[:size] for part, size in zip(everybody, self.sizes, strict=True)])

    def whole_state(self, own: State) -> State:
        """What is known of the rows of all processes, of what is known of those of this one."""
        known = {name: getattr(own, name) for name in sorted(own.available())}  # in the same order everywhere
        whole: dict[str, Any] = {n: self.whole(value) for n, value in known.items() if isinstance(value, Tensor)}
        return replace(own, **whole)


def part_of(taught: Mixture, own: slice) -> Mixture:
    """What is taught of some of the rows."""
    scale = None if taught.scale is None else taught.scale[own]
    return replace(taught, teacher_logits=taught.teacher_logits[own], weights=taught.weights[own], scale=scale)


def first_rows(state: State, count: int) -> State:
    """What is known of the first rows of a batch."""
    known = {name: getattr(state, name) for name in state.available()}
    fewer: dict[str, Any] = {name: value[:count] for name, value in known.items() if isinstance(value, Tensor)}
    return replace(state, **fewer)


def mean_over(accelerator: Accelerator, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over processes of a few numbers."""
    held = torch.from_numpy(np.asarray(values)).to(accelerator.device)
    mean: Tensor = accelerator.gather(held.unsqueeze(0)).mean(0)
    return np.asarray(mean.cpu())
