"""Checkpoints that are whole or not used, and runs that resume to what they would have been."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME
from transformers.trainer_callback import TrainerCallback

from rlkd.errors import StudentError, WeightingError
from rlkd.ranks import told_by_the_first
from rlkd.records import newest_verified, parse_object, step_number, write_json_atomic, write_manifest
from rlkd.trainer.shares import mean_over

LOSS_FILE = "losses.json"


class ResumableTrainer(Trainer):
    """A :class:`transformers.Trainer` that ends alike, however often it was broken off: figures, too.

    A run that had ended takes no further step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what the Trainer takes."""
        super().__init__(*args, **kwargs)
        self._losses_before: dict[str, Any] | None = None
        self.add_callback(_GoesOn(self))

    def _own_state(self) -> Mapping[str, Any]:
        """What a checkpoint holds that the Trainer does not know of, by the name of a file: asked in all processes."""
        return {}

    def _read_state(self, folder: Path) -> None:
        """Read what :meth:`_own_state` gave."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Say the mean loss of the whole run at its end, not of the part since it was resumed."""
        if "train_loss" in logs:
            before = self._total_loss_scalar - self._tr_loss.item()
            logs["train_loss"] = (before + self._loss_since_logged()) / max(self.state.global_step, 1)
        super().log(logs, *args, **kwargs)

    def _loss_since_logged(self) -> float:
        if self.args.world_size == 1:
            return float(self._tr_loss.item())
        return float(mean_over(self.accelerator, np.array([self._tr_loss.item()]))[0])

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # the manifest is written last: a checkpoint without one that verifies is not resumed from
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        losses = {"logged": self._total_loss_scalar, "since": self._loss_since_logged()}
        if self.args.should_save:
            write_json_atomic(folder / LOSS_FILE, losses | {"logged_at": self._globalstep_last_logged})
        write_state(folder, self)
        self.accelerator.wait_for_everyone()  # each process writes the state of its generators
        if self.args.should_save:
            write_manifest(folder)

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; ``resume_from_checkpoint=True`` takes the newest checkpoint that verifies, or starts anew.

        Checkpoints newer than that one are damaged (a killed writer's) and are removed.

        Raises:
            StudentError: A checkpoint cannot be continued from.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._newest_checkpoint()
        self._losses_before = None
        if resume_from_checkpoint:
            self._restore(Path(resume_from_checkpoint))
        output = super().train(resume_from_checkpoint, trial, *args, **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])

    def _restore(self, folder: Path) -> None:
        if not (folder / OPTIMIZER_NAME).is_file():
            raise StudentError(
                f"expected the optimizer's state in {folder}, got none (save_only_model keeps it out); a run cannot be "
                "continued from it, start anew"
            )
        self._losses_before = saved(folder / LOSS_FILE, "the loss so far")
        self._read_state(folder)

    def _go_on(self) -> None:
        """After the Trainer has begun to count at zero."""
        before = self._losses_before
        if before is not None:
            self._total_loss_scalar, self._globalstep_last_logged = before["logged"], before["logged_at"]
            self._tr_loss.fill_(before["since"])

    def _run_epoch(self, **kwargs: Any) -> None:
        # the Trainer takes a step before it asks whether there are any left
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    def _newest_checkpoint(self) -> str | None:
        return told_by_the_first(self._verified()) if self.args.world_size > 1 else self._verified()

    def _verified(self) -> str | None:
        """The newest checkpoint that verifies; the first process removes those after it."""
        folder = Path(self.args.output_dir)
        if not self.is_world_process_zero():
            return None
        newest = newest_verified(folder) if folder.is_dir() else None
        for other in folder.glob("checkpoint-*"):
            if newest is None or step_number(other) > step_number(newest):
                shutil.rmtree(other)
        return None if newest is None else str(newest)


class _GoesOn(TrainerCallback):
    """Tells a trainer when its Trainer has begun."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._trainer._go_on()


def write_state(folder: Path, trainer: Any) -> None:
    """Put beside a checkpoint of the Trainer what it does not know of; all processes ask, the first writes.

    Args:
        folder: Of the checkpoint.
        trainer: With ``_own_state``.
    """
    state = trainer._own_state()
    if trainer.args.should_save:
        for name, values in state.items():
            write_json_atomic(folder / name, values)


def saved(path: Path, what: str) -> dict[str, Any]:
    """What a file of a checkpoint holds.

    Raises:
        WeightingError: There is none.
    """
    values = parse_object(path.read_bytes()) if path.is_file() else None
    if values is None:
        raise WeightingError(
            f"expected {what} in {path}, found nothing; resume with the weighting and the rlkd release of the run"
        )
    return values
