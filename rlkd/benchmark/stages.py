"""What comes before the runs of a task: data, teachers and their cache, headroom, policies. Each is made once."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlkd.agents import train_policy
from rlkd.agents.settings import OBSERVATION, PolicySettings, episode_names, policy_settings
from rlkd.benchmark.arms import Arm, fit_router_into, learned_hash
from rlkd.benchmark.jobs import Context
from rlkd.benchmark.suites import PolicyPlan, TaskPlan, digest
from rlkd.cost import cost_in, metered
from rlkd.data import Fractions, Task, load_task
from rlkd.data.planted import PlantedCase, planted_case
from rlkd.data.subset import drop_unlabelled, keep_labels, limit_rows, split_train
from rlkd.errors import ConfigError, RlkdError
from rlkd.features import ObservationConfig
from rlkd.logit_cache import LogitCache, build_cache, load_cache
from rlkd.metrics import classification_metrics, headroom
from rlkd.models import load_teachers, train_teachers
from rlkd.models.embedding import TextEmbedder
from rlkd.models.teacher_files import read_info
from rlkd.models.teachers import LabelledTeacher
from rlkd.records import read_object, write_json_atomic
from rlkd.settings import StudentSettings
from rlkd.systems.mtkd_rl import mtkd_rl_settings, train_mtkd_rl
from rlkd.systems.rl_kd import rl_kd_settings, train_rl_kd
from rlkd.types import Knowledge

log = logging.getLogger(__name__)

DONE = "done.json"
"""Written last into a stage's folder, with what it cost."""
EPISODE_SHARED = ("batch_size", "learning_rate", "temperature", "kd_ratio", "max_length", "bf16", "divergence")
"""What the students of policy training have from the students that are reported, unless the suite says otherwise."""


def _done(folder: Path) -> dict[str, Any] | None:
    return read_object(folder / DONE) if (folder / DONE).is_file() else None


def plan_data(plan: TaskPlan) -> tuple[Task, Task]:
    """The task that teachers learn and the task of the students."""
    task = limit_rows(load_task(**plan.source, name=plan.name), plan.rows, seed=plan.resample)
    if plan.teacher_share is None:
        return task, task
    return split_train(task, plan.teacher_share, seed=plan.resample)


def _planted(plan: TaskPlan) -> PlantedCase:
    assert plan.planted is not None
    names = {f"{part}_fraction": part for part in ("probe", "validation", "test")}
    fractions = Fractions(**{names[key]: value for key, value in plan.source.items() if key in names})
    return planted_case(plan.planted, name=plan.name, fractions=fractions, seed=plan.source.get("seed", 0))


def _planted_context(plan: TaskPlan) -> Context:
    case = _planted(plan)
    knowledge = Knowledge(by="domain", groups=case.task.domain_names, matrix=case.best)
    arrays = list(case.logits.transpose(1, 0, 2))
    names = [f"teacher-{k}" for k in range(len(arrays))]
    assert plan.planted is not None
    identity = f"planted-{digest(asdict(plan.planted))}"
    return Context(case.task, LogitCache(arrays, names, knowledge=knowledge, identity=identity))


def _meta_kd_context(plan: TaskPlan, folder: Path) -> Context:
    """One domain with the teachers of all; they lie beside the folder, because the tasks of a source share them."""
    assert plan.meta_kd is not None
    bench = plan.meta_kd.open(plan_data(plan)[1], plan.name, plan.weightings, folder.parent, plan.resample)
    return Context(bench.task, bench.cache, system=bench)


TeacherMaker = Callable[[TaskPlan, Task, Path], dict[str, Path]]
"""From a plan, the task that teachers learn and a folder to the folders of teachers by name."""


def make_teachers(plan: TaskPlan, folder: Path, *, train: TeacherMaker | None = None) -> dict[str, Any]:
    """Train the teachers of a task, ask them about every instance, and see how much room they leave.

    Args:
        plan: The task.
        folder: Of this stage; what is finished in it is kept.
        train: Makes the teachers. None: as the plan's ``teachers`` say.

    Returns:
        Headroom on validation, the teachers' accuracy, seconds and teacher passes.
    """
    done = _done(folder)
    if done is not None:
        return done
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    seconds = 0.0
    if plan.planted is not None:
        context = _planted_context(plan)
    elif plan.meta_kd is not None:
        context = _meta_kd_context(plan, folder)
        seconds = context.system.training_seconds
    else:
        taught, task = plan_data(plan)
        named = (train or _train_teachers)(plan, taught, folder / "teachers")
        if "paths" not in plan.teachers:
            seconds = sum(_training_seconds(path) for path in named.values())
        started = time.perf_counter()
        context = Context(task, _build_cache(plan, task, named, folder / "cache"))
    ids = torch.from_numpy(context.task.labelled_ids("validation"))
    logits, labels = context.cache.rows(ids).numpy(), context.task.table.labels[ids.numpy()]
    scores = [classification_metrics(logits[:, k], labels) for k in range(logits.shape[1])]
    figures = {
        **headroom(logits, labels),
        "teachers": list(context.cache.teacher_names),
        "teacher_accuracy": [score["accuracy"] for score in scores],
        "teacher_ece": [score["ece"] for score in scores],
        "rows": {name: len(rows) for name, rows in context.task.splits.items()},
        "data": context.task.fingerprint,
        "logits": context.cache.identity,
        "teacher_passes": len(context.task.table) * logits.shape[1],
        "training_seconds": round(seconds, 2),
        "seconds": round(seconds + time.perf_counter() - started, 2),
    }
    write_json_atomic(folder / DONE, figures)
    return figures


