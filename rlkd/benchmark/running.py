"""Run a suite: stages and runs as units of work, one line a result; what is finished is never done again."""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from rlkd.benchmark.comparing import Ledger
from rlkd.benchmark.jobs import STUDENTS_FOLDER, Context, Job, failure, run_job, run_key
from rlkd.benchmark.paths import portable
from rlkd.benchmark.policies import Ground, policy_kind
from rlkd.benchmark.stages import compared_weighting, make_policy, make_teachers, open_context, policy_folder
from rlkd.benchmark.suites import Suite, SuiteTask
from rlkd.benchmark.workers import Unit, run_units
from rlkd.devices import check_device, one_thread
from rlkd.errors import ConfigError
from rlkd.records import LOCKS_FOLDER, check_one_process, digest, environment
from rlkd.settings import CompareCommand

log = logging.getLogger(__name__)

RESULTS_FILE = "results.jsonl"
OPEN_CONTEXTS = 2
"""Tasks that a process keeps in memory: the one that ends and the one that begins."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def plan_units(suite: Suite) -> list[Unit]:
    """The units of a suite in order: of each task its teachers, its policies, its runs.

    Where policies learn on other tasks than their own, the teachers of all come first.
    """
    units: dict[str, Unit] = {}
    taught_by = _teachers_units(suite)
    if any(plan.others for task in suite.tasks for plan in task.policies.values()):
        units |= {unit.name: unit for unit in taught_by.values()}
    for index, task in enumerate(suite.tasks):
        teachers = taught_by[task.name].name
        units[teachers] = taught_by[task.name]
        for name, seed in product(task.needed_policies(), task.policy_seeds):
            plan = task.policies[name]
            read = [f"policy-{task.policy_key(other, seed)}" for other in policy_kind(plan.kind).reads(plan)]
            taught = [taught_by[other].name for other in plan.others] or [teachers]
            unit = Unit(f"policy-{task.policy_key(name, seed)}", TrainedPolicy(index, name, seed), (*taught, *read))
            units[unit.name] = unit
        for seed, student, weighting in product(task.seeds, task.students, task.weightings):
            found = task.policy_of(weighting)
            policy = found and f"policy-{task.policy_key(found.policy, task.policy_seed(seed))}"
            name = f"run-{task.name}-{digest([student, weighting, seed])}"
            needs = (teachers, policy) if policy else (teachers,)
            units[name] = Unit(name, Run(index, student, weighting, seed), needs)
    return suite.system.units(suite, list(units.values()))


def _teachers_units(suite: Suite) -> dict[str, Unit]:
    """The units of teachers by task; tasks that share their teachers wait for the first of them."""
    units: dict[str, Unit] = {}
    first: dict[str, str] = {}
    for index, task in enumerate(suite.tasks):
        name = f"teachers-{task.teachers_key}-{task.name}"
        maker = first.setdefault(task.teachers_key, name)
        units[task.name] = Unit(name, Teachers(index), () if maker == name else (maker,))
    return units


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
    suite.system.check(suite)


def run_suite(
    suite: Suite, output_dir: str | Path, *, jobs: int = CompareCommand.jobs, progress: bool = False
) -> list[dict[str, Any]]:
    """Run what is not finished of a suite.

    Several programs may run one suite in one folder: they share the work.

    Args:
        suite: As :func:`rlkd.benchmark.suite_files.load_suite` reads it.
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
        self._contexts: OrderedDict[int, Context] = OrderedDict()

    def do(self, unit: Unit) -> Any:
        """The record of a unit, done here unless it is there; ``Busy`` while another program is at it."""
        with one_thread():
            return unit.work.do(self, unit.name)

    def stage(self, name: str, task: SuiteTask, head: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> Any:
        """Make a stage once, and its record once.

        Args:
            name: Of the unit.
            task: That it belongs to.
            head: Of the record.
            make: Does the work, and gives the figures of the record.
        """

        def record() -> Mapping[str, Any]:
            base = {**head, "key": name, "suite": self.suite.name, "task": task.name}
            base |= {"environment": dict(self.environment)}
            try:
                made: dict[str, Any] = portable(base | make() | {"status": "ok"})
            except Exception as error:
                return base | failure(error)
            return made

        return self.ledger.once(name, record)

    def teachers_folder(self, task: SuiteTask) -> Path:
        """Where the teachers of a task and their cache are."""
        return self.folder / "teachers" / task.teachers_key

    def context(self, index: int, task: SuiteTask) -> Context:
        """A task with its teachers' logits; the last few stay open."""
        if index not in self._contexts:
            self._contexts[index] = open_context(task, self.teachers_folder(task))
            while len(self._contexts) > OPEN_CONTEXTS:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(index)
        return self._contexts[index]


class Work(Protocol):
    """What is done in a unit; plain values that are sent to the process that does it."""

    index: int
    """Of the task, in the suite."""

    def do(self, worker: SuiteWorker, name: str) -> Any:
        """The record of the unit of that name; ``Busy`` while another program is at it."""


@dataclass(frozen=True)
class Teachers:
    """The teachers of a task, trained and asked about every instance."""

    index: int

    def do(self, worker: SuiteWorker, name: str) -> Any:
        """See :class:`Work`."""
        task = worker.suite.tasks[self.index]
        return worker.stage(name, task, {"kind": "task"}, lambda: self.make(worker, task, worker.teachers_folder(task)))

    def make(self, worker: SuiteWorker, task: SuiteTask, folder: Path) -> dict[str, Any]:
        """Make them in a folder, and give the figures of their record."""
        return make_teachers(task, folder)


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy of a task."""

    index: int
    policy: str
    seed: int

    def do(self, worker: SuiteWorker, name: str) -> Any:
        """See :class:`Work`."""
        task = worker.suite.tasks[self.index]
        folder = worker.folder / "policies" / task.policy_key(self.policy, self.seed)

        def make() -> dict[str, Any]:
            return make_policy(task, self.policy, self.seed, self._ground(worker, task), folder)

        return worker.stage(name, task, {"kind": "policy", "policy": self.policy, "seed": self.seed}, make)

    def _ground(self, worker: SuiteWorker, task: SuiteTask) -> Ground:
        """Its own task, or the others; and the policies that it reads."""
        plan, places = task.policies[self.policy], {one.name: i for i, one in enumerate(worker.suite.tasks)}
        chosen = [places[other] for other in plan.others] or [self.index]
        learned_on = [(index, worker.suite.tasks[index]) for index in chosen]
        tasks = [(worker.context(index, one), next(iter(one.students.values()))) for index, one in learned_on]
        folder, reads = worker.folder / "policies", policy_kind(plan.kind).reads(plan)
        return Ground(tasks, {name: policy_folder(task, name, self.seed, folder) for name in reads})


@dataclass(frozen=True)
class Run:
    """A student of a task, distilled and scored."""

    index: int
    student: str
    weighting: str
    seed: int

    def do(self, worker: SuiteWorker, name: str) -> Any:
        """See :class:`Work`."""
        suite, task = worker.suite, worker.suite.tasks[self.index]
        try:
            compared = compared_weighting(task, self.weighting, self.seed, worker.folder / "policies")
            context = worker.context(self.index, task).of(compared)
        except Exception as error:
            lost = {"kind": "run", "key": name, "suite": suite.name, "task": task.name, **failure(error)}
            lost |= {"weighting": self.weighting, "seed": self.seed, "student": self.student}
            return worker.ledger.once(name, lambda: lost)
        job = Job(
            compared=compared,
            settings=task.students[self.student],
            seed=self.seed,
            student=self.student,
            suite=suite.name,
            metric=task.metric,
            distiller=task.system.distiller(self.weighting),
        )
        return worker.ledger.once(
            run_key(context, job), lambda: portable(run_job(context, job, worker.folder, worker.environment))
        )
