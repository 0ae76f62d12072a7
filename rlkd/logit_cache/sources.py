"""The teachers' logits from disk, and the state that is made of what teachers say."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlkd.data.task import Task, scaled
from rlkd.errors import CacheError
from rlkd.features import usual_sureness
from rlkd.logit_cache.stacks import Logits, logits_of
from rlkd.types import Knowledge, LogitSource, State

SURENESS_ROWS = 4096
"""Rows that tell how sure a teacher usually is."""
THUMBNAIL = 8
"""Side of the small picture that stands for an image among what weightings observe, that of scikit-learn's digits."""


def read_state(task: Task, source: LogitSource, ids: Tensor) -> State:
    """The state of instances as far as task and teachers tell it; the student's part is added by who has a student.

    Args:
        task: Gives labels and domains.
        source: Gives teacher logits, affinity and embeddings.
        ids: Instance ids, shape (B,).
    """
    rows = ids.numpy()
    embeddings, known = source.embedding_rows(ids), source.reliability
    if embeddings is None:
        embeddings = _own_embeddings(task, rows)
    return State(
        teacher_logits=source.rows(ids),
        teacher_mask=source.mask_rows(ids),
        labels=torch.from_numpy(task.table.labels[rows]),
        domains=torch.from_numpy(task.table.domains[rows]) if task.domain_names else None,
        ids=ids,
        affinity=source.affinity_rows(ids),
        reliability=None if known is None else known.expand(len(ids), -1, -1),
        sureness=source.sureness_rows(ids),
        embeddings=embeddings,
    )


