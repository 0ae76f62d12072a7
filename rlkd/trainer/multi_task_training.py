"""Train a multi-task model: teachers, joint students, students of one task, and refined ones."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlkd.cost import metered
from rlkd.data.batching import Inputs, encode_inputs
from rlkd.data.collection import TaskCollection
from rlkd.data.subset import drop_unlabelled
from rlkd.errors import TaskError
from rlkd.logit_cache import LogitCache
from rlkd.models.multi_task_loading import ENCODERS, load_multi_task
from rlkd.models.networks import StepBar, quiet_transformers
from rlkd.models.teacher_files import write_hf
from rlkd.records import digest, finished, once
from rlkd.settings import FINE_TUNING_RATE, FROM_SCRATCH_RATE, MultiTaskSettings, TeacherTraining
from rlkd.trainer.making import training_arguments, without_printer
from rlkd.trainer.multi_task import MultiTaskTrainer
from rlkd.weighting import WeightingSpec, build_weighting

_WARMUP_SHARE = 0.1


def multi_task_teacher_settings(
    kind: str, *, epochs: float = TeacherTraining.epochs, learning_rate: float | None = None, **settings: Any
) -> MultiTaskSettings:
    """How teachers learn: from labels alone.

    Args:
        kind: Encoder, see :func:`rlkd.models.multi_task_loading.load_multi_task`.
        epochs: Passes over the labelled rows.
        learning_rate: None: 2e-3 from scratch, 5e-5 pretrained.
        **settings: Further fields of :class:`MultiTaskSettings`.
    """
    usual = FROM_SCRATCH_RATE if kind in ENCODERS else FINE_TUNING_RATE
    rate = usual if learning_rate is None else learning_rate
    return MultiTaskSettings(epochs=epochs, learning_rate=rate, kd_ratio=0.0, warmup=_WARMUP_SHARE, **settings)


UNIFORM = WeightingSpec("uniform", "uniform")


@dataclass(frozen=True, kw_only=True)
class TaughtTasks:
    """What a model learns: tasks, and for each its teachers' logits and how they are weighted."""

    collection: TaskCollection
    caches: Mapping[str, LogitCache] | None = None
    """By task. None: labels alone."""
    weighting: WeightingSpec | Mapping[str, WeightingSpec] = UNIFORM
    """The same or one by task; built for each task."""

    def only(self, task: str) -> "TaughtTasks":
        """The same for one of the tasks."""
        return replace(self, collection=self.collection.only(task))

    def labelled(self) -> "TaughtTasks":
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

    def weighting_of(self, task: str) -> WeightingSpec:
        """The weighting of one of the tasks."""
        return self.weighting if isinstance(self.weighting, WeightingSpec) else self.weighting[task]


def _named(spec: WeightingSpec) -> str:
    """A weighting by what it reads: another policy in the same folder is another weighting."""
    learned = spec.learned()
    return spec.text if learned is None else f"{spec.text} ({learned})"


def train_model(
    folder: str | Path,
    start: str | Path,
    taught: TaughtTasks,
    training: MultiTaskSettings,
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
    start, in what they are taught and in their settings.

    Args:
        folder: Where the model is saved; checkpoints lie beside it while it is trained.
        start: Encoder or multi-task model to start from, see :func:`rlkd.models.multi_task_loading.load_multi_task`.
        taught: What it learns. With ``kd_ratio`` 0 only the labelled rows are used and no logits are read.
        training: How.
        num_layers: Keep only the first layers of a pretrained encoder.
        seed: Of heads, order of batches and dropout.
        callbacks: Further ``TrainerCallback`` s.
        progress: Show a progress bar.
        shared: A dict that keeps tokenizer and encoded inputs by task between calls with the same start and tasks.
        **arguments: Fields of :class:`rlkd.trainer.DistillationArguments`.

    Returns:
        ``seconds``, ``cpu_seconds``, ``steps``, and the mean ``weights`` of the teachers by task.

    Raises:
        OutputDirectoryError: The folder holds a model that was made of something else.
    """
    folder = Path(folder)
    if training.kd_ratio == 0:
        taught = replace(taught.labelled(), caches=None)
    made_of = _made_of(start, taught, training, num_layers, seed)
    work = folder.with_name(f".{folder.name}-{made_of}")
    shared = {} if shared is None else shared

    def make() -> dict[str, Any]:
        with metered() as cost, quiet_transformers(), closing(StepBar(folder.name, show=progress)) as bar:
            trainer = _trainer(work, start, taught, training, num_layers, seed, [*callbacks, bar], shared, arguments)
            trainer.train(resume_from_checkpoint=True)
        write_hf(trainer.model, trainer.processing_class, folder)
        return {**cost.record(), "steps": trainer.state.global_step, "weights": _mean_weights(trainer)}

    done = once(folder, made_of, make, whole=True)
    shutil.rmtree(work, ignore_errors=True)
    return done


def _made_of(
    start: str | Path, taught: TaughtTasks, training: MultiTaskSettings, num_layers: int | None, seed: int
) -> str:
    begun = finished(start)
    origin = begun.made_of if begun is not None and "weights" in begun.made else str(start)
    settings = training.settings("", 1).record() | {"epochs": training.epochs, "warmup": training.warmup}
    return digest([origin, num_layers, *taught.described(), settings, seed], 16)


def _trainer(
    work: Path,
    start: str | Path,
    taught: TaughtTasks,
    training: MultiTaskSettings,
    num_layers: int | None,
    seed: int,
    callbacks: list[Any],
    shared: dict[str, Any],
    arguments: Mapping[str, Any],
) -> MultiTaskTrainer:
    collection = taught.collection
    model, tokenizer = load_multi_task(
        str(start), collection, num_layers=num_layers, seed=seed, tokenizer=shared.get("tokenizer")
    )
    shared["tokenizer"] = tokenizer
    inputs: dict[tuple[str, int], Inputs] = shared.setdefault("inputs", {})
    for task in collection:
        key = (task.fingerprint, training.max_length)
        if key not in inputs:
            inputs[key] = encode_inputs(task, tokenizer, training.max_length)
    weightings = None
    if taught.caches is not None:
        weightings = {
            task.name: build_weighting(taught.weighting_of(task.name), task, taught.caches[task.name], seed=seed)
            for task in collection
        }
    steps = training.steps(collection)
    args = training_arguments(
        training.settings(str(start), steps),
        work,
        seed=seed,
        **{"warmup_steps": int(training.warmup * steps), **arguments},
    )
    return without_printer(
        MultiTaskTrainer(
            model,
            args,
            collection=collection,
            sources=taught.caches,
            weightings=weightings,
            processing_class=tokenizer,
            inputs={task.name: inputs[task.fingerprint, training.max_length] for task in collection},
            callbacks=callbacks,
        )
    )


def _mean_weights(trainer: MultiTaskTrainer) -> dict[str, list[float]]:
    """Mean weight of every teacher over the run, by task."""
    record = trainer.weight_record
    totals = record.sums.sum(0) / record.counts.sum(0).clip(1)[:, None]
    return {name: [round(float(w), 4) for w in row] for name, row in zip(record.groups, totals, strict=True)}
