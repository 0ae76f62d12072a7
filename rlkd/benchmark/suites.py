"""Suites: a YAML file that says which tasks, teachers, students, policies, weightings and seeds are run."""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import xxhash
import yaml

from rlkd.benchmark.meta_kd import MetaKdPlan, meta_kd_plan
from rlkd.benchmark.mkd import LABELS, MkdSettings, parse_arm, teacher_of
from rlkd.benchmark.places import with_places
from rlkd.benchmark.policies import SMOKE_STEPS, PolicyPlan, policy_kind, policy_kinds
from rlkd.benchmark.reading import built, check_keys, mapping_in, names_in
from rlkd.data.loading import load_task
from rlkd.data.planted import PlantedSettings
from rlkd.data.splitting import check_seed
from rlkd.errors import ConfigError, one_line, unknown_name
from rlkd.models.training import plan_teachers
from rlkd.records import check_folder_name
from rlkd.settings import StudentSettings, found_device
from rlkd.weighting import weighting_class

CONTROLS = ("shuffle", "mean")
METRICS = ("accuracy", "macro_f1", "matthews")
SMOKE_ROWS = {"train": 400, "probe": 100, "validation": 100, "test": 100}

_LOADING = frozenset(inspect.signature(load_task).parameters) - {"name"}
_TEACHING = frozenset(inspect.signature(plan_teachers).parameters) - {"task"} | {"paths", "sets", "device"}


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """Everything that is run on one task."""

    name: str
    source: Mapping[str, Any]
    """Arguments of :func:`rlkd.data.load_task`."""
    planted: PlantedSettings | None = None
    """Synthetic rows and teachers instead of a source."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """At most so many rows of each split."""
    teachers: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of :func:`rlkd.models.train_teachers`; or ``sets``, named, each with arguments of its own over those
    that all share; or ``paths`` of teachers that are there."""
    teacher_share: float | None = None
    """Share of the train rows that teachers learn from; students get the others. None: both get all."""
    embedder: str | None = None
    """Encoder for the affinity feature."""
    embeddings: bool = False
    """Keep its embeddings for the weightings that read them."""
    labels: int | None = None
    """Labels that policies and students may use outside the test split; None: all."""
    students: Mapping[str, StudentSettings]
    policies: Mapping[str, PolicyPlan]
    weightings: tuple[str, ...]
    labelled_only: frozenset[str] = frozenset()
    """Weightings whose students are distilled on the labelled train rows alone, because they need labels."""
    metric: str = "accuracy"
    """The score that counts."""
    seeds: tuple[int, ...]
    policy_seeds: tuple[int, ...] = (0,)
    """Student seed number i is given the policy of seed number i modulo their count."""
    resample: int = 0
    """Seed of row limits, of the teachers' share and of the labels that are kept."""
    meta_kd: MetaKdPlan | None = None
    """In a suite of ``system: meta_kd``: the students' domain, teachers and arms, which stand among the weightings."""

    @property
    def teachers_key(self) -> str:
        """Names what the teachers and their cache are made of: tasks that agree in it share them."""
        planted = None if self.planted is None else asdict(self.planted)
        made_of: list[Any] = [dict(self.source), planted, dict(self.rows), dict(self.teachers), self.teacher_share]
        made_of += [self.embedder, self.embeddings, self.resample]
        made_of += [] if self.meta_kd is None else [self.meta_kd.made_of()]
        name = re.sub(r"[^\w.-]+", "-", Path(str(self.source.get("source", "planted"))).name)
        return f"{name}-{digest(made_of)}"

    @property
    def teachers_may_say_what_they_know(self) -> bool:
        """False where teachers are trained here and not all on classes, or all on domains, of their own."""
        if "paths" in self.teachers or not self.teachers:
            return True
        sets = [{**self.teachers, **own} for own in self.teachers.get("sets", {"": {}}).values()]
        kinds = {settings.get("specialize") for settings in sets}
        return len(kinds) == 1 and None not in kinds

    def policy_key(self, policy: str, seed: int) -> str:
        """Names what a trained policy is made of."""
        plan = self.policies[policy]
        student = next(iter(self.students.values())).record()
        made_of = [self.teachers_key, self.labels, plan.kind, dict(plan.settings), student, seed]
        made_of += policy_kind(plan.kind).made_by
        return f"{self.name}-{policy}-{digest(made_of)}"

    def policy_seed(self, seed: int) -> int:
        """Seed of the policy that the student of a seed is given."""
        return self.policy_seeds[self.seeds.index(seed) % len(self.policy_seeds)]

    def policy_of(self, weighting: str) -> tuple[str, str] | None:
        """The policy that a weighting is made of and the control that it is: (name, ``""``, ``shuffle`` or ``mean``).

        None for weightings that read no policy of the suite. Arms of MKD are asked for their teachers' weighting.
        """
        weighting = teacher_of(weighting)
        if weighting in self.policies:
            return weighting, ""
        name, _, control = weighting.rpartition("_")
        return (name, control) if name in self.policies and control in CONTROLS else None


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A named list of tasks."""

    name: str
    description: str
    tasks: tuple[TaskPlan, ...]
    mkd: MkdSettings | None = None
    """Budgets of MKD, whose arms are the tasks' weightings; None: a student is distilled for each task alone."""

    @property
    def num_runs(self) -> int:
        """How many students it distils."""
        return sum(len(t.seeds) * len(t.students) * len(t.weightings) for t in self.tasks)


