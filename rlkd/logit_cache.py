"""The teachers' logits, computed once: one array per teacher keyed by instance id, and a manifest written last.

A folder without a manifest that verifies is not a cache. Every array is written to a temporary name and renamed, so
an interrupted build is continued with the teachers that are finished, and correctness does not rest on the lock.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from rlkd.data.task import Task
from rlkd.errors import CacheError, ConfigError, TeacherError
from rlkd.records import file_hash, parse_object, write_array_atomic, write_json_atomic
from rlkd.types import Knowledge, LogitSource, State

if TYPE_CHECKING:  # a deployed policy then loads neither transformers nor scikit-learn
    from rlkd.models.teachers import Teacher

FORMAT_VERSION = 1
DTYPES = ("float32", "float16")
MANIFEST = "manifest.json"
AFFINITY = "affinity.npy"
ARRAYS = "logits-*.npy"
RAM_LIMIT = 2**30
"""Caches up to this many bytes (as float32) are held in memory; larger ones stay memory-mapped."""

log = logging.getLogger(__name__)

Embedder = Callable[[Sequence[str]], NDArray[np.floating[Any]]]
"""Texts to embeddings (N, D)."""


def read_state(task: Task, source: LogitSource, ids: Tensor) -> State:
    """The state of instances as far as task and teachers tell it; the student's part is added by who has a student.

    Args:
        task: Gives labels and domains.
        source: Gives teacher logits and affinity.
        ids: Instance ids, shape (B,).
    """
    rows = ids.numpy()
    return State(
        teacher_logits=source.rows(ids),
        labels=torch.from_numpy(task.table.labels[rows]),
        domains=torch.from_numpy(task.table.domains[rows]) if task.domain_names else None,
        ids=ids,
        affinity=source.affinity_rows(ids),
    )


class LogitCache:
    """Teacher logits of every instance of a task, read from disk; a :class:`~rlkd.types.LogitSource`."""

    def __init__(
        self,
        arrays: Sequence[NDArray[np.floating[Any]]],
        teacher_names: Sequence[str],
        *,
        knowledge: Knowledge | None = None,
        affinity: NDArray[np.float32] | None = None,
        identity: str = "",
    ) -> None:
        """Wrap arrays.

        Args:
            arrays: K arrays of shape (N, C), in memory or memory-mapped.
            teacher_names: K names.
            knowledge: Who was trained on what.
            affinity: Shape (N, K).
            identity: Changes with any byte of the cached files, and with the order of the teachers.
        """
        self.identity = identity
        self.teacher_names = tuple(teacher_names)
        self.knowledge = knowledge
        self._arrays = [np.asarray(array) for array in arrays]  # np.memmap's own indexing takes twice the time
        self._affinity = None if affinity is None else torch.from_numpy(np.array(affinity, dtype=np.float32))
        rows, classes = arrays[0].shape
        self._stacked: Tensor | None = None
        if rows * classes * len(arrays) * 4 <= RAM_LIMIT:
            self._stacked = torch.from_numpy(np.stack([np.asarray(a, dtype=np.float32) for a in arrays], axis=1))

    def __len__(self) -> int:
        return len(self._arrays[0])

    @property
    def has_affinity(self) -> bool:
        """Whether affinities were computed when the cache was built."""
        return self._affinity is not None

    def rows(self, ids: Tensor) -> Tensor:
        """Logits of the instances ``ids`` (B,), float32, shape (B, K, C)."""
        if self._stacked is not None:
            return self._stacked.index_select(0, ids)
        index, classes = ids.numpy(), self._arrays[0].shape[1]
        logits = np.empty((len(index), len(self._arrays), classes), dtype=np.result_type(*self._arrays))
        for k, array in enumerate(self._arrays):
            logits[:, k] = array.take(index, axis=0)
        return torch.from_numpy(logits).float()

    def affinity_rows(self, ids: Tensor) -> Tensor | None:
        """Affinities of the instances ``ids`` (B,), shape (B, K), or None."""
        return None if self._affinity is None else self._affinity.index_select(0, ids)

    def head(self, rows: int) -> "LogitCache":
        """The first ``rows`` instances only: with :meth:`Task.training_view` it keeps test logits out of reach."""
        return LogitCache(
            [array[:rows] for array in self._arrays],
            self.teacher_names,
            knowledge=self.knowledge,
            affinity=None if self._affinity is None else self._affinity[:rows].numpy(),
        )


class LiveTeachers:
    """Teachers asked anew for every batch; a :class:`~rlkd.types.LogitSource` for inputs that change."""

    has_affinity = False

    def __init__(self, teachers: Sequence["Teacher"], task: Task, *, max_length: int = 128) -> None:
        """Hold the teachers and the task whose instances they are asked about."""
        self.teacher_names = tuple(teacher.name for teacher in teachers)
        self.knowledge = joint_knowledge(teachers, task)
        self._teachers, self._task, self._max_length = list(teachers), task, max_length

    def rows(self, ids: Tensor) -> Tensor:
        """Logits of the instances ``ids`` (B,), float32, shape (B, K, C)."""
        index = ids.numpy()
        return torch.stack(
            [t.logits(self._task, index, batch_size=len(index), max_length=self._max_length) for t in self._teachers],
            dim=1,
        )

    def affinity_rows(self, ids: Tensor) -> None:
        """None: affinities are computed when a cache is built."""
        return

    def head(self, rows: int) -> "LiveTeachers":
        """The same teachers over the training view of the task."""
        view = self._task if len(self._task.table) == rows else self._task.training_view()
        return LiveTeachers(self._teachers, view, max_length=self._max_length)


def joint_knowledge(teachers: Sequence["Teacher"], task: Task) -> Knowledge | None:
    """Who knows which class or domain, or None unless every teacher says so in the same terms."""
    kinds = {teacher.knows_by for teacher in teachers}
    if len(kinds) != 1 or None in kinds:
        return None
    by = kinds.pop()
    groups = task.label_names if by == "class" else task.domain_names
    matrix = np.array([[group in (teacher.knows or ()) for group in groups] for teacher in teachers], dtype=bool)
    return Knowledge(by=by, groups=tuple(groups), matrix=matrix)  # type: ignore[arg-type]


def build_cache(
    teachers: Sequence["Teacher"],
    task: Task,
    directory: str | Path,
    *,
    batch_size: int = 64,
    max_length: int = 128,
    dtype: str = "float32",
    embedder: Embedder | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> LogitCache:
    """Ask every teacher about every instance once, and keep the answers on disk.

    A finished cache of the same teachers and data is opened, an interrupted one continued.

    Args:
        teachers: K >= 1 teachers.
        task: The task; all splits are cached.
        directory: Where the cache lies or will lie.
        batch_size: Instances a forward pass.
        max_length: Tokens a text is cut to.
        dtype: ``"float32"`` or ``"float16"`` on disk.
        embedder: Texts to embeddings, for the affinity feature.
        overwrite: Replace a cache of other data or teachers.
        progress: Show a progress bar.

    Raises:
        CacheError: If the folder holds a cache of something else.
        TeacherError: If there is no teacher, or one gives NaN or infinite logits.
    """
    if not teachers:
        raise TeacherError("a cache needs at least one teacher, got none (K = 0); pass the folders of your teachers")
    if dtype not in DTYPES:
        raise CacheError(f"cache dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if batch_size < 1 or max_length < 1:
        raise ConfigError(f"a cache needs batch_size >= 1 and max_length >= 1, got {batch_size} and {max_length}")
    if embedder is not None:
        _texts(task)
    folder = Path(directory)
    wanted = _header(teachers, task, dtype, max_length, embedder)
    with _build_folder(folder):
        if (folder / MANIFEST).exists() and not overwrite:
            _check_header(_read_manifest(folder), wanted, teachers, folder)
        else:
            files = _write_arrays(teachers, task, folder, wanted, batch_size, embedder, progress)
            write_json_atomic(folder / MANIFEST, wanted | {"files": files})
            for stale in set(folder.glob(ARRAYS)) - {folder / name for name in files}:
                stale.unlink()
    return load_cache(folder, task, teachers=teachers)


@contextmanager
def _build_folder(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock; a new folder that is still empty after a failure is removed again."""
    lock, fresh = FileLock(folder / ".lock"), not folder.exists()
    if folder.is_dir():
        _refuse_foreign_files(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"expected to make the folder {folder}, got {error.strerror!r}; choose another") from error
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        log.warning("building %s without a lock: %s", folder, error)
    try:
        yield
    except BaseException:
        if fresh and {path.name for path in folder.iterdir()} <= {".lock"}:
            (folder / ".lock").unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        raise
    finally:
        lock.release()


