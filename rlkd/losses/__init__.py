"""The distillation loss, in its one home: the trainer and the environment both call :func:`distillation_loss`.

Losses are per instance and reduced once, by the caller.
"""

from rlkd.losses.classes import (
    cost_of_mixture,
    cross_entropy,
    distillation_loss,
    kl_to_mixture,
    soft_targets,
    squared_error_to_mixture,
    teacher_cross_entropy,
)
from rlkd.losses.gradients import divergence_gradients, logit_gain, loss_gradient
from rlkd.losses.kinds import multi_label_loss, regression_loss, squared_error
from rlkd.losses.temperatures import COLDEST, HOTTEST, likeliest_temperatures, refined_cross_entropy

__all__ = [
    "COLDEST",
    "HOTTEST",
    "cost_of_mixture",
    "cross_entropy",
    "distillation_loss",
    "divergence_gradients",
    "kl_to_mixture",
    "likeliest_temperatures",
    "logit_gain",
    "loss_gradient",
    "multi_label_loss",
    "refined_cross_entropy",
    "regression_loss",
    "soft_targets",
    "squared_error",
    "squared_error_to_mixture",
    "teacher_cross_entropy",
]
