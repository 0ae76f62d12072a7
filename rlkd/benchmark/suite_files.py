"""Reading a suite from YAML: every key is checked, and told with its place."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from rlkd import plugins
from rlkd.benchmark.paths import with_places
from rlkd.benchmark.policies import SuitePolicy, policy_kinds
from rlkd.benchmark.reading import built, check_keys, mapping_in, names_in
from rlkd.benchmark.suites import METRICS, ORDINARY, Suite, SuiteTask, System, check_weighting, with_others, with_router
from rlkd.data.loading import load_task
from rlkd.data.planted import PlantedSettings
from rlkd.data.splitting import check_seed
from rlkd.errors import ConfigError, one_line, unknown_name
from rlkd.records import check_folder_name
from rlkd.settings import StudentSettings, TeacherTraining
from rlkd.settings.knobs import names_of

_SUITE_KEYS = ("suite", "description", "tasks", "system")
_LOADING = frozenset(inspect.signature(load_task).parameters) - {"name"}
_TEACHING = names_of(TeacherTraining) | {"kinds", "paths", "sets", "device"}
_TASK_KEYS = frozenset(f.name for f in fields(SuiteTask)) - {"source", "system"} | {"student", "without"} | _LOADING


def load_suite(path: str | Path) -> Suite:
    """Read a suite.

    Every key of a task may also stand at the top, as the default of all tasks; mappings are laid over one another key
    by key, anything else replaces.

    Raises:
        ConfigError: The file cannot be read, a key is unknown (names the nearest), or a value does not fit.
        UnknownNameError: A weighting or a kind of policy does not exist.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"expected a suite in YAML at {path}: {one_line(error)}; mend or name another") from error
    if not isinstance(content, dict) or not isinstance(content.get("tasks"), list) or not content["tasks"]:
        raise ConfigError(f"expected a suite with a list of tasks in {path}, got something else; see benchmarks/suites")
    content = with_places(content)
    system = content.get("system")
    if system is not None and system not in plugins.registered("suites"):
        raise unknown_name("system", str(system), plugins.registered("suites"))
    defaults = {key: value for key, value in content.items() if key not in _SUITE_KEYS}
    tasks = tuple(_suite_task(_laid_over(defaults, task), path, system) for task in content["tasks"])
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: every task needs a name of its own, got {', '.join(names)}; rename one")
    if not any(task.weightings for task in tasks):
        raise ConfigError(f"{path}: expected weightings, got none; name some")
    suite = Suite(
        name=check_folder_name(content.get("suite", path.stem), str(path), "suite"),
        description=str(content.get("description", "")),
        tasks=tasks,
    )
    return with_others(suite)


def _suite_task(content: Mapping[str, Any], path: Path, system_name: str | None) -> SuiteTask:
    name = check_folder_name(content.get("name"), str(path), "task")
    where = f"{path}, task {name!r}"
    system = _system(content, system_name, where)
    check_keys(content, _TASK_KEYS | {system_name or "name"}, where)
    planted = content.get("planted")
    if (planted is None) == ("source" not in content):
        raise ConfigError(f"{where}: expected a source or planted, one of the two; mend it")
    weightings = names_in(content, "weightings", where)
    without = names_in(content, "without", where)
    for spec in without:
        if spec not in weightings:
            raise unknown_name("weighting to leave out", spec, weightings)
    kept = tuple(spec for spec in weightings if spec not in without)
    plan = SuiteTask(
        name=name,
        source={key: value for key, value in content.items() if key in _LOADING},
        planted=None if planted is None else built(PlantedSettings, planted, f"{where}, planted"),
        rows=mapping_in(content, "rows", where),
        teachers=_teachers(content, system_name if system.brings_teachers else None, where),
        teacher_share=content.get("teacher_share"),
        embedder=content.get("embedder"),
        embeddings=bool(content.get("embeddings", False)),
        labels=content.get("labels"),
        students=students_of(content, where),
        policies=_policies(mapping_in(content, "policies", where), where),
        weightings=kept,
        labelled_only=frozenset(names_in(content, "labelled_only", where)),
        family=content.get("family", ""),
        metric=content.get("metric", "accuracy"),
        seeds=_seeds(content.get("seeds", 5), where),
        policy_seeds=_seeds(content.get("policy_seeds", 1), where),
        resample=content.get("resample", 0),
        system=system,
    )
    if plan.metric not in METRICS:
        raise unknown_name("metric", str(plan.metric), METRICS)
    if not kept and content.get("weightings") != []:  # a task that others learn on needs none
        raise ConfigError(f"{where}: expected weightings, got none; name some")
    for entry in kept:
        check_weighting(plan, entry)
    return with_router(plan)


