"""Caches with gaps: what was asked, where not everybody was asked about everything.

Such a cache is one like any other, and a bool (N, K) beside its arrays tells who answered about what: a state then says
which teachers are there (``teacher_mask``), and who did not answer gets no weight. An instance that nobody answered
about is taught by its label; without one nothing teaches it, and :func:`taught_rows` leaves it out.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from rlkd.data.subset import keep_rows
from rlkd.data.task import UNLABELLED, Task
from rlkd.errors import CacheError, TeacherError
from rlkd.logit_cache.reading import ANSWERED, ARRAYS, GAPPED_VERSION, MANIFEST, has_gaps, load_cache, read_manifest
from rlkd.logit_cache.sources import LogitCache, answered_ids
from rlkd.logit_cache.stacks import LOCK
from rlkd.logit_cache.writing import finish, header
from rlkd.records import file_hash, held, write_array_atomic
from rlkd.records.files import unfinished

if TYPE_CHECKING:  # a deployed policy then loads neither transformers nor scikit-learn
    from rlkd.models.teachers import Teacher

log = logging.getLogger(__name__)


def write_gapped_cache(
    logits: NDArray[np.floating[Any]],
    answered: NDArray[np.bool_],
    task: Task,
    teachers: Sequence["Teacher"],
    directory: str | Path,
    *,
    max_length: int,
) -> LogitCache:
    """Write the answers that there are, in place of those that were there before; a kill leaves these or those.

    Args:
        logits: Of the N instances of the task by the K teachers, shape (N, K, C); what stands where nobody answered is
            not kept.
        answered: Who answered about what, shape (N, K).
        task: The task.
        teachers: Whose answers they are; of each its name, its identity and what it knows are written down.
        directory: Where the cache lies or will lie; what else is there stays.
        max_length: Tokens that teachers cut texts to.

    Returns:
        The cache, as :func:`~rlkd.logit_cache.load_cache` opens it.

    Raises:
        CacheError: Shapes do not fit, or the folder holds a cache without gaps, or one of something else.
        TeacherError: An answer is not finite.
    """
    folder, shape = Path(directory), (len(task.table), len(teachers), task.num_classes)
    if logits.shape != shape or answered.shape != shape[:2] or answered.dtype != np.bool_:
        raise CacheError(
            f"expected logits {shape} and who answered, bool {shape[:2]}, got {logits.shape} and {answered.dtype} "
            f"{answered.shape}; pass a row an instance of the task and a column a teacher"
        )
    kept = np.where(answered[..., None], logits, 0).astype(np.float32)
    _check_finite(kept, teachers)
    check_place(folder, task, teachers)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / LOCK):
        files = [_written(folder, ARRAYS, kept[:, k]) for k in range(len(teachers))]
        names = [_written(folder, ANSWERED, answered), *files]
        made = header(GAPPED_VERSION, task, teachers, files, dtype="float32", max_length=max_length)
        finish(folder, {**made, "answered": names[0]}, {name: file_hash(folder / name) for name in names})
        for name in (ARRAYS, ANSWERED, MANIFEST):
            for left_by_a_kill in unfinished(folder, name):
                left_by_a_kill.unlink()
    return load_cache(folder, task, teachers=teachers)


def check_place(folder: Path, task: Task, teachers: Sequence["Teacher"]) -> None:
    """Refuse a folder in which another cache lies, before anybody is asked.

    Raises:
        CacheError: Says which.
    """
    if not (folder / MANIFEST).exists():
        return
    there = read_manifest(folder)
    if not has_gaps(there):
        raise CacheError(
            f"{folder} holds a cache in which every teacher answered about everything: nothing is left to ask; use it, "
            "or choose another folder"
        )
    if there["data"] != task.fingerprint or [entry["identity"] for entry in there["teachers"]] != [
        teacher.identity for teacher in teachers
    ]:
        names = ", ".join(entry["name"] for entry in there["teachers"])
        raise CacheError(
            f"{folder} holds answers of {names} about task {there['task']!r}, asked for were "
            f"{', '.join(teacher.name for teacher in teachers)} about {task.name!r}: they, or the data, are not the "
            "same; name those, in the same order, or choose another folder"
        )


def _check_finite(logits: NDArray[np.float32], teachers: Sequence["Teacher"]) -> None:
    bad = np.asarray(~np.isfinite(logits).all(-1))
    if bad.any():
        row, k = np.argwhere(bad)[0]
        raise TeacherError(
            f"expected finite logits from teacher {teachers[k].name!r}, got NaN, infinity or what is too large for "
            f"float32 in {int(bad[:, k].sum())} of {len(bad)} rows, instance {row} first; mend the teacher"
        )


def _written(folder: Path, pattern: str, array: NDArray[Any]) -> str:
    """Write an array under the name of its content, unless it is there; its name."""
    content = np.ascontiguousarray(array)
    key = xxhash.xxh3_64(repr((array.dtype.str, array.shape)).encode())
    key.update(content.tobytes())
    path = folder / pattern.replace("*", f"asked-{key.hexdigest()}")
    write_array_atomic(path, content)
    return path.name


def taught_rows(task: Task, cache: LogitCache) -> tuple[Task, LogitCache]:
    """Leave the train rows out that nothing teaches: nobody answered about them, and they have no label.

    A warning says how many those are, and how many are taught by their label alone.

    Args:
        task: The task.
        cache: Of its rows.

    Returns:
        Both without those rows; both as they are where there are none.

    Raises:
        CacheError: No train row is left.
    """
    train = task.splits["train"]
    if not cache.has_gaps:
        return task, cache
    told = np.isin(train, answered_ids(cache, train))
    labelled = task.table.labels[train] != UNLABELLED
    kept = told | labelled
    if not kept.any():
        raise CacheError(
            f"expected answers about train rows of task {task.name!r}, or labels, got none of either; ask about some, "
            "with a larger budget"
        )
    out, alone = int((~kept).sum()), int((labelled & ~told).sum())
    if out or alone:
        log.warning(
            "of %d train rows %d have answers of teachers; %d without one are taught by their label, %d without one "
            "and without a label are left out",
            len(train),
            int(told.sum()),
            alone,
            out,
        )
    if not out:
        return task, cache
    ids = np.concatenate([train[kept], np.arange(len(train), len(task.table))])
    return keep_rows(task, ids), cache.take(ids)


def answered_by_all(task: Task, cache: LogitCache) -> tuple[Task, LogitCache]:
    """The rows that every teacher answered about, on which teachers can be compared; both as they are without gaps."""
    if not cache.has_gaps:
        return task, cache
    mask = cache.mask_rows(torch.arange(len(cache)))
    assert mask is not None
    ids = np.flatnonzero(mask.all(1).numpy())
    return keep_rows(task, ids), cache.take(ids)


def refuse_gaps(cache: Any, what: str) -> None:
    """Refuse a cache with gaps where every answer is needed.

    Args:
        cache: The teachers' logits, from anywhere.
        what: Names what needs them.

    Raises:
        CacheError: The cache has gaps.
    """
    if getattr(cache, "has_gaps", False):
        raise CacheError(
            f"{what} needs every teacher's answer about every row, got a cache with gaps; build one with rlkd cache"
        )
