"""One paired run: a student, a weighting and a seed in, one JSON line out."""

import logging
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from rlkd.benchmark.compared import ComparedWeighting
from rlkd.benchmark.measuring import (
    answers,
    deployed_figures,
    peak_memory_mb,
    reset_peak_memory,
    student_scores,
    weights_summary,
)
from rlkd.benchmark.paths import as_usual
from rlkd.choosing import reason_of
from rlkd.cost import NO_COST, added, metered
from rlkd.data.subset import drop_unlabelled
from rlkd.data.task import Task
from rlkd.devices import one_thread
from rlkd.errors import one_line
from rlkd.headroom import run_figures
from rlkd.logit_cache import LogitCache
from rlkd.metrics import told_if_diverged
from rlkd.records import digest, write_json_atomic
from rlkd.settings import StudentSettings
from rlkd.trainer import TaskTrainer, make_trainer
from rlkd.weighting import BaseWeighting, WeightingSpec, build_weighting
from rlkd.weighting.learned import Policy

log = logging.getLogger(__name__)

STUDENTS_FOLDER = "students"
"""The Trainer insists on a folder of its own; nothing is written there."""
WEIGHTS_FOLDER = "weights"


class Distiller(Protocol):
    """How a published system distils the student of a run, where that is not one run of the trainer."""

    def described(self) -> Any:
        """Plain values that change with anything that it changes in a student."""

    def record(self) -> dict[str, Any]:
        """What a run's record says of it."""

    def distil(
        self, opened: Any, spec: WeightingSpec | None, settings: StudentSettings, seed: int, folder: Path
    ) -> tuple[TaskTrainer, dict[str, Any]]:
        """Distil a student; see :func:`run_job`.

        Args:
            opened: What the system keeps for the runs of a task (``Context.system``).
            spec: The weighting; None where the system knows it by its name alone.
            settings: The student's budget.
            seed: Of the student.
            folder: Where it may keep what several students share.

        Returns:
            The trainer with the finished student, and figures for the record: ``fit_seconds``, and ``cost_before``
            of what was made by an earlier run and used again.
        """


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: a weighting, a student and a seed."""

    compared: ComparedWeighting
    settings: StudentSettings
    seed: int
    student: str = ""
    """What tables call the student; by default its own name."""
    suite: str = ""
    metric: str = "accuracy"
    """The score that counts."""
    distiller: Distiller | None = None
    """None: one run of the trainer on the cached logits."""


@dataclass(frozen=True)
class Context:
    """What the runs of one task share; inputs are encoded once for each kind of student."""

    task: Task
    cache: LogitCache
    encoded: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    system: Any = None
    """What a system's distillers need beside it."""

    def encoded_for(self, settings: StudentSettings) -> dict[str, Any]:
        """Where tokenizer and encoded inputs of a student are kept between runs."""
        return self.encoded.setdefault((settings.student, settings.max_length), {})

    @cached_property
    def labelled(self) -> "Context":
        """The same without the unlabelled train rows."""
        task, ids = drop_unlabelled(self.task)
        return Context(task, self.cache.take(ids))

    def of(self, compared: ComparedWeighting) -> "Context":
        """What the runs of a weighting have."""
        return self.labelled if compared.labelled_only else self


def run_key(context: Context, job: Job) -> str:
    """16 hexadecimal digits: equal keys are equal runs, down to the bytes of data, logits and learned weights."""
    weighting = job.compared.name if job.compared.spec is None else job.compared.spec.identity()
    described: list[Any] = [context.task.fingerprint, context.cache.identity, job.compared.name, weighting]
    described += [as_usual(job.settings.record()), job.seed]
    if job.suite:  # in a suite, two tasks may be one and the same
        described.append(context.task.name)
    if job.distiller is not None:
        described.append(job.distiller.described())
    return digest(described, 16, algorithm="sha256")


