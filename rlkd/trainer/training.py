"""The trainer of a student: :class:`transformers.Trainer` with the weighted multi-teacher distillation loss."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlkd.data.batching import Inputs, LengthBucketSampler, encode_inputs
from rlkd.data.task import Task
from rlkd.errors import ConfigError, NonFiniteLossError, StudentError
from rlkd.feature_losses import FeatureLosses
from rlkd.logit_cache import read_state
from rlkd.losses import cross_entropy, distillation_loss
from rlkd.metrics import compute_metrics as default_metrics
from rlkd.models.fitting import fit
from rlkd.models.inner_states import read_inner_states
from rlkd.models.networks import attached
from rlkd.records import write_json_atomic
from rlkd.trainer.arguments import TRAINER_REFUSED, DistillationArguments, check_trainer_arguments
from rlkd.trainer.resuming import ResumableTrainer, saved
from rlkd.trainer.shares import WHOLE, gathered, share_of, whole_batches
from rlkd.types import InnerStates, LogitSource, State, on_device
from rlkd.weight_record import WeightRecord, group_names, groups_of
from rlkd.weighting import Mixture, OnlineWeighting, Weighting, adapted, check_requirements, mixture
from rlkd.weighting.by_row import once_a_row
from rlkd.weighting.fixed import Uniform

IDS = "instance_ids"
WEIGHT_FILE = "weights.json"
WEIGHTING_FILE = "weighting.json"
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


class DistillationTrainer(ResumableTrainer):
    """A :class:`transformers.Trainer` whose loss is the weighted multi-teacher distillation loss.

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
        check_trainer_arguments(kwargs, args)
        if args.world_size > 1:
            self._check_processes(args.world_size, features, kwargs.get("preprocess_logits_for_metrics"))
        chosen = adapted(weighting or Uniform())
        check_requirements(chosen.called, chosen, task, cache)
        if args.kd_ratio < 1 and len(task.labelled_ids("train")) == 0:
            raise StudentError(f"kd_ratio {args.kd_ratio} needs labelled train rows, got none; set kd_ratio=1")
        self._online = copy.deepcopy(chosen) if isinstance(chosen, OnlineWeighting) else None
        self.task, self.cache = task, cache
        self.weighting = chosen if self._online is None else self._online
        if inputs is None:
            processing_class = fit(model, processing_class, who="the student", error=StudentError)
        self.inputs = inputs or encode_inputs(task, processing_class, args.max_length)
        self.features = features
        self._encoders = None if features is None else features.check(model, cache, self.inputs, task.splits["train"])
        self.weight_record = WeightRecord(group_names(task, cache), len(cache.teacher_names))
        kwargs = {name: value for name, value in kwargs.items() if name not in TRAINER_REFUSED}
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
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ConfigError("students are not sharded, got a launcher with FSDP or DeepSpeed; use torchrun")

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
            losses = self._losses(outputs.logits, ids) if model.training else cross_entropy(outputs.logits, labels)
        loss = losses.mean()
        self._check_finite(loss, losses, ids)
        return (loss, outputs) if return_outputs else loss

    def _check_finite(self, loss: Tensor, losses: Tensor, ids: Tensor) -> None:
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss must be finite, it became {loss.item()} at step {self.state.global_step}, instances "
                f"{ids[~torch.isfinite(losses.detach())].tolist()[:16]}; lower the learning rate or look at these rows"
            )

    def _loss_of_share(self, logits: Tensor, whole: Tensor) -> Tensor:
        """What this process adds to the mean loss of a batch, times their number: gradients are averaged over them."""
        rows, processes = len(whole), self.args.world_size
        share = share_of(rows, processes, self.args.process_index)
        logits = logits[: share.stop - share.start]  # none of the row that only keeps a process company
        state = self.batch_state(whole, gathered(self.accelerator, logits.detach(), rows))
        taught = self._taught(state)
        own = Mixture(
            teacher_logits=taught.teacher_logits[share],
            weights=taught.weights[share],
            scale=None if taught.scale is None else taught.scale[share],
        )
        labels = None if state.labels is None else state.labels[share]
        losses = self._distillation_losses(logits, labels, own)
        loss: Tensor = losses.sum() * (processes / rows)
        self._check_finite(loss, losses, whole[share])
        return loss

    def _losses(self, student_logits: Tensor, ids: Tensor) -> Tensor:
        state = self.batch_state(ids, student_logits)
        return self._distillation_losses(student_logits, state.labels, self._taught(state))

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
            losses = losses + features.logits_weight * self._distillation_losses(student_logits, state.labels, taught)
        return losses

    def _taught(self, state: State) -> Mixture:
        taught = mixture(self.weighting, state)
        self._record(state, taught.weights)
        if self._online is not None:
            self._online.update(state)
        return taught

    def _distillation_losses(self, student_logits: Tensor, labels: Tensor | None, taught: Mixture) -> Tensor:
        args = self.args
        return distillation_loss(
            student_logits,
            taught.teacher_logits,
            taught.weights,
            labels,
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

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean weight per teacher since the start of the run to the training logs."""
        if "loss" in logs:
            total = self.weight_record.sums.sum((0, 1)) / max(self.weight_record.counts.sum(), 1)
            logs |= {f"weight/{n}": float(w) for n, w in zip(self.cache.teacher_names, total, strict=True)}
        super().log(logs, *args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; see :meth:`ResumableTrainer.train`."""
        with attached(self.model, FEATURES, self.features), self._rows_weighed():
            return super().train(*args, **kwargs)

    @contextmanager
    def _rows_weighed(self) -> Iterator[None]:
        """Ask a weighting by row once a row; in a run too short to see all rows, it is asked batch by batch."""
        asked, args, data = self.weighting, self.args, self.train_dataset
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        as_read = type(self).batch_state is DistillationTrainer.batch_state and isinstance(data, InstanceDataset)
        if as_read and (args.max_steps * batch >= len(data) if args.max_steps > 0 else args.num_train_epochs >= 1):
            self.weighting = once_a_row(asked, self.task, self.cache, data.ids)
        try:
            yield
        finally:
            self.weighting = asked

    def _write_state(self, folder: Path) -> None:
        write_json_atomic(folder / WEIGHT_FILE, self.weight_record.state())
        if self._online is not None:
            write_json_atomic(folder / WEIGHTING_FILE, self._online.state_dict())

    def _read_state(self, folder: Path) -> None:
        self.weight_record.load(saved(folder / WEIGHT_FILE, "the weights so far"))
        if self._online is not None:
            self._online.load_state_dict(saved(folder / WEIGHTING_FILE, "what the weighting had learned"))

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
