"""Paired comparisons: one student per weighting and seed, one JSON line each; resumable, and a failed run is a row.

For a seed every weighting gets the same initialisation, the same batches and the same budget, so differences are
paired.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from rlkd.data.splitting import check_seed
from rlkd.data.task import Task
from rlkd.errors import ConfigError, RlkdError, WeightingError, one_line
from rlkd.features import ObservationConfig
from rlkd.logit_cache import LogitCache
from rlkd.metrics import classification_metrics
from rlkd.models.networks import check_device
from rlkd.models.students import check_student
from rlkd.records import append_jsonl, environment, read_jsonl, write_json_atomic
from rlkd.settings import StudentSettings
from rlkd.stats import (
    Estimate,
    gap_share,
    mean_accuracy,
    paired_difference,
    paired_permutation_test,
    probability_of_improvement,
)
from rlkd.trainer import DistillationTrainer, WeightRecord, make_trainer
from rlkd.weighting import Evidence, build_weighting, weighting_class
from rlkd.weighting.learned import train_router

log = logging.getLogger(__name__)

RUNS_FILE = "runs.jsonl"
STUDENTS_FOLDER = "students"
"""The Trainer insists on a folder of its own; nothing is written there."""
STATISTICS_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One weighting of a comparison."""

    name: str
    """What tables call it."""
    spec: str
    """What :func:`rlkd.weighting.build_weighting` is given."""


def check_comparison(
    task: Task, cache: LogitCache, specs: Sequence[str], settings: StudentSettings, *, seeds: Sequence[int], jobs: int
) -> None:
    """Make every weighting and the student once, so that what cannot run is refused before anything is written.

    Arguments are those of :func:`compare`.

    Raises:
        ConfigError: Nothing to compare, or a setting out of range.
        WeightingError: A weighting is unknown, named twice, or needs what the task or the cache does not have.
        StudentError: The student does not exist or cannot read this task.
    """
    if not specs or not seeds:
        raise ConfigError(f"a comparison needs weightings and seeds, got {len(specs)} and {len(seeds)}; name some")
    if jobs < 1:
        raise ConfigError(f"a comparison needs jobs >= 1, got {jobs}; 1 runs one student after the other")
    for seed in seeds:
        check_seed(seed)
    check_device(settings.device)
    if len(set(specs)) < len(specs):
        raise WeightingError(f"every weighting may be named once, got {', '.join(specs)}; drop the repeated ones")
    for spec in specs:
        weighting_class(spec)
    for spec in specs:
        if spec != "router":  # fitted when the comparison has a directory; it needs nothing that others do not
            build_weighting(spec, task, cache)
    check_student(settings.student, task, num_layers=settings.num_layers, max_length=settings.max_length)


def resolve_arms(specs: Sequence[str], task: Task, cache: LogitCache, output_dir: Path, *, seed: int = 0) -> list[Arm]:
    """Name the weightings, and fit a router once: like a policy it is the same for every seed.

    Args:
        specs: Weightings, as ``name[:argument]``, that :func:`check_comparison` let pass.
        task: The task.
        cache: The teachers' logits.
        output_dir: Where a fitted router is kept.
        seed: Of the router's fit.
    """
    return [
        Arm(
            name=_arm_name(spec, specs),
            spec=f"policy:{_fitted_router(task, cache, output_dir, seed)}" if spec == "router" else spec,
        )
        for spec in specs
    ]


def _arm_name(spec: str, specs: Sequence[str]) -> str:
    """The name without its path, where that is enough to tell the arms apart."""
    short = "policy" if Path(spec).is_dir() else spec.partition(":")[0]
    alike = [
        other for other in specs if other.partition(":")[0] == short or (short == "policy" and Path(other).is_dir())
    ]
    return short if len(alike) == 1 and short in ("policy", "policy_mean", "policy_shuffle") else spec


