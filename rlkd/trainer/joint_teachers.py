"""The teachers of several tasks as those of one, and who is trusted on each."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from rlkd.data.collection import TaskCollection
from rlkd.data.task import Task
from rlkd.errors import ConfigError, WeightingError
from rlkd.types import LogitsAlone, LogitSource, State
from rlkd.weighting import BaseWeighting, Mixture, OnlineWeighting, Weighting, adapted, mixture


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
