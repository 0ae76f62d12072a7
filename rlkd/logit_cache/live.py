"""Teachers that are there to be asked: anew for every batch, and what they know together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rlkd.data.task import Task
from rlkd.settings import CacheSettings
from rlkd.types import Knowledge, LogitsAlone, is_teacher

if TYPE_CHECKING:  # a deployed policy then loads neither transformers nor scikit-learn
    from rlkd.models.teachers import Teacher


class LiveTeachers(LogitsAlone):
    """Teachers asked anew for every batch; a :class:`~rlkd.types.LogitSource` for inputs that change.

    What is measured over many instances, or computed when a cache is built, is not known of them.
    """

    def __init__(self, teachers: Any, task: Task, *, max_length: int = CacheSettings.max_length) -> None:
        """Hold the teachers (see :func:`known_teachers`) and the task whose instances they are asked about."""
        teachers = known_teachers(teachers, task)
        self.teacher_names = tuple(teacher.name for teacher in teachers)
        self.knowledge = joint_knowledge(teachers, task)
        self._teachers, self._task, self._max_length = list(teachers), task, max_length

    def rows(self, ids: Tensor) -> Tensor:
        """Logits of the instances ``ids`` (B,), float32, shape (B, K, C)."""
        index = ids.numpy()
        return torch.stack(
            [t.logits(self._task, index, batch_size=len(index), max_length=self._max_length) for t in self._teachers],
            dim=1,
        )

    def head(self, rows: int) -> "LiveTeachers":
        """The same teachers over the training view of the task."""
        view = self._task if len(self._task.table) == rows else self._task.training_view()
        return LiveTeachers(self._teachers, view, max_length=self._max_length)


def known_teachers(teachers: Any, task: Task) -> list["Teacher"]:
    """The teachers themselves, or what :func:`rlkd.models.teacher_files.load_teachers` makes of paths and models."""
    if isinstance(teachers, list | tuple) and all(map(is_teacher, teachers)):
        return list(teachers)
    from rlkd.models import load_teachers  # loads transformers: only where there are models

    return load_teachers(teachers, task)


def joint_knowledge(teachers: Sequence["Teacher"], task: Task) -> Knowledge | None:
    """Who knows which class or domain, or None unless every teacher says so in the same terms."""
    kinds = {teacher.knows_by for teacher in teachers}
    if len(kinds) != 1 or None in kinds:
        return None
    by = kinds.pop()
    groups = task.label_names if by == "class" else task.domain_names
    matrix = np.array([[group in (teacher.knows or ()) for group in groups] for teacher in teachers], dtype=bool)
    return Knowledge(by=by, groups=tuple(groups), matrix=matrix)  # type: ignore[arg-type]