def _training_seconds(folder: Path) -> float:
    """What ``teacher.json`` says: a teacher that was there already has cost what it cost."""
    info = read_info(folder)
    return 0.0 if info is None else float((info.metrics or {}).get("seconds") or 0.0)


def _train_teachers(plan: TaskPlan, task: Task, folder: Path) -> dict[str, Path]:
    """Folders of the teachers by name."""
    settings = dict(plan.teachers)
    if "paths" in settings:
        return {Path(path).name: Path(path) for path in settings["paths"]}
    sets = settings.pop("sets", None)
    if sets is None:
        return {path.name: path for path in train_teachers(task, folder, **settings)}
    return {
        f"{name}-{index}" if len(own["kinds"]) > 1 else name: path
        for name, own in sets.items()
        for index, path in enumerate(train_teachers(task, folder / name, **{**settings, **own}))
    }


def _build_cache(plan: TaskPlan, task: Task, named: Mapping[str, Path], folder: Path) -> LogitCache:
    device, length = plan.teachers.get("device"), plan.teachers.get("max_length", 128)
    embedder = None if plan.embedder is None else TextEmbedder(plan.embedder, max_length=length, device=device)
    teachers: list[Any] = []
    for name, path in named.items():
        (teacher,) = load_teachers([path], task, device=device, bf16=plan.teachers.get("bf16", False))
        if isinstance(teacher, LabelledTeacher):  # two sets may call theirs alike
            teacher.name = name
        teachers.append(teacher)
    return build_cache(
        load_teachers(teachers, task),
        task,
        folder,
        max_length=length,
        embedder=embedder,
        keep_embeddings=plan.embeddings,
    )


def open_context(plan: TaskPlan, folder: Path) -> Context:
    """The task as policies and students see it, with the teachers' logits.

    Raises:
        RlkdError: If the teachers were not finished.
    """
    if _done(folder) is None:
        raise RlkdError(f"expected finished teachers in {folder}, got none; their own record says why")
    if plan.planted is not None:
        context = _planted_context(plan)
    elif plan.meta_kd is not None:
        context = _meta_kd_context(plan, folder)
    else:
        _, task = plan_data(plan)
        context = Context(task, load_cache(folder / "cache", task))
    if plan.labels is None:
        return context
    task = keep_labels(context.task, plan.labels, seed=plan.resample)
    return replace(context, task=task, cache=context.cache.measured(task), encoded={})


def labelled_part(context: Context) -> Context:
    """The context without its unlabelled train rows."""
    task, ids = drop_unlabelled(context.task)
    return Context(task, context.cache.take(ids))


def make_policy(plan: TaskPlan, name: str, seed: int, context: Context, folder: Path) -> dict[str, Any]:
    """Train a policy of a task.

    Training that was broken off starts anew, so that its cost is that of one whole training.

    Args:
        plan: The task.
        name: Of the policy.
        seed: Of its training.
        context: Task and teachers.
        folder: Of this stage.

    Returns:
        What it cost, settings, and the hash of the weights.
    """
    done = _done(folder)
    if done is not None:
        return done
    policy, student = plan.policies[name], next(iter(plan.students.values()))
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    with metered() as cost:
        path = TRAINERS[policy.kind](policy, student, seed, context, folder)
    figures = {
        "kind_of_policy": policy.kind,
        "settings": dict(policy.settings),
        "seed": seed,
        "path": path.relative_to(folder).as_posix(),
        "hash": learned_hash(str(path)),
        **cost.record(),
    }
    write_json_atomic(folder / DONE, figures)
    return figures


Trainer = Callable[[PolicyPlan, StudentSettings, int, Context, Path], Path]


def _episode_shared(plan: PolicyPlan, student: StudentSettings) -> dict[str, Any]:
    """Settings of the reported student that those of policy training share; its layers, if they are alike in kind."""
    shared = {name: getattr(student, name) for name in EPISODE_SHARED}
    alike = plan.settings.get("student", student.student) == student.student
    return {**shared, "num_layers": student.num_layers} if alike else shared


