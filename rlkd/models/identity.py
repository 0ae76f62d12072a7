"""Hashes of what decides a teacher's logits; equal before and after saving."""

import json
import uuid
from collections.abc import Mapping
from typing import Any

import xxhash
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlkd.models.content import feed, is_library
from rlkd.types import ONCE

BOOKKEEPING = frozenset(
    {
        # where a model comes from and how it was written
        *("_name_or_path", "name_or_path", "transformers_version", "architectures", "auto_map", "_commit_hash"),
        # the weights' own type is hashed with them; by which kernel attention is computed changes rounding alone
        *("dtype", "torch_dtype", "_attn_implementation", "attn_implementation"),
        # names of columns are hashed as the teacher has them; the kind of problem chooses a loss
        *("id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params"),
        # what is handed out beside the logits
        *("use_cache", "output_hidden_states", "output_attentions", "return_dict"),
    }
)
"""Fields of a configuration that change no logits, at any depth; every other field is hashed."""
TOKENIZER_SETTINGS = (
    *("truncation_side", "padding_side", "model_max_length", "model_input_names", "split_special_tokens"),
    *("pad_token_id", "pad_token_type_id", "unk_token_id", "cls_token_id", "sep_token_id", "bos_token_id"),
    *("eos_token_id", "mask_token_id"),
)
"""What decides the tokens of a text, and is not in the file of a tokenizer's backend."""


def network_identity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, label_names: tuple[str, ...]
) -> str:
    """Hash the weights and the configuration of a network, its tokenizer, and its code where that is a user's.

    Args:
        model: The network.
        tokenizer: Its tokenizer, if it reads text.
        label_names: Names of its columns.

    Returns:
        32 hexadecimal digits.
    """
    digest = xxhash.xxh3_128(type(model).__name__.encode() + repr(label_names).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        feed(digest, tensor)
    told = {"config": _deciding(model.config.to_dict()), "tokenizer": _tokenizer_content(tokenizer)}
    digest.update(json.dumps(told, sort_keys=True, default=str).encode("utf-8", "replace"))
    for code in (type(model), type(tokenizer)):
        if not is_library(code):
            feed(digest, code)
    return str(digest.hexdigest())


def estimator_identity(model: Any, label_names: tuple[str, ...]) -> str:
    """Hash the fitted state of a scikit-learn estimator by its content, unlike its pickle.

    Args:
        model: The estimator.
        label_names: Names of its columns.

    Returns:
        32 hexadecimal digits; beginning with ``ONCE`` where it holds something that cannot be read.
    """
    digest = xxhash.xxh3_128(repr(label_names).encode())
    try:
        feed(digest, model)
    except (TypeError, AttributeError, RecursionError):
        return once_identity()
    return str(digest.hexdigest())


def once_identity() -> str:
    """An identity that no other teacher has, of this program or another."""
    return f"{ONCE}{uuid.uuid4().hex}"


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration that can change logits, nested configurations included."""
    return {
        str(key): _deciding(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in BOOKKEEPING
    }


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase | None) -> Any:
    if tokenizer is None:
        return None
    if not isinstance(tokenizer, PreTrainedTokenizerBase):  # an image processor
        return [type(tokenizer).__name__, _deciding(tokenizer.to_dict())]
    settings = {name: getattr(tokenizer, name, None) for name in TOKENIZER_SETTINGS}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        made = {k: v for k, v in tokenizer.init_kwargs.items() if k not in BOOKKEEPING and not k.endswith("_file")}
        return [type(tokenizer).__name__, tokenizer.get_vocab(), made, settings]
    # The last call leaves its truncation and padding behind.
    return [{**json.loads(backend.to_str()), "truncation": None, "padding": None}, settings]
