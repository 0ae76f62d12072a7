"""Students: small models of our own, a tiny transformer, and any pretrained classifier."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlkd.data.batching import check_tokenizer
from rlkd.data.task import Task
from rlkd.errors import StudentError, nearest, one_line, unknown_name
from rlkd.models.architectures import (
    BiLstmConfig,
    BiLstmForSequenceClassification,
    CnnConfig,
    CnnForImageClassification,
    MlpConfig,
    MlpForSequenceClassification,
)
from rlkd.models.fitting import check_problem, check_reading, fit, limited
from rlkd.models.networks import (
    load_classifier,
    load_config,
    load_image_processor,
    load_tokenizer,
    quiet_transformers,
    reads,
)
from rlkd.models.tokenizer import task_texts, train_tokenizer
from rlkd.settings import StepSettings

PREFIX = "rlkd/"

StudentFactory = Callable[[int], PreTrainedModel]
"""Seed to a fresh student."""


@dataclass(frozen=True)
class Student:
    """A student that is trained from scratch."""

    reads: tuple[str, ...]
    """Of ``"text"``, ``"vectors"`` and ``"images"``, first what it was made for."""
    build: Callable[[int, dict[str, Any]], PreTrainedModel]
    """From the input size (words of the vocabulary, length of the vectors, or channels) and the label names."""


def tiny_config(vocab_size: int, pad_token_id: int = 0, **labels: Any) -> BertConfig:
    """Sizes of the small transformer: one layer of width 128."""
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=512,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        pad_token_id=pad_token_id,
        **labels,
    )


STUDENTS: dict[str, Student] = {
    "rlkd/tiny": Student(("text",), lambda size, labels: BertForSequenceClassification(tiny_config(size, **labels))),
    "rlkd/bilstm": Student(
        ("text",), lambda size, labels: BiLstmForSequenceClassification(BiLstmConfig(vocab_size=size, **labels))
    ),
    "rlkd/mlp": Student(
        ("vectors", "images"), lambda size, labels: MlpForSequenceClassification(MlpConfig(input_size=size, **labels))
    ),
    "rlkd/cnn": Student(
        ("images",), lambda size, labels: CnnForImageClassification(CnnConfig(num_channels=size, **labels))
    ),
}
SMALLEST = {"text": "rlkd/tiny", "vectors": "rlkd/mlp", "images": "rlkd/cnn"}
"""What a task holds to its smallest student from scratch."""


def smallest_student(task: Task) -> str:
    """Name of the smallest student from scratch that reads a task."""
    return SMALLEST[task.table.holds]


def load_student(
    name: str,
    task: Task,
    *,
    num_layers: int | None = None,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Build or load a student for a task.

    Saved, ``rlkd/tiny`` and pretrained students load in plain transformers; the other students from scratch do once
    ``rlkd.models`` is imported, which registers them with the Auto classes (``import rlkd`` alone loads no network).

    The weights that are not read from files are a pure function of ``seed``; torch's global generator is left
    as it was.

    Args:
        name: A name of ``STUDENTS``, a model id on the hub, or a path.
        task: Gives the classes and, for students from scratch, the vocabulary, the length of vectors or the channels.
        num_layers: Keep only the first layers of a pretrained encoder. None: all.
        seed: Seed of the initialisation.
        tokenizer: For text: use this one; of images an image processor. None: train it (from scratch) or load the
            model's own.

    Returns:
        The model in float32 and training mode, and its tokenizer: None for tasks of vectors; of images the image
        processor that a pretrained model came with, else None.

    Raises:
        StudentError: The student does not exist, cannot read this task, or has too few layers.
    """
    if name.startswith(PREFIX):
        return _from_scratch(name, task, num_layers, seed, tokenizer)
    return _pretrained(name, task, num_layers, seed, tokenizer)


def check_student(
    name: str, task: Task, *, num_layers: int | None = None, max_length: int = StepSettings.max_length
) -> None:
    """Raise before any long work what :func:`load_student` and the encoding of its inputs would raise.

    Args:
        name: See :func:`load_student`.
        task: The task.
        num_layers: See :func:`load_student`.
        max_length: Tokens a text is cut to.

    Raises:
        StudentError: The student does not exist, cannot read this task, or has too few layers.
        ConfigError: ``max_length`` leaves no room for a text.
    """
    vocabulary = train_tokenizer(()) if name.startswith(PREFIX) and task.table.holds == "text" else None
    _, tokenizer = load_student(name, task, num_layers=num_layers, tokenizer=vocabulary)
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        check_tokenizer(tokenizer, max_length, task)


