"""MKD: many tasks distilled jointly into one student of any architecture.

A multi-task teacher (one encoder, a head a task) learns all tasks from their labels; a student of the same form learns
its logits on all tasks; then, one task at a time, it is refined. Teachers of single tasks can stand beside the
multi-task teacher, or instead of it, and any weighting may weight them: task by task, with a logit cache each.

Source: Liu, Wang, Lin, Socher, Xiong 2019, arXiv:1911.03588; the teacher's training after MT-DNN, arXiv:1901.11504.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import xxhash

from rlkd.cost import metered
from rlkd.data.batching import Inputs, encode_inputs
from rlkd.data.collection import TaskCollection
from rlkd.data.subset import drop_unlabelled
from rlkd.defaults import FINE_TUNING_RATE, FROM_SCRATCH_RATE
from rlkd.devices import check_device
from rlkd.errors import ConfigError, OutputDirectoryError, TaskError
from rlkd.logit_cache import LogitCache, build_cache
from rlkd.losses import Divergence
from rlkd.models.multi_task import ENCODERS, check_multi_task, load_multi_task
from rlkd.models.networks import StepBar, quiet_transformers
from rlkd.models.teacher_files import load_teachers, write_hf
from rlkd.models.teachers import LabelledTeacher
from rlkd.records import folder_of, read_object, verify_manifest, write_json_atomic, write_manifest
from rlkd.settings import StudentSettings
from rlkd.systems.joint import MultiTaskTrainer
from rlkd.trainer import training_arguments, without_printer
from rlkd.weighting import build_weighting
from rlkd.weighting.saved import saved_identity

Part = Literal["single", "multi"]
PARTS: tuple[str, ...] = get_args(Part)
"""What teachers there are: one for each task alone, and one for all."""
STAGE = "stage.json"
_WARMUP_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One training of a multi-task model, its budget counted in passes over the training rows.

    So a student of one task and a joint student see every row equally often.
    """

    epochs: float
    """Passes. Range: > 0."""
    learning_rate: float
    """Peak rate of AdamW, falling linearly to zero. Range: >= 0."""
    batch_size: int = 32
    """Instances a step, all of one task. Range: >= 1."""
    max_length: int = 64
    """Tokens a text is cut to. Range: >= 1."""
    kd_ratio: float = 1.0
    """Share of the distillation term; 0 learns from labels alone. Range: [0, 1]."""
    divergence: Divergence = "mse"
    """Of the distillation term. The paper: squared error on logits, not centred."""
    temperature: float = 1.0
    """Of the ``kl`` divergence. Range: > 0."""
    warmup: float = 0.0
    """Share of the steps in which the rate rises. Range: [0, 1)."""
    bf16: bool = False
    """Compute forward passes in bfloat16 where that is safe."""
    device: str = "cpu"
    """``cpu``, or anything else for the accelerator that is found."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 < self.epochs < float("inf") or not 0 <= self.warmup < 1:
            raise ConfigError(
                f"training needs epochs > 0 and warmup in [0, 1), got {self.epochs} and {self.warmup}; change them"
            )
        self.settings("", 1)

    def settings(self, student: str, max_steps: int) -> StudentSettings:
        """The same as settings of a student."""
        return StudentSettings(
            student=student,
            max_steps=max_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            temperature=self.temperature,
            kd_ratio=self.kd_ratio,
            divergence=self.divergence,
            max_length=self.max_length,
            bf16=self.bf16,
            device=self.device,
        )

    def steps(self, collection: TaskCollection) -> int:
        """Optimisation steps on a collection."""
        batches = sum(-(-len(task.splits["train"]) // self.batch_size) for task in collection)
        return max(1, round(self.epochs * batches))


def teacher_phase(kind: str, *, epochs: float = 3, learning_rate: float | None = None, **settings: Any) -> Phase:
    """How teachers learn: from labels alone.

    Args:
        kind: Encoder, see :func:`rlkd.models.multi_task.load_multi_task`.
        epochs: Passes over the labelled rows.
        learning_rate: None: 2e-3 from scratch, 5e-5 pretrained.
        **settings: Further fields of :class:`Phase`.
    """
    usual = FROM_SCRATCH_RATE if kind in ENCODERS else FINE_TUNING_RATE
    rate = usual if learning_rate is None else learning_rate
    return Phase(epochs=epochs, learning_rate=rate, kd_ratio=0.0, warmup=_WARMUP_SHARE, **settings)


def refinement_phase(phase: Phase, *, epochs: float = 3, kd_ratio: float = 0.0) -> Phase:
    """How a student that was distilled jointly is refined on one task: by default fine-tuned on its labels.

    Args:
        phase: Of the joint distillation; the rate is half of its own.
        epochs: Passes over the task's rows.
        kd_ratio: Share of the teachers in the loss.
    """
    return replace(phase, epochs=epochs, learning_rate=phase.learning_rate / 2, kd_ratio=kd_ratio)


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """What a model learns: tasks, and for each its teachers' logits and how they are weighted."""

    collection: TaskCollection
    caches: Mapping[str, LogitCache] | None = None
    """By task. None: labels alone."""
    weighting: str | Mapping[str, str] = "uniform"
    """As :func:`rlkd.weighting.build_weighting` takes it, the same or one by task; built for each task."""

    def only(self, task: str) -> "Lessons":
        """The same for one of the tasks."""
        return replace(self, collection=self.collection.only(task))

    def labelled(self) -> "Lessons":
        """The same without the train rows that have no label."""
        kept = [drop_unlabelled(task) for task in self.collection]
        caches = self.caches
        if caches is not None:
            caches = {task.name: caches[task.name].take(ids) for task, ids in kept}
        for task, _ in kept:
            if not len(task.splits["train"]):
                raise TaskError(f"task {task.name!r} has no labelled training rows to learn from; add labels")
        return replace(self, collection=TaskCollection(tuple(task for task, _ in kept)), caches=caches)

    def described(self) -> list[Any]:
        """What decides it, as plain values."""
        caches = None if self.caches is None else [self.caches[name].identity for name in self.collection.names]
        specs = None if caches is None else [_named(self.weighting_of(name)) for name in self.collection.names]
        return [self.collection.fingerprint, caches, specs]

    def weighting_of(self, task: str) -> str:
        """The weighting of one of the tasks."""
        return self.weighting if isinstance(self.weighting, str) else self.weighting[task]


