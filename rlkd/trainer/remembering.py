"""Teachers of a trainer that are asked about a row once, in this run or an earlier one."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import TrainerCallback

from rlkd.errors import TeacherError
from rlkd.kinds import Kind
from rlkd.logit_cache.answers import AnswerStore, Keys
from rlkd.trainer.batch_teachers import AskedTeachers, AskingTeacher, Rows
from rlkd.trainer.row_keys import keys_of_fields, keys_of_texts, token_mask
from rlkd.types import ONCE

log = logging.getLogger(__name__)

AUTO_CACHE = "auto"
FEWEST_FOUND = 0.05
"""Share of the rows of an epoch that were met before: where it is lower, rows are others whenever they are read."""


def store_folder(cache: str | Path) -> Path:
    """Where answers are kept: the folder that is named, or of ``auto`` one that all runs of a user share.

    That is ``answers`` in ``$RLKD_CACHE``, or in ``~/.cache/rlkd``.
    """
    if cache != AUTO_CACHE:
        return Path(cache)
    return Path(os.environ.get("RLKD_CACHE") or "~/.cache/rlkd").expanduser() / "answers"


class RememberedTeachers(AskedTeachers):
    """Teachers that are asked about rows that their stores do not know: :class:`~rlkd.trainer.BatchTeachers`.

    A row is what a teacher reads of it, after the data collator and without padding, so that another order, another
    batch and another run find it. Its answer is float32 and the one that was given in the batch in which the row came
    first: among other rows, with more padding, a network would have rounded differently.
    """

    def __init__(
        self,
        teachers: Sequence[AskingTeacher],
        text_columns: Sequence[str],
        classes: int,
        folder: Path,
        kind: type[Kind] = Kind,
    ) -> None:
        """Open the stores.

        Args:
            teachers: See :class:`AskedTeachers`.
            text_columns: Likewise.
            classes: Likewise.
            folder: Of all stores; each teacher's is named by its identity.
            kind: See :class:`AskedTeachers`.

        Raises:
            TeacherError: Of a teacher it cannot be told whether it is another one.
            CacheError: A store is damaged.
        """
        super().__init__(teachers, text_columns, classes, kind)
        self._folder = folder
        self._stores = {teacher.name: _opened(teacher, folder) for teacher in teachers}
        self._seen = self._found = self._before = 0
        self._may_warn = True

    def carry(self, rows: Rows, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Keys of these rows for each teacher, and their texts if one of them reads those."""
        texts = self.texts(rows)
        return {"texts": texts, "keys": self._keys(inputs, texts)}

    def epoch_ended(self) -> None:
        """Warn, once, if what an epoch read was new although others had gone before."""
        if self._may_warn and self._found < FEWEST_FOUND * min(self._seen, self._before):
            log.warning(
                "teachers were asked about %d of the %d rows of an epoch that was not the first: rows are others "
                "whenever they are read, as where they are augmented at random; their answers fill %s and are of no "
                "use, leave the cache out",
                self._seen - self._found,
                self._seen,
                self._folder,
            )
            self._may_warn = False
        self._before += self._seen
        self._seen = self._found = 0

    def _keys(self, inputs: Mapping[str, Tensor], texts: Sequence[Any]) -> dict[str, Keys]:
        """Keys by teacher, made once for those that read the same."""
        made: dict[tuple[str, ...] | None, Keys] = {}
        keys = {}
        for teacher in self._teachers:
            fields = {} if teacher.reads_text else teacher.reads(inputs)
            read = None if teacher.reads_text else tuple(sorted(fields))
            if read not in made:
                made[read] = keys_of_texts(texts) if read is None else keys_of_fields(fields)
            keys[teacher.name] = made[read]
        return keys

    def _said(self, teacher: AskingTeacher, inputs: Mapping[str, Tensor], carried: Mapping[str, Any]) -> Tensor:
        """What a teacher says of a batch: read where it is known, else asked."""
        store = self._stores[teacher.name]
        keys = (carried["keys"] if carried else self._keys(inputs, ()))[teacher.name]  # a loader of one's own has none
        places = store.find(keys)
        new = np.flatnonzero(places < 0)
        self._seen += len(keys)
        self._found += len(keys) - len(new)
        if len(new):
            rows = new[np.sort(np.unique(keys[new], axis=0, return_index=True)[1])]
            if teacher.reads_text:
                read = teacher.carry([carried["texts"][row] for row in rows])
            else:
                read = {name: value[torch.from_numpy(rows)] for name, value in teacher.reads(inputs).items()}
            self._ask(teacher, read, keys[rows])
            places = store.find(keys)
        logits = torch.from_numpy(store.answers(places))
        if not store.of_tokens:
            return logits
        mask = token_mask(teacher.reads(inputs)).to(logits.device)
        laid_out = logits.new_zeros(*mask.shape, logits.shape[-1])
        laid_out[mask] = logits
        return laid_out

    def _ask(self, teacher: AskingTeacher, read: Any, keys: Keys) -> None:
        """Ask a teacher about different rows, and keep its answers."""
        logits = teacher.logits(read).cpu()
        counts: NDArray[np.int64] = np.ones(len(keys), dtype=np.int64)
        of_tokens = logits.ndim == 3 and not teacher.reads_text
        if of_tokens:
            mask = token_mask(read).cpu()
            logits, counts = logits[mask], mask.sum(1).numpy()
        elif logits.ndim == 1:
            logits = logits.unsqueeze(-1)
        self._check_answer(teacher, logits)
        if len(logits) != counts.sum() or not logits.isfinite().all():
            raise TeacherError(
                f"expected finite logits of {counts.sum()} rows from teacher {teacher.name!r}, got those of "
                f"{len(logits)}, NaN or infinity among them"
            )
        self._stores[teacher.name].add(keys, logits.numpy(), counts, of_tokens=of_tokens)


class EpochsOf(TrainerCallback):
    """Tells teachers when an epoch has ended."""

    def __init__(self, teachers: RememberedTeachers) -> None:
        """Hold them."""
        self._teachers = teachers

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Tell them."""
        self._teachers.epoch_ended()


def _opened(teacher: AskingTeacher, folder: Path) -> AnswerStore:
    identity = teacher.identity
    if identity.startswith(ONCE):
        raise TeacherError(
            f"answers are kept by what a teacher is, and of teacher {teacher.name!r} that cannot be told; give the "
            "function an attribute identity (a name and a version), or leave the cache out"
        )
    return AnswerStore(folder / identity.replace(":", "-"), identity)
