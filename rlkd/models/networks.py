"""What students and teachers that are networks share: what they read, and how transformers is kept quiet."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as hf_logging

from rlkd.data.task import Task


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
