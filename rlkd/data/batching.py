"""Turn instance ids into model inputs, and order instances so that a batch holds similar lengths."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from rlkd.data.task import Task, scaled
from rlkd.errors import ConfigError, TaskError

logger = logging.getLogger(__name__)

_ROWS_PER_CALL = 2048
_MEGA_BATCH = 16


class Inputs(Protocol):
    """What a model reads, addressed by instance id."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of every instance, shape (N,)."""

    def batch(self, ids: NDArray[np.int64]) -> dict[str, Tensor]:
        """Model inputs of the instances ``ids`` (B,), every tensor (B, ...)."""


class TokenInputs:
    """Token ids of all rows, tokenised once; batches are padded to their longest row.

    Args:
        flat: Token ids of all rows behind each other, shape (T,).
        lengths: Tokens of every row, shape (N,), adding up to T.
        pad_token_id: Id that fills up short rows.
        token_types: Segment ids, shape (T,), where the model wants them.
        pad_token_type_id: Segment id that fills up short rows.
        pad_left: Fill up on the left.
    """

    def __init__(
        self,
        flat: NDArray[np.int32],
        lengths: NDArray[np.int64],
        *,
        pad_token_id: int,
        token_types: NDArray[np.int32] | None = None,
        pad_token_type_id: int = 0,
        pad_left: bool = False,
    ) -> None:
        self.lengths = lengths
        self._flat = flat
        self._token_types = token_types
        self._starts = np.cumsum(lengths) - lengths
        self._pad_token_id = pad_token_id
        self._pad_token_type_id = pad_token_type_id
        self._pad_left = pad_left

    def batch(self, ids: NDArray[np.int64]) -> dict[str, Tensor]:
        """Pad the instances ``ids`` (B,) to their longest, L.

        Returns:
            ``input_ids`` and ``attention_mask``, both (B, L) int64, and ``token_type_ids`` where wanted.
        """
        lengths = self.lengths[ids]
        width = int(lengths.max(initial=0))
        steps = np.arange(width)[None, :]
        if self._pad_left:
            steps = steps - (width - lengths)[:, None]
        mask = (steps >= 0) & (steps < lengths[:, None])
        where = np.where(mask, self._starts[ids][:, None] + steps, 0)
        inputs = {
            "input_ids": _tensor(np.where(mask, self._flat[where], self._pad_token_id)),
            "attention_mask": _tensor(mask),
        }
        if self._token_types is not None:
            types = np.where(mask, self._token_types[where], self._pad_token_type_id)
            inputs["token_type_ids"] = _tensor(types)
        return inputs


class VectorInputs:
    """Feature vectors, shape (N, D), as they are."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.lengths = np.ones(len(vectors), dtype=np.int64)
        self._vectors = vectors

    def batch(self, ids: NDArray[np.int64]) -> dict[str, Tensor]:
        """Give ``input_values`` of the instances ``ids`` (B,), shape (B, D) float32."""
        return {"input_values": torch.from_numpy(self._vectors[ids])}


class ImageInputs:
    """Images, shape (N, H, W, channels), as numbers in [0, 1]; or as an image processor makes them.

    Args:
        images: Bytes.
        processor: An image processor of transformers. None: there is none.
    """

    def __init__(self, images: NDArray[np.uint8], processor: Any | None = None) -> None:
        self.lengths = np.ones(len(images), dtype=np.int64)
        self._images, self._processor = images, processor

    def batch(self, ids: NDArray[np.int64]) -> dict[str, Tensor]:
        """Give ``pixel_values`` of the instances ``ids`` (B,), shape (B, channels, H, W) float32."""
        chosen = self._images[ids]
        if self._processor is not None:
            made = self._processor(list(chosen), return_tensors="pt", input_data_format="channels_last")
            return {"pixel_values": made["pixel_values"]}
        return {"pixel_values": torch.from_numpy(scaled(chosen)).permute(0, 3, 1, 2)}


def encode_inputs(task: Task, tokenizer: Any | None, max_length: int) -> Inputs:
    """Make the inputs of all rows of a task.

    Args:
        task: The task.
        tokenizer: A fast tokenizer of transformers; None for tasks of vectors; of images an image processor or None.
        max_length: Longest row in tokens, special tokens included; texts are truncated to it, and to the tokenizer's
            ``model_max_length`` where that is less, which is said in the log if it cuts a text.

    Returns:
        Inputs by instance id.
    """
    table = task.table
    if table.images is not None:
        return ImageInputs(table.images, tokenizer)
    if table.vectors is not None:
        return VectorInputs(table.vectors)
    if tokenizer is None or table.texts is None:
        raise TaskError(f"task {task.name!r} holds texts and needs a tokenizer, got None; give one")
    check_tokenizer(tokenizer, max_length, task)
    inputs = tokenised(tokenizer, table.texts, table.text_pairs, longest_row(tokenizer, max_length))
    report_cut(tokenizer, table.texts, table.text_pairs, inputs, max_length)
    return inputs


def longest_row(tokenizer: Any, max_length: int) -> int:
    """Tokens that a text is cut to: no more than are asked for, and than the tokenizer's model reads."""
    return int(min(max_length, tokenizer.model_max_length))


