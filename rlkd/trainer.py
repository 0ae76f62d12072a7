"""Distillation through :class:`transformers.Trainer`: one argument, ``weighting``, is what rlkd adds.

Every distillation goes through here, in ``compare`` and in the benchmarks too: what is measured is what users run.
"""

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerCallback, TrainerState

from rlkd.data.batching import Inputs, LengthBucketSampler, encode_inputs
from rlkd.data.task import Task
from rlkd.errors import NonFiniteLossError, StudentError, WeightingError
from rlkd.feature_losses import FeatureLosses
from rlkd.logit_cache import read_state
from rlkd.losses import DIVERGENCES, MIXES, check_loss_settings, cross_entropy, distillation_loss
from rlkd.metrics import compute_metrics as default_metrics
from rlkd.models.inner_states import read_inner_states
from rlkd.models.networks import attached
from rlkd.models.students import load_student
from rlkd.records import RunDirectory, newest_verified, parse_object, write_json_atomic, write_manifest
from rlkd.settings import StudentSettings
from rlkd.types import InnerStates, LogitSource, State, on_device
from rlkd.weight_record import WeightRecord, group_names, groups_of
from rlkd.weighting import Mixture, OnlineWeighting, Weighting, check_requirements, mixture
from rlkd.weighting.fixed import Uniform

IDS = "instance_ids"
WEIGHT_FILE = "weights.json"
WEIGHTING_FILE = "weighting.json"
FEATURES = "rlkd_features"


@dataclass
class DistillationArguments(TrainingArguments):
    """Training arguments with the settings of the distillation loss; see :func:`rlkd.losses.distillation_loss`."""

    temperature: float = field(default=1.0, metadata={"help": "Softens teachers and student in the loss; > 0."})
    kd_ratio: float = field(default=1.0, metadata={"help": "loss = (1 - kd_ratio) * CE + kd_ratio * KD; in [0, 1]."})
    mix: str = field(default="probability", metadata={"help": f"How teachers are mixed: {' or '.join(MIXES)}."})
    scale_by_temperature: bool = field(default=True, metadata={"help": "Multiply the KD term by temperature ** 2."})
    divergence: str = field(default="kl", metadata={"help": f"Of the KD term: {', '.join(DIVERGENCES)}."})
    max_length: int = field(default=128, metadata={"help": "Tokens a text is cut to."})

    def __post_init__(self) -> None:
        """Check ranges; instance ids must survive, so unused columns are kept."""
        check_loss_settings(self.temperature, self.kd_ratio, self.mix, self.divergence)
        self.remove_unused_columns = False
        super().__post_init__()


class InstanceDataset(Dataset[int]):
    """Instance ids of one split; texts, logits and labels are looked up by id when a batch is made."""

    def __init__(self, ids: NDArray[np.int64]) -> None:
        """Hold ids (N,)."""
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> int:
        return int(self.ids[index])


