"""What the entries of a ledger come to: who asks about what, what was spent, and what nobody knows the end of."""

from collections import Counter, defaultdict
from typing import Any, NamedTuple

from rlkd.asking.ledger_file import INTENT, LOST, NOT_SENT

Call = tuple[int, int]
"""A teacher's number in the book, and a row."""


class Open(NamedTuple):
    """An intent of which it is not written what became."""

    owner: int
    """Who asks, or asked."""
    cost: int
    """What is set aside, in billionths."""


class Account:
    """The state that entries lead to, of all teachers of a book: the same for everybody who reads them."""

    def __init__(self) -> None:
        """Begin with none."""
        self.open: dict[Call, Open] = {}
        self.lost: set[Call] = set()
        """Calls that may have been paid for, and of which no answer came."""
        self.kinds: defaultdict[int, Counter[int]] = defaultdict(Counter)
        """How often a teacher's calls ended in which kind of entry."""
        self.replies: Counter[int] = Counter()
        """Requests that a teacher's server replied to."""
        self.lost_votes: Counter[int] = Counter()
        """Requests about rows that were answered by others, which may have been paid for too."""
        self.tokens: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
        """That a teacher has read and written."""
        self._costs, self._aside = Counter[int](), Counter[int]()

    def take(self, entry: Any) -> tuple[Call, bool]:
        """Take in the next entry; the call that it is about, and whether that is settled."""
        call = int(entry["teacher"]), int(entry["row"])
        kind, cost, before = int(entry["kind"]), int(entry["cost"]), self.open.pop(call, None)
        self.lost.discard(call)
        if before is not None:
            self._aside[call[0]] -= before.cost
        if kind == INTENT:
            self.open[call] = Open(int(entry["owner"]), cost)
            self._aside[call[0]] += cost
            return call, False
        self.kinds[call[0]][kind] += 1
        self._costs[call[0]] += cost
        self.replies[call[0]] += int(entry["replies"])
        self.tokens[call[0]][0] += int(entry["tokens_in"])
        self.tokens[call[0]][1] += int(entry["tokens_out"])
        if kind == LOST:
            self.lost.add(call)
        else:
            self.lost_votes[call[0]] += int(entry["lost"])
        return call, kind not in (NOT_SENT, LOST)

    def spent(self, number: int | None = None) -> int:
        """What was paid, and what is set aside, in billionths: for a teacher, or for all."""
        if number is None:
            return self._costs.total() + self._aside.total()
        return self._costs[number] + self._aside[number]

    def settled(self, number: int) -> int:
        """What was paid for calls of which it is known what became, in billionths."""
        return self._costs[number]