def _refuse_foreign_files(folder: Path) -> None:
    if _written_files(folder):
        return
    known = {".lock", MANIFEST, AFFINITY, *(path.name for path in folder.glob(ARRAYS))}
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in known and path.suffix != ".tmp")
    if foreign:
        raise CacheError(
            f"expected an empty folder or a logit cache in {folder}, found {', '.join(foreign[:3])}; choose another"
        )


def load_cache(directory: str | Path, task: Task, *, teachers: Sequence["Teacher"] | None = None) -> LogitCache:
    """Open a cache and verify it.

    Args:
        directory: Of the cache.
        task: The data that it must have been made for.
        teachers: If given, the teachers (and their order) that it must have been made with.

    Raises:
        CacheError: If it is stale, partial, re-ordered or damaged; names what differs.
    """
    folder = Path(directory)
    manifest = _read_manifest(folder)
    if manifest["data"] != task.fingerprint or manifest["labels"] != list(task.label_names):
        raise CacheError(
            f"the cache {folder} was made for other data: expected the data of task {task.name!r} "
            f"({task.fingerprint[:12]}), it has {manifest['task']!r} ({str(manifest['data'])[:12]}); build it again "
            "with --overwrite"
        )
    if teachers is not None:
        _check_teachers(manifest, teachers, folder)
    shape = (len(task.table), task.num_classes)
    arrays = [_open_array(folder, manifest, entry["file"], shape) for entry in manifest["teachers"]]
    affinity = None
    if manifest["affinity"]:
        affinity = np.array(_open_array(folder, manifest, AFFINITY, (len(task.table), len(arrays))))
    names = [entry["name"] for entry in manifest["teachers"]]
    described = json.dumps([manifest["teachers"], manifest["files"]], sort_keys=True)
    identity = xxhash.xxh3_64_hexdigest(described.encode())
    return LogitCache(arrays, names, knowledge=_read_knowledge(manifest, task), affinity=affinity, identity=identity)


