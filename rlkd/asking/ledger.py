"""A ledger of answers: what teachers were asked, what they said, what it cost; nothing in it is paid twice.

Before a call an intent is written, with what the call may cost at most; after it, when the answer is stored, what
became of it. Both under a lock that all processes share, so that a budget holds for all of them together, whatever
dies. An intent whose process is gone is *unsettled*: it may have been paid for. What it set aside stays spent, and it
is not asked again unless that is wished. A model of one's own is another case: nobody was paid, and it is asked again.
"""

import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlkd.asking.account import Account
from rlkd.asking.bank import Answers, Ids
from rlkd.asking.ledger_file import (
    ANSWERED,
    CUT_OFF,
    ENTRY,
    INTENT,
    KINDS,
    LOST,
    NO_LABEL,
    NOT_SENT,
    REFUSED,
    Book,
    Entries,
)
from rlkd.asking.prices import Price
from rlkd.data.task import Task, raw_inputs
from rlkd.errors import CacheError, ConfigError, unknown_name
from rlkd.logit_cache.answers import AnswerStore, Keys
from rlkd.models.served import Answer, Lost, NotSent, ServedTeacher
from rlkd.models.teachers import Teacher
from rlkd.records import claim, file_lock, read_object, write_json_atomic
from rlkd.settings import CacheSettings

HEADER, ANSWERS, OWNERS = "ledger.json", "answers", "owners"
FORMAT_VERSION = 1
POLL_SECONDS = 0.05
AT_ONCE = 256
"""Instances for which intents are written together."""
OF_SILENCE = {"refused": REFUSED, "cut off": CUT_OFF, "no label": NO_LABEL}


