"""Live encoders: teachers asked for their inner states too, which no logit cache holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.data.task import Task
from rlkd.logit_cache.live import LiveTeachers
from rlkd.settings import CacheSettings
from rlkd.types import InnerStates, Wanted

if TYPE_CHECKING:
    from rlkd.models.teachers import HfTeacher

KEEP_BYTES = 2 * 2**30


@dataclass(frozen=True)
class _Row:
    """One instance without padding, in half precision."""

    hidden: dict[int, Tensor]
    """State to (L, H)."""
    attention: dict[int, Tensor]
    """Layer to (heads, L, L)."""

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.hidden.values(), *self.attention.values()))


@dataclass
class _Budget:
    free: int


class _Store:
    """What one encoder has answered so far."""

    def __init__(self, teacher: "HfTeacher", task: Task, max_length: int, budget: _Budget) -> None:
        self.teacher, self.logits = teacher, dict[int, Tensor]()
        self._task, self._max_length, self._budget = task, max_length, budget
        self._wanted, self._rows = Wanted(), dict[int, _Row]()

    def batch(self, ids: NDArray[np.int64]) -> Mapping[str, Tensor]:
        return self.teacher.inputs(self._task, self._max_length).batch(ids)

    def states(self, ids: NDArray[np.int64], wanted: Wanted) -> InnerStates:
        if wanted | self._wanted != self._wanted:  # another run wants more than was kept so far
            self._budget.free += sum(row.nbytes for row in self._rows.values())
            self._rows, self._wanted = {}, wanted | self._wanted
        missing = np.array([i for i in dict.fromkeys(ids.tolist()) if i not in self._rows], dtype=np.int64)
        fresh = self._ask(missing) if len(missing) else {}
        for index, row in fresh.items():
            if row.nbytes <= self._budget.free:
                self._rows[index] = row
                self._budget.free -= row.nbytes
        rows = [fresh[i] if i in fresh else self._rows[i] for i in ids.tolist()]
        return _padded(rows, self.batch(ids)["attention_mask"].bool(), wanted)

    def _ask(self, ids: NDArray[np.int64]) -> dict[int, _Row]:
        logits, states = self.teacher.inner_states(self._task, ids, self._wanted, max_length=self._max_length)
        rows = {}
        for place, index in enumerate(ids.tolist()):
            real = states.mask[place]
            self.logits[index] = logits[place]
            rows[index] = _Row(
                {j: value[place, real].half() for j, value in states.hidden.items()},
                {j: value[place][:, real][:, :, real].half() for j, value in states.attention.items()},
            )
        return rows


class LiveEncoders(LiveTeachers):
    """Encoders asked for logits and inner states, each instance once as long as its answer fits into memory.

    Inner states are rounded to half precision, kept or not, so that a run does not depend on the memory it is given.
    """

    def __init__(
        self,
        teachers: Sequence["HfTeacher"],
        task: Task,
        *,
        max_length: int = CacheSettings.max_length,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        """Hold K frozen encoders.

        Args:
            teachers: K networks with a tokenizer.
            task: Whose instances they are asked about.
            max_length: Tokens a text is cut to.
            keep_bytes: Inner states are kept in memory up to this many bytes; what comes after is asked again.
        """
        super().__init__(teachers, task, max_length=max_length)
        budget = _Budget(keep_bytes)
        self._stores = [_Store(teacher, task, max_length, budget) for teacher in teachers]

    def only(self, names: Sequence[str]) -> "LiveEncoders":
        """Some of the encoders, in this order; they share what they have answered."""
        index = [self.teacher_names.index(name) for name in names]
        fewer = LiveEncoders([self._stores[k].teacher for k in index], self._task, max_length=self._max_length)
        fewer._stores = [self._stores[k] for k in index]
        return fewer

    @property
    def encoders(self) -> Sequence["HfTeacher"]:
        """The K teachers."""
        return [store.teacher for store in self._stores]

    def tokens(self, ids: NDArray[np.int64]) -> Sequence[Mapping[str, Tensor]]:
        """What each teacher reads of the instances ``ids`` (B,)."""
        return [store.batch(ids) for store in self._stores]

    def rows(self, ids: Tensor) -> Tensor:
        """Logits of the instances ``ids`` (B,), float32, shape (B, K, C)."""
        index = ids.tolist()
        if all(set(index) <= store.logits.keys() for store in self._stores):
            return torch.stack([torch.stack([store.logits[i] for i in index]) for store in self._stores], dim=1)
        return super().rows(ids)

    def inner_states(self, ids: Tensor, wanted: Sequence[Wanted]) -> tuple[InnerStates, ...]:
        """Inner states of the K teachers on the instances ``ids`` (B,), detached, on the CPU."""
        return tuple(store.states(ids.numpy(), wish) for store, wish in zip(self._stores, wanted, strict=True))


def _padded(rows: Sequence[_Row], mask: Tensor, wanted: Wanted) -> InnerStates:
    """Rows put behind each other, each where its tokens are."""
    spans = [(int(real.nonzero()[0]), int(real.nonzero()[-1]) + 1) for real in mask]
    hidden, attention = {}, {}
    for j in wanted.hidden:
        hidden[j] = torch.zeros(*mask.shape, rows[0].hidden[j].shape[-1])
        for place, (row, (start, end)) in enumerate(zip(rows, spans, strict=True)):
            hidden[j][place, start:end] = row.hidden[j]
    for j in wanted.attention:
        attention[j] = torch.zeros(len(rows), rows[0].attention[j].shape[0], mask.shape[1], mask.shape[1])
        for place, (row, (start, end)) in enumerate(zip(rows, spans, strict=True)):
            attention[j][place, :, start:end, start:end] = row.attention[j]
    return InnerStates(mask=mask, hidden=hidden, attention=attention)
