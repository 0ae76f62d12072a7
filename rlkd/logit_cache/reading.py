"""Open a cache: nothing of it is believed before it is verified."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlkd.data.task import Task
from rlkd.errors import CacheError
from rlkd.logit_cache.sources import LogitCache
from rlkd.logit_cache.stacks import Logits, is_large, open_stack, stacked_in_memory, stacked_on_disk
from rlkd.records import digest, file_hash, parse_object
from rlkd.types import ONCE, Knowledge

if TYPE_CHECKING:  # a deployed policy then loads neither transformers nor scikit-learn
    from rlkd.models.teachers import Teacher

FORMAT_VERSION = 1
GAPPED_VERSION = 2
"""Of caches with gaps: releases that know none would take a gap for an answer, and refuse them by this number."""
DTYPES = ("float32", "float16")
MANIFEST = "manifest.json"
AFFINITY = "affinity.npy"
EMBEDDINGS = "embeddings.npy"
ARRAYS = "logits-*.npy"
ANSWERED = "answered-*.npy"
"""Of a cache with gaps: who answered about what, bool, (N, K); named by its content, like the arrays beside it."""
ASK_AGAIN = "the same rlkd ask writes it again from its ledger, and nobody is asked twice"
OTHER_DATA = (
    "name the cache of this task, or the task, columns and split seed that this cache was made for; where the data "
    "were changed, build one in another folder"
)
OTHER_FOLDER = "choose another folder for this task's cache; --overwrite would delete the one that is there"
"""What to do about a cache of another task: it may be whole and dear, so nobody is told to overwrite it."""
KEPT = "weights-*"
"""Folders beside the arrays: what weightings say of every row, see :mod:`rlkd.weighting.by_row`."""


def load_cache(directory: str | Path, task: Task, *, teachers: Sequence["Teacher"] | None = None) -> LogitCache:
    """Open a cache and verify it; one that rlkd ask replaces meanwhile is opened as it is then.

    Args:
        directory: Of the cache.
        task: The data that it must have been made for.
        teachers: If given, the teachers (and their order) that it must have been made with.

    Raises:
        CacheError: If it is stale, partial, re-ordered or damaged; names what differs.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    try:
        return _opened(folder, manifest, task, teachers)
    except (CacheError, FileNotFoundError):
        if read_manifest(folder) == manifest:
            raise
        return load_cache(folder, task, teachers=teachers)


def _opened(folder: Path, manifest: dict[str, Any], task: Task, teachers: Sequence["Teacher"] | None) -> LogitCache:
    _check_data(manifest, task.name, task.fingerprint, task.label_names, folder, OTHER_DATA)
    if teachers is not None:
        _check_teachers(manifest, teachers, folder)
    shape = (len(task.table), task.num_classes)
    logits, names = _read_logits(folder, manifest, shape)
    affinity = None
    if manifest["affinity"]:
        affinity = np.array(_open_array(folder, manifest, AFFINITY, (len(task.table), len(names))))
    embeddings = None
    if manifest.get("embeddings"):
        embeddings = _open_array(folder, manifest, EMBEDDINGS, (len(task.table), None))
    return LogitCache(
        logits,
        names,
        knowledge=_read_knowledge(manifest, task),
        affinity=affinity,
        embeddings=embeddings,
        mask=_read_mask(folder, manifest, (len(task.table), len(names))),
        identity=digest([manifest["teachers"], manifest["files"]], 16),
        folder=folder,
    ).measured(task)


