"""Train teachers for a task, all alike or each a specialist for about half of its classes or domains.

Everything a run writes for one teacher lies in its own directory. A run that was interrupted is started again with
the same arguments: finished teachers are skipped, the one in work continues from its last epoch.
"""

import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from rlkd.data.batching import LengthBucketSampler, encode_inputs
from rlkd.data.task import Task
from rlkd.devices import check_device
from rlkd.models.estimators import ESTIMATORS, SklearnTeacher, fit_estimator
from rlkd.models.inner_states import read_inner_states
from rlkd.models.networks import StepBar, attached, forward_inputs, quiet_transformers
from rlkd.models.specialists import known_rows
from rlkd.models.students import PREFIX, STUDENTS, load_student
from rlkd.models.teacher_files import write_hf, write_sklearn
from rlkd.models.teacher_info import TeacherInfo, write_info
from rlkd.models.teacher_settings import Objective, TeacherSettings, teacher_settings
from rlkd.models.teachers import HfTeacher, LabelledTeacher
from rlkd.models.tokenizer import task_texts, train_tokenizer
from rlkd.records import check_one_process, finished, newest_verified, once, write_manifest

IDS = "instance_ids"
OBJECTIVE = "rlkd_objective"
_WARMUP_SHARE = 0.1


def train_teachers(
    task: Task,
    output_dir: str | PathLike[str],
    *,
    kinds: Sequence[str],
    progress: bool = False,
    device: str | None = None,
    **settings: Any,
) -> list[Path]:
    """Train one teacher per kind on the labelled rows of the training split.

    Networks are trained by ``transformers.Trainer``, which seeds the global random generators.

    Args:
        task: The task; its test split is never read.
        output_dir: One directory per teacher is made here.
        kinds: ``"tfidf"`` (TF-IDF with logistic regression; of vectors logistic regression alone); of vectors and
            images ``"logistic"`` and ``"random-features"`` (of a Gaussian kernel, with logistic regression); names of
            ``STUDENTS``; hub ids or paths of pretrained encoders.
        progress: Show the trainer's progress bar.
        device: ``"cpu"`` keeps networks off the GPU. None: the GPU where there is one.
        **settings: Fields of :class:`rlkd.settings.TeacherTraining`: ``specialize`` (``"class"`` or ``"domain"``),
            ``variant``, ``share``; of networks ``epochs``, ``learning_rate``, ``batch_size``, ``num_layers``,
            ``max_length``, ``bf16``; ``seed``: teacher i is trained with ``seed + i``.

    Returns:
        The teachers' directories, in the order of ``kinds``; :func:`load_teachers` reads them.

    Raises:
        ConfigError: The settings do not fit the task.
        OutputDirectoryError: A directory holds a teacher made with other settings.
        TaskError: The task has no labelled training rows.
        TeacherError: A specialist's rows are too few to learn from.
    """
    check_one_process("teachers are trained")
    plans = teacher_settings(task, kinds=kinds, **settings)
    check_device(device)
    tokenizer = _shared_tokenizer(task, kinds)
    paths = [Path(output_dir) / plan.name(index) for index, plan in enumerate(plans)]
    for path, plan in zip(paths, plans, strict=True):
        own = tokenizer if plan.kind.startswith(PREFIX) else None
        train_teacher(task, path, plan, own, progress=progress, device=device)
    return paths


def _shared_tokenizer(task: Task, kinds: Sequence[str]) -> PreTrainedTokenizerBase | None:
    text = any(kind in STUDENTS and STUDENTS[kind].reads == ("text",) for kind in kinds)
    return train_tokenizer(task_texts(task)) if text and task.table.holds == "text" else None


