"""The weightings of a comparison: what they are called, and what they are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkd.choosing import chosen_policy, trained_here
from rlkd.cost import NO_COST, UNKNOWN_COST
from rlkd.data.task import Task
from rlkd.logit_cache import LogitCache
from rlkd.records import digest, once
from rlkd.settings import ChoiceSettings, StudentSettings
from rlkd.weighting import Evidence, WeightingSpec
from rlkd.weighting.fixed import Labels
from rlkd.weighting.policy_files import AUTO
from rlkd.weighting.router import Router, train_router
from rlkd.weighting.router_targets import RouterSettings

LABELS = Labels.name


ROUTER_SEED = 0
"""Of the fit of a router: like a policy it is the same for every seed of a student."""


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
    specs: Sequence[str],
    task: Task,
    cache: LogitCache,
    output_dir: Path,
    settings: StudentSettings,
    *,
    students: int = ChoiceSettings.trial_students,
) -> list[ComparedWeighting]:
    """Name the weightings, and fit a router once: like a policy it is the same for every seed.

    Args:
        specs: Weightings, as ``name[:argument]``, that :func:`~rlkd.benchmark.comparing.check_comparison` let pass.
        task: The task.
        cache: The teachers' logits.
        output_dir: Where a fitted router is kept, and what ``auto`` chose.
        settings: Of the students.
        students: By which ``auto`` chooses, see :func:`rlkd.choosing.choose`.
    """
    parsed = [WeightingSpec.parse(spec) for spec in specs]

    def built(spec: WeightingSpec) -> WeightingSpec:
        if spec.name == AUTO:
            trained = trained_here(spec)
            place = chosen_policy(output_dir, task, cache, settings, trained=trained, students=students)
            return WeightingSpec.parse(f"policy:{place}")
        return _built(spec, task, cache, output_dir)

    return [_compared(spec.short_name(parsed), built(spec), task) for spec in parsed]


def _compared(name: str, spec: WeightingSpec, task: Task) -> ComparedWeighting:
    """What was learned before this comparison does not say what it took."""
    cost = NO_COST if spec.learned() is None else UNKNOWN_COST
    return ComparedWeighting(name=name, spec=spec, policy_cost=cost, labelled_only=labelled_rows_alone(spec, task))


def labelled_rows_alone(spec: WeightingSpec, task: Task) -> bool:
    """Whether a weighting is distilled on the labelled train rows alone: ``labels``, where others have none."""
    return spec.name == LABELS and 0 < len(task.labelled_ids("train")) < len(task.splits["train"])


def _built(spec: WeightingSpec, task: Task, cache: LogitCache, output_dir: Path) -> WeightingSpec:
    if spec.name != "router":
        return spec
    return WeightingSpec.parse(f"policy:{_fitted_router(task, cache, output_dir, Router.variant(spec.argument))}")


def _fitted_router(task: Task, cache: LogitCache, output_dir: Path, settings: RouterSettings) -> Path:
    # Named after what it was fitted on: another cache in the same place asks for another router.
    key = digest([task.fingerprint, cache.identity, ROUTER_SEED, settings.described()], algorithm="sha256")
    folder = output_dir / f"router-{key}"
    once(folder, key, lambda: fit_router_into(folder, [(task, cache)], ROUTER_SEED, settings), whole=True)
    return folder


def fit_router_into(
    folder: Path, tasks: Sequence[tuple[Task, LogitCache]], seed: int, settings: RouterSettings | None = None
) -> None:
    """Fit the supervised router on the training views of tasks, and save it as a policy."""
    evidence = [Evidence.of(task, cache, seed) for task, cache in tasks]
    train_router(evidence, settings).save_pretrained(folder)