def _fitted_router(task: Task, cache: LogitCache, output_dir: Path, seed: int) -> Path:
    # Named after what it was fitted on: another cache in the same place asks for another router.
    fitted_on = json.dumps([task.fingerprint, cache.identity, seed])
    folder = output_dir / f"router-{hashlib.sha256(fitted_on.encode()).hexdigest()[:8]}"
    if not (folder / "config.json").is_file():
        view = task.training_view()
        evidence = Evidence(task=view, source=cache.head(len(view.table)), seed=seed)
        train_router(evidence, ObservationConfig()).save_pretrained(folder)
    return folder


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: a weighting and a seed."""

    arm: Arm
    seed: int
    key: str
    """Equal keys are equal runs: same data, teachers, student, settings, weighting and seed."""


def compare(
    task: Task,
    cache: LogitCache,
    specs: Sequence[str],
    settings: StudentSettings,
    output_dir: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    jobs: int = 1,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Distil one student per weighting and seed; finished runs of an earlier call are kept.

    Args:
        task: The task; students are scored on its test split.
        cache: The teachers' logits, as opened by :func:`rlkd.logit_cache.load_cache`.
        specs: Weightings, as ``name[:argument]``.
        settings: The student and its training.
        output_dir: Holds ``runs.jsonl``, one line a run, and the weights of each run.
        seeds: Seeds of the students.
        jobs: Processes. Each run has one CPU thread, so figures do not depend on it.
        progress: Show a progress bar.

    Returns:
        The records of all runs asked for, failed ones included (``status`` other than ``"ok"``).
    """
    check_comparison(task, cache, specs, settings, seeds=seeds, jobs=jobs)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    arms = resolve_arms(specs, task, cache, folder)
    wanted = [Job(arm=arm, seed=seed, key=_run_key(task, cache, arm, settings, seed)) for seed in seeds for arm in arms]
    done = {record["key"] for record in _records(folder) if record["status"] == "ok"}
    todo = [job for job in wanted if job.key not in done]
    bar = tqdm(total=len(wanted), initial=len(wanted) - len(todo), desc="students", unit="run", disable=not progress)
    with bar:
        for record in _run_all(todo, task, cache, settings, folder, jobs):
            append_jsonl(folder / RUNS_FILE, record)
            bar.update()
    with suppress(OSError):
        (folder / STUDENTS_FOLDER).rmdir()
    newest = {record["key"]: record for record in _records(folder)}
    return [newest[job.key] for job in wanted]


def _records(folder: Path) -> list[dict[str, Any]]:
    path = folder / RUNS_FILE
    return read_jsonl(path) if path.exists() else []


def learned_hash(spec: str) -> str | None:
    """Hash of the weights that a weighting reads: another policy in the same folder is another weighting.

    Args:
        spec: ``name[:argument]``, or the folder of a policy.

    Returns:
        64 hexadecimal digits; None where the weighting reads no weights from a folder.
    """
    weights = Path(spec.partition(":")[2] or spec) / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None


def _run_key(task: Task, cache: LogitCache, arm: Arm, settings: StudentSettings, seed: int) -> str:
    spec = arm.spec + (learned_hash(arm.spec) or "")
    described = [task.fingerprint, cache.identity, arm.name, spec, asdict(settings), seed]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _run_all(
    jobs: Sequence[Job], task: Task, cache: LogitCache, settings: StudentSettings, folder: Path, processes: int
) -> Iterator[dict[str, Any]]:
    if processes <= 1 or len(jobs) <= 1:
        worker = _Worker(task, cache, settings, folder)
        yield from map(worker.run, jobs)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used OpenMP can hang
    arguments = (task, cache, settings, folder)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=arguments) as pool:
        try:
            futures = [pool.submit(_run_in_worker, job) for job in jobs]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise RlkdError(
                "a process that trains students died, most likely for want of memory; resume with fewer jobs"
            ) from error
        except BaseException:
            for process in list(pool._processes.values()):
                process.terminate()  # its run is repeated when the comparison is resumed
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_worker: "_Worker | None" = None