def digest(content: Any) -> str:
    """8 hexadecimal digits that change with any setting."""
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())[:8]


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
    mkd = _mkd_settings(content, path)
    defaults = {key: value for key, value in content.items() if key not in _SUITE_KEYS}
    tasks = tuple(_task_plan(_laid_over(defaults, task), path, arms=mkd is not None) for task in content["tasks"])
    for task in tasks:
        if (task.meta_kd is not None) != (content.get("system") == "meta_kd"):
            raise ConfigError(
                f"{path}: 'system: meta_kd' and meta_kd in every task go together, see task {task.name!r}"
            )
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: every task needs a name of its own, got {', '.join(names)}; rename one")
    return Suite(
        name=check_folder_name(content.get("suite", path.stem), str(path), "suite"),
        description=str(content.get("description", "")),
        tasks=tasks,
        mkd=mkd,
    )


SYSTEMS = ("mkd", "meta_kd")
_SUITE_KEYS = ("suite", "description", "tasks", "system", "mkd")


def _mkd_settings(content: Mapping[str, Any], path: Path) -> MkdSettings | None:
    system = content.get("system")
    if system is None and "mkd" not in content:
        return None
    if system == "meta_kd" and "mkd" not in content:
        return None
    if system != "mkd":
        raise unknown_name("system (expected where mkd is set up)", str(system), SYSTEMS)
    settings: MkdSettings = built(MkdSettings, content.get("mkd") or {}, f"{path}, mkd")
    return settings


def _check_weighting(task: TaskPlan, spec: str, *, arms: bool) -> None:
    """Refuse a weighting, or the weighting of an arm of MKD, that does not exist."""
    if task.meta_kd is not None and spec in task.meta_kd.arms:
        return
    if arms:
        arm = parse_arm(spec)
        spec = LABELS if arm.weighting is None else arm.weighting
    if not (arms and spec == LABELS) and task.policy_of(spec) is None:
        weighting_class(spec)