def open_cache(directory: str | Path) -> LogitCache:
    """Open a cache by itself, its files verified, for who knows the numbers of its rows without the task.

    Args:
        directory: Of the cache.

    Raises:
        CacheError: If it is partial or damaged.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    logits, names = _read_logits(folder, manifest, (None, len(manifest["labels"])))
    mask = _read_mask(folder, manifest, logits.shape[:2])
    identity = digest([manifest["teachers"], manifest["files"]], 16)
    return LogitCache(logits, names, mask=mask, identity=identity, folder=folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest whose shape is right; whether it tells the truth is checked by who uses it."""
    path = folder / MANIFEST
    if not path.is_file():
        state = "an unfinished cache" if any(folder.glob(ARRAYS)) else "none"
        raise CacheError(f"expected a logit cache in {folder}, found {state}; build it with rlkd cache")
    manifest = parse_object(path.read_bytes())
    version = None if manifest is None else manifest.get("format_version")
    if isinstance(version, int) and version not in (FORMAT_VERSION, GAPPED_VERSION):
        raise CacheError(
            f"the cache {folder} has format {version}, this rlkd reads {FORMAT_VERSION} and {GAPPED_VERSION}; build it "
            "again"
        )
    if manifest is None or version is None or not _is_manifest(manifest):
        raise CacheError(f"{path} is damaged or no cache manifest; build the cache again with --overwrite")
    entries = manifest["teachers"]
    named = [entry["file"] for entry in entries] + ([manifest["answered"]] if has_gaps(manifest) else [])
    if not entries or any(Path(name).name != name for name in named):
        raise CacheError(f"{path} names no teachers or files outside its folder; it is not opened")
    return manifest


def has_gaps(manifest: Mapping[str, Any]) -> bool:
    """Whether a cache tells who answered about what."""
    return bool(manifest["format_version"] == GAPPED_VERSION)


_MANIFEST_TYPES = {"task": str, "data": str, "labels": list, "teachers": list, "files": dict, "affinity": bool}


def _is_manifest(content: Mapping[str, Any]) -> bool:
    types = {**_MANIFEST_TYPES, **({"answered": str} if has_gaps(content) else {})}
    return all(isinstance(content.get(key), kind) for key, kind in types.items()) and all(
        map(_is_entry, content["teachers"])
    )


def _is_entry(entry: Any) -> bool:
    """Whether one teacher of a manifest has names, and both or neither of knows and knows_by."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "identity", "file")):
        return False
    if entry.get("knows_by") is None:
        return entry.get("knows") is None
    return entry["knows_by"] in ("class", "domain") and isinstance(entry.get("knows"), list)


def check_header(manifest: dict[str, Any], wanted: dict[str, Any], teachers: Sequence["Teacher"], folder: Path) -> None:
    """Refuse a cache that is not the one asked for, naming the first thing that differs."""
    _check_data(manifest, wanted["task"], wanted["data"], wanted["labels"], folder, OTHER_FOLDER)
    if has_gaps(manifest):
        raise CacheError(
            f"{folder} holds a cache with gaps, asked for was one in which everybody answers about everything; choose "
            "another folder"
        )
    for key in ("max_length", "dtype", "embedder", "embedder_identity", "embeddings"):
        if manifest.get(key) != wanted.get(key):
            raise CacheError(
                f"{folder} holds a cache with {key} {manifest.get(key)!r:.60}, asked for was {wanted.get(key)!r:.60}; "
                "choose another folder, or pass --overwrite to build it again"
            )
    _check_teachers(manifest, teachers, folder)
    if manifest["teachers"] != wanted["teachers"]:
        raise CacheError(
            f"{folder} holds a cache of the same teachers under other names, or that know other things; choose another "
            "folder, or pass --overwrite to write it again"
        )


def _check_data(
    manifest: Mapping[str, Any], task: str, data: str, labels: Sequence[str], folder: Path, remedy: str
) -> None:
    """Refuse a cache of other rows or classes, before anything else that differs."""
    if manifest["data"] != data or manifest["labels"] != list(labels):
        raise CacheError(
            f"the cache {folder} was made for other data: expected the data of task {task!r} ({data[:12]}), it has "
            f"{manifest['task']!r} ({manifest['data'][:12]}); {remedy}"
        )


def _check_teachers(manifest: dict[str, Any], teachers: Sequence["Teacher"], folder: Path) -> None:
    have = [entry["identity"] for entry in manifest["teachers"]]
    want = [teacher.identity for teacher in teachers]
    if have == want:
        return
    names = ", ".join(entry["name"] for entry in manifest["teachers"])
    asked = ", ".join(teacher.name for teacher in teachers)
    if names == asked:
        changed = [teacher for teacher, identity in zip(teachers, have, strict=True) if teacher.identity != identity]
        raise CacheError(
            f"the cache {folder} was made with another {changed[0].name!r}: expected weights, configuration, tokenizer "
            f"and code as they were, got a change in {len(changed)} of {len(have)} teachers, or a cache of an earlier "
            f"release; {_remedy(changed)}"
        )
    what = "the same teachers in another order" if sorted(have) == sorted(want) else "other teachers"
    raise CacheError(
        f"the cache {folder} was made with {what}: it has {names}, asked for were {asked}; name them in the cache's "
        "order, or build it again with --overwrite"
    )


def _remedy(changed: Sequence["Teacher"]) -> str:
    unnamed = [teacher.name for teacher in changed if teacher.identity.startswith(ONCE)]
    if unnamed:
        return (
            f"give {unnamed[0]!r} an identity (a name and a version), as rlkd.models.CallableTeacher takes one, or "
            "build the cache again with --overwrite"
        )
    return "build it again with --overwrite"


def _read_mask(folder: Path, manifest: dict[str, Any], shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Who answered about what; None of a cache without gaps."""
    if not has_gaps(manifest):
        return None
    return np.array(_open_array(folder, manifest, manifest["answered"], shape, ("bool",)))