def train_teacher(
    task: Task,
    path: Path,
    plan: TeacherSettings,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    objective: Objective | None = None,
    progress: bool = False,
    device: str | None = None,
) -> None:
    """Train one teacher into a directory, unless it is there; an interrupted training is continued.

    Args:
        task: The task.
        path: The teacher's directory; its name is the teacher's.
        plan: As :func:`~rlkd.models.teacher_settings.teacher_settings` makes it.
        tokenizer: Of networks from scratch.
        objective: Of a network, instead of the cross entropy.
        progress: Show the trainer's progress bar.
        device: ``"cpu"`` keeps networks off the GPU.

    Raises:
        OutputDirectoryError: The directory holds a teacher made with other settings.
    """
    settings = plan.fingerprint(task, objective)

    def make() -> dict[str, Any]:
        started = time.perf_counter()
        rows = known_rows(task, task.labelled_ids("train"), plan.known, plan.knows_by)
        teacher: LabelledTeacher
        if plan.kind in ESTIMATORS:
            model = fit_estimator(plan.kind, task, rows, plan.seed)
            write_sklearn(model, path)
            teacher = SklearnTeacher(path.name, model, allow_missing=True)
        else:
            work = path / f"training-{settings}"
            teacher = _train_network(task, path, plan, rows, tokenizer, work, objective, progress, device)
        return _describe(task, path, plan, teacher, settings, len(rows), time.perf_counter() - started)

    once(path, settings, make)
    for leftover in path.glob("training-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def training_seconds(folder: Path) -> float:
    """What the training of a teacher of :mod:`rlkd` took: one that was there already has cost what it cost."""
    done = finished(folder)
    return 0.0 if done is None else float(done.made.get("seconds") or 0.0)


def _describe(
    task: Task, path: Path, plan: TeacherSettings, teacher: LabelledTeacher, settings: str, rows: int, seconds: float
) -> dict[str, Any]:
    """Write what a teacher knows and how it was trained; returns its figures."""
    ids = task.labelled_ids("validation")
    known = np.isin(ids, known_rows(task, ids, plan.known, plan.knows_by))
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
    return metrics


def _train_network(
    task: Task,
    path: Path,
    plan: TeacherSettings,
    rows: NDArray[np.int64],
    tokenizer: PreTrainedTokenizerBase | None,
    work: Path,
    objective: Objective | None,
    progress: bool,
    device: str | None,
) -> HfTeacher:
    model, tokenizer = load_student(plan.kind, task, num_layers=plan.num_layers, seed=plan.seed, tokenizer=tokenizer)
    inputs = encode_inputs(task, tokenizer, plan.max_length)
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
        # Two: while the newer one is written, the older one can be continued from.
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=plan.bf16,
        remove_unused_columns=False,
        use_cpu=device == "cpu" or not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available() and device != "cpu",
    )

    def collate(ids: list[int]) -> dict[str, Tensor]:
        index = np.asarray(ids)
        labels = torch.from_numpy(task.table.labels[index])
        own = {} if objective is None else {IDS: torch.from_numpy(index)}
        return {**forward_inputs(model, inputs.batch(index)), "labels": labels, **own}

    with quiet_transformers(), closing(StepBar(path.name, show=progress)) as bar:
        trainer = _TeacherTrainer(model, arguments, data_collator=collate, train_dataset=rows.tolist(), callbacks=[bar])
        trainer.lengths, trainer.objective = inputs.lengths[rows], objective
        trainer.remove_callback(PrinterCallback)
        newest = newest_verified(work)
        with attached(model, OBJECTIVE, None if objective is None else objective.module):
            trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    # where it trained in bfloat16 its forward pass still would be: it is to answer as it will when it is loaded
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if objective is not None:
        objective.save(path)
    write_hf(model, tokenizer, path)
    return HfTeacher(path.name, model, tokenizer, device=device)


class _TeacherTrainer(Trainer):
    """The plain trainer with batches of similar lengths and checkpoints that can be verified."""

    lengths: NDArray[np.int64]
    """Length of every training row, shape (N,)."""
    objective: Objective | None = None

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        if self.objective is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        fields = dict(inputs)
        ids, labels = fields.pop(IDS), fields.pop("labels")
        outputs, inside = read_inner_states(model, fields, self.objective.wanted)
        return self.objective.losses(outputs.logits, inside, ids, labels).mean()

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthBucketSampler:
        return LengthBucketSampler(self.lengths, self.args.train_batch_size, seed=self.args.seed)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        write_manifest(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")


def _mean(right: NDArray[np.bool_]) -> float | None:
    return round(float(right.mean()), 4) if len(right) else None
