"""A teacher's network and what it reads with, out of a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageClassification

from rlkd.errors import TeacherError, one_line
from rlkd.models.adapters import base_of, is_adapter, load_adapted
from rlkd.models.networks import load_image_processor, load_tokenizer, quiet_transformers
from rlkd.models.teacher_files import has_tokenizer
from rlkd.models.teacher_info import read_info


def network_of(auto: Any, name: str, place: Path) -> tuple[Any, Any, Sequence[str] | None]:
    """Load what a folder holds; an adapter with the model beneath.

    Args:
        auto: The class of transformers that loads networks of the student's kind.
        name: Of the teacher, for errors.
        place: The folder.

    Returns:
        The network; its tokenizer or image processor, None of a model of vectors, or one that was saved without; and
        the names of its classes where ``teacher.json`` says them.

    Raises:
        TeacherError: It cannot be loaded, or was never trained.
    """
    info, beneath = read_info(place), base_of(place) if is_adapter(place) else None
    label_names = None if info is None else info.label_names
    try:
        with quiet_transformers():
            model = _loaded(auto, name, place, beneath, label_names)
    except TeacherError:
        raise
    except Exception as error:
        # transformers raises many kinds of errors for damaged folders
        raise TeacherError(
            f"expected a folder or a hub id that {auto.__name__} loads as teacher {name!r}, got {str(place)!r} "
            f"({one_line(error)})"
        ) from error
    own = _reader(auto, place if beneath is None or has_tokenizer(place) else beneath)
    return model, own, label_names


def _loaded(auto: Any, name: str, place: Path, beneath: Path | None, label_names: Sequence[str] | None) -> Any:
    """The network of a folder, or of an adapter's folder and the one of the model beneath."""

    def load(folder: Path, **options: Any) -> Any:
        return auto.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            local_files_only=True,
            **options,
        )

    if beneath is not None:
        return load_adapted(place, beneath, load, label_names)
    model, report = load(place)
    if report["missing_keys"]:
        raise TeacherError(
            f"expected all weights of teacher {name!r}, but {min(report['missing_keys'])!r} is missing, as in a "
            "model that was never fine-tuned; train it first"
        )
    return model


def _reader(auto: Any, place: Path) -> Any:
    """The tokenizer or image processor of a folder; None of a model of vectors, or one that was saved without."""
    try:
        return load_image_processor(place) if auto is AutoModelForImageClassification else load_tokenizer(place)
    except (OSError, ValueError):
        return None
