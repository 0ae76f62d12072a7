"""rlkd learns which teacher to trust on which instance while a student is distilled.

Names are loaded on first use, so a deployed policy needs neither Stable-Baselines3 nor Gymnasium.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlkd import auto_classes

if TYPE_CHECKING:
    from rlkd.agents import train_policy
    from rlkd.data import Task, load_task
    from rlkd.distillation import weighted_distillation_loss
    from rlkd.features import ObservationConfig, usual_sureness
    from rlkd.logit_cache import LiveTeachers, LogitCache, build_cache, load_cache
    from rlkd.models import load_student, load_teachers, train_teachers
    from rlkd.trainer import DistillationArguments, DistillationMixin, DistillationTrainer, labelled_answers
    from rlkd.types import State
    from rlkd.weighting import Policy, Weighting, build_weighting, load_weighting

_HOMES = {
    "DistillationArguments": "rlkd.trainer",
    "DistillationMixin": "rlkd.trainer",
    "DistillationTrainer": "rlkd.trainer",
    "LiveTeachers": "rlkd.logit_cache",
    "LogitCache": "rlkd.logit_cache",
    "ObservationConfig": "rlkd.features",
    "Policy": "rlkd.weighting",
    "State": "rlkd.types",
    "Task": "rlkd.data",
    "Weighting": "rlkd.weighting",
    "build_cache": "rlkd.logit_cache",
    "build_weighting": "rlkd.weighting",
    "labelled_answers": "rlkd.trainer",
    "load_cache": "rlkd.logit_cache",
    "load_student": "rlkd.models",
    "load_task": "rlkd.data",
    "load_teachers": "rlkd.models",
    "load_weighting": "rlkd.weighting",
    "train_policy": "rlkd.agents",
    "train_teachers": "rlkd.models",
    "usual_sureness": "rlkd.features",
    "weighted_distillation_loss": "rlkd.distillation",
}

__all__ = [
    "DistillationArguments",
    "DistillationMixin",
    "DistillationTrainer",
    "LiveTeachers",
    "LogitCache",
    "ObservationConfig",
    "Policy",
    "State",
    "Task",
    "Weighting",
    "build_cache",
    "build_weighting",
    "labelled_answers",
    "load_cache",
    "load_student",
    "load_task",
    "load_teachers",
    "load_weighting",
    "train_policy",
    "train_teachers",
    "usual_sureness",
    "weighted_distillation_loss",
]

auto_classes.make_known()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rlkd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
