"""``auto`` in a trainer: the policy that is shipped, where it would change what the student is taught."""

import logging
from typing import Any

import torch

from rlkd.kinds import Kind
from rlkd.trainer.looked_up_teachers import CachedTeachers
from rlkd.trainer.sureness import MeasuresSureness
from rlkd.weighting import BaseWeighting
from rlkd.weighting.fixed import Uniform
from rlkd.weighting.policy_files import AUTO
from rlkd.weighting.shipped import LEAST_CHANGE, change, mean_of, too_little

log = logging.getLogger(__name__)


class RestrainsAuto(MeasuresSureness):
    """Of a trainer: what ``auto`` is, once its teachers were asked about some rows; see :mod:`rlkd.weighting.shipped`.

    A policy that was passed as such, ``policy:auto`` too, is not looked at.
    """

    weighting: BaseWeighting
    _chosen: Any
    _given: BaseWeighting
    _changes: float | None = None
    """Of ``auto``; None: not measured."""

    def restrained_weighting(self) -> BaseWeighting:
        """The weighting to train with: of ``auto`` equal weights, where it would change too little."""
        if self._chosen != AUTO or len(self.teachers.names) == 1:
            return self.weighting
        if self._changes is None:
            self._changes = self._mean_change()
        if self._changes >= LEAST_CHANGE:
            return self.weighting
        log.warning("'uniform' is used: %s; 'policy:auto' insists", too_little(AUTO, self._changes))
        return self._kind.adapted(Uniform())

    def _mean_change(self) -> float:
        """On rows of the cache, else on those that teachers are asked about, in all processes."""
        if isinstance(self.teachers, CachedTeachers) and type(self._kind) is Kind:  # others choose among more
            return mean_of(change(self._given, self.teachers.some_rows()))
        changes = [change(self._given, state).double() for state in self.asked_beforehand()]
        total = torch.tensor([0.0, sum(map(len, changes))], dtype=torch.float64, device=self.args.device)
        total[0] = sum(float(some.sum()) for some in changes)
        summed, count = self._over_processes(total).tolist()
        return float(summed / max(count, 1))