def run_job(context: Context, job: Job, folder: Path, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Distil one student; a run that fails is a record too.

    Args:
        context: The task and its teachers.
        job: What to run.
        folder: Weights are written below it.
        environment: Versions, recorded with every run.

    Returns:
        The record, with ``status`` ``"ok"`` or ``"failed"``. Its ``seconds``, ``cpu_seconds`` and ``steps`` are of
        building the weighting, training the student and scoring it; one CPU thread.
    """
    key = run_key(context, job)
    head = {
        "kind": "run",
        "key": key,
        "suite": job.suite,
        "task": context.task.name,
        "weighting": job.compared.name,
        "seed": job.seed,
        "student": job.student or job.settings.student,
        "metric": job.metric,
        "labelled_only": job.compared.labelled_only,
        "teachers": list(context.cache.teacher_names),
        "settings": job.settings.record(),
        "data": context.task.fingerprint,
        "logits": context.cache.identity,
        "policy": job.compared.spec and job.compared.spec.learned(),
        **{f"policy_{name}": value for name, value in job.compared.policy_cost.items()},
        "environment": dict(environment),
        **({} if job.distiller is None else job.distiller.record()),
    }
    return recorded(head, lambda: _distil(context, job, folder, key))


def recorded(head: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The record of a run: its head, what came out or how it failed, and what it cost; one CPU thread.

    Args:
        head: What is known before.
        make: Does the work; gives figures, among them ``cost_before`` of what an earlier run has made for it.
    """
    record = dict(head)
    reset_peak_memory()
    with metered() as cost:
        try:
            with one_thread():
                record |= {**make(), "status": "ok"}
        except Exception as error:
            record |= failure(error)
    # what an earlier run has made for this one too is part of what it costs
    spent = added(cost.record(), record.pop("cost_before", NO_COST))
    return record | spent | {"peak_memory_mb": peak_memory_mb()}


def failure(error: Exception) -> dict[str, Any]:
    """What a record says of an error: status, and the message with its place on one line."""
    log.debug("run failed", exc_info=error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    return {"status": "failed", "error": f"{type(error).__name__}: {one_line(error)} ({where})"}


def _one_run(context: Context, job: Job, folder: Path) -> tuple[TaskTrainer, dict[str, Any]]:
    """The student of a weighting: one run of the trainer on the cached logits."""
    started = time.perf_counter()
    assert job.compared.spec is not None
    weighting = build_weighting(job.compared.spec, context.task, context.cache, seed=job.seed)
    fitted = time.perf_counter()
    trainer = make_trainer(
        context.task,
        context.cache,
        weighting,
        job.settings,
        folder / STUDENTS_FOLDER,
        seed=job.seed,
        shared=context.encoded_for(job.settings),
    )
    trainer.train()
    reason = reason_of(weighting)
    return trainer, {
        "fit_seconds": round(fitted - started, 2),
        "policy_origin": weighting.origin if isinstance(weighting, Policy) else None,
        "policy_strength": weighting.strength if isinstance(weighting, Policy) else None,
        "policy_environment": _trained_by(weighting) if isinstance(weighting, Policy) else None,
        **({"chosen": reason} if reason is not None else {}),
    }


def _trained_by(policy: Policy) -> dict[str, Any] | None:
    """What the policy remembers of the code that trained it."""
    found = policy.training_record.get("commit")
    return None if found is None else {"commit": found}


def _distil(context: Context, job: Job, folder: Path, key: str) -> dict[str, Any]:
    if job.distiller is None:
        trainer, figures = _one_run(context, job, folder)
    else:
        trainer, figures = job.distiller.distil(context.system, job.compared.spec, job.settings, job.seed, folder)
    task, cache = context.task, trainer.cache
    logits, labels = trainer.predict_split("test"), task.labels("test")
    _write_weights(folder / WEIGHTS_FOLDER / f"{key}.json", trainer)
    early_late = trainer.knowing_mass() or (None, None)
    deployed = deployed_figures(trainer.weighting, task, cache, logits, job.settings.batch_size)
    scores = student_scores(logits, labels)
    seen = min(len(task.splits["train"]), job.settings.max_steps * job.settings.batch_size)
    return {
        **scores,
        **told_if_diverged(
            f"the student of {job.compared.name}, seed {job.seed}, on test", scores["nll"], task.num_classes
        ),
        "knowing_mass_early": early_late[0],
        "knowing_mass_late": early_late[1],
        **{name: value for name, value in deployed.items() if name != "asked"},
        "reachable": run_figures(trainer.weighting, task, cache),
        **figures,
        "teacher_passes": round(deployed["asked"] * seen),
        "falls_back": _fall_back(trainer.weighting, task),
        "rows": {split: len(ids) for split, ids in task.splits.items()},
        "labelled_rows": sum(len(task.labelled_ids(split)) for split in ("train", "probe", "validation")),
        **answers(logits, labels, job.metric),
    }


def _fall_back(weighting: BaseWeighting, task: Task) -> str | None:
    """What a weighting that needs labels does with rows that have none, if there are any."""
    unlabelled = len(task.labelled_ids("train")) < len(task.splits["train"])
    return weighting.falls_back if unlabelled and "labels" in weighting.requires else None


def _write_weights(path: Path, trainer: TaskTrainer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, weights_summary(trainer.weight_record, trainer.cache.teacher_names))
