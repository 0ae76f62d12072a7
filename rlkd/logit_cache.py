"""The teachers' logits, computed once: one array per teacher keyed by instance id, and a manifest written last.

A folder without a manifest that verifies is not a cache. Every array is written to a temporary name and renamed, so
an interrupted build is continued with the teachers that are finished, and correctness does not rest on the lock.
"""

import json
import logging
from collections.abc import Callable, Sequence
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
from rlkd.errors import CacheError, TeacherError
from rlkd.records import file_hash, write_array_atomic, write_json_atomic
from rlkd.types import Knowledge, LogitSource, State

if TYPE_CHECKING:  # a deployed policy then loads neither transformers nor scikit-learn
    from rlkd.models.teachers import Teacher

FORMAT_VERSION = 1
DTYPES = ("float32", "float16")
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
            identity: Changes with any byte of the cached files.
        """
        self.identity = identity
        self.teacher_names = tuple(teacher_names)
        self.knowledge = knowledge
        self._arrays = list(arrays)
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
        index = ids.numpy()
        return torch.from_numpy(np.stack([array[index] for array in self._arrays], axis=1).astype(np.float32))

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
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _header(teachers, task, dtype, max_length, with_affinity=embedder is not None)
    with FileLock(folder / ".lock"):
        manifest = folder / "manifest.json"
        if manifest.exists() and not overwrite:
            _check_header(_read_manifest(folder), wanted, folder)
        else:
            manifest.unlink(missing_ok=True)
            files = _write_arrays(teachers, task, folder, wanted, batch_size, embedder, progress)
            write_json_atomic(manifest, wanted | {"files": files})
    return load_cache(folder, task, teachers=teachers)


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
    shapes = {entry["file"]: (len(task.table), task.num_classes) for entry in manifest["teachers"]}
    arrays = [_open_array(folder, manifest, name, shape) for name, shape in shapes.items()]
    affinity = None
    if manifest["affinity"]:
        affinity = np.array(_open_array(folder, manifest, "affinity.npy", (len(task.table), len(arrays))))
    names = [entry["name"] for entry in manifest["teachers"]]
    identity = xxhash.xxh3_64_hexdigest(json.dumps(manifest["files"], sort_keys=True).encode())
    return LogitCache(arrays, names, knowledge=_read_knowledge(manifest, task), affinity=affinity, identity=identity)


def _header(
    teachers: Sequence["Teacher"], task: Task, dtype: str, max_length: int, *, with_affinity: bool
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
        "affinity": with_affinity,
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
    files = {}
    for teacher, entry in tqdm(
        list(zip(teachers, header["teachers"], strict=True)),
        desc="teachers",
        disable=not progress,
        unit="teacher",
    ):
        path = folder / entry["file"]
        if path.exists():
            log.info("teacher %s is in the cache already", teacher.name)
        else:
            logits = teacher.logits(task, ids, batch_size=batch_size, max_length=header["max_length"]).numpy()
            _check_finite(teacher.name, logits.astype(header["dtype"]))
            write_array_atomic(path, logits.astype(header["dtype"]))
        files[entry["file"]] = file_hash(path)
    if embedder is not None:
        affinity = compute_affinity(embedder(_texts(task)), task, joint_knowledge(teachers, task), len(teachers))
        write_array_atomic(folder / "affinity.npy", affinity)
        files["affinity.npy"] = file_hash(folder / "affinity.npy")
    return files


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
        Shape (N, K), in [-2, 2]; all zero where the teachers saw the same data.

    Source:
        The prototype score of Meta-KD, Pan et al. 2021, arXiv:2012.01266. Deviation: one centroid per teacher, not
        per class, and centred over teachers.
    """
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
    rows = task.labelled_ids("train")
    centroids = []
    for k in range(num_teachers):
        known = rows
        if knowledge is not None:
            groups = task.table.labels if knowledge.by == "class" else task.table.domains
            known = rows[knowledge.matrix[k][groups[rows]]]
        centroids.append(units[known].mean(0))
    directions = np.stack(centroids) / np.linalg.norm(centroids, axis=1, keepdims=True).clip(1e-12)
    cosines = units @ directions.T
    return np.asarray(cosines - cosines.mean(1, keepdims=True), dtype=np.float32)


def _check_finite(name: str, logits: NDArray[np.floating[Any]]) -> None:
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad:
        raise TeacherError(
            f"teacher {name!r} must give finite logits, {bad} of {len(logits)} rows hold NaN or infinity; mend the "
            "teacher, or cache as float32 if float16 overflowed"
        )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        state = "an unfinished cache" if any(folder.glob("logits-*.npy")) else "no cache"
        raise CacheError(f"expected a logit cache in {folder}, found {state}; run rlkd cache with this folder")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
        entries = [(str(e["name"]), str(e["identity"]), str(e["file"])) for e in manifest["teachers"]]
        _ = manifest["data"], manifest["labels"], manifest["files"], manifest["affinity"], manifest["task"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CacheError(f"{path} is damaged or no cache manifest ({error}); build the cache again") from error
    if version != FORMAT_VERSION:
        raise CacheError(f"the cache {folder} has format {version}, this rlkd reads {FORMAT_VERSION}; build it again")
    if not entries or any(Path(file).name != file for *_, file in entries):
        raise CacheError(f"{path} names no teachers or files outside its folder; it is not opened")
    return manifest  # type: ignore[no-any-return]


def _check_header(manifest: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    differing = [key for key in wanted if manifest.get(key) != wanted[key]]
    if differing:
        raise CacheError(
            f"{folder} holds another cache: {', '.join(differing)} differ from what was asked for; choose another "
            "folder, or pass --overwrite to build it again"
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
        raise CacheError(f"the cache {folder} is partial: {name} is missing; build it again")
    if file_hash(path) != manifest["files"].get(name):
        raise CacheError(
            f"the cache {folder} is damaged: {name} is not what was written; build it again with --overwrite"
        )
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape != shape or array.dtype.name not in DTYPES:
        raise CacheError(
            f"{path} must hold floats of shape {shape}, it has {array.dtype} {array.shape}; build it again"
        )
    return array  # type: ignore[no-any-return]


def _read_knowledge(manifest: dict[str, Any], task: Task) -> Knowledge | None:
    kinds = {entry["knows_by"] for entry in manifest["teachers"]}
    if len(kinds) != 1 or not kinds <= {"class", "domain"}:
        return None
    by = kinds.pop()
    groups = task.label_names if by == "class" else task.domain_names
    matrix = [[group in entry["knows"] for group in groups] for entry in manifest["teachers"]]
    return Knowledge(by=by, groups=tuple(groups), matrix=np.array(matrix, dtype=bool))
