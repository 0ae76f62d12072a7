"""What a run ran on: versions, machine and commit."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("rlkd", "torch", "transformers", "gymnasium", "stable_baselines3", "datasets", "numpy")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command in ``root``; None if it fails or git is absent."""
    # Inside a hook, GIT_DIR points at another repository than the one asked about.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            env=clean,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _checkout() -> Path | None:
    """Root of the git checkout that this package runs from; None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    top = _git(root, "rev-parse", "--show-toplevel")
    # A wheel installed below some other project's checkout must not report that project's commit.
    return root if top is not None and Path(top).resolve() == root else None


def commit() -> str | None:
    """Name the commit of the rlkd checkout, 40 hexadecimal digits; None for an installed wheel."""
    root = _checkout()
    return None if root is None else _git(root, "rev-parse", "HEAD")


def _dirty() -> bool | None:
    """Whether tracked files of the checkout differ from its commit; None for an installed wheel."""
    root = _checkout()
    changes = None if root is None else _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if changes is None else bool(changes)


def environment() -> dict[str, Any]:
    """Describe what a run ran on.

    Returns:
        ``python``, ``platform``, ``cpu_count``; ``versions``, package to version (None where not installed);
        ``commit`` and ``dirty`` of the rlkd checkout, None for an installed wheel.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "versions": {package: _version(package) for package in PACKAGES},
        "commit": commit(),
        "dirty": _dirty(),
    }
