"""Students: distilling one with a weighting."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np

from rlkd.benchmark import weights_summary
from rlkd.choosing import check_choice, chosen_policy, reason_of, trained_here
from rlkd.data import Task, load_task
from rlkd.data.splitting import check_seed
from rlkd.devices import check_device
from rlkd.errors import ConfigError, RlkdError, nearest, one_line
from rlkd.logit_cache import LogitCache, load_cache, taught_rows
from rlkd.metrics import classification_metrics, told_if_diverged
from rlkd.models.networks import StepBar, quiet_transformers
from rlkd.models.students import check_student
from rlkd.ranks import is_first, once_by_all, told_by_the_first
from rlkd.records import check_launcher, check_output_dir, write_json_atomic
from rlkd.report import write_report
from rlkd.settings import DistillCommand, StudentSettings
from rlkd.settings.knobs import check
from rlkd.trainer import DistillationArguments, MetricsCallback, TaskTrainer, make_trainer
from rlkd.weighting import BaseWeighting, WeightingSpec, build_weighting, load_policy
from rlkd.weighting.policy_files import AUTO
from rlkd.workflow.opening import open_run, tell_if_alone
from rlkd.workflow.teachers import Rows

TRAINING_FLAGS = {
    "output_dir": "output_dir",
    "max_steps": "max_steps",
    "per_device_train_batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "temperature": "temperature",
    "kd_ratio": "kd_ratio",
    "divergence": "divergence",
    "max_length": "max_length",
    "seed": "seed",
    "save_steps": "save_steps",
    "use_cpu": "device",
    "bf16": "bf16",
    "num_train_epochs": "max_steps",
    "disable_tqdm": "quiet",
}
"""Training arguments that have a setting of their own."""


def run_distill(
    task_options: Mapping[str, Any],
    cache_dir: str,
    output_dir: str,
    *,
    weighting: str = DistillCommand.weighting,
    settings: StudentSettings,
    seed: int = DistillCommand.seed,
    save_steps: int = DistillCommand.save_steps,
    trial_students: int = DistillCommand.trial_students,
    resume: bool = DistillCommand.resume,
    overwrite: bool = DistillCommand.overwrite,
    progress: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> Rows:
    """Distil one student into ``output_dir/student``, with checkpoints, metrics and a report.

    Processes of a launcher share its batches; the run is the same with any number of them, but for draws of dropout.
    """
    check_launcher()
    first = is_first()
    if first:
        check_output_dir(output_dir, resume=resume, overwrite=overwrite, shared=True)
    check_device(settings.device)
    check_seed(seed)
    extra = _checked_arguments(arguments or {}, settings, save_steps)
    task = load_task(**task_options)
    task, cache = taught_rows(task, load_cache(cache_dir, task))
    if first:
        tell_if_alone(cache)
    spec = WeightingSpec.parse(weighting)
    named = _named(spec, task, cache, seed, trial_students)
    check_student(settings.student, task, num_layers=settings.num_layers, max_length=settings.max_length)
    config = {
        "command": "distill",
        **inputs_record(task_options, cache_dir, task, cache),
        "weighting": weighting,
        "policy": spec.learned(),
        "settings": settings.record(),
        "seed": seed,
        "save_steps": save_steps,
        "arguments": dict(arguments or {}),
        **({"trial_students": trial_students} if named is None else {}),
    }
    run = open_run(output_dir, config, resume=resume, overwrite=overwrite, shared=True) if first else None
    folder, shown = Path(output_dir), progress and first

    def make() -> Any:
        with quiet_transformers(), closing(StepBar("student", show=shown)) as bar:
            callbacks = [bar] if run is None else [MetricsCallback(run), bar]
            chosen: dict[str, Any] = {"students": trial_students, "progress": shown}
            own = _chosen(folder, task, cache, settings, spec, **chosen) if named is None else named
            places = folder / "checkpoints"
            trainer = make_trainer(task, cache, own, settings, places, seed=seed, callbacks=callbacks, **extra)
            trainer.train(resume_from_checkpoint=resume)
            trainer.save_model(str(folder / "student"))
        _write_results(folder, trainer, task, cache.teacher_names, weighting, settings)

    once_by_all(folder, "" if run is None else run.key, make)
    return cast(Rows, told_by_the_first(json.loads((folder / "results.json").read_text("utf-8")) if first else None))


def _chosen(
    folder: Path, task: Task, cache: LogitCache, settings: StudentSettings, spec: WeightingSpec, **how: Any
) -> BaseWeighting:
    """What ``auto`` chooses; ``how`` is as :func:`~rlkd.choosing.chosen_policy` takes it."""
    return load_policy(chosen_policy(folder, task, cache, settings, trained=trained_here(spec), **how))


def _named(spec: WeightingSpec, task: Task, cache: LogitCache, seed: int, trial_students: int) -> BaseWeighting | None:
    """The weighting of a name; None of ``auto``, which is chosen once the run has begun."""
    if spec.name == AUTO:
        check_choice(spec, trial_students)
        return None
    return build_weighting(spec, task, cache, seed=seed)


def _write_results(
    folder: Path, trainer: TaskTrainer, task: Task, teachers: Sequence[str], weighting: str, settings: StudentSettings
) -> None:
    """Score a trained student on validation and test: ``results.json`` and the page, which the first process writes."""
    rows = []
    for split in ("validation", "test"):
        scores = classification_metrics(trainer.predict_split(split), task.labels(split))
        diverged = told_if_diverged(f"the student on {split}", scores["nll"], task.num_classes)
        reason = reason_of(trainer.weighting)
        chosen = {} if reason is None else {"why": reason}
        rows.append({"weighting": weighting, "split": split, **scores, **diverged, **chosen})
    if not is_first():
        return
    write_json_atomic(folder / "results.json", rows)
    write_report(
        folder / "report.html",
        title=f"Student of {task.name} with {weighting}",
        summary=[
            f"Accuracy on test: {rows[1]['accuracy']:.3f}. {settings.max_steps} steps at a learning rate of "
            f"{settings.learning_rate:g}, on {settings.device}.",
            *filter(None, [reason_of(trainer.weighting)]),
            *_divergence_sentence(rows),
            *_mass_sentence(trainer.knowing_mass()),
        ],
        weights=weights_summary(trainer.weight_record, teachers),
        tables=[("Scores", rows)],
    )


def _checked_arguments(arguments: Mapping[str, Any], settings: StudentSettings, save_steps: int) -> dict[str, Any]:
    """Training arguments of a run that can be resumed, with the user's own; tried out before anything is written."""
    known = {field.name for field in fields(DistillationArguments) if field.init}
    for name in arguments:
        if name in TRAINING_FLAGS:
            raise ConfigError(f"the training argument {name!r} is set by {TRAINING_FLAGS[name]!r}; use that")
        if name not in known:
            raise ConfigError(
                f"unknown training argument {name!r}; {nearest(name, known)}expected a field of "
                "transformers.TrainingArguments, or mix or scale_by_temperature"
            )
    check(DistillCommand, save_steps=save_steps)
    checked: dict[str, Any] = {
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": save_steps,
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_steps": max(1, settings.max_steps // 50),
        **arguments,
    }
    try:
        DistillationArguments(output_dir=".", max_steps=settings.max_steps, use_cpu=settings.device == "cpu", **checked)
    except RlkdError:
        raise
    except Exception as error:
        # transformers raises many kinds of errors for settings that do not fit together.
        raise ConfigError(f"training_args do not fit: {one_line(error)}; change or drop them") from error
    return checked


def inputs_record(task_options: Mapping[str, Any], cache_dir: str, task: Task, cache: LogitCache) -> dict[str, Any]:
    """What a run read, by name and by content: a resumed run must read the same."""
    return {"task": dict(task_options), "data": task.fingerprint, "cache": str(cache_dir), "logits": cache.identity}


def _divergence_sentence(rows: Rows) -> list[str]:
    splits = [row["split"] for row in rows if "diverged" in row]
    return [f"The student diverged: far worse than a uniform guess on {' and '.join(splits)}."] if splits else []


def _mass_sentence(mass: tuple[float, float] | None) -> list[str]:
    if mass is None or np.isnan(mass).any():  # too few steps to have an early and a late part
        return []
    return [f"Mean weight on teachers that know the instance: {mass[0]:.3f} early, {mass[1]:.3f} late."]
