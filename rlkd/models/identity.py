"""Hashes of what decides a teacher's logits; equal before and after saving."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xxhash
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def network_identity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, label_names: tuple[str, ...]
) -> str:
    """Hash the weights of a network and its tokenizer.

    Args:
        model: The network.
        tokenizer: Its tokenizer, if it reads text.
        label_names: Names of its columns.

    Returns:
        32 hexadecimal digits.
    """
    digest = xxhash.xxh3_128(type(model).__name__.encode() + repr(label_names).encode())
    for key, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    digest.update(_tokenizer_content(tokenizer).encode("utf-8", "replace"))
    return str(digest.hexdigest())


def estimator_identity(model: Any, label_names: tuple[str, ...]) -> str:
    """Hash the fitted state of a scikit-learn estimator by its content, unlike its pickle.

    Args:
        model: The estimator.
        label_names: Names of its columns.

    Returns:
        32 hexadecimal digits.
    """
    digest = xxhash.xxh3_128(repr(label_names).encode())
    _feed(digest, model)
    return str(digest.hexdigest())


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase | None) -> str:
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return repr(sorted(tokenizer.get_vocab().items()))
    content = json.loads(backend.to_str())
    # The last call leaves its truncation and padding behind.
    return json.dumps({**content, "truncation": None, "padding": None})


def _feed(digest: Any, value: Any) -> None:
    """Hash one value by its content, and what it holds."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"{value.dtype.str}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            digest.update(repr(_plain(key)).encode("utf-8", "replace"))
            _feed(digest, value[key])
    elif isinstance(value, list | tuple | np.ndarray):
        digest.update(f"[{len(value)}]".encode())
        for item in value:
            _feed(digest, item)
    elif isinstance(value, set | frozenset):
        _feed(digest, sorted(map(repr, value)))
    elif value is None or isinstance(value, str | bytes | int | float | complex | np.generic):
        digest.update(repr(_plain(value)).encode("utf-8", "replace"))
    else:
        digest.update(_type_name(value).encode())
        state = None if hasattr(value, "__qualname__") else _state(value)
        if state is not None:
            _feed(digest, state)


def _state(value: Any) -> Any:
    state = value.__getstate__()
    # scikit-learn adds its version, which changes no answer.
    return {k: v for k, v in state.items() if k != "_sklearn_version"} if isinstance(state, dict) else state


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _type_name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"<{named.__module__}.{named.__qualname__}>"
