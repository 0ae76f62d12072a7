"""Distillation through :class:`transformers.Trainer`: one argument, ``weighting``, is what rlkd adds.

Every distillation goes through here, in ``compare`` and in the benchmarks too: what is measured is what users run.
"""

from rlkd.trainer.arguments import DistillationArguments
from rlkd.trainer.making import MetricsCallback, make_trainer, training_arguments, without_printer
from rlkd.trainer.training import FEATURES, IDS, WEIGHT_FILE, WEIGHTING_FILE, DistillationTrainer, InstanceDataset

__all__ = [
    "FEATURES",
    "IDS",
    "WEIGHTING_FILE",
    "WEIGHT_FILE",
    "DistillationArguments",
    "DistillationTrainer",
    "InstanceDataset",
    "MetricsCallback",
    "make_trainer",
    "training_arguments",
    "without_printer",
]
