"""The only wiring: plain arguments to objects to results. One function per command; the command line calls these."""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from scipy.special import softmax

from rlkd.agents import ENV_ID, PolicyTraining, train_policy
from rlkd.benchmark import check_comparison, compare, failures, learned_hash, summarise, verdicts, weights_summary
from rlkd.data import Task, load_task
from rlkd.data.splitting import check_seed
from rlkd.errors import ConfigError, PolicyError, TeacherError, nearest, one_line, unknown_name
from rlkd.features import ObservationConfig
from rlkd.logit_cache import LogitCache, build_cache, load_cache
from rlkd.metrics import classification_metrics, headroom, headroom_verdict
from rlkd.models import load_teachers, train_teachers
from rlkd.models.embedding import TextEmbedder
from rlkd.models.networks import StepBar, check_device, quiet_transformers
from rlkd.models.students import check_student
from rlkd.models.training import plan_teachers
from rlkd.records import (
    RunDirectory,
    check_output_dir,
    prepare_output_dir,
    read_jsonl,
    read_object,
    write_json_atomic,
)
from rlkd.report import full_comparison, write_report
from rlkd.settings import StudentSettings
from rlkd.stats import expected_calibration_error
from rlkd.trainer import DistillationArguments, MetricsCallback, make_trainer
from rlkd.weighting import build_weighting

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]

DEFAULT_ARMS = ("uniform", "best_teacher", "entropy")
TRAINING_FLAGS = {
    "output_dir": "output_dir",
    "max_steps": "max_steps",
    "per_device_train_batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "temperature": "temperature",
    "kd_ratio": "kd_ratio",
    "max_length": "max_length",
    "seed": "seed",
    "save_steps": "save_steps",
    "use_cpu": "device",
    "disable_tqdm": "quiet",
}
"""Training arguments that have a setting of their own."""
QUICKSTART_TEACHERS = ("tfidf", "tfidf", "rlkd/bilstm")
QUICKSTART_EPOCHS = 8
"""Enough for a network to be surer of its own classes than of foreign ones, as the linear teachers are."""
QUICKSTART_STUDENT = StudentSettings(student="rlkd/bilstm", max_steps=400, learning_rate=5e-3, max_length=64)


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
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    **settings: Any,
) -> Rows:
    """Train a set of teachers; one row a teacher."""
    check_output_dir(output_dir, resume=resume, overwrite=overwrite)
    check_device(device)
    task = load_task(**task_options)
    plans = plan_teachers(task, kinds=kinds, **settings)
    folder = prepare_output_dir(output_dir, resume=resume, overwrite=overwrite)
    config = {"command": "train-teachers", "task": dict(task_options), "data": task.fingerprint, "kinds": list(kinds)}
    RunDirectory(folder, config | settings)
    paths = train_teachers(task, folder, kinds=kinds, device=device, progress=progress, **settings)
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
    batch_size: int = 64,
    max_length: int = 128,
    dtype: str = "float32",
    embedder: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
    device: str | None = None,
) -> Rows:
    """Build or open a logit cache; one row a teacher."""
    check_device(device)
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
        progress=progress,
    )
    return _teacher_scores(task, cache, "validation")


def _teacher_scores(task: Task, cache: LogitCache, split: str) -> Rows:
    ids = torch.from_numpy(task.labelled_ids(split))
    logits, labels = cache.rows(ids).numpy(), task.table.labels[ids.numpy()]
    return [
        {"teacher": name, "split": split, "rows": len(ids), **classification_metrics(logits[:, k], labels)}
        for k, name in enumerate(cache.teacher_names)
    ]


