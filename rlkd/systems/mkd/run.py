"""MKD: several tasks of a user, teachers, one joint student, and its refinement task by task."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlkd.data import TaskCollection, load_task
from rlkd.data.splitting import check_seed
from rlkd.data.task import Task
from rlkd.logit_cache import LogitCache
from rlkd.metrics import classification_metrics, told_if_diverged
from rlkd.models import load_teachers
from rlkd.records import RunDirectory, check_output_dir, folder_of, prepare_output_dir, write_json_atomic
from rlkd.report import write_report
from rlkd.settings import Phase
from rlkd.settings.knobs import check
from rlkd.systems.mkd.settings import MkdCommand
from rlkd.systems.mkd.training import build_mkd_caches, check_mkd, check_parts, train_mkd_teachers
from rlkd.trainer import MetricsCallback
from rlkd.trainer.multi_task_training import Lessons, train_model
from rlkd.weighting import WeightingSpec
from rlkd.workflow.teachers import Rows

SPLITS = ("validation", "test")


def run_mkd(
    tasks: Sequence[Mapping[str, Any]],
    output_dir: str,
    *,
    teacher: str,
    student: str,
    teaching: Phase,
    distilling: Phase,
    refining: Phase | None,
    parts: Sequence[str] = ("multi",),
    weighting: str = MkdCommand.weighting,
    num_layers: int | None = MkdCommand.num_layers,
    seed: int = MkdCommand.seed,
    save_steps: int = MkdCommand.save_steps,
    resume: bool = MkdCommand.resume,
    overwrite: bool = MkdCommand.overwrite,
    progress: bool = False,
) -> Rows:
    """Teachers, caches, a joint student and refined ones, each kept when it is finished; scores by task and model.

    Args:
        tasks: Arguments of :func:`rlkd.data.load_task`, one mapping a task.
        output_dir: Holds ``teachers``, ``caches``, ``student`` and ``refined/TASK``.
        teacher: Encoder of the teachers.
        student: Encoder of the student.
        teaching: How teachers learn, see :func:`rlkd.trainer.multi_task_training.teacher_phase`.
        distilling: How the joint student learns.
        refining: How it is refined on each task; None: it is not.
        parts: ``multi``, ``single`` or both teachers.
        weighting: Of the teachers, on each task.
        num_layers: Of a pretrained student.
        seed: Of initialisation, order of batches and dropout.
        save_steps: Steps between checkpoints of the student.
        resume: Continue an interrupted run.
        overwrite: Delete an earlier run.
        progress: Show progress bars.
    """
    check_output_dir(output_dir, resume=resume, overwrite=overwrite)
    check_seed(seed)
    check_parts(parts)
    spec = WeightingSpec.parse(weighting)
    check(MkdCommand, save_steps=save_steps)
    collection = TaskCollection(tuple(load_task(**options) for options in tasks))
    phases = [teaching, distilling, *([] if refining is None else [refining])]
    check_mkd(collection, teacher, student, phases, num_layers)
    folder = prepare_output_dir(output_dir, resume=resume, overwrite=overwrite)
    config = {
        "command": "mkd",
        "tasks": [dict(options) for options in tasks],
        "data": collection.fingerprint,
        "teacher": teacher,
        "parts": list(parts),
        "weighting": weighting,
        "policy": spec.learned(),
        "student": student,
        "num_layers": num_layers,
        "teaching": asdict(teaching),
        "distilling": asdict(distilling),
        "refining": None if refining is None else asdict(refining),
        "seed": seed,
        "save_steps": save_steps,
    }
    run = RunDirectory(folder, config)
    paths = train_mkd_teachers(
        collection, teacher, folder / "teachers", teaching, parts=parts, seed=seed, progress=progress
    )
    caches = build_mkd_caches(
        collection,
        paths,
        folder / "caches",
        max_length=teaching.max_length,
        bf16=teaching.bf16,
        device=teaching.device,
        progress=progress,
    )
    lessons, shared = Lessons(collection=collection, caches=caches, weighting=spec), dict[str, Any]()
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": save_steps, "save_total_limit": 2}
    done = train_model(
        folder / "student",
        student,
        lessons,
        distilling,
        num_layers=num_layers,
        seed=seed,
        callbacks=[MetricsCallback(run)],
        progress=progress,
        shared=shared,
        logging_strategy="steps",
        logging_steps=max(1, distilling.steps(collection) // 50),
        **saving,
    )
    refined = {}
    for name in collection.names if refining is not None else ():
        assert refining is not None
        refined[name] = folder / "refined" / folder_of(name)
        train_model(
            refined[name],
            folder / "student",
            lessons.only(name),
            refining,
            seed=seed,
            progress=progress,
            shared=shared,
            **saving,
        )
    rows = [row for task in collection for row in _scores(task, caches[task.name], folder, refined, distilling)]
    write_json_atomic(folder / "results.json", rows)
    write_report(
        folder / "report.html",
        title=f"One student of {len(collection)} tasks",
        summary=[_summary(rows, bool(refined))],
        tables=[
            ("Scores", rows),
            ("Mean weight of each teacher while the joint student learned", _weight_rows(done["weights"], parts)),
        ],
    )
    return rows


def _scores(
    task: Task, cache: LogitCache, folder: Path, refined: Mapping[str, Path], phase: Phase
) -> Iterator[dict[str, Any]]:
    """Scores of teachers, joint student and refined student on one task."""
    models = {"student": folder / "student"} | ({"refined": refined[task.name]} if task.name in refined else {})
    for split in SPLITS:
        ids = task.labelled_ids(split)
        asked = cache.rows(torch.from_numpy(ids)).numpy()
        for k, part in enumerate(cache.teacher_names):
            yield _row(task, f"{part}-task teacher", split, asked[:, k], ids)
        for name, path in models.items():
            (model,) = load_teachers([path], task, device=phase.device, bf16=phase.bf16)
            logits = model.logits(task, ids, batch_size=256, max_length=phase.max_length).numpy()
            yield _row(task, name, split, logits, ids)


def _row(
    task: Task, model: str, split: str, logits: NDArray[np.floating[Any]], ids: NDArray[np.int64]
) -> dict[str, Any]:
    scores = classification_metrics(logits, task.table.labels[ids])
    diverged = told_if_diverged(f"the {model} model of {task.name} on {split}", scores["nll"], task.num_classes)
    return {"task": task.name, "model": model, "split": split, "rows": len(ids), **scores, **diverged}


def _weight_rows(weights: Mapping[str, Sequence[float]], parts: Sequence[str]) -> Rows:
    return [{"task": task, **dict(zip(parts, shares, strict=True))} for task, shares in weights.items()]


def _summary(rows: Rows, refined: bool) -> str:
    """Mean accuracy over tasks on test, of every model."""
    models = dict.fromkeys(str(row["model"]) for row in rows)
    means = {
        model: float(np.mean([r["accuracy"] for r in rows if r["model"] == model and r["split"] == "test"]))
        for model in models
    }
    words = ", ".join(f"{model} {mean:.3f}" for model, mean in means.items())
    return f"Mean accuracy over tasks on test: {words}{'' if refined else ' (not refined)'}."
