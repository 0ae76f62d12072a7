"""Trainers of students from a few settings, as every command and benchmark makes them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedModel
from transformers.trainer_callback import PrinterCallback, TrainerCallback, TrainerState

from rlkd.data.batching import encode_inputs
from rlkd.data.task import Task
from rlkd.errors import ConfigError
from rlkd.feature_losses import FeatureLosses
from rlkd.models.students import load_student
from rlkd.records import RunDirectory, check_launcher, processes_started
from rlkd.settings import StudentSettings
from rlkd.trainer.arguments import DistillationArguments
from rlkd.trainer.task_trainer import TaskTrainer
from rlkd.types import LogitSource
from rlkd.weighting import Weighting


class MetricsCallback(TrainerCallback):
    """Writes the Trainer's logs to the ``metrics.jsonl`` of a run directory."""

    def __init__(self, run: RunDirectory) -> None:
        """Write to ``run``."""
        self._run = run

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Drop what was logged after the checkpoint that training resumes from, and what is said at the end."""
        self._run.rewind(state.global_step, without="student/train_loss")

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Append a line; timings are left out, so that equal runs write equal files."""
        if not state.is_world_process_zero:
            return
        values = {name if "/" in name else f"student/{name}": value for name, value in (logs or {}).items()}
        kept = {name: value for name, value in values.items() if not name.endswith(("runtime", "_per_second"))}
        self._run.log(state.global_step, **kept)


def make_trainer(
    task: Task,
    cache: LogitSource,
    weighting: Weighting,
    settings: StudentSettings,
    output_dir: str | Path,
    *,
    seed: int = 0,
    shared: dict[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
    features: Callable[[PreTrainedModel], FeatureLosses] | None = None,
    **arguments: Any,
) -> TaskTrainer:
    """Build the trainer of one student.

    Args:
        task: The task.
        cache: The teachers' logits.
        weighting: Maps each batch to weights.
        settings: The student and its budget.
        output_dir: Of checkpoints, if any are asked for.
        seed: Of initialisation, order of batches and dropout.
        shared: A dict that keeps tokenizer and encoded inputs between calls with the same task and settings.
        callbacks: Further ``TrainerCallback``s.
        features: Makes feature losses for the student; None: none.
        **arguments: Fields of :class:`DistillationArguments`; by default nothing is saved, evaluated or logged.
    """
    shared = {} if shared is None else shared
    model, tokenizer = load_student(
        settings.student, task, num_layers=settings.num_layers, seed=seed, tokenizer=shared.get("tokenizer")
    )
    if "inputs" not in shared:
        shared |= {"tokenizer": tokenizer, "inputs": encode_inputs(task, tokenizer, settings.max_length)}
    args = training_arguments(settings, output_dir, seed=seed, **arguments)
    trainer = TaskTrainer(
        model,
        args,
        task=task,
        cache=cache,
        weighting=weighting,
        processing_class=tokenizer,
        inputs=shared["inputs"],
        features=None if features is None else features(model),
        callbacks=list(callbacks),
    )
    return without_printer(trainer)


def training_arguments(
    settings: StudentSettings, output_dir: str | Path, *, seed: int = 0, **arguments: Any
) -> DistillationArguments:
    """The arguments of a student's training; see :func:`make_trainer`.

    The settings' batch is that of all processes of a launcher together.

    Raises:
        ConfigError: The processes cannot share the batch evenly, or the device is not the first of its kind.
    """
    check_launcher()
    processes = processes_started()
    if settings.batch_size % processes:
        raise ConfigError(
            f"expected a batch that {processes} processes can share, got batch_size {settings.batch_size}; choose a "
            f"multiple of {processes}"
        )
    kind, _, index = settings.device.partition(":")
    if index not in ("", "0"):
        raise ConfigError(
            f"students use the first accelerator that they see, got {settings.device!r}; write {kind!r}, and hide the "
            "others (CUDA_VISIBLE_DEVICES)"
        )
    quiet = {"save_strategy": "no", "eval_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    return DistillationArguments(
        **{
            "output_dir": str(output_dir),
            "max_steps": settings.max_steps,
            "per_device_train_batch_size": settings.batch_size // processes,
            "per_device_eval_batch_size": 256,
            "learning_rate": settings.learning_rate,
            "lr_scheduler_type": "linear",
            "temperature": settings.temperature,
            "kd_ratio": settings.kd_ratio,
            "divergence": settings.divergence,
            "max_length": settings.max_length,
            "bf16": settings.bf16,
            "seed": seed,
            "report_to": "none",
            "use_cpu": settings.device == "cpu",
            "dataloader_pin_memory": settings.device != "cpu",
            **quiet,
            **arguments,
        }
    )


T = TypeVar("T", bound=TaskTrainer)


def without_printer(trainer: T) -> T:
    """The trainer, which no longer prints its logs where there is no progress bar: they go to the run directory."""
    if trainer.args.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
    return trainer
