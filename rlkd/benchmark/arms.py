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
from rlkd.weighting import Evidence
from rlkd.weighting.router import train_router
from rlkd.weighting.saved import saved_identity

KNOWING = "router:knows"
"""The router that is told what every teacher was trained on; fitted once, like the one that reads labels alone."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One weighting of a comparison."""

    name: str
    """What tables call it."""
    spec: str
    """What :func:`rlkd.weighting.build_weighting` is given."""
    policy_cost: Mapping[str, Any] = field(default_factory=lambda: dict(NO_COST))
    """What training it cost before any student was distilled, as :meth:`rlkd.cost.Cost.record`; None where unknown."""
    labelled_only: bool = False
    """Distil on the labelled train rows alone, because it cannot weight the others."""


def resolve_arms(specs: Sequence[str], task: Task, cache: LogitCache, output_dir: Path, *, seed: int = 0) -> list[Arm]:
    """Name the weightings, and fit a router once: like a policy it is the same for every seed.

    Args:
        specs: Weightings, as ``name[:argument]``, that :func:`~rlkd.benchmark.comparing.check_comparison` let pass.
        task: The task.
        cache: The teachers' logits.
        output_dir: Where a fitted router is kept.
        seed: Of the router's fit.
    """
    return [_arm(_arm_name(spec, specs), _built(spec, task, cache, output_dir, seed)) for spec in specs]


def _arm(name: str, spec: str) -> Arm:
    """What was learned before this comparison does not say what it took."""
    return Arm(name=name, spec=spec, policy_cost=NO_COST if learned_hash(spec) is None else UNKNOWN_COST)


def _built(spec: str, task: Task, cache: LogitCache, output_dir: Path, seed: int) -> str:
    if spec not in ("router", KNOWING):
        return spec
    return f"policy:{_fitted_router(task, cache, output_dir, seed, spec == KNOWING)}"


def _arm_name(spec: str, specs: Sequence[str]) -> str:
    """The name without its path, where that is enough to tell the arms apart."""
    short = "policy" if Path(spec).is_dir() else spec.partition(":")[0]
    alike = [
        other for other in specs if other.partition(":")[0] == short or (short == "policy" and Path(other).is_dir())
    ]
    return short if len(alike) == 1 and short in ("policy", "policy_mean", "policy_shuffle") else spec


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


def learned_hash(spec: str) -> str | None:
    """What a weighting reads from a folder, by content: another policy in the same folder is another weighting.

    Args:
        spec: ``name[:argument]``, or the folder of a policy.

    Returns:
        64 hexadecimal digits; None where the weighting reads no weights from a folder.
    """
    return saved_identity(spec.partition(":")[2] or spec)
