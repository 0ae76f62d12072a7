"""Saved policies: ``config.json`` and ``model.safetensors``, and nothing that runs code."""

import hashlib
import inspect
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rlkd.errors import PolicyError, one_line
from rlkd.hub import offline_if_unreachable
from rlkd.records import parse_object
from rlkd.records.files import sync
from rlkd.types import State
from rlkd.weighting.base import BaseWeighting

CONFIG, WEIGHTS = "config.json", "model.safetensors"
AUTO = "auto"
"""Stands for the folder of the policy that is shipped with the package; a folder of one's own of that name is
``./auto``."""
SHIPPED = Path(__file__).with_name(AUTO)
LARGEST_CONFIG = 1_000_000


class SavedPolicy(
    nn.Module,
    PyTorchModelHubMixin,
    BaseWeighting,
    library_name="rlkd",
    license="apache-2.0",
    tags=["knowledge-distillation", "reinforcement-learning", "multi-teacher"],
):
    """A weighting with parameters, saved without a pickle; :func:`load_module` reads it.

    What a class takes as arguments must be plain values: they are its ``config.json``.
    """

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> str | None:
        """As the hub's own, and whole or not at all: a folder that a kill leaves behind has no ``config.json``."""
        folder = Path(save_directory)
        work = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            pushed: str | None = super().save_pretrained(work, *args, **{"repo_id": folder.name, **kwargs})
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CONFIG).unlink(missing_ok=True)
            for path in sorted(work.iterdir(), key=lambda path: path.name == CONFIG):
                sync(path)
                os.replace(path, folder / path.name)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return pushed

    def following(self, state: State) -> Self:
        """The policy on the device of a state."""
        device = state.teacher_logits.device
        return self if next(self.parameters()).device == device else self.to(device)

    @classmethod
    def _load_as_pickle(cls, *args: Any, **kwargs: Any) -> Any:
        raise PolicyError("a policy must come as model.safetensors, got a pickled file; it is not loaded")


PolicyT = TypeVar("PolicyT", bound=SavedPolicy)


def place_of(path: str | Path) -> Path:
    """Where a policy lies; ``auto`` is the one that is shipped, and the run that trained one holds it in ``policy``."""
    if str(path) == AUTO:
        return SHIPPED
    folder, inside = Path(path), Path(path) / "policy"
    return inside if (inside / WEIGHTS).is_file() and not (folder / WEIGHTS).is_file() else folder


def saved_identity(folder: str | Path) -> str | None:
    """Names what a saved policy does: the hash of its weights, or of these and what in its config was set beside them.

    The shapes of the weights decide most of the config, and what training recorded was decided with them. What is left
    is how strongly it acts, and whatever was changed later.

    Args:
        folder: That ``save_pretrained`` wrote.

    Returns:
        64 hexadecimal digits; None where no weights lie.
    """
    weights, config_file = place_of(folder) / WEIGHTS, place_of(folder) / CONFIG
    if not weights.is_file():
        return None
    digest = hashlib.sha256(weights.read_bytes())
    config = parse_object(config_file.read_bytes()) if config_file.is_file() else None
    beside = _set_beside_the_weights(config or {})
    if beside:
        digest.update(json.dumps(beside, sort_keys=True).encode())
    return digest.hexdigest()


def parameters_hash(module: nn.Module) -> str:
    """The hash of a module's parameters as they are now, 64 hexadecimal digits."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.cpu().contiguous().numpy())
    return found.hexdigest()


IMPLIED = frozenset({"hidden_size", "feature_version", "feature_names", "teachers", "num_classes", "embedding_size"})
"""Of a config: what the shapes of the weights say too, or what is refused where it does not fit."""
USUAL: Mapping[str, Any] = {"strength": 1.0, "temperature": 4.0}
"""Of a config: what is not named where training recorded nothing of it, so that identities stay."""


def _set_beside_the_weights(config: Mapping[str, Any]) -> dict[str, Any]:
    record = _mapping(config, "training")
    usual = {**USUAL, "sampling_seed": record.get("seed"), **_mapping(record, "settings")}
    own = config.keys() - IMPLIED - {"training", "observation"}
    beside = {name: config[name] for name in own if config[name] != usual.get(name)}
    # one group of features has the size of another; of all others, the number of inputs tells which are on
    if _mapping(config, "observation").get("labelled"):
        beside["labelled"] = True
    return beside


def _mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def load_module(cls: type[PolicyT], path: str | Path, *, needs: Sequence[str] = ()) -> PolicyT:
    """Load a policy from the folder that its ``save_pretrained`` wrote, or from a Hugging Face hub id.

    Args:
        cls: The class, whose arguments are in ``config.json``.
        path: The folder, that of the run that trained it, the hub id, or ``auto``, the one that is shipped.
        needs: Keys that the folder's ``config.json`` must have.

    Returns:
        The policy, in eval mode.

    Raises:
        PolicyError: If a file is missing or damaged, holds something else, or numbers that are not finite.
    """
    place = place_of(path)
    policy = _read(cls, place, needs) if place.exists() else _download(cls, str(path))
    if not all(torch.isfinite(value).all() for value in policy.state_dict().values()):
        raise PolicyError(f"the policy {path} holds NaN or infinite numbers; train it again")
    return policy.eval()


def _read(cls: type[PolicyT], folder: Path, needs: Sequence[str]) -> PolicyT:
    config = _read_config(folder, needs)
    known = inspect.signature(cls.__init__).parameters.keys() - {"self"}
    try:
        policy = cls(**{name: value for name, value in config.items() if name in known})
        policy.load_state_dict(load_file(folder / WEIGHTS))
    except PolicyError:
        raise
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise PolicyError(
            f"the policy {folder} is damaged or not a {cls.__name__}: {one_line(error)}; save it again"
        ) from error
    return policy


def _read_config(folder: Path, needs: Sequence[str]) -> dict[str, Any]:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise PolicyError(
                f"expected a policy with config.json and model.safetensors, {folder} has no {name}; check the path"
            )
    path = folder / CONFIG
    if path.stat().st_size > LARGEST_CONFIG:
        raise PolicyError(f"expected a few lines in {path}, it is over 1 MB; it is not loaded")
    config = parse_object(path.read_bytes())
    if config is None or any(name not in config for name in needs):
        wanted = f" with {' and '.join(needs)}" if needs else ""
        raise PolicyError(f"expected a policy's JSON{wanted} in {path}, got none; save it again")
    return config


def _download(cls: type[PolicyT], name: str) -> PolicyT:
    try:
        with offline_if_unreachable(name, "model"):
            return cls.from_pretrained(name, strict=True)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise PolicyError(
            f"expected a policy folder or a hub id, got {name!r}: no such folder, and the hub gave none "
            f"({one_line(error)}); check the path"
        ) from error