class DistillationTrainer(Trainer):
    """A :class:`transformers.Trainer` whose loss is the weighted multi-teacher distillation loss.

    Batches are bucketed by length in an order that is a function of seed and epoch alone, so runs that share a seed
    share their batches, and a resumed run continues them.
    """

    loss_is_scaled_for_ga = False  # our loss is a mean per micro-batch: let the Trainer divide by the accumulation

    def __init__(
        self,
        model: PreTrainedModel,
        args: DistillationArguments,
        *,
        task: Task,
        cache: LogitSource,
        weighting: Weighting | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        inputs: Inputs | None = None,
        features: FeatureLosses | None = None,
        **kwargs: Any,
    ) -> None:
        """Prepare a run.

        Args:
            model: The student.
            args: Training and distillation arguments.
            task: Trains on ``train``, evaluates on ``validation``.
            cache: Teacher logits: a cache, or :class:`~rlkd.logit_cache.LiveTeachers`.
            weighting: Maps each batch to weights; None: equal weights. One that learns online is copied first, so
                that every student starts from what was passed.
            processing_class: The student's tokenizer; None for vector tasks.
            inputs: Encoded inputs, to share them between runs of one tokenizer.
            features: Losses on hidden states and attention, added to the distillation loss; they need
                :class:`~rlkd.logit_cache.LiveEncoders` as ``cache``.
            **kwargs: Handed on to :class:`transformers.Trainer`.
        """
        chosen: Weighting = weighting or Uniform()
        check_requirements(type(chosen).__name__, chosen, task, cache)
        if args.kd_ratio < 1 and len(task.labelled_ids("train")) == 0:
            raise StudentError(f"kd_ratio {args.kd_ratio} needs labelled train rows, got none; set kd_ratio=1")
        self._online = copy.deepcopy(chosen) if isinstance(chosen, OnlineWeighting) else None
        self.task, self.cache = task, cache
        self.weighting = chosen if self._online is None else self._online
        self.inputs = inputs or encode_inputs(task, processing_class, args.max_length)
        self.features = features
        self._encoders = None if features is None else features.check(model, cache, self.inputs, task.splits["train"])
        self.weight_record = WeightRecord(group_names(task, cache), len(cache.teacher_names))
        kwargs.setdefault("compute_metrics", default_metrics)
        super().__init__(
            model=model,
            args=args,
            data_collator=self.collate,
            train_dataset=InstanceDataset(task.splits["train"]),
            eval_dataset=InstanceDataset(task.splits["validation"]),
            processing_class=processing_class,
            **kwargs,
        )

    def collate(self, ids: list[int]) -> dict[str, Tensor]:
        """Make a batch of instance ids: the student's inputs, and the ids to look everything else up by."""
        rows = np.asarray(ids)
        return {
            **self.inputs.batch(rows),
            IDS: torch.from_numpy(rows),
            "labels": torch.from_numpy(self.task.table.labels[rows]),
        }

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        lengths = self.inputs.lengths[self.task.splits["train"]]
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        return LengthBucketSampler(lengths, batch, seed=seed)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean distillation loss of a batch while training; the mean cross entropy while evaluating."""
        fields = dict(inputs)
        ids, labels = fields.pop(IDS), fields.pop("labels")
        if model.training and self.features is not None:
            outputs, inside = read_inner_states(model, fields, self.features.of_student)
            losses = self._feature_losses(outputs.logits, inside, ids)
        else:
            outputs = model(**fields)
            losses = self._losses(outputs.logits, ids) if model.training else cross_entropy(outputs.logits, labels)
        loss = losses.mean()
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss must be finite, it became {loss.item()} at step {self.state.global_step}, instances "
                f"{ids[~torch.isfinite(losses.detach())].tolist()[:16]}; lower the learning rate or look at these rows"
            )
        return (loss, outputs) if return_outputs else loss

    def _losses(self, student_logits: Tensor, ids: Tensor) -> Tensor:
        state = self.batch_state(ids, student_logits)
        return self._distillation_losses(student_logits, state, self._taught(state))

    def _feature_losses(self, student_logits: Tensor, inside: InnerStates, ids: Tensor) -> Tensor:
        """The feature terms, and the distillation loss beside them unless its weight is 0."""
        features, encoders = self.features, self._encoders
        assert features is not None
        assert encoders is not None
        teachers = encoders.inner_states(ids.cpu(), features.of_teachers)  # first: the logits come with them
        state = self.batch_state(ids, student_logits)
        taught = self._taught(state)
        losses = features.losses(inside, teachers, state, taught)
        if features.logits_weight:
            losses = losses + features.logits_weight * self._distillation_losses(student_logits, state, taught)
        return losses

    def _taught(self, state: State) -> Mixture:
        taught = mixture(self.weighting, state)
        self._record(state, taught.weights)
        if self._online is not None:
            self._online.update(state)
        return taught

    def _distillation_losses(self, student_logits: Tensor, state: State, taught: Mixture) -> Tensor:
        args = self.args
        return distillation_loss(
            student_logits,
            taught.teacher_logits,
            taught.weights,
            state.labels,
            temperature=args.temperature,
            kd_ratio=args.kd_ratio,
            mix=args.mix,
            scale_by_temperature=args.scale_by_temperature,
            scale=taught.scale,
            divergence=args.divergence,
        )

    def batch_state(self, ids: Tensor, student_logits: Tensor) -> State:
        """What the weighting sees of a batch, on the student's device."""
        state = read_state(self.task, self.cache, ids.cpu())
        progress = self.state.global_step / max(self.state.max_steps, 1)
        return replace(
            on_device(state, student_logits.device),
            student_logits=student_logits.detach(),
            progress=progress,
            temperature=self.args.temperature,
            divergence=self.args.divergence,
        )

    def _record(self, state: State, weights: Tensor) -> None:
        assert state.progress is not None
        self.weight_record.add(state.progress, groups_of(self.task, self.cache, state), weights)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Loss, logits and labels of an evaluation batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss, None if prediction_loss_only else outputs.logits.detach(), inputs["labels"]

    def predict_split(self, split: str) -> NDArray[np.float32]:
        """The student's logits of one split, shape (N_split, C), in the order of its ids."""
        return self.predict_rows(self.task.splits[split])

    def predict_rows(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The student's logits of the instances ``ids`` (N,), shape (N, C)."""
        order = np.argsort(self.inputs.lengths[ids], kind="stable")
        output = self.predict(InstanceDataset(ids[order]))
        logits: NDArray[np.float32] = np.empty_like(output.predictions)
        logits[order] = output.predictions
        return logits

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean weight per teacher since the start of the run to the training logs."""
        if "loss" in logs:
            total = self.weight_record.sums.sum((0, 1)) / max(self.weight_record.counts.sum(), 1)
            logs |= {f"weight/{n}": float(w) for n, w in zip(self.cache.teacher_names, total, strict=True)}
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # the manifest is written last: a checkpoint without one that verifies is not resumed from
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            write_json_atomic(folder / WEIGHT_FILE, self.weight_record.state())
            if self._online is not None:
                write_json_atomic(folder / WEIGHTING_FILE, self._online.state_dict())
            write_manifest(folder)

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train; ``resume_from_checkpoint=True`` takes the newest checkpoint that verifies, or starts anew.

        Checkpoints newer than that one are damaged (a killed writer's) and are removed.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._newest_checkpoint()
        if resume_from_checkpoint:
            self.weight_record.load(json.loads((Path(resume_from_checkpoint) / WEIGHT_FILE).read_text()))
            if self._online is not None:
                self._online.load_state_dict(_saved_weighting(Path(resume_from_checkpoint) / WEIGHTING_FILE))
        with attached(self.model, FEATURES, self.features):
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _newest_checkpoint(self) -> str | None:
        folder = Path(self.args.output_dir)
        newest = newest_verified(folder) if folder.is_dir() else None
        for other in folder.glob("checkpoint-*"):
            if newest is None or _step_number(other) > _step_number(newest):
                shutil.rmtree(other)
        return None if newest is None else str(newest)

    def knowing_mass(self) -> tuple[float, float] | None:
        """Mean weight on knowing teachers in the first and the last fifth of the run.

        None where it is not known who knows, and for runs too short to have both.
        """
        if self.cache.knowledge is None:
            return None
        mass = self.weight_record.knowing_mass(self.cache.knowledge.matrix)
        fifth = WeightRecord.BINS // 5
        early, late = mass[:fifth], mass[-fifth:]
        if np.isnan(early).all() or np.isnan(late).all():
            return None
        return float(np.nanmean(early)), float(np.nanmean(late))


class MetricsCallback(TrainerCallback):
    """Writes the Trainer's logs to the ``metrics.jsonl`` of a run directory."""

    def __init__(self, run: RunDirectory) -> None:
        """Write to ``run``."""
        self._run = run

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Drop what was logged after the checkpoint that training resumes from."""
        self._run.rewind(state.global_step)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Append a line; timings are left out, so that equal runs write equal files."""
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
) -> DistillationTrainer:
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
    trainer = DistillationTrainer(
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
    """The arguments of a student's training; see :func:`make_trainer`."""
    quiet = {"save_strategy": "no", "eval_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    return DistillationArguments(
        **{
            "output_dir": str(output_dir),
            "max_steps": settings.max_steps,
            "per_device_train_batch_size": settings.batch_size,
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


T = TypeVar("T", bound=DistillationTrainer)


def without_printer(trainer: T) -> T:
    """The trainer, which no longer prints its logs where there is no progress bar: they go to the run directory."""
    if trainer.args.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
    return trainer


def _saved_weighting(path: Path) -> dict[str, Any]:
    values = parse_object(path.read_bytes()) if path.is_file() else None
    if values is None:
        raise WeightingError(
            f"expected what the weighting had learned in {path}, found nothing; resume with the weighting of the run"
        )
    return values


def _step_number(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
