"""How sure a trainer's teachers usually are, measured before they are believed."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler

from rlkd.features import usual_sureness
from rlkd.kinds import Kind
from rlkd.trainer.batch_teachers import BatchTeachers
from rlkd.trainer.collating import CARRIED
from rlkd.trainer.randomness import generators_as_they_were
from rlkd.trainer.rows import some_rows
from rlkd.trainer.shares import WHOLE, first_rows
from rlkd.types import State

SURENESS_ROWS = 512
"""Rows of the training data that live teachers are asked about beforehand: how sure each usually is."""
KEPT = 2**18
"""Numbers of a batch that are kept of what they say, at most: all, but of tokens of large models."""


class MeasuresSureness:
    """Of a trainer whose teachers are asked about batches."""

    args: Any
    teachers: BatchTeachers
    _kind: Kind
    _sureness: Tensor | None
    _positions: Callable[..., Any]
    _dealt: Callable[..., Any]
    _over_processes: Callable[[Tensor], Tensor]

    def usual_sureness(self) -> Tensor:
        """How sure each teacher usually is, shape (K,): on rows of the training data, evenly spaced, measured once.

        That draws nothing that the student would draw, who is the same as with a cache, which needs no measuring.
        """
        if self._sureness is None:
            self.asked_beforehand()
        return cast(Tensor, self._sureness)

    def asked_beforehand(self) -> list[State]:
        """Ask the teachers about some rows of the training data, and see how sure they usually are.

        Returns:
            States of this process, as weightings see them, of some instances or tokens of every batch.
        """
        total = torch.zeros(len(self.teachers.names) + 1, dtype=torch.float64, device=self.args.device)
        kept = []
        with generators_as_they_were():
            for state in self._states_beforehand():
                logits = state.teacher_logits
                total[:-1] += usual_sureness(logits).double().to(total.device) * len(logits)
                total[-1] += len(logits)
                kept.append(first_rows(state, max(1, KEPT // logits[0].numel())))
        total = self._over_processes(total)
        sureness = self._sureness = (total[:-1] / total[-1]).float()
        return [state.but(sureness=sureness.expand(len(state.teacher_logits), -1)) for state in kept]

    def _states_beforehand(self) -> Iterator[State]:
        for batch in self._sureness_batches():
            fields = dict(cast(Any, self)._prepare_inputs(batch))
            carried = fields.pop(CARRIED, {})
            positions = self._positions(fields)
            fields = {name: value for name, value in fields.items() if name not in ("labels", WHOLE)}
            known = self.teachers.state(fields, carried, positions.pick)
            if len(known.teacher_logits):
                yield known.but(teacher_logits=self._kind.choices(known.teacher_logits))

    def _sureness_batches(self) -> Any:
        rows = some_rows(cast(Any, self).train_dataset, SURENESS_ROWS)
        if self.args.world_size == 1:
            return cast(Any, self).get_test_dataloader(rows)
        return self._dealt(rows, SequentialSampler(cast(Any, rows)), self.args.eval_batch_size)
