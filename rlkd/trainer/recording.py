"""What a trainer says of its weights: in its logs, and in the checkpoints that it goes on from."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from rlkd.trainer.batch_teachers import BatchTeachers
from rlkd.trainer.logged import Sums
from rlkd.trainer.resuming import ResumableTrainer, saved, write_state
from rlkd.weight_record import WeightRecord
from rlkd.weighting import OnlineWeighting

WEIGHT_FILE = "weights.json"
WEIGHTING_FILE = "weighting.json"


class KeepsRecords:
    """Of a trainer: the mean weight of each teacher, what else is logged, and what a weighting learned online."""

    args: Any
    state: Any
    teachers: BatchTeachers
    weight_record: WeightRecord
    _since_logged: Sums
    _online: OnlineWeighting | None
    _over_processes: Callable[[Tensor], Tensor]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean weight per teacher since the start of the run to the training logs."""
        if "loss" in logs:
            total = self.weight_record.sums.sum((0, 1)) / max(self.weight_record.counts.sum(), 1)
            logs |= {f"weight/{n}": float(w) for n, w in zip(self.teachers.names, total, strict=True)}
            logs |= self._since_logged.means(self._over_processes)
        cast(Any, super()).log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        mine = cast(Any, self)
        cast(Any, super())._save_checkpoint(model, trial)
        if not isinstance(self, ResumableTrainer):  # who writes it too
            write_state(Path(mine._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}", self)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        cast(Any, super())._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and not isinstance(self, ResumableTrainer):
            self._read_state(Path(checkpoint))

    def _own_state(self) -> Mapping[str, Any]:
        logged = self._since_logged.totals(self._over_processes)
        weights = {WEIGHT_FILE: self.weight_record.state() | {"since_logged": logged}}
        return weights if self._online is None else {**weights, WEIGHTING_FILE: self._online.state_dict()}

    def _read_state(self, folder: Path) -> None:
        so_far = saved(folder / WEIGHT_FILE, "the weights so far")
        self.weight_record.load(so_far)
        self._since_logged.load(so_far.get("since_logged", {}), self.args)
        if self._online is not None:
            self._online.load_state_dict(saved(folder / WEIGHTING_FILE, "what the weighting had learned"))
