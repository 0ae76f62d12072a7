"""What every cache is written with: the header of its manifest, and its end, after which it is the only one there."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkd.data.task import Task
from rlkd.logit_cache.reading import ANSWERED, ARRAYS, KEPT, MANIFEST
from rlkd.logit_cache.stacks import STACKS
from rlkd.records import write_json_atomic

if TYPE_CHECKING:  # a deployed policy then loads neither transformers nor scikit-learn
    from rlkd.models.teachers import Teacher


def header(
    version: int,
    task: Task,
    teachers: Sequence["Teacher"],
    files: Sequence[str],
    *,
    dtype: str,
    max_length: int,
    embedder: str | None = None,
) -> dict[str, Any]:
    """Everything that makes two caches the same; no temperature is in it.

    Args:
        version: Of the format.
        task: The task.
        teachers: The K teachers.
        files: Name of the array of each.
        dtype: Of the arrays.
        max_length: Tokens that teachers cut texts to.
        embedder: Name of what the affinity was made with; None: there is none.
    """
    entries = [
        {
            "name": teacher.name,
            "identity": teacher.identity,
            "knows": None if teacher.knows is None else sorted(teacher.knows),
            "knows_by": teacher.knows_by,
            "file": file,
        }
        for teacher, file in zip(teachers, files, strict=True)
    ]
    return {
        "format_version": version,
        "task": task.name,
        "data": task.fingerprint,
        "labels": list(task.label_names),
        "dtype": dtype,
        "max_length": max_length,
        "affinity": embedder is not None,
        "embedder": embedder,
        "teachers": entries,
    }


def finish(folder: Path, manifest: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Write the manifest of the arrays ``files``, name to hash, and delete what an earlier cache left."""
    write_json_atomic(folder / MANIFEST, {**manifest, "files": files})
    ours = {path for pattern in (ARRAYS, ANSWERED, STACKS) for path in folder.glob(pattern)}
    for stale in ours - {folder / name for name in files}:
        stale.unlink()
    for stale in folder.glob(KEPT):
        shutil.rmtree(stale)
