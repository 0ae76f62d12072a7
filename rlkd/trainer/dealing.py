"""Batches of a trainer's data set, whole in one process, and dealt out to several."""

import copy
from typing import Any, cast

from accelerate.utils import gather_object
from torch.utils.data import RandomSampler, SequentialSampler

from rlkd.errors import ConfigError
from rlkd.trainer.row_keys import key_of_row
from rlkd.trainer.rows import first_row, is_stream
from rlkd.trainer.shares import Numbered, ToldOrder, whole_batches


class DealsBatches:
    """Of a trainer: every process gets its share of each batch."""

    args: Any
    data_collator: Any

    def get_train_dataloader(self) -> Any:
        """The Trainer's own batches; of several processes each gets its share of them, none a row twice.

        Raises:
            ConfigError: There are several, and a stream begins with another row in one of them.
        """
        mine, args = cast(Any, self), self.args
        data = mine.train_dataset
        rebalanced = getattr(args, "train_sampling_strategy", None) == "batch_rebalance"  # knows of processes itself
        if args.world_size == 1 or data is None or rebalanced:
            return cast(Any, super()).get_train_dataloader()
        if is_stream(data):
            check_same_stream(data)
            return self._dealt(data, None, mine._train_batch_size)
        self.args = copy.copy(args)
        self.args.per_device_train_batch_size *= args.world_size  # what a sampler may group rows by
        sampler = mine._get_train_sampler(data)
        self.args = args
        alike = isinstance(sampler, RandomSampler | SequentialSampler)
        return self._dealt(data, sampler if alike else ToldOrder(sampler), mine._train_batch_size)

    def _dealt(self, data: Any, sampler: Any, batch_size: int) -> Any:
        """Batches of so many rows a process."""
        mine, collate = cast(Any, self), self.data_collator
        if hasattr(data, "remove_columns") and not is_stream(data):  # whose columns may be unknown
            data = mine._remove_unused_columns(data, description="training")
        else:
            collate = mine._get_collator_with_removed_columns(collate, description="training")
        together = batch_size * self.args.world_size
        if sampler is None:
            return whole_batches(data, None, collate, together, self.args)
        numbered = Numbered(data, collate)
        return whole_batches(numbered, sampler, numbered.batch, together, self.args)


def check_same_stream(data: Any) -> None:
    """Refuse a stream that does not begin with the same row in all processes, which call this together.

    Each reads it whole and takes its share of every batch: in another order they would be shares of other batches. One
    that is read but once is not looked at.

    Raises:
        ConfigError: They differ.
    """
    if len(set(gather_object([key_of_row(first_row(data))]))) > 1:
        raise ConfigError(
            "expected a stream that begins with the same row in every process, got another in some; shuffle it with a "
            "seed, and do not split it by process: each takes its share of every batch"
        )
