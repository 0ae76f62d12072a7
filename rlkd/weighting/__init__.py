"""Weightings: anything that maps a state to weights over teachers. Torch only; no RL library is imported here."""

import importlib
import logging
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

from rlkd import plugins
from rlkd.data.task import Task
from rlkd.errors import WeightingError, nearest, one_line, unknown_name
from rlkd.logit_cache import embedding_size
from rlkd.types import LogitSource, State
from rlkd.weighting.base import Evidence, Mixture, OnlineWeighting, Weighting, WeightingBuilder, mixture
from rlkd.weighting.controls import PolicyMean, PolicyShuffle
from rlkd.weighting.fitted import CalibratedUniform, LrDev, LrTrain
from rlkd.weighting.fixed import BestTeacher, Fixed, RandomTeacher, Uniform
from rlkd.weighting.gradient import AekdBatchMean, AekdFlat, Govern
from rlkd.weighting.heuristic import (
    Agreement,
    BestPerInstance,
    CaMkd,
    CrossEntropy,
    Ebkd,
    Entropy,
    MaxProbability,
    MtBert,
    MtBertRaw,
    Oracle,
)
from rlkd.weighting.learned import Policy, load_policy
from rlkd.weighting.online import Hedge
from rlkd.weighting.router import Router

__all__ = [
    "WEIGHTINGS",
    "Evidence",
    "Mixture",
    "OnlineWeighting",
    "Policy",
    "Weighting",
    "WeightingBuilder",
    "build_weighting",
    "check_requirements",
    "load_policy",
    "load_weighting",
    "mixture",
    "named_weighting",
    "weighting_names",
]

logger = logging.getLogger(__name__)

WEIGHTINGS: dict[str, WeightingBuilder] = {
    "uniform": Uniform,
    "fixed": Fixed,
    "random_teacher": RandomTeacher,
    "best_teacher": BestTeacher,
    "lr_train": LrTrain,
    "lr_dev": LrDev,
    "calibrated_uniform": CalibratedUniform,
    "entropy": Entropy,
    "ebkd": Ebkd,
    "max_probability": MaxProbability,
    "agreement": Agreement,
    "aekd_batch_mean": AekdBatchMean,
    "aekd_flat": AekdFlat,
    "govern": Govern,
    "cross_entropy": CrossEntropy,
    "ca_mkd": CaMkd,
    "mt_bert": MtBert,
    "mt_bert_raw": MtBertRaw,
    "best_per_instance": BestPerInstance,
    "hedge": Hedge,
    "oracle": Oracle,
    "router": Router,
    "policy": Policy,
    "policy_mean": PolicyMean,
    "policy_shuffle": PolicyShuffle,
}
"""Every weighting of the core by name; published systems add theirs, ``"package.module:Name"`` loads a user's own."""


def weighting_names() -> tuple[str, ...]:
    """Names of all weightings, those of published systems too."""
    return (*WEIGHTINGS, *plugins.registered("weightings"))


def named_weighting(name: str) -> WeightingBuilder:
    """The weighting of a name, one of :func:`weighting_names`."""
    found: WeightingBuilder = WEIGHTINGS[name] if name in WEIGHTINGS else plugins.load("weightings", name)
    return found


def weighting_class(spec: str) -> tuple[WeightingBuilder, str | None]:
    """Split ``name[:argument]`` and look the name up; touches no data, so it is called before long work.

    Raises:
        UnknownNameError: If there is no such weighting.
        WeightingError: If a user's module has no such class.
    """
    name, _, argument = spec.partition(":")
    if name in weighting_names():
        return named_weighting(name), argument or None
    if argument and name.replace(".", "").isidentifier():
        return _imported_class(name, argument), None
    if Path(spec).is_dir():
        return Policy, spec
    raise unknown_name("weighting", spec, weighting_names())


def _imported_class(module: str, name: str) -> WeightingBuilder:
    try:
        loaded = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise WeightingError(
            f"weighting '{module}:{name}' could not be imported: {one_line(error)}; "
            f"{nearest(module, weighting_names())}name one of "
            f"{', '.join(sorted(weighting_names()))}, or put your module on the Python path"
        ) from error
    if not (hasattr(loaded, "build") and hasattr(loaded, "weights")):
        raise WeightingError(
            f"weighting '{module}:{name}' needs the methods build and weights, see rlkd.weighting.base"
        )
    return loaded  # type: ignore[no-any-return]


def build_weighting(spec: str, task: Task, source: LogitSource, *, seed: int = 0) -> Weighting:
    """Make a weighting from its ``name[:argument]``, fitted on the training view of the task.

    Args:
        spec: For example ``"entropy"``, ``"policy:runs/policy"`` or ``"my_module:MyWeighting"``.
        task: The task; only its training view is handed on.
        source: The teachers' logits.
        seed: Of anything random in the fit.
    """
    cls, argument = weighting_class(spec)
    view = task.training_view()
    weighting = cls.build(argument, Evidence(task=view, source=source.head(len(view.table)), seed=seed))
    check_requirements(spec, weighting, task, source)
    return weighting


def load_weighting(path: str | Path) -> Policy:
    """Load a learned weighting from a folder or a hub id, without any RL library."""
    return load_policy(path)


def check_requirements(name: str, weighting: Weighting, task: Task, source: LogitSource) -> None:
    """Refuse a weighting that the run cannot feed, by name, before anything is trained.

    A weighting that reads labels runs where some train rows have none if it says what it does with them
    (``falls_back``); that is logged as a warning, once.

    Raises:
        WeightingError: If labels, domains, affinity, reliability or embeddings are required and missing, or something
            that no state has.
    """
    _check_names(name, weighting)
    missing = []
    rows, labelled = len(task.splits["train"]), len(task.labelled_ids("train"))
    falls_back = getattr(weighting, "falls_back", "")
    if "labels" in weighting.requires and labelled < rows:
        if falls_back and labelled:
            _warn_once(
                f"{type(weighting).__name__} reads labels, and {rows - labelled} of {rows} train rows have none; there "
                f"it falls back to {falls_back}"
            )
        else:
            missing.append(f"labels ({rows - labelled} of {rows} train rows have none)")
    if "domains" in weighting.requires and not task.domain_names:
        missing.append("domains (the task has no domain column)")
    if "affinity" in weighting.requires and not source.has_affinity:
        missing.append("affinity (build the cache with an embedder)")
    if "reliability" in weighting.requires and source.reliability is None:
        missing.append("the teachers' reliability (use a cache, and a task with labelled validation rows)")
    if "embeddings" in weighting.requires and not embedding_size(task, source):
        missing.append("embeddings (build the cache with an embedder and keep_embeddings)")
    if missing:
        raise WeightingError(
            f"weighting {name!r} needs {' and '.join(missing)}; choose a weighting that needs none, such as 'uniform', "
            "'entropy' or a label-free policy"
        )


def _check_names(name: str, weighting: Weighting) -> None:
    names = getattr(weighting, "requires", None)
    known = {field.name for field in fields(State)}
    if names is None or isinstance(names, str) or not set(names) <= known:
        raise WeightingError(
            f"weighting {name!r} must have requires, a set of fields of the state it reads, got {names!r}; name some "
            f"of {', '.join(sorted(known - {'teacher_logits'}))}, or frozenset()"
        )


@lru_cache(maxsize=256)
def _warn_once(message: str) -> None:
    logger.warning(message)
