"""Comparisons on one task: weightings, paired seeds, and the table of what came out."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd.benchmark import check_comparison, compare, compared_weightings
from rlkd.data import Task, load_task
from rlkd.errors import ConfigError
from rlkd.logit_cache import LogitCache, answered_ids, load_cache, taught_rows
from rlkd.records import HARMLESS_KEYS, check_output_dir, read_object, write_json_atomic
from rlkd.report import GLOSSARY, brief_sentences, task_sentences, task_table, write_report
from rlkd.settings import CompareCommand, StudentSettings
from rlkd.stats import group_runs, task_rows
from rlkd.weighting import WeightingSpec
from rlkd.weighting.fixed import Labels
from rlkd.weighting.policy_files import AUTO
from rlkd.workflow.deploying import advice, input_flags
from rlkd.workflow.opening import open_run, tell_if_alone
from rlkd.workflow.students import inputs_record
from rlkd.workflow.teachers import Rows, scores_on_test

log = logging.getLogger(__name__)

DEFAULT_ARMS = ("uniform", "best_teacher", "entropy")
GROWING = frozenset({"weightings", "seeds"})
"""What a resumed comparison may have more of."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came out of a comparison."""

    rows: Rows
    """Of weightings, see :func:`rlkd.stats.task_rows`."""
    sentences: list[str]
    """What the rows say, with its markup."""
    teachers: Rows
    """Scores of each teacher and of their equal mixture on test."""
    advice: list[str]
    """What to deploy and how, likewise marked up."""


def default_weightings(cache: LogitCache, policy: str | None, *, chooses: bool, labels: bool) -> list[str]:
    """The weightings that belong into every table: baselines, the policy with its controls, router and oracle.

    With one teacher they are all the same, and equal weights stand for them.

    Args:
        cache: The teachers' logits.
        policy: Folder of a policy that was trained here.
        chooses: Let ``auto`` try it.
        labels: Add a student of the labels alone.
    """
    alone = [Labels.name] if labels else []
    if len(cache.teacher_names) == 1:
        return [DEFAULT_ARMS[0], *alone]
    learned = [] if policy is None else [f"{name}:{policy}" for name in ("policy", "policy_shuffle", "policy_mean")]
    return [
        *DEFAULT_ARMS,
        *alone,
        f"{AUTO}:{policy}" if chooses and policy is not None else AUTO,
        *learned,
        "router",
        "router:gain",
        *(["oracle"] if cache.knowledge is not None else []),
    ]


def answerable(names: Sequence[str], task: Task, cache: LogitCache) -> list[str]:
    """The weightings but for those that are fitted on rows that nobody answered about, which a warning names."""
    if not cache.has_gaps:
        return list(names)
    learned_on = {"best_teacher": ("validation",), "router": ("train", "probe")}

    def can_be(name: str) -> bool:
        splits = learned_on.get(WeightingSpec.parse(name).name, ())
        return not splits or any(len(answered_ids(cache, task.labelled_ids(split))) for split in splits)

    left = [name for name in names if can_be(name)]
    out = [name for name in names if name not in left]
    if out:
        log.warning("%s left out: no teacher answered about the labelled rows that it takes", ", ".join(out))
    return left


