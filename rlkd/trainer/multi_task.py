"""Training over several tasks: the one trainer, whose batches come from one task at a time.

A row of the joint task (:attr:`rlkd.data.collection.TaskCollection.joint`) belongs to one task; its inputs, its
teachers' logits and its weighting are looked up there, so every task keeps its own logit cache and its own weighting.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from rlkd.data.batching import Inputs, bucketed_order, encode_inputs
from rlkd.data.collection import TaskCollection
from rlkd.data.task import Task
from rlkd.errors import ConfigError, WeightingError
from rlkd.models.multi_task import MultiTaskForSequenceClassification
from rlkd.models.multi_task_loading import fit_multi_task
from rlkd.trainer.arguments import DistillationArguments
from rlkd.trainer.task_trainer import InstanceDataset, TaskTrainer
from rlkd.types import LogitsAlone, LogitSource, State
from rlkd.weighting import BaseWeighting, Mixture, OnlineWeighting, Weighting, adapted, mixture
from rlkd.weighting.fixed import Uniform


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


class NoTeachers(LogitsAlone):
    """A :class:`~rlkd.types.LogitSource` for training on labels alone, with ``kd_ratio`` 0: one silent teacher."""

    teacher_names = ("labels",)

    def __init__(self, task: Task) -> None:
        """Hold the task, for its classes."""
        self._task = task

    def rows(self, ids: Tensor) -> Tensor:
        """Zeros, shape (B, 1, C)."""
        return torch.zeros(len(ids), 1, self._task.num_classes)

    def head(self, rows: int) -> Self:
        """The same: it knows nothing of any instance."""
        return self


class JointSource:
    """The logit sources of all tasks as one :class:`~rlkd.types.LogitSource` by joint id; asked for one task at a time.

    Every task has its own label space, so the number of classes changes from batch to batch.
    """

    knowledge = None
    """Weights are recorded by task."""
    reliability = None
    """It differs from task to task."""

    def __init__(self, collection: TaskCollection, sources: Mapping[str, LogitSource]) -> None:
        """Hold the source of every task by name.

        Raises:
            ConfigError: A task has no source, or the tasks' teachers are not called alike.
        """
        missing = [name for name in collection.names if name not in sources]
        if missing:
            raise ConfigError(f"every task needs its teachers' logits, {missing[0]!r} has none; build its cache")
        names = {name: tuple(sources[name].teacher_names) for name in collection.names}
        self.teacher_names = names[collection.names[0]]
        for name, theirs in names.items():
            if theirs != self.teacher_names:
                raise ConfigError(
                    f"teachers must have the same names on all tasks, got {', '.join(theirs)} on {name!r} and "
                    f"{', '.join(self.teacher_names)} on {collection.names[0]!r}; rename them by their part, such as "
                    "'single' and 'multi'"
                )
        self._collection, self._sources = collection, sources

    @property
    def has_affinity(self) -> bool:
        """Whether all tasks have it."""
        return all(self._sources[name].has_affinity for name in self._collection.names)

    @property
    def has_sureness(self) -> bool:
        """Whether all tasks have it."""
        return all(self._sources[name].has_sureness for name in self._collection.names)

    @property
    def embedding_size(self) -> int:
        """Length of the embeddings, if all tasks have the same; else 0."""
        sizes = {self._sources[name].embedding_size for name in self._collection.names}
        return sizes.pop() if len(sizes) == 1 else 0

    def _own(self, ids: Tensor) -> tuple[LogitSource, Tensor]:
        name, rows = self._collection.locate(ids.numpy())
        return self._sources[name], torch.from_numpy(rows)

    def rows(self, ids: Tensor) -> Tensor:
        """Teacher logits of the instances ``ids`` (B,) of one task, shape (B, K, C_task)."""
        source, rows = self._own(ids)
        return source.rows(rows)

    def mask_rows(self, ids: Tensor) -> Tensor | None:
        """Who answered, shape (B, K), or None."""
        source, rows = self._own(ids)
        return source.mask_rows(rows)

    def affinity_rows(self, ids: Tensor) -> Tensor | None:
        """Affinities, shape (B, K), or None."""
        source, rows = self._own(ids)
        return source.affinity_rows(rows)

    def sureness_rows(self, ids: Tensor) -> Tensor | None:
        """How sure each teacher usually is on their task, shape (B, K), or None."""
        source, rows = self._own(ids)
        return source.sureness_rows(rows)

    def embedding_rows(self, ids: Tensor) -> Tensor | None:
        """Embeddings, shape (B, D), or None."""
        source, rows = self._own(ids)
        return source.embedding_rows(rows)

    def head(self, rows: int) -> "JointSource":
        """The same over the training views of all tasks, whose joint rows come first."""
        if rows == len(self._collection.joint.table):
            return self
        view = self._collection.training_view()
        return JointSource(view, {task.name: self._sources[task.name].head(len(task.table)) for task in view})


class JointWeighting(BaseWeighting):
    """A weighting for each task; a batch, which is of one task, goes to that task's own."""

    def __init__(self, collection: TaskCollection, weightings: Mapping[str, Weighting]) -> None:
        """Hold the weighting of every task by name."""
        self._collection = collection
        self._weightings = {name: adapted(weighting) for name, weighting in weightings.items()}

    @property
    def requires(self) -> frozenset[str]:
        """What any of them requires."""
        return frozenset[str]().union(*(self._weightings[name].requires for name in self._collection.names))

    @property
    def falls_back(self) -> str:
        """What all of those that read labels do without; empty if one of them can do nothing."""
        readers = [w for w in self._weightings.values() if "labels" in w.requires]
        words = [weighting.falls_back for weighting in readers]
        return "; ".join(dict.fromkeys(words)) if all(words) else ""

    def own(self, state: State) -> tuple[BaseWeighting, State]:
        """The weighting of the task of a batch, and the batch as it is known there: its ids and its domains."""
        assert state.ids is not None
        name, rows = self._collection.locate(state.ids.cpu().numpy())
        task, device = self._collection[name], state.ids.device
        domains = torch.from_numpy(task.table.domains[rows]).to(device) if task.domain_names else None
        return self._weightings[name], replace(state, ids=torch.from_numpy(rows).to(device), domains=domains)

    def weights(self, state: State) -> Tensor:
        """Weights, shape (B, K)."""
        return self.taught(state).weights

    def taught(self, state: State) -> Mixture:
        """What the task's own weighting says, checked here too: the error should name that one."""
        return mixture(*self.own(state))


