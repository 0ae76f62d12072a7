"""Teachers that are not asked: what they say is looked up in a cache, or stands in the data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlkd.errors import CacheError, TeacherError
from rlkd.logit_cache import LogitCache, answered_ids
from rlkd.logit_cache.held import held_states
from rlkd.trainer.batch_teachers import Pick, Rows, value_of
from rlkd.types import State
from rlkd.weighting.base import BaseWeighting
from rlkd.weighting.by_row import once_a_row
from rlkd.weighting.shipped import evenly


class CachedTeachers:
    """Teachers whose answers lie in a cache, found by a column of ids: :class:`~rlkd.trainer.BatchTeachers`."""

    def __init__(self, cache: LogitCache, id_column: str, device: torch.device) -> None:
        """Hold the cache, whose rows are numbered as in ``id_column``, and where it fits on the students' device."""
        self._cache, self._id_column = cache, id_column
        self._classes = cache.rows(torch.zeros(1, dtype=torch.int64)).shape[-1]
        self._held = held_states(self._read, len(cache), device)
        self.names, self.columns = cache.teacher_names, (id_column,)

    @property
    def gives(self) -> frozenset[str]:
        """Ids, how sure teachers usually are, and what else the cache keeps."""
        cache = self._cache
        known = cache.reliability is not None
        more = {"affinity": cache.has_affinity, "embeddings": cache.embedding_size, "reliability": known}
        return frozenset({"ids", "sureness", *(name for name, there in more.items() if there)})

    def carry(self, rows: Rows, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """The ids of these rows."""
        values = [row[self._id_column] if self._id_column in row else value_of(row, self._id_column) for row in rows]
        ids = _whole_numbers(values)
        numbers = ids.tolist()
        if ids.is_floating_point() or (numbers and not 0 <= min(numbers) <= max(numbers) < len(self._cache)):
            raise CacheError(
                f"expected numbers of rows of the cache, 0 to {len(self._cache) - 1}, in column {self._id_column!r}, "
                f"got {ids.min().item()} to {ids.max().item()}; name the column that holds them"
            )
        return {"ids": ids}

    def state(self, inputs: Mapping[str, Tensor], carried: Mapping[str, Any], pick: Pick) -> State:
        """Look the rows up."""
        return self._read(carried["ids"].cpu()) if self._held is None else self._held.of(carried["ids"])

    @property
    def rows(self) -> int:
        """Of the cache."""
        return len(self._cache)

    def some_rows(self) -> State:
        """Rows of the cache about which somebody answered, evenly spaced."""
        return self._read(torch.from_numpy(evenly(answered_ids(self._cache, np.arange(self.rows)))))

    def weighed(self, weighting: BaseWeighting) -> BaseWeighting:
        """The weighting, asked about every row beforehand if the cache tells it all that it requires."""
        known = weighting.requires <= self.gives
        if not known or self._cache.mask_rows(torch.zeros(1, dtype=torch.int64)) is not None:
            return weighting  # where somebody is absent, the labels of the batch decide what may teach
        return once_a_row(weighting, self._cache, np.arange(self.rows), self._read)

    def _read(self, ids: Tensor) -> State:
        known = self._cache.reliability
        return State(
            teacher_logits=self._cache.rows(ids),
            teacher_mask=self._cache.mask_rows(ids),
            ids=ids,
            affinity=self._cache.affinity_rows(ids),
            reliability=None if known is None else known.expand(len(ids), -1, -1),
            sureness=self._cache.sureness_rows(ids) if self._classes > 1 else None,
            embeddings=self._cache.embedding_rows(ids),
        )


class GivenLogits:
    """Teachers whose logits stand in a column of the data, (K, C) a row: :class:`~rlkd.trainer.BatchTeachers`."""

    gives: frozenset[str] = frozenset()

    def __init__(self, column: str, names: Sequence[str], classes: int) -> None:
        """Name the column, the K teachers and the number of classes."""
        self.names, self.columns, self._classes = tuple(names), (column,), classes

    def carry(self, rows: Rows, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """The logits of these rows, (B, K, C)."""
        logits = torch.as_tensor(np.array([value_of(row, self.columns[0]) for row in rows], dtype=np.float32))
        if logits.shape[1:] != (len(self.names), self._classes):
            raise TeacherError(
                f"expected {len(self.names)} teachers by {self._classes} classes in column {self.columns[0]!r}, got "
                f"{tuple(logits.shape[1:])}"
            )
        return {"logits": logits}

    def state(self, inputs: Mapping[str, Tensor], carried: Mapping[str, Any], pick: Pick) -> State:
        """The logits that came with the batch."""
        return State(teacher_logits=carried["logits"])


def _whole_numbers(values: list[Any]) -> Tensor:
    """Values (B,) of a column as one tensor; one of tensors is read as they are, which takes a tenth of the time."""
    if all(isinstance(value, Tensor) for value in values):
        ids = torch.stack(values)
        if ids.dtype == torch.int64 and ids.ndim == 1:
            return ids
    return torch.tensor(values)
