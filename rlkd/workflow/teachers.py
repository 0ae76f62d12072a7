"""Teachers: training them, asking them once, and what room they leave."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from rlkd.data import Task, load_task
from rlkd.devices import check_device, own_device
from rlkd.errors import TaskError, TeacherError, unknown_name
from rlkd.headroom import headroom_rows
from rlkd.logit_cache import LogitCache, answered_by_all, answered_ids, build_cache, load_cache
from rlkd.metrics import classification_metrics, disagreement, headroom
from rlkd.models import load_teachers, train_teachers
from rlkd.models.embedding import TextEmbedder
from rlkd.models.teacher_settings import teacher_settings
from rlkd.ranks import is_first
from rlkd.records import check_launcher, check_output_dir, read_object
from rlkd.report import MIXTURE
from rlkd.settings import CacheCommand, CacheSettings, HeadroomCommand, TrainTeachersCommand
from rlkd.stats import expected_calibration_error
from rlkd.workflow.opening import open_run, tell_if_alone

Rows = list[dict[str, Any]]

TINY = 1e-30
"""Keeps the logarithm of a probability finite."""


def teacher_paths(paths: Sequence[str]) -> list[str]:
    """Teacher folders in order; a folder made by ``train-teachers`` stands for all teachers in it."""
    found: list[str] = []
    for path in paths:
        inside = sorted(Path(path).glob("*/teacher.json"), key=lambda p: (_index(p.parent.name), p.parent.name))
        asked = _teachers_asked_for(Path(path))
        if len(inside) < asked:
            raise TeacherError(
                f"expected {asked} finished teachers in {path}, got {len(inside)}: their training was interrupted; "
                "continue it with rlkd train-teachers --resume, or name the finished ones"
            )
        found += [str(p.parent) for p in inside] or [path]
    if not found:
        raise TeacherError("expected the folders of at least one teacher, got none (K = 0); pass --teachers")
    return found


def _teachers_asked_for(folder: Path) -> int:
    """How many teachers a run of ``train-teachers`` makes; 0 for any other folder."""
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    kinds = config.get("kinds") if config.get("command") == "train-teachers" else None
    return len(kinds) if isinstance(kinds, list) else 0


def _index(name: str) -> int:
    number = name.rpartition("-")[2]
    return int(number) if number.isdigit() else 0


def run_train_teachers(
    task_options: Mapping[str, Any],
    kinds: Sequence[str],
    output_dir: str,
    *,
    device: str | None = None,
    resume: bool = TrainTeachersCommand.resume,
    overwrite: bool = TrainTeachersCommand.overwrite,
    progress: bool = False,
    **settings: Any,
) -> Rows:
    """Train a set of teachers; one row a teacher."""
    check_output_dir(output_dir, resume=resume, overwrite=overwrite)
    check_device(device)
    task = load_task(**task_options)
    plans = teacher_settings(task, kinds=kinds, **settings)
    config = {"command": "train-teachers", "task": dict(task_options), "data": task.fingerprint, "kinds": list(kinds)}
    run = open_run(output_dir, config | settings, resume=resume, overwrite=overwrite)
    paths = train_teachers(task, run.path, kinds=kinds, device=device, progress=progress, **settings)
    teachers = load_teachers([str(path) for path in paths], task, device=device)
    return [_teacher_row(teacher, task, plan.max_length) for teacher, plan in zip(teachers, plans, strict=True)]


def _teacher_row(teacher: Any, task: Task, max_length: int) -> dict[str, Any]:
    ids = task.labelled_ids("validation")
    logits = teacher.logits(task, ids, batch_size=64, max_length=max_length).numpy()
    scores = classification_metrics(logits, task.table.labels[ids])
    knows = "all" if teacher.knows is None else f"{len(teacher.knows)} of {teacher.knows_by}"
    return {"teacher": teacher.name, "knows": knows, "validation_accuracy": scores["accuracy"], "ece": scores["ece"]}


def run_cache(
    task_options: Mapping[str, Any],
    teachers: Sequence[str],
    output_dir: str,
    *,
    batch_size: int = CacheSettings.batch_size,
    max_length: int = CacheSettings.max_length,
    dtype: str = CacheSettings.dtype,
    embedder: str | None = CacheCommand.embedder,
    overwrite: bool = CacheCommand.overwrite,
    progress: bool = False,
    device: str | None = None,
) -> Rows:
    """Build or open a logit cache; one row a teacher.

    Processes of a launcher each ask the teachers about other rows.
    """
    check_launcher()
    check_device(device)
    device = own_device(device)
    task = load_task(**task_options)
    loaded = load_teachers(teacher_paths(teachers), task, device=device)
    cache = build_cache(
        loaded,
        task,
        output_dir,
        batch_size=batch_size,
        max_length=max_length,
        dtype=dtype,
        embedder=None if embedder is None else TextEmbedder(embedder, max_length=max_length, device=device),
        overwrite=overwrite,
        progress=progress and is_first(),
    )
    return _teacher_scores(task, cache, "validation")


def _teacher_scores(task: Task, cache: LogitCache, split: str) -> Rows:
    """Scores of each teacher on the labelled rows that it answered about; without any, their number alone."""
    ids = torch.from_numpy(task.labelled_ids(split))
    logits, labels, mask = cache.rows(ids).numpy(), task.table.labels[ids.numpy()], cache.mask_rows(ids)
    answered = np.ones(logits.shape[:2], dtype=bool) if mask is None else mask.numpy()
    return [
        {"teacher": name, "split": split, **_scores(logits[answered[:, k], k], labels[answered[:, k]])}
        for k, name in enumerate(cache.teacher_names)
    ]


def _scores(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> dict[str, Any]:
    return {"rows": len(labels), **(classification_metrics(logits, labels) if len(labels) else {})}


def scores_on_test(task: Task, cache: LogitCache) -> Rows:
    """Scores of each teacher and of their equal mixture on the test split, on which students are scored too.

    Of a cache with gaps they are on the rows that were answered.
    """
    ids = answered_ids(cache, task.labelled_ids("test"))
    rows = torch.from_numpy(ids)
    shares, mask = softmax(cache.rows(rows).numpy(), axis=-1), cache.mask_rows(rows)
    mean = shares.mean(1) if mask is None else (shares * mask.numpy()[..., None]).sum(1) / mask.numpy().sum(1)[:, None]
    scores = _scores(np.log(mean + TINY), task.table.labels[ids])
    return [*_teacher_scores(task, cache, "test"), {"teacher": MIXTURE, "split": "test", **scores}]


def run_headroom(task_options: Mapping[str, Any], cache_dir: str, split: str = HeadroomCommand.split) -> Rows:
    """What the teachers know together, what weighting them can reach, and what each knows.

    Returns:
        Flat records: the set of teachers; weightings, see :func:`rlkd.headroom.headroom_rows`; and where the split has
        labels each teacher.
    """
    task = load_task(**task_options)
    if split not in task.splits:
        raise unknown_name("split", split, task.splits)
    cache = load_cache(cache_dir, task)
    tell_if_alone(cache)
    passes = cache.answers
    task, cache = answered_by_all(task, cache)
    if len(task.splits[split]) == 0:
        raise TaskError(
            f"expected rows of {split} that all teachers answered about, to compare them on, got none; name another "
            "split, or ask everybody about some"
        )
    ids, every = task.labelled_ids(split), task.splits[split]
    logits, labels = cache.rows(torch.from_numpy(ids if len(ids) else every)).numpy(), task.table.labels[ids]
    whole = {"what": "all teachers", "split": split, "rows": len(logits), "labels": len(ids)}
    single: Rows = []
    if len(ids):
        whole |= headroom(logits, labels)
        whole["equal_mixture_ece"] = expected_calibration_error(softmax(logits, axis=-1).mean(1), labels)
        single = [
            {"what": row["teacher"], "split": split, "rows": len(ids), "accuracy": row["accuracy"], "ece": row["ece"]}
            for row in _teacher_scores(task, cache, split)
        ]
    else:
        whole["disagreement"] = disagreement(logits)
    whole["teacher_passes"] = passes
    return [whole, *({**row, "split": split} for row in headroom_rows(task, cache, split)), *single]
