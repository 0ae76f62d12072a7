"""Teachers of a trainer that are asked about a row once, in this run or an earlier one."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlkd.errors import CacheError, TeacherError
from rlkd.kinds import Kind
from rlkd.logit_cache.answers import AnswerStore, Fingerprints, fingerprint
from rlkd.trainer.batch_teachers import AskedTeachers, AskingTeacher, Rows, texts_of
from rlkd.types import ONCE

AUTO_CACHE = "auto"
OF_INPUTS, OF_TEXTS, TEXTS = "fingerprints_of_inputs", "fingerprints_of_texts", "texts"


def store_folder(cache: str | Path) -> Path:
    """Where answers are kept: the folder that is named, or of ``auto`` one that all runs of a user share."""
    if str(cache) != AUTO_CACHE:
        return Path(cache)
    return Path(os.environ.get("RLKD_CACHE") or "~/.cache/rlkd").expanduser() / "answers"


class RememberedTeachers(AskedTeachers):
    """Teachers that are asked about rows that their stores do not know: :class:`~rlkd.trainer.BatchTeachers`.

    A row is known by what a teacher reads of it, so that another order, another batch and another run find it; its
    answer is that of the batch that it was first asked in, where padding may have rounded it otherwise.
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
        self._stores = {teacher.name: self._opened(teacher, folder) for teacher in teachers}

    @staticmethod
    def _opened(teacher: AskingTeacher, folder: Path) -> AnswerStore:
        identity = teacher.identity
        if identity.startswith(ONCE):
            raise TeacherError(
                f"answers are kept by what a teacher is, and of teacher {teacher.name!r} that cannot be told; give the "
                "function an attribute identity (a name and a version), or leave the cache out"
            )
        return AnswerStore(folder / identity.replace(":", "-"), identity)

    def carry(self, rows: Rows) -> dict[str, Any]:
        """Fingerprints of what is read of these rows, and the texts that may have to be."""
        texts = [texts_of(row, self._text_columns) for row in rows] if self.columns else []
        inputs = [{name: value for name, value in row.items() if name not in self._text_columns} for row in rows]
        carried: dict[str, Any] = {OF_INPUTS: _tensor([fingerprint(row) for row in inputs])}
        if texts:
            carried |= {TEXTS: texts, OF_TEXTS: _tensor([fingerprint(text) for text in texts])}
        return carried

    def _said(self, teacher: AskingTeacher, inputs: Mapping[str, Tensor], carried: Mapping[str, Any]) -> Tensor:
        store = self._stores[teacher.name]
        keys: Fingerprints = carried[OF_TEXTS if teacher.reads_text else OF_INPUTS].cpu().numpy()
        unknown = np.flatnonzero(~store.known(keys))
        if len(unknown):
            store.add(keys[unknown], self._asked(teacher, inputs, carried, unknown))
        return store.get(keys)

    def _asked(
        self, teacher: AskingTeacher, inputs: Mapping[str, Tensor], carried: Mapping[str, Any], rows: Any
    ) -> Tensor:
        if teacher.reads_text:
            logits = teacher.logits(teacher.carry([carried[TEXTS][row] for row in rows]))
        else:
            device = next(iter(inputs.values())).device
            index = torch.from_numpy(rows).to(device)
            logits = teacher.logits({name: value.index_select(0, index) for name, value in inputs.items()})
        logits = logits.unsqueeze(-1) if logits.ndim == 1 else logits  # of numbers
        if logits.ndim != 2:
            raise CacheError(
                f"answers are kept of instances, (B, C), teacher {teacher.name!r} gives {tuple(logits.shape)}, of "
                "tokens; leave the cache out"
            )
        return logits


def _tensor(keys: Sequence[tuple[int, int]]) -> Tensor:
    return torch.tensor(keys, dtype=torch.int64)
