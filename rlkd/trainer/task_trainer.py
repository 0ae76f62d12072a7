"""The trainer of a task: its instances are looked up by id, and processes share its batches."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlkd.data.batching import Inputs, LengthBucketSampler, encode_inputs
from rlkd.data.task import Task
from rlkd.errors import ConfigError, StudentError
from rlkd.feature_losses import FeatureLosses
from rlkd.kinds import Kind, Positions, class_losses
from rlkd.logit_cache import LogitCache, read_state
from rlkd.logit_cache.held import held_states
from rlkd.losses import cross_entropy
from rlkd.metrics import compute_metrics as default_metrics
from rlkd.models.fitting import fit
from rlkd.models.inner_states import read_inner_states
from rlkd.models.networks import attached
from rlkd.trainer.arguments import (
    TRAINER_REFUSED,
    TRAINER_REFUSED_WITH_TASKS,
    DistillationArguments,
    check_task_arguments,
)
from rlkd.trainer.batch_teachers import Pick, Rows
from rlkd.trainer.shares import WHOLE, Shares, part_of, whole_batches
from rlkd.trainer.training import BatchTrainer
from rlkd.types import InnerStates, LogitSource, State
from rlkd.weight_record import WeightRecord, group_names, groups_of
from rlkd.weighting import BaseWeighting, Mixture, Weighting, adapted, check_requirements
from rlkd.weighting.by_row import once_a_row
from rlkd.weighting.fixed import Uniform

IDS = "instance_ids"
FEATURES = "rlkd_features"


class InstanceDataset(Dataset[int]):
    """Instance ids of one split; texts, logits and labels are looked up by id when a batch is made."""

    def __init__(self, ids: NDArray[np.int64]) -> None:
        """Hold ids (N,)."""
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> int:
        return int(self.ids[index])


class TaskTeachers:
    """The teachers of a task, whose logits are looked up by instance: :class:`~rlkd.trainer.BatchTeachers`."""

    columns: tuple[str, ...] = ()
    gives: ClassVar[frozenset[str]] = frozenset(field.name for field in fields(State))
    """What is missing was refused before, see :func:`rlkd.weighting.check_requirements`."""

    def __init__(self, task: Task, source: LogitSource, device: torch.device) -> None:
        """Hold both; what a cache says of all instances is held on the students' device, where it fits."""
        self.task, self.source = task, source
        self.names = tuple(source.teacher_names)
        self._held = held_states(self._read, len(task.table), device) if type(source) is LogitCache else None

    def carry(self, rows: Rows, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Nothing: the ids go with every batch."""
        return {}

    def state(self, inputs: Mapping[str, Tensor], carried: Mapping[str, Any], pick: Pick) -> State:
        """What task and teachers tell of the instances of a batch."""
        return self._read(inputs[IDS].cpu()) if self._held is None else self._held.of(inputs[IDS])

    def _read(self, ids: Tensor) -> State:
        return read_state(self.task, self.source, ids)


class TaskTrainer(BatchTrainer):
    """A trainer of a task and its teachers' logits: what commands and benchmarks train with.

    Batches are bucketed by length in an order that is a function of seed and epoch alone, so runs that share a seed
    share their batches, and a resumed run continues them. Processes that ``torchrun`` starts share every batch of
    ``per_device_train_batch_size`` times their number: batches, weights and their record are those of one process, and
    so is the student but for its draws of dropout.
    """

    splits_batches: ClassVar[bool] = True
    """Whether several processes may share a batch."""
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
            **kwargs: Handed on to :class:`transformers.Trainer`; see :mod:`rlkd.trainer.arguments`.
        """
        check_task_arguments(args, kwargs)
        if args.world_size > 1:
            self._check_processes(args.world_size, features, kwargs.get("preprocess_logits_for_metrics"))
        chosen = adapted(weighting or Uniform())
        check_requirements(chosen.called, chosen, task, cache)
        if args.kd_ratio < 1 and len(task.labelled_ids("train")) == 0:
            raise StudentError(f"kd_ratio {args.kd_ratio} needs labelled train rows, got none; set kd_ratio=1")
        self.task, self.cache = task, cache
        if inputs is None:
            processing_class = fit(model, processing_class, who="the student", error=StudentError)
        self.inputs = inputs or encode_inputs(task, processing_class, args.max_length)
        self.features = features
        self._encoders = None if features is None else features.check(model, cache, self.inputs, task.splits["train"])
        refused = {**TRAINER_REFUSED, **TRAINER_REFUSED_WITH_TASKS}
        kwargs = {name: value for name, value in kwargs.items() if name not in refused}
        kwargs.setdefault("compute_metrics", default_metrics)
        super().__init__(
            model=model,
            args=args,
            data_collator=self.collate,
            train_dataset=InstanceDataset(task.splits["train"]),
            eval_dataset=InstanceDataset(task.splits["validation"]),
            processing_class=processing_class,
            teachers=TaskTeachers(task, cache, args.device),
            weighting=chosen,
            **kwargs,
        )
        self.weight_record = WeightRecord(group_names(task, cache), len(cache.teacher_names))

    def _likely_kind(self, first: Mapping[str, Any] | None) -> type[Kind]:
        return Kind  # whatever a student was before

    def _get_collator_with_removed_columns(self, data_collator: Any, *args: Any, **kwargs: Any) -> Any:
        return data_collator  # a task has no columns

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return  # see loss_is_scaled_for_ga

    def _check_processes(self, count: int, features: FeatureLosses | None, preprocess: Any) -> None:
        alone = {
            "feature losses": features is not None,
            "preprocess_logits_for_metrics": preprocess is not None,
            type(self).__name__: not self.splits_batches,
        }
        for name, is_so in alone.items():
            if is_so:
                raise ConfigError(f"one process is needed for {name}, got {count}; start it without a launcher")

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
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        return LengthBucketSampler(lengths, batch, seed=seed)

    def get_train_dataloader(self) -> Any:
        """Batches of one process, or shares of them."""
        args = self.args
        if args.world_size == 1:
            return super().get_train_dataloader()
        sampler = self._get_train_sampler(self.train_dataset)
        return whole_batches(self.train_dataset, sampler, self.collate, args.train_batch_size * args.world_size, args)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean distillation loss of a batch while training; the mean cross entropy while evaluating."""
        fields = dict(inputs)
        ids, labels, whole = fields.pop(IDS), fields.pop("labels"), fields.pop(WHOLE, None)
        if whole is not None:
            outputs = model(**fields)
            loss = self._loss_of_share(outputs.logits, whole)
            return (loss, outputs) if return_outputs else loss
        if model.training and self.features is not None:
            outputs, inside = read_inner_states(model, fields, self.features.of_student)
            losses = self._feature_losses(outputs.logits, inside, ids)
        else:
            outputs = model(**fields)
            losses = (
                self._instance_losses(outputs.logits, ids) if model.training else cross_entropy(outputs.logits, labels)
            )
        loss = losses.mean()
        self._check_finite(loss, losses, ids)
        return (loss, outputs) if return_outputs else loss

    def _loss_of_share(self, logits: Tensor, whole: Tensor) -> Tensor:
        """What this process adds to the mean loss of a batch, times their number: gradients are averaged over them."""
        rows = len(whole)
        shares = Shares.of_batch(self.accelerator, rows)
        own = shares.own
        logits = logits[: own.stop - own.start]  # none of the row that only keeps a process company
        state = self.task_state(whole, shares.whole(logits.detach()))
        labels = None if state.labels is None else state.labels[own]
        losses = class_losses(logits, labels, part_of(self._task_taught(state), own), self.loss_settings)
        loss: Tensor = losses.sum() * (self.args.world_size / rows)
        self._check_finite(loss, losses, whole[own])
        return loss

    def _instance_losses(self, student_logits: Tensor, ids: Tensor) -> Tensor:
        state = self.task_state(ids, student_logits)
        return class_losses(student_logits, state.labels, self._task_taught(state), self.loss_settings)

    def _feature_losses(self, student_logits: Tensor, inside: InnerStates, ids: Tensor) -> Tensor:
        """The feature terms, and the distillation loss beside them unless its weight is 0."""
        features, encoders = self.features, self._encoders
        assert features is not None
        assert encoders is not None
        teachers = encoders.inner_states(ids.cpu(), features.of_teachers)  # first: the logits come with them
        state = self.task_state(ids, student_logits)
        taught = self._task_taught(state)
        losses = features.losses(inside, teachers, state, taught)
        if features.logits_weight:
            beside = class_losses(student_logits, state.labels, taught, self.loss_settings)
            losses = losses + features.logits_weight * beside
        return losses

    def _task_taught(self, state: State) -> Mixture:
        return self._taught(state, groups_of(self.task, self.cache, state))

    def task_state(self, ids: Tensor, student_logits: Tensor) -> State:
        """What the weighting sees of instances, on the student's device."""
        everybody = Positions(None, None, len(ids))
        return self.batch_state(student_logits, everybody, {IDS: ids}, {})

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
        with self._plain_logits():
            output = self.predict(InstanceDataset(ids[order]))
        logits: NDArray[np.float32] = np.empty_like(output.predictions)
        logits[order] = output.predictions
        return logits

    @contextmanager
    def _plain_logits(self) -> Iterator[None]:
        """Predictions are the student's logits, whatever evaluation is told to make of them."""
        ours = {"prediction_loss_only": False, "eval_do_concat_batches": True, "batch_eval_metrics": False}
        theirs = {name: getattr(self.args, name) for name in ours}
        made_of_them = {name: getattr(self, name) for name in ("compute_metrics", "preprocess_logits_for_metrics")}
        _set(self.args, ours)
        _set(self, dict.fromkeys(made_of_them))
        try:
            yield
        finally:
            _set(self, made_of_them)
            _set(self.args, theirs)

    def evaluation_loop(
        self, dataloader: Any, description: str, prediction_loss_only: bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As in one process: the Trainer's mean over batches counts the rows that fill up the last ones again."""
        if self.args.world_size == 1:
            return super().evaluation_loop(dataloader, description, prediction_loss_only, *args, **kwargs)
        output = super().evaluation_loop(dataloader, description, False, *args, **kwargs)
        logits, labels = (torch.from_numpy(np.asarray(rows)) for rows in (output.predictions, output.label_ids))
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics[f"{prefix}_loss"] = float(cross_entropy(logits, labels).mean())
        return output

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; see :meth:`rlkd.trainer.resuming.ResumableTrainer.train`."""
        with attached(self.model, FEATURES, self.features):
            return super().train(*args, **kwargs)

    def _weighed_beforehand(self, weighting: BaseWeighting) -> BaseWeighting:
        as_read, data = type(self).task_state is TaskTrainer.task_state, self.train_dataset
        if not (as_read and isinstance(data, InstanceDataset) and self._sees(len(data))):
            return weighting
        ids = data.ids
        labels = torch.from_numpy(self.task.table.labels[ids])
        return once_a_row(weighting, self.cache, ids, partial(read_state, self.task, self.cache), labels)

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


def _set(target: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(target, name, value)