class OnlineJointWeighting(JointWeighting):
    """Weightings of which one at least learns while the student does."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnlineJointWeighting":
        # the tasks are shared: only what learns is copied
        return OnlineJointWeighting(self._collection, deepcopy(self._weightings, memo))

    def _learning(self) -> dict[str, OnlineWeighting]:
        return {name: w for name, w in self._weightings.items() if isinstance(w, OnlineWeighting)}

    def update(self, state: State) -> None:
        """Let the weighting of the batch's task learn, if it does."""
        weighting, own = self.own(state)
        if isinstance(weighting, OnlineWeighting):
            weighting.update(own)

    def state_dict(self) -> dict[str, Any]:
        """What was learned, by task."""
        return {name: weighting.state_dict() for name, weighting in self._learning().items()}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        learning = self._learning()
        if set(values) != set(learning):
            raise WeightingError(
                f"expected what was learned on {', '.join(learning)}, got {', '.join(values) or 'nothing'}; "
                "resume with the tasks of the run"
            )
        for name, weighting in learning.items():
            weighting.load_state_dict(values[name])


class MultiTaskTrainer(TaskTrainer):
    """A :class:`~rlkd.trainer.TaskTrainer` of a multi-task model; each batch is of one task.

    It evaluates task by task; metrics are called ``eval_TASK_accuracy`` and so on.
    """

    splits_batches = False

    def __init__(
        self,
        model: MultiTaskForSequenceClassification,
        args: DistillationArguments,
        *,
        collection: TaskCollection,
        sources: Mapping[str, LogitSource] | None = None,
        weightings: Mapping[str, Weighting] | None = None,
        processing_class: PreTrainedTokenizerBase,
        inputs: Mapping[str, Inputs] | None = None,
        **kwargs: Any,
    ) -> None:
        """Prepare a run.

        Args:
            model: Has a head for every task.
            args: Training and distillation arguments.
            collection: The tasks.
            sources: Teacher logits by task, teachers called alike. None: labels alone teach, with ``kd_ratio`` 0.
            weightings: By task; None: equal weights.
            processing_class: The model's tokenizer.
            inputs: Encoded inputs by task, to share them between runs of one tokenizer.
            **kwargs: Handed on to :class:`transformers.Trainer`.
        """
        if sources is None and (args.kd_ratio > 0 or weightings is not None):
            raise ConfigError(
                f"a kd_ratio of {args.kd_ratio} or weightings need teachers, got none; pass sources or set kd_ratio=0"
            )
        sources = {task.name: NoTeachers(task) for task in collection} if sources is None else sources
        chosen = {name: Uniform() for name in collection.names} if weightings is None else weightings
        learns = any(isinstance(chosen[name], OnlineWeighting) for name in collection.names)
        if inputs is None:
            processing_class = fit_multi_task(model, processing_class, "the student")
            inputs = {task.name: encode_inputs(task, processing_class, args.max_length) for task in collection}
        self.collection = collection
        super().__init__(
            model,
            args,
            task=collection.joint,
            cache=JointSource(collection, sources),
            weighting=(OnlineJointWeighting if learns else JointWeighting)(collection, chosen),
            processing_class=processing_class,
            inputs=JointInputs(collection, inputs),
            **kwargs,
        )
        self.eval_dataset = {n: InstanceDataset(collection.joint_ids(n, "validation")) for n in collection.names}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        ids = {name: self.collection.joint_ids(name, "train") for name in self.collection.names}
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        return TaskBatchSampler([self.inputs.lengths[rows] for rows in ids.values()], batch, seed=seed)

    def predict_task(self, name: str, split: str) -> NDArray[np.float32]:
        """The student's logits of one split of one task, shape (N_split, C_task), in the order of its ids."""
        return self.predict_rows(self.collection.joint_ids(name, split))
