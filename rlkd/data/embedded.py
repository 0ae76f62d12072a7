"""Tasks that need no download: docstrings (text), digits (images as vectors), planted (synthetic vectors).

``docstrings`` asks which library a sentence documents. Its rows are read from the source files of the
libraries that come with this package, without importing them, and cached as one JSON file.
"""

import ast
import gc
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rlkd.data.origin import Origin
from rlkd.data.planted import planted
from rlkd.data.splitting import DEFAULT_FRACTIONS, Fractions, split_task
from rlkd.data.task import Table, Task
from rlkd.errors import OutputDirectoryError, TaskError
from rlkd.records import digest, write_json_atomic

logger = logging.getLogger(__name__)

LIBRARIES: Mapping[str, tuple[str, str]] = {
    "datasets": ("datasets", r"datasets"),
    "gymnasium": ("gymnasium", r"gymnasium|\bgym\b|farama"),
    "huggingface_hub": ("huggingface_hub", r"hugging[ _-]?face(?:[ _-]?hub)?|\bhf\b"),
    "matplotlib": ("matplotlib", r"matplotlib|\bmpl\b|pyplot|\bplt\b"),
    "networkx": ("networkx", r"networkx|\bnx\b"),
    "numpy": ("numpy", r"numpy|\bnp\b"),
    "pandas": ("pandas", r"pandas|\bpd\b"),
    "python": ("", r"c?python"),
    "scipy": ("scipy", r"scipy"),
    "sklearn": ("scikit-learn", r"sklearn|scikit[ _-]?learn"),
    "sympy": ("sympy", r"sympy"),
    "torch": ("torch", r"(?:py)?torch"),
    "transformers": ("transformers", r"transformers"),
}
"""Class name to (distribution, pattern of the names that would give the class away)."""

MAX_ROWS_PER_CLASS = 900
MAX_ROWS_PER_FILE = 15
MIN_CHARACTERS, MAX_CHARACTERS = 30, 300
MASK = "[LIB]"

# A class is read a little beyond its cap, because rows shared between classes are dropped afterwards.
_SPARE_ROWS = 100
# A library installed without its sources gives next to nothing, and such a class could not be split.
_MIN_ROWS_PER_CLASS = 50
# A file gives 15 rows at most, however long it takes to parse.
_MAX_FILE_BYTES = 100_000
_FORMAT_VERSION = 1
_SKIPPED_FOLDERS = re.compile(
    r"tests?|_?testing|_?vendor(?:ed)?|externals?|third_party|site-packages|dist-packages|_vendored_packages"
)
_NAMES = re.compile("|".join(pattern for _, pattern in LIBRARIES.values()), re.IGNORECASE)


def docstrings(seed: int = 0, *, fractions: Fractions = DEFAULT_FRACTIONS) -> Task:
    """Build the docstring task: which library does this sentence document?

    Rows are distinct first paragraphs of docstrings, names of libraries masked by ``[LIB]``. They depend on
    the installed versions only; ``seed`` chooses the splits. The rows are cached in ``$RLKD_CACHE``, or
    ``~/.cache/rlkd``, and read again whenever a version changes.

    Args:
        seed: Seeds the splits.
        fractions: Sizes of probe, validation and test.

    Returns:
        A text task with up to 13 classes of up to 900 rows.
    """
    corpus = _cached_corpus()
    if len(corpus) < 2:
        raise TaskError(
            f"the docstring task needs the sources of 2 libraries, found those of {len(corpus)}; "
            "install the libraries with their .py files, or name a data set of your own"
        )
    label_names = tuple(sorted(corpus))
    labels = np.repeat(np.arange(len(label_names)), [len(corpus[name]) for name in label_names])
    table = Table(
        labels=labels.astype(np.int64),
        domains=np.zeros(len(labels), dtype=np.int64),
        texts=tuple(text for name in label_names for text in corpus[name]),
    )
    return split_task("docstrings", table, label_names, fractions=fractions, seed=seed)


def digits(seed: int = 0, *, fractions: Fractions = DEFAULT_FRACTIONS) -> Task:
    """Build the task of scikit-learn's 1,797 bundled digits, vectors (N, 64) scaled to [0, 1].

    Args:
        seed: Seeds the splits.
        fractions: Sizes of probe, validation and test.

    Returns:
        A vector task with 10 classes.
    """
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    table = Table(
        labels=targets.astype(np.int64),
        domains=np.zeros(len(targets), dtype=np.int64),
        vectors=(images / 16.0).astype(np.float32),
        origin=Origin.of({"train": len(targets)}),
    )
    return split_task("digits", table, [str(digit) for digit in range(10)], fractions=fractions, seed=seed)


