"""What this installation is, and combinations that are known not to work."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("rlkd", "torch", "transformers", "accelerate", "datasets", "gymnasium", "stable-baselines3", "numpy")


def run_doctor() -> list[dict[str, Any]]:
    """Versions, device and threads, and combinations that are known not to work; one row a check."""
    rows = [_check("python", platform.python_version(), "")]
    rows += [_check(name, _version(name), "not installed" if _version(name) is None else "") for name in PACKAGES]
    rows.append(_check("torchvision", _version("torchvision"), _torchvision_problem()))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    rows.append(_check("device", device, ""))
    many = torch.get_num_threads() > (os.cpu_count() or 1)
    rows.append(
        _check("threads", torch.get_num_threads(), "more threads than cores: set OMP_NUM_THREADS" if many else "")
    )
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    rows.append(_check("free disk (GiB)", int(free), "under 2 GiB: checkpoints may not fit" if free < 2 else ""))
    rows.append(_check("HF_HUB_OFFLINE", os.environ.get("HF_HUB_OFFLINE", "not set"), ""))
    return rows


def _check(what: str, value: Any, problem: str) -> dict[str, Any]:
    return {"check": what, "value": value, "problem": problem}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torchvision_problem() -> str:
    """A torchvision that was built for another torch breaks the import of transformers' models."""
    if importlib.util.find_spec("torchvision") is None:
        return ""
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        return f"does not fit this torch ({type(error).__name__}) and breaks transformers: uninstall it"
    return ""
