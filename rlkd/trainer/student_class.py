"""What a student is by its class: the network inside adapters, what it says, what loads others of its kind."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlkd.errors import TeacherError

CAUSAL = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
"""Names of networks that tell a token by those before it."""
AUTO_CLASSES: Mapping[str, Any] = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForImageClassification": AutoModelForImageClassification,
    "ForCausalLM": AutoModelForCausalLM,
}
"""End of a student's class to what loads teachers of its kind."""


def base_model(model: nn.Module) -> Any:
    """The network itself, inside adapters of PEFT."""
    inner = getattr(model, "get_base_model", None)
    return model if inner is None else inner()


def outputs_of(student: nn.Module) -> int:
    """How many numbers a student says of an instance, or of a token."""
    config = base_model(student).config
    return int(config.get_text_config().vocab_size if is_causal(student) else config.num_labels)


def is_causal(student: nn.Module) -> bool:
    """Whether a network tells a token by those before it; its classes are tokens, which are not named."""
    return type(base_model(student)).__name__ in CAUSAL


def auto_class(student: nn.Module) -> Any:
    """What loads networks of the student's kind.

    Raises:
        TeacherError: It is of no kind that is known.
    """
    if is_causal(student):
        return AutoModelForCausalLM
    name = type(base_model(student)).__name__
    for end, auto in AUTO_CLASSES.items():
        if name.endswith(end):
            return auto
    raise TeacherError(
        f"teachers are loaded by the student's class, and {name!r} ends in none of {', '.join(AUTO_CLASSES)}; load "
        "them yourself and pass the models"
    )
