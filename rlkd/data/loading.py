"""Load a task from an embedded name, a local file, a folder, or the Hugging Face hub."""

import difflib
import glob
import json
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkd.data.embedded import digits, docstrings, planted
from rlkd.data.splitting import Fractions, split_task
from rlkd.data.task import UNLABELLED, Table, Task
from rlkd.errors import ConfigError, TaskError

logger = logging.getLogger(__name__)

EMBEDDED: Mapping[str, Callable[..., Task]] = {
    "docstrings": docstrings,
    "digits": digits,
    "planted": planted,
}
"""Tasks that need no file, by name."""

FORMATS: Mapping[str, str] = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".json": "json"}
"""File suffix to the reader of ``datasets``."""

_DEFAULT_TEXT, _DEFAULT_LABEL, _DEFAULT_DOMAIN = "text", "label", "domain"
_KNOWN_PAIRS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)
_SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "dev"), "test": ("test",)}
_HUB_ID = re.compile(r"(?P<id>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.+-]+))?", re.ASCII)


@dataclass(frozen=True)
class _Columns:
    text: str
    pair: str | None
    label: str
    domain: str


@dataclass(frozen=True)
class _Source:
    """The splits of a source as data sets of ``datasets``, and what is known about it."""

    name: str
    splits: Mapping[str, Any]
    label_names: Sequence[str] | None = None


def load_task(
    source: str,
    *,
    text_column: str = _DEFAULT_TEXT,
    text_pair_column: str | None = None,
    label_column: str = _DEFAULT_LABEL,
    domain_column: str = _DEFAULT_DOMAIN,
    label_names: Sequence[str] | None = None,
    name: str | None = None,
    seed: int = 0,
    probe_fraction: float = 0.1,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.15,
) -> Task:
    """Load a task and split it once.

    Labels are strings (classes are their sorted names), integers from 0, or a ``ClassLabel`` feature. None,
    NaN and -1 mean unlabelled, which only training rows may be. Names of integer labels come from
    ``label_names``, the feature, ``label_names.json`` in the folder, ``datasets.json`` beside the folder, or
    are the numbers.

    Args:
        source: An embedded name (``docstrings``, ``digits``, ``planted``); a .parquet, .csv, .jsonl or .json
            file; a folder with ``train.*`` and perhaps ``validation.*`` (or ``dev.*``) and ``test.*``; else
            an id on the Hugging Face hub, ``id`` or ``id:config``.
        text_column: Column of the texts. If it is left at ``text`` and absent, the usual pairs of columns
            (``text_a`` and ``text_b``, ``premise`` and ``hypothesis``, ...) are looked for.
        text_pair_column: Column of the second texts.
        label_column: Column of the labels.
        domain_column: Column of the domains; optional while it is left at ``domain``.
        label_names: Names of the C classes, in the order of the labels.
        name: Name of the task; default: from the source.
        seed: Seeds the splits, and an embedded task that is drawn at random.
        probe_fraction: Share of the labelled training rows that becomes the probe, at most 1,000 rows.
        validation_fraction: The same for validation, if the source has none.
        test_fraction: The same for test, if the source has none.

    Returns:
        The task, rows ordered train, probe, validation, test.
    """
    fractions = Fractions(probe=probe_fraction, validation=validation_fraction, test=test_fraction)
    columns = _Columns(text_column, text_pair_column, label_column, domain_column)
    if source in EMBEDDED:
        if (
            columns != _Columns(_DEFAULT_TEXT, None, _DEFAULT_LABEL, _DEFAULT_DOMAIN)
            or label_names is not None
        ):
            raise ConfigError(
                f"the embedded task {source!r} has fixed columns and label names, got others; leave them out"
            )
        task = EMBEDDED[source](seed, fractions=fractions)
        return task if name is None else replace(task, name=name)
    found = _find(source, columns)
    if label_names is not None:
        found = replace(found, label_names=label_names)
    return _task(replace(found, name=name or found.name), columns, fractions, seed)


