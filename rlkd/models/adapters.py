"""Teachers that are adapters of the library peft: a folder of what was learned, and the name of the model beneath."""

import importlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rlkd.errors import TeacherError
from rlkd.hub import may_be_id, snapshot
from rlkd.models.networks import load_config
from rlkd.records import parse_object

ADAPTER_FILE, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
INSIDE = "base_model.model."
"""What peft puts before the names of a network's weights."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter alone, without the model beneath."""
    return (folder / ADAPTER_FILE).is_file() and not any(folder.glob("model*.safetensors"))


def base_of(folder: Path) -> Path:
    """Where the model beneath an adapter lies; it comes from the hub where it is none on disk.

    Raises:
        TeacherError: ``adapter_config.json`` names none, or it is nowhere.
    """
    told = parse_object((folder / ADAPTER_FILE).read_bytes()) or {}
    name, revision = told.get("base_model_name_or_path"), told.get("revision")
    if not isinstance(name, str) or not name:
        raise TeacherError(
            f"expected base_model_name_or_path in {folder / ADAPTER_FILE}, got {name!r}; name the folder or hub id of "
            "the model beneath"
        )
    if not may_be_id(name) and not Path(name).is_dir():
        raise TeacherError(
            f"the adapter {folder} is of the model {name!r}, a folder that is not there; correct "
            f"base_model_name_or_path in its {ADAPTER_FILE}"
        )
    if not may_be_id(name):
        return Path(name)
    expected = f"the model beneath the adapter {folder} as a folder"
    return snapshot(name, expected=expected, error=TeacherError, revision=revision if revision else None)


def load_adapted(
    folder: Path, base: Path, load: Callable[..., tuple[Any, Any]], label_names: Sequence[str] | None = None
) -> Any:
    """Load the model beneath an adapter and merge the adapter into it, so that it is a network like others.

    Args:
        folder: Of the adapter, which holds safetensors; of a ``config.json`` beside it the classes are taken.
        base: Of the model beneath.
        load: Reads that: from its folder, with ``config`` and ``ignore_mismatched_sizes``, to the network and a report
            of its keys.
        label_names: Of the classes, where neither configuration names them.

    Raises:
        TeacherError: peft is not installed, or the two do not fit.
    """
    peft = _peft(folder)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise TeacherError(
            f"expected {ADAPTER_WEIGHTS} in the adapter {folder}, got none, and files that run code are not read; save "
            "it with save_pretrained of peft"
        )
    config = load_config(folder if (folder / "config.json").is_file() else base)
    if label_names is not None:
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: place for place, name in enumerate(label_names)}
    model, report = load(base, config=config, ignore_mismatched_sizes=True)
    _check_parts(folder, model, {*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")  # it would teach what it learned in part
        adapted = peft.PeftModel.from_pretrained(model, folder, torch_device="cpu")
    if not hasattr(adapted, "merge_and_unload"):
        kind = adapted.active_peft_config.peft_type.value
        raise TeacherError(
            f"expected an adapter of layers, as LoRA is, in {folder}, got {kind}, which cannot be merged; load it "
            "yourself and pass the model"
        )
    return adapted.merge_and_unload()


def _check_parts(folder: Path, model: Any, fresh: set[str]) -> None:
    """Refuse an adapter that has another number of classes, or lacks what the model beneath has not learned."""
    own = model.state_dict()
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        shapes = {name.removeprefix(INSIDE): torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}
    for name, shape in shapes.items():
        if name in own and own[name].shape != shape:
            raise TeacherError(
                f"the adapter {folder} learned {name!r} of shape {tuple(shape)}, its classes are "
                f"{', '.join(model.config.id2label.values())}; name them in label_names of a teacher.json beside it, "
                'for example {"name": "mine", "label_names": ["no", "yes"]}'
            )
    lacking = sorted(fresh - shapes.keys())
    if lacking:
        raise TeacherError(
            f"expected all weights of the adapter {folder} and the model beneath, but {lacking[0]!r} is missing, as "
            "where the head was not saved; train it with modules_to_save"
        )


def _peft(folder: Path) -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise TeacherError(
            f"{folder} holds an adapter, which the library peft reads, and that is not installed: pip install peft; or "
            "merge it into its model and save that"
        ) from error
