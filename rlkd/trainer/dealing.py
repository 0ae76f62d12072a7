"""Batches of a trainer's data set, whole in one process, and dealt out to several."""

import copy
from typing import Any, cast

from torch.utils.data import RandomSampler, SequentialSampler

from rlkd.errors import ConfigError
from rlkd.trainer.rows import is_stream
from rlkd.trainer.shares import Numbered, ToldOrder, whole_batches


class DealsBatches:
    """Of a trainer: every process gets its share of each batch."""

    args: Any
    data_collator: Any

    def get_train_dataloader(self) -> Any:
        """The Trainer's own batches; of several processes each gets its share of them, none a row twice.

        Raises:
            ConfigError: There are several, and the data set is a stream.
        """
        mine, args = cast(Any, self), self.args
        data = mine.train_dataset
        if args.world_size > 1 and data is not None and is_stream(data):
            raise ConfigError(
                f"one process is needed for a data set that is a stream, got {args.world_size}; load its rows, or "
                "start without a launcher"
            )
        rebalanced = getattr(args, "train_sampling_strategy", None) == "batch_rebalance"  # knows of processes itself
        if args.world_size == 1 or data is None or rebalanced:
            return cast(Any, super()).get_train_dataloader()
        self.args = copy.copy(args)
        self.args.per_device_train_batch_size *= args.world_size  # what a sampler may group rows by
        sampler = mine._get_train_sampler(data)
        self.args = args
        alike = isinstance(sampler, RandomSampler | SequentialSampler)
        return self._dealt(data, sampler if alike else ToldOrder(sampler), mine._train_batch_size)

    def _dealt(self, data: Any, sampler: Any, batch_size: int) -> Any:
        """Batches of so many rows a process."""
        mine, collate = cast(Any, self), self.data_collator
        if hasattr(data, "remove_columns"):
            data = mine._remove_unused_columns(data, description="training")
        else:
            collate = mine._get_collator_with_removed_columns(collate, description="training")
        numbered = Numbered(data, collate)
        return whole_batches(numbered, sampler, numbered.batch, batch_size * self.args.world_size, self.args)
