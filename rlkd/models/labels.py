"""Label spaces are aligned by name: a teacher's column order is never assumed."""

import re
from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.errors import TeacherError

MISSING = -1
FLOOR = 4.0
_GENERIC = re.compile(r"LABEL_(\d+)")
_NUMBER = re.compile(r"(?:LABEL_)?(\d+)")


def align_labels(
    teacher_labels: Sequence[str], task_labels: Sequence[str], *, teacher: str, may_lack: Collection[str] = ()
) -> NDArray[np.int64]:
    """Find the teacher's column of every class of the task.

    Names are compared exactly, then without case. The generic names that transformers writes by default
    (``LABEL_0``, ...) and bare numbers say nothing about the order, so they are refused, unless the task's classes are
    numbers too and equally many.

    Args:
        teacher_labels: Names of the teacher's columns.
        task_labels: Names of the task's classes.
        teacher: The teacher's name, for errors.
        may_lack: Classes that the teacher may lack: all of a specialist's, or those that no train row has.

    Returns:
        Column indices, shape (C,); ``MISSING`` (-1) for a class that the teacher lacks.

    Raises:
        TeacherError: Generic, repeated or ambiguous names, classes that the task lacks, or missing classes.
    """
    for name in set(teacher_labels):
        if list(teacher_labels).count(name) > 1:
            raise TeacherError(
                f"expected one column per class, but teacher {teacher!r} names {name!r} twice; correct its id2label"
            )
    generic = not set(teacher_labels) <= set(task_labels) and are_generic(teacher_labels)
    numbers = set(teacher_labels).isdisjoint(task_labels) and all(map(_NUMBER.fullmatch, teacher_labels))
    if generic or numbers:
        return _by_number(teacher_labels, task_labels, teacher)
    columns = [_column(teacher_labels, task_labels, name, teacher) for name in task_labels]
    _check_complete(columns, teacher_labels, task_labels, teacher, may_lack)
    return np.array(columns, dtype=np.int64)


def aligned_logits(logits: Tensor, columns: NDArray[np.int64]) -> Tensor:
    """Reorder a teacher's logits to the task's classes.

    A class that the teacher never heard of gets the row's minimum - 4: below every class it knows, yet with
    finite divergences, so one specialist cannot veto a class that all others vote for.

    Args:
        logits: Shape (B, C_teacher).
        columns: From :func:`align_labels`, shape (C,).

    Returns:
        Shape (B, C).
    """
    index = torch.from_numpy(columns).to(logits.device)
    aligned = logits.index_select(1, index.clamp(min=0))
    if (columns == MISSING).any():
        floor = logits.amin(dim=1, keepdim=True) - FLOOR
        aligned = torch.where(index == MISSING, floor, aligned)
    return aligned


def are_generic(names: Sequence[str]) -> bool:
    """Whether names are those that transformers writes by default, ``LABEL_0`` and so on, which say nothing."""
    return all(map(_GENERIC.fullmatch, names))


def _by_number(teacher_labels: Sequence[str], task_labels: Sequence[str], teacher: str) -> NDArray[np.int64]:
    numbers = [int(name.removeprefix("LABEL_")) for name in teacher_labels]
    wanted = [int(match[1]) if (match := _NUMBER.fullmatch(name)) else MISSING for name in task_labels]
    if sorted(numbers) != sorted(wanted):
        raise TeacherError(
            f"expected the classes {_shown(task_labels)}, but teacher {teacher!r} has only the generic names "
            f"{_shown(teacher_labels)}; set id2label in its config.json (model.config.id2label), or pass label_names, "
            f"as in SklearnTeacher({teacher!r}, model, label_names=[...])"
        )
    return np.array([numbers.index(number) for number in wanted], dtype=np.int64)


def _column(teacher_labels: Sequence[str], task_labels: Sequence[str], name: str, teacher: str) -> int:
    if name in teacher_labels:
        return teacher_labels.index(name)
    taken = set(task_labels)
    near = [
        index
        for index, label in enumerate(teacher_labels)
        if label.casefold() == name.casefold() and label not in taken
    ]
    if len(near) > 1:
        names = ", ".join(repr(teacher_labels[index]) for index in near)
        raise TeacherError(
            f"expected one column for class {name!r}, but teacher {teacher!r} has {names}; correct its id2label"
        )
    return near[0] if near else MISSING


def _check_complete(
    columns: Sequence[int],
    teacher_labels: Sequence[str],
    task_labels: Sequence[str],
    teacher: str,
    may_lack: Collection[str],
) -> None:
    used = [column for column in columns if column != MISSING]
    if len(set(used)) != len(used):
        raise TeacherError(
            f"expected one class per column of teacher {teacher!r}, but {_shown(task_labels)} differ by case "
            "only; give the teacher exact names"
        )
    extra = [name for index, name in enumerate(teacher_labels) if index not in used]
    if extra:
        raise TeacherError(
            f"expected the classes {_shown(task_labels)}, but teacher {teacher!r} also has {_shown(extra)}; "
            "rename its labels to the task's, or leave this teacher out"
        )
    absent = [name for name, column in zip(task_labels, columns, strict=True) if column == MISSING]
    missing = [name for name in absent if name not in may_lack]
    if missing:
        raise TeacherError(
            f"expected the classes {_shown(task_labels)}, but teacher {teacher!r} lacks {_shown(missing)}; "
            "declare it a specialist (knows_by 'class') or leave it out"
        )


def _shown(names: Sequence[str], limit: int = 8) -> str:
    rest = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + rest
