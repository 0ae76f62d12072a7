"""Fingerprints of rows: 128 bits of what a teacher reads of one, whichever batch it is in."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from rlkd.logit_cache.answers import Keys
from rlkd.models.content import feed

MASK = "attention_mask"


def keys_of_texts(texts: Sequence[Any]) -> Keys:
    """Keys of B texts, or pairs of texts."""
    return _keys([repr(text).encode() for text in texts])  # which sets pairs apart, and writes lone surrogates out


def keys_of_fields(fields: Mapping[str, Tensor]) -> Keys:
    """Keys of what a network reads: fields as long as its ``attention_mask`` without what that masks, others whole.

    So a row has one key in every batch. Where a network counts positions from padding on the left, its answers are not
    quite the same in all batches; then the first that it gave stands for them.

    Args:
        fields: By name, every tensor (B, ...).
    """
    mask = token_mask(fields) if MASK in fields else None
    rows = zip(*(_row_bytes(fields[name], mask) for name in sorted(fields)), strict=True)
    named = repr([(name, fields[name].dtype) for name in sorted(fields)]).encode()
    return _keys([b"".join((named, *row)) for row in rows])


def key_of_row(row: Mapping[str, Any] | None) -> str:
    """Key of all that a row holds; empty where that cannot be told."""
    digest = xxhash.xxh3_128()
    try:
        feed(digest, None if row is None else dict(row))
    except (TypeError, AttributeError, RecursionError):
        return ""
    return digest.hexdigest()


def token_mask(fields: Mapping[str, Tensor]) -> Tensor:
    """Which tokens of B rows are no padding, bool (B, L): all, for a network that reads no ``attention_mask``."""
    if MASK in fields and fields[MASK].ndim == 2:
        return fields[MASK] != 0
    tokens = next(value for value in fields.values() if value.ndim > 1)
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def _row_bytes(value: Tensor, mask: Tensor | None) -> list[bytes]:
    """The bytes of each row, behind how many they are."""
    array = (value.float() if value.dtype is torch.bfloat16 else value).cpu().numpy()  # numpy lacks it
    counts = np.full(len(array), array[0].size)
    if mask is not None and value.shape == mask.shape:
        array, counts = array[mask.cpu().numpy()], mask.sum(1).cpu().numpy()
    data, ends = array.tobytes(), (np.cumsum(counts) * array.itemsize).tolist()
    return [(end - begin).to_bytes(8, "little") + data[begin:end] for begin, end in pairwise([0, *ends])]


def _keys(contents: Sequence[bytes]) -> Keys:
    digests = b"".join(xxhash.xxh3_128_digest(content) for content in contents)
    return np.frombuffer(digests, "<u8").reshape(-1, 2)