def _policy_settings(plan: PolicyPlan, student: StudentSettings, seed: int) -> PolicySettings:
    flat = {"device": student.device, **plan.settings, "seed": seed}
    return policy_settings(flat, episode=_episode_shared(plan, student), student=student.student)


def _train_policy(plan: PolicyPlan, student: StudentSettings, seed: int, context: Context, folder: Path) -> Path:
    settings = _policy_settings(plan, student, seed)
    train_policy(
        context.task,
        context.cache,
        student=settings.student,
        reward=settings.reward,
        training=settings.training,
        observation=settings.observation,
        episode=dict(settings.episode),
        device=settings.device,
        output_dir=folder / "run",
    )
    return folder / "run" / "policy"


def _fit_router(plan: PolicyPlan, student: StudentSettings, seed: int, context: Context, folder: Path) -> Path:
    observation, knows = _router_settings(plan)
    fit_router_into(folder / "router", context.task, context.cache, seed, observation, knows=knows)
    return folder / "router"


def _router_settings(plan: PolicyPlan) -> tuple[ObservationConfig, bool]:
    """What a router observes, and whether it is told what the teachers know."""
    switches = {name: switch for name, switch in OBSERVATION.items() if name != "observe_student"}
    for name in plan.settings:
        if name not in {*switches, "knows"}:
            raise ConfigError(f"a router's settings are {', '.join(switches)} and knows, got {name!r}; leave it out")
    observed = {switches[name]: value for name, value in plan.settings.items() if name in switches}
    return ObservationConfig(**observed), bool(plan.settings.get("knows", False))


@dataclass(frozen=True)
class _SystemSettings:
    """Settings of a published system, sorted into those of its agent and those of the episode's students."""

    student: str
    device: str
    episode: Mapping[str, Any]
    switches: Mapping[str, Any]


def _system_settings(plan: PolicyPlan, student: StudentSettings) -> _SystemSettings:
    steps = episode_names()
    own = {"student", "device", *steps}
    return _SystemSettings(
        student=plan.settings.get("student", student.student),
        device=plan.settings.get("device", student.device),
        episode=_episode_shared(plan, student)
        | {name: value for name, value in plan.settings.items() if name in steps},
        switches={name: value for name, value in plan.settings.items() if name not in own},
    )


def _train_system(train: Callable[..., Any]) -> Trainer:
    def run(plan: PolicyPlan, student: StudentSettings, seed: int, context: Context, folder: Path) -> Path:
        settings = _system_settings(plan, student)
        train(
            context.task,
            context.cache,
            student=settings.student,
            episode=dict(settings.episode),
            output_dir=folder / "run",
            device=settings.device,
            seed=seed,
            **settings.switches,
        )
        return folder / "run" / "policy"

    return run


def check_policy(plan: PolicyPlan, student: StudentSettings) -> None:
    """Refuse settings of a policy that are unknown or out of range.

    Raises:
        ConfigError: Names the setting.
    """
    if plan.kind == "policy":
        _policy_settings(plan, student, 0)
    elif plan.kind == "router":
        _router_settings(plan)
    else:
        check: Any = rl_kd_settings if plan.kind == "rl_kd" else mtkd_rl_settings
        check(**_system_settings(plan, student).switches)


TRAINERS: Mapping[str, Trainer] = {
    "policy": _train_policy,
    "router": _fit_router,
    "rl_kd": _train_system(train_rl_kd),
    "mtkd_rl": _train_system(train_mtkd_rl),
}
"""Kind of policy to what trains it."""


def arm_of(plan: TaskPlan, weighting: str, seed: int, policies: Path) -> Arm:
    """The weighting as :func:`rlkd.weighting.build_weighting` takes it.

    Args:
        plan: The task.
        weighting: As the suite names it.
        seed: Of the student.
        policies: Folder of the policies.

    Raises:
        RlkdError: If its policy was not finished.
    """
    labelled_only, found = weighting in plan.labelled_only, plan.policy_of(weighting)
    if found is None:
        return Arm(name=weighting, spec=weighting, labelled_only=labelled_only)
    name, control = found
    folder = policies / plan.policy_key(name, plan.policy_seed(seed))
    done = _done(folder)
    if done is None:
        raise RlkdError(f"expected the finished policy {name!r} in {folder}, got none; its own record says why")
    kind = plan.policies[name].kind
    prefix = f"policy_{control}" if control else "policy" if kind == "router" else kind
    return Arm(
        name=weighting,
        spec=f"{prefix}:{folder / done['path']}",
        policy_cost=cost_in(done),
        labelled_only=labelled_only,
    )