def _header(
    teachers: Sequence["Teacher"], task: Task, dtype: str, max_length: int, embedder: Embedder | None
) -> dict[str, Any]:
    """Everything that makes two caches the same; no temperature is in it."""
    entries = []
    for teacher in teachers:
        key = repr((task.fingerprint, teacher.identity, max_length, dtype)).encode()
        entries.append(
            {
                "name": teacher.name,
                "identity": teacher.identity,
                "knows": None if teacher.knows is None else sorted(teacher.knows),
                "knows_by": teacher.knows_by,
                "file": f"logits-{xxhash.xxh3_64_hexdigest(key)}.npy",
            }
        )
    return {
        "format_version": FORMAT_VERSION,
        "task": task.name,
        "data": task.fingerprint,
        "labels": list(task.label_names),
        "dtype": dtype,
        "max_length": max_length,
        "affinity": embedder is not None,
        "embedder": None if embedder is None else getattr(embedder, "name", type(embedder).__name__),
        "teachers": entries,
    }


def _write_arrays(
    teachers: Sequence["Teacher"],
    task: Task,
    folder: Path,
    header: dict[str, Any],
    batch_size: int,
    embedder: Embedder | None,
    progress: bool,
) -> dict[str, str]:
    ids = np.arange(len(task.table))
    shape, written, files = (len(ids), task.num_classes), _written_files(folder), {}
    for teacher, entry in tqdm(
        list(zip(teachers, header["teachers"], strict=True)),
        desc="teachers",
        disable=not progress,
        unit="teacher",
    ):
        path = folder / entry["file"]
        if _is_whole(path, shape, written.get(path.name)):
            log.info("teacher %s is in the cache already", teacher.name)
        else:
            logits = teacher.logits(task, ids, batch_size=batch_size, max_length=header["max_length"]).numpy()
            write_array_atomic(path, _stored(teacher.name, logits, header["dtype"]))
        files[entry["file"]] = file_hash(path)
    if embedder is not None:
        affinity = compute_affinity(embedder(_texts(task)), task, joint_knowledge(teachers, task), len(teachers))
        write_array_atomic(folder / AFFINITY, affinity)
        files[AFFINITY] = file_hash(folder / AFFINITY)
    return files


