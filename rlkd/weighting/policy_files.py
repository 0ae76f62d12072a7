"""Saved policies: ``config.json`` and ``model.safetensors``, and nothing that runs code."""

import collections.abc
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Self, TypeVar, get_args, get_origin, get_type_hints

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rlkd.errors import PolicyError, nearest, one_line
from rlkd.hub import snapshot
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
FORMAT, FORMAT_KEY = 1, "format_version"
"""Of what is saved. A config that does not name its format is of format 1, as all were that were saved before it had a
name; so only a later format is written down, and files of format 1 keep their bytes and their hashes."""
YOUNGER = frozenset({FORMAT_KEY, "strength"})
"""Keys of a config that the first policies were saved without."""
ELSEWHERE = "path/to/this/folder"
"""Stands for a policy's folder in its card: folders are moved."""


class SavedModule(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="rlkd",
    license="apache-2.0",
    tags=["knowledge-distillation", "reinforcement-learning", "multi-teacher"],
):
    """Something with parameters that decides, saved without a pickle; :func:`load_module` reads it.

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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **of_the_hub: Any) -> Self:
        """As :func:`load_module`: a config is checked however a policy is loaded, and a pickle never read."""
        return load_module(cls, pretrained_model_name_or_path, **of_the_hub)

    def push_to_hub(self, repo_id: str, **of_the_hub: Any) -> str:
        """Save to the Hugging Face hub, in a repository that is made if it is not there.

        Args:
            repo_id: ``user/repo``; the card names it.
            **of_the_hub: ``private``, ``token``, ``commit_message`` and what else the hub's own method takes.

        Returns:
            Address of the commit.

        Raises:
            PolicyError: The hub, or its client, refuses.
        """
        try:
            return super().push_to_hub(repo_id, **{"model_card_kwargs": {"place": repo_id}, **of_the_hub})
        except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled) as error:
            raise PolicyError(
                f"expected a hub that takes the policy as {repo_id!r}, it was refused ({one_line(error)}); check the "
                "name user/repo, and that `hf auth login` or token= names somebody who may write there"
            ) from error

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card, with what :meth:`described` says."""
        return super().generate_model_card(*args, **{"place": ELSEWHERE, **self.described(), **kwargs})

    def described(self) -> Mapping[str, str]:
        """What its card says of it, by name in the card's template."""
        return {}


class SavedPolicy(SavedModule, BaseWeighting):
    """A weighting with parameters."""

    def following(self, state: State) -> Self:
        """The policy on the device of a state."""
        device = state.teacher_logits.device
        return self if next(self.parameters()).device == device else self.to(device)


PolicyT = TypeVar("PolicyT", bound=SavedModule)


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


IMPLIED = frozenset(
    {FORMAT_KEY, "hidden_size", "feature_version", "feature_names", "teachers", "num_classes", "embedding_size"}
)
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


def load_module(cls: type[PolicyT], path: str | Path, **of_the_hub: Any) -> PolicyT:
    """Load a policy from the folder that its ``save_pretrained`` wrote, or from a Hugging Face hub id.

    Args:
        cls: The class, whose arguments are in ``config.json``.
        path: The folder, that of the run that trained it, the hub id, or ``auto``, the one that is shipped.
        **of_the_hub: ``revision``, ``token``, ``cache_dir`` and the like, if it is to come from the hub.

    Returns:
        The policy, in eval mode.

    Raises:
        PolicyError: If a file is missing or damaged, holds something else, or numbers that are not finite.
    """
    place = place_of(path)
    with torch.random.fork_rng(devices=[]):  # a new network is drawn before its weights are read
        policy = _read(cls, place if place.exists() else _download(str(path), of_the_hub))
    if not all(torch.isfinite(value).all() for value in policy.state_dict().values()):
        raise PolicyError(f"the policy {path} holds NaN or infinite numbers; train it again")
    return policy.eval()


def _read(cls: type[PolicyT], folder: Path) -> PolicyT:
    config = _read_config(folder)
    check_config(cls, config, folder / CONFIG)
    try:
        policy = cls(**{name: value for name, value in config.items() if name != FORMAT_KEY})
        policy.load_state_dict(load_file(folder / WEIGHTS))
    except PolicyError:
        raise
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise PolicyError(
            f"the policy {folder} is damaged or not a {cls.__name__}: {one_line(error)}; save it again"
        ) from error
    return policy


def _read_config(folder: Path) -> dict[str, Any]:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise PolicyError(
                f"expected a policy with config.json and model.safetensors, {folder} has no {name}; check the path"
            )
    path = folder / CONFIG
    if path.stat().st_size > LARGEST_CONFIG:
        raise PolicyError(f"expected a few lines in {path}, it is over 1 MB; it is not loaded")
    config = parse_object(path.read_bytes())
    if config is None:
        raise PolicyError(f"expected a policy's JSON in {path}, got none; save it again")
    return config


def check_config(cls: type[SavedModule], config: Mapping[str, Any], path: Path) -> None:
    """Hold a config against the arguments of its class: their names and types are the schema, and all must be there.

    Args:
        cls: Of the policy.
        config: What ``config.json`` holds.
        path: Named by errors.

    Raises:
        PolicyError: Its format is a later one, or a key is unknown, is missing or has a value of another type.
    """
    found = config.get(FORMAT_KEY, FORMAT)
    if found != FORMAT or isinstance(found, bool):
        raise PolicyError(
            f"{path} is of format {found!r}, this rlkd reads format {FORMAT}; install the rlkd release that made it"
        )
    hints = {**get_type_hints(cls.__init__), FORMAT_KEY: int}
    del hints["return"]
    for name in sorted(config.keys() - hints):
        raise PolicyError(
            f"{path} has the unknown key {name!r:.80}; {nearest(name, hints)}a {cls.__name__} has "
            f"{', '.join(sorted(hints))}; use the original, or the rlkd release that made it"
        )
    for name in sorted(hints.keys() - config - YOUNGER):
        raise PolicyError(f"{path} has no {name!r}, which a {cls.__name__} needs; use the original, or save it again")
    for name, hint in hints.items():
        if name in config and not _is_a(config[name], hint):
            raise PolicyError(
                f"{path} must have {_in_words(hint)} as {name!r}, got {config[name]!r:.80}; use the original"
            )


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of the type of an argument."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_is_a(value, one) for one in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_is_a(each, inner[1]) for each in value.values())
    if origin is collections.abc.Sequence:
        return isinstance(value, list) and all(_is_a(each, inner[0]) for each in value)
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return hint is Any or isinstance(value, hint)


def _in_words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return " or ".join(map(_in_words, inner))
    if origin is collections.abc.Sequence:
        return f"a list of {_in_words(inner[0])}"
    plain = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return plain.get(hint, "an object" if origin is dict and inner[1] is Any else "an object of true or false")


def _download(name: str, of_the_hub: Mapping[str, Any]) -> Path:
    """The folder of a policy's config and weights, both of one commit, in the hub's cache."""
    return snapshot(name, expected="a policy folder", error=PolicyError, files=[CONFIG, WEIGHTS], **of_the_hub)
