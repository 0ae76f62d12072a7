"""What transformers hold inside while they read: hidden states and attention scores, of students and teachers alike."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from rlkd.errors import StudentError
from rlkd.models.networks import forward_inputs, reads
from rlkd.types import InnerStates, Wanted

SCORES = "rlkd_scores"
"""Name of the attention that computes as the eager one does and hands out its scores before the softmax."""


def _scores_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    if key.shape[1] != query.shape[1]:
        raise StudentError(
            f"attention losses need as many heads for keys as for queries, {type(module).__name__} has "
            f"{key.shape[1]} and {query.shape[1]}; leave the attention loss out"
        )
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    masked = scores if attention_mask is None else scores + attention_mask
    weights = nn.functional.dropout(masked.softmax(-1), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), scores


register_mask: Callable[..., None] = AttentionMaskInterface.register
AttentionInterface.register(SCORES, _scores_attention)
register_mask(SCORES, eager_mask)


@contextmanager
def _handing_out_scores(model: Any, wanted: bool) -> Iterator[None]:
    """Only while they are asked for: the model's own attention is the faster one."""
    if not wanted:
        yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(SCORES)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def encoder_config(model: Any) -> Any:
    """Configuration of the transformer inside a classifier: of a multi-task model that of its encoder."""
    return getattr(model.config, "encoder", model.config)


def check_encoder(model: Any, *, attention: bool) -> None:
    """Refuse a network without the inner states of a transformer over tokens.

    Raises:
        StudentError: It reads no texts, has no layers, or does not hand out attention scores.
    """
    if reads(model) != ("text",):
        raise StudentError(
            f"feature losses compare states of tokens, {type(model).__name__} reads {reads(model)[0]}; leave the "
            "feature losses out"
        )
    config = encoder_config(model)
    sizes = [getattr(config, name, None) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")]
    if not all(isinstance(size, int) for size in sizes):
        raise StudentError(
            f"feature losses need transformers with hidden states, got {type(model).__name__}; use an encoder such "
            "as BERT, or leave the feature losses out"
        )
    if attention and not model._can_set_attn_implementation():
        raise StudentError(
            f"the attention loss reads scores through transformers' attention interface, {type(model).__name__} does "
            "not use it; leave the attention loss out"
        )


def read_inner_states(model: Any, inputs: Mapping[str, Tensor], wanted: Wanted) -> tuple[Any, InnerStates]:
    """Run an encoder and keep what is wanted of its inner states.

    Args:
        model: A transformer classifier; gradients flow unless the caller switches them off.
        inputs: With ``attention_mask`` (B, L).
        wanted: Which states and layers.

    Returns:
        The model's output and its inner states.
    """
    with _handing_out_scores(model, bool(wanted.attention)):
        outputs = model(
            **forward_inputs(model, inputs),
            **({"output_hidden_states": True} if wanted.hidden else {}),
            **({"output_attentions": True} if wanted.attention else {}),
        )
    return outputs, InnerStates(
        mask=inputs["attention_mask"].to(torch.bool),
        hidden={index: outputs.hidden_states[index] for index in wanted.hidden},
        attention={index: outputs.attentions[index] for index in wanted.attention},
    )
