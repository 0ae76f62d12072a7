"""Weights that are a function of the row, asked once a row of a cache before a run: a step then reads them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from rlkd.kinds import Kind
from rlkd.trainer.batch_teachers import BatchTeachers
from rlkd.trainer.looked_up_teachers import CachedTeachers
from rlkd.weighting import BaseWeighting


class WeighsBeforehand:
    """Of a trainer: who its weighting is while it trains."""

    args: Any
    teachers: BatchTeachers
    weighting: BaseWeighting
    _kind: Kind
    _processes: int
    restrained_weighting: Callable[[], BaseWeighting]

    @contextmanager
    def _rows_weighed(self) -> Iterator[None]:
        """Restrain ``auto``, and ask a weighting by row once a row."""
        restrained = self.restrained_weighting()  # may find out of what kind batches are
        asked = self.weighting
        kept = self.weighting = self._weighed_beforehand(restrained)
        try:
            yield
        finally:
            if kept is not asked:  # one that learns online is another object now
                self.weighting = asked

    def _weighed_beforehand(self, weighting: BaseWeighting) -> BaseWeighting:
        """The weighting, asked about all rows of the teachers' cache if it may be, and if the run sees as many."""
        teachers = self.teachers
        alone = type(self._kind) is Kind and self._processes == 1
        if alone and isinstance(teachers, CachedTeachers) and self._sees(teachers.rows):
            return teachers.weighed(weighting)
        return weighting

    def _sees(self, rows: int) -> bool:
        """Whether the run is long enough to see so many rows."""
        args = self.args
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if args.max_steps > 0:
            return bool(args.max_steps * batch >= rows)
        try:
            return bool(args.num_train_epochs * len(cast(Any, self).train_dataset) >= rows)
        except TypeError:  # a stream
            return False
