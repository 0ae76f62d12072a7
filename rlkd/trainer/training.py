"""The trainer of a student: :class:`transformers.Trainer` with the weighted multi-teacher distillation loss."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from rlkd.errors import ConfigError, NonFiniteLossError
from rlkd.kinds import Kind, Measured, Positions, as_measured
from rlkd.settings import StepSettings
from rlkd.trainer.arguments import check_arguments
from rlkd.trainer.batch_teachers import BatchTeachers
from rlkd.trainer.collating import CARRIED, CarryingCollator
from rlkd.trainer.dealing import DealsBatches
from rlkd.trainer.given_teachers import TeacherReader
from rlkd.trainer.kinds import KnownOfBatches, kind_of, likely_kind, weighting_of
from rlkd.trainer.lean import LeanMixin
from rlkd.trainer.logged import Sums
from rlkd.trainer.randomness import generators_as_they_were
from rlkd.trainer.recording import KeepsRecords
from rlkd.trainer.remembering import EpochsOf, RememberedTeachers
from rlkd.trainer.restraining import RestrainsAuto
from rlkd.trainer.resuming import ResumableTrainer
from rlkd.trainer.rows import check_columns, check_order, columns_of, first_row
from rlkd.trainer.searching import FollowsArguments, loss_settings
from rlkd.trainer.shares import WHOLE, Shares, first_rows, part_of, share_of
from rlkd.trainer.streaming import ReadsStreams
from rlkd.trainer.student_class import base_model, is_causal, outputs_of
from rlkd.trainer.weighing import WeighsBeforehand
from rlkd.types import State, on_device
from rlkd.weight_record import WeightRecord
from rlkd.weighting import BaseWeighting, Mixture, OnlineWeighting, Weighting, adapted, check_state, mixture
from rlkd.weighting.absent import learn
from rlkd.weighting.by_row import is_by_row

BATCH_FIELDS = frozenset({"labels", "student_logits", "progress", "temperature", "divergence", "teacher_mask"})
"""What every batch of a trainer tells a weighting."""


class DistillationMixin(
    FollowsArguments, DealsBatches, ReadsStreams, RestrainsAuto, WeighsBeforehand, KeepsRecords, LeanMixin
):
    """The weighted multi-teacher distillation loss for a trainer of one's own: name it before the Trainer's class.

    ``class MyTrainer(DistillationMixin, Trainer)`` takes what the Trainer takes, and ``teachers`` and ``weighting``.
    In training the loss of a batch is the mean over its instances, or over the tokens of all its instances that have a
    label, of :func:`rlkd.losses.distillation_loss`; an evaluation is the Trainer's own. Labels -100 and -1 are none.
    What kind of task it is the student says (its class, ``config.problem_type``, ``num_labels=1``), or the labels do:
    those of several labels and of a regression are floats, see :mod:`rlkd.kinds`.

    Processes that a launcher starts share every batch of ``per_device_train_batch_size`` times their number: batches,
    weights and their record are those of one process, the partial batch at the end of an epoch too.
    """

    args: Any
    model: Any
    state: Any
    accelerator: Any
    data_collator: Any
    loss_is_scaled_for_ga = True  # by the instances of all micro-batches, which may be uneven

    def __init__(
        self,
        *trainer_args: Any,
        teachers: Any = None,
        weighting: Weighting | str | Path | None = None,
        cache: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        """Prepare a run.

        Args:
            *trainer_args: Of the Trainer.
            teachers: One or several, a list or a mapping by name: models (which read what the student reads), pairs of
                model and tokenizer, paths, hub ids, fitted scikit-learn classifiers, functions of texts; or a
                :class:`~rlkd.logit_cache.LogitCache` or the folder of one, read by a column of row numbers; or any
                :class:`~rlkd.trainer.BatchTeachers`, such as :class:`~rlkd.trainer.GivenLogits` of a column. Classes
                are found by name. None: those of the arguments.
            weighting: An object, a name or the path or hub id of a policy. None: that of the arguments, by default
                ``auto``, see :class:`~rlkd.trainer.restraining.RestrainsAuto`. One that learns online is copied first.
            cache: A folder, or ``auto``, one for all runs, see :func:`~rlkd.trainer.remembering.store_folder`: what
                live teachers say of a row is kept there, and neither a later epoch nor a later run asks again. None:
                that of the arguments, by default nothing is kept.
            **kwargs: Of the Trainer.

        Raises:
            ConfigError: An argument of the Trainer would be ignored.
            TeacherError: Something is no teacher, or does not fit.
            WeightingError: The weighting needs what a trainer's batches do not tell.
        """
        super().__init__(*trainer_args, **kwargs)
        mine = cast(Any, self)
        check_arguments(self.args, {**kwargs, "compute_loss_func": mine.compute_loss_func})  # by place, or by name
        if mine.is_deepspeed_enabled or mine.is_fsdp_enabled:
            raise ConfigError("students are not sharded, got a launcher with FSDP or DeepSpeed; use torchrun")
        self.loss_settings = loss_settings(self.args)
        given = teachers if teachers is not None else getattr(self.args, "teachers", None)
        kept = cache if cache is not None else getattr(self.args, "cache", None)
        check_order(mine.train_dataset, getattr(self.args, "train_sampling_strategy", "random"))
        first = first_row(mine.train_dataset)
        kind, columns = self._likely_kind(first), columns_of(mine.train_dataset, first)
        self.teachers: BatchTeachers = self._read_teachers([] if given is None else given, kept, columns, kind)
        check_columns(self.teachers, columns)
        self._chosen = weighting if weighting is not None else getattr(self.args, "weighting", "auto")
        self._outputs = outputs_of(self.model)  # between trials of a search there is no model
        self._hold_arguments(weighting)
        self._set_kind(kind)
        self.weight_record = WeightRecord(("all",), len(self.teachers.names))
        self._counted: list[tuple[Tensor, int, Positions]] = []
        self._last_kind: tuple[Any, type[Kind]] | None = None
        self._last_count: tuple[int, torch.device, Tensor] | None = None
        self._since_logged = Sums()
        self._sureness: Tensor | None = None
        self._evaluating = False
        if isinstance(self.teachers, RememberedTeachers):
            mine.add_callback(EpochsOf(self.teachers))
        if self.teachers.columns or isinstance(self.teachers, RememberedTeachers):
            self.data_collator = CarryingCollator(self.data_collator, self.teachers)

    def _read_teachers(
        self, given: Any, cache: str | Path | None, columns: Sequence[str], kind: type[Kind]
    ) -> BatchTeachers:
        args = self.args
        reader = TeacherReader(
            self.model,
            getattr(self, "processing_class", None),
            device=args.device,
            max_length=getattr(args, "max_length", StepSettings.max_length),
            offload=getattr(args, "offload_teachers", False),
            text_columns=getattr(args, "text_columns", None),
            data_columns=columns,
            id_column=getattr(args, "id_column", "id"),
            cache=cache,
            kind=kind,
        )
        return reader.read(given)

    def _likely_kind(self, first: Mapping[str, Any] | None) -> type[Kind]:
        return likely_kind(self.model, first)

    def _set_kind(self, kind: type[Kind]) -> None:
        """Be of a kind of task, if teachers, weighting and settings are."""
        chosen = self._chosen
        if isinstance(chosen, str | Path):
            known = KnownOfBatches(chosen, kind, self.teachers.names, self._outputs, self.args.seed)
            called, self._given = str(chosen), weighting_of(chosen, known)
        else:
            self._given = adapted(chosen)
            called = self._given.called
        self._kind = kind(getattr(self.teachers, "covers", None))
        self._kind.check_settings(self.loss_settings)
        self._kind.check(self._given, called)
        told = BATCH_FIELDS | self.teachers.gives | {"sureness", "targets"}
        check_state(called, self._given, told, f"these batches of {kind.name}")
        self._begin()

    def _begin(self) -> None:
        """Begin with the weighting that was passed: one that learns online on a copy."""
        self._online = copy.deepcopy(self._given) if isinstance(self._given, OnlineWeighting) else None
        own = self._given if self._online is None else cast(BaseWeighting, self._online)
        self.weighting: BaseWeighting = self._kind.adapted(own)

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own; each run, as each trial of a search, begins with the weighting that was passed."""
        if trial is not None:
            self._begin_trial(trial)
        self._follow_arguments()
        if self._online is not None:
            self._begin()
        self.weight_record.clear()
        self._since_logged, self._last_kind, self._counted = Sums(), None, []
        with self._rows_weighed():
            return cast(Any, super()).train(resume_from_checkpoint, trial, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own; in the midst of a run it draws nothing that the student would draw."""
        with generators_as_they_were():
            return cast(Any, super()).evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own; as :meth:`evaluate`."""
        with generators_as_they_were():
            return cast(Any, super()).predict(*args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        trainer = cast(Any, super())
        trainer._set_signature_columns_if_needed()
        mine = cast(Any, self)
        mine._signature_columns = list(dict.fromkeys([*mine._signature_columns, *self.teachers.columns]))

    def _get_collator_with_removed_columns(self, data_collator: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own; one that carries what teachers read drops what the student does not read by itself."""
        if not (isinstance(data_collator, CarryingCollator) and self.args.remove_unused_columns):
            return cast(Any, super())._get_collator_with_removed_columns(data_collator, *args, **kwargs)
        self._set_signature_columns_if_needed()
        return data_collator.of_columns(cast(Any, self)._signature_columns)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Instances, or tokens, that all micro-batches of a step are taught on, in all processes."""
        if self._evaluating:
            # the Trainer counts for all processes, and most models but causal ones take the mean of their own rows
            alone = self.args.world_size == 1 or is_causal(base_model(self.model))
            return cast(Any, super())._get_num_items_in_batch(batch_samples, device) if alone else None
        places = [(batch.get("labels"), self._positions(batch)) for batch in batch_samples]
        self._counted = [(labels, labels._version, found) for labels, found in places if labels is not None]
        count = self._counts(sum(found.count for _, found in places), device)
        return self.accelerator.gather(count).sum() if self._processes > 1 else count

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own."""
        self._evaluating = True
        fields = {name: value for name, value in inputs.items() if name != CARRIED}
        try:
            return cast(Any, super()).prediction_step(model, fields, *args, **kwargs)
        finally:
            self._evaluating = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean distillation loss of a batch while training; the Trainer's own loss while evaluating."""
        fields = dict(inputs)
        carried = fields.pop(CARRIED, {})
        if not model.training:
            return cast(Any, super()).compute_loss(model, fields, return_outputs, num_items_in_batch)
        positions = self._positions(fields)
        fields = {name: value for name, value in fields.items() if name not in ("labels", WHOLE)}
        if self.teachers.columns and not carried:
            check_columns(self.teachers, ["(a batch without them)"])
        outputs = model(**fields)
        losses = self._losses(outputs.logits, positions, fields, carried)
        loss = losses.sum() / (max(len(losses), 1) if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self._processes > 1:
            loss = loss * self._processes  # gradients are averaged over the processes
        self._check_finite(loss, losses)
        return (loss, outputs) if return_outputs else loss

    def _kind_of(self, labels: Tensor | None) -> type[Kind]:
        """The kind of task of a batch: looked at again where labels have another form."""
        form = None if labels is None else (labels.dtype, labels.shape[1:])
        if self._last_kind is None or self._last_kind[0] != form:
            self._last_kind = form, kind_of(self.model, labels)
        return self._last_kind[1]

    def _counts(self, count: int, device: torch.device) -> Tensor:
        """A number as a tensor: the same where it was that number before, which no device is then sent again."""
        if self._last_count is None or self._last_count[:2] != (count, device):
            self._last_count = count, device, torch.tensor(count, device=device)
        return self._last_count[2]

    def _positions(self, batch: Mapping[str, Any]) -> Positions:
        """What is taught of a batch; nothing of a row that only keeps a process company."""
        labels = batch.get("labels")
        for counted, version, found in self._counted:
            if labels is counted and labels._version == version:
                return found
        kind = self._kind_of(labels)
        if kind is not type(self._kind) and "labels" in batch:
            self._set_kind(kind)
        positions = self._kind.positions(batch)
        dealt = batch.get(WHOLE)
        if dealt is None:
            return positions
        has_rows = share_of(len(dealt), self._processes, self.args.process_index).start < len(dealt)
        return positions if has_rows else positions.none()

    def _losses(self, logits: Tensor, positions: Positions, fields: Mapping[str, Any], carried: Any) -> Tensor:
        student = positions.pick(logits)
        state = self.batch_state(student, positions, fields, carried)
        taught = self._batch_taught(state)
        kind, settings = self._kind, self.loss_settings
        label_teaches = settings.kd_ratio < 1 or not taught.complete
        told = kind.label_losses(student, state) if label_teaches else None
        losses = kind.losses(student, state, taught, settings, None if told is None else told[0])
        if told is None:
            measured = kind.measured_later(student, state)
        else:
            measured = Measured(kind.measured, as_measured, told[0].detach(), told[1])
        self._since_logged.add(losses.detach(), taught.weights, measured)
        return losses

    def batch_state(
        self, student_logits: Tensor, positions: Positions, fields: Mapping[str, Any], carried: Any
    ) -> State:
        """What the weighting sees of a batch, on the student's device."""
        known = on_device(self.teachers.state(fields, carried, positions.pick), student_logits.device)
        if positions.count == 0:  # those that look rows up know nothing of what is picked
            known = first_rows(known, 0)
        state = self._kind.state(known, student_logits, positions.labels)
        if state.sureness is None and "sureness" in self.weighting.requires:
            state = replace(state, sureness=self.usual_sureness().expand(len(student_logits), -1))
        return state.but(
            progress=self.state.global_step / max(self.state.max_steps, 1),
            temperature=self.loss_settings.temperature,
            divergence=self.loss_settings.divergence,
        )

    def _over_processes(self, sums: Tensor) -> Tensor:
        """Sums over what each process has, in all of them."""
        return self.accelerator.reduce(sums.to(self.args.device)) if self._processes > 1 else sums

    def _batch_taught(self, state: State) -> Mixture:
        """What is taught of the rows of this process, by a weighting that sees the whole batch if it looks at it."""
        if self._processes == 1:
            return self._taught(state)
        if is_by_row(self.weighting):
            taught = mixture(self.weighting, state)
            assert state.progress is not None
            count = taught.weights.new_tensor([len(taught.weights)])
            total = self._over_processes(torch.cat([taught.weights.sum(0), count]).double())
            self.weight_record.add_total(state.progress, total)
            return taught
        shares = Shares.of_rows(self.accelerator, state.teacher_logits)
        whole = shares.whole_state(state)
        return part_of(self._taught(whole), shares.own)

    def _taught(self, state: State, groups: Tensor | None = None) -> Mixture:
        taught = mixture(self.weighting, state)
        assert state.progress is not None
        self.weight_record.add(state.progress, groups, taught.weights)
        if self._online is not None:
            learn(self.weighting, state)
        return taught

    def _check_finite(self, loss: Tensor, losses: Tensor, ids: Tensor | None = None) -> None:
        if not math.isfinite(loss.item()):
            ids = torch.arange(len(losses)) if ids is None else ids
            raise NonFiniteLossError(
                f"the loss must be finite, it became {loss.item()} at step {self.state.global_step}, instances "
                f"{ids[~torch.isfinite(losses.detach()).cpu()].tolist()[:16]}; lower the learning rate or look at "
                "these rows"
            )


class BatchTrainer(DistillationMixin, ResumableTrainer):
    """Checkpoints are whole or not used, and a run that was broken off resumes to what it would have been."""