def _start_worker(*arguments: Any) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = _Worker(*arguments)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for jobs forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(job: Job) -> dict[str, Any]:
    assert _worker is not None
    return _worker.run(job)


class _Worker:
    """Runs jobs one after the other; inputs are encoded once."""

    def __init__(self, task: Task, cache: LogitCache, settings: StudentSettings, folder: Path) -> None:
        self.task, self.cache, self.settings, self.folder = task, cache, settings, folder
        self.environment = environment()
        self._encoded: dict[str, Any] = {}

    def run(self, job: Job) -> dict[str, Any]:
        record: dict[str, Any] = {
            "key": job.key,
            "task": self.task.name,
            "weighting": job.arm.name,
            "seed": job.seed,
            "student": self.settings.student,
            "teachers": list(self.cache.teacher_names),
            "settings": asdict(self.settings),
            "environment": self.environment,
        }
        started = time.perf_counter()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            record |= self._distil(job) | {"status": "ok"}
        except Exception as error:
            log.debug("run failed", exc_info=True)
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            record |= {"status": "failed", "error": f"{type(error).__name__}: {one_line(error)} ({where})"}
        finally:
            torch.set_num_threads(threads)
        return record | {"seconds": round(time.perf_counter() - started, 2)}

    def _distil(self, job: Job) -> dict[str, Any]:
        weighting = build_weighting(job.arm.spec, self.task, self.cache, seed=job.seed)
        trainer = make_trainer(
            self.task,
            self.cache,
            weighting,
            self.settings,
            self.folder / STUDENTS_FOLDER,
            seed=job.seed,
            shared=self._encoded,
        )
        trainer.train()
        logits, labels = trainer.predict_split("test"), self.task.labels("test")
        _write_weights(self.folder / "weights" / f"{job.key}.json", trainer)
        early_late = trainer.knowing_mass() or (None, None)
        return {
            **classification_metrics(logits, labels),
            "knowing_mass_early": early_late[0],
            "knowing_mass_late": early_late[1],
            "correct": pack_bits(logits.argmax(-1) == labels),
        }


def _write_weights(path: Path, trainer: DistillationTrainer) -> None:
    path.parent.mkdir(exist_ok=True)
    write_json_atomic(path, weights_summary(trainer.weight_record, trainer.cache.teacher_names))


def weights_summary(record: WeightRecord, teacher_names: Sequence[str]) -> dict[str, Any]:
    """What the report draws of a run's weights: means of shape (bins, groups, K), None where nothing was seen."""
    means = record.means()
    shown = means.astype(object)
    shown[np.isnan(means)] = None
    return {
        "teachers": list(teacher_names),
        "groups": list(record.groups),
        "bins": [(index + 0.5) / record.BINS for index in range(record.BINS)],
        "mean": shown.tolist(),
    }


def pack_bits(correct: NDArray[np.bool_]) -> str:
    """Which test rows were right, as hexadecimal digits; :func:`unpack_bits` reads it."""
    return f"{len(correct)}:{np.packbits(correct).tobytes().hex()}"


def unpack_bits(packed: str) -> NDArray[np.bool_]:
    """Bool array (N,) of what :func:`pack_bits` wrote."""
    count, _, digits = packed.partition(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8), count=int(count)).astype(bool)


