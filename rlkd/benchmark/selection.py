"""A part of a suite, or more than it: some of its tasks, other weightings, seeds or devices, few rows and steps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlkd.benchmark.policies import SMOKE_STEPS, policy_kind
from rlkd.benchmark.suites import Suite, SuiteTask, check_weighting, with_others, with_router
from rlkd.devices import found_device
from rlkd.errors import ConfigError, unknown_name
from rlkd.settings import BenchRunCommand

SMOKE_ROWS = {"train": 400, "probe": 100, "validation": 100, "test": 100}


def select(
    suite: Suite,
    *,
    tasks: Sequence[str] = (),
    weightings: Sequence[str] = (),
    seeds: int | None = BenchRunCommand.seeds,
    device: str | None = None,
    smoke: bool = BenchRunCommand.smoke,
) -> Suite:
    """A part of a suite, or more than it.

    Args:
        suite: The suite.
        tasks: Names of tasks; none: all. Those that their policies learn on are kept too, without students.
        weightings: Run beside those of the suite.
        seeds: The first so many, counting on from the last if there are not as many.
        device: Where teachers, policies and students are trained.
        smoke: Few rows, few steps, one seed: shows that everything runs, not what comes out.
    """
    known = {task.name: task for task in suite.tasks}
    for name in tasks:
        if name not in known:
            raise unknown_name("task", name, known)
    if seeds is not None and seeds < 1:
        raise ConfigError(f"a suite needs 1 seed or more, got {seeds}; raise it")
    chosen = [known[name] for name in tasks] or list(suite.tasks)
    device = None if device is None else found_device(device)
    for spec in weightings:
        for task in chosen:
            if spec not in task.weightings:
                check_weighting(task, spec)
    named = {task.name for task in chosen}
    changed = [  # in the suite's order, which is the order that policies learn elsewhere in
        _changed(task, tuple(weightings), seeds, device, smoke)
        if task.name in named
        else _changed(replace(task, weightings=()), (), seeds, device, smoke)
        for task in suite.tasks
    ]
    whole = with_others(replace(suite, tasks=tuple(changed)))
    if smoke:
        whole = replace(whole, tasks=tuple(map(_from_one_other, whole.tasks)))
    learned_on = {name for task in whole.tasks for plan in task.policies.values() for name in plan.others}
    return replace(whole, tasks=tuple(task for task in whole.tasks if task.name in learned_on or task.name in named))


def _from_one_other(task: SuiteTask) -> SuiteTask:
    """The task, whose policies that learn elsewhere learn on one other task: a few steps are no episode of each."""
    return replace(task, policies={name: replace(plan, others=plan.others[:1]) for name, plan in task.policies.items()})


def _changed(
    task: SuiteTask, weightings: tuple[str, ...], seeds: int | None, device: str | None, smoke: bool
) -> SuiteTask:
    task = with_router(replace(task, weightings=tuple(dict.fromkeys((*task.weightings, *weightings)))))
    if seeds is not None:
        further = range(task.seeds[-1] + 1, task.seeds[-1] + 1 + seeds)
        task = replace(task, seeds=(*task.seeds, *further)[:seeds])
    if device is not None:
        task = replace(
            task,
            teachers={**task.teachers, "device": device} if _trains_teachers(task) else task.teachers,
            system=task.system.on_device(device),
            students={name: replace(settings, device=device) for name, settings in task.students.items()},
            policies={
                name: replace(plan, settings={**plan.settings, "device": device})
                if policy_kind(plan.kind).on_device
                else plan
                for name, plan in task.policies.items()
            },
        )
    return _smoke(task) if smoke else task


def _smoke(task: SuiteTask) -> SuiteTask:
    small = {name: replace(settings, max_steps=SMOKE_STEPS) for name, settings in task.students.items()}
    rows = {name: min(limit, task.rows.get(name, limit)) for name, limit in SMOKE_ROWS.items()}
    policies = {
        name: replace(plan, settings={**plan.settings, **policy_kind(plan.kind).smoke})
        for name, plan in task.policies.items()
    }
    teachers = _one_epoch(task.teachers) if _trains_teachers(task) else task.teachers
    return replace(
        task,
        rows=rows,
        teachers=teachers,
        system=task.system.smoke(),
        students=small,
        policies=policies,
        seeds=task.seeds[:1],
        labels=None if task.labels is None else min(task.labels, 100),
    )


def _trains_teachers(task: SuiteTask) -> bool:
    return "kinds" in task.teachers or "sets" in task.teachers


def _one_epoch(teachers: Mapping[str, Any]) -> dict[str, Any]:
    sets = {name: {**settings, "epochs": 1} for name, settings in teachers.get("sets", {}).items()}
    return {**teachers, "epochs": 1, **({"sets": sets} if sets else {})}
