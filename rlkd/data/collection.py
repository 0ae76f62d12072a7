"""Several tasks, one label space each; and parts of a task by domain or by a fraction of its training rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash
from numpy.typing import NDArray

from rlkd.data.splitting import check_seed
from rlkd.data.subset import keep_rows
from rlkd.data.task import SPLITS, Table, Task
from rlkd.errors import ConfigError, TaskError, unknown_name


@dataclass(frozen=True)
class TaskCollection:
    """Tasks with names of their own; every task keeps its label space.

    Args:
        tasks: One task or more, all texts, all with the same splits.

    Raises:
        TaskError: There is none, two have one name, or they do not go together.
    """

    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) < len(names):
            raise TaskError(
                f"a collection needs tasks with names of their own, got {', '.join(names) or 'none'}; rename one"
            )
        for task in self.tasks:
            if task.table.texts is None:
                raise TaskError(
                    f"a collection holds tasks of texts, task {task.name!r} has {task.table.holds}; leave it out"
                )
            if set(task.splits) != set(self.tasks[0].splits):
                raise TaskError(
                    f"tasks of a collection need the same splits, {task.name!r} has {', '.join(task.splits)}, "
                    f"{names[0]!r} has {', '.join(self.tasks[0].splits)}; cut them alike"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the T tasks."""
        return tuple(task.name for task in self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __getitem__(self, name: str) -> Task:
        if name not in self.names:
            raise unknown_name("task", name, self.names)
        return self.tasks[self.names.index(name)]

    def only(self, name: str) -> "TaskCollection":
        """The collection of one of the tasks."""
        return TaskCollection((self[name],))

    def training_view(self) -> "TaskCollection":
        """Every task without its test rows, see :meth:`Task.training_view`."""
        return TaskCollection(tuple(task.training_view() for task in self.tasks))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names and data of all tasks."""
        described = repr([(task.name, task.fingerprint) for task in self.tasks])
        return xxhash.xxh3_128_hexdigest(described.encode())

    @cached_property
    def joint(self) -> Task:
        """All rows as one task, train rows of all tasks first; the domain of a row is its task.

        A label is a class of the row's own task, so it means nothing without the task; second texts are left out. It
        is what samples, batches and records go by; models read the tasks themselves.
        """
        tasks = self.tasks
        owners, rows = self._owners, self._rows
        texts = [task.table.texts or () for task in tasks]
        labels = np.empty(len(owners), dtype=np.int64)
        for index, task in enumerate(tasks):
            labels[owners == index] = task.table.labels[rows[owners == index]]
        splits, start = {}, 0
        for name in self._splits:
            size = sum(len(task.splits[name]) for task in tasks)
            splits[name] = np.arange(start, start + size)
            start += size
        return Task(
            name=" + ".join(self.names),
            label_names=tuple(f"{task.name}: {label}" for task in tasks for label in task.label_names),
            table=Table(
                labels=labels,
                domains=owners,
                texts=tuple(texts[owner][row] for owner, row in zip(owners.tolist(), rows.tolist(), strict=True)),
            ),
            splits=splits,
            domain_names=self.names,
        )

    @property
    def _splits(self) -> list[str]:
        return [name for name in SPLITS if name in self.tasks[0].splits]

    @cached_property
    def _owners(self) -> NDArray[np.int64]:
        """Index of the task of every joint row, shape (N,)."""
        sizes = [len(task.splits[name]) for name in self._splits for task in self.tasks]
        return np.repeat(np.tile(np.arange(len(self.tasks)), len(self._splits)), sizes)

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        """Instance id of every joint row in its own task, shape (N,)."""
        return np.concatenate([task.splits[name] for name in self._splits for task in self.tasks])

    def joint_ids(self, name: str, split: str) -> NDArray[np.int64]:
        """Ids in :attr:`joint` of one split of one task, in the order of that split."""
        ids = self.joint.splits[split]
        chosen: NDArray[np.int64] = ids[self._owners[ids] == self.names.index(self[name].name)]
        return chosen

    def locate(self, ids: NDArray[np.int64]) -> tuple[str, NDArray[np.int64]]:
        """The task of a batch and the instance ids there.

        Args:
            ids: Ids in :attr:`joint`, all of one task, shape (B,).

        Returns:
            Name of the task, and ids in it, shape (B,).

        Raises:
            TaskError: The ids are of several tasks.
        """
        owners = self._owners[ids]
        if not len(ids) or (owners != owners[0]).any():
            found = ", ".join(self.names[owner] for owner in np.unique(owners)) or "none"
            raise TaskError(f"a batch must hold instances of one task, got {found}; sample one task at a time")
        return self.names[owners[0]], self._rows[ids]


def keep_domains(task: Task, names: Sequence[str]) -> Task:
    """The task with the rows of some domains in every split; domains keep their names and ids.

    Raises:
        UnknownNameError: The task has no such domain.
        TaskError: A split would be left without rows.
    """
    kept = keep_rows(task, np.flatnonzero(np.isin(task.table.domains, _domain_ids(task, names))))
    for split, ids in kept.splits.items():
        if not len(ids):
            raise TaskError(
                f"split {split!r} of task {task.name!r} has no row of {', '.join(names) or 'no domain'}; keep others"
            )
    return kept


def leave_domain_out(task: Task, name: str) -> tuple[Task, Task]:
    """The rows of all other domains, for a teacher that never saw this one, and the rows of this domain alone."""
    alone = keep_domains(task, [name])
    return keep_domains(task, [other for other in task.domain_names if other != name]), alone


def keep_fraction(task: Task, fraction: float, *, domains: Sequence[str] | None = None, seed: int = 0) -> Task:
    """A fraction of the training rows, few-shot; the other splits stay.

    Rows are drawn from every label of every domain in proportion (the rows without a label are one more group); of
    each, one at least is kept. Of one seed a smaller fraction is part of a larger one.

    Args:
        task: The task.
        fraction: Share of the train rows that is kept, in (0, 1].
        domains: Cut only the rows of these; None: of all.
        seed: Of the draw.
    """
    check_seed(seed)
    if not 0 < fraction <= 1:
        raise ConfigError(f"a fraction of the training rows must lie in (0, 1], got {fraction}; 0.1 keeps a tenth")
    cut = range(max(1, len(task.domain_names))) if domains is None else _domain_ids(task, domains)
    train, table = task.splits["train"], task.table
    kept = []
    for domain in np.unique(table.domains[train]).tolist():
        for label in np.unique(table.labels[train]).tolist():
            group = train[(table.domains[train] == domain) & (table.labels[train] == label)]
            size = max(1, round(fraction * len(group))) if domain in cut else len(group)
            kept.append(np.random.default_rng([seed, domain, label + 1]).permutation(group)[:size])
    rest = np.arange(len(train), len(table))
    return keep_rows(task, np.concatenate([np.sort(np.concatenate(kept)), rest]))


def _domain_ids(task: Task, names: Sequence[str]) -> list[int]:
    for name in names:
        if name not in task.domain_names:
            raise unknown_name(f"domain of task {task.name!r}", name, task.domain_names)
    return [task.domain_names.index(name) for name in names]