def _task(source: _Source, columns: _Columns, fractions: Fractions, seed: int) -> Task:
    columns = _resolved(source, columns)
    for split, rows in source.splits.items():
        if len(rows) == 0:
            raise TaskError(
                f"split {split!r} of {source.name!r} must have rows, got no rows; fill or remove it"
            )
    label_names, labels = _labels(source, columns.label)
    domain_names, domains = _domains(source, columns.domain)
    table = Table(
        labels=labels,
        domains=domains,
        texts=_texts(source, columns.text),
        text_pairs=None if columns.pair is None else _texts(source, columns.pair),
    )
    return split_task(
        source.name,
        table,
        label_names,
        given=_rows_of_splits(source),
        domain_names=domain_names,
        fractions=fractions,
        seed=seed,
    )


def _rows_of_splits(source: _Source) -> dict[str, NDArray[np.int64]]:
    rows, start = {}, 0
    for split, data in source.splits.items():
        rows[split] = np.arange(start, start + len(data), dtype=np.int64)
        start += len(data)
    return rows


# Finding and reading the source.


def _find(source: str, columns: _Columns) -> _Source:
    if not source or not source.isprintable():
        raise TaskError(
            f"a data source must be a printable name or path, got {source!a}; name a file, a folder, "
            f"a hub id, or one of: {', '.join(EMBEDDED)}"
        )
    path = Path(source)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as reason:  # a name that is too long, a folder that may not be entered
        raise TaskError(
            f"a data source must be a path that can be opened, {source!r:.80} gives: "
            f"{reason.strerror}; check it"
        ) from reason
    if is_folder:
        return _from_folder(path, columns)
    if is_file:
        return _Source(path.stem, {"train": _read_file(path, columns)})
    match = _HUB_ID.fullmatch(source)
    if match is None or path.suffix.lower() in FORMATS or source[0] in "./~":
        raise TaskError(
            f"no file or folder {source!r}, and it is no hub id; {_what_exists(path)}"
            f"{_nearest(source, EMBEDDED, 'embedded task')}check the path"
        )
    return _from_hub(source, match["id"], match["config"], columns.label)


def _what_exists(path: Path) -> str:
    """Say what lies where a path leads nowhere: the nearest name, or the folder's first ones."""
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {str(folder)!r} does not exist either; "
    present = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(path.name, present, n=1, cutoff=0.5)
    if near:
        return f"did you mean {str(folder / near[0])!r}? "
    return f"{str(folder)!r} holds: {', '.join(present[:10]) or 'nothing'}; "


def _nearest(name: str, choices: Mapping[str, object], kind: str) -> str:
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f"did you mean the {kind} {near[0]!r}? " if near else ""


def _from_folder(folder: Path, columns: _Columns) -> _Source:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS)
    splits = {}
    for split, stems in _SPLIT_NAMES.items():
        matching = [path for path in files if path.stem in stems]
        if len(matching) > 1:
            raise TaskError(
                f"{str(folder)!r} must have one file for {split!r}, got "
                f"{', '.join(path.name for path in matching)}; keep one"
            )
        if matching:
            splits[split] = _read_file(matching[0], columns)
    if "train" not in splits:
        present = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise TaskError(
            f"{str(folder)!r} must have train{'|'.join(FORMATS)}, it holds: {present}; add that file, "
            "or name one of the files"
        )
    return _Source(folder.resolve().name, splits, _names_beside(folder))


def _names_beside(folder: Path) -> list[str] | None:
    """Label names from ``label_names.json`` in the folder, or its entry in ``datasets.json`` above it."""
    own = folder / "label_names.json"
    if own.exists():
        return _checked_names(_read_json(own), str(own))
    listing = folder.resolve().parent / "datasets.json"
    if listing.exists():
        content = _read_json(listing)
        entry = content.get(folder.resolve().name) if isinstance(content, dict) else None
        names = entry.get("labels") if isinstance(entry, dict) else None
        return None if names is None else _checked_names(names, str(listing))
    return None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise TaskError(
            f"{str(path)!r} must be JSON and cannot be read: {reason}; repair or remove it"
        ) from reason


def _checked_names(names: Any, where: str) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TaskError(f"{where} must give label names as a list of strings, got {names!r:.60}; repair it")
    return names


