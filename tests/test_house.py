"""The house stands: imports go down, what is installed is what is here, and the door opens at once."""

import ast
import contextlib
import importlib
import re
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rlkd
from rlkd.asking.policy import SHIPPED as ASKER
from rlkd.weighting.policy_files import SHIPPED

ROOT = Path(__file__).parents[1]

FLOORS = (
    "errors",
    "plugins",
    "records",
    "stats",
    "report",
    "hub",
    "types",
    "cost",
    "devices",
    "processes",
    "ranks",
    "settings",
    "losses",
    "metrics",
    "prototypes",
    "data",
    "models",
    "auto_classes",
    "features",
    "logit_cache",
    "weighting",
    "kinds",
    "distillation",
    "headroom",
    "feature_losses",
    "weight_record",
    "trainer",
    "choosing",
    "asking",
    "envs",
    "agents",
    "benchmark",
    "doctor",
    "workflow",
    "cli",
    "systems",
    "__main__",
)
"""From the cellar up: a floor may import those before it."""
NUMBERS_AND_FILES = FLOORS[:5]


def sources() -> Iterator[tuple[str, Path]]:
    """Every source file of the two packages with its floor; the lazy ``rlkd/__init__.py`` stands outside."""
    for path in sorted((ROOT / "rlkd").rglob("*.py")):
        parts = path.relative_to(ROOT / "rlkd").parts
        if parts != ("__init__.py",):
            yield parts[0].removesuffix(".py"), path
    for path in sorted((ROOT / "envs").rglob("*.py")):
        yield "envs", path


BY_STRING = re.compile(r"((?:rlkd|rlkd_envs)(?:\.\w+)*):[\w/.-]+")
"""How a string names something to import, as Gymnasium's registry reads it: ``package.module:Name``."""


