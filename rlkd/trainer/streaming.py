"""Streams as data sets of a trainer: a pass over one ends as an epoch does, and a run goes on where it was broken off.

The Trainer does not know how many batches a stream has. So it would leave the gradients of a last window of
accumulation that is not full to the next pass, and find the place of a checkpoint in the first pass alone.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rlkd.errors import StudentError
from rlkd.records import parse_object
from rlkd.trainer.rows import is_stream

log = logging.getLogger(__name__)

STREAM_FILE = "stream.json"
"""Of a checkpoint: the pass that it was in, and how many batches of it were read."""


class PassLength(int):
    """Batches of a pass over a stream, as the Trainer asks for them: those of all steps, until the last one is seen."""

    ends_at: int | None = None
    """How many there were."""

    def __eq__(self, other: object) -> bool:
        """Whether a batch of this number is the last one: that is all that the Trainer compares it with."""
        return super().__eq__(other) if self.ends_at is None else other == self.ends_at

    __hash__ = int.__hash__


class ReadsStreams:
    """Of a trainer: where it is in a stream."""

    args: Any
    _pass: PassLength | None = None
    """Of the stream that is read; None: the data set is none."""
    _epoch = _read = 0

    @property
    def _reads_stream(self) -> bool:
        data = cast(Any, self).train_dataset
        return data is not None and is_stream(data)

    def _run_epoch(self, **kwargs: Any) -> None:
        self._pass = None
        if self._reads_stream:
            self._pass = kwargs["steps_in_epoch"] = PassLength(kwargs["steps_in_epoch"])
            self._epoch, resumed = kwargs["epoch"], kwargs["resume_from_checkpoint"] is not None
            begun = resumed and self._epoch == kwargs["epochs_trained"]
            self._read = kwargs["steps_trained_in_current_epoch"] if begun else 0
        cast(Any, super())._run_epoch(**kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *args: Any) -> Any:
        """The Trainer's own."""
        batches, count = cast(Any, super()).get_batch_samples(epoch_iterator, num_batches, *args)
        if self._pass is not None:
            self._read += len(batches)
            if len(batches) < num_batches:
                self._pass.ends_at = self._read
        return batches, count

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """Epochs that are done, and batches of the next: of a stream as its checkpoint tells them."""
        counts = (max_steps, num_update_steps_per_epoch, num_train_epochs)
        begun: tuple[int, int] = cast(Any, super())._init_training_state(*counts, resume_from_checkpoint, trial)
        if resume_from_checkpoint is None or not self._reads_stream:
            return begun
        path = Path(resume_from_checkpoint) / STREAM_FILE
        if not path.is_file():
            log.warning(
                "%s does not say where in the stream it was; it is taken for one of the first pass", path.parent
            )
            return begun
        match parse_object(path.read_bytes()):
            case {"epoch": int(epoch), "batches": int(batches)}:
                return epoch, 0 if self.args.ignore_data_skip else batches
        raise StudentError(f"expected the numbers epoch and batches in {path}, got none; take another checkpoint")

    def _own_state(self) -> Mapping[str, Any]:
        state: Mapping[str, Any] = cast(Any, super())._own_state()
        if self._pass is None:
            return state
        return {**state, STREAM_FILE: {"epoch": self._epoch, "batches": self._read}}