def _read_file(path: Path, columns: _Columns) -> Any:
    import datasets

    reader = FORMATS.get(path.suffix.lower())
    if reader is None:
        raise TaskError(
            f"a data file must end in {', '.join(FORMATS)}, got {str(path)!r}; convert or rename it"
        )
    options: dict[str, Any] = _csv_options(columns) if reader == "csv" else {}
    try:
        with _quiet():
            # The path is a pattern to the reader: brackets and asterisks in it are meant literally.
            files = {"train": glob.escape(str(path.resolve()))}
            # Rows longer than the header are an error: pandas would drop cells, or shift columns.
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="Length of header or names")
                return datasets.load_dataset(reader, data_files=files, split="train", **options)
    except Exception as error:
        # The readers have no clear word of their own for a file without rows.
        empty = isinstance(error, StopIteration) or "corresponds to no data" in str(error)
        reason = "no rows" if empty else _one_line(error.__cause__ or error)
        raise TaskError(
            f"{str(path)!r} must be a readable {path.suffix} file with rows, reading gave "
            f"{reason}; repair or replace it"
        ) from error


def _csv_options(columns: _Columns) -> dict[str, Any]:
    """Texts such as "NA", "null" or "007" stay texts; only an empty or NaN label is missing."""
    texts = {columns.text, columns.domain, *(column for pair in _KNOWN_PAIRS for column in pair)}
    if columns.pair is not None:
        texts.add(columns.pair)
    return {
        "index_col": False,
        "keep_default_na": False,
        "na_values": {columns.label: ["", "NaN", "nan"]},
        "converters": dict.fromkeys(sorted(texts - {columns.label}), str),
    }


def _from_hub(source: str, hub_id: str, config: str | None, label: str) -> _Source:
    import datasets

    try:
        with _quiet():
            loaded = datasets.load_dataset(hub_id, config)
    except Exception as error:
        what = "could not be reached" if isinstance(error, ConnectionError) else "refused it"
        raise TaskError(
            f"{source!r} is not a file or folder, and the hub {what}: {_one_line(error)}; "
            f"{_nearest(source, EMBEDDED, 'embedded task')}embedded tasks are: {', '.join(EMBEDDED)}"
        ) from error
    splits = {}
    for split, names in _SPLIT_NAMES.items():
        present = [name for name in names if name in loaded]
        if present and split == "test" and _hides_labels(loaded[present[0]], label):
            logger.warning("the test split of %r has no labels; one is carved from train instead", source)
        elif present:
            splits[split] = loaded[present[0]]
    if "train" not in splits:
        raise TaskError(
            f"{source!r} must have a train split, it has: {', '.join(loaded)}; choose another config"
        )
    return _Source(hub_id.rpartition("/")[2] + (f"-{config}" if config else ""), splits)


