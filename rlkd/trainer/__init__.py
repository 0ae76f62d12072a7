"""Distillation through :class:`transformers.Trainer`: one argument, ``weighting``, is what rlkd adds.

Every distillation goes through here, in ``compare`` and in the benchmarks too: what is measured is what users run.
"""

from rlkd.trainer.arguments import DistillationArguments
from rlkd.trainer.batch_teachers import BatchTeachers
from rlkd.trainer.distillation_trainer import DistillationTrainer
from rlkd.trainer.labelled import labelled_answers
from rlkd.trainer.looked_up_teachers import GivenLogits
from rlkd.trainer.making import MetricsCallback, make_trainer, training_arguments, without_printer
from rlkd.trainer.recording import WEIGHT_FILE, WEIGHTING_FILE
from rlkd.trainer.task_trainer import FEATURES, IDS, InstanceDataset, TaskTrainer
from rlkd.trainer.training import DistillationMixin

__all__ = [
    "FEATURES",
    "IDS",
    "WEIGHTING_FILE",
    "WEIGHT_FILE",
    "BatchTeachers",
    "DistillationArguments",
    "DistillationMixin",
    "DistillationTrainer",
    "GivenLogits",
    "InstanceDataset",
    "MetricsCallback",
    "TaskTrainer",
    "labelled_answers",
    "make_trainer",
    "training_arguments",
    "without_printer",
]
