"""Paired comparisons on one task: one student per weighting and seed, one JSON line each.

For a seed every weighting gets the same initialisation, the same batches and the same budget, so differences are
paired.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rlkd.benchmark.compared import compared_weightings, labelled_rows_alone
from rlkd.benchmark.jobs import STUDENTS_FOLDER, Context, Job, run_job, run_key
from rlkd.benchmark.workers import Busy, Unit, one_more_process, run_units
from rlkd.choosing import check_choice
from rlkd.data.splitting import check_seed
from rlkd.data.task import Task
from rlkd.devices import check_device
from rlkd.errors import ConfigError, WeightingError
from rlkd.logit_cache import LogitCache
from rlkd.models.students import check_student
from rlkd.records import LOCKS_FOLDER, append_jsonl, check_one_process, claim, environment, read_jsonl
from rlkd.settings import CompareCommand, StudentSettings
from rlkd.weighting import Evidence, WeightingSpec, build_weighting
from rlkd.weighting.policy_files import AUTO
from rlkd.weighting.router import Router
from rlkd.weighting.router_targets import check_teachers

RUNS_FILE = "runs.jsonl"


def check_comparison(
    task: Task,
    cache: LogitCache,
    specs: Sequence[str],
    settings: StudentSettings,
    *,
    seeds: Sequence[int],
    jobs: int,
    trial_students: int = CompareCommand.trial_students,
) -> None:
    """Make every weighting and the student once, so that what cannot run is refused before anything is written.

    Arguments are those of :func:`compare`.

    Raises:
        ConfigError: Nothing to compare, or a setting out of range.
        WeightingError: A weighting is unknown, named twice, or needs what the task or the cache does not have.
        StudentError: The student does not exist or cannot read this task.
    """
    check_one_process("students are compared")
    if not specs or not seeds:
        raise ConfigError(f"a comparison needs weightings and seeds, got {len(specs)} and {len(seeds)}; name some")
    if jobs < 1:
        raise ConfigError(f"a comparison needs jobs >= 1, got {jobs}; 1 runs one student after the other")
    for seed in seeds:
        check_seed(seed)
    check_device(settings.device)
    if len(set(specs)) < len(specs):
        raise WeightingError(f"every weighting may be named once, got {', '.join(specs)}; drop the repeated ones")
    for spec in [WeightingSpec.parse(spec) for spec in specs]:
        if spec.name == "router":  # it is fitted when the comparison has a directory
            check_teachers(Evidence.of(task, cache), Router.variant(spec.argument))
        elif spec.name == AUTO:
            check_choice(spec, trial_students)
        else:
            rows = Context(task, cache).labelled if labelled_rows_alone(spec, task) else Context(task, cache)
            build_weighting(spec, rows.task, rows.cache)
    check_student(settings.student, task, num_layers=settings.num_layers, max_length=settings.max_length)


def compare(
    task: Task,
    cache: LogitCache,
    specs: Sequence[str],
    settings: StudentSettings,
    output_dir: str | Path,
    *,
    seeds: Sequence[int] = range(CompareCommand.seeds),
    jobs: int = CompareCommand.jobs,
    trial_students: int = CompareCommand.trial_students,
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
        trial_students: By which ``auto`` chooses, see :func:`rlkd.choosing.choose`.
        progress: Show a progress bar.

    Returns:
        The records of all runs asked for, failed ones included (``status`` other than ``"ok"``).
    """
    check_comparison(task, cache, specs, settings, seeds=seeds, jobs=jobs, trial_students=trial_students)
    comparison = _Comparison(task, cache, specs, settings, Path(output_dir), seeds, trial_students)
    units = comparison.unfinished()
    done = len(comparison.units) - len(units)
    with tqdm(total=len(comparison.units), initial=done, desc="students", unit="run", disable=not progress) as bar:
        for _ in run_units(units, comparison.make_worker, jobs):
            bar.update()
    return comparison.records()


@contextmanager
def students_beside(
    task: Task,
    cache: LogitCache,
    specs: Sequence[str],
    settings: StudentSettings,
    output_dir: str | Path,
    *,
    seeds: Sequence[int] = range(CompareCommand.seeds),
) -> Iterator[None]:
    """Distil students of a comparison in another process while this one makes what its other weightings need.

    Arguments are those of :func:`compare`, which is called within the block and finds finished what was done by then.
    """
    comparison = _Comparison(task, cache, specs, settings, Path(output_dir), seeds, CompareCommand.trial_students)
    with one_more_process(comparison.unfinished(), comparison.make_worker):
        yield


class _Comparison:
    """The runs of a comparison, and where their records are."""

    def __init__(
        self,
        task: Task,
        cache: LogitCache,
        specs: Sequence[str],
        settings: StudentSettings,
        folder: Path,
        seeds: Sequence[int],
        trial_students: int,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        weightings = compared_weightings(specs, task, cache, folder, settings, students=trial_students)
        context = Context(task, cache)
        jobs = [Job(compared=each, settings=settings, seed=seed) for seed in seeds for each in weightings]
        self.folder, self.ledger = folder, Ledger.open(folder / RUNS_FILE)
        self.units = [Unit(run_key(context.of(job.compared), job), job) for job in jobs]
        self.make_worker = partial(_Worker, task, cache, folder, self.ledger, environment())

    def unfinished(self) -> list[Unit]:
        finished = self.ledger.finished()
        return [unit for unit in self.units if unit.name not in finished]

    def records(self) -> list[dict[str, Any]]:
        """Of all runs, once they are finished."""
        for leftover in (STUDENTS_FOLDER, LOCKS_FOLDER):
            with suppress(OSError):
                (self.folder / leftover).rmdir()
        newest = {record["key"]: record for record in read_jsonl(self.folder / RUNS_FILE)}
        return [newest[unit.name] for unit in self.units]


class Ledger:
    """A file of records that several programs append to, each run once."""

    def __init__(self, path: Path, seen: int) -> None:
        """Remember how many records were there when the work began."""
        self.path, self.seen = path, seen

    @classmethod
    def open(cls, path: Path) -> "Ledger":
        """Begin to work on a file; it may be absent."""
        return cls(path, len(read_jsonl(path)))

    def finished(self) -> dict[str, dict[str, Any]]:
        """Records that need no repetition, by key.

        Those that succeeded, and those that failed since the work began: a failed run is tried again by the next
        call, and not by each of two that work side by side.
        """
        return {
            record["key"]: record
            for index, record in enumerate(read_jsonl(self.path))
            if record["status"] == "ok" or index >= self.seen
        }

    def once(self, key: str, make: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any] | Busy:
        """Make and append the record of a key, unless it is there already.

        Args:
            key: Of the record.
            make: Does the work.

        Returns:
            The record, or :class:`Busy` while another program makes it.
        """
        with claim(self.path.parent / LOCKS_FOLDER, key) as ours:
            if not ours:
                return Busy()
            found = self.finished().get(key)
            if found is not None:
                return found
            record = make()
            append_jsonl(self.path, record)
            return record


class _Worker:
    """Runs the jobs of one comparison, one after the other."""

    def __init__(
        self, task: Task, cache: LogitCache, folder: Path, ledger: Ledger, environment: Mapping[str, Any]
    ) -> None:
        self.context, self.folder, self.ledger, self.environment = Context(task, cache), folder, ledger, environment

    def do(self, unit: Unit) -> Any:
        context = self.context.of(unit.work.compared)
        return self.ledger.once(unit.name, lambda: run_job(context, unit.work, self.folder, self.environment))
