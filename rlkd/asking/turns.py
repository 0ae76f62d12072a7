"""Whose turn it is: the instances of one question, one after another, each when it may be asked about."""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import Enum

from rlkd.asking.bank import Ids

POLL_SECONDS = 0.03
"""Before what is under way elsewhere is looked at again."""


class Standing(Enum):
    """How things stand with an instance."""

    DONE = "known, or asked about once and for all"
    BUSY = "somebody is asking about it"
    SHORT = "what it may cost is not left now, and may be when calls that are under way have ended"
    BEYOND = "what it may cost is not left"
    MINE = "an intent is written: it is to be asked about now"


class Turns:
    """Instances in their order, as far as the budget goes; what somebody else asks about is looked at once more.

    Args:
        ids: Shape (n,).
        held: Holds the ledger, while it is looked at how it stands.
        stand: Says how it stands with an instance, and writes the intent of one that is to be asked about.
        stopped: Set when no more is to be asked.
    """

    def __init__(
        self,
        ids: Ids,
        held: Callable[[], AbstractContextManager[None]],
        stand: Callable[[int], Standing],
        stopped: threading.Event,
    ) -> None:
        self._left = deque(enumerate(ids.tolist()))
        self._busy: list[tuple[int, int]] = []
        self._held, self._stand, self._stopped = held, stand, stopped
        self.within = len(ids)
        """How many of the first instances the budget allows, when all have had their turn."""

    def some(self, count: int) -> list[int]:
        """The next instances, 1 to ``count``, that are to be asked about now; none: all have had their turn."""
        while (self._left or self._busy) and not self._stopped.is_set():
            with self._held():
                mine = self._look(count)
            if mine:
                return mine
            if not self._left:
                self._left, self._busy = deque(self._busy), []
            if self._left:
                self._stopped.wait(POLL_SECONDS)
        return []

    def _look(self, count: int) -> list[int]:
        mine: list[int] = []
        while self._left and len(mine) < count:
            place, row = self._left[0]
            standing = Standing.DONE if place >= self.within else self._stand(row)
            if standing is Standing.SHORT:
                break
            self._left.popleft()
            if standing is Standing.MINE:
                mine.append(row)
            elif standing is Standing.BUSY:
                self._busy.append((place, row))
            elif standing is Standing.BEYOND:
                self.within = min(self.within, place)
        return mine