def _system(content: Mapping[str, Any], name: str | None, where: str) -> System:
    """What runs the task; settings of another system than the suite's are refused."""
    for other in plugins.registered("suites"):
        if other in content and other != name:
            raise ConfigError(f"{where}: {other!r} needs 'system: {other}' at the top of the suite; add it")
    if name is None:
        return ORDINARY
    system: type[System] = plugins.load("suites", name)
    return system.read(mapping_in(content, name, where), content, where)


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    seeds = tuple(range(value)) if isinstance(value, int) else tuple(value) if isinstance(value, list) else ()
    if not seeds or not all(isinstance(seed, int) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"{where}: expected a number of seeds or a list of different ones, got {value!r:.80}; mend it"
        )
    for seed in seeds:
        check_seed(seed)
    return seeds


def students_of(content: Mapping[str, Any], where: str) -> dict[str, StudentSettings]:
    """Students of a task by name, ``student`` or ``students``.

    Raises:
        ConfigError: Both are there, or none, or a setting does not fit.
    """
    named, single = mapping_in(content, "students", where), content.get("student")
    if bool(named) == (single is not None):
        raise ConfigError(f"{where}: expected student, or students by name, one of the two; give one")
    if not named:
        settings = built(StudentSettings, _on_cpu(single), f"{where}, student")
        return {settings.student: settings}
    for name in named:
        check_folder_name(name, where, "student")
    return {name: built(StudentSettings, _on_cpu(value), f"{where}, student {name!r}") for name, value in named.items()}


def _on_cpu(student: Any) -> Any:
    """Figures of a suite are those of one CPU thread, unless it names a device."""
    return {"device": "cpu", **student} if isinstance(student, dict) else student


def _teachers(content: Mapping[str, Any], system: str | None, where: str) -> dict[str, Any]:
    """Who teaches; nobody is named where the task is planted, or the suite's system brings its own teachers."""
    teachers = mapping_in(content, "teachers", where)
    bringing = "planted" if content.get("planted") is not None else system
    if bringing:
        if teachers:
            raise ConfigError(
                f"{where}: {bringing} tasks bring their teachers, others would be ignored; leave them out"
            )
        return {}
    check_keys(teachers, _TEACHING, f"{where}, teachers")
    if sum(key in teachers for key in ("kinds", "paths", "sets")) != 1:
        raise ConfigError(
            f"{where}: expected kinds of teachers, sets of them or paths of some, one of the three; give one"
        )
    if "paths" in teachers and set(teachers) - {"paths", "max_length", "device"}:
        raise ConfigError(f"{where}: training settings beside paths of teachers would be ignored; leave them out")
    for name, settings in mapping_in(teachers, "sets", where).items():
        check_folder_name(name, where, "set of teachers")
        check_keys(settings, _TEACHING - {"sets", "paths", "max_length", "device"}, f"{where}, teachers {name!r}")
        if "kinds" not in settings:
            raise ConfigError(f"{where}: expected kinds of teachers in the set {name!r}, got none; name some")
    return teachers


def _policies(content: Mapping[str, Any], where: str) -> dict[str, SuitePolicy]:
    policies = {}
    for name, value in content.items():
        check_folder_name(name, where, "policy")
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected settings of policy {name!r}, got {type(value).__name__}; mend it")
        kind = value.get("kind", "policy")
        if kind not in policy_kinds():
            raise unknown_name("kind of policy", str(kind), policy_kinds())
        settings = {key: setting for key, setting in value.items() if key not in ("kind", "elsewhere")}
        elsewhere = _elsewhere(value.get("elsewhere", False), f"{where}, policy {name!r}")
        policies[name] = SuitePolicy(name=name, kind=kind, settings=settings, elsewhere=elsewhere)
    return policies


def _elsewhere(value: Any, where: str) -> tuple[str, ...] | None:
    """Names of the tasks that a policy learns on, none for all others; None for its own."""
    if isinstance(value, bool):
        return () if value else None
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise ConfigError(f"{where}: expected elsewhere to be true, false, or names of tasks, got {value!r}; mend it")


def _laid_over(below: Any, above: Any) -> Any:
    """``above`` where the two differ; mappings key by key, and null takes a key away."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    merged = {key: _laid_over(below[key], value) if key in below else value for key, value in above.items()}
    return {key: value for key, value in {**below, **merged}.items() if value is not None}
