"""What a student meets: batches in an order, with sets of teachers; no student is trained here."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.data.batching import bucketed_order
from rlkd.logit_cache import read_state
from rlkd.types import State

from .setup import DistillationSetup


class Course:
    """The batches of one student, from the first to the last: a function of the seed given to :meth:`start`.

    Students learn from every train row, as reported students do; labels are for rewards. Where fewer than half of the
    rows have one, rewarded students repeat those, so that half of their instances can be rewarded; a trial student, by
    which policies are compared, meets every row as often as any other.
    """

    ids: NDArray[np.int64]
    """Of the batch at hand, shape (B,)."""
    probe_ids: NDArray[np.int64]
    """Of the probe rows drawn for this step, shape (P,)."""
    state: State
    """Of the batch at hand, with its drawn sets of teachers, on the CPU."""

    def __init__(self, setup: DistillationSetup, *, rewarded: bool) -> None:
        """Begin nothing yet.

        Args:
            setup: What students share.
            rewarded: Whether steps are rewarded.
        """
        self._setup, self._settings = setup, setup.settings
        self._train_ids = half_labelled(setup.train_ids, setup.labelled_ids) if rewarded else setup.train_ids
        self.step_index = 0

    def start(self, seed: int) -> None:
        """Go to the first batch."""
        self._seed, self.step_index, self._epoch, self._cursor = seed, 0, 0, 0
        self._order = self._epoch_order()
        self._random = np.random.default_rng(seed)
        self._next_batch()

    def move_on(self) -> None:
        """Go to the next batch."""
        self.step_index += 1
        self._next_batch()

    @property
    def progress(self) -> float:
        """Share of the horizon that is spent, in [0, 1]."""
        return self.step_index / self._settings.horizon

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.step_index >= self._settings.horizon

    @property
    def learning_rate(self) -> float:
        """Of the step at hand."""
        return self._settings.learning_rate * (1 - self.progress)

    @property
    def labels(self) -> Tensor:
        """Of the batch at hand, shape (B,), -1 for none."""
        assert self.state.labels is not None
        return self.state.labels

    def _next_batch(self) -> None:
        size = self._settings.batch_size
        if self._cursor >= len(self._order):
            self._epoch, self._cursor = self._epoch + 1, 0
            self._order = self._epoch_order()
        self.ids = self._order[self._cursor : self._cursor + size]
        self._cursor += size
        probes = self._setup.probe_ids
        self.probe_ids = np.asarray(self._random.choice(probes, min(self._settings.probe_size, len(probes)), False))
        state = read_state(self._setup.task, self._setup.source, torch.from_numpy(self.ids))
        self.state = self._setup.teacher_sets.draw(state, self._random)[0]

    def _epoch_order(self) -> NDArray[np.int64]:
        lengths = self._setup.inputs.lengths[self._train_ids]
        order: NDArray[np.int64] = bucketed_order(lengths, self._settings.batch_size, self._seed, self._epoch)
        return self._train_ids[order]


def half_labelled(rows: NDArray[np.int64], labelled: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows with those that have a label repeated, where these are fewer, until they are half of all.

    Args:
        rows: Ids, shape (N,).
        labelled: Those of them that have a label, at least one.
    """
    unlabelled = len(rows) - len(labelled)
    return np.concatenate([rows, *[labelled] * (-(-unlabelled // len(labelled)) - 1)])
