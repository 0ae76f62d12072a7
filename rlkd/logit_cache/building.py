"""Build a cache: ask every teacher about every instance once, and lose nothing when interrupted."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from tqdm.auto import tqdm

from rlkd.data.task import Task
from rlkd.errors import CacheError, ConfigError, TeacherError
from rlkd.logit_cache.asking import POLL_SECONDS, Answers
from rlkd.logit_cache.checks import tell_of_teachers
from rlkd.logit_cache.live import joint_knowledge, known_teachers
from rlkd.logit_cache.reading import (
    AFFINITY,
    ARRAYS,
    EMBEDDINGS,
    FORMAT_VERSION,
    KEPT,
    MANIFEST,
    check_header,
    load_cache,
    read_manifest,
)
from rlkd.logit_cache.sources import LogitCache
from rlkd.logit_cache.stacks import LOCK, STACKS
from rlkd.logit_cache.writing import finish, header
from rlkd.prototypes import cosines, group_means, unit_rows
from rlkd.records import LOCKS_FOLDER, file_hash, held, rank_on_machine, write_array_atomic
from rlkd.settings import CacheCommand, CacheSettings
from rlkd.settings.knobs import check
from rlkd.types import ONCE, Knowledge

if TYPE_CHECKING:  # a deployed policy then loads neither transformers nor scikit-learn
    from rlkd.models.teachers import Teacher

log = logging.getLogger(__name__)

Embedder = Callable[[Sequence[str]], NDArray[np.floating[Any]]]
"""Texts to embeddings (N, D)."""


def build_cache(
    teachers: Any,
    task: Task,
    directory: str | Path,
    *,
    batch_size: int = CacheSettings.batch_size,
    max_length: int = CacheSettings.max_length,
    dtype: str = CacheSettings.dtype,
    embedder: Embedder | None = None,
    keep_embeddings: bool = False,
    overwrite: bool = CacheCommand.overwrite,
    progress: bool = False,
) -> LogitCache:
    """Ask every teacher about every instance once, and keep the answers on disk.

    A finished cache of the same teachers and data is opened, an interrupted one continued. Of teachers that are near
    chance on one split alone, have re-ordered columns or are the same, a warning is logged.

    Args:
        teachers: One teacher or K >= 1: anything that :func:`rlkd.models.teacher_files.load_teachers` takes, such as
            paths, ``(model, tokenizer)``, fitted scikit-learn classifiers and functions from texts to logits.
        task: The task; all splits are cached.
        directory: Where the cache lies or will lie.
        batch_size: Instances a forward pass.
        max_length: Tokens a text is cut to.
        dtype: ``"float32"`` or ``"float16"`` on disk.
        embedder: Texts to embeddings, for the affinity feature.
        keep_embeddings: Keep the embeddings themselves too, for weightings that read them (RL-KD's state).
        overwrite: Replace a cache of other data or teachers.
        progress: Show a progress bar.

    Raises:
        CacheError: If the folder holds a cache of something else.
        TeacherError: If there is no teacher, or one gives NaN or infinite logits.

    Processes of a launcher that call this all ask the teachers, each about other rows; the first of a machine writes
    the cache, which is that of one process to the last bit, at the same number of threads.
    """
    if isinstance(teachers, list | tuple | Mapping) and not teachers:
        raise TeacherError("a cache needs at least one teacher, got none (K = 0); pass the folders of your teachers")
    check(CacheSettings, batch_size=batch_size, max_length=max_length, dtype=dtype)
    if embedder is not None:
        _texts(task)
    elif keep_embeddings:
        raise ConfigError("keep_embeddings needs an embedder, got none; pass one, or leave the embeddings out")
    teachers, folder = known_teachers(teachers, task), Path(directory)
    wanted = _header(teachers, task, dtype, max_length, embedder, keep_embeddings)
    if rank_on_machine() > 0:
        return _built_by_the_first(teachers, task, folder, wanted, batch_size, overwrite=overwrite)
    with _build_folder(folder):
        if (folder / MANIFEST).exists() and not overwrite:
            check_header(read_manifest(folder), wanted, teachers, folder)
        else:
            files = _write_arrays(teachers, task, folder, wanted, batch_size, embedder, progress)
            finish(folder, wanted, files)
            shutil.rmtree(folder / LOCKS_FOLDER, ignore_errors=True)
    cache = load_cache(folder, task, teachers=teachers)
    tell_of_teachers(cache, task)
    return cache


def _built_by_the_first(
    teachers: Sequence["Teacher"], task: Task, folder: Path, wanted: dict[str, Any], batch_size: int, *, overwrite: bool
) -> LogitCache:
    """Ask about rows that nobody has asked about, and wait until the first process has made a cache of the answers."""
    unknown = [teacher.name for teacher in teachers if teacher.identity.startswith(ONCE)]
    if unknown:
        raise TeacherError(
            f"expected teachers that are the same in all processes, got {unknown[0]!r}, whose code cannot be told "
            "apart from another's; pass its identity, or build the cache with one process"
        )
    if folder.is_dir():
        _refuse_foreign_files(folder)
    if (folder / MANIFEST).exists() and not overwrite:
        check_header(read_manifest(folder), wanted, teachers, folder)
    for teacher, entry in zip(teachers, wanted["teachers"], strict=True):
        if not _is_whole(folder / entry["file"], _shape(task), _written_files(folder).get(entry["file"])):
            _answers(teacher, task, folder / entry["file"], wanted, batch_size).ask_some()
    while True:
        with suppress(CacheError):
            check_header(read_manifest(folder), wanted, teachers, folder)
            return load_cache(folder, task, teachers=teachers)
        time.sleep(POLL_SECONDS)


@contextmanager
def _build_folder(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock; a new folder that is still empty after a failure is removed again."""
    fresh = not folder.exists()
    if folder.is_dir():
        _refuse_foreign_files(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"expected to make the folder {folder}, got {error.strerror!r}; choose another") from error
    with held(folder / LOCK):
        try:
            yield
        except BaseException:
            if fresh and {path.name for path in folder.iterdir()} <= {LOCK, LOCKS_FOLDER}:
                (folder / LOCK).unlink(missing_ok=True)
                shutil.rmtree(folder / LOCKS_FOLDER, ignore_errors=True)
                with suppress(OSError):
                    folder.rmdir()
            raise


def _refuse_foreign_files(folder: Path) -> None:
    if _written_files(folder):
        return
    ours = (path.name for pattern in (ARRAYS, STACKS, KEPT) for path in folder.glob(pattern))
    known = {LOCK, LOCKS_FOLDER, MANIFEST, AFFINITY, EMBEDDINGS, *ours}
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in known and path.suffix != ".tmp")
    if foreign:
        raise CacheError(
            f"expected an empty folder or a logit cache in {folder}, found {', '.join(foreign[:3])}; choose another"
        )