def answered_ids(source: LogitSource, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the instances ``ids`` (B,) that at least one teacher answered about; of a cache without gaps all."""
    mask = source.mask_rows(torch.from_numpy(ids))
    return ids if mask is None else ids[mask.any(1).numpy()]


def embedding_size(task: Task, source: LogitSource) -> int:
    """Length D of the embeddings that :func:`read_state` gives: those of the source, else of vectors and images."""
    if source.embedding_size:
        return source.embedding_size
    own = _own_embeddings(task, np.arange(min(1, len(task.table))))
    return 0 if own is None else own.shape[1]


def _own_embeddings(task: Task, rows: NDArray[np.int64]) -> Tensor | None:
    """What needs no encoder: vectors themselves, images by the means of 8 by 8 blocks, (B, 64 * channels)."""
    table = task.table
    if table.images is not None:
        pixels = torch.from_numpy(scaled(table.images[rows])).permute(0, 3, 1, 2)
        return nn.functional.adaptive_avg_pool2d(pixels, THUMBNAIL).flatten(1)
    return None if table.vectors is None else torch.from_numpy(table.vectors[rows])


class LogitCache:
    """Teacher logits of every instance of a task, read from disk; a :class:`~rlkd.types.LogitSource`.

    It may have gaps, see :mod:`rlkd.logit_cache.gaps`: then not every teacher answered about every instance.
    """

    def __init__(
        self,
        logits: Logits | Sequence[NDArray[np.floating[Any]]],
        teacher_names: Sequence[str],
        *,
        knowledge: Knowledge | None = None,
        affinity: NDArray[np.float32] | None = None,
        embeddings: NDArray[np.floating[Any]] | None = None,
        reliability: Tensor | None = None,
        sureness: Tensor | None = None,
        mask: NDArray[np.bool_] | None = None,
        identity: str = "",
        folder: Path | None = None,
    ) -> None:
        """Wrap arrays.

        Args:
            logits: K arrays of shape (N, C), in memory or memory-mapped, which are held once more in one array where
                that fits in memory; or what holds them, see :mod:`rlkd.logit_cache.stacks`.
            teacher_names: K names.
            knowledge: Who was trained on what.
            affinity: Shape (N, K).
            embeddings: Of the instances, shape (N, D), in memory or memory-mapped.
            reliability: Of the teachers, shape (K, 2), see :meth:`measured`.
            sureness: Of the teachers, shape (K,), likewise; None: measured on all instances when it is asked for.
            mask: Which teachers answered about which instance, shape (N, K); None: all about all. What stands elsewhere
                in ``logits`` is not read.
            identity: Changes with any byte of the cached files, and with the order of the teachers.
            folder: Where it lies; None: in memory.
        """
        self.identity, self.folder = identity, folder
        self.teacher_names = tuple(teacher_names)
        self.knowledge = knowledge
        self.reliability, self._sureness = reliability, sureness
        self._logits: Logits = logits if isinstance(logits, Logits) else logits_of(logits)
        self._affinity = None if affinity is None else torch.from_numpy(np.array(affinity, dtype=np.float32))
        self._embeddings = None if embeddings is None else np.asarray(embeddings)
        self._mask = None if mask is None else _checked_mask(mask, self._logits.shape[:2])

    def __len__(self) -> int:
        return self._logits.shape[0]

    @property
    def has_gaps(self) -> bool:
        """Whether it is known who answered about what: not everybody need have about everything."""
        return self._mask is not None

    @property
    def answers(self) -> int:
        """How many answers there are."""
        return len(self) * len(self.teacher_names) if self._mask is None else int(self._mask.sum())

    def mask_rows(self, ids: Tensor) -> Tensor | None:
        """Which teachers answered about the instances ``ids`` (B,), bool, shape (B, K); None: all about all."""
        return None if self._mask is None else self._mask.index_select(0, ids)

    @property
    def has_affinity(self) -> bool:
        """Whether affinities were computed when the cache was built."""
        return self._affinity is not None

    def rows(self, ids: Tensor) -> Tensor:
        """Logits of the instances ``ids`` (B,), float32, shape (B, K, C); zeros of who did not answer."""
        logits, mask = self._logits.rows(ids), self.mask_rows(ids)
        return logits if mask is None else torch.where(mask.unsqueeze(-1), logits, 0.0)

    def affinity_rows(self, ids: Tensor) -> Tensor | None:
        """Affinities of the instances ``ids`` (B,), shape (B, K), or None."""
        return None if self._affinity is None else self._affinity.index_select(0, ids)

    has_sureness = True

    @property
    def sureness(self) -> Tensor:
        """How sure each teacher usually is, shape (K,)."""
        if self._sureness is None:
            self._sureness = self._sureness_on(np.arange(len(self)))
        return self._sureness

    def _sureness_on(self, ids: NDArray[np.int64]) -> Tensor:
        ids = answered_ids(self, ids)
        if len(ids) == 0 and self.has_gaps:
            return torch.zeros(len(self.teacher_names))
        spaced = torch.from_numpy(np.sort(ids)[:: -(-len(ids) // SURENESS_ROWS)])
        return usual_sureness(self.rows(spaced), self.mask_rows(spaced))

    def sureness_rows(self, ids: Tensor) -> Tensor:
        """How sure each teacher usually is, the same for all instances ``ids`` (B,), shape (B, K)."""
        return self.sureness.expand(len(ids), -1)

    @property
    def embedding_size(self) -> int:
        """Length D of the embeddings that were kept when the cache was built; 0: none."""
        return 0 if self._embeddings is None else self._embeddings.shape[1]

    def embedding_rows(self, ids: Tensor) -> Tensor | None:
        """Embeddings of the instances ``ids`` (B,), float32, shape (B, D), or None."""
        return None if self._embeddings is None else torch.from_numpy(self._embeddings[ids.numpy()]).float()

    def take(self, ids: NDArray[np.int64]) -> "LogitCache":
        """The instances ``ids`` only, shape (M,); row m of the result is what row ``ids[m]`` was."""
        return LogitCache(
            self._logits.take(ids),
            self.teacher_names,
            knowledge=self.knowledge,
            affinity=None if self._affinity is None else self._affinity[torch.from_numpy(ids)].numpy(),
            embeddings=None if self._embeddings is None else self._embeddings[ids],
            reliability=self.reliability,
            sureness=self._sureness,
            mask=None if self._mask is None else self._mask.numpy()[ids],
            identity=self.identity,
        )

    def measured(self, task: Task) -> "LogitCache":
        """The same, knowing how far each teacher is to be trusted: from the labelled validation rows of ``task``.

        Log odds are those of the accuracy with one more row right and one more wrong. Without labels there is no
        reliability. How sure the teachers usually are is read from train rows, ``SURENESS_ROWS`` at most. Of a cache
        with gaps only what was answered counts: where nobody answered about a labelled validation row there is no
        reliability, and a teacher that did not has even odds.
        """
        ids = torch.from_numpy(answered_ids(self, task.labelled_ids("validation")))
        known = copy.copy(self)
        known.reliability, known._sureness = None, self._sureness_on(task.splits["train"])
        if len(ids):
            parts = [self.rows(some).double().softmax(-1).max(-1) for some in ids.split(SURENESS_ROWS)]
            confidence, answers = (torch.cat(part) for part in zip(*parts, strict=True))
            right = answers == torch.from_numpy(task.table.labels[ids.numpy()]).unsqueeze(1)
            mask = self.mask_rows(ids)
            known.reliability = _reliability(confidence, right, torch.ones_like(right) if mask is None else mask)
        return known

    def with_affinity(self, affinity: NDArray[np.float32]) -> "LogitCache":
        """The same with affinities of its instances, shape (N, K)."""
        known = copy.copy(self)
        known._affinity = torch.from_numpy(np.array(affinity, dtype=np.float32))
        return known

    def pick(self, names: Sequence[str]) -> "LogitCache":
        """Some of the teachers only, in this order; affinities are centred over them.

        Raises:
            CacheError: There is no such teacher.
        """
        missing = [name for name in names if name not in self.teacher_names]
        if missing:
            raise CacheError(
                f"expected teachers of this cache ({', '.join(self.teacher_names)}), got {missing[0]!r}; name others"
            )
        index = [self.teacher_names.index(name) for name in names]
        affinity = None if self._affinity is None else self._affinity[:, index].numpy()
        return LogitCache(
            self._logits.pick(index),
            names,
            knowledge=None if self.knowledge is None else replace(self.knowledge, matrix=self.knowledge.matrix[index]),
            affinity=None if affinity is None else affinity - affinity.mean(1, keepdims=True),
            embeddings=self._embeddings,
            reliability=None if self.reliability is None else self.reliability[index],
            sureness=None if self._sureness is None else self._sureness[index],
            mask=None if self._mask is None else self._mask.numpy()[:, index],
            identity=f"{self.identity}:{','.join(names)}",
        )

    def head(self, rows: int) -> "LogitCache":
        """The first ``rows`` instances only: with :meth:`Task.training_view` it keeps test logits out of reach."""
        return LogitCache(
            self._logits.head(rows),
            self.teacher_names,
            knowledge=self.knowledge,
            affinity=None if self._affinity is None else self._affinity[:rows].numpy(),
            embeddings=None if self._embeddings is None else self._embeddings[:rows],
            reliability=self.reliability,
            sureness=self._sureness,
            mask=None if self._mask is None else self._mask.numpy()[:rows],
        )


def _checked_mask(mask: NDArray[np.bool_], shape: tuple[int, int]) -> Tensor:
    if mask.shape != shape or mask.dtype != np.bool_:
        raise CacheError(
            f"expected who answered about what as bool {shape}, a row an instance and a column a teacher, got "
            f"{mask.dtype} {mask.shape}; pass answered[row, teacher]"
        )
    return torch.from_numpy(np.array(mask))


def _reliability(confidence: Tensor, right: Tensor, answered: Tensor) -> Tensor:
    """Log odds of being right, and overconfidence, (K, 2), on the rows that each has answered, (N, K)."""
    count, sure, hits = answered.sum(0), torch.where(answered, confidence, 0.0), (right & answered).sum(0)
    odds = (hits + 1) / (count - hits + 1)
    some = count.clamp_min(1)
    return torch.stack([odds.log(), sure.sum(0) / some - hits / some], dim=-1).float()