def report_cut(
    tokenizer: Any, texts: Sequence[str], text_pairs: Sequence[str] | None, inputs: Inputs, max_length: int
) -> None:
    """Say in the log how many texts a model's own limit cuts, where that is less than the user's ``max_length``.

    Args:
        tokenizer: Its ``model_max_length`` is the limit.
        texts: N texts.
        text_pairs: N second texts. None: there are none.
        inputs: What :func:`tokenised` made of them.
        max_length: As it was asked for.
    """
    limit = longest_row(tokenizer, max_length)
    full = np.flatnonzero(inputs.lengths >= limit).tolist()
    if limit == max_length or not full:
        return
    firsts = [texts[i] for i in full]
    seconds = None if text_pairs is None else [text_pairs[i] for i in full]
    cut = int((tokenised(tokenizer, firsts, seconds, limit + 1).lengths > limit).sum())
    if cut:
        message = "%d of %d texts are cut to %d tokens, the most that their model reads; max_length is %d"
        logger.warning(message, cut, len(texts), limit, max_length)


def check_tokenizer(tokenizer: Any, max_length: int, task: Task) -> None:
    """Refuse a tokenizer that cannot pad, or a ``max_length`` that leaves no room for a token of a text.

    Raises:
        ConfigError: Either is so.
    """
    pairs = task.table.text_pairs is not None
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            "the tokenizer must have a padding token, this one has none; set tokenizer.pad_token, "
            "for example to tokenizer.eos_token"
        )
    least = tokenizer.num_special_tokens_to_add(pair=pairs) + 1 + pairs
    if tokenizer.model_max_length < least <= max_length:
        raise ConfigError(
            f"the model must read at least {least} tokens for this task, its tokenizer has model_max_length "
            f"{tokenizer.model_max_length}; correct its tokenizer_config.json"
        )
    if max_length < least:
        raise ConfigError(
            f"max_length must be at least {least} for this tokenizer and task, got {max_length}; raise it"
        )


def tokenised(tokenizer: Any, texts: Sequence[str], text_pairs: Sequence[str] | None, max_length: int) -> TokenInputs:
    """Tokenise texts, or pairs of texts.

    Args:
        tokenizer: See :func:`encode_inputs`.
        texts: N texts.
        text_pairs: N second texts. None: there are none.
        max_length: Longest row in tokens.

    Returns:
        Inputs by the number of a text.
    """
    wants_types = "token_type_ids" in tokenizer.model_input_names
    rows: list[NDArray[np.int32]] = []
    types: list[NDArray[np.int32]] = []
    # A text can have no token at all; attention over nothing is NaN, so such a row holds one stand-in.
    stand_in = tokenizer.pad_token_id if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    for start in range(0, len(texts), _ROWS_PER_CALL):
        encoded = tokenizer(
            _texts(texts, start),
            _texts(text_pairs, start),
            truncation=True,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=wants_types,
        )
        rows += [np.asarray(row or [stand_in], dtype=np.int32) for row in encoded["input_ids"]]
        if wants_types:
            types += [np.asarray(row or [0], dtype=np.int32) for row in encoded["token_type_ids"]]
    return TokenInputs(
        _joined(rows),
        np.array([len(row) for row in rows], dtype=np.int64),
        pad_token_id=tokenizer.pad_token_id,
        token_types=_joined(types) if wants_types else None,
        pad_token_type_id=tokenizer.pad_token_type_id,
        pad_left=tokenizer.padding_side == "left",
    )


def _texts(column: Sequence[str] | None, start: int) -> list[str] | None:
    if column is None:
        return None
    return [_without_surrogates(text) for text in column[start : start + _ROWS_PER_CALL]]


def _without_surrogates(text: str) -> str:
    """Replace lone surrogates, which tokenizers refuse, by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _joined(rows: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32)


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))


def bucketed_order(lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Permute instances so that consecutive chunks of ``batch_size`` have similar lengths.

    Instances are shuffled and sorted by length inside runs of 16 chunks; then the full chunks are shuffled.
    The one partial chunk comes last, so chunks stay aligned with batches; it holds random instances, so that
    dropping it does not drop long ones. A pure function of its arguments.

    Args:
        lengths: Length of every instance, shape (N,).
        batch_size: Size of a chunk.
        seed: Seeds the order.
        epoch: Every epoch has another order.

    Returns:
        A permutation of range(N), shape (N,).
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be 1 or more, got {batch_size}; raise it")
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    full = len(order) - len(order) % batch_size
    body, rest = order[:full], order[full:]
    span = batch_size * _MEGA_BATCH
    for start in range(0, full, span):
        run = body[start : start + span]
        body[start : start + span] = run[np.argsort(lengths[run], kind="stable")]
    chunks = body.reshape(-1, batch_size)
    return np.concatenate([chunks[rng.permutation(len(chunks))].ravel(), rest])


class LengthBucketSampler(Sampler[int]):
    """Sample positions of ``lengths`` (N,) in the order of :func:`bucketed_order`; a new order each epoch."""

    def __init__(self, lengths: NDArray[np.int64], batch_size: int, seed: int = 0) -> None:
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of ``epoch`` for the next iteration."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = bucketed_order(self._lengths, self._batch_size, self._seed, self._epoch)
        return iter(order.tolist())

    def __len__(self) -> int:
        return len(self._lengths)