def _from_scratch(
    name: str, task: Task, num_layers: int | None, seed: int, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    if name not in STUDENTS:
        raise unknown_name("student", name, STUDENTS)
    refuse_layers(name, num_layers)
    student = STUDENTS[name]
    _check_reads(name, student.reads, task)
    if task.table.texts is not None:
        tokenizer = tokenizer or train_tokenizer(task_texts(task))
        size = len(tokenizer)
    else:
        images = task.table.images
        tokenizer, size = None, task.table.width
        if student.reads[0] == "images" and images is not None:
            size = images.shape[-1]
    padding = {} if tokenizer is None else {"pad_token_id": tokenizer.pad_token_id}
    with seeded_weights(seed):
        model = student.build(size, label_maps(task.label_names) | padding)
    # That padding changes nothing is known of these: no student of an episode has to show it again.
    return model, None if tokenizer is None else limited(model, tokenizer)


def _pretrained(
    name: str, task: Task, num_layers: int | None, seed: int, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    with pretrained(name, STUDENTS, "a classifier or encoder", seed):
        config = load_config(name)
        check_problem(config, f"student {name!r}", StudentError)
        for key, value in label_maps(task.label_names).items():
            setattr(config, key, value)
        keep_first_layers(config, num_layers, name)
        # A head for other classes is replaced by a fresh one.
        model = load_classifier(name, config, ignore_mismatched_sizes=True)
        _check_reads(name, reads(model), task)
        if tokenizer is None and task.table.vectors is None:
            tokenizer = load_tokenizer(name) if task.table.images is None else load_image_processor(name)
    check_reading(model, task, who=f"student {name!r}", error=StudentError, processor=tokenizer)
    return model.train(), fit(model, tokenizer, who=f"student {name!r}", error=StudentError)


@contextmanager
def pretrained(name: str, scratch: Iterable[str], what: str, seed: int) -> Iterator[None]:
    """Load a student of this name, quietly, what is not read from files drawn from ``seed``.

    Args:
        name: A hub id or a path.
        scratch: Names of students that are built from scratch instead.
        what: What the directory holds.
        seed: Of new weights.

    Raises:
        StudentError: It could not be loaded.
    """
    with quiet_transformers(), seeded_weights(seed):
        try:
            yield
        except (OSError, KeyError, ValueError) as error:
            if isinstance(error, StudentError):
                raise
            raise StudentError(
                f"expected one of {', '.join(scratch)}, a hub id or a directory of {what} with safetensors weights and "
                f"a tokenizer; {name!r} could not be loaded ({one_line(error)}); {nearest(name, scratch)}check the "
                "name and the connection"
            ) from error


def refuse_layers(name: str, num_layers: int | None) -> None:
    """Refuse to shorten a student that is built from scratch."""
    if num_layers is not None:
        raise StudentError(
            f"num_layers keeps the first layers of a pretrained encoder, got {num_layers} for {name!r}, "
            "which is built from scratch; drop num_layers or name a pretrained encoder"
        )


def keep_first_layers(config: PreTrainedConfig, num_layers: int | None, name: str) -> None:
    """Shorten a configuration to its first ``num_layers`` layers, in place.

    Args:
        config: Configuration of an encoder.
        num_layers: Layers to keep. None: all.
        name: The student's name, for the error.

    Raises:
        StudentError: The encoder has no layer count, or fewer layers.
    """
    if num_layers is None:
        return
    # transformers maps this name to the model's own (DistilBERT: n_layers).
    available = getattr(config, "num_hidden_layers", None)
    if not isinstance(available, int) or not 1 <= num_layers <= available:
        raise StudentError(
            f"expected num_layers from 1 to {available} for {name!r}, got {num_layers}; choose one in that range"
        )
    config.num_hidden_layers = num_layers
    kinds = getattr(config, "layer_types", None)
    if isinstance(kinds, list):
        config.layer_types = kinds[:num_layers]


def last_linear(model: nn.Module, num_labels: int) -> nn.Linear:
    """Find the layer whose input is the student's last hidden state.

    Args:
        model: A classifier.
        num_labels: Its number of classes C.

    Returns:
        The last linear layer with C outputs.

    Raises:
        StudentError: There is none.
    """
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == num_labels]
    if not found:
        raise StudentError(
            f"expected a model that ends in a linear layer with {num_labels} outputs, got "
            f"{type(model).__name__} without one; use a sequence classifier built for this task"
        )
    return found[-1]


def label_maps(label_names: Sequence[str]) -> dict[str, Any]:
    """The two label maps of a configuration; their length is its ``num_labels``."""
    return {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Draw weights from ``seed`` and leave the generators of the caller (CPU and devices) untouched."""
    # torch.manual_seed would reseed every device as well; models are built on the CPU.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _check_reads(name: str, read: tuple[str, ...], task: Task) -> None:
    if task.table.holds not in read:
        fitting = sorted(key for key, student in STUDENTS.items() if task.table.holds in student.reads)
        raise StudentError(
            f"student {name!r} reads {' or '.join(read)}, but task {task.name!r} has {task.table.holds}; choose one "
            f"of: {', '.join(fitting)}"
        )
