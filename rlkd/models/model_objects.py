"""Teachers out of what people have in their hands: a model and its tokenizer, a fitted classifier, a function."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from rlkd.data.task import Task
from rlkd.errors import TeacherError, one_line
from rlkd.models.content import is_library
from rlkd.models.estimators import SklearnTeacher
from rlkd.models.multi_task import MultiTaskForSequenceClassification
from rlkd.models.networks import load_image_processor, load_tokenizer, reads
from rlkd.models.teachers import CallableTeacher, HfTeacher, Teacher
from rlkd.types import is_teacher

log = logging.getLogger(__name__)

CLASSIFIER = "ForSequenceClassification"
IMAGE_CLASSIFIER = "ForImageClassification"


def several_teachers(teachers: Any) -> list[Any]:
    """One teacher, or several, as a list; a pair of a model and its tokenizer is one.

    Args:
        teachers: A list, a tuple or an iterator; a mapping from names to models; or one of what those may hold.

    Returns:
        Teachers, paths, and objects with their names: pairs of a name and an object.

    Raises:
        TeacherError: A mapping names what has a name.
    """
    if isinstance(teachers, Mapping):
        taken = [name for name, one in teachers.items() if isinstance(one, str | os.PathLike) or is_teacher(one)]
        if taken:
            raise TeacherError(
                f"expected models by name, got {taken[0]!r} for a teacher that has a name of its own; give those in a "
                "list"
            )
        return [NamedModel(str(name), one) for name, one in teachers.items()]
    several = isinstance(teachers, list | Iterator) or (isinstance(teachers, tuple) and not _is_pair(teachers))
    return list(_with_names(list(teachers) if several else [teachers]))


class NamedModel:
    """A model with the name that it gets as a teacher."""

    def __init__(self, name: str, model: Any) -> None:
        self.name, self.model = name, model


def _with_names(teachers: list[Any]) -> Iterator[Any]:
    seen: Counter[str] = Counter()
    for one in teachers:
        if isinstance(one, str | os.PathLike) or is_teacher(one):
            yield one
            continue
        name = _own_name(one)
        seen[name] += 1
        yield NamedModel(name if seen[name] == 1 else f"{name}-{seen[name]}", one)


def _own_name(thing: Any) -> str:
    """What a model is called: the place it was loaded from, its last step, or its own name or that of its class."""
    thing, _ = parts_of(thing)
    steps = getattr(thing, "steps", None)
    if isinstance(thing, PreTrainedModel) and thing.name_or_path:
        return Path(thing.name_or_path).name
    if isinstance(steps, list) and steps:
        return type(steps[-1][1]).__name__
    name = getattr(thing, "__name__", type(thing).__name__)
    return name if name.isidentifier() else "callable"


def _is_pair(thing: Any) -> bool:
    return (
        isinstance(thing, tuple)
        and len(thing) == 2
        and isinstance(thing[0], PreTrainedModel)
        and not isinstance(thing[1], PreTrainedModel | str | os.PathLike)
    )


def parts_of(thing: Any) -> tuple[Any, Any]:
    """A model and its tokenizer or image processor: of a pair, of a pipeline of transformers, or a model alone."""
    if _is_pair(thing):
        return thing[0], thing[1]
    inside = getattr(thing, "model", None)
    if isinstance(inside, PreTrainedModel) and hasattr(thing, "tokenizer"):
        return inside, thing.tokenizer or getattr(thing, "image_processor", None)
    return thing, None


def as_teacher(named: Any, task: Task, *, device: str | torch.device | None, bf16: bool) -> Teacher:
    """The teacher that a model is.

    Args:
        named: An entry of :func:`several_teachers` that is neither a path nor a teacher.
        task: The task that it will teach.
        device: Where networks run. None: the GPU where there is one.
        bf16: Networks compute in bfloat16 where that is safe.

    Raises:
        TeacherError: It is none, or what it needs is missing; says what to write.
    """
    name, (model, tokenizer) = named.name, parts_of(named.model)
    if isinstance(model, PreTrainedModel):
        return _network(name, model, tokenizer, task, device, bf16)
    if isinstance(model, nn.Module):
        raise TeacherError(
            f"expected a transformers classifier, got the torch module {name!r}, which does not say how it reads the "
            "task; pass a function from texts (of a task of vectors: an array) to logits (B, C): "
            "lambda texts: module(inputs_of(texts))"
        )
    if isinstance(model, type):
        raise TeacherError(f"expected a fitted model, got the class {name!r}; make one and fit it")
    if hasattr(model, "predict"):
        return SklearnTeacher(name, model)
    if callable(model):
        return CallableTeacher(name, model, task.label_names)
    raise TeacherError(
        "expected a teacher: a folder, a transformers classifier or (model, tokenizer), a fitted scikit-learn "
        f"classifier, a function from texts to logits, or one of rlkd.models; got {type(named.model).__name__}"
    )


def _network(
    name: str, model: Any, tokenizer: Any, task: Task, device: str | torch.device | None, bf16: bool
) -> HfTeacher:
    if is_library(type(model)) and not any(kind in type(model).__name__ for kind in (CLASSIFIER, IMAGE_CLASSIFIER)):
        raise TeacherError(
            f"expected a ...{CLASSIFIER} as teacher {name!r}, got {type(model).__name__}, which gives no logits of "
            "classes; fine-tune a classifier first (rlkd.train_teachers does)"
        )
    images = "images" in reads(model)
    fitting = BaseImageProcessor if images else PreTrainedTokenizerBase
    if tokenizer is not None and not isinstance(tokenizer, fitting):
        raise TeacherError(
            f"expected a {fitting.__name__} of transformers beside teacher {name!r}, which reads {reads(model)[0]}, "
            f"got {type(tokenizer).__name__}; pass (model, tokenizer), of images (model, image processor)"
        )
    if tokenizer is None and reads(model) == ("text",):
        tokenizer = _tokenizer_beside(name, model)
    if tokenizer is None and images and Path(model.name_or_path or "?").is_dir():
        tokenizer = load_image_processor(model.name_or_path, local_files_only=True)
    if isinstance(model, MultiTaskForSequenceClassification) and len(model.config.tasks) > 1:
        model = model.for_task(task.name)
    return HfTeacher(name, model, tokenizer, device=device, bf16=bf16)


def _tokenizer_beside(name: str, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer that lies where a model was loaded from, which is told."""
    place, missing = model.name_or_path, "it was loaded from nowhere"
    if place:
        try:
            tokenizer: PreTrainedTokenizerBase = load_tokenizer(place, local_files_only=True)
        except Exception as error:
            # transformers raises many kinds of errors for places without a tokenizer.
            missing = f"there is none that can be read in {place!r} ({one_line(error, 80)})"
        else:
            log.warning(
                "teacher %r came without a tokenizer: that of %r is used, from which it was loaded; pass "
                "(model, tokenizer) for another",
                name,
                place,
            )
            return tokenizer
    raise TeacherError(
        f"expected teacher {name!r} with the tokenizer that it was trained with, got the model alone, and {missing}; "
        "pass (model, tokenizer)"
    )
