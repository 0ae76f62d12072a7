"""What the entries of a ledger come to: who asks about what, what is known, what was spent."""

from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any, NamedTuple

from rlkd.asking.ledger_file import INTENT, LOST, NOT_SENT

Call = tuple[int, int]
"""A teacher's number in the book, and a row."""


class Open(NamedTuple):
    """An intent of which it is not written what became."""

    owner: int
    """The process that asks, or asked."""
    cost: float
    """What is set aside."""


class Account:
    """The state that entries lead to, of all teachers of a book.

    Args:
        repeated: Numbers of the teachers that are asked again, for nothing, when an intent's process is gone.
        lost_again: Whether rows whose answer was lost may be asked about again.
    """

    def __init__(self, repeated: Collection[int], *, lost_again: bool) -> None:
        self.open: dict[Call, Open] = {}
        self.settled: dict[Call, int] = {}
        """What became of calls, by kind of entry; none that may be made again."""
        self.kinds: dict[int, Counter[int]] = {}
        """How often a teacher's calls ended in which kind of entry."""
        self.paid: defaultdict[int, float] = defaultdict(float)
        """By teacher, in the unit of prices."""
        self._repeated, self._lost_again = frozenset(repeated), lost_again

    def take(self, entry: Any) -> Call:
        """Take in the next entry; the call that it is about."""
        call = int(entry["teacher"]), int(entry["row"])
        kind, cost = int(entry["kind"]), float(entry["cost"])
        if kind == INTENT:
            if call in self.open and call[0] not in self._repeated:
                self.paid[call[0]] += self.open[call].cost  # may have been paid for, and is asked again: both count
            self.open[call] = Open(int(entry["owner"]), cost)
            return call
        self.open.pop(call, None)
        self.kinds.setdefault(call[0], Counter())[kind] += 1
        self.paid[call[0]] += cost
        if kind != NOT_SENT and not (kind == LOST and self._lost_again):
            self.settled[call] = kind
        return call

    @property
    def spent(self) -> float:
        """What was paid, and what is set aside."""
        return sum(self.paid.values()) + sum(one.cost for one in self.open.values())
