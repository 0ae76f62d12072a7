"""A network and its tokenizer made to fit: a row's answer is its own, however it is batched, and no row is too long."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlkd.data.batching import Inputs, encode_inputs, tokenised
from rlkd.data.task import Task
from rlkd.errors import RlkdError, one_line
from rlkd.models.networks import forward_inputs, reads

Answer = Callable[[Mapping[str, Tensor]], Tensor]
"""From a batch of B rows to what a network says of each, (B, ...)."""
_SHORT, _LONG, _EMPTY = "a word", "A sentence of several words, and of a few more: 12 of them!", ""
_PROBE_LENGTH = 32
_COARSE, _FINE = 5e-2, 1e-3
_ONE_OF_MANY = "single_label_classification"


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    who: str,
    error: type[RlkdError],
    answer: Answer | None = None,
) -> PreTrainedTokenizerBase | None:
    """Make a network and its tokenizer fit each other, or refuse them.

    A text alone is what a network answers rightly; what it answers in a batch is held to that on a few rows. Where it
    differs, the configuration gets the tokenizer's padding token, or the padding goes to the other side.

    Args:
        model: The network; its configuration may be mended, in memory alone.
        tokenizer: Its tokenizer; left as it is, and so is an image processor. None: the network needs neither.
        who: Whose they are, for the error, for example ``"teacher 'a'"``.
        error: The error to raise.
        answer: Asks the network. None: for its logits.

    Returns:
        The tokenizer, or a mended copy of it.

    Raises:
        RlkdError: No setting makes the answers to a row the same alone and in a batch, or its outputs are those of
            another kind of problem.
    """
    check_problem(model.config, who, error)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    tokenizer = limited(model, tokenizer)
    config, asked, weights = model.config.get_text_config(), answer or _logits_of(model), next(model.parameters())
    training, own_pad = model.training, config.pad_token_id
    readers = [tokenizer] if tokenizer.pad_token_id is not None else _padding(tokenizer, own_pad, who, error)
    _check_counting(model, readers[0], who, error)
    model.eval()
    # where neither knows of one, its answers alone are right: a padding token that ends rows would hide their end
    alone = _alone(asked, readers[0], weights) if tokenizer.pad_token_id is own_pad is None else None
    tokenizer = readers[0]
    problems = []
    for fitted, pad in (way for reader in readers for way in _ways(reader, own_pad)):
        config.pad_token_id = pad
        problems.append(_problem(asked, fitted, weights, alone))
        if problems[-1] is None:
            model.train(training)
            return fitted
    raise error(
        f"expected {who} to answer a row alone as it does in a batch, {problems[0]}, with its padding token "
        f"{tokenizer.pad_token!r} on either side; give it the tokenizer that it was trained with, or another model"
    )


def check_reading(
    model: PreTrainedModel, task: Task, *, who: str, error: type[RlkdError], processor: Any | None = None
) -> None:
    """Refuse a network that reads something else than the instances of a task, or vectors or images of another size.

    Args:
        model: The network.
        task: The task.
        who: Whose it is, for the error.
        error: The error to raise.
        processor: Its image processor, if it has one.

    Raises:
        RlkdError: Says what it reads, and what the task has.
    """
    read, table = reads(model), task.table
    if table.holds not in read:
        raise error(f"{who} reads {' or '.join(read)}, but task {task.name!r} has {table.holds}; take another")
    size = getattr(model.config, "input_size", None)
    if "vectors" in read and size != table.width:
        raise error(f"{who} reads vectors of length {size}, the task's have length {table.width}; take another")
    if table.images is not None:
        problem = _image_problem(model, encode_inputs(task, processor, 1))
        if problem is not None:
            raise error(
                f"{who} must read the images of task {task.name!r}, of "
                f"{' x '.join(map(str, table.images.shape[1:]))}, it {problem}; take another, or one with its image "
                "processor"
            )


def _image_problem(model: PreTrainedModel, inputs: Inputs) -> str | None:
    """What goes wrong where a network reads the first image; None: nothing."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            batch = {key: value.to(model.device) for key, value in inputs.batch(np.array([0])).items()}
            model(**forward_inputs(model, batch))
    except Exception as failure:
        # Networks and processors of any make: whatever goes wrong in them, they cannot answer.
        return f"fails ({one_line(failure)})"
    finally:
        model.train(training)
    return None


def check_problem(config: Any, who: str, error: type[RlkdError]) -> None:
    """Refuse a network whose outputs are no logits of a softmax over classes.

    Raises:
        RlkdError: Its ``problem_type`` says so.
    """
    kind = getattr(config, "problem_type", None)
    if kind not in (None, _ONE_OF_MANY):
        raise error(
            f"expected {who} to choose one of the classes, got problem_type {kind!r}, whose outputs are no logits of a "
            f"softmax; take another, or set problem_type to {_ONE_OF_MANY!r} in its config.json if it is one"
        )


