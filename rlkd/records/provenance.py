"""What a run ran on: versions, machine, commit, and the source files themselves."""

import hashlib
import json
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

PACKAGES = ("rlkd", "torch", "transformers", "gymnasium", "stable_baselines3", "datasets", "numpy")
HOME = Path(__file__).resolve().parents[2]
"""The checkout that this package runs from, where it runs from one."""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command in ``root``; None if it fails or git is absent."""
    # Inside a hook, GIT_DIR points at another repository than the one asked about.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    # The folder whose code is running may belong to another user: git's refusal would protect nothing.
    trusted = ("-c", f"safe.directory={root}") if root == HOME else ()
    try:
        done = subprocess.run(
            ["git", *trusted, "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            env=clean,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def hash_sources(*packages: tuple[str, Path]) -> str:
    """Hash the Python files of packages by what they hold and where in their package they lie.

    Args:
        *packages: Import name and folder of each.

    Returns:
        64 hexadecimal digits; the same for a checkout and for what is installed from it.
    """
    found = hashlib.sha256()
    for name, folder in sorted(packages):
        for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            found.update(f"{name}/{path.relative_to(folder).as_posix()} {content}\n".encode())
    return found.hexdigest()


@cache
def source() -> str:
    """Hash the source files of the packages that run, see :func:`hash_sources`; what stands for a commit without git.

    Two runs with one hash were made by the same code, wherever it was installed.
    """
    package = Path(__file__).resolve().parents[1]
    spec = find_spec("rlkd_envs")
    beside = [] if spec is None or spec.origin is None else [("rlkd_envs", Path(spec.origin).resolve().parent)]
    return hash_sources(("rlkd", package), *beside)


def _installed_from() -> Path | None:
    """Folder that pip installed the package from; None where it came from elsewhere."""
    try:
        text = metadata.distribution("rlkd").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    place = urlparse(json.loads(text)["url"]) if text else None
    return Path(unquote(place.path)).resolve() if place is not None and place.scheme == "file" else None


def _checkout() -> Path | None:
    """Root of the git checkout that this package runs from or was installed from unchanged; None without one."""
    for root in (HOME, _installed_from()):
        top = None if root is None else _git(root, "rev-parse", "--show-toplevel")
        # A wheel installed below some other project's checkout must not report that project's commit, and neither
        # must one whose checkout has moved on since.
        if root is None or top is None or Path(top).resolve() != root:
            continue
        if hash_sources(("rlkd", root / "rlkd"), ("rlkd_envs", root / "envs")) == source():
            return root
    return None


def commit() -> str | None:
    """Name the commit of the rlkd checkout, 40 hexadecimal digits; None where there is no checkout of this code.

    :func:`source` says which code it is even then.
    """
    root = _checkout()
    return None if root is None else _git(root, "rev-parse", "HEAD")


def _dirty() -> bool | None:
    """Whether tracked files of the checkout differ from its commit; None without a checkout."""
    root = _checkout()
    changes = None if root is None else _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if changes is None else bool(changes)


def environment() -> dict[str, Any]:
    """Describe what a run ran on.

    Returns:
        ``python``, ``platform``, ``cpu_count``; ``versions``, package to version (None where not installed);
        ``source``, a hash of the code; ``commit`` and ``dirty`` of its checkout, None where there is none.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "versions": {package: _version(package) for package in PACKAGES},
        "source": source(),
        "commit": commit(),
        "dirty": _dirty(),
    }
