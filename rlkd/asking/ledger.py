"""A ledger of answers: what teachers were asked, what they said, what it cost; nothing in it is paid twice.

Before a call an intent is written, with what the call may cost at most; after it, when the answer is stored, what
became of it. Both under a lock that all processes share, so that a budget holds for all of them together, whatever
dies. An intent of whom is gone is *unsettled*, as is a call that was sent and never answered: it may have been paid
for. What it set aside stays spent, and it is not asked again unless that is wished. What surely was not served costs
nothing and is asked again; so is a model of one's own that was interrupted, for nobody was paid.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlkd.asking.account import Account, Call
from rlkd.asking.bank import Answers, Ids
from rlkd.asking.header import Header
from rlkd.asking.ledger_file import ANSWERED, ENTRY, INTENT, KINDS, LOST, NOT_SENT, Book, Entries
from rlkd.asking.owners import Owners
from rlkd.asking.prices import UNIT, Price, prices_of, whole
from rlkd.asking.stopping import stopping
from rlkd.asking.stores import Stores, checked_logits, named
from rlkd.asking.turns import Standing, Turns
from rlkd.data.task import Task, raw_inputs
from rlkd.errors import ConfigError, TeacherError
from rlkd.models.replies import Answer
from rlkd.models.served import ServedTeacher
from rlkd.models.teachers import Teacher
from rlkd.settings import CacheSettings

log = logging.getLogger(__name__)

ANSWERS, OWNERS = "answers", "owners"


class Ledger:
    """Teachers whose answers are paid, on disk; a :class:`~rlkd.asking.TeacherBank`.

    Nothing is written before somebody is asked. A teacher that has ``paid = True``, as served ones have, is never asked
    again about what may have been paid for; others, models of one's own, are.

    Args:
        folder: Of the ledger.
        task: Whose instances are asked about.
        teachers: K of them; others may have been asked before, and more may come.
        prices: By teacher's name; None, or no name: 1 a call. Text is read by :meth:`Price.read`.
        budget: What may be spent in all, everything that was ever asked included: no call is made that could exceed it.
        ask_again: Ask again what is unsettled, which may then be paid twice; both count.
        batch_size: Instances a forward pass of models of one's own.
        max_length: Tokens that they read of a text.

    Raises:
        CacheError: The folder holds something else, the ledger of another task or of other teachers of these names, or
            is damaged.
        ConfigError: A price is none, or one by tokens is of a teacher that tells none.
        UnknownNameError: A price is one of no teacher.
    """

    def __init__(
        self,
        folder: str | Path,
        task: Task,
        teachers: Sequence[Teacher],
        *,
        prices: Mapping[str, Price | float | str] | None = None,
        budget: float = np.inf,
        ask_again: bool = False,
        batch_size: int = CacheSettings.batch_size,
        max_length: int = CacheSettings.max_length,
    ) -> None:
        if not budget >= 0:
            raise ConfigError(f"a budget must be >= 0, got {budget}; mend it")
        self._folder, self._task, self._teachers = Path(folder), task, list(teachers)
        self.teacher_names = tuple(teacher.name for teacher in teachers)
        self._prices = prices_of(self._teachers, prices or {})
        self.budget, self._ask_again = float(budget), ask_again
        self._limits = {"batch_size": batch_size, "max_length": max_length}
        self.answers = Answers(len(task.table), len(teachers), task.num_classes)
        self._book, self._owners = Book(self._folder), Owners(self._folder / OWNERS)
        self._header = Header(self._folder, task, self._teachers, max_length)
        for teacher in teachers:
            getattr(teacher, "check", lambda task: None)(task)
        self._account = Account()
        self._numbers: list[int] = []
        """Of each teacher in the book, (K,); none before anything is on disk."""
        self._book_held = -1
        if self._header.exists():
            self._begin()
            self._tell_of_unsettled()

    def _begin(self) -> None:
        """Take the folder, or see that it is this task's, and read what is there."""
        if self._numbers:
            return
        with self._book.locked() as descriptor:
            numbers = self._header.numbers()
            self._stores = Stores(self._folder / ANSWERS, self._teachers, numbers)
            self._numbers = numbers
            self._take_in(self._book.new(descriptor))
            for call, one in self._account.open.items():
                if call[0] in numbers and self._is_over(call, one.owner):
                    self.answers.asked[call[1], numbers.index(call[0])] = True

    @property
    def prices(self) -> NDArray[np.float64]:
        """Of an answer, shape (K,): of a price by token the mean so far, and at first what a call may cost."""
        return np.array([self._usual_price(k) for k in range(len(self._teachers))])

    def _usual_price(self, teacher: int) -> float:
        number = self._numbers[teacher] if self._numbers else -1
        made = sum(n for kind, n in self._account.kinds[number].items() if kind != NOT_SENT)
        if self._prices[teacher].by_token and made:
            return self._account.settled(number) / made / UNIT
        return self._most(teacher, int(self._task.splits["train"][0])) / UNIT

    @property
    def spent(self) -> float:
        """What was spent, what is set aside for calls that are under way or unsettled included."""
        return self._account.spent() / UNIT

    @property
    def spent_by(self) -> NDArray[np.float64]:
        """What was spent on each teacher, likewise, shape (K,)."""
        return np.array([self._account.spent(n) / UNIT for n in self._numbers] or [0.0] * len(self._teachers))

    @property
    def counts(self) -> list[Counter[str]]:
        """How often a question to each teacher ended how, (K,), see ``KINDS``; and what is ``unsettled`` now.

        ``lost votes`` are requests about rows that others of their votes have answered.
        """
        found = []
        for place, number in enumerate(self._numbers or [-1] * len(self._teachers)):
            ended = Counter({KINDS[kind]: n for kind, n in self._account.kinds[number].items() if kind != LOST})
            ended += Counter({"unsettled": len(self._unsettled(place)), "lost votes": self._account.lost_votes[number]})
            found.append(ended)
        return found

    @property
    def unsettled(self) -> NDArray[np.int64]:
        """About how many instances each teacher may have been paid for without an answer, shape (K,)."""
        return np.array([len(self._unsettled(place)) for place in range(len(self._teachers))])

    def _unsettled(self, teacher: int) -> list[int]:
        if not self._numbers:
            return []
        number, alive = self._numbers[teacher], self._owners.alive
        dead = [row for (other, row), one in self._account.open.items() if other == number and not alive(one.owner)]
        return sorted([*dead, *(row for other, row in self._account.lost if other == number)])

    def _tell_of_unsettled(self) -> None:
        for place, name in enumerate(self.teacher_names):
            rows = self._unsettled(place) if self._header.is_paid(place) else []
            if rows:
                now = "asked again, and may be paid twice" if self._ask_again else "not asked again"
                log.warning(
                    "teacher %s may have been paid for %d answers that never came (rows %s): they count as spent and "
                    "are %s",
                    name,
                    len(rows),
                    named(rows),
                    now,
                )

    def ask(self, teacher: int, ids: Ids) -> Ids:
        """See :class:`~rlkd.asking.TeacherBank`; what another process is asking about is waited for.

        Ctrl-C and the request to end are heeded when what is under way with a served teacher is written.

        Raises:
            TeacherError: The teacher cannot be asked. What was answered until then is kept.
        """
        ids = np.asarray(ids, dtype=np.int64)
        if self.answers.asked[ids, teacher].all():
            return ids
        self._begin()
        with stopping() as stopped, self._owners.one() as owner:
            turns = Turns(ids, self._held, partial(self._stand, owner, teacher), stopped)
            if isinstance(one := self._teachers[teacher], ServedTeacher):
                one.ask_each(self._texts(turns), partial(self._settle_one, owner, teacher), stopped)
            else:
                while rows := turns.some(self._rows_at_once(teacher)):
                    self._answer(owner, teacher, np.array(rows))
        left = np.flatnonzero(~self.answers.asked[ids, teacher])
        return ids[: left[0]] if len(left) else ids

    def _texts(self, turns: Turns) -> Iterator[tuple[int, object]]:
        while rows := turns.some(1):
            yield rows[0], raw_inputs(self._task, np.array(rows))[0]

    def _rows_at_once(self, teacher: int) -> int:
        at_once = getattr(self._teachers[teacher], "rows_at_once", None)
        return self._limits["batch_size"] if at_once is None else int(at_once(self._limits["batch_size"]))

    def _is_over(self, call: Call, owner: int) -> bool:
        """Whether what was begun and not settled is not begun again."""
        return call[0] in self._header.paid and not self._ask_again and not self._owners.alive(owner)

    def _stand(self, owner: int, teacher: int, row: int) -> Standing:
        """How it stands with an instance; where it is to be asked about, the intent is written."""
        if self.answers.asked[row, teacher]:
            return Standing.DONE
        call, entries = (self._numbers[teacher], row), []
        free = whole(self.budget) - self._account.spent()
        if (before := self._account.open.get(call)) is not None:
            if self._owners.alive(before.owner):
                return Standing.BUSY
            if self._is_over(call, before.owner):
                self.answers.asked[row, teacher] = True
                return Standing.DONE
            kept = before.cost if self._header.is_paid(teacher) else 0  # what is asked again counts twice if it cost
            free += before.cost - kept
            entries.append(self._entry(before.owner, teacher, row, LOST if kept else NOT_SENT, kept))
        if (cost := self._most(teacher, row)) > free:
            owners = {one.owner for one in self._account.open.values()}
            return Standing.SHORT if any(map(self._owners.alive, owners)) else Standing.BEYOND
        self._write([*entries, self._entry(owner, teacher, row, INTENT, cost)])
        return Standing.MINE

    def _most(self, teacher: int, row: int) -> int:
        """What asking about an instance costs at most, in billionths."""
        one, price = self._teachers[teacher], self._prices[teacher]
        if not isinstance(one, ServedTeacher):
            return price.of(0, 0)
        prompt = one.prompt(raw_inputs(self._task, np.array([row]))[0]) if price.by_token else ""
        end = one.endpoint
        return price.most(prompt, end.overhead_tokens, end.most_tokens_out, end.requests)

    def _answer(self, owner: int, teacher: int, ids: Ids) -> None:
        """Have a model of one's own answer, and write what it said."""
        try:
            said = self._teachers[teacher].logits(self._task, ids, **self._limits).numpy()
            logits = checked_logits(self._teachers[teacher], said, (len(ids), self._task.num_classes))
        except BaseException:
            if not self._header.is_paid(teacher):
                self._settle(teacher, [self._entry(owner, teacher, row, NOT_SENT, 0) for row in ids.tolist()])
            raise
        cost = self._prices[teacher].of(0, 0)
        entries = [self._entry(owner, teacher, row, ANSWERED, cost, replies=1) for row in ids.tolist()]
        self._settle(teacher, entries, logits)

    def _settle_one(self, owner: int, teacher: int, row: int, said: Answer) -> None:
        """Write what became of a question to a served teacher.

        Raises:
            TeacherError: Its server counts more tokens than it can have been asked about; what they cost is written.
        """
        one, kind = self._teachers[teacher], kind_of(said)
        assert isinstance(one, ServedTeacher)
        most, price = self._most(teacher, row), self._prices[teacher]
        each = most // one.endpoint.requests + 1
        cost = price.of(said.tokens_in, said.tokens_out, said.replies)
        unknown = said.kinds.count("lost") + (said.uncounted if price.by_token else 0)
        cost = min(cost + unknown * each, max(cost, most))
        counts = {"tokens_in": said.tokens_in, "tokens_out": said.tokens_out, "replies": said.replies}
        counts["lost"] = said.kinds.count("lost")
        logits = one.in_order_of(self._task, said.logits.unsqueeze(0)).numpy() if kind == ANSWERED else None
        self._settle(teacher, [self._entry(owner, teacher, row, kind, cost, **counts)], logits)
        self.answers.asked[row, teacher] |= kind == LOST  # also where it is asked again: once
        if cost > most:
            raise TeacherError(
                f"the server of teacher {one.name!r} counts {said.tokens_in} tokens read and {said.tokens_out} written "
                f"for row {row}, more than it can have been asked for: raise overhead_tokens or max_tokens of the "
                "endpoint, which the budget stands on"
            )

    def _entry(self, owner: int, teacher: int, row: int, kind: int, cost: int, **counts: int) -> Entries:
        entry = np.zeros(1, ENTRY)
        entry["teacher"], entry["row"], entry["kind"] = self._numbers[teacher], row, kind
        entry["owner"], entry["cost"] = owner, cost
        for name, count in counts.items():
            entry[name] = count
        return entry

    def _settle(self, teacher: int, entries: Sequence[Entries], logits: NDArray[np.float32] | None = None) -> None:
        """Store answers, then write that they are there."""
        with self._held():
            if logits is not None:
                self._stores.add(teacher, np.concatenate(entries)["row"], logits)
            self._write(entries)

    @contextmanager
    def standing_still(self) -> Iterator[Answers]:
        """All answers that there are by now, of every process; none is added while this is held."""
        if not self._header.exists():
            yield self.answers
            return
        self._begin()
        with self._held():
            yield self.answers

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the book, read to its end."""
        with self._book.locked() as self._book_held:
            self._take_in(self._book.new(self._book_held))
            yield

    def _write(self, entries: Sequence[Entries]) -> None:
        """Write entries into the book, which is held."""
        together = np.concatenate(entries)
        # an intent of what is paid must outlive the machine; of anything else the worst is that it is unsettled
        sync = bool((together["kind"] == INTENT).any()) and int(together["teacher"][0]) in self._header.paid
        self._book.append(self._book_held, together, sync=sync)
        self._take_in(self._book.new(self._book_held))

    def _take_in(self, entries: Entries) -> None:
        """Take in what was written since, by whichever process."""
        places = {number: place for place, number in enumerate(self._numbers)}
        answered: dict[int, list[int]] = {}
        for entry in entries:
            (number, row), settled = self._account.take(entry)
            place = places.get(number)
            if place is None:
                continue
            kind = int(entry["kind"])
            if settled or (kind == LOST and not self._ask_again):
                self.answers.asked[row, place] = True
            if kind == ANSWERED:
                answered.setdefault(place, []).append(row)
        for place, rows in answered.items():
            gone = self._stores.put_into(self.answers, place, np.unique(np.array(rows)))
            self.answers.asked[gone, place] = not self._ask_again


def kind_of(said: Answer) -> int:
    """What kind of entry an answer of a served teacher is."""
    if said.answered:
        return ANSWERED
    if "lost" in said.kinds:
        return LOST
    replied = [kind for kind in said.kinds if kind != "not sent"]
    return KINDS.index(replied[0]) if replied else NOT_SENT
