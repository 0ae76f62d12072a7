"""Meta-KD on a user's own data: the meta-teacher, and a student for each domain."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlkd.data import load_task
from rlkd.data.splitting import check_seed
from rlkd.data.task import Task
from rlkd.devices import check_device
from rlkd.errors import unknown_name
from rlkd.logit_cache import LogitCache, build_cache
from rlkd.metrics import classification_metrics, told_if_diverged
from rlkd.models.networks import StepBar, quiet_transformers
from rlkd.models.small import save_small_encoder
from rlkd.models.teacher_files import write_hf
from rlkd.models.teachers import HfTeacher
from rlkd.records import RunDirectory, check_output_dir, folder_of, once, write_json_atomic
from rlkd.report import write_report
from rlkd.settings import StudentSettings
from rlkd.systems.meta_kd.corruption import corruption_of
from rlkd.systems.meta_kd.distillation import TaughtDomain, check_sizes, distil_meta_student
from rlkd.systems.meta_kd.settings import DistillationSettings, MetaKdCommand, MetaKdSettings
from rlkd.systems.meta_kd.teachers import (
    META,
    check_meta_kd,
    domain_task,
    instance_embeddings,
    instance_scores,
    load_meta_kd_teachers,
    train_meta_kd_teachers,
)
from rlkd.trainer import MetricsCallback, TaskTrainer
from rlkd.workflow.opening import open_run
from rlkd.workflow.teachers import Rows

SPLITS = ("validation", "test")


def run_meta_kd(
    task_options: Mapping[str, Any],
    output_dir: str,
    *,
    teaching: MetaKdSettings,
    distillation: DistillationSettings,
    settings: StudentSettings,
    num_layers: int,
    hidden_size: int,
    domains: Sequence[str] = (),
    seed: int = MetaKdCommand.seed,
    resume: bool = MetaKdCommand.resume,
    overwrite: bool = MetaKdCommand.overwrite,
    progress: bool = False,
) -> Rows:
    """Train the meta-teacher and distil a small student of each domain; one row a domain and model.

    Args:
        task_options: Arguments of :func:`rlkd.data.load_task`; the task has domains.
        output_dir: Holds ``teachers/meta``, ``cache`` and ``students/DOMAIN/student``; what is finished in it is kept.
        teaching: How the meta-teacher learns.
        distillation: How students learn from it.
        settings: Budget of the students' step on logits.
        num_layers: Of the students.
        hidden_size: Of the students.
        domains: Those to make students for; none: all.
        seed: Of students.
        resume: Continue an interrupted run.
        overwrite: Delete an earlier run.
        progress: Show progress bars.
    """
    check_output_dir(output_dir, resume=resume, overwrite=overwrite)
    check_device(settings.device)
    check_seed(seed)
    task = load_task(**task_options)
    check_meta_kd(task, teaching, [META])
    chosen = _chosen(task, domains)
    check_sizes(teaching.encoder, teaching.num_layers, num_layers=num_layers, hidden_size=hidden_size)
    sizes = {"num_layers": num_layers, "hidden_size": hidden_size}
    config = {
        "command": "meta-kd",
        "task": dict(task_options),
        "data": task.fingerprint,
        "teaching": asdict(teaching),
        "recipe": asdict(distillation),
        "settings": settings.record(),
        **sizes,
        "seed": seed,
    }
    folder = open_run(output_dir, config, resume=resume, overwrite=overwrite).path
    start = save_small_encoder(teaching.encoder, task, folder / "start", **sizes, seed=seed)
    taught, cache = _meta_teacher(task, folder, teaching, settings.device, progress)
    rows: Rows = []
    for alone in chosen:
        place = folder / "students" / folder_of(alone.name)
        own = _of_domain(alone, taught, cache)
        distil = partial(_distil, *own, start, distillation, settings, place, seed, progress)
        rows += once(place, alone.fingerprint, distil)["rows"]
    _write(folder, taught, rows)
    return rows


def _chosen(task: Task, domains: Sequence[str]) -> list[Task]:
    """The domains to make students for, each once and as a task of that name."""
    for domain in domains:
        if domain not in task.domain_names:
            raise unknown_name(f"domain of task {task.name!r}", domain, task.domain_names)
    return [domain_task(task, domain) for domain in dict.fromkeys(domains or task.domain_names)]


def _meta_teacher(
    task: Task, folder: Path, teaching: MetaKdSettings, device: str, progress: bool
) -> tuple[TaughtDomain, LogitCache]:
    """What the meta-teacher of all domains teaches, and its logits."""
    paths = train_meta_kd_teachers(task, folder / "teachers", teaching, device=device, progress=progress)
    embeddings = instance_embeddings(task, folder / "teachers", teaching, device=device)
    (teacher,) = load_meta_kd_teachers(paths, task, device=device, bf16=teaching.bf16).values()
    assert isinstance(teacher, HfTeacher)
    cache = build_cache([teacher], task, folder / "cache", max_length=teaching.max_length, progress=progress)
    scores = instance_scores(task, embeddings, teaching.prototypes)
    corruption = corruption_of(paths[META], teacher, task)
    return TaughtDomain(task=task, encoders=[teacher], corruption=corruption, scores=scores), cache


def _of_domain(alone: Task, taught: TaughtDomain, cache: LogitCache) -> tuple[TaughtDomain, LogitCache]:
    """What it teaches of one domain, and its logits there."""
    table, names, scores = taught.task.table, taught.task.domain_names, taught.scores
    assert scores is not None
    kept = np.flatnonzero(table.domains == names.index(alone.name))
    return replace(taught, task=alone, scores=scores[kept]), cache.take(kept)


def _write(folder: Path, taught: TaughtDomain, rows: Rows) -> None:
    """Write the scores, as rows and as a page."""
    task, scores = taught.task, taught.scores
    assert scores is not None
    write_json_atomic(folder / "results.json", rows)
    write_report(
        folder / "report.html",
        title=f"Students of the domains of {task.name}",
        summary=[_summary(rows), _spread("Prototype scores t of the training rows", scores[task.splits["train"]])],
        tables=[("Scores", rows)],
    )


def _distil(
    taught: TaughtDomain,
    cache: LogitCache,
    start: Path,
    distillation: DistillationSettings,
    settings: StudentSettings,
    place: Path,
    seed: int,
    progress: bool,
) -> dict[str, Rows]:
    """Distil and save the student of one domain, and score it beside its teacher."""
    run = RunDirectory(place, {"domain": taught.task.name, "data": taught.task.fingerprint})
    taught = taught if distillation.schedule == "joint" else replace(taught, source=cache)
    with quiet_transformers(), closing(StepBar(taught.task.name, show=progress)) as bar:
        trainer, _ = distil_meta_student(
            taught,
            start,
            distillation,
            settings,
            place,
            seed=seed,
            callbacks=[MetricsCallback(run), bar],
            logging_strategy="steps",
            logging_steps=max(1, settings.max_steps // 50),
        )
    write_hf(trainer.model, trainer.processing_class, place / "student")
    return {"rows": [row for split in SPLITS for row in _scores(taught.task, split, cache, trainer)]}


def _scores(task: Task, split: str, cache: LogitCache, trainer: TaskTrainer) -> Iterator[dict[str, Any]]:
    """Scores of the meta-teacher and of the student on one split."""
    ids = task.labelled_ids(split)
    answers = {"meta-teacher": cache.rows(torch.from_numpy(ids)).numpy()[:, 0], "student": trainer.predict_rows(ids)}
    for model, logits in answers.items():
        scores = classification_metrics(logits, task.table.labels[ids])
        diverged = told_if_diverged(f"the {model} of {task.name} on {split}", scores["nll"], logits.shape[-1])
        yield {"domain": task.name, "model": model, "split": split, "rows": len(ids), **scores, **diverged}


def _summary(rows: Rows) -> str:
    means = {
        model: np.mean([row["accuracy"] for row in rows if row["model"] == model and row["split"] == "test"])
        for model in ("meta-teacher", "student")
    }
    return (
        "Mean accuracy over domains on test: " + ", ".join(f"{name} {mean:.3f}" for name, mean in means.items()) + "."
    )


def _spread(what: str, values: np.ndarray[Any, Any]) -> str:
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return f"{what}: 5% below {low:.3f}, half below {middle:.3f}, 95% below {high:.3f}."