class Ledger:
    """Teachers whose answers are paid, on disk; a :class:`~rlkd.asking.TeacherBank`.

    Args:
        folder: Of the ledger; made if it is not there.
        task: Whose instances are asked about.
        teachers: K of them; others may have been asked before, and more may come.
        prices: By teacher's name; None, or no name: 1 a call.
        budget: What may be spent in all, everything that was ever asked included: no call is made that could exceed it.
        ask_again: Ask again what is unsettled or lost, which may then be paid twice; both count.
        batch_size: Instances a forward pass of models of one's own.
        max_length: Tokens that they read of a text.

    Raises:
        CacheError: The folder holds the ledger of another task, or is damaged.
        ConfigError: A price by tokens is one of a teacher that tells none.
        UnknownNameError: A price is one of no teacher.
    """

    def __init__(
        self,
        folder: str | Path,
        task: Task,
        teachers: Sequence[Teacher],
        *,
        prices: Mapping[str, Price] | None = None,
        budget: float = np.inf,
        ask_again: bool = False,
        batch_size: int = CacheSettings.batch_size,
        max_length: int = CacheSettings.max_length,
    ) -> None:
        self._folder, self._task, self._teachers = Path(folder), task, list(teachers)
        self.teacher_names = tuple(teacher.name for teacher in teachers)
        self._prices = prices_of(self._teachers, prices or {})
        self.budget, self._ask_again = float(budget), ask_again
        self._limits = {"batch_size": batch_size, "max_length": max_length}
        self.answers = Answers(len(task.table), len(teachers), task.num_classes)
        self._book = Book(self._folder)
        with self._book.locked():
            self._numbers = self._check_header()
        self._places = {number: place for place, number in enumerate(self._numbers)}
        stores = self._folder / ANSWERS
        self._stores = [AnswerStore(stores / str(n), t.identity) for n, t in zip(self._numbers, teachers, strict=True)]
        own = [n for n, t in zip(self._numbers, teachers, strict=True) if not isinstance(t, ServedTeacher)]
        self._account = Account(own, lost_again=ask_again)
        self._living = Living(self._folder / OWNERS)
        with self._reading():
            pass

    def _check_header(self) -> list[int]:
        """Take the folder, or see that it is this task's; the number of each teacher in the book, (K,)."""
        path, data, known = self._folder / HEADER, self._task.fingerprint, list[str]()
        if path.exists():
            header = read_object(path)
            if header.get("format_version") != FORMAT_VERSION or not isinstance(header.get("teachers"), list):
                raise CacheError(f"{path} is no ledger of format {FORMAT_VERSION}; choose another folder")
            if header.get("data") != data:
                raise CacheError(
                    f"the ledger {self._folder} is of other data than task {self._task.name!r} ({data[:12]}); choose "
                    "another folder: what is in it was paid for"
                )
            known = header["teachers"]
        identities = [teacher.identity for teacher in self._teachers]
        new = [identity for identity in dict.fromkeys(identities) if identity not in known]
        if new or not path.exists():
            known = known + new
            write_json_atomic(path, {"format_version": FORMAT_VERSION, "data": data, "teachers": known})
        return [known.index(identity) for identity in identities]

    @property
    def prices(self) -> NDArray[np.float64]:
        """Of an answer, shape (K,): of a price by token the mean so far, and at first what a call may cost."""
        return np.array([self._usual_price(k) for k in range(len(self._teachers))])

    def _usual_price(self, teacher: int) -> float:
        number, counts = self._numbers[teacher], self.counts[teacher]
        made = sum(counts[KINDS[kind]] for kind in (ANSWERED, REFUSED, CUT_OFF, NO_LABEL))
        if self._prices[teacher].by_token and made:
            return self._account.paid[number] / made
        return self._most(teacher, int(self._task.splits["train"][0]))

    @property
    def spent(self) -> float:
        """What was spent, what is set aside for calls that are under way or unsettled included."""
        return self._account.spent

    @property
    def spent_by(self) -> NDArray[np.float64]:
        """What was spent on each teacher, likewise, shape (K,)."""
        aside = dict.fromkeys(self._numbers, 0.0)
        for (number, _), one in self._account.open.items():
            aside[number] = aside.get(number, 0.0) + one.cost
        return np.array([self._account.paid[number] + aside[number] for number in self._numbers])

    @property
    def counts(self) -> list[Counter[str]]:
        """What became of the instances that each teacher was asked about, (K,): see ``KINDS``, and ``unsettled``."""
        found = [Counter({KINDS[kind]: n for kind, n in self._account.kinds.get(x, {}).items()}) for x in self._numbers]
        for (number, _), one in self._account.open.items():
            if number in self._places:
                found[self._places[number]]["under way" if self._living.has(one.owner) else "unsettled"] += 1
        return found

    def ask(self, teacher: int, ids: Ids) -> Ids:
        """See :class:`~rlkd.asking.TeacherBank`; what another process is asking about is waited for.

        Raises:
            TeacherError: The teacher cannot be asked. What was answered until then is kept.
        """
        told, asking = 0, self._ask_served if isinstance(self._teachers[teacher], ServedTeacher) else self._ask_own
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            while (known := asking(teacher, some)) is None:
                time.sleep(POLL_SECONDS)
            told += known
            if known < len(some):
                break
        return ids[:told]

    def _ask_own(self, teacher: int, ids: Ids) -> int | None:
        """Ask a model of one's own, in batches; how many of the first are known or beyond doubt; None: others ask."""
        cost, within = self._prices[teacher].of(0, 0), len(ids)
        with self._reading() as book:
            mine = [row for row in ids.tolist() if self._may_ask(teacher, row)]
            affordable = int((self.budget - self.spent) / cost * (1 + 1e-12)) if np.isfinite(self.budget) else len(mine)
            if affordable < len(mine):
                within = ids.tolist().index(mine[max(0, affordable)])
                mine = mine[: max(0, affordable)]
            self._write(book, [self._entry(teacher, row, INTENT, cost) for row in mine])
            waiting = any(self._asked_elsewhere(teacher, row) for row in ids[:within].tolist())
        if mine:
            self._answer(teacher, np.array(mine), cost)
        return None if waiting else within

    def _answer(self, teacher: int, ids: Ids, cost: float) -> None:
        """Have a model of one's own answer, and write what it said."""
        try:
            logits = self._teachers[teacher].logits(self._task, ids, **self._limits).numpy().astype(np.float32)
        except BaseException:
            self._settle(teacher, [self._entry(teacher, row, NOT_SENT, 0.0) for row in ids.tolist()])
            raise
        self._settle(teacher, [self._entry(teacher, row, ANSWERED, cost, calls=1) for row in ids.tolist()], logits)

    def _ask_served(self, teacher: int, ids: Ids) -> int | None:
        """Ask over the network, as :meth:`_ask_own`; an intent is written when its request begins, and no sooner."""
        one = self._teachers[teacher]
        assert isinstance(one, ServedTeacher)
        with self._reading():
            mine = np.array([row for row in ids.tolist() if self._may_ask(teacher, row)], dtype=np.int64)
        beyond: list[int] = []

        def begin(place: int) -> bool:
            row = int(mine[place])
            cost = self._most(teacher, row)
            with self._reading() as book:
                if beyond or not self._may_ask(teacher, row):
                    return False
                if self.spent + cost > self.budget * (1 + 1e-12):
                    beyond.append(row)
                    return False
                self._write(book, [self._entry(teacher, row, INTENT, cost)])
                return True

        if len(mine):
            texts = raw_inputs(self._task, mine)
            one.ask_each(texts, begin, lambda place, said: self._settle_one(teacher, int(mine[place]), said))
        if beyond:
            return int(np.flatnonzero(ids == beyond[0])[0])
        with self._reading():
            known = not any(self._may_ask(teacher, row) or self._asked_elsewhere(teacher, row) for row in ids.tolist())
        return len(ids) if known else None

    def _may_ask(self, teacher: int, row: int) -> bool:
        """Whether nobody has asked, or is asking, or may have paid."""
        one = self._account.open.get((self._numbers[teacher], row))
        if self.answers.asked[row, teacher] or one is None:
            return not self.answers.asked[row, teacher]
        repeated = self._ask_again or not isinstance(self._teachers[teacher], ServedTeacher)
        return repeated and not self._living.has(one.owner)

    def _asked_elsewhere(self, teacher: int, row: int) -> bool:
        """Whether another process is asking."""
        one = self._account.open.get((self._numbers[teacher], row))
        return one is not None and one.owner != self._living.owner and self._living.has(one.owner)

    def _most(self, teacher: int, row: int) -> float:
        """What asking about an instance costs at most."""
        one, price = self._teachers[teacher], self._prices[teacher]
        if not isinstance(one, ServedTeacher):
            return price.of(0, 0)
        prompt = one.prompt(raw_inputs(self._task, np.array([row]))[0]) if price.by_token else ""
        return price.most(prompt, one.most_tokens_out, one.calls_a_row)

    def _settle_one(self, teacher: int, row: int, said: Answer | NotSent | Lost) -> None:
        """Write what a served teacher said of an instance."""
        if isinstance(said, NotSent):
            return self._settle(teacher, [self._entry(teacher, row, NOT_SENT, 0.0)])
        if isinstance(said, Lost):
            return self._settle(teacher, [self._entry(teacher, row, LOST, self._most(teacher, row))])
        kind = ANSWERED if said.answered else OF_SILENCE[said.kinds[0]]
        counts = {"tokens_in": said.tokens_in, "tokens_out": said.tokens_out, "calls": len(said.kinds)}
        cost = self._prices[teacher].of(said.tokens_in, said.tokens_out, len(said.kinds))
        one = self._teachers[teacher]
        assert isinstance(one, ServedTeacher)
        logits = one.in_order_of(self._task, said.logits.unsqueeze(0)).numpy() if kind == ANSWERED else None
        return self._settle(teacher, [self._entry(teacher, row, kind, cost, **counts)], logits)

    def _entry(self, teacher: int, row: int, kind: int, cost: float, **counts: int) -> Entries:
        entry = np.zeros(1, ENTRY)
        entry["teacher"], entry["row"], entry["kind"] = self._numbers[teacher], row, kind
        entry["owner"], entry["cost"] = self._living.owner, cost
        for name, count in counts.items():
            entry[name] = count
        return entry

    def _settle(self, teacher: int, entries: Sequence[Entries], logits: NDArray[np.float32] | None = None) -> None:
        """Store answers, then write that they are there."""
        with self._reading() as book:
            if logits is not None:
                rows = np.concatenate(entries)["row"]
                self._stores[teacher].add(keys_of(rows), logits, np.ones(len(rows), dtype=np.int64))
            self._write(book, entries)

    @contextmanager
    def _reading(self) -> Iterator[int]:
        """Hold the book, read to its end."""
        with self._book.locked() as book:
            self._take_in(self._book.new(book))
            yield book

    def _write(self, book: int, entries: Sequence[Entries]) -> None:
        if entries:
            self._book.append(book, np.concatenate(entries))
            self._take_in(self._book.new(book))

    def _take_in(self, entries: Entries) -> None:
        """Take in what was written since, by whichever process."""
        answered: dict[int, list[int]] = {}
        for entry in entries:
            call = number, row = self._account.take(entry)
            place = self._places.get(number)
            if place is None or call not in self._account.settled or call in self._account.open:
                continue
            if self._account.settled[call] == ANSWERED:
                answered.setdefault(place, []).append(row)
            self.answers.asked[row, place] = True
        for place, rows in answered.items():
            self._take_answers(place, np.array(sorted(set(rows))))

    def _take_answers(self, teacher: int, rows: Ids) -> None:
        places = self._stores[teacher].find(keys_of(rows))
        if (places < 0).any():
            raise CacheError(
                f"the ledger {self._folder} is damaged: answers of {self.teacher_names[teacher]!r} that it names are "
                "not there; restore it from a copy"
            )
        self.answers.put(teacher, rows, self._stores[teacher].answers(places), np.ones(len(rows), dtype=bool))


