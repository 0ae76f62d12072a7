"""Batches of several tasks, each of one: their order, and what the model reads of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from rlkd.data.batching import Inputs, bucketed_order
from rlkd.data.collection import TaskCollection


def task_batches(lengths: Sequence[NDArray[np.int64]], batch_size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Order rows so that every chunk of ``batch_size`` is of one task; tasks have chunks in proportion to their rows.

    The chunks of all tasks are shuffled together. Inside a task rows are ordered by
    :func:`~rlkd.data.batching.bucketed_order`; its last chunk is filled up with rows that it has had already. A pure
    function of its arguments.

    Args:
        lengths: Length of every instance of each task, T arrays (N_t,); tasks lie behind each other.
        batch_size: Size of a chunk.
        seed: Seeds the order.
        epoch: Every epoch has another order.

    Returns:
        Positions, a whole number of chunks, every position at least once.

    Source: Liu et al. 2019 (MT-DNN), arXiv:1901.11504, algorithm 1.
    """
    rng, chunks, start = np.random.default_rng([seed, epoch, 1]), [], 0
    for rows in lengths:
        order = bucketed_order(rows, batch_size, seed, epoch)
        missing = -len(order) % batch_size
        order = np.concatenate([order, np.resize(rng.permutation(len(rows)), missing)])
        chunks.append(start + order.reshape(-1, batch_size))
        start += len(rows)
    joint = np.concatenate(chunks)
    return joint[rng.permutation(len(joint))].ravel()


class TaskBatchSampler(Sampler[int]):
    """Sample positions in the order of :func:`task_batches`; a new order each epoch."""

    def __init__(self, lengths: Sequence[NDArray[np.int64]], batch_size: int, seed: int = 0) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = list(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch`` for the next iteration."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(task_batches(self._lengths, self._batch_size, self._seed, self._epoch).tolist())

    def __len__(self) -> int:
        return sum(-(-len(rows) // self._batch_size) for rows in self._lengths) * self._batch_size


class JointInputs:
    """Encoded inputs of all tasks by joint id; a batch also says of which task it is."""

    def __init__(self, collection: TaskCollection, inputs: Mapping[str, Inputs]) -> None:
        """Hold the inputs of every task by name."""
        self._collection, self._inputs = collection, inputs
        self.lengths = np.empty(len(collection.joint.table), dtype=np.int64)
        for name in collection.names:
            for split in collection.joint.splits:
                ids = collection.joint_ids(name, split)
                self.lengths[ids] = inputs[name].lengths[collection[name].splits[split]]

    def batch(self, ids: NDArray[np.int64]) -> dict[str, Any]:
        """Model inputs of the instances ``ids`` (B,), all of one task, and its name."""
        name, rows = self._collection.locate(ids)
        return {**self._inputs[name].batch(rows), "task": name}