def _written_files(folder: Path) -> Mapping[str, str]:
    """Hashes of the files of the cache that is there, if there is one that can be read."""
    try:
        files: dict[str, str] = _read_manifest(folder)["files"]
    except CacheError:
        return {}
    return files


def _is_whole(path: Path, shape: tuple[int, int], written: str | None) -> bool:
    """Whether an array may be kept: it is what a manifest says, or an interrupted build finished it."""
    if not path.is_file():
        return False
    if written is not None:
        return file_hash(path) == written
    try:
        return bool(np.load(path, mmap_mode="r", allow_pickle=False).shape == shape)
    except (OSError, ValueError, EOFError):
        return False


def _stored(name: str, logits: NDArray[np.floating[Any]], dtype: str) -> NDArray[np.floating[Any]]:
    """Logits (N, C) as they are written, all finite."""
    with np.errstate(over="ignore"):
        stored = logits.astype(dtype)
    bad = int((~np.isfinite(stored)).any(axis=1).sum())
    if bad:
        overflow = "; they are too large for float16, cache as float32" if np.isfinite(logits).all() else ""
        raise TeacherError(
            f"teacher {name!r} must give finite logits, {bad} of {len(logits)} rows hold NaN or infinity"
            f"{overflow or '; mend the teacher'}"
        )
    return stored


def _texts(task: Task) -> Sequence[str]:
    if task.table.texts is None:
        raise CacheError(f"affinity embeds texts, task {task.name!r} has none; build the cache without an embedder")
    pairs = task.table.text_pairs
    return task.table.texts if pairs is None else [f"{a} {b}" for a, b in zip(task.table.texts, pairs, strict=True)]


def compute_affinity(
    embeddings: NDArray[np.floating[Any]], task: Task, knowledge: Knowledge | None, num_teachers: int
) -> NDArray[np.float32]:
    """Cosine of each instance to the centroid of each teacher's own training rows, centred over teachers.

    Args:
        embeddings: Of all instances, shape (N, D).
        task: Gives the training rows.
        knowledge: Whose groups select each teacher's rows; None: every teacher saw all of them.
        num_teachers: K.

    Returns:
        Shape (N, K), in [-2, 2]; all zero where the teachers saw the same data. A teacher without training rows has
        the cosine 0 to everything.

    Source:
        The prototype score of Meta-KD, Pan et al. 2021, arXiv:2012.01266. Deviation: one centroid per teacher, not
        per class, and centred over teachers.
    """
    if not np.isfinite(embeddings).all():
        raise CacheError("embeddings must be finite, got NaN or infinity; use another embedder")
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
    rows = task.labelled_ids("train")
    centroids = []
    for k in range(num_teachers):
        known = rows
        if knowledge is not None:
            groups = task.table.labels if knowledge.by == "class" else task.table.domains
            known = rows[knowledge.matrix[k][groups[rows]]]
        centroids.append(units[known].mean(0) if len(known) else np.zeros(units.shape[1]))
    directions = np.stack(centroids) / np.linalg.norm(centroids, axis=1, keepdims=True).clip(1e-12)
    cosines = units @ directions.T
    return np.asarray(cosines - cosines.mean(1, keepdims=True), dtype=np.float32)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        state = "an unfinished cache" if any(folder.glob(ARRAYS)) else "none"
        raise CacheError(f"expected a logit cache in {folder}, found {state}; build it with rlkd cache")
    manifest = parse_object(path.read_bytes())
    version = None if manifest is None else manifest.get("format_version")
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise CacheError(f"the cache {folder} has format {version}, this rlkd reads {FORMAT_VERSION}; build it again")
    if manifest is None or version is None or not _is_manifest(manifest):
        raise CacheError(f"{path} is damaged or no cache manifest; build the cache again with --overwrite")
    entries = manifest["teachers"]
    if not entries or any(Path(entry["file"]).name != entry["file"] for entry in entries):
        raise CacheError(f"{path} names no teachers or files outside its folder; it is not opened")
    return manifest