class Living:
    """Which processes that write to a ledger are alive: each holds a lock, which ends with it however it dies.

    Args:
        folder: Of the locks.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.owner = secrets.randbits(63) | 1
        """The number of this process."""
        self._folder, self._gone = folder, set[int]()
        self._lock = file_lock(folder / f"{self.owner}.lock")
        self._lock.acquire()

    def has(self, owner: int) -> bool:
        """Whether a process is alive."""
        if owner == self.owner:
            return True
        if owner not in self._gone:
            with claim(self._folder, str(owner)) as gone:
                if gone:
                    self._gone.add(owner)
        return owner not in self._gone


def keys_of(rows: Ids) -> Keys:
    """Rows (n,) as an answer store finds them, (n, 2)."""
    return np.stack([rows.astype(np.uint64), np.zeros(len(rows), dtype=np.uint64)], axis=1)


def prices_of(teachers: Sequence[Teacher], prices: Mapping[str, Price]) -> list[Price]:
    """The price of each teacher, (K,)."""
    names = [teacher.name for teacher in teachers]
    for name in prices:
        if name not in names:
            raise unknown_name("teacher with a price", name, names)
    found = [prices.get(name, Price(call=1.0)) for name in names]
    for teacher, price in zip(teachers, found, strict=True):
        if price.by_token and not isinstance(teacher, ServedTeacher):
            raise ConfigError(
                f"teacher {teacher.name!r} tells no tokens, got a price by token; give it one for each call"
            )
    return found
