"""The weightings of a comparison: what they are called, and what they are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkd.cost import NO_COST, UNKNOWN_COST
from rlkd.data.task import Task
from rlkd.features import ObservationConfig
from rlkd.logit_cache import LogitCache
from rlkd.records import digest, once
from rlkd.weighting import Evidence, WeightingSpec
from rlkd.weighting.router import train_router

FITTED_ONCE = (None, "knows")
"""Arguments of routers that a comparison keeps: it reads labels alone, or is told what every teacher was trained on."""


@dataclass(frozen=True, kw_only=True)
class ComparedWeighting:
    """One weighting of a comparison."""

    name: str
    """What tables call it."""
    spec: WeightingSpec | None
    """What it is built from. None: what the system of its suite calls by this name."""
    policy_cost: Mapping[str, Any] = field(default_factory=lambda: dict(NO_COST))
    """What training it cost before any student was distilled, as :meth:`rlkd.cost.Cost.record`; None where unknown."""
    labelled_only: bool = False
    """Distil on the labelled train rows alone, because it cannot weight the others."""


def compared_weightings(
    specs: Sequence[str], task: Task, cache: LogitCache, output_dir: Path, *, seed: int = 0
) -> list[ComparedWeighting]:
    """Name the weightings, and fit a router once: like a policy it is the same for every seed.

    Args:
        specs: Weightings, as ``name[:argument]``, that :func:`~rlkd.benchmark.comparing.check_comparison` let pass.
        task: The task.
        cache: The teachers' logits.
        output_dir: Where a fitted router is kept.
        seed: Of the router's fit.
    """
    parsed = [WeightingSpec.parse(spec) for spec in specs]
    return [_compared(spec.short_name(parsed), _built(spec, task, cache, output_dir, seed)) for spec in parsed]


def _compared(name: str, spec: WeightingSpec) -> ComparedWeighting:
    """What was learned before this comparison does not say what it took."""
    return ComparedWeighting(name=name, spec=spec, policy_cost=NO_COST if spec.learned() is None else UNKNOWN_COST)


def _built(spec: WeightingSpec, task: Task, cache: LogitCache, output_dir: Path, seed: int) -> WeightingSpec:
    if spec.name != "router" or spec.argument not in FITTED_ONCE:
        return spec
    return WeightingSpec.parse(f"policy:{_fitted_router(task, cache, output_dir, seed, spec.argument == 'knows')}")


def _fitted_router(task: Task, cache: LogitCache, output_dir: Path, seed: int, knows: bool) -> Path:
    # Named after what it was fitted on: another cache in the same place asks for another router.
    key = digest([task.fingerprint, cache.identity, seed, "knows" if knows else "labels"], algorithm="sha256")
    folder = output_dir / f"router-{key}"
    once(folder, key, lambda: fit_router_into(folder, task, cache, seed, knows=knows), whole=True)
    return folder


def fit_router_into(
    folder: Path,
    task: Task,
    cache: LogitCache,
    seed: int,
    observation: ObservationConfig | None = None,
    *,
    knows: bool = False,
) -> None:
    """Fit the supervised router on the training view of the task, and save it as a policy."""
    view = task.training_view()
    evidence = Evidence(task=view, source=cache.head(len(view.table)), seed=seed)
    train_router(evidence, observation or ObservationConfig(), knows=knows).save_pretrained(folder)