def _named(spec: str) -> str:
    """A weighting by what it reads: another policy in the same folder is another weighting."""
    learned = saved_identity(spec.partition(":")[2] or spec)
    return spec if learned is None else f"{spec} ({learned})"


def train_model(
    folder: str | Path,
    start: str | Path,
    lessons: Lessons,
    phase: Phase,
    *,
    num_layers: int | None = None,
    seed: int = 0,
    callbacks: Sequence[Any] = (),
    progress: bool = False,
    shared: dict[str, Any] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Train a multi-task model and save it; what is finished is kept, what was interrupted is continued.

    Teachers, joint students, students of one task and refined ones all come from here: they differ in where they
    start, in their lessons and in their phase.

    Args:
        folder: Where the model is saved; checkpoints lie beside it while it is trained.
        start: Encoder or multi-task model to start from, see :func:`rlkd.models.multi_task.load_multi_task`.
        lessons: What it learns. With ``kd_ratio`` 0 only the labelled rows are used and no logits are read.
        phase: How.
        num_layers: Keep only the first layers of a pretrained encoder.
        seed: Of heads, order of batches and dropout.
        callbacks: Further ``TrainerCallback`` s.
        progress: Show a progress bar.
        shared: A dict that keeps tokenizer and encoded inputs by task between calls with the same start and tasks.
        **arguments: Fields of :class:`rlkd.trainer.DistillationArguments`.

    Returns:
        ``seconds``, ``steps`` and ``made_of``, a hash of all that decided the weights.

    Raises:
        OutputDirectoryError: The folder holds a model that was made of something else.
    """
    folder = Path(folder)
    if phase.kd_ratio == 0:
        lessons = replace(lessons.labelled(), caches=None)
    made_of = _made_of(start, lessons, phase, num_layers, seed)
    if verify_manifest(folder):
        done = read_object(folder / STAGE)
        if done.get("made_of") != made_of:
            raise OutputDirectoryError(
                f"{folder} holds a model made with other settings or data than asked for now; "
                "choose another directory or delete this one"
            )
        return done
    work = folder.with_name(f".{folder.name}-{made_of}")
    shared = {} if shared is None else shared
    with metered() as cost, quiet_transformers(), closing(StepBar(folder.name, show=progress)) as bar:
        trainer = _trainer(work, start, lessons, phase, num_layers, seed, [*callbacks, bar], shared, arguments)
        trainer.train(resume_from_checkpoint=True)
    if folder.exists():
        shutil.rmtree(folder)  # an interrupted save
    write_hf(trainer.model, trainer.processing_class, folder)
    done = {
        **cost.record(),
        "made_of": made_of,
        "steps": trainer.state.global_step,
        "weights": _mean_weights(trainer),
    }
    write_json_atomic(folder / STAGE, done)
    write_manifest(folder)
    shutil.rmtree(work, ignore_errors=True)
    return done


def _made_of(start: str | Path, lessons: Lessons, phase: Phase, num_layers: int | None, seed: int) -> str:
    begun = Path(start) / STAGE
    origin = read_object(begun)["made_of"] if begun.is_file() else str(start)
    settings = phase.settings("", 1).record() | {"epochs": phase.epochs, "warmup": phase.warmup}
    described = json.dumps([origin, num_layers, *lessons.described(), settings, seed], sort_keys=True)
    return xxhash.xxh3_64_hexdigest(described.encode())


def _trainer(
    work: Path,
    start: str | Path,
    lessons: Lessons,
    phase: Phase,
    num_layers: int | None,
    seed: int,
    callbacks: list[Any],
    shared: dict[str, Any],
    arguments: Mapping[str, Any],
) -> MultiTaskTrainer:
    collection = lessons.collection
    model, tokenizer = load_multi_task(
        str(start), collection, num_layers=num_layers, seed=seed, tokenizer=shared.get("tokenizer")
    )
    shared["tokenizer"] = tokenizer
    inputs: dict[tuple[str, int], Inputs] = shared.setdefault("inputs", {})
    for task in collection:
        key = (task.fingerprint, phase.max_length)
        if key not in inputs:
            inputs[key] = encode_inputs(task, tokenizer, phase.max_length)
    weightings = None
    if lessons.caches is not None:
        weightings = {
            task.name: build_weighting(lessons.weighting_of(task.name), task, lessons.caches[task.name], seed=seed)
            for task in collection
        }
    steps = phase.steps(collection)
    args = training_arguments(
        phase.settings(str(start), steps), work, seed=seed, **{"warmup_steps": int(phase.warmup * steps), **arguments}
    )
    return without_printer(
        MultiTaskTrainer(
            model,
            args,
            collection=collection,
            sources=lessons.caches,
            weightings=weightings,
            processing_class=tokenizer,
            inputs={task.name: inputs[task.fingerprint, phase.max_length] for task in collection},
            callbacks=callbacks,
        )
    )


def _mean_weights(trainer: MultiTaskTrainer) -> dict[str, list[float]]:
    """Mean weight of every teacher over the run, by task."""
    record = trainer.weight_record
    totals = record.sums.sum(0) / record.counts.sum(0).clip(1)[:, None]
    return {name: [round(float(w), 4) for w in row] for name, row in zip(record.groups, totals, strict=True)}


def train_mkd_teachers(
    collection: TaskCollection,
    kind: str,
    folder: str | Path,
    phase: Phase,
    *,
    parts: Sequence[str] = ("multi",),
    num_layers: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, dict[str, Path]]:
    """Train the multi-task teacher, the teachers of single tasks, or both; the same network, rate and passes.

    Args:
        collection: The tasks.
        kind: Encoder, see :func:`rlkd.models.multi_task.load_multi_task`.
        folder: ``multi`` and ``single/TASK`` are made in it.
        phase: See :func:`teacher_phase`.
        parts: ``single``, ``multi`` or both.
        num_layers: Keep only the first layers of a pretrained encoder.
        seed: Of heads, order of batches and dropout.
        progress: Show progress bars.

    Returns:
        Folders by task, then by part.
    """
    check_parts(parts)
    paths: dict[str, dict[str, Path]] = {name: {} for name in collection.names}
    for part in parts:
        for name in collection.names:
            path = Path(folder) / part if part == "multi" else Path(folder) / part / folder_of(name)
            paths[name][part] = path
            if part == "multi" and name != collection.names[0]:
                continue
            lessons = Lessons(collection=collection if part == "multi" else collection.only(name))
            train_model(path, kind, lessons, phase, num_layers=num_layers, seed=seed, progress=progress)
    return paths


def check_parts(parts: Sequence[str]) -> None:
    """Refuse parts that teachers cannot have.

    Raises:
        ConfigError: None, unknown, or one twice.
    """
    if not parts or not set(parts) <= set(PARTS) or len(set(parts)) < len(parts):
        raise ConfigError(f"teachers are single, multi or both, got {', '.join(parts) or 'none'}; name some of them")


def build_mkd_caches(
    collection: TaskCollection,
    paths: Mapping[str, Mapping[str, Path]],
    folder: str | Path,
    *,
    max_length: int = 64,
    bf16: bool = False,
    device: str | None = "cpu",
    progress: bool = False,
) -> dict[str, LogitCache]:
    """The logits of a task's teachers, one cache a task; teachers are called by their part.

    Args:
        collection: The tasks.
        paths: Folders of teachers by task, then by part; of any kind that :func:`rlkd.models.load_teachers` reads.
        folder: Holds a cache for each task.
        max_length: Tokens a text is cut to.
        bf16: Teachers compute in bfloat16 where that is safe.
        device: Where teachers run.
        progress: Show progress bars.
    """
    caches = {}
    for task in collection:
        teachers: list[Any] = []
        for part, path in paths[task.name].items():
            (teacher,) = load_teachers([path], task, device=device, bf16=bf16)
            if isinstance(teacher, LabelledTeacher):
                teacher.name = part
            teachers.append(teacher)
        caches[task.name] = build_cache(
            teachers, task, Path(folder) / folder_of(task.name), max_length=max_length, progress=progress
        )
    return caches


def check_mkd(
    collection: TaskCollection, kind: str, student: str, phases: Sequence[Phase], num_layers: int | None = None
) -> None:
    """Refuse before any long work what cannot run.

    Args:
        collection: The tasks.
        kind: Encoder of the teachers.
        student: Encoder of the student.
        phases: Of teachers first, then of the student.
        num_layers: Of the student.
    """
    check_multi_task(kind, collection, max_length=phases[0].max_length)
    for phase in phases[1:]:
        check_multi_task(student, collection, num_layers=num_layers, max_length=phase.max_length)
    for phase in phases:
        check_device(phase.device)
