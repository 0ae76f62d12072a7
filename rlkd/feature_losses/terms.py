"""Terms: one loss between inner states of a student and of each teacher, and the modules that are trained for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlkd.errors import ConfigError, StudentError
from rlkd.feature_losses.layers import attention_layer_map, attention_loss, hidden_layer_map, hidden_loss
from rlkd.models.inner_states import encoder_config
from rlkd.models.students import seeded_weights
from rlkd.types import InnerStates, State, Wanted


@dataclass(frozen=True, kw_only=True)
class FeatureBatch:
    """What a term sees of a batch."""

    student: InnerStates
    """With gradients."""
    teachers: tuple[InnerStates, ...]
    """Of the K teachers, detached."""
    state: State


class FeatureTerm(Protocol):
    """One loss between inner states."""

    weight: float
    """Of the term in the loss; >= 0."""
    scaled: bool
    """Whether the factor that a weighting gives each instance (``scale``) multiplies this term too."""
    of_student: Wanted
    """Inner states that it reads of the student."""
    of_teachers: tuple[Wanted, ...]
    """Inner states that it reads of each teacher."""
    trained: tuple[nn.Module, ...]
    """Modules that are trained for it beside the student; several terms may share one."""

    def losses(self, batch: FeatureBatch) -> Tensor:
        """One value for every instance and teacher, shape (B, K)."""


@dataclass(frozen=True, kw_only=True)
class EncoderSizes:
    """What maps between two encoders need to know of each."""

    layers: int
    width: int
    heads: int

    @classmethod
    def of(cls, model: Any) -> "EncoderSizes":
        """Sizes of a network that :func:`~rlkd.models.inner_states.check_encoder` let pass."""
        config = encoder_config(model)
        return cls(layers=config.num_hidden_layers, width=config.hidden_size, heads=config.num_attention_heads)


class Projections(nn.ModuleList):
    """A linear map for every teacher from the student's width to the teacher's, shared by all layers and terms.

    Source:
        ``fit_dense`` of TinyBERT and of the Meta-KD release.
    """

    def __init__(self, student: EncoderSizes, teachers: Sequence[EncoderSizes], *, seed: int = 0) -> None:
        """Draw the maps from ``seed``."""
        with seeded_weights(seed):
            super().__init__(nn.Linear(student.width, teacher.width) for teacher in teachers)


class HiddenTerm:
    """The hidden loss, summed over the student's states."""

    scaled = True

    def __init__(
        self,
        student: EncoderSizes,
        teachers: Sequence[EncoderSizes],
        projections: Projections,
        *,
        weight: float = 1.0,
        embeddings: bool = False,
    ) -> None:
        """Compare the outputs of all layers, or with ``embeddings`` that of the embeddings alone."""
        self.weight, self._projections = weight, projections
        self.trained: tuple[nn.Module, ...] = (projections,)
        kept = slice(0, 1) if embeddings else slice(1, None)
        self._maps = [list(enumerate(hidden_layer_map(teacher.layers, student.layers)))[kept] for teacher in teachers]
        self.of_student = Wanted(hidden=tuple(mine for mine, _ in self._maps[0]))
        self.of_teachers = tuple(Wanted(hidden=tuple(theirs for _, theirs in pairs)) for pairs in self._maps)

    def losses(self, batch: FeatureBatch) -> Tensor:
        """See :class:`FeatureTerm`."""
        mask, states = batch.student.mask, batch.student.hidden
        columns = []
        for project, pairs, teacher in zip(self._projections, self._maps, batch.teachers, strict=True):
            terms = [hidden_loss(project(states[mine]), teacher.hidden[theirs], mask) for mine, theirs in pairs]
            columns.append(torch.stack(terms).sum(0))
        return torch.stack(columns, dim=-1)


class AttentionTerm:
    """The attention loss, summed over the student's layers."""

    scaled = True

    def __init__(self, student: EncoderSizes, teachers: Sequence[EncoderSizes], *, weight: float = 1.0) -> None:
        """Compare head by head.

        Raises:
            StudentError: A teacher has another number of heads.
        """
        for teacher in teachers:
            if teacher.heads != student.heads:
                raise StudentError(
                    f"the attention loss compares head by head, the student has {student.heads}, a teacher "
                    f"{teacher.heads}; give the student as many, or leave the attention loss out"
                )
        self.weight = weight
        self.trained: tuple[nn.Module, ...] = ()
        self._maps = [attention_layer_map(teacher.layers, student.layers) for teacher in teachers]
        self.of_student = Wanted(attention=tuple(range(student.layers)))
        self.of_teachers = tuple(Wanted(attention=layers) for layers in self._maps)

    def losses(self, batch: FeatureBatch) -> Tensor:
        """See :class:`FeatureTerm`."""
        mask, scores = batch.student.mask, batch.student.attention
        columns = []
        for layers, teacher in zip(self._maps, batch.teachers, strict=True):
            terms = [attention_loss(scores[j], teacher.attention[layer], mask) for j, layer in enumerate(layers)]
            columns.append(torch.stack(terms).sum(0))
        return torch.stack(columns, dim=-1)


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """Weights of the feature terms beside the distillation loss; 0 leaves a term out."""

    embedding: float = 0.0
    """Of the embedding loss. Range: >= 0."""
    hidden: float = 0.0
    """Of the hidden loss, summed over layers. Range: >= 0."""
    attention: float = 0.0
    """Of the attention loss, summed over layers; it needs the slower eager attention. Range: >= 0."""
    logits: float = 1.0
    """Of the distillation loss on logits; 0 for a first step on features alone. Range: >= 0."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("embedding", "hidden", "attention", "logits"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"the weight of the {name} loss must be >= 0, got {getattr(self, name)}; raise it")


def feature_terms(
    student: EncoderSizes, teachers: Sequence[EncoderSizes], settings: FeatureSettings, projections: Projections
) -> list[FeatureTerm]:
    """The terms whose weight is not zero."""
    terms: list[FeatureTerm] = []
    if settings.embedding:
        terms.append(HiddenTerm(student, teachers, projections, weight=settings.embedding, embeddings=True))
    if settings.hidden:
        terms.append(HiddenTerm(student, teachers, projections, weight=settings.hidden))
    if settings.attention:
        terms.append(AttentionTerm(student, teachers, weight=settings.attention))
    return terms
