"""What students and teachers that are networks share: where they run, how they are loaded safely, what they read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    TrainerCallback,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)
from transformers.utils import logging as hf_logging

from rlkd.hub import offline_if_unreachable


def load_config(name: Any) -> Any:
    """Load a configuration; as :func:`load_classifier`. First, it finds out whether there is such a model at all."""
    with offline_if_unreachable(name, "model"):
        return AutoConfig.from_pretrained(name, trust_remote_code=False)


def load_classifier(name: Any, config: Any, **options: Any) -> Any:
    """Load a classifier of texts, vectors or images in float32; its own code and pickles are refused.

    Args:
        name: Hub id or path.
        config: Its configuration.
        **options: Handed on to ``from_pretrained``.

    Returns:
        What ``from_pretrained`` returns.
    """
    kind = type(config)
    of_images = kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING and kind not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    auto: Any = AutoModelForImageClassification if of_images else AutoModelForSequenceClassification
    # Said outright: when it is left open, transformers asks at the keyboard whether to run a model's code.
    return auto.from_pretrained(
        name, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, **options
    )


def load_image_processor(name: Any, **options: Any) -> Any:
    """Load an image processor, by which a network of images was trained; None where there is none.

    Without torchvision, transformers takes those that work on PIL and numpy.
    """
    with offline_if_unreachable(name, "model"):
        try:
            return AutoImageProcessor.from_pretrained(name, trust_remote_code=False, **options)
        except OSError:
            return None


def load_tokenizer(name: Any, **options: Any) -> Any:
    """Load a tokenizer; as :func:`load_classifier`."""
    with offline_if_unreachable(name, "model"):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)


def reads(model: PreTrainedModel) -> tuple[str, ...]:
    """What a model reads, first what it was made for: ``"text"``, ``"vectors"``, ``"images"``."""
    kinds = {"input_values": "vectors", "pixel_values": "images"}
    if model.main_input_name not in kinds:
        return ("text",)
    found = (model.main_input_name, *signature(model.forward).parameters)
    return tuple(dict.fromkeys(kinds[name] for name in found if name in kinds))


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
def attached(model: nn.Module, name: str, module: nn.Module | None) -> Iterator[None]:
    """Make a module part of a network while that is trained: optimised, clipped and checkpointed with it.

    Args:
        model: The network.
        name: Of the part.
        module: The part. None: there is none.
    """
    if module is not None:
        model.add_module(name, module.to(next(model.parameters()).device))
    try:
        yield
    finally:
        if module is not None:
            delattr(model, name)


class StepBar(TrainerCallback):
    """A progress bar over steps and nothing else; the Trainer's own prints every log into it."""

    def __init__(self, what: str, *, show: bool) -> None:
        """Name the bar; closed by :meth:`close`, so that what is printed next has a line of its own."""
        self._bar = tqdm(desc=what, unit="step", disable=not show, delay=1e-9)  # shown from the first step on

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin, at the step that training resumes from."""
        self._bar.total, self._bar.initial, self._bar.n = state.max_steps, state.global_step, state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move on."""
        self._bar.update()

    def close(self) -> None:
        """Leave the bar standing as it is."""
        self._bar.close()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence what transformers says on loading and saving; a fresh head is intended here, and errors still raise."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
