"""Run a suite: stages and runs as units of work, one line a result; what is finished is never done again."""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rlkd.benchmark.comparing import Ledger
from rlkd.benchmark.jobs import STUDENTS_FOLDER, Context, Job, failure, run_job, run_key
from rlkd.benchmark.mkd_running import MKD_DOES, check_mkd_suite, plan_mkd_runs, plan_mkd_teachers
from rlkd.benchmark.places import portable
from rlkd.benchmark.policies import policy_kind
from rlkd.benchmark.stages import arm_of, labelled_part, make_policy, make_teachers, open_context
from rlkd.benchmark.suites import Suite, TaskPlan, digest
from rlkd.benchmark.workers import LOCKS_FOLDER, Unit, run_units
from rlkd.devices import check_device, one_thread
from rlkd.errors import ConfigError
from rlkd.records import check_one_process, environment

log = logging.getLogger(__name__)

RESULTS_FILE = "results.jsonl"
OPEN_CONTEXTS = 2
"""Tasks that a process keeps in memory: the one that ends and the one that begins."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def plan_units(suite: Suite) -> list[Unit]:
    """The units of a suite in order: of each task its teachers, its policies, its runs."""
    units: dict[str, Unit] = {unit.name: unit for unit in plan_mkd_teachers(suite)}
    first: dict[str, str] = {}
    for index, task in enumerate(suite.tasks):
        teachers = f"teachers-{task.teachers_key}-{task.name}"
        maker = first.setdefault(task.teachers_key, teachers)  # tasks that share their teachers wait for them
        before = tuple(unit.name for unit in units.values() if unit.work[0] == "mkd_teacher")
        kind = "task" if suite.mkd is None else "mkd_task"
        units[teachers] = Unit(teachers, (kind, index), before if maker == teachers else (maker,))
        for name in dict.fromkeys(found[0] for spec in task.weightings if (found := task.policy_of(spec))):
            for seed in task.policy_seeds:
                unit = Unit(f"policy-{task.policy_key(name, seed)}", ("policy", index, name, seed), (teachers,))
                units[unit.name] = unit
        for seed in task.seeds if suite.mkd is None else ():
            for student in task.students:
                for weighting in task.weightings:
                    found = task.policy_of(weighting)
                    policy = found and f"policy-{task.policy_key(found[0], task.policy_seed(seed))}"
                    work = ("run", index, student, weighting, seed)
                    name = f"run-{task.name}-{digest(list(work[2:]))}"
                    units[name] = Unit(name, work, (teachers, policy) if policy else (teachers,))
    return [*units.values(), *plan_mkd_runs(suite, list(units.values()))]


def check_suite(suite: Suite) -> None:
    """Refuse what cannot run, as far as it can be told without data.

    Raises:
        ConfigError: A setting of a policy is unknown or out of range, a device is not there, or an oracle has nothing
            to know.
    """
    check_one_process("a suite is run")
    for task in suite.tasks:
        if "oracle" in task.weightings and not task.teachers_may_say_what_they_know:
            raise ConfigError(
                f"task {task.name!r}: the oracle needs teachers that are all specialists of classes, or all of domains "
                "(specialize), these learn everything; leave oracle out"
            )
        for settings in task.students.values():
            check_device(settings.device)
        for policy in task.policies.values():
            policy_kind(policy.kind).check(policy, next(iter(task.students.values())))
            if task.meta_kd is not None and policy.kind != "router" and "student" not in policy.settings:
                raise ConfigError(
                    f"task {task.name!r}: students of Meta-KD learn features first, and those of policy training do "
                    f"not; give policy {policy.name!r} the name of another student to be trained with (student)"
                )
    check_mkd_suite(suite)


def run_suite(suite: Suite, output_dir: str | Path, *, jobs: int = 1, progress: bool = False) -> list[dict[str, Any]]:
    """Run what is not finished of a suite.

    Several programs may run one suite in one folder: they share the work.

    Args:
        suite: As :func:`rlkd.benchmark.suites.load_suite` reads it.
        output_dir: Holds ``results.jsonl``, which is only appended to, and the stages.
        jobs: Processes, each with one CPU thread.
        progress: Show a progress bar with the time left.

    Returns:
        The records of this suite's runs and stages, failed ones included, in the order in which they ended.
    """
    if jobs < 1:
        raise ConfigError(f"a suite needs jobs >= 1, got {jobs}; 1 runs one student after the other")
    check_suite(suite)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    ledger, units, records = Ledger.open(folder / RESULTS_FILE), plan_units(suite), []
    make_worker = partial(SuiteWorker, suite, folder, ledger, environment())
    failed = 0
    with _one_thread_each(), tqdm(total=len(units), desc=suite.name, unit="run", disable=not progress) as bar:
        for _, record in run_units(units, make_worker, jobs):
            records.append(record)
            failed += record["status"] != "ok"
            if failed:
                bar.set_postfix(failed=failed)
            bar.update()
    for leftover in (STUDENTS_FOLDER, LOCKS_FOLDER):
        with suppress(OSError):
            (folder / leftover).rmdir()
    return records


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started meanwhile use one thread each; read by the libraries when they are loaded."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class SuiteWorker:
    """Does the units of a suite in one process."""

    def __init__(self, suite: Suite, folder: Path, ledger: Ledger, environment: Mapping[str, Any]) -> None:
        """Open nothing yet; ``held`` is for what a system's units share."""
        self.held: dict[Any, Any] = {}
        self.suite, self.folder, self.ledger, self.environment = suite, folder, ledger, environment
        self._contexts: OrderedDict[tuple[int, bool], Context] = OrderedDict()

    def do(self, unit: Unit) -> Any:
        """The record of a unit, done here unless it is there; ``Busy`` while another program is at it."""
        kind, index, *rest = unit.work
        task = self.suite.tasks[index]
        with one_thread():
            return DOES[kind](self, unit, index, task, *rest)

    def _task(self, unit: Unit, index: int, task: TaskPlan) -> Any:
        return self.stage(unit, task, {"kind": "task"}, lambda: make_teachers(task, self.teachers_folder(task)))

    def _policy(self, unit: Unit, index: int, task: TaskPlan, name: str, seed: int) -> Any:
        def make() -> dict[str, Any]:
            folder = self.folder / "policies" / task.policy_key(name, seed)
            return make_policy(task, name, seed, self.context(index, task), folder)

        return self.stage(unit, task, {"kind": "policy", "policy": name, "seed": seed}, make)

    def stage(self, unit: Unit, task: TaskPlan, head: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> Any:
        """Make a stage once, and its record once."""

        def record() -> Mapping[str, Any]:
            base = {**head, "key": unit.name, "suite": self.suite.name, "task": task.name}
            base |= {"environment": dict(self.environment)}
            try:
                made: dict[str, Any] = portable(base | make() | {"status": "ok"})
            except Exception as error:
                return base | failure(error)
            return made

        return self.ledger.once(unit.name, record)

    def _run(self, unit: Unit, index: int, task: TaskPlan, student: str, weighting: str, seed: int) -> Any:
        try:
            arm = arm_of(task, weighting, seed, self.folder / "policies")
            context = self.context(index, task, labelled_only=arm.labelled_only)
        except Exception as error:
            lost = {"kind": "run", "key": unit.name, "suite": self.suite.name, "task": task.name, **failure(error)}
            lost |= {"weighting": weighting, "seed": seed, "student": student}
            return self.ledger.once(unit.name, lambda: lost)
        job = Job(
            arm=arm,
            settings=task.students[student],
            seed=seed,
            student=student,
            suite=self.suite.name,
            metric=task.metric,
            recipe=None if task.meta_kd is None else task.meta_kd.recipe(weighting),
        )
        return self.ledger.once(
            run_key(context, job), lambda: portable(run_job(context, job, self.folder, self.environment))
        )

    def teachers_folder(self, task: TaskPlan) -> Path:
        """Where the teachers of a task and their cache are."""
        return self.folder / "teachers" / task.teachers_key

    def context(self, index: int, task: TaskPlan, *, labelled_only: bool = False) -> Context:
        """A task with its teachers' logits; the last few stay open."""
        key = (index, labelled_only)
        if key not in self._contexts:
            if labelled_only:
                self._contexts[key] = labelled_part(self.context(index, task))
            else:
                self._contexts[key] = open_context(task, self.teachers_folder(task))
            while len(self._contexts) > OPEN_CONTEXTS:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(key)
        return self._contexts[key]


DOES: Mapping[str, Callable[..., Any]] = {
    "task": SuiteWorker._task,
    "policy": SuiteWorker._policy,
    "run": SuiteWorker._run,
    **MKD_DOES,
}
"""Kind of unit to what does it."""