EMBEDDED: Mapping[str, Callable[..., Task]] = {"docstrings": docstrings, "digits": digits, "planted": planted}
"""Tasks that need no file, by name."""


def _cached_corpus() -> dict[str, list[str]]:
    versions = _versions()
    key = digest([_FORMAT_VERSION, sorted(versions.items())], 16)
    folder = _cache_folder()
    path = None if folder is None else folder / f"docstrings-{key}.json"
    if path is not None and path.exists():
        try:
            return _read_corpus(path, key)
        except (OSError, ValueError) as reason:
            logger.warning("%s is damaged and is built again: %s", path, reason)
    corpus = _build_corpus(list(versions))
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(path, {"key": key, "corpus": corpus})
        except (OSError, OutputDirectoryError) as reason:
            logger.warning("the docstring task is not cached: %s", reason)
    return corpus


def _versions() -> dict[str, str]:
    """Versions of the libraries that are installed, by class name."""
    versions = {}
    for name, (distribution, _) in LIBRARIES.items():
        try:
            versions[name] = importlib.metadata.version(distribution) if distribution else platform.python_version()
        except importlib.metadata.PackageNotFoundError:
            logger.warning("the docstring task has no class %r: that library is not installed", name)
    return versions


def _cache_folder() -> Path | None:
    named = os.environ.get("RLKD_CACHE")
    try:
        return Path(named or "~/.cache/rlkd").expanduser()
    except RuntimeError as reason:
        logger.warning("the docstring task is not cached: %s", reason)
        return None


def _read_corpus(path: Path, key: str) -> dict[str, list[str]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("key") != key or not isinstance(content.get("corpus"), dict):
        raise ValueError("not a docstring cache for these versions")
    corpus: dict[str, list[str]] = content["corpus"]
    for name, texts in corpus.items():
        if name not in LIBRARIES or not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"the rows of {name!r} are not a list of texts")
    return corpus


def _build_corpus(names: list[str]) -> dict[str, list[str]]:
    """Read, mask and sample the rows of every library; texts found in two libraries are dropped."""
    with _without_collector():
        found = {name: _library_texts(name) for name in sorted(names)}
    counts: dict[str, int] = {}
    for texts in found.values():
        for text in texts:
            counts[text.casefold()] = counts.get(text.casefold(), 0) + 1
    corpus = {}
    for name, texts in found.items():
        kept = [text for text in texts if counts[text.casefold()] == 1][:MAX_ROWS_PER_CLASS]
        if len(kept) < _MIN_ROWS_PER_CLASS:
            logger.warning("the docstring task has no class %r: %d rows found", name, len(kept))
            continue
        corpus[name] = sorted(kept)
    return corpus


@contextmanager
def _without_collector() -> Iterator[None]:
    """Pause the cyclic garbage collector: syntax trees have no cycles, and it doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _library_texts(name: str) -> list[str]:
    """Distinct texts of one library, from files in a fixed random order until there are enough."""
    root = _source_folder(name)
    if root is None:
        return []
    files = [path for path in sorted(root.rglob("*.py")) if _is_wanted(path.relative_to(root))]
    texts: dict[str, str] = {}
    for index in np.random.default_rng(0).permutation(len(files)):
        fresh = {text.casefold(): text for text in _file_texts(files[index])}
        taken = [key for key in fresh if key not in texts][:MAX_ROWS_PER_FILE]
        texts.update((key, fresh[key]) for key in taken)
        if len(texts) >= MAX_ROWS_PER_CLASS + _SPARE_ROWS:
            break
    return list(texts.values())


def _source_folder(name: str) -> Path | None:
    if name == "python":
        return Path(sysconfig.get_path("stdlib"))
    # Only the top-level name is looked up: finding a submodule would import its parents.
    spec = importlib.util.find_spec(name)
    locations = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(locations))) if locations else None


def _is_wanted(relative: Path) -> bool:
    return not any(_SKIPPED_FOLDERS.fullmatch(part) for part in relative.parts[:-1])


def _file_texts(path: Path) -> Iterator[str]:
    """First paragraphs of the docstrings of one source file, whitespace collapsed and names masked."""
    try:
        source = path.read_bytes()
        if len(source) > _MAX_FILE_BYTES:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError) as reason:
        logger.debug("%s is skipped: %s", path, reason)
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            paragraph = re.split(r"\n\s*\n", ast.get_docstring(node) or "", maxsplit=1)[0]
            text = _NAMES.sub(MASK, " ".join(paragraph.split()))
            if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS and _is_encodable(text):
                yield text


def _is_encodable(text: str) -> bool:
    """Whether the text has no lone surrogate, which tokenizers refuse."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
