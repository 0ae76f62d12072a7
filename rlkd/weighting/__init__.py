"""Weightings: anything that maps a state to weights over teachers. Torch only; no RL library is imported here."""

import logging
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlkd.data.task import Task
from rlkd.errors import WeightingError
from rlkd.logit_cache import embedding_size
from rlkd.types import LogitSource, State
from rlkd.weighting.base import (
    BaseWeighting,
    Evidence,
    Mixture,
    OnlineWeighting,
    Weighting,
    WeightingBuilder,
    adapted,
    mixture,
)
from rlkd.weighting.learned import Policy, load_policy
from rlkd.weighting.spec import WEIGHTINGS, WeightingSpec, named_weighting, weighting_names

__all__ = [
    "WEIGHTINGS",
    "BaseWeighting",
    "Evidence",
    "Mixture",
    "OnlineWeighting",
    "Policy",
    "Weighting",
    "WeightingBuilder",
    "WeightingSpec",
    "adapted",
    "build_weighting",
    "check_requirements",
    "check_state",
    "load_policy",
    "load_weighting",
    "mixture",
    "named_weighting",
    "weighting_names",
]

logger = logging.getLogger(__name__)


def build_weighting(spec: str | WeightingSpec, task: Task, source: LogitSource, *, seed: int = 0) -> BaseWeighting:
    """Make a weighting from its name, see :class:`WeightingSpec`, fitted on the training view of the task.

    Args:
        spec: For example ``"entropy"``, ``"policy:runs/policy"`` or ``"my_module:MyWeighting"``, or one parsed.
        task: The task; only its training view is handed on.
        source: The teachers' logits.
        seed: Of anything random in the fit.

    Returns:
        The weighting; one that is no subclass of :class:`BaseWeighting` is its ``own`` (:class:`AdaptedWeighting`).
    """
    spec = WeightingSpec.parse(spec) if isinstance(spec, str) else spec
    weighting = adapted(spec.builder.build(spec.argument, Evidence.of(task, source, seed)))
    check_requirements(spec.text, weighting, task, source)
    return weighting


def load_weighting(path: str | Path, **of_the_hub: Any) -> Policy:
    """Load a learned weighting without any RL library; arguments are those of :func:`load_policy`."""
    return load_policy(path, **of_the_hub)


def check_requirements(name: str, weighting: BaseWeighting, task: Task, source: LogitSource) -> None:
    """Refuse a weighting that the run cannot feed, by name, before anything is trained.

    A weighting that reads labels runs where some train rows have none if it says what it does with them
    (``falls_back``); that is logged as a warning, once.

    Raises:
        WeightingError: If labels, domains, affinity, reliability or embeddings are required and missing, or something
            that no state has.
    """
    _check_names(name, weighting)
    if weighting.answers == "numbers" or "targets" in weighting.requires:
        raise WeightingError(
            f"weighting {name!r} reads the numbers of a regression or several labels, and a task has one class a row; "
            "choose 'uniform', 'entropy' or 'auto'"
        )
    missing = []
    rows, labelled = len(task.splits["train"]), len(task.labelled_ids("train"))
    if "labels" in weighting.requires and labelled < rows:
        if weighting.falls_back and labelled:
            _warn_once(
                f"{weighting.called} reads labels, and {rows - labelled} of {rows} train rows have none; there "
                f"it falls back to {weighting.falls_back}"
            )
        else:
            missing.append(f"labels ({rows - labelled} of {rows} train rows have none)")
    if "domains" in weighting.requires and not task.domain_names:
        missing.append("domains (the task has no domain column)")
    if "affinity" in weighting.requires and not source.has_affinity:
        missing.append("affinity (build the cache with an embedder)")
    if "reliability" in weighting.requires and source.reliability is None:
        missing.append("the teachers' reliability (use a cache, and a task with labelled validation rows)")
    if "sureness" in weighting.requires and not source.has_sureness:
        missing.append("how sure the teachers usually are (use a cache, rlkd.load_cache measures it)")
    if "embeddings" in weighting.requires and not embedding_size(task, source):
        missing.append("embeddings (build the cache with an embedder and keep_embeddings)")
    if missing:
        raise WeightingError(
            f"weighting {name!r} needs {' and '.join(missing)}; choose a weighting that needs none, such as 'uniform', "
            "'entropy' or a label-free policy"
        )


def check_state(name: str, weighting: BaseWeighting, given: frozenset[str], batches: str = "these batches") -> None:
    """Refuse a weighting that reads what the batches of a run do not tell, by name.

    Args:
        name: Of the weighting.
        weighting: Reads what it ``requires``.
        given: Fields of a state that are told.
        batches: What they are called.

    Raises:
        WeightingError: Says what is missing.
    """
    _check_names(name, weighting)
    missing = sorted(weighting.requires - given)
    if missing:
        raise WeightingError(
            f"weighting {name!r} reads {', '.join(missing)}, which {batches} do not tell; read teachers from a "
            "cache that has them, or choose a weighting that needs none, such as 'uniform', 'entropy' or 'auto'"
        )


def _check_names(name: str, weighting: BaseWeighting) -> None:
    names: Any = weighting.requires  # a user's own says anything
    known = {field.name for field in fields(State)}
    if names is None or isinstance(names, str) or not set(names) <= known:
        raise WeightingError(
            f"weighting {name!r} must have requires, a set of fields of the state it reads, got {names!r}; name some "
            f"of {', '.join(sorted(known - {'teacher_logits'}))}, or frozenset()"
        )


@lru_cache(maxsize=256)
def _warn_once(message: str) -> None:
    logger.warning(message)