def run_headroom(task_options: Mapping[str, Any], cache_dir: str, split: str = "validation") -> tuple[Rows, str]:
    """How much could instance weighting gain? Figures of the set and of each teacher, and a sentence."""
    task = load_task(**task_options)
    if split not in task.splits:
        raise unknown_name("split", split, task.splits)
    cache = load_cache(cache_dir, task)
    ids = torch.from_numpy(task.labelled_ids(split))
    labels, logits = task.table.labels[ids.numpy()], cache.rows(ids).numpy()
    figures = headroom(logits, labels)
    figures["equal_mixture_ece"] = expected_calibration_error(softmax(logits, axis=-1).mean(1), labels)
    whole = {"what": "all teachers", "split": split, "rows": len(ids), **figures}
    single = [
        {"what": row["teacher"], "split": split, "rows": len(ids), "accuracy": row["accuracy"], "ece": row["ece"]}
        for row in _teacher_scores(task, cache, split)
    ]
    return [whole, *single], headroom_verdict(figures)


def run_train_policy(
    task_options: Mapping[str, Any],
    cache_dir: str,
    output_dir: str,
    *,
    student: str,
    reward: str = "logit_gain",
    training: PolicyTraining | None = None,
    observation: ObservationConfig | None = None,
    episode: Mapping[str, Any] | None = None,
    device: str = "cpu",
    tensorboard: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Rows:
    """Train a policy into ``output_dir/policy`` with its learning curve and a report."""
    training, observation, episode = training or PolicyTraining(), observation or ObservationConfig(), episode or {}
    check_output_dir(output_dir, resume=resume, overwrite=overwrite)
    check_device(device)
    check_seed(training.seed)
    task = load_task(**task_options)
    cache = load_cache(cache_dir, task)
    _check_policy_run(task, cache, student, reward, training, observation, episode)
    folder = prepare_output_dir(output_dir, resume=resume, overwrite=overwrite)
    train_policy(
        task,
        cache,
        student=student,
        reward=reward,
        training=training,
        observation=observation,
        episode=dict(episode),
        device=device,
        output_dir=folder,
        resume=resume,
        tensorboard=tensorboard,
        progress=progress,
    )
    curve = learning_curve(folder)
    scores = curve["validation"]
    best = int(np.argmax(scores))
    row = {
        "policy": str(folder / "policy"),
        "timesteps": curve["timesteps"][-1],
        "best_at": curve["timesteps"][best],
        "validation_before": scores[0],
        "validation_best": scores[best],
    }
    write_report(
        folder / "report.html",
        title=f"Policy trained on {task.name}",
        summary=[
            f"Reward {reward}; {row['timesteps']} instances weighted.",
            f"Probability of the label in the mixture on validation: {scores[0]:.3f} before training, "
            f"{scores[best]:.3f} for the policy that was kept.",
        ],
        learning_curve=curve,
    )
    return [row]


def _check_policy_run(
    task: Task,
    cache: LogitCache,
    student: str,
    reward: str,
    training: PolicyTraining,
    observation: ObservationConfig,
    episode: Mapping[str, Any],
) -> None:
    """Make the environment once, so that what cannot run is refused before an earlier run is deleted."""
    if observation.affinity and not cache.has_affinity:
        raise PolicyError("the observation reads 'affinity', the cache has none; build it with rlkd cache --embedder")
    if training.warm_start and observation.student:
        raise PolicyError("a warm start clones a router, which sees no student; switch one of the two off")
    if training.warm_start_rows is not None and training.warm_start_rows < 1:
        raise ConfigError(f"warm_start_rows must be 1 or more, got {training.warm_start_rows}; raise it")
    settings: dict[str, Any] = {"num_envs" if key == "batch_size" else key: value for key, value in episode.items()}
    settings |= {"task": task, "cache": cache, "student": student, "reward": reward, "observation": observation}
    env: Any = gymnasium.make_vec(ENV_ID, vectorization_mode="vector_entry_point", **settings)
    horizon = env.unwrapped.episode.settings.horizon
    if horizon % training.n_steps:
        raise ConfigError(f"n_steps must divide the horizon {horizon}, got {training.n_steps}; choose another")


def learning_curve(folder: Path) -> dict[str, list[Any]]:
    """What the report draws of a policy's training, from the metrics in its run directory."""
    records = read_jsonl(folder / "metrics.jsonl")
    return {
        "timesteps": [record["step"] for record in records],
        "reward": [record["rollout/reward_mean"] for record in records],
        "validation": [record["validation/label_probability"] for record in records],
    }


def run_distill(
    task_options: Mapping[str, Any],
    cache_dir: str,
    output_dir: str,
    *,
    weighting: str,
    settings: StudentSettings,
    seed: int = 0,
    save_steps: int = 200,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> Rows:
    """Distil one student into ``output_dir/student``, with checkpoints, metrics and a report."""
    check_output_dir(output_dir, resume=resume, overwrite=overwrite)
    check_device(settings.device)
    check_seed(seed)
    extra = _checked_arguments(arguments or {}, settings, save_steps)
    task = load_task(**task_options)
    cache = load_cache(cache_dir, task)
    chosen = build_weighting(weighting, task, cache, seed=seed)
    check_student(settings.student, task, num_layers=settings.num_layers, max_length=settings.max_length)
    folder = prepare_output_dir(output_dir, resume=resume, overwrite=overwrite)
    config = {
        "command": "distill",
        **_inputs_record(task_options, cache_dir, task, cache),
        "weighting": weighting,
        "policy": learned_hash(weighting),
        "settings": asdict(settings),
        "seed": seed,
        "save_steps": save_steps,
        "arguments": dict(arguments or {}),
    }
    run = RunDirectory(folder, config)
    with quiet_transformers(), closing(StepBar("student", show=progress)) as bar:
        checkpoints = folder / "checkpoints"
        callbacks = [MetricsCallback(run), bar]
        trainer = make_trainer(task, cache, chosen, settings, checkpoints, seed=seed, callbacks=callbacks, **extra)
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model(str(folder / "student"))
    rows = []
    for split in ("validation", "test"):
        scores = classification_metrics(trainer.predict_split(split), task.labels(split))
        rows.append({"weighting": weighting, "split": split, **scores})
    write_json_atomic(folder / "results.json", rows)
    write_report(
        folder / "report.html",
        title=f"Student of {task.name} with {weighting}",
        summary=[f"Accuracy on test: {rows[1]['accuracy']:.3f}.", *_mass_sentence(trainer.knowing_mass())],
        weights=weights_summary(trainer.weight_record, cache.teacher_names),
        tables=[("Scores", rows)],
    )
    return rows


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
    if save_steps < 1:
        raise ConfigError(f"save_steps must be 1 or more, got {save_steps}; raise it")
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
    except Exception as error:
        # transformers raises many kinds of errors for settings that do not fit together.
        raise ConfigError(f"training_args do not fit: {one_line(error)}; change or drop them") from error
    return checked


def _inputs_record(task_options: Mapping[str, Any], cache_dir: str, task: Task, cache: LogitCache) -> dict[str, Any]:
    """What a run read, by name and by content: a resumed run must read the same."""
    return {
        "task": dict(task_options),
        "data": task.fingerprint,
        "cache": str(cache_dir),
        "logits": cache.identity,
    }


def _mass_sentence(mass: tuple[float, float] | None) -> list[str]:
    if mass is None or np.isnan(mass).any():  # too few steps to have an early and a late part
        return []
    return [f"Mean weight on teachers that know the instance: {mass[0]:.3f} early, {mass[1]:.3f} late."]


def default_arms(cache: LogitCache, policy: str | None) -> list[str]:
    """The weightings that belong into every table: baselines, the policy with its controls, router and oracle."""
    learned = [] if policy is None else [f"{name}:{policy}" for name in ("policy", "policy_shuffle", "policy_mean")]
    return [*DEFAULT_ARMS, *learned, "router", *(["oracle"] if cache.knowledge is not None else [])]


def run_compare(
    task_options: Mapping[str, Any],
    cache_dir: str,
    output_dir: str,
    *,
    settings: StudentSettings,
    weightings: Sequence[str] = (),
    policy: str | None = None,
    seeds: int = 3,
    jobs: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> tuple[Rows, list[str]]:
    """Distil one student per weighting and seed, paired; the table and what it says."""
    check_output_dir(output_dir, resume=resume, overwrite=overwrite)
    task = load_task(**task_options)
    cache = load_cache(cache_dir, task)
    arms = list(weightings) or default_arms(cache, policy)
    check_comparison(task, cache, arms, settings, seeds=range(seeds), jobs=jobs)
    folder = prepare_output_dir(output_dir, resume=resume, overwrite=overwrite)
    config = {
        "command": "compare",
        **_inputs_record(task_options, cache_dir, task, cache),
        "weightings": arms,
        "settings": asdict(settings),
        "seeds": seeds,
    }
    RunDirectory(folder, config)
    return _compare_and_report(task, cache, arms, settings, folder, seeds, jobs, progress, curve=None)


def _compare_and_report(
    task: Task,
    cache: LogitCache,
    arms: Sequence[str],
    settings: StudentSettings,
    folder: Path,
    seeds: int,
    jobs: int,
    progress: bool,
    *,
    curve: Mapping[str, Any] | None,
) -> tuple[Rows, list[str]]:
    records = compare(task, cache, arms, settings, folder, seeds=range(seeds), jobs=jobs, progress=progress)
    rows = summarise(records)
    sentences = [*failures(records), *verdicts(rows)]
    write_json_atomic(folder / "table.json", rows)
    drawn = _drawn_weights(folder, records)
    write_report(
        folder / "report.html",
        title=f"Weightings compared on {task.name}",
        summary=[f"{seeds} paired seeds, student {settings.student}, {settings.max_steps} steps.", *sentences],
        accuracy=[
            {
                "weighting": r["weighting"],
                "accuracy": r["accuracy"],
                "low": r["accuracy_low"],
                "high": r["accuracy_high"],
            }
            for r in rows
            if "accuracy" in r
        ],
        learning_curve=curve,
        weights=drawn,
        tables=[("Weightings", full_comparison(rows))],
    )
    return rows, sentences


def _drawn_weights(folder: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Weights of the policy's first finished run, else of the first finished run."""
    finished = [record for record in records if record["status"] == "ok"]
    chosen = [record for record in finished if record["weighting"] == "policy"] or finished
    if not chosen:
        return None
    content: dict[str, Any] = read_object(folder / "weights" / f"{chosen[0]['key']}.json")
    return content


def run_quickstart(
    output_dir: str,
    *,
    seeds: int = 3,
    jobs: int | None = None,
    total_timesteps: int = 92_160,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> tuple[Rows, list[str]]:
    """The whole main job on the embedded text task: specialists, cache, policy, paired students, table."""
    workers = min(os.cpu_count() or 1, 8) if jobs is None else jobs
    if seeds < 1 or workers < 1:
        raise ConfigError(f"the quick start needs seeds >= 1 and jobs >= 1, got {seeds} and {workers}; raise them")
    training = PolicyTraining(total_timesteps=total_timesteps)
    check_output_dir(output_dir, resume=resume, overwrite=overwrite)
    task_options: dict[str, Any] = {"source": "docstrings"}
    task = load_task(**task_options)
    folder = prepare_output_dir(output_dir, resume=resume, overwrite=overwrite)
    settings = QUICKSTART_STUDENT
    config = {
        "command": "quickstart",
        "task": task_options["source"],
        "data": task.fingerprint,
        "teachers": list(QUICKSTART_TEACHERS),
        "settings": asdict(settings),
        "seeds": seeds,
        "total_timesteps": total_timesteps,
    }
    RunDirectory(folder, config)
    paths = train_teachers(
        task,
        folder / "teachers",
        kinds=QUICKSTART_TEACHERS,
        specialize="class",
        max_length=settings.max_length,
        epochs=QUICKSTART_EPOCHS,
        progress=progress,
    )
    teachers = load_teachers([str(path) for path in paths], task)
    cache = build_cache(teachers, task, folder / "cache", max_length=settings.max_length, progress=progress)
    run_train_policy(
        task_options,
        str(folder / "cache"),
        str(folder / "policy"),
        student=settings.student,
        training=training,
        episode={"max_length": settings.max_length, "learning_rate": settings.learning_rate},
        resume=True,
        progress=progress,
    )
    curve = learning_curve(folder / "policy")
    arms = default_arms(cache, str(folder / "policy" / "policy"))
    return _compare_and_report(task, cache, arms, settings, folder, seeds, workers, progress, curve=curve)