def _read_logits(
    folder: Path, manifest: dict[str, Any], shape: tuple[int | None, int | None]
) -> tuple[Logits, list[str]]:
    """The verified logits of all teachers, and the teachers' names."""
    files, names = ([entry[key] for entry in manifest["teachers"]] for key in ("file", "name"))
    paths, hashes = [folder / file for file in files], [str(manifest["files"].get(file)) for file in files]
    large = is_large(paths)
    found: Logits | None = open_stack(folder, hashes) if large else None
    if found is not None:  # was made of the files of these hashes
        return found, names
    arrays = [_open_array(folder, manifest, file, shape) for file in files]
    if len({len(array) for array in arrays}) != 1:
        raise CacheError(f"the cache {folder} is damaged: its arrays have rows of different numbers; build it again")
    return stacked_on_disk(paths, hashes) if large else stacked_in_memory(paths), names


def _open_array(
    folder: Path,
    manifest: dict[str, Any],
    name: str,
    shape: tuple[int | None, int | None],
    dtypes: Sequence[str] = DTYPES,
) -> NDArray[Any]:
    path = folder / name
    again = ASK_AGAIN if has_gaps(manifest) else "build it again with --overwrite"
    if not path.is_file():
        raise CacheError(f"the cache {folder} is partial: {name} is missing; {again}")
    if file_hash(path) != manifest["files"].get(name):
        raise CacheError(f"the cache {folder} is damaged: {name} is not what was written; {again}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise CacheError(f"{path} must be an array without pickle; build the cache again with --overwrite") from error
    fits = array.ndim == 2 and all(wanted in (None, got) for wanted, got in zip(shape, array.shape, strict=True))
    if not fits or array.dtype.name not in dtypes:
        kind = "floats" if dtypes is DTYPES else dtypes[0]
        raise CacheError(
            f"{path} must hold {kind} of shape {shape}, it has {array.dtype} {array.shape}; build it again"
        )
    return array  # type: ignore[no-any-return]


def _read_knowledge(manifest: dict[str, Any], task: Task) -> Knowledge | None:
    kinds = {entry.get("knows_by") for entry in manifest["teachers"]}
    if len(kinds) != 1 or not kinds <= {"class", "domain"}:
        return None
    by = kinds.pop()
    groups = task.label_names if by == "class" else task.domain_names
    matrix = [[group in entry["knows"] for group in groups] for entry in manifest["teachers"]]
    return Knowledge(by=by, groups=tuple(groups), matrix=np.array(matrix, dtype=bool))