def run_compare(
    task_options: Mapping[str, Any],
    cache_dir: str,
    output_dir: str,
    *,
    settings: StudentSettings,
    weightings: Sequence[str] = (),
    policy: str | None = CompareCommand.policy,
    labels: bool = CompareCommand.labels,
    seeds: int = CompareCommand.seeds,
    jobs: int = CompareCommand.jobs,
    trial_students: int = CompareCommand.trial_students,
    resume: bool = CompareCommand.resume,
    overwrite: bool = CompareCommand.overwrite,
    progress: bool = False,
) -> Comparison:
    """Distil one student per weighting and seed, paired; the table, what it says, and what to deploy."""
    check_output_dir(output_dir, resume=resume, overwrite=overwrite)
    task = load_task(**task_options)
    task, cache = taught_rows(task, load_cache(cache_dir, task))
    if tell_if_alone(cache) and policy is not None:
        raise ConfigError(f"the policy {policy} has one teacher to weight and would change nothing; leave it out")
    begun = _begun(Path(output_dir)) if resume else {}
    labels = labels and len(task.labelled_ids("train")) > 0
    default = default_weightings(cache, policy, chooses=trial_students > 0, labels=labels)
    default = answerable(default, task, cache)
    names, seeds = _extended(begun, list(weightings), default, policy, seeds)
    check_comparison(task, cache, names, settings, seeds=range(seeds), jobs=jobs, trial_students=trial_students)
    chooses = any(WeightingSpec.parse(name).name == AUTO for name in names)
    config = {
        "command": "compare",
        **inputs_record(task_options, cache_dir, task, cache),
        "weightings": names,
        "settings": settings.record(),
        "seeds": seeds,
        **({"trial_students": trial_students} if chooses else {}),
    }
    run = open_run(output_dir, config, resume=resume, overwrite=overwrite, harmless=HARMLESS_KEYS | GROWING)
    if begun:
        write_json_atomic(run.path / "config.json", run.config)
    inputs = input_flags(task_options, cache_dir)
    return compare_and_report(
        task, cache, names, settings, run.path, seeds, jobs, progress, inputs=inputs, trial_students=trial_students
    )


def _begun(folder: Path) -> dict[str, Any]:
    """The config of a comparison that is resumed; nothing if there is none yet."""
    return read_object(folder / "config.json") if (folder / "config.json").is_file() else {}


def _extended(
    begun: Mapping[str, Any], asked: list[str], default: list[str], policy: str | None, seeds: int
) -> tuple[list[str], int]:
    """Weightings and seeds of a comparison that is begun or resumed: what was there stays, what is new is added."""
    there = begun.get("weightings")
    there = there if isinstance(there, list) else []
    new = asked or (default if policy is not None or not there else [])
    known = dict.fromkeys(there)
    # naming one twice is refused later, unless it was there before
    return [*there, *(name for name in new if name not in known)], max(seeds, begun.get("seeds", seeds))


def compare_and_report(
    task: Task,
    cache: LogitCache,
    names: Sequence[str],
    settings: StudentSettings,
    folder: Path,
    seeds: int,
    jobs: int,
    progress: bool,
    *,
    inputs: Sequence[str],
    curve: Mapping[str, Any] | None = None,
    trial_students: int = CompareCommand.trial_students,
) -> Comparison:
    """Run a comparison and write its table and its page; ``inputs`` name task and cache on a command line."""
    records = compare(
        task,
        cache,
        names,
        settings,
        folder,
        seeds=range(seeds),
        jobs=jobs,
        trial_students=trial_students,
        progress=progress,
    )
    (runs,) = group_runs(records)
    rows = task_rows(runs)
    sentences, teachers = task_sentences(runs, rows), scores_on_test(task, cache)
    if not any(row["rows"] for row in teachers):
        sentences = [*sentences, "Teachers were asked about no test row: how good they are themselves is not known."]
    weightings = compared_weightings(names, task, cache, folder, settings, students=trial_students)
    advised = advice(runs, weightings, teachers, task, cache, settings, folder, inputs)
    write_json_atomic(folder / "table.json", [*rows, *teachers])
    drawn = _drawn_weights(folder, records)
    write_report(
        folder / "report.html",
        title=f"Weightings compared on {task.name}",
        summary=[*advised, *brief_sentences(runs, rows)],
        details=[
            f"{seeds} paired seeds, student {settings.student}, {settings.max_steps} steps at a learning rate of "
            f"{settings.learning_rate:g}, on {settings.device}.",
            *sentences,
        ],
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
        tables=[("Weightings", task_table(runs, rows).rows), ("Teachers on test", teachers)],
        glossary=GLOSSARY,
    )
    return Comparison(rows=rows, sentences=sentences, teachers=teachers, advice=advised)


def _drawn_weights(folder: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Weights of the policy's first finished run, else of the first finished run."""
    finished = [record for record in records if record["status"] == "ok"]
    chosen = [record for record in finished if record["weighting"] == "policy"] or finished
    if not chosen:
        return None
    content: dict[str, Any] = read_object(folder / "weights" / f"{chosen[0]['key']}.json")
    return content