_MANIFEST_TYPES = {"task": str, "data": str, "labels": list, "teachers": list, "files": dict, "affinity": bool}


def _is_manifest(content: Mapping[str, Any]) -> bool:
    return all(isinstance(content.get(key), kind) for key, kind in _MANIFEST_TYPES.items()) and all(
        map(_is_entry, content["teachers"])
    )


def _is_entry(entry: Any) -> bool:
    """Whether one teacher of a manifest has names, and both or neither of knows and knows_by."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "identity", "file")):
        return False
    if entry.get("knows_by") is None:
        return entry.get("knows") is None
    return entry["knows_by"] in ("class", "domain") and isinstance(entry.get("knows"), list)


def _check_header(
    manifest: dict[str, Any], wanted: dict[str, Any], teachers: Sequence["Teacher"], folder: Path
) -> None:
    """Refuse a cache that is not the one asked for, naming the first thing that differs."""
    for key in ("data", "labels", "max_length", "dtype", "embedder"):
        if manifest.get(key) != wanted[key]:
            raise CacheError(
                f"{folder} holds a cache with {key} {manifest.get(key)!r:.60}, asked for was {wanted[key]!r:.60}; "
                "choose another folder, or pass --overwrite to build it again"
            )
    _check_teachers(manifest, teachers, folder)
    if manifest["teachers"] != wanted["teachers"]:
        raise CacheError(
            f"{folder} holds a cache of the same teachers under other names, or that know other things; choose another "
            "folder, or pass --overwrite to write it again"
        )


def _check_teachers(manifest: dict[str, Any], teachers: Sequence["Teacher"], folder: Path) -> None:
    have = [entry["identity"] for entry in manifest["teachers"]]
    want = [teacher.identity for teacher in teachers]
    if have == want:
        return
    names = ", ".join(entry["name"] for entry in manifest["teachers"])
    asked = ", ".join(teacher.name for teacher in teachers)
    what = "the same teachers in another order" if sorted(have) == sorted(want) else "other teachers"
    raise CacheError(
        f"the cache {folder} was made with {what}: it has {names}, asked for were {asked}; name them in the cache's "
        "order, or build it again with --overwrite"
    )


def _open_array(folder: Path, manifest: dict[str, Any], name: str, shape: tuple[int, int]) -> NDArray[np.floating[Any]]:
    path = folder / name
    if not path.is_file():
        raise CacheError(f"the cache {folder} is partial: {name} is missing; build it again with --overwrite")
    if file_hash(path) != manifest["files"].get(name):
        raise CacheError(
            f"the cache {folder} is damaged: {name} is not what was written; build it again with --overwrite"
        )
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise CacheError(f"{path} must be an array without pickle; build the cache again with --overwrite") from error
    if array.shape != shape or array.dtype.name not in DTYPES:
        raise CacheError(
            f"{path} must hold floats of shape {shape}, it has {array.dtype} {array.shape}; build it again"
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
