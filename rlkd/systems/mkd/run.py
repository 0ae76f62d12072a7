"""MKD: several tasks of a user, teachers, one joint student, and its refinement task by task."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from rlkd.records import RunDirectory, check_output_dir, folder_of, write_json_atomic
from rlkd.report import write_report
from rlkd.settings import MultiTaskSettings
from rlkd.settings.knobs import check
from rlkd.systems.mkd.settings import MkdCommand
from rlkd.systems.mkd.training import build_mkd_caches, check_mkd, check_parts, train_mkd_teachers
from rlkd.trainer import MetricsCallback
from rlkd.trainer.multi_task_training import TaughtTasks, train_model
from rlkd.weighting import WeightingSpec
from rlkd.workflow.opening import open_run
from rlkd.workflow.teachers import Rows

SPLITS = ("validation", "test")


@dataclass(frozen=True, kw_only=True)
class MkdSettings:
    """All that decides a run beside its tasks."""

    teacher: str
    """Encoder of the teachers."""
    parts: tuple[str, ...] = ("multi",)
    """``multi``, ``single`` or both teachers."""
    weighting: str = MkdCommand.weighting
    """Of the teachers, on each task."""
    student: str
    """Encoder of the student."""
    num_layers: int | None = MkdCommand.num_layers
    """Of a pretrained student."""
    teaching: MultiTaskSettings
    """How teachers learn, see :func:`rlkd.trainer.multi_task_training.multi_task_teacher_settings`."""
    distilling: MultiTaskSettings
    """How the joint student learns."""
    refining: MultiTaskSettings | None
    """How it is refined on each task; None: it is not."""
    seed: int = MkdCommand.seed
    """Of initialisation, order of batches and dropout."""
    save_steps: int = MkdCommand.save_steps
    """Steps between checkpoints of the student."""

    def __post_init__(self) -> None:
        """Check what can be checked without tasks."""
        check_seed(self.seed)
        check_parts(self.parts)
        check(MkdCommand, save_steps=self.save_steps)

    def check(self, collection: TaskCollection) -> None:
        """Refuse tasks on which it cannot run; see :func:`~rlkd.systems.mkd.training.check_mkd`."""
        trainings = [self.teaching, self.distilling, *([] if self.refining is None else [self.refining])]
        check_mkd(collection, self.teacher, self.student, trainings, self.num_layers)

    def config(self, spec: WeightingSpec) -> dict[str, Any]:
        """Plain values that change with anything that changes the outcome.

        Args:
            spec: The weighting, as it was read.
        """
        own = asdict(self)
        first = ("teacher", "parts", "weighting")
        return {name: own.pop(name) for name in first} | {"policy": spec.learned()} | own


def run_mkd(
    tasks: Sequence[Mapping[str, Any]],
    output_dir: str,
    plan: MkdSettings,
    *,
    resume: bool = MkdCommand.resume,
    overwrite: bool = MkdCommand.overwrite,
    progress: bool = False,
) -> Rows:
    """Teachers, caches, a joint student and refined ones, each kept when it is finished; scores by task and model.

    Args:
        tasks: Arguments of :func:`rlkd.data.load_task`, one mapping a task.
        output_dir: Holds ``teachers``, ``caches``, ``student`` and ``refined/TASK``.
        plan: Teachers, student, and how they learn.
        resume: Continue an interrupted run.
        overwrite: Delete an earlier run.
        progress: Show progress bars.
    """
    check_output_dir(output_dir, resume=resume, overwrite=overwrite)
    spec = WeightingSpec.parse(plan.weighting)
    collection = TaskCollection(tuple(load_task(**options) for options in tasks))
    plan.check(collection)
    data = {"tasks": [dict(options) for options in tasks], "data": collection.fingerprint}
    config = {"command": "mkd", **data, **plan.config(spec)}
    run = open_run(output_dir, config, resume=resume, overwrite=overwrite)
    caches = _caches(collection, plan, run.path, progress)
    taught = TaughtTasks(collection=collection, caches=caches, weighting=spec)
    weights, refined = _students(taught, plan, run, progress)
    rows = [row for task in collection for row in _scores(task, caches[task.name], run.path, refined, plan.distilling)]
    write_json_atomic(run.path / "results.json", rows)
    write_report(
        run.path / "report.html",
        title=f"One student of {len(collection)} tasks",
        summary=[_summary(rows, bool(refined))],
        tables=[
            ("Scores", rows),
            ("Mean weight of each teacher while the joint student learned", _weight_rows(weights, plan.parts)),
        ],
    )
    return rows


def _caches(collection: TaskCollection, plan: MkdSettings, folder: Path, progress: bool) -> dict[str, LogitCache]:
    """Train the teachers and ask them."""
    training = plan.teaching
    paths = train_mkd_teachers(
        collection, plan.teacher, folder / "teachers", training, parts=plan.parts, seed=plan.seed, progress=progress
    )
    return build_mkd_caches(
        collection,
        paths,
        folder / "caches",
        max_length=training.max_length,
        bf16=training.bf16,
        device=training.device,
        progress=progress,
    )


def _students(
    taught: TaughtTasks, plan: MkdSettings, run: RunDirectory, progress: bool
) -> tuple[Mapping[str, Sequence[float]], dict[str, Path]]:
    """Distil the joint student and refine it: its teachers' mean weights by task, and the folders of refined ones."""
    joint = run.path / "student"
    alike: dict[str, Any] = {
        "seed": plan.seed,
        "progress": progress,
        "shared": {},
        "save_strategy": "steps",
        "save_steps": plan.save_steps,
        "save_total_limit": 2,
    }
    done = train_model(
        joint,
        plan.student,
        taught,
        plan.distilling,
        num_layers=plan.num_layers,
        callbacks=[MetricsCallback(run)],
        logging_strategy="steps",
        logging_steps=max(1, plan.distilling.steps(taught.collection) // 50),
        **alike,
    )
    refined: dict[str, Path] = {}
    if plan.refining is not None:
        for name in taught.collection.names:
            refined[name] = run.path / "refined" / folder_of(name)
            train_model(refined[name], joint, taught.only(name), plan.refining, **alike)
    return done["weights"], refined


def _scores(
    task: Task, cache: LogitCache, folder: Path, refined: Mapping[str, Path], training: MultiTaskSettings
) -> Iterator[dict[str, Any]]:
    """Scores of teachers, joint student and refined student on one task."""
    models = {"student": folder / "student"} | ({"refined": refined[task.name]} if task.name in refined else {})
    for split in SPLITS:
        ids = task.labelled_ids(split)
        asked = cache.rows(torch.from_numpy(ids)).numpy()
        for k, part in enumerate(cache.teacher_names):
            yield _row(task, f"{part}-task teacher", split, asked[:, k], ids)
        for name, path in models.items():
            (model,) = load_teachers([path], task, device=training.device, bf16=training.bf16)
            logits = model.logits(task, ids, batch_size=256, max_length=training.max_length).numpy()
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