def imports(path: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports, anywhere in it and by string; relative ones begin with a dot."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (by := BY_STRING.fullmatch(node.value)):
            yield by[1]
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ([f"rlkd.{alias.name}" for alias in node.names] if module == "rlkd" else [module])


def importers(library: str) -> set[str]:
    return {floor for floor, path in sources() for name in imports(path) if name.partition(".")[0] == library}


def test_imports_go_down_only():
    assert {floor for floor, _ in sources()} == set(FLOORS), "every module has its floor"
    climbing = []
    for floor, path in sources():
        for name in imports(path):
            package, _, rest = name.partition(".")
            target = "envs" if package == "rlkd_envs" else rest.partition(".")[0]
            if package in ("rlkd", "rlkd_envs") and target != floor and FLOORS.index(target) >= FLOORS.index(floor):
                climbing.append(f"{path.relative_to(ROOT)} imports {name}")
    assert climbing == []


def test_libraries_stay_on_their_floors():
    assert importers("stable_baselines3") == importers("sb3_contrib") == {"agents"}
    assert importers("gymnasium") <= {"envs", "agents", "workflow"}
    assert importers("rlkd_envs") == {"agents", "envs"}  # by the strings of Gymnasium's registry
    assert importers("envs") == set()  # inside envs/ imports are relative
    assert importers("torch").isdisjoint(NUMBERS_AND_FILES)
    assert "weighting" not in importers("transformers") | importers("sklearn")
    assert not any(name.startswith("..") for floor, path in sources() if floor == "envs" for name in imports(path))


HASHED = {
    "data/collection.py": "the data of tasks",
    "data/task.py": "the rows of a task",
    "logit_cache/building.py": "names of a cache's arrays, which are part of its format",
    "logit_cache/gaps.py": "likewise",
    "models/arrays.py": "logits",
    "models/identity.py": "weights",
    "report/origins.py": "the lines of a report",
    "report/plots.py": "drawings",
    "trainer/row_keys.py": "what teachers read of rows",
    "systems/meta_kd/distillation.py": "scores and weights",
    "weighting/by_row.py": "rows of a cache",
    "weighting/fixed.py": "draws of weights",
    "logit_cache/answers.py": "answers of teachers",
    "weighting/policy_files.py": "weights",
    "weighting/subsets.py": "draws of teachers",
}
"""Outside ``records``, what hashes something else than a key."""
MARKERS = {"done.json", "stage.json", "result.json", "manifest.json"}


def test_finished_is_said_in_one_place_and_keys_are_made_in_one():
    """No module but ``records`` names a marker, believes a manifest, holds a lock or hashes JSON for a key."""
    own = []
    for floor, path in sources():
        place = path.relative_to(ROOT / "rlkd").as_posix() if floor != "envs" else f"envs/{path.name}"
        if floor == "records":
            continue
        taken = {name.partition(".")[0] for name in imports(path)}
        if taken & {"hashlib", "xxhash"} and place not in HASHED:
            own.append(f"{place} hashes")
        if "filelock" in taken:
            own.append(f"{place} locks")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in MARKERS and floor != "logit_cache":
                own.append(f"{place} names {node.value}")
            if isinstance(node, ast.alias) and node.name == "verify_manifest":
                own.append(f"{place} imports {node.name}")
    assert own == []


def absolute(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports, also those that only type checkers import."""
    package = ["rlkd_envs"] if path.parent.name == "envs" else [*path.parent.relative_to(ROOT).parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_no_module_waits_for_itself():
    """Imports are no circles: taking away, again and again, what imports nothing that is left leaves nothing."""
    modules = {}
    for _, path in sources():
        parts = ["rlkd_envs", path.stem] if path.parent.name == "envs" else path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(part for part in parts if part != "__init__")] = path
    left = {name: {other for other in absolute(path) if other != name} for name, path in modules.items()}
    while ends := [name for name, wanted in left.items() if wanted.isdisjoint(left)]:
        for name in ends:
            del left[name]
    assert left == {}


def found(name: str) -> Any:
    """What a dotted name stands for.

    Raises:
        LookupError: There is no such thing.
    """
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        with contextlib.suppress(ImportError):
            thing: Any = importlib.import_module(".".join(parts[:cut]))
            for part in parts[cut:]:
                fields = getattr(thing, "__dataclass_fields__", {})
                thing = getattr(thing, part) if hasattr(thing, part) else fields[part]  # one without a default
            return thing
    raise LookupError(name)


REFERENCE = re.compile(r":(?:mod|func|class|meth|data|attr|exc):`~?([\w.]+)`")


def test_what_docstrings_refer_to_is_there():
    dangling = []
    for floor, path in sources():
        module = ".".join(["rlkd_envs", path.stem] if floor == "envs" else path.relative_to(ROOT).with_suffix("").parts)
        for name in REFERENCE.findall(path.read_text(encoding="utf-8")):
            if "." not in name:
                continue
            try:
                found(f"{module.removesuffix('.__init__')}.{name}" if name[0].isupper() else name)
            except LookupError:
                dangling.append(f"{path.relative_to(ROOT)} refers to {name}")
    assert dangling == []


def test_nothing_prints():
    printing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for _, path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printing == []


def test_what_is_packaged_is_what_is_here():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = sorted(path.parent.relative_to(ROOT) for path in (ROOT / "rlkd").rglob("__init__.py"))
    assert sorted(settings["packages"]) == [*(".".join(folder.parts) for folder in folders), "rlkd_envs"]
    assert settings["package-dir"] == {"rlkd_envs": "envs"}
    assert [path for path in (ROOT / "envs").iterdir() if path.is_dir() and path.name != "__pycache__"] == []
    assert settings["package-data"]["rlkd_envs"] == ["py.typed"]
    shipped = {path for pattern in settings["package-data"]["rlkd"] for path in (ROOT / "rlkd").glob(pattern)}
    policies = {folder / name for folder in (SHIPPED, ASKER) for name in ("config.json", "model.safetensors")}
    single = {ROOT / "rlkd" / name for name in ("py.typed", "headroom.json")}
    assert shipped == {*single, *(ROOT / "rlkd").rglob("README.md"), *policies}
    for folder in ("rlkd", "envs"):
        assert (ROOT / folder / "py.typed").is_file()
    without_init = {
        path.parent for path in (ROOT / "rlkd").rglob("*.py") if not (path.parent / "__init__.py").is_file()
    }
    assert without_init == set()


@pytest.mark.parametrize("name", rlkd.__all__)
def test_every_public_name_is_there(name):
    assert getattr(rlkd, name).__name__ == name
    assert name in dir(rlkd)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="distil"):
        rlkd.distil  # noqa: B018


HELP = """
import sys
from rlkd.cli import main
sys.argv = ["rlkd", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code
heavy = {"torch", "transformers", "datasets", "sklearn", "scipy", "gymnasium", "matplotlib"} & sys.modules.keys()
assert not heavy, heavy
"""


def test_help_is_instant():
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run.returncode == 0, run.stderr
        # of the processor, not of the clock: other tests may run beside this one
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    for command in (
        "quickstart",
        "train-teachers",
        "cache",
        "headroom",
        "train-policy",
        "distill",
        "compare",
        "doctor",
    ):
        assert command in run.stdout
    assert min(seconds) < 1.0
