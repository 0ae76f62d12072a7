"""Read a saved policy of a published system: ``config.json`` and ``model.safetensors``, and nothing that runs code."""

import inspect
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rlkd.errors import PolicyError, one_line
from rlkd.records import parse_object

Module = TypeVar("Module", bound=nn.Module)

LARGEST_CONFIG = 1_000_000
CARD = """---
{{ card_data }}
---
# A published teacher-weighting policy, trained with [rlkd]

Tied to the teachers, their order and the classes it was trained with; `config.json` names them and every switch of
the training. It needs labels wherever it is used. No pickle is involved: weights are `model.safetensors`.
"""


def read_module(cls: type[Module], path: str | Path) -> Module:
    """Load a module from the folder that its ``save_pretrained`` wrote.

    Args:
        cls: The class, whose arguments are in ``config.json``.
        path: The folder.

    Raises:
        PolicyError: If a file is missing or damaged, holds something else, or numbers that are not finite.
    """
    folder = Path(path)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise PolicyError(
                f"expected a policy with config.json and model.safetensors, {folder} has no {name}; check the path"
            )
    if (folder / "config.json").stat().st_size > LARGEST_CONFIG:
        raise PolicyError(f"expected a few lines in {folder / 'config.json'}, it is over 1 MB; it is not loaded")
    config = parse_object((folder / "config.json").read_bytes())
    if config is None:
        raise PolicyError(f"expected a policy's JSON in {folder / 'config.json'}, got none; save it again")
    known = inspect.signature(cls).parameters.keys()
    try:
        module = cls(**{name: value for name, value in config.items() if name in known})
        module.load_state_dict(load_file(folder / "model.safetensors"))
    except PolicyError:
        raise
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise PolicyError(
            f"the policy {folder} is damaged or not a {cls.__name__}: {one_line(error)}; save it again"
        ) from error
    if not all(torch.isfinite(value).all() for value in module.state_dict().values()):
        raise PolicyError(f"the policy {folder} holds NaN or infinite numbers; train it again")
    return module.eval()


def refuse_pickle() -> NoReturn:
    """Refuse a pickled file."""
    raise PolicyError("a policy must come as model.safetensors, got a pickled file; it is not loaded")