def select(
    suite: Suite,
    *,
    tasks: Sequence[str] = (),
    weightings: Sequence[str] = (),
    seeds: int | None = None,
    device: str | None = None,
    smoke: bool = False,
) -> Suite:
    """A part of a suite, or more than it.

    Args:
        suite: The suite.
        tasks: Names of tasks; none: all.
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
                _check_weighting(task, spec, arms=suite.mkd is not None)
    changed = tuple(_changed(task, tuple(weightings), seeds, device, smoke) for task in chosen)
    return replace(suite, tasks=changed, mkd=suite.mkd.smoke() if smoke and suite.mkd else suite.mkd)


def _changed(
    task: TaskPlan, weightings: tuple[str, ...], seeds: int | None, device: str | None, smoke: bool
) -> TaskPlan:
    task = replace(task, weightings=tuple(dict.fromkeys((*task.weightings, *weightings))))
    task = replace(task, policies={**task.policies, **_router_if_asked(task.weightings, task.policies)})
    if seeds is not None:
        further = range(task.seeds[-1] + 1, task.seeds[-1] + 1 + seeds)
        task = replace(task, seeds=(*task.seeds, *further)[:seeds])
    if device is not None:
        task = replace(
            task,
            teachers={**task.teachers, "device": device} if _trains_teachers(task) else task.teachers,
            meta_kd=task.meta_kd and task.meta_kd.on_device(device),
            students={name: replace(settings, device=device) for name, settings in task.students.items()},
            policies={
                name: replace(plan, settings={**plan.settings, "device": device})
                if policy_kind(plan.kind).on_device
                else plan
                for name, plan in task.policies.items()
            },
        )
    return _smoke(task) if smoke else task


def _smoke(task: TaskPlan) -> TaskPlan:
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
        meta_kd=task.meta_kd and task.meta_kd.smoke(),
        students=small,
        policies=policies,
        seeds=task.seeds[:1],
        labels=None if task.labels is None else min(task.labels, 100),
    )


def _trains_teachers(task: TaskPlan) -> bool:
    return "kinds" in task.teachers or "sets" in task.teachers


def _one_epoch(teachers: Mapping[str, Any]) -> dict[str, Any]:
    sets = {name: {**settings, "epochs": 1} for name, settings in teachers.get("sets", {}).items()}
    return {**teachers, "epochs": 1, **({"sets": sets} if sets else {})}


_TASK_KEYS = frozenset(f.name for f in fields(TaskPlan)) - {"source"} | {"student", "without"} | _LOADING


def _task_plan(content: Mapping[str, Any], path: Path, *, arms: bool) -> TaskPlan:
    name = check_folder_name(content.get("name"), str(path), "task")
    where = f"{path}, task {name!r}"
    check_keys(content, _TASK_KEYS, where)
    planted = content.get("planted")
    if (planted is None) == ("source" not in content):
        raise ConfigError(f"{where}: expected a source or planted, one of the two; mend it")
    weightings = names_in(content, "weightings", where)
    without = names_in(content, "without", where)
    for spec in without:
        if spec not in weightings:
            raise unknown_name("weighting to leave out", spec, weightings)
    kept = tuple(spec for spec in weightings if spec not in without)
    policies = _policies(mapping_in(content, "policies", where), where)
    plan = TaskPlan(
        name=name,
        source={key: value for key, value in content.items() if key in _LOADING},
        planted=None if planted is None else built(PlantedSettings, planted, f"{where}, planted"),
        rows=mapping_in(content, "rows", where),
        teachers=_teachers(content, where),
        teacher_share=content.get("teacher_share"),
        embedder=content.get("embedder"),
        embeddings=bool(content.get("embeddings", False)),
        labels=content.get("labels"),
        students=_students(content, where),
        policies=policies | _router_if_asked(kept, policies),
        weightings=kept,
        labelled_only=frozenset(names_in(content, "labelled_only", where)),
        metric=content.get("metric", "accuracy"),
        seeds=_seeds(content.get("seeds", 5), where),
        policy_seeds=_seeds(content.get("policy_seeds", 1), where),
        resample=content.get("resample", 0),
        meta_kd=_meta_kd(content, where),
    )
    if plan.metric not in METRICS:
        raise unknown_name("metric", str(plan.metric), METRICS)
    if not kept:
        raise ConfigError(f"{where}: expected weightings, got none; name some")
    for spec in kept:
        _check_weighting(plan, spec, arms=arms)
    return plan


def _router_if_asked(weightings: Sequence[str], policies: Mapping[str, PolicyPlan]) -> dict[str, PolicyPlan]:
    names = {teacher_of(spec) for spec in weightings}
    asked = not names.isdisjoint({"router", *(f"router_{control}" for control in CONTROLS)})
    return {"router": PolicyPlan(name="router", kind="router")} if asked and "router" not in policies else {}


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    seeds = tuple(range(value)) if isinstance(value, int) else tuple(value) if isinstance(value, list) else ()
    if not seeds or not all(isinstance(seed, int) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"{where}: expected a number of seeds or a list of different ones, got {value!r:.80}; mend it"
        )
    for seed in seeds:
        check_seed(seed)
    return seeds


def _students(content: Mapping[str, Any], where: str) -> dict[str, StudentSettings]:
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


def _meta_kd(content: Mapping[str, Any], where: str) -> MetaKdPlan | None:
    """What the task says of Meta-KD; keys of other suites that it does not read are refused."""
    if "meta_kd" not in content:
        return None
    for key in ("planted", "teacher_share", "labels", "labelled_only", "embedder", "embeddings"):
        if content.get(key):
            raise ConfigError(f"{where}: {key!r} would be ignored beside meta_kd; leave it out")
    plan = meta_kd_plan(mapping_in(content, "meta_kd", where), where)
    for name, student in _students(content, where).items():
        if student.max_length != plan.teachers.max_length:
            raise ConfigError(
                f"{where}: student {name!r} and its teachers are compared token by token, they read "
                f"{student.max_length} and {plan.teachers.max_length} tokens; give both the same max_length"
            )
    return plan


def _teachers(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    teachers = mapping_in(content, "teachers", where)
    bringing = [key for key in ("planted", "meta_kd") if content.get(key) is not None]
    if bringing:
        if teachers:
            raise ConfigError(
                f"{where}: {bringing[0]} tasks bring their teachers, others would be ignored; leave them out"
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


def _policies(content: Mapping[str, Any], where: str) -> dict[str, PolicyPlan]:
    policies = {}
    for name, value in content.items():
        check_folder_name(name, where, "policy")
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected settings of policy {name!r}, got {type(value).__name__}; mend it")
        kind = value.get("kind", "policy")
        if kind not in policy_kinds():
            raise unknown_name("kind of policy", str(kind), policy_kinds())
        settings = {key: setting for key, setting in value.items() if key != "kind"}
        policies[name] = PolicyPlan(name=name, kind=kind, settings=settings)
    return policies


def _laid_over(below: Any, above: Any) -> Any:
    """``above`` where the two differ; mappings key by key, and null takes a key away."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    merged = {key: _laid_over(below[key], value) if key in below else value for key, value in above.items()}
    return {key: value for key, value in {**below, **merged}.items() if value is not None}