def summarise(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per weighting: means, 95% intervals, paired differences to uniform and shares of the gap.

    Intervals resample seeds and test instances together (:mod:`rlkd.stats`).

    Args:
        records: Of one task, student and set of teachers. Seeds that failed for any weighting are left out for all.

    Returns:
        Rows in the order in which the weightings first appear; a weighting without a finished run has no figures.
    """
    names = list(dict.fromkeys(str(record["weighting"]) for record in records))
    finished = {(r["weighting"], r["seed"]): r for r in records if r["status"] == "ok"}
    alive = [name for name in names if any((name, r["seed"]) in finished for r in records)]
    seeds = sorted({r["seed"] for r in records if all((name, r["seed"]) in finished for name in alive)})
    rows = []
    right = {name: np.stack([unpack_bits(finished[name, s]["correct"]) for s in seeds]) for name in alive if seeds}
    for name in names:
        failed = sum(r["weighting"] == name and r["status"] != "ok" for r in records)
        row: dict[str, Any] = {"weighting": name, "seeds": len(seeds), "failed": failed}
        if name in right:
            runs = [finished[name, seed] for seed in seeds]
            row |= _row(name, right) | {
                metric: float(np.mean([run[metric] for run in runs]))
                for metric in ("macro_f1", "nll", "ece", "seconds")
            }
            for part in ("early", "late"):
                masses = [run[f"knowing_mass_{part}"] for run in runs]
                row[f"knowing_mass_{part}"] = None if None in masses else float(np.mean(masses))
        rows.append(row)
    return rows


def failures(records: Sequence[Mapping[str, Any]], shown: int = 3) -> list[str]:
    """Say which runs failed and why; nothing where none did."""
    failed = [record for record in records if record["status"] != "ok"]
    if not failed:
        return []
    named = [f"{r['weighting']}, seed {r['seed']}: {r['error']}" for r in failed[:shown]]
    rest = f"; and {len(failed) - shown} more, see {RUNS_FILE}" if len(failed) > shown else ""
    return [f"{len(failed)} of {len(records)} runs failed. {'; '.join(named)}{rest}."]


def _row(name: str, right: Mapping[str, NDArray[np.bool_]]) -> dict[str, Any]:
    generator: Callable[[], np.random.Generator] = lambda: np.random.default_rng(STATISTICS_SEED)  # noqa: E731
    mine = right[name]
    row: dict[str, Any] = {**_spread("accuracy", mean_accuracy(mine, generator()))}
    if "uniform" in right and name != "uniform":
        row |= _spread("gain", paired_difference(mine, right["uniform"], generator()))
        per_seed = mine.mean(1) - right["uniform"].mean(1)
        row["p_value"] = paired_permutation_test(per_seed, generator())
        row["improves"] = probability_of_improvement(mine.mean(1), right["uniform"].mean(1))
    if "uniform" in right and "oracle" in right and name not in ("uniform", "oracle"):
        share = gap_share(mine, right["uniform"], right["oracle"], generator())
        row |= {"gap_share": None} if share is None else dict(_spread("gap_share", share))
    return row


def _spread(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in sentences what a table of :func:`summarise` shows about the learned policy."""
    by_name = {str(row["weighting"]): row for row in rows if "accuracy" in row}
    policy, sentences = by_name.get("policy"), []
    failed = [str(row["weighting"]) for row in rows if "accuracy" not in row]
    if failed:
        sentences.append(f"No finished run of {', '.join(failed)}: see the errors in {RUNS_FILE}.")
    if policy is None or "gain" not in policy:
        return sentences
    low, high = policy["gain_low"], policy["gain_high"]
    span = f"{100 * policy['gain']:+.1f} points over equal weights (95% interval {100 * low:+.1f} to {100 * high:+.1f})"
    if low > 0:
        sentences.append(f"The learned policy pays here: {span}.")
    elif high < 0:
        sentences.append(f"The learned policy harms here: {span}.")
    else:
        sentences.append(f"The learned policy makes no difference that these seeds can show: {span}.")
    shuffle = by_name.get("policy_shuffle")
    if shuffle is not None:
        if shuffle["accuracy"] >= policy["accuracy_low"]:
            sentences.append("Instance weighting is not the cause: the shuffled policy does as well.")
        else:
            drop = 100 * (policy["accuracy"] - shuffle["accuracy"])
            sentences.append(
                f"The instances are the cause: shuffling the policy's weights over them costs {drop:.1f} points."
            )
    if policy.get("gap_share") is not None:
        sentences.append(f"It recovers {policy['gap_share']:.2f} of the gap between equal weights and the oracle.")
    return sentences
