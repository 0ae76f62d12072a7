"""The quick start: the whole main job on the embedded text task."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from rlkd.benchmark import compare, students_beside
from rlkd.data import Task, load_task
from rlkd.devices import one_thread
from rlkd.errors import ConfigError
from rlkd.logit_cache import LogitCache, build_cache
from rlkd.models import load_teachers, train_teachers
from rlkd.records import check_output_dir
from rlkd.settings import PolicyTraining, QuickstartCommand, StudentSettings
from rlkd.stats import group_runs, task_rows
from rlkd.weighting.policy_files import AUTO
from rlkd.workflow.comparing import DEFAULT_ARMS, compare_and_report, default_weightings
from rlkd.workflow.deploying import input_flags
from rlkd.workflow.opening import open_run
from rlkd.workflow.policies import learning_curve, run_train_policy
from rlkd.workflow.teachers import Rows

QUICKSTART_TEACHERS = ("tfidf", "tfidf", "rlkd/bilstm")
QUICKSTART_EPOCHS = 8
"""Enough for a network to be surer of its own classes than of foreign ones, as the linear teachers are."""
QUICKSTART_STUDENT = StudentSettings(
    student="rlkd/bilstm", max_steps=200, learning_rate=5e-3, max_length=24, device="cpu"
)
SHIPPED = f"policy:{AUTO}"
"""The policy that is shipped, as it is: beside it stands what is trained here."""
SEEN = (
    f"First look: equal weights and `{SHIPPED}`, the policy that is shipped, which needs no training. (It has seen "
    "this task; benchmarks/RESULTS.md has tasks that it never saw.)"
)


def run_quickstart(
    output_dir: str,
    *,
    seeds: int = QuickstartCommand.seeds,
    jobs: int | None = QuickstartCommand.jobs,
    total_timesteps: int = QuickstartCommand.total_timesteps,
    resume: bool = QuickstartCommand.resume,
    overwrite: bool = QuickstartCommand.overwrite,
    progress: bool = False,
    told: Callable[[Rows, list[str]], None] | None = None,
) -> tuple[Rows, list[str]]:
    """The whole main job on the embedded text task: specialists, cache, policy, paired students, table.

    Args:
        output_dir: Directory that everything is written to.
        seeds: Number of paired seeds.
        jobs: Processes; None: one a core.
        total_timesteps: Of the policy that is trained here.
        resume: Continue what is there.
        overwrite: Delete what is there.
        progress: Show progress bars.
        told: Is given the first table, of the shipped policy, long before the last; None: nobody is.

    Returns:
        The rows of the table, and sentences with their markup.
    """
    workers = min(os.cpu_count() or 1, 8) if jobs is None else jobs
    if seeds < 1 or workers < 1:
        raise ConfigError(f"the quick start needs seeds >= 1 and jobs >= 1, got {seeds} and {workers}; raise them")
    check_output_dir(output_dir, resume=resume, overwrite=overwrite)
    task_options: dict[str, Any] = {"source": "docstrings"}
    task = load_task(**task_options)
    settings, training = QUICKSTART_STUDENT, PolicyTraining(total_timesteps=total_timesteps)
    config = {
        "command": "quickstart",
        "task": task_options["source"],
        "data": task.fingerprint,
        "teachers": list(QUICKSTART_TEACHERS),
        "settings": settings.record(),
        "seeds": seeds,
        "total_timesteps": training.total_timesteps,
    }
    folder = open_run(output_dir, config, resume=resume, overwrite=overwrite).path
    cache = _specialists(task, folder, settings.max_length, progress)
    first = compare(task, cache, ["uniform", SHIPPED], settings, folder, seeds=range(1), jobs=min(2, workers))
    if told is not None:
        told(task_rows(group_runs(first)[0]), [SEEN])
    learned = default_weightings(cache, str(folder / "policy" / "policy"), chooses=False, labels=False)
    names = [SHIPPED if name == AUTO else name for name in learned]
    with _policy_free_students(task, cache, settings, folder, seeds, workers):
        _train_policy(task_options, folder, settings, training, progress)
        curve = learning_curve(folder / "policy")
        inputs = input_flags(task_options, str(folder / "cache"))
        found = compare_and_report(
            task, cache, names, settings, folder, seeds, workers, progress, inputs=inputs, curve=curve
        )
        return found.rows, found.sentences


def _specialists(task: Task, folder: Path, max_length: int, progress: bool) -> LogitCache:
    """Teachers that know some of the classes each, and the cache of what they say."""
    with one_thread():  # teachers, policy and students are the same on any number of cores
        paths = train_teachers(
            task,
            folder / "teachers",
            kinds=QUICKSTART_TEACHERS,
            specialize="class",
            max_length=max_length,
            epochs=QUICKSTART_EPOCHS,
            progress=progress,
        )
        teachers = load_teachers([str(path) for path in paths], task)
        return build_cache(teachers, task, folder / "cache", max_length=max_length, progress=progress)


def _train_policy(
    task_options: dict[str, Any], folder: Path, settings: StudentSettings, training: PolicyTraining, progress: bool
) -> None:
    with one_thread():
        run_train_policy(
            task_options,
            str(folder / "cache"),
            str(folder / "policy"),
            student=settings.student,
            training=training,
            episode={"max_length": settings.max_length, "learning_rate": settings.learning_rate},
            device=settings.device,
            jobs=1,  # other processes are at students of the comparison
            resume=True,
            progress=progress,
        )


def _policy_free_students(
    task: Task, cache: LogitCache, settings: StudentSettings, folder: Path, seeds: int, workers: int
) -> AbstractContextManager[None]:
    """Students that need no policy, distilled while one is trained: that takes no more than one core."""
    if workers == 1:
        return nullcontext()
    return students_beside(task, cache, [*DEFAULT_ARMS, SHIPPED, "oracle"], settings, folder, seeds=range(seeds))
