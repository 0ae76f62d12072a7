"""Weightings tuned on labelled rows before the student is trained; none of them looks at the instance afterwards."""

from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rlkd.errors import WeightingError
from rlkd.features import finite_logits
from rlkd.losses import likeliest_temperatures
from rlkd.types import State
from rlkd.weighting.arguments import refuse_argument
from rlkd.weighting.base import Answers, Evidence, Mixture
from rlkd.weighting.fixed import Fixed, Uniform


class LrTrain(Fixed):
    """Fixed weights, one a teacher, fitted by logistic regression on the labelled rows of train and probe.

    The coefficients a >= 0 of the pool ``softmax(sum_k a_k log p_k)`` that makes the labels likeliest, with the
    penalty ``|a|^2 / 2`` of scikit-learn's default; the weights are a over its sum, equal if every a is zero. Teachers
    know the rows they were trained on too well: a teacher that learned them by heart wins here.

    Source: the LR-Ensemble baseline of RL-KD, Yuan et al. 2021, arXiv:2012.06048. Deviation: the paper says only that a
    logistic regression finds the weights; the log-linear pool and its sign constraint are ours.
    """

    name: ClassVar[str] = "lr_train"
    splits: ClassVar[tuple[str, ...]] = ("train", "probe")

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``lr_train`` or ``lr_dev``: reads the labelled rows of ``splits``."""
        refuse_argument(cls.name, argument)
        state = labelled_state(cls.name, evidence, *cls.splits)
        assert state.labels is not None
        coefficients = pool_coefficients(state.teacher_logits, state.labels)
        return cls(coefficients if coefficients.sum() > 0 else torch.ones_like(coefficients))


class LrDev(LrTrain):
    """As :class:`LrTrain`, fitted on the labelled rows of validation, which the teachers have not seen.

    Source: the LR-Dev-Ensemble baseline of RL-KD, Yuan et al. 2021, arXiv:2012.06048.
    """

    name: ClassVar[str] = "lr_dev"
    splits: ClassVar[tuple[str, ...]] = ("validation",)


class CalibratedUniform(Uniform):
    """Equal weights over teachers that are calibrated first: the logits of each are divided by its own temperature.

    The temperature makes the labels of validation likeliest. It changes what the student is taught, not the weights.

    Source: Guo et al. 2017, section 4.2, arXiv:1706.04599. Deviation: temperatures stay in [0.05, 20].
    """

    answers: ClassVar[Answers] = "classes"

    def __init__(self, temperatures: Tensor) -> None:
        """Store the temperatures, > 0, shape (K,)."""
        self.temperatures = temperatures.float()

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``calibrated_uniform``: reads the labelled validation rows."""
        refuse_argument("calibrated_uniform", argument)
        state = labelled_state("calibrated_uniform", evidence, "validation")
        assert state.labels is not None
        found = likeliest_temperatures(finite_logits(state.teacher_logits), state.labels)
        return cls(torch.where(state.present.any(0), found, 1.0))  # of who said nothing, every one is as likely

    def taught(self, state: State) -> Mixture:
        """Equal weights over calibrated teacher logits, float32."""
        temperatures = self.temperatures.to(state.teacher_logits.device).unsqueeze(-1)
        return replace(super().taught(state), teacher_logits=state.teacher_logits.float() / temperatures)


def labelled_state(name: str, evidence: Evidence, *splits: str) -> State:
    """The labelled rows that a weighting is fitted on.

    Raises:
        WeightingError: If there are none.
    """
    state = evidence.labelled_state(*splits)
    if len(state.teacher_logits) == 0:
        raise WeightingError(
            f"weighting {name!r} needs labelled {' or '.join(splits)} rows that teachers answered about, got none; "
            f"label some, or leave {name!r} out"
        )
    return state


def pool_coefficients(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Fit the non-negative coefficients of a log-linear pool; convex, so there is one answer.

    Args:
        teacher_logits: Shape (N, K, C).
        labels: Shape (N,), all given.

    Returns:
        Coefficients a, shape (K,), float32.
    """
    from scipy.optimize import minimize  # here: a deployed policy then needs no scipy

    log_p = F.log_softmax(finite_logits(teacher_logits).double(), dim=-1)
    at_label = log_p.gather(-1, labels[:, None, None].expand(-1, log_p.shape[1], 1)).squeeze(-1)

    def objective(values: NDArray[np.float64]) -> tuple[float, Any]:
        a = torch.from_numpy(values)
        pooled = torch.einsum("nkc,k->nc", log_p, a)
        log_normaliser = pooled.logsumexp(-1)
        expected = torch.einsum("nc,nkc->nk", (pooled - log_normaliser[:, None]).exp(), log_p)
        loss = (log_normaliser - at_label @ a).sum() + a @ a / 2
        return float(loss) / len(labels), ((expected - at_label).sum(0) + a).numpy() / len(labels)

    teachers = log_p.shape[1]
    start = np.full(teachers, 1 / teachers)
    fit = minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * teachers, options={"ftol": 1e-12}
    )
    return torch.from_numpy(fit.x).float()
