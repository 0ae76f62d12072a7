"""What comes before the runs of a task: data, teachers and their cache, headroom, policies. Each is made once."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from rlkd.benchmark.compared import ComparedWeighting
from rlkd.benchmark.jobs import Context
from rlkd.benchmark.policies import Ground, policy_kind
from rlkd.benchmark.suites import SuiteTask
from rlkd.cost import cost_in, metered
from rlkd.data import Fractions, Task, load_task
from rlkd.data.planted import PlantedCase, planted_case
from rlkd.data.subset import keep_labels, limit_rows, split_train
from rlkd.errors import RlkdError
from rlkd.logit_cache import LogitCache, build_cache, load_cache
from rlkd.metrics import classification_metrics, headroom
from rlkd.models import load_teachers, train_teachers
from rlkd.models.embedding import TextEmbedder
from rlkd.models.teachers import LabelledTeacher
from rlkd.models.training import training_seconds
from rlkd.records import digest, finished, once
from rlkd.types import Knowledge
from rlkd.weighting import WeightingSpec
from rlkd.weighting.policy_files import saved_identity

log = logging.getLogger(__name__)


def plan_data(plan: SuiteTask) -> tuple[Task, Task]:
    """The task that teachers learn and the task of the students."""
    task = limit_rows(load_task(**plan.source, name=plan.name), plan.rows, seed=plan.resample)
    if plan.teacher_share is None:
        return task, task
    return split_train(task, plan.teacher_share, seed=plan.resample)


def _planted(plan: SuiteTask) -> PlantedCase:
    assert plan.planted is not None
    names = {f"{part}_fraction": part for part in ("probe", "validation", "test")}
    fractions = Fractions(**{names[key]: value for key, value in plan.source.items() if key in names})
    return planted_case(plan.planted, name=plan.name, fractions=fractions, seed=plan.source.get("seed", 0))


def _planted_context(plan: SuiteTask) -> Context:
    case = _planted(plan)
    knowledge = Knowledge(by="domain", groups=case.task.domain_names, matrix=case.best)
    arrays = list(case.logits.transpose(1, 0, 2))
    names = [f"teacher-{k}" for k in range(len(arrays))]
    assert plan.planted is not None
    identity = f"planted-{digest(asdict(plan.planted))}"
    cache = LogitCache(arrays, names, knowledge=knowledge, identity=identity)
    return Context(case.task, cache.measured(case.task))


TeacherMaker = Callable[[SuiteTask, Task, Path], dict[str, Path]]
"""From a plan, the task that teachers learn and a folder to the folders of teachers by name."""


def make_teachers(plan: SuiteTask, folder: Path, *, train: TeacherMaker | None = None) -> dict[str, Any]:
    """Train the teachers of a task, ask them about every instance, and see how much room they leave.

    Args:
        plan: The task.
        folder: Of this stage; what is finished in it is kept.
        train: Makes the teachers. None: as the plan's ``teachers`` say.

    Returns:
        Headroom on validation, the teachers' accuracy, seconds and teacher passes.
    """
    return once(folder, plan.teachers_key, lambda: _make_teachers(plan, folder, train or _train_teachers))


def _make_teachers(plan: SuiteTask, folder: Path, train: TeacherMaker) -> dict[str, Any]:
    started = time.perf_counter()
    seconds = 0.0
    own = plan.system.open(plan, folder)
    if own is not None:
        context, seconds = own, own.system.training_seconds
    elif plan.planted is not None:
        context = _planted_context(plan)
    else:
        taught, task = plan_data(plan)
        named = train(plan, taught, folder / "teachers")
        if "paths" not in plan.teachers:
            seconds = sum(map(training_seconds, named.values()))
        started = time.perf_counter()
        context = Context(task, _build_cache(plan, task, named, folder / "cache"))
    ids = torch.from_numpy(context.task.labelled_ids("validation"))
    logits, labels = context.cache.rows(ids).numpy(), context.task.table.labels[ids.numpy()]
    scores = [classification_metrics(logits[:, k], labels) for k in range(logits.shape[1])]
    return {
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


def _train_teachers(plan: SuiteTask, task: Task, folder: Path) -> dict[str, Path]:
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


def _build_cache(plan: SuiteTask, task: Task, named: Mapping[str, Path], folder: Path) -> LogitCache:
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


def open_context(plan: SuiteTask, folder: Path) -> Context:
    """The task as policies and students see it, with the teachers' logits.

    Raises:
        RlkdError: If the teachers were not finished.
    """
    if finished(folder) is None:
        raise RlkdError(f"expected finished teachers in {folder}, got none; their own record says why")
    own = plan.system.open(plan, folder)
    if own is not None:
        context = own
    elif plan.planted is not None:
        context = _planted_context(plan)
    else:
        _, task = plan_data(plan)
        context = Context(task, load_cache(folder / "cache", task))
    if plan.labels is None:
        return context
    task = keep_labels(context.task, plan.labels, seed=plan.resample)
    return replace(context, task=task, cache=context.cache.measured(task), encoded={})


def make_policy(plan: SuiteTask, name: str, seed: int, ground: Ground, folder: Path) -> dict[str, Any]:
    """Train a policy of a task.

    Training that was broken off starts anew, so that its cost is that of one whole training.

    Args:
        plan: The task.
        name: Of the policy.
        seed: Of its training.
        ground: What it is trained on.
        folder: Of this stage.

    Returns:
        What it cost, settings, and the hash of the weights.
    """
    policy = plan.policies[name]

    def make() -> dict[str, Any]:
        with metered() as cost:
            path = policy_kind(policy.kind).train(policy, ground, seed, folder)
        return {
            "kind_of_policy": policy.kind,
            "settings": dict(policy.settings),
            "seed": seed,
            "path": path.relative_to(folder).as_posix(),
            "hash": saved_identity(path),
            **cost.record(),
        }

    return once(folder, plan.policy_key(name, seed), make, whole=True)


def compared_weighting(plan: SuiteTask, weighting: str, seed: int, policies: Path) -> ComparedWeighting:
    """A weighting of a suite, with the finished policy that it is made of.

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
        return ComparedWeighting(name=weighting, spec=plan.spec_of(weighting), labelled_only=labelled_only)
    folder, made = _finished_policy(plan, found.policy, plan.policy_seed(seed), policies)
    kind = policy_kind(plan.policies[found.policy].kind)
    prefix = f"policy_{found.control}" if found.control else kind.weighting
    return ComparedWeighting(
        name=weighting,
        spec=WeightingSpec.parse(f"{prefix}:{folder}"),
        policy_cost=cost_in(made),
        labelled_only=labelled_only,
    )


def policy_folder(plan: SuiteTask, policy: str, seed: int, policies: Path) -> Path:
    """Where a finished policy of a task lies, see :func:`compared_weighting`."""
    return _finished_policy(plan, policy, seed, policies)[0]


def _finished_policy(plan: SuiteTask, policy: str, seed: int, policies: Path) -> tuple[Path, Mapping[str, Any]]:
    folder = policies / plan.policy_key(policy, seed)
    done = finished(folder)
    if done is None:
        raise RlkdError(f"expected the finished policy {policy!r} in {folder}, got none; its own record says why")
    return folder / done.made["path"], done.made
