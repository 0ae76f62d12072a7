"""Train teachers for a task, all alike or each a specialist for about half of its classes or domains.

Everything a run writes for one teacher lies in its own directory and ``teacher.json`` is written last. A run
that was interrupted is started again with the same arguments: finished teachers are skipped, the one in
work continues from its last epoch.
"""

import json
import re
import shutil
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from rlkd.data.batching import Inputs, LengthBucketSampler, encode_inputs
from rlkd.data.task import Task
from rlkd.errors import ConfigError, OutputDirectoryError, TaskError, TeacherError
from rlkd.models.students import (
    PREFIX,
    STUDENTS,
    first_line,
    forward_inputs,
    load_student,
    quiet_transformers,
    task_texts,
    train_tokenizer,
)
from rlkd.models.teachers import (
    HfTeacher,
    LabelledTeacher,
    SklearnTeacher,
    TeacherInfo,
    joined_inputs,
    read_info,
    write_hf,
    write_info,
    write_sklearn,
)

Specialize = Literal["class", "domain"]

TFIDF = "tfidf"
FROM_SCRATCH_RATE = 2e-3
FINE_TUNING_RATE = 5e-5
_WARMUP_SHARE = 0.1
_CHECKPOINT_FILES = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
)


@dataclass(frozen=True)
class _Plan:
    """All that decides one teacher's weights."""

    kind: str
    known: tuple[str, ...] | None
    knows_by: Specialize | None
    max_length: int
    epochs: float
    learning_rate: float
    batch_size: int
    seed: int
    num_layers: int | None

    def fingerprint(self, task: Task) -> str:
        described = json.dumps([task.fingerprint, asdict(self)])
        return xxhash.xxh3_64_hexdigest(described.encode())


def train_teachers(
    task: Task,
    output_dir: str | PathLike[str],
    *,
    kinds: Sequence[str],
    specialize: Specialize | None = None,
    max_length: int = 128,
    epochs: float = 3,
    learning_rate: float | None = None,
    batch_size: int = 32,
    seed: int = 0,
    num_layers: int | None = None,
    progress: bool = False,
    device: str | None = None,
    variant: int = 0,
) -> list[Path]:
    """Train one teacher per kind on the labelled rows of the training split.

    Networks are trained by ``transformers.Trainer``, which seeds the global random generators.

    Args:
        task: The task; its test split is never read.
        output_dir: One directory per teacher is made here.
        kinds: ``"tfidf"`` (TF-IDF with logistic regression; logistic regression alone for vectors), names of
            ``STUDENTS``, hub ids or paths of pretrained encoders.
        specialize: Train every teacher only on its own classes or domains (:func:`specialist_groups`).
            None: on all.
        max_length: Longest input of networks, in tokens.
        epochs: Passes of networks over their rows.
        learning_rate: Peak rate of networks. None: 2e-3 from scratch, 5e-5 pretrained.
        batch_size: Rows per step of networks.
        seed: Teacher i is trained with ``seed + i``.
        num_layers: Keep only the first layers of pretrained encoders.
        progress: Show the trainer's progress bar.
        device: ``"cpu"`` keeps networks off the GPU. None: the GPU where there is one.
        variant: Another number deals other classes or domains to the teachers.

    Returns:
        The teachers' directories, in the order of ``kinds``; :func:`load_teachers` reads them.

    Raises:
        ConfigError: The settings do not fit the task.
        OutputDirectoryError: A directory holds a teacher made with other settings.
        TaskError: The task has no labelled training rows.
        TeacherError: A specialist's rows are too few to learn from.
    """
    if not kinds:
        raise ConfigError("expected at least one kind of teacher, came none; name for example 'tfidf'")
    if len(task.labelled_ids("train")) == 0:
        raise TaskError(f"task {task.name!r} has no labelled training rows to train teachers on; add labels")
    known = _known_names(task, specialize, len(kinds), variant)
    tokenizer = _shared_tokenizer(task, kinds)
    paths = []
    for index, kind in enumerate(kinds):
        plan = _Plan(
            kind=kind,
            known=known[index],
            knows_by=specialize,
            max_length=max_length,
            epochs=epochs,
            learning_rate=learning_rate or (FROM_SCRATCH_RATE if kind in STUDENTS else FINE_TUNING_RATE),
            batch_size=batch_size,
            seed=seed + index,
            num_layers=None if kind in STUDENTS or kind == TFIDF else num_layers,
        )
        path = Path(output_dir) / f"{_slug(kind)}-{index}"
        own = tokenizer if kind.startswith(PREFIX) else None
        _train_one(task, path, plan, own, progress=progress, device=device)
        paths.append(path)
    return paths