def limited(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, or a copy of it, whose ``model_max_length`` is no more than the network reads."""
    limit = most_tokens(model)
    if limit is None or tokenizer.model_max_length <= limit:
        return tokenizer
    shorter = copy.deepcopy(tokenizer)
    shorter.model_max_length = limit
    return shorter


def most_tokens(model: PreTrainedModel) -> int | None:
    """Tokens of the longest row that a network was made for; None: it does not say.

    Those whose positions are relative could read longer ones and were never taught to. RoBERTa and its like count
    positions from behind their padding token, which leaves that many fewer.
    """
    config = getattr(model.config, "encoder", model.config)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    said = getattr(config, "max_position_embeddings", None)
    if not isinstance(said, int) or said < 1:
        return None
    counted = _counted_from(model)
    return said if counted is None else said - counted - 1


def _counted_from(model: PreTrainedModel) -> int | None:
    """The padding token behind which a network begins to count positions; None: it counts from 0."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx)
    return None


def _check_counting(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, who: str, error: type[RlkdError]
) -> None:
    counted = _counted_from(model)
    if counted not in (None, tokenizer.pad_token_id):
        # Saved with the tokenizer's padding token, it would count from there when it is loaded again.
        raise error(
            f"expected {who} with a tokenizer that pads with token {counted}, behind which the network counts its "
            f"positions, got one that pads with {tokenizer.pad_token_id}; give it its own tokenizer"
        )


def _padding(
    tokenizer: PreTrainedTokenizerBase, pad: int | None, who: str, error: type[RlkdError]
) -> list[PreTrainedTokenizerBase]:
    """Copies with a padding token, the likeliest first.

    That is the one of the network's configuration; the end token, as decoders are trained without one; the one of
    unknown words, for rows that an end token ends.
    """
    if tokenizer.eos_token is None:
        raise error(
            f"expected {who} with a tokenizer that has a padding token, got one without it or an end token; set "
            "tokenizer.pad_token"
        )
    own = None if pad is None else tokenizer.convert_ids_to_tokens(pad)
    copies = []
    for token in dict.fromkeys([own, tokenizer.eos_token, tokenizer.unk_token]):
        if token is not None:
            copies.append(copy.deepcopy(tokenizer))
            copies[-1].pad_token = token
    return copies


def _ways(tokenizer: PreTrainedTokenizerBase, pad: int | None) -> Iterator[tuple[PreTrainedTokenizerBase, int]]:
    """Tokenizers and the configuration's padding token, the ones that are there first."""
    own = tokenizer.pad_token_id
    pads = list(dict.fromkeys([own if pad is None else pad, own]))
    yield from ((tokenizer, choice) for choice in pads)
    turned = copy.deepcopy(tokenizer)
    turned.padding_side = "right" if tokenizer.padding_side == "left" else "left"
    turned.init_kwargs["padding_side"] = turned.padding_side  # only what is there is saved
    yield from ((turned, choice) for choice in pads)


def _logits_of(model: PreTrainedModel) -> Answer:
    def answer(batch: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = model(**forward_inputs(model, batch)).logits
        return logits

    return answer


def _alone(answer: Answer, tokenizer: PreTrainedTokenizerBase, weights: Tensor) -> Tensor | None:
    """What a network says of a short row alone, (1, ...); None: nothing."""
    try:
        with torch.inference_mode():
            batch = _probes(tokenizer).batch(np.array([0]))
            return answer({key: value.to(weights.device) for key, value in batch.items()}).double()
    except Exception:
        # Networks of any make: what is wrong with it is told where it is asked about a batch.
        return None


def _probes(tokenizer: PreTrainedTokenizerBase) -> Inputs:
    length = min(_PROBE_LENGTH, int(tokenizer.model_max_length))
    return tokenised(tokenizer, (_SHORT, _LONG, _EMPTY), None, length)


def _problem(answer: Answer, tokenizer: PreTrainedTokenizerBase, weights: Tensor, alone: Tensor | None) -> str | None:
    """What is wrong with the answers to three rows in a batch; None: nothing.

    ``alone`` is what it should say of the first, (1, ...); None: what it says of that alone.
    """
    inputs = _probes(tokenizer)
    try:
        with torch.inference_mode():
            together, short, empty = (
                answer({key: value.to(weights.device) for key, value in inputs.batch(np.array(ids)).items()}).double()
                for ids in ([0, 1, 2], [0], [2])
            )
    except Exception as failure:
        # Networks of any make: whatever goes wrong in them, they cannot answer.
        return f"it fails ({one_line(failure)})"
    apart = (together[[0, 2]] - torch.cat([short if alone is None else alone, empty])).abs().max().item()
    size = together.abs().max().item()
    # Not `>`: NaN is a problem too.
    if apart <= _tolerance(weights) * size + 1e-6:
        return None
    return f"its answers differ by {apart:.2g} where they are {size:.2g} large"


def _tolerance(weights: Tensor) -> float:
    """Share of the largest answer that rounding may move."""
    rounds = weights.dtype in (torch.float16, torch.bfloat16) or (
        weights.device.type != "cpu" and torch.get_float32_matmul_precision() != "highest"
    )
    return _COARSE if rounds else _FINE
