"""The terms of a run in one value an instance, with the weights of its teachers, beside the distillation loss."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlkd.data.batching import Inputs
from rlkd.errors import ConfigError
from rlkd.feature_losses.terms import (
    EncoderSizes,
    FeatureBatch,
    FeatureSettings,
    FeatureTerm,
    Projections,
    feature_terms,
)
from rlkd.models.inner_states import check_encoder
from rlkd.types import InnerStates, InnerStateSource, LogitSource, State, Wanted
from rlkd.weighting import Mixture, Weighting, adapted, mixture


class FeatureLosses(nn.Module):
    """What the trainer adds to the distillation loss, and the modules that are trained for it beside the student."""

    def __init__(
        self, terms: Sequence[FeatureTerm], *, logits_weight: float = 1.0, weighting: Weighting | None = None
    ) -> None:
        """Hold the terms.

        Args:
            terms: At least one.
            logits_weight: Of the distillation loss beside them; 0: the features alone are learned.
            weighting: Weights teachers in these terms. None: the weighting of the distillation loss.

        Raises:
            ConfigError: There is no term.
        """
        super().__init__()
        if not terms:
            raise ConfigError("feature losses need a term whose weight is not 0, got none; leave them out altogether")
        self.terms = list(terms)
        # each once: a checkpoint refuses tensors that lie in two places
        self.trained = nn.ModuleList(dict.fromkeys(module for term in terms for module in term.trained))
        self.logits_weight = logits_weight
        self.weighting = None if weighting is None else adapted(weighting)
        self.of_student = _joined([term.of_student for term in terms])
        self.of_teachers = [_joined(list(wishes)) for wishes in zip(*(t.of_teachers for t in terms), strict=True)]

    def check(self, student: Any, source: LogitSource, inputs: Inputs, rows: NDArray[np.int64]) -> InnerStateSource:
        """Refuse what cannot be compared token by token.

        Args:
            student: The network.
            source: The teachers.
            inputs: What the student reads.
            rows: Instances to compare the tokens of.

        Returns:
            The source, which has inner states.

        Raises:
            ConfigError: The source is a cache of logits, or a teacher reads other tokens than the student.
            StudentError: The student has no inner states.
        """
        if not isinstance(source, InnerStateSource):
            raise ConfigError(
                f"feature losses read the teachers' hidden states, a {type(source).__name__} holds their logits only; "
                "pass LiveEncoders, or leave the feature losses out"
            )
        if len(self.of_teachers) != len(source.teacher_names):
            raise ConfigError(
                f"feature losses were made for {len(self.of_teachers)} teachers, got {len(source.teacher_names)}; "
                "make them for these"
            )
        check_encoder(student, attention=bool(self.of_student.attention))
        some = rows[:_COMPARED_ROWS]
        mine = inputs.batch(some)
        for name, theirs in zip(source.teacher_names, source.tokens(some), strict=True):
            if any(mine[key].shape != theirs[key].shape or not mine[key].equal(theirs[key]) for key in _TOKENS):
                raise ConfigError(
                    f"feature losses compare token by token, teacher {name!r} reads other tokens than the student; "
                    "give the student the teacher's tokenizer, and both the same max_length"
                )
        return source

    def losses(self, student: InnerStates, teachers: Sequence[InnerStates], state: State, taught: Mixture) -> Tensor:
        """The weighted sum of all terms, one value per instance.

        Args:
            student: With gradients.
            teachers: Of the K teachers.
            state: Of the batch.
            taught: What the weighting of the distillation loss says.

        Returns:
            Shape (B,), float32.
        """
        own = taught if self.weighting is None else mixture(self.weighting, state)
        batch = FeatureBatch(
            student=student, teachers=tuple(_on(t, student.mask.device) for t in teachers), state=state
        )
        total = torch.zeros_like(own.weights[..., 0])
        for term in self.terms:
            loss = (own.weights * term.losses(batch)).sum(-1)
            scale = own.scale if term.scaled else None
            total = total + term.weight * (loss if scale is None else scale * loss)
        return total


def make_feature_losses(
    student: Any,
    teachers: Sequence[Any],
    settings: FeatureSettings,
    *,
    weighting: Weighting | None = None,
    seed: int = 0,
) -> FeatureLosses:
    """Feature losses for a student, ready for :class:`~rlkd.trainer.DistillationTrainer`.

    Args:
        student: The network.
        teachers: The K teachers' networks, in the order of the :class:`~rlkd.logit_cache.LiveEncoders` of the run.
        settings: Weights of the terms.
        weighting: Weights teachers in these terms. None: the weighting of the distillation loss.
        seed: Of the projections.

    Raises:
        StudentError: A network has no inner states, or their sizes do not fit.
    """
    for model in (student, *teachers):
        check_encoder(model, attention=settings.attention > 0)
    sizes, others = EncoderSizes.of(student), [EncoderSizes.of(teacher) for teacher in teachers]
    terms = feature_terms(sizes, others, settings, Projections(sizes, others, seed=seed))
    return FeatureLosses(terms, logits_weight=settings.logits, weighting=weighting)


_TOKENS = ("input_ids", "attention_mask")
_COMPARED_ROWS = 64


def _joined(wishes: Sequence[Wanted]) -> Wanted:
    joined = Wanted()
    for wish in wishes:
        joined = joined | wish
    return joined


def _on(states: InnerStates, device: torch.device) -> InnerStates:
    return InnerStates(
        mask=states.mask.to(device),
        hidden={index: value.to(device) for index, value in states.hidden.items()},
        attention={index: value.to(device) for index, value in states.attention.items()},
    )
