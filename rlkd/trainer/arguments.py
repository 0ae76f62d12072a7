"""Arguments of a distillation, and what becomes of everything that :class:`transformers.Trainer` can be told.

Nothing is ignored: a setting is honoured by the Trainer's own code, or by ours where that takes its place, or refused.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from rlkd.errors import ConfigError
from rlkd.records import check_launcher
from rlkd.settings import LossSettings, StepSettings, check_loss_settings
from rlkd.settings.knobs import field_of
from rlkd.weighting.policy_files import AUTO

BY_THE_TRAINER = frozenset(
    """
    output_dir num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim
    optim_args optim_target_modules weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm bf16 fp16
    bf16_full_eval fp16_full_eval tf32 activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
    gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode use_liger_kernel
    liger_kernel_config use_cache neftune_noise_alpha torch_empty_cache_steps logging_strategy logging_steps
    logging_first_step log_on_each_node include_num_input_tokens_seen log_level log_level_replica disable_tqdm
    report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps
    eval_delay per_device_eval_batch_size eval_on_start eval_use_gather_object eval_accumulation_steps
    include_for_metrics save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub
    hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision load_best_model_at_end
    metric_for_best_model greater_is_better ignore_data_skip restore_callback_states_from_checkpoint full_determinism
    use_cpu dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout debug skip_memory_metrics
    """.split()
)
"""Fields that reach the run through code of transformers that nothing of ours replaces."""
BY_US: Mapping[str, str] = {
    "per_device_train_batch_size": "our sampler makes batches of this size",
    "gradient_accumulation_steps": "our sampler buckets a whole step, our loss is divided by it",
    "seed": "orders the batches, where data_seed does not",
    "data_seed": "orders the batches",
    "dataloader_drop_last": "the partial batch comes last, and is dropped",
    "prediction_loss_only": "evaluation returns no logits; predict_split does nevertheless",
    "eval_do_concat_batches": "refused with our metrics; predict_split joins its batches nevertheless",
    "batch_eval_metrics": "refused with our metrics; predict_split gives logits nevertheless",
    "save_only_model": "such checkpoints are refused when a run is to be resumed from them",
    "logging_nan_inf_filter": "nothing to filter: a loss that is not finite ends the run",
    "remove_unused_columns": "a task has no columns, those that teachers read are kept",
    "accelerator_config": "how batches are split over processes is ours, and refused",
}
"""Fields that code of ours honours, and how; each has a test."""
REFUSED: Mapping[str, str] = {
    "label_smoothing_factor": "the loss has no smoothed labels: teachers soften them, with kd_ratio or temperature",
    "parallelism_config": "students are not sharded; torchrun splits the batches of one over processes",
    "fsdp": "students are not sharded; torchrun splits the batches of one over processes",
    "fsdp_config": "students are not sharded; torchrun splits the batches of one over processes",
    "deepspeed": "students are not sharded; torchrun splits the batches of one over processes",
    "do_train": "call train()",
    "do_eval": "call evaluate(), or set eval_strategy",
    "do_predict": "call predict(), or predict_split() of a task",
    "resume_from_checkpoint": "pass it to train()",
    "local_rank": "torchrun tells a process its rank",
}
"""Fields that would be ignored, and what to do instead; they keep their defaults."""
REFUSED_WITH_TASKS: Mapping[str, str] = {
    "train_sampling_strategy": "batches are bucketed by length, alike for every run of a seed; leave it at 'random'",
    "length_column_name": "lengths are those of the encoded inputs",
    "auto_find_batch_size": "runs of a seed share their batches; set per_device_train_batch_size",
    "average_tokens_across_devices": "the loss is a mean over instances, not over tokens",
    "label_names": "labels are the task's",
    "teachers": "a task has a cache",
    "weighting": "pass it to from_task",
    "text_columns": "texts are the task's",
    "id_column": "rows are the task's",
    "offload_teachers": "a task has a cache",
    "cache": "pass that of the task to from_task",
}
"""Fields that a trainer of a task would ignore; others do as they say."""
RESOLVED: Mapping[str, Any] = {"fsdp": [], "fsdp_config": {}}
"""What transformers makes of a default, or what means the same: not given."""
PLAIN_REFUSED = ("label_smoothing_factor", "parallelism_config", "fsdp", "deepspeed")
"""Of those, what plain ``TrainingArguments`` may not have: the others do not change what a trainer does."""
SPLITTING = ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler")
"""Of ``accelerator_config``: how it would split batches over processes, which we do."""

TRAINER_BY_THE_TRAINER = frozenset({"callbacks", "optimizers", "optimizer_cls_and_kwargs"})
TRAINER_BY_US = frozenset({"model", "args", "processing_class", "compute_metrics", "preprocess_logits_for_metrics"})
TRAINER_REFUSED: Mapping[str, str] = {"compute_loss_func": "the loss is the distillation loss; pass a weighting"}
TRAINER_REFUSED_WITH_TASKS: Mapping[str, str] = {
    "data_collator": "batches are made from the task",
    "train_dataset": "the task's train rows are the data set",
    "eval_dataset": "the task's validation rows are; predict_rows takes others",
    "model_init": "pass the model; a search makes a trainer of each trial",
}
"""What :class:`transformers.Trainer` itself takes, sorted likewise."""


def _argument(settings: type, name: str) -> Any:
    """A setting as transformers takes one: of what is known of it, ``HfArgumentParser`` reads the help alone."""
    there = field_of(settings, name)
    return field(default=there.default, metadata={"help": there.metadata["help"]})


@dataclass
class DistillationArguments(TrainingArguments):
    """Training arguments with the settings of the distillation loss; see :func:`rlkd.losses.distillation_loss`.

    A process uses one device; several are used by as many processes, started by ``torchrun``.
    """

    temperature: float = _argument(LossSettings, "temperature")
    kd_ratio: float = _argument(LossSettings, "kd_ratio")
    mix: str = _argument(LossSettings, "mix")
    scale_by_temperature: bool = _argument(LossSettings, "scale_by_temperature")
    divergence: str = _argument(LossSettings, "divergence")
    max_length: int = _argument(StepSettings, "max_length")
    teachers: list[str] | None = field(default=None, metadata={"help": "Paths or hub ids of teachers, or one cache."})
    weighting: str = field(default=AUTO, metadata={"help": "Name of a weighting, or path or hub id of a policy."})
    text_columns: list[str] | None = field(
        default=None,
        metadata={"help": "Column of texts, or two of pairs, for teachers with other tokenizers than the student's."},
    )
    id_column: str = field(default="id", metadata={"help": "Column of the numbers of rows in a cache of teachers."})
    cache: str | None = field(
        default=None, metadata={"help": "Folder that keeps what teachers say of rows, or auto; by default nothing is."}
    )
    offload_teachers: bool = field(
        default=False, metadata={"help": "Keep teachers on the CPU but while they are asked."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Nothing to filter: a loss that is not finite ends the run."}
    )

    def __post_init__(self) -> None:
        """Check ranges, and refuse what would be ignored."""
        check_loss_settings(self.temperature, self.kd_ratio, self.mix, self.divergence)
        check_launcher()
        refuse_ignored(self, REFUSED)
        usual = next(entry.default for entry in dataclasses.fields(self) if entry.name == "num_train_epochs")
        if self.max_steps > 0 and self.num_train_epochs != usual:
            raise ConfigError(
                f"num_train_epochs would be ignored beside max_steps, got {self.num_train_epochs} and "
                f"{self.max_steps}; leave one of the two out"
            )
        super().__post_init__()

    @property
    def device(self) -> torch.device:
        """The one device of this process."""
        device: torch.device = super().device
        # DataParallel would multiply the batch by the number of devices
        self._n_gpu: int = min(self.n_gpu, 1)
        return device


def refuse_ignored(args: TrainingArguments, refused: Mapping[str, str]) -> None:
    """Refuse fields that are given and would be ignored.

    Args:
        args: Before the defaults of transformers are resolved, or after.
        refused: By name, what to do instead.

    Raises:
        ConfigError: One of them differs from its default.
    """
    for entry in dataclasses.fields(args):
        value = getattr(args, entry.name)
        if (
            entry.name not in refused
            or value in (entry.default, None)
            or value == RESOLVED.get(entry.name, entry.default)
        ):
            continue
        if entry.name == "do_eval" and args.eval_strategy != "no":  # transformers switches it on itself
            continue
        raise ConfigError(
            f"{entry.name} would be ignored, got {value!r}: {refused[entry.name]}; leave the training argument out"
        )


def check_arguments(args: TrainingArguments, given: Mapping[str, Any]) -> None:
    """Refuse what a trainer of batches would ignore: of plain ``TrainingArguments``, and of the Trainer's own.

    Args:
        args: Of the run.
        given: Arguments of the Trainer by name.

    Raises:
        ConfigError: Says what to do instead.
    """
    if not isinstance(args, DistillationArguments):
        refuse_ignored(args, {name: REFUSED[name] for name in PLAIN_REFUSED})
    if args.fp16 and args.device.type == "cpu":
        raise ConfigError("fp16 would be ignored on the CPU, got True: computing there is in float32 or bf16; set bf16")
    _refuse_given(given, TRAINER_REFUSED)


def check_task_arguments(args: DistillationArguments, given: Mapping[str, Any]) -> None:
    """Refuse what a trainer of a task would ignore, or what would not fit.

    Args:
        args: Of the run.
        given: Arguments of the Trainer by name, beside the model, its arguments and its tokenizer.

    Raises:
        ConfigError: Says what to do instead.
    """
    refuse_ignored(args, REFUSED_WITH_TASKS)
    _refuse_given(given, {**TRAINER_REFUSED, **TRAINER_REFUSED_WITH_TASKS})
    changed = [n for n in SPLITTING if getattr(args.accelerator_config, n) != getattr(type(args.accelerator_config), n)]
    if changed:
        raise ConfigError(
            f"accelerator_config got {changed[0]}={getattr(args.accelerator_config, changed[0])!r}, which would be "
            "ignored: every process takes its share of each batch; leave it out"
        )
    unusual = {
        "preprocess_logits_for_metrics": given.get("preprocess_logits_for_metrics") is not None,
        "eval_do_concat_batches=False": not args.eval_do_concat_batches,
        "batch_eval_metrics": args.batch_eval_metrics,
    }
    for name, is_so in unusual.items():
        if is_so and "compute_metrics" not in given:
            raise ConfigError(
                f"our metrics read the logits of a whole split, got {name}; pass compute_metrics that fit too"
            )


def _refuse_given(given: Mapping[str, Any], refused: Mapping[str, str]) -> None:
    for name, value in given.items():
        if name in refused and value is not None:
            raise ConfigError(f"{name} would be ignored, got one: {refused[name]}; leave it out")
