"""Weights that are a function of the row: asked once for every row of a cache, kept beside it, and then read.

What a policy without student features says of an instance changes neither with the batch nor with the student, so
that a step with it then costs what a step with equal weights costs.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from rlkd.devices import one_thread
from rlkd.errors import OutputDirectoryError
from rlkd.logit_cache import KEPT, LogitCache
from rlkd.logit_cache.held import Read
from rlkd.records import digest, once, source, write_array_atomic
from rlkd.types import LogitSource, State
from rlkd.weighting.absent import check_taught, has_somebody
from rlkd.weighting.base import BaseWeighting, Mixture
from rlkd.weighting.checks import check_weights

log = logging.getLogger(__name__)

FILE = "weights.npy"
AT_ONCE, FEWEST = 2**17, 32
"""Teacher logits that are read at once, what a processor keeps close by; and rows at least."""


class RowWeights(BaseWeighting):
    """Weights by instance id, which stand for a weighting that was asked about every row beforehand."""

    def __init__(
        self, own: BaseWeighting, ids: NDArray[np.int64], weights: Tensor, present: Tensor | None = None
    ) -> None:
        """Hold what was said.

        Args:
            own: The weighting that said it.
            ids: Of the instances that it was asked about, shape (N,).
            weights: Checked, float32, shape (N, K).
            present: Which teachers were there, bool, shape (N, K); None: all.
        """
        self.own, self._present = own, present
        self._place = torch.full((int(ids.max(initial=-1)) + 1,), len(ids))  # of others: out of range, an error
        self._place[torch.from_numpy(ids)] = torch.arange(len(ids))
        self._weights, self._complete = weights, bool((weights.sum(-1) > 0).all())

    @property
    def requires(self) -> frozenset[str]:
        """What the weighting requires, and the ids that its weights are found by."""
        return self.own.requires | {"ids"}

    @property
    def falls_back(self) -> str:
        """What the weighting says."""
        return self.own.falls_back

    @property
    def called(self) -> str:
        """The weighting's own class."""
        return self.own.called

    def weights(self, state: State) -> Tensor:
        """Weights of a batch, shape (B, K), on the device of its ids.

        Raises:
            IndexError: The weighting was not asked about one of its rows.
        """
        return self._weights.index_select(0, self._places(state))

    def _places(self, state: State) -> Tensor:
        assert state.ids is not None
        device = state.ids.device
        if self._weights.device != device:
            self._place, self._weights = self._place.to(device), self._weights.to(device)
            self._present = None if self._present is None else self._present.to(device)
        return self._place.index_select(0, state.ids)

    def taught(self, state: State) -> Mixture:
        """The logits as they are; where others are absent than were before, the weighting is asked anew."""
        if not self._as_before(state):
            return self.own.taught(state)
        return Mixture(
            teacher_logits=state.teacher_logits, weights=self.weights(state), checked=True, complete=self._complete
        )

    def _as_before(self, state: State) -> bool:
        if state.teacher_mask is None or self._present is None:
            return state.teacher_mask is self._present
        return torch.equal(state.teacher_mask, self._present.index_select(0, self._places(state)))


def is_by_row(weighting: BaseWeighting) -> bool:
    """Whether its weights may be kept: its own class says so, not one that it inherits from, and it adjusts nothing."""
    return bool(_declared(weighting, "by_row")) and type(weighting).taught is BaseWeighting.taught


def _declared(weighting: BaseWeighting, name: str) -> Any:
    """What its own class says, None for nothing: what it inherits may not hold of what it changed."""
    return getattr(weighting, name) if name in vars(type(weighting)) else None


def once_a_row(
    weighting: BaseWeighting, teachers: LogitSource, ids: NDArray[np.int64], read: Read, labels: Tensor | None = None
) -> BaseWeighting:
    """The same weighting, asked about these rows beforehand if its weights are a function of the row.

    What has a name for what it does (``kept_as``) and a cache on disk is computed once for all runs, and lies beside
    the cache then; by its key it belongs to this weighting, these numbers, this code and this torch alone. Where the
    folder cannot be written to, the weights stay in memory.

    Args:
        weighting: Asked on the CPU, on one thread.
        teachers: Only those of a cache say the same of a row whenever they are asked.
        ids: Rows that it will be asked about, shape (N,).
        read: Gives the states of rows by their ids, with all that the weighting requires.
        labels: Of these rows, -1 for none, shape (N,): what teaches a row about which nobody was asked. None: nothing.

    Raises:
        WeightingError: What it says are no weights.
    """
    if not is_by_row(weighting) or type(teachers) is not LogitCache or len(ids) == 0:
        return weighting
    weights = torch.from_numpy(_kept(weighting, teachers, ids, read))
    rows = torch.from_numpy(ids)
    present = teachers.mask_rows(rows)
    asked = State(teacher_logits=weights.unsqueeze(-1), teacher_mask=present, labels=labels, ids=rows)
    somebody = has_somebody(asked)
    if somebody is not None:
        check_taught(asked, somebody)
    check_weights(weights, asked, weighting.called)
    return RowWeights(weighting, ids, weights, present)


def _kept(weighting: BaseWeighting, cache: LogitCache, ids: NDArray[np.int64], read: Read) -> NDArray[np.float32]:
    name = _declared(weighting, "kept_as")
    if name is None or cache.folder is None:
        return _computed(weighting, ids, read)
    key = _key(name, weighting.requires, cache, ids, read)
    folder = cache.folder / KEPT.replace("*", key)

    def make() -> None:
        write_array_atomic(folder / FILE, _computed(weighting, ids, read))

    try:
        once(folder, key, make, whole=True)
        return _read(folder / FILE)
    except (OutputDirectoryError, OSError) as error:
        log.info("the weights of every row are computed for this run alone: %s", error)
        return _computed(weighting, ids, read)


def _read(path: Path) -> NDArray[np.float32]:
    kept: NDArray[np.float32] = np.load(path, allow_pickle=False)
    return kept


def _computed(weighting: BaseWeighting, ids: NDArray[np.int64], read: Read) -> NDArray[np.float32]:
    with one_thread(), torch.no_grad():
        said = [weighting.weights(state) for state in _states(ids, read)]
    weights: NDArray[np.float32] = torch.cat(said).float().numpy()
    return weights


def _key(name: str, requires: frozenset[str], cache: LogitCache, ids: NDArray[np.int64], read: Read) -> str:
    """Key of everything that decides the weights: a cache's name does not tell which rows and affinities it gives."""
    seen = xxhash.xxh3_64()
    for state in _states(ids, read):
        for field in sorted({"teacher_logits", *requires, *({"teacher_mask"} & state.available())}):
            seen.update(getattr(state, field).contiguous().numpy())
    shape = [len(ids), len(cache.teacher_names)]
    return digest([name, seen.hexdigest(), shape, source(), torch.__version__], 16)


def _states(ids: NDArray[np.int64], read: Read) -> Iterator[State]:
    wide = read(torch.from_numpy(ids[:1])).teacher_logits[0].numel()
    rows = max(FEWEST, AT_ONCE // wide)
    for start in range(0, len(ids), rows):
        yield read(torch.from_numpy(ids[start : start + rows]))