def _hides_labels(data: Any, label: str) -> bool:
    """Whether a split has rows and none is labelled, as in competitions that keep their test labels."""
    return len(data) > 0 and label in data.column_names and all(_clean(v) is None for v in data[label][:])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and logs of ``datasets``: what goes wrong is raised, in our words."""
    import datasets

    bars = not datasets.utils.are_progress_bars_disabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def _one_line(reason: BaseException) -> str:
    text = " ".join(str(reason).split()) or type(reason).__name__
    return text[:200]


# Columns.


def _resolved(source: _Source, columns: _Columns) -> _Columns:
    """Choose the text columns, and require that every column is in every split."""
    present = set(source.splits["train"].column_names)
    if columns.text == _DEFAULT_TEXT and columns.pair is None and _DEFAULT_TEXT not in present:
        for first, second in _KNOWN_PAIRS:
            if {first, second} <= present:
                columns = replace(columns, text=first, pair=second)
                break
    wanted = [columns.text, columns.label, *([] if columns.pair is None else [columns.pair])]
    if columns.domain != _DEFAULT_DOMAIN or columns.domain in present:
        wanted.append(columns.domain)
    for split, data in source.splits.items():
        missing = [column for column in wanted if column not in data.column_names]
        if missing:
            raise TaskError(
                f"split {split!r} of {source.name!r} must have the column {missing[0]!r}, it has: "
                f"{', '.join(data.column_names)}; name the column to use"
            )
    return columns


def _texts(source: _Source, column: str) -> tuple[str, ...]:
    texts: list[str] = []
    for split, data in source.splits.items():
        values = data[column][:]
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise TaskError(
                    f"column {column!r} of {source.name!r} must hold texts, row {row} of {split} is "
                    f"{value!r:.40}; fix the row or name another column"
                )
        texts += values
    return tuple(texts)


def _domains(source: _Source, column: str) -> tuple[list[str], NDArray[np.int64]]:
    """Sorted domain names and the domain index of every row, shape (N,); zeros without the column."""
    if column not in source.splits["train"].column_names:
        return [], np.zeros(sum(len(data) for data in source.splits.values()), dtype=np.int64)
    values: list[str] = []
    for split, data in source.splits.items():
        class_names = getattr(data.features[column], "names", None)
        for row, value in enumerate(data[column][:]):
            if not isinstance(value, str | int):
                raise TaskError(
                    f"column {column!r} of {source.name!r} must hold domain names, row {row} of {split} is "
                    f"{value!r:.40}; fix the row or name another column"
                )
            values.append(class_names[value] if class_names and isinstance(value, int) else str(value))
    names, indices = np.unique(np.array(values, dtype=object), return_inverse=True)
    return [str(name) for name in names], indices.astype(np.int64)


# Labels.


def _labels(source: _Source, column: str) -> tuple[list[str], NDArray[np.int64]]:
    """Class names and the class index of every row, shape (N,), splits in their order."""
    raw = {split: [_clean(value) for value in data[column][:]] for split, data in source.splits.items()}
    kinds = {type(value) for values in raw.values() for value in values if value is not None}
    if len(kinds) > 1 or not kinds <= {str, int}:
        raise TaskError(
            f"column {column!r} of {source.name!r} must hold integers or strings, got "
            f"{', '.join(sorted(kind.__name__ for kind in kinds))}; convert it"
        )
    given = source.label_names or getattr(source.splits["train"].features[column], "names", None)
    names = _class_names(source, raw["train"], None if given is None else list(given))
    index = {label: i for i, label in enumerate(names)}
    seen: set[int] = set()
    labels: list[int] = []
    for split, values in raw.items():
        ids = [_class_index(source.name, split, row, value, index) for row, value in enumerate(values)]
        if split == "train":
            seen = set(ids)
        else:
            _check_held_out(source.name, split, ids, seen, names)
        labels += ids
    return names, np.array(labels, dtype=np.int64)


def _clean(value: Any) -> Any:
    """Make None of what means unlabelled, and an integer of whole floats and bools."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    return None if value == UNLABELLED else value


def _class_names(source: _Source, train: list[Any], given: list[str] | None) -> list[str]:
    known = {value for value in train if value is not None}
    if given is not None:
        names = given
    elif all(isinstance(value, int) for value in known):
        # Numbers far beyond the rows are ids or scores; a class for each would be a huge model of nothing.
        if max(known, default=0) > len(train):
            raise TaskError(
                f"integer labels of {source.name!r} must count classes from 0, got {max(known)!r:.20} in "
                f"{len(train)} rows; renumber them, or store names"
            )
        names = [str(i) for i in range(max(known, default=-1) + 1)]
    else:
        names = sorted(known)
    if len(names) < 2 or len(set(names)) < len(names) or "" in names:
        raise TaskError(
            f"{source.name!r} must have at least 2 classes with distinct names that are not empty, got "
            f"{names!r:.80}; check the label column or label_names"
        )
    return names


def _class_index(task: str, split: str, row: int, value: Any, index: Mapping[str, int]) -> int:
    if value is None:
        return UNLABELLED
    if isinstance(value, int) and 0 <= value < len(index):
        return value
    if isinstance(value, str) and value in index:
        return index[value]
    if isinstance(value, str) and split != "train":
        raise TaskError(
            f"labels of {task!r} must all occur in train, row {row} of {split} has {value!r:.60}; add "
            "training rows of that class, or drop the row"
        )
    raise TaskError(
        f"labels of {task!r} must be among the {len(index)} classes {', '.join(index)!s:.80}, row {row} of "
        f"{split} is out of range: {value!r:.60}; fix the row or the label names"
    )


def _check_held_out(task: str, split: str, ids: list[int], seen: set[int], names: list[str]) -> None:
    if UNLABELLED in ids:
        raise TaskError(
            f"every row of {split} of {task!r} must have a label, row {ids.index(UNLABELLED)} has none "
            f"({ids.count(UNLABELLED)} in all); label or drop them, or leave the split "
            "out to carve it from train"
        )
    unseen = sorted({names[i] for i in set(ids) - seen})
    if unseen:
        raise TaskError(
            f"labels of {task!r} must all occur in train, {split} also has {', '.join(unseen)!s:.80}; add "
            "training rows of these classes, or drop theirs"
        )
