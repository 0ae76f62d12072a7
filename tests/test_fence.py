"""Published systems stand behind a fence: without their folders, everything else is as it was."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlkd.plugins import FENCE, KINDS, load, registered, systems

ROOT = Path(__file__).parents[1]
PARTS = ("rlkd", "envs", "tests", "benchmarks", "pyproject.toml", "README.md", ".gitignore")
EVERY_MODULE = """
import importlib, pkgutil, rlkd, rlkd_envs
for package in (rlkd, rlkd_envs):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
"""
PLANTED = ("bench", "run", "benchmarks/suites/planted.yaml", "--smoke", "--task", "class-3", "--jobs", 1, "--quiet")
QUICKSTART = ("quickstart", "--seeds", 1, "--total-timesteps", 7680, "--quiet")


def without(names: tuple[str, ...], folder: Path) -> Path:
    """A copy of the repository without the folders of some systems."""
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / part).is_file():
            shutil.copy(ROOT / part, folder / part)
    packaging = (folder / "pyproject.toml").read_text(encoding="utf-8")
    for name in names:
        shutil.rmtree(folder / "rlkd" / "systems" / name)
        for suite in (folder / "benchmarks" / "suites").glob("*.yaml"):
            if re.search(rf"\b{name}\b", suite.read_text(encoding="utf-8")):
                suite.unlink()
        packaging = packaging.replace(f'"rlkd.systems.{name}", ', "")
    (folder / "pyproject.toml").write_text(packaging, encoding="utf-8")
    (folder / "beside").mkdir()
    (folder / "beside" / "rlkd_envs").symlink_to(folder / "envs")
    return folder


def python(folder: Path, *arguments: object) -> None:
    path = os.pathsep.join([str(folder), str(folder / "beside")])
    run = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]


def test_without_any_system_the_core_is_whole(tmp_path: Path) -> None:
    folder = without(systems(), tmp_path)
    python(folder, "-c", EVERY_MODULE)
    python(folder, "-m", "rlkd", *PLANTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", systems())
def test_a_system_can_be_removed(name: str, tmp_path: Path) -> None:
    folder = without((name,), tmp_path)
    python(folder, "-c", EVERY_MODULE)
    python(folder, "-m", "rlkd", *QUICKSTART)
    python(folder, "-m", "rlkd", *PLANTED)
    python(folder, "-m", "pytest", "-q", "--ignore", "tests/systems", "--ignore", "tests/test_fence.py", "tests")


def test_what_systems_register_is_there() -> None:
    assert len(systems()) >= 4
    assert {kind for kind in KINDS if registered(kind)} == set(KINDS)
    for kind in KINDS:
        for name in registered(kind):
            load(kind, name)


def names_of_systems(path: Path) -> set[str]:
    """Systems that a file names: in imports and in strings, docstrings apart."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    said += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in told)
    said += [node.value for node in strings if isinstance(node.value, str)]
    return {name for name in systems() for text in said if text == name or text.startswith(f"{FENCE}.{name}")}


def test_the_core_names_no_system_and_no_system_another() -> None:
    named = {}
    for path in sorted(p for part in ("rlkd", "envs") for p in (ROOT / part).rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        own = {parts[2]} if parts[:2] == ("rlkd", "systems") and len(parts) > 3 else set()
        if found := names_of_systems(path) - own:
            named["/".join(parts)] = found
    assert named == {}
