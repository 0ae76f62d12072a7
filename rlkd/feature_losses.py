"""Losses between the inner states of a student and of its teachers, for every instance and teacher apart.

So any weighting can weight them: a term gives shape (B, K), and is reduced once, by :class:`FeatureLosses`, with the
weights of each instance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlkd.data.batching import Inputs
from rlkd.errors import ConfigError, StudentError
from rlkd.models.inner_states import check_encoder, encoder_config
from rlkd.models.students import seeded_weights
from rlkd.types import InnerStates, InnerStateSource, LogitSource, State, Wanted
from rlkd.weighting import Mixture, Weighting, adapted, mixture


def hidden_layer_map(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """The teacher's state that each state 0 to L_S of the student learns from: state j from state ``j * L_T / L_S``.

    State 0 is the output of the embeddings.

    Raises:
        StudentError: L_S does not divide L_T.

    Source:
        Jiao et al. 2020 (TinyBERT), arXiv:1909.10351, section 3 (uniform map).
    """
    step = _layers_per_layer(teacher_layers, student_layers)
    return tuple(j * step for j in range(student_layers + 1))


def attention_layer_map(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """The teacher's layer, from 0, that each layer of the student learns attention from: the last of its block.

    Raises:
        StudentError: L_S does not divide L_T.

    Source:
        As :func:`hidden_layer_map`.
    """
    step = _layers_per_layer(teacher_layers, student_layers)
    return tuple(j * step + step - 1 for j in range(student_layers))


def _layers_per_layer(teacher_layers: int, student_layers: int) -> int:
    if student_layers < 1 or teacher_layers % student_layers:
        raise StudentError(
            f"feature losses map every layer of the student to one of the teacher: {student_layers} layers must "
            f"divide {teacher_layers}; choose another number of layers"
        )
    return teacher_layers // student_layers


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of hidden states over the real tokens of each instance.

    Args:
        student: Projected to the teacher's width, shape (B, L, H).
        teacher: Shape (B, L, H).
        mask: Shape (B, L), bool, at least one True a row.

    Returns:
        Shape (B,), float32.

    Source:
        TinyBERT, arXiv:1909.10351, equations 8 and 9. Deviation: padding does not count; the code averages over it.
    """
    error = (student.float() - teacher.float()).square().mean(-1)
    return (error * mask).sum(-1) / mask.sum(-1)


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of attention scores over heads and pairs of real tokens of each instance.

    Args:
        student: Scores before the softmax, shape (B, heads, L, L).
        teacher: Likewise.
        mask: Shape (B, L), bool, at least one True a row.

    Returns:
        Shape (B,), float32.

    Source:
        TinyBERT, arXiv:1909.10351, equation 7: unnormalised scores. Deviation: padding does not count.
    """
    error = (student.float() - teacher.float()).square().mean(1)
    pairs = mask.unsqueeze(-1) & mask.unsqueeze(-2)
    return (error * pairs).sum((-2, -1)) / pairs.sum((-2, -1))


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
