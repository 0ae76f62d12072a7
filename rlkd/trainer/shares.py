"""One batch on several processes: who works on which rows, and how everybody gets to know all answers.

A batch is that of one process at the same global batch, row for row, the partial one at the end of an epoch too. Every
process forwards its share and learns what the student answered on the others, so that weightings see whole batches.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rlkd.trainer.arguments import DistillationArguments

WHOLE = "whole_batch_ids"


def share_of(rows: int, processes: int, rank: int) -> slice:
    """The rows of a batch that a process works on: consecutive, all but the last processes equally many, maybe none."""
    each = -(-rows // processes)
    return slice(min(rank * each, rows), min((rank + 1) * each, rows))


def whole_batches(
    data: Dataset[int],
    sampler: Sampler[int],
    collate: Callable[[list[int]], dict[str, Tensor]],
    batch_size: int,
    args: DistillationArguments,
) -> Any:
    """A loader that deals every batch out to the processes.

    Args:
        data: Instance ids.
        sampler: The same in every process.
        collate: Makes a batch of ids.
        batch_size: Of all processes together.
        args: Of the run.
    """

    def deal(ids: list[int]) -> dict[str, Tensor]:
        share = ids[share_of(len(ids), args.world_size, args.process_index)]
        # a process without rows takes part in the step with one that counts nothing
        return {**collate(share or ids[:1]), WHOLE: torch.from_numpy(np.asarray(ids))}

    loader: DataLoader[int] = DataLoader(
        data,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=deal,
        drop_last=args.dataloader_drop_last,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
        in_order=args.dataloader_in_order,
    )
    return prepare_data_loader(loader, args.device, num_processes=1, process_index=0, put_on_device=True)


def gathered(accelerator: Accelerator, own: Tensor, rows: int) -> Tensor:
    """The rows of all shares in the order of the batch, shape (rows, C), of those of this process, (n, C)."""
    each = -(-rows // accelerator.num_processes)
    padded = own.new_zeros(each, own.shape[-1])
    padded[: len(own)] = own
    everybody: Tensor = accelerator.gather(padded)
    return everybody[:rows]


def told_by_the_first(value: Any) -> Any:
    """What the first process has, in all of them."""
    (told,) = broadcast_object_list([value])
    return told


def mean_over(accelerator: Accelerator, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over processes of a few numbers."""
    held = torch.from_numpy(np.asarray(values)).to(accelerator.device)
    mean: Tensor = accelerator.gather(held.unsqueeze(0)).mean(0)
    return np.asarray(mean.cpu())
