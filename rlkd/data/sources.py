"""Find what a name means (a file, a folder, a data set of the hub) and read its splits."""

import difflib
import glob
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkd.data.columns import Columns, Source, resolved_columns
from rlkd.data.embedded import EMBEDDED
from rlkd.data.tables import SPLIT_NAMES, chosen_splits, quiet_datasets, with_unlabelled
from rlkd.data.text_files import check_encoding, csv_options
from rlkd.errors import TaskError, one_line
from rlkd.hub import offline_if_unreachable

FORMATS: Mapping[str, str] = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json"}
"""File suffix to the reader of ``datasets``."""


_HUB_ID = re.compile(r"(?P<id>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.+-]+))?", re.ASCII)


def find_source(source: str, columns: Columns, *, unlabelled: bool = False) -> Source:
    """Find and read a source that is no embedded task.

    Args:
        source: A file, a folder, or an id on the hub.
        columns: What is text and what is a label, where the format does not say.
        unlabelled: Append the rows of ``unlabelled.*`` (or ``unlabeled.*``) in the folder to train.

    Returns:
        Its splits, always one named ``train``.

    Raises:
        TaskError: There is no such source, or it cannot be read.
    """
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
            f"a data source must be a path that can be opened, {source!r:.80} gives: {reason.strerror}; check it"
        ) from reason
    if unlabelled and not is_folder:
        raise TaskError(f"unlabelled rows lie in a folder beside the splits, {source!r} is none; leave them out")
    if is_folder:
        return _from_folder(path, columns, unlabelled)
    if is_file:
        return Source(path.stem, {"train": _read_file(path, columns)})
    match = _HUB_ID.fullmatch(source)
    if match is None or path.suffix.lower() in FORMATS or source[0] in "./~":
        raise TaskError(
            f"no file or folder {source!r}, and it is no hub id; {_what_exists(path)}"
            f"{_nearest(source, EMBEDDED, 'embedded task')}check the path"
        )
    near = difflib.get_close_matches(source, list(EMBEDDED), n=1, cutoff=0.8)
    if near:  # asking the hub would take half a minute where there is no network
        raise TaskError(
            f"no file or folder {source!r}; did you mean the embedded task {near[0]!r}? For a data set of the hub with "
            f"that name write owner/{source}"
        )
    return _from_hub(source, match["id"], match["config"], columns)


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


def _from_folder(folder: Path, columns: Columns, unlabelled: bool) -> Source:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS)
    splits = {}
    for split, stems in SPLIT_NAMES.items():
        matching = [path for path in files if path.stem in stems]
        if len(matching) > 1:
            raise TaskError(
                f"{str(folder)!r} must have one file for {split!r}, got "
                f"{', '.join(path.name for path in matching)}; keep one"
            )
        if matching:
            splits[split] = _read_file(matching[0], columns)
            if split == "train":  # the others have its columns
                columns = resolved_columns(splits[split].column_names, columns, folder.name)
    if "train" not in splits:
        present = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise TaskError(
            f"{str(folder)!r} must have train{'|'.join(FORMATS)}, it holds: {present}; add that file, "
            "or name one of the files"
        )
    labelled = len(splits["train"])
    if unlabelled:
        found = [path for path in files if path.stem in ("unlabelled", "unlabeled")]
        if len(found) != 1:
            raise TaskError(
                f"{str(folder)!r} must have one file of unlabelled rows, unlabelled{'|'.join(FORMATS)}; add it"
            )
        rows = _read_file(found[0], columns)
        splits["train"] = with_unlabelled(splits["train"], rows, str(found[0]), columns)
    names = _names_beside(folder, columns)
    return Source(folder.resolve().name, splits, names, unlabelled=len(splits["train"]) - labelled)


def _names_beside(folder: Path, columns: Columns) -> list[str] | None:
    """Label names from ``label_names.json`` in the folder, or its entry in ``datasets.json`` above it.

    The latter are those of the usual column of labels: another column has names of its own.
    """
    own = folder / "label_names.json"
    if own.exists():
        return _checked_names(_read_json(own), str(own))
    listing = folder.resolve().parent / "datasets.json"
    if listing.exists() and columns.label == Columns().label:
        content = _read_json(listing)
        entry = content.get(folder.resolve().name) if isinstance(content, dict) else None
        names = entry.get("labels") if isinstance(entry, dict) else None
        return None if names is None else _checked_names(names, str(listing))
    return None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise TaskError(f"{str(path)!r} must be JSON and cannot be read: {reason}; repair or remove it") from reason


def _checked_names(names: Any, where: str) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TaskError(f"{where} must give label names as a list of strings, got {names!r:.60}; repair it")
    return names


def _read_file(path: Path, columns: Columns) -> Any:
    import datasets

    reader = FORMATS.get(path.suffix.lower())
    if reader is None:
        raise TaskError(f"a data file must end in {', '.join(FORMATS)}, got {str(path)!r}; convert or rename it")
    if reader != "parquet":
        check_encoding(path)
    options: dict[str, Any] = csv_options(path, columns) if reader == "csv" else {}
    try:
        with quiet_datasets():
            # The path is a pattern to the reader: brackets and asterisks in it are meant literally.
            files = {"train": glob.escape(str(path.resolve()))}
            # Rows longer than the header are an error: pandas would drop cells, or shift columns.
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="Length of header or names")
                return datasets.load_dataset(reader, data_files=files, split="train", **options)
    except Exception as error:
        # The readers have no clear word of their own for a file without rows.
        empty = isinstance(error, StopIteration) or "corresponds to no data" in str(error)
        reason = "no rows" if empty else one_line(error.__cause__ or error)
        raise TaskError(
            f"{str(path)!r} must be a readable {path.suffix} file with rows, reading gave "
            f"{reason}; repair or replace it"
        ) from error


def _from_hub(source: str, hub_id: str, config: str | None, columns: Columns) -> Source:
    import datasets

    try:
        with quiet_datasets(), offline_if_unreachable(hub_id, "dataset"):
            loaded = datasets.load_dataset(hub_id, config)
    except Exception as error:
        what = "could not be reached" if isinstance(error, ConnectionError) else "refused it"
        raise TaskError(
            f"{source!r} is not a file or folder, and the hub {what}: {one_line(error)}; "
            f"{_nearest(source, EMBEDDED, 'embedded task')}embedded tasks are: {', '.join(EMBEDDED)}"
        ) from error
    splits = chosen_splits(loaded, source, columns)
    return Source(hub_id.rpartition("/")[2] + (f"-{config}" if config else ""), splits)