def specialist_groups(
    num_groups: int, num_teachers: int, *, variant: int = 0, minimum: int = 1
) -> list[list[int]]:
    """Deal groups (classes or domains) to teachers, each about half of them.

    Group g is known by teachers g, g + 1, ..., modulo K: by K // 2 of them, and for odd K and odd g by one
    more. So with three teachers group g is known by teacher g % 3, every second one by the next too. Where
    there are too few groups for that (two teachers would be the same, or know too little), teachers get the
    subsets of about half of the groups that keep all groups known equally often.

    Args:
        num_groups: Number of groups G.
        num_teachers: Number of teachers K.
        variant: 0 deals the groups in order, another number in an order drawn from it.
        minimum: Fewest groups that a teacher may know.

    Returns:
        K sorted lists of group indices; all different, none empty, together all. One teacher knows all.

    Raises:
        ConfigError: There are not so many different sets.
    """
    if num_teachers == 1:
        return [list(range(num_groups))]
    dealt = _dealt_in_turn(num_groups, num_teachers)
    if not _is_valid(dealt, num_groups, minimum):
        dealt = _dealt_evenly(num_groups, num_teachers, minimum)
    if not _is_valid(dealt, num_groups, minimum) or len(dealt) != num_teachers:
        raise ConfigError(
            f"expected enough groups for {num_teachers} different specialists that know {minimum} or more "
            f"each, came {num_groups}; train fewer teachers or do not specialize"
        )
    order = np.random.default_rng(variant).permutation(num_groups) if variant else np.arange(num_groups)
    return [sorted(int(order[group]) for group in groups) for groups in dealt]


def _dealt_in_turn(num_groups: int, num_teachers: int) -> list[tuple[int, ...]]:
    dealt: list[list[int]] = [[] for _ in range(num_teachers)]
    for group in range(num_groups):
        width = num_teachers // 2 + (num_teachers % 2 and group % 2)
        for step in range(width):
            dealt[(group + step) % num_teachers].append(group)
    return [tuple(groups) for groups in dealt]


