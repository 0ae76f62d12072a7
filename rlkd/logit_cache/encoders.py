"""Live encoders: teachers asked for their inner states too, which no logit cache holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.data.task import Task
from rlkd.logit_cache.sources import LiveTeachers
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


class LiveEncoders(LiveTeachers):
    """Encoders asked for logits and inner states, each instance once as long as its answer fits into memory.

    Inner states are rounded to half precision, kept or not, so that a run does not depend on the memory it is given.
    """

    def __init__(
        self, teachers: Sequence["HfTeacher"], task: Task, *, max_length: int = 128, keep_bytes: int = KEEP_BYTES
    ) -> None:
        """Hold K frozen encoders.

        Args:
            teachers: K networks with a tokenizer.
            task: Whose instances they are asked about.
            max_length: Tokens a text is cut to.
            keep_bytes: Inner states are kept in memory up to this many bytes; what comes after is asked again.
        """
        super().__init__(teachers, task, max_length=max_length)
        self._encoders = list(teachers)
        self._logits: list[dict[int, Tensor]] = [{} for _ in teachers]
        self._kept: list[dict[int, _Row]] = [{} for _ in teachers]
        self._wanted: list[Wanted] = [Wanted() for _ in teachers]
        self._free = keep_bytes

    @property
    def models(self) -> Sequence[Any]:
        """The K networks."""
        return [teacher.model for teacher in self._encoders]

    def tokens(self, ids: NDArray[np.int64]) -> Sequence[Mapping[str, Tensor]]:
        """What each teacher reads of the instances ``ids`` (B,)."""
        return [teacher.inputs(self._task, self._max_length).batch(ids) for teacher in self._encoders]

    def rows(self, ids: Tensor) -> Tensor:
        """Logits of the instances ``ids`` (B,), float32, shape (B, K, C)."""
        index = ids.tolist()
        if all(set(index) <= known.keys() for known in self._logits):
            return torch.stack([torch.stack([known[i] for i in index]) for known in self._logits], dim=1)
        return super().rows(ids)

    def inner_states(self, ids: Tensor, wanted: Sequence[Wanted]) -> tuple[InnerStates, ...]:
        """Inner states of the K teachers on the instances ``ids`` (B,), detached, on the CPU."""
        return tuple(self._states_of(k, ids.numpy(), wish) for k, wish in enumerate(wanted))

    def _states_of(self, k: int, ids: NDArray[np.int64], wanted: Wanted) -> InnerStates:
        if wanted | self._wanted[k] != self._wanted[k]:  # another run wants more than was kept so far
            self._free += sum(row.nbytes for row in self._kept[k].values())
            self._kept[k], self._wanted[k] = {}, wanted | self._wanted[k]
        rows = dict(self._kept[k])
        missing = np.array([i for i in dict.fromkeys(ids.tolist()) if i not in rows], dtype=np.int64)
        if len(missing):
            fresh = self._ask(k, missing)
            rows |= fresh
            for index, row in fresh.items():
                if row.nbytes <= self._free:
                    self._kept[k][index] = row
                    self._free -= row.nbytes
        mask = self._encoders[k].inputs(self._task, self._max_length).batch(ids)["attention_mask"].bool()
        return _padded([rows[i] for i in ids.tolist()], mask, wanted)

    def _ask(self, k: int, ids: NDArray[np.int64]) -> dict[int, _Row]:
        logits, states = self._encoders[k].inner_states(self._task, ids, self._wanted[k], max_length=self._max_length)
        rows = {}
        for place, index in enumerate(ids.tolist()):
            real = states.mask[place]
            self._logits[k][index] = logits[place]
            rows[index] = _Row(
                {j: value[place, real].half() for j, value in states.hidden.items()},
                {j: value[place][:, real][:, :, real].half() for j, value in states.attention.items()},
            )
        return rows


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