def _header(
    teachers: Sequence["Teacher"],
    task: Task,
    dtype: str,
    max_length: int,
    embedder: Embedder | None,
    keep_embeddings: bool,
) -> dict[str, Any]:
    keys = [repr((task.fingerprint, teacher.identity, max_length, dtype)).encode() for teacher in teachers]
    files = [ARRAYS.replace("*", xxhash.xxh3_64_hexdigest(key)) for key in keys]
    told = None if embedder is None else getattr(embedder, "name", type(embedder).__name__)
    made = header(FORMAT_VERSION, task, teachers, files, dtype=dtype, max_length=max_length, embedder=told)
    if keep_embeddings:  # absent from the header of caches without: those of earlier releases stay valid
        made["embeddings"] = True
    if embedder is not None:
        made["embedder_identity"] = _embedder_identity(embedder)
    return made


def _embedder_identity(embedder: Embedder) -> str:
    """Its own, or a hash of its code and of what that holds."""
    from rlkd.models.identity import estimator_identity  # loads transformers: only where a cache is built

    return getattr(embedder, "identity", None) or estimator_identity(embedder, ())


def _write_arrays(
    teachers: Sequence["Teacher"],
    task: Task,
    folder: Path,
    wanted: dict[str, Any],
    batch_size: int,
    embedder: Embedder | None,
    progress: bool,
) -> dict[str, str]:
    written, files = _written_files(folder), {}
    for teacher, entry in tqdm(
        list(zip(teachers, wanted["teachers"], strict=True)), desc="teachers", disable=not progress, unit="teacher"
    ):
        path = folder / entry["file"]
        if _is_whole(path, _shape(task), written.get(path.name)):
            log.info("teacher %s is in the cache already", teacher.name)
        else:
            _answers(teacher, task, path, wanted, batch_size).write()
        files[entry["file"]] = file_hash(path)
    if embedder is not None:
        embeddings = embedder(_texts(task))
        affinity = compute_affinity(embeddings, task, joint_knowledge(teachers, task), len(teachers))
        write_array_atomic(folder / AFFINITY, affinity)
        files[AFFINITY] = file_hash(folder / AFFINITY)
        if wanted.get("embeddings"):
            write_array_atomic(folder / EMBEDDINGS, np.asarray(embeddings, dtype=wanted["dtype"]))
            files[EMBEDDINGS] = file_hash(folder / EMBEDDINGS)
    return files


def _answers(teacher: "Teacher", task: Task, path: Path, wanted: dict[str, Any], batch_size: int) -> Answers:
    limits = {"dtype": wanted["dtype"], "max_length": wanted["max_length"]}
    return Answers(teacher, task, path, batch_size=batch_size, **limits)


def _shape(task: Task) -> tuple[int, int]:
    return len(task.table), task.num_classes


def _written_files(folder: Path) -> Mapping[str, str]:
    """Hashes of the files of the cache that is there, if there is one that can be read."""
    try:
        files: dict[str, str] = read_manifest(folder)["files"]
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
    rows = task.labelled_ids("train")
    members = np.zeros((num_teachers, len(task.table)), dtype=bool)
    for k in range(num_teachers):
        known = rows
        if knowledge is not None:
            groups = task.table.labels if knowledge.by == "class" else task.table.domains
            known = rows[knowledge.matrix[k][groups[rows]]]
        members[k, known] = True
    near = cosines(embeddings, group_means(unit_rows(embeddings), members))
    return np.asarray(near - near.mean(1, keepdims=True), dtype=np.float32)