def _dealt_evenly(num_groups: int, num_teachers: int, minimum: int) -> list[tuple[int, ...]]:
    # Only few groups come here, so all their subsets can be listed.
    half = max(minimum, (num_groups + 1) // 2)
    sizes = range(max(minimum, 1), num_groups + 1)
    free = [subset for size in sizes for subset in combinations(range(num_groups), size)]
    counts = [0] * num_groups
    dealt: list[tuple[int, ...]] = []
    while free and len(dealt) < num_teachers:
        best = min(free, key=lambda s: (abs(len(s) - half), sum(counts[g] for g in s), s))
        free.remove(best)
        dealt.append(best)
        for group in best:
            counts[group] += 1
    return dealt


def _is_valid(dealt: Sequence[tuple[int, ...]], num_groups: int, minimum: int) -> bool:
    distinct = len(set(dealt)) == len(dealt)
    complete = {group for groups in dealt for group in groups} == set(range(num_groups))
    return distinct and complete and all(len(groups) >= max(minimum, 1) for groups in dealt)


def _known_names(
    task: Task, specialize: Specialize | None, num_teachers: int, variant: int
) -> list[tuple[str, ...] | None]:
    if specialize is None:
        return [None] * num_teachers
    if specialize not in ("class", "domain"):
        raise ConfigError(f"expected specialize 'class', 'domain' or None, came {specialize!r}; choose one")
    names = task.label_names if specialize == "class" else task.domain_names
    if not names:
        raise ConfigError(
            f"specialize 'domain' needs a task with domains, task {task.name!r} has none; "
            "use specialize 'class'"
        )
    # A classifier for a single class learns nothing.
    minimum = 2 if specialize == "class" else 1
    groups = specialist_groups(len(names), num_teachers, variant=variant, minimum=minimum)
    return [tuple(names[group] for group in known) for known in groups]


def _train_one(
    task: Task,
    path: Path,
    plan: _Plan,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    progress: bool,
    device: str | None,
) -> None:
    settings = plan.fingerprint(task)
    info = read_info(path)
    if info is not None and info.settings != settings:
        raise OutputDirectoryError(
            f"{str(path)!r} holds a teacher made with other settings or data than asked for now; "
            "choose another directory or delete this one"
        )
    if info is None:
        started = time.perf_counter()
        rows = _known_rows(task, plan, task.labelled_ids("train"))
        if len(np.unique(task.table.labels[rows])) < 2:
            raise TeacherError(
                f"expected training rows of two or more classes for teacher {path.name!r}, came {len(rows)} "
                "rows of fewer; give more labelled rows or train fewer teachers"
            )
        path.mkdir(parents=True, exist_ok=True)
        teacher: LabelledTeacher
        if plan.kind == TFIDF:
            teacher = _train_sklearn(task, path, plan, rows)
        else:
            work = path / f"training-{settings}"
            teacher = _train_network(task, path, plan, rows, tokenizer, work, progress, device)
        _finish(task, path, plan, teacher, settings, len(rows), time.perf_counter() - started)
    for leftover in path.glob("training-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _finish(
    task: Task, path: Path, plan: _Plan, teacher: LabelledTeacher, settings: str, rows: int, seconds: float
) -> None:
    ids = task.labelled_ids("validation")
    known = np.isin(ids, _known_rows(task, plan, ids))
    right = np.zeros(0, dtype=bool)
    if len(ids):
        logits = teacher.logits(task, ids, batch_size=256, max_length=plan.max_length)
        right = logits.argmax(1).numpy() == task.table.labels[ids]
    metrics = {
        "rows": rows,
        "seconds": round(seconds, 2),
        "accuracy": _mean(right),
        "accuracy_known": _mean(right[known]),
    }
    write_info(
        path,
        TeacherInfo(
            teacher.name,
            kind=plan.kind,
            knows=None if plan.known is None else frozenset(plan.known),
            knows_by=plan.knows_by,
            settings=settings,
            metrics=metrics,
        ),
    )


def _known_rows(task: Task, plan: _Plan, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the instances whose class or domain the teacher may know."""
    if plan.known is None:
        return ids
    by_class = plan.knows_by == "class"
    names = task.label_names if by_class else task.domain_names
    groups = task.table.labels if by_class else task.table.domains
    wanted = [names.index(name) for name in plan.known]
    return ids[np.isin(groups[ids], wanted)]


def _train_sklearn(task: Task, path: Path, plan: _Plan, rows: NDArray[np.int64]) -> SklearnTeacher:
    classifier = LogisticRegression(C=20.0, max_iter=300)
    model: Any = classifier
    if task.table.vectors is not None:
        classifier.set_params(C=1.0)
    else:
        # Words that occur once tell nothing, unless there are hardly any rows.
        rare = 2 if len(rows) >= 200 else 1
        model = make_pipeline(TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=rare), classifier)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            model.fit(joined_inputs(task, rows), np.array(task.label_names)[task.table.labels[rows]])
        except ValueError as error:
            raise TeacherError(
                f"expected rows that a TF-IDF teacher can learn from, came {len(rows)} that it cannot "
                f"({first_line(error)}); give more rows or another kind of teacher"
            ) from error
    write_sklearn(model, path)
    return SklearnTeacher(path.name, model, allow_missing=True)


def _train_network(
    task: Task,
    path: Path,
    plan: _Plan,
    rows: NDArray[np.int64],
    tokenizer: PreTrainedTokenizerBase | None,
    work: Path,
    progress: bool,
    device: str | None,
) -> HfTeacher:
    model, tokenizer = load_student(
        plan.kind, task, num_layers=plan.num_layers, seed=plan.seed, tokenizer=tokenizer
    )
    limit = plan.max_length if tokenizer is None else min(plan.max_length, tokenizer.model_max_length)
    inputs = encode_inputs(task, tokenizer, limit)
    steps = int(np.ceil(len(rows) / plan.batch_size) * plan.epochs)
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=plan.epochs,
        per_device_train_batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=int(_WARMUP_SHARE * steps),
        seed=plan.seed,
        save_strategy="epoch",
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=not progress,
        remove_unused_columns=False,
        use_cpu=device == "cpu" or not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available() and device != "cpu",
    )
    with quiet_transformers():
        trainer = _TeacherTrainer(model, arguments, _Collator(model, task, inputs), rows, inputs.lengths)
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=_last_checkpoint(work))
    write_hf(model, tokenizer, path)
    return HfTeacher(path.name, model, tokenizer, device=device)


class _Rows(Dataset[int]):
    """Instance ids, shape (N,)."""

    def __init__(self, ids: NDArray[np.int64]) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> int:
        return int(self._ids[index])


class _Collator:
    """From instance ids to a labelled batch."""

    def __init__(self, model: PreTrainedModel, task: Task, inputs: Inputs) -> None:
        self._model, self._task, self._inputs = model, task, inputs

    def __call__(self, ids: Iterable[int]) -> dict[str, Tensor]:
        rows = np.fromiter(ids, dtype=np.int64)
        labels = torch.from_numpy(self._task.table.labels[rows])
        return {**forward_inputs(self._model, self._inputs.batch(rows)), "labels": labels}


class _TeacherTrainer(Trainer):
    """The plain trainer with batches of similar lengths."""

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        collator: _Collator,
        rows: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> None:
        self._lengths = lengths[rows]
        super().__init__(model, arguments, data_collator=collator, train_dataset=_Rows(rows))

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthBucketSampler:
        return LengthBucketSampler(self._lengths, self.args.train_batch_size, seed=self.args.seed)


def _last_checkpoint(work: Path) -> str | None:
    """The newest checkpoint that is whole: a killed trainer leaves damaged ones behind."""
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in reversed(found):
        if _is_whole(path):
            return str(path)
        shutil.rmtree(path)
    return None


def _is_whole(checkpoint: Path) -> bool:
    files = [checkpoint / name for name in _CHECKPOINT_FILES]
    if not all(file.is_file() and file.stat().st_size for file in files):
        return False
    try:
        # The trainer writes its state last.
        json.loads(files[-1].read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _shared_tokenizer(task: Task, kinds: Sequence[str]) -> PreTrainedTokenizerBase | None:
    text = any(kind in STUDENTS and STUDENTS[kind].reads == "text" for kind in kinds)
    return train_tokenizer(task_texts(task)) if text and task.table.vectors is None else None


def _mean(right: NDArray[np.bool_]) -> float | None:
    return round(float(right.mean()), 4) if len(right) else None


def _slug(kind: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", kind.rstrip("/").rpartition("/")[2]) or "teacher"
