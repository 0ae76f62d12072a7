"""What students and teachers that are networks share: how they are loaded safely and quietly, and what they read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as hf_logging

from rlkd.data.task import Task


def load_classifier(name: Any, **options: Any) -> Any:
    """Load a classifier in float32; its own code and pickles are refused.

    Args:
        name: Hub id or path.
        **options: Handed on to ``from_pretrained``.

    Returns:
        What ``from_pretrained`` returns.
    """
    # Said outright: when it is left open, transformers asks at the keyboard whether to run a model's code.
    return AutoModelForSequenceClassification.from_pretrained(
        name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, **options
    )


def load_tokenizer(name: Any, **options: Any) -> Any:
    """Load a tokenizer; as :func:`load_classifier`."""
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)


def reads(model: PreTrainedModel) -> str:
    """``"vectors"`` or ``"text"``: what a model reads."""
    return "vectors" if model.main_input_name == "input_values" else "text"


def holds(task: Task) -> str:
    """``"vectors"`` or ``"text"``: what the instances of a task are."""
    return "text" if task.table.vectors is None else "vectors"


def forward_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what a model does not read: some tokenizers send token types to models without them.

    Args:
        model: Any model with a named ``forward``.
        batch: Inputs by name.

    Returns:
        The inputs that ``forward`` names.
    """
    accepted = signature(model.forward).parameters
    return {key: value for key, value in batch.items() if key in accepted}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence what transformers says on loading; a fresh head is intended here, and errors still raise."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
