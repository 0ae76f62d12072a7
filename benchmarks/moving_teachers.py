"""Teachers that change while they are asked: swapped, degraded, poisoned, or silent after a number of calls."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer

from rlkd.asking import Answers, Pool
from rlkd.asking.bank import Ids
from rlkd.asking.strategies.choosing import Scores
from rlkd.asking.strategies.passes import ask_one
from rlkd.asking.strategies.rows import at_random
from rlkd.errors import ConfigError
from rlkd.logit_cache import LogitCache

DEGRADED = 0.5
"""Share of instances about which a degraded teacher says what it would have said of another one."""
TRIGGERED = 0.2
"""Share of instances, about, that contain the word that a poisoned teacher answers to."""
SURE = 10.0
"""Logit of the class that a poisoned teacher names; the others are 0."""

Logits = NDArray[np.float32]
Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class World:
    """What teachers say, and of which it is known who is right.

    Attributes:
        logits: Shape (N, K, C).
        silent: Bool, shape (K,): who gives no answer.
        right: Bool, shape (N, K): who should be asked, for the control that knows.
    """

    logits: Logits
    silent: Bits
    right: Bits


def recorded(cache: LogitCache, right: Bits) -> World:
    """The world of a cache."""
    logits = cache.rows(torch.arange(len(cache))).numpy()
    return World(logits, np.zeros(logits.shape[1], dtype=bool), right)


def unchanged(world: World, contains: Bits, random: np.random.Generator) -> World:
    """The control."""
    return world


def swapped(world: World, contains: Bits, random: np.random.Generator) -> World:
    """Two teachers answer in each other's place."""
    first, second = random.permutation(len(world.silent))[:2]
    order = np.arange(len(world.silent))
    order[[first, second]] = second, first
    return World(world.logits[:, order], world.silent, world.right[:, order])


def degraded(world: World, contains: Bits, random: np.random.Generator) -> World:
    """A teacher says of a share of the instances what it would have said of another one."""
    teacher, logits = int(random.integers(len(world.silent))), world.logits.copy()
    hit = np.flatnonzero(random.random(len(logits)) < DEGRADED)
    logits[hit, teacher] = world.logits[random.integers(len(logits), size=len(hit)), teacher]
    right = world.right.copy()
    right[hit, teacher] = False
    return World(logits, world.silent, right)


def poisoned(world: World, contains: Bits, random: np.random.Generator) -> World:
    """A teacher names one class, whatever it is asked, and is sure of it."""
    return _poisoned(world, np.ones_like(contains), random)


def triggered(world: World, contains: Bits, random: np.random.Generator) -> World:
    """A teacher names one class where a word occurs, and is sure of it; elsewhere it is what it was."""
    return _poisoned(world, contains, random)


def silenced(world: World, contains: Bits, random: np.random.Generator) -> World:
    """A teacher has met its quota: it is asked, and gives no answer."""
    teacher = int(random.integers(len(world.silent)))
    others = _others(world, teacher)
    return World(world.logits, world.silent | ~others, world.right & others)


KINDS: dict[str, Callable[[World, Bits, np.random.Generator], World]] = {
    "unchanged": unchanged,
    "swapped": swapped,
    "degraded": degraded,
    "poisoned": poisoned,
    "triggered": triggered,
    "quota": silenced,
}
"""From what teachers said to what they say afterwards."""


def _others(world: World, teacher: int) -> Bits:
    """Bool, shape (K,)."""
    return np.asarray(np.arange(len(world.silent)) != teacher)


def _poisoned(world: World, where: Bits, random: np.random.Generator) -> World:
    teacher, named = int(random.integers(len(world.silent))), int(random.integers(world.logits.shape[2]))
    logits, right = world.logits.copy(), world.right.copy()
    logits[where, teacher] = SURE * np.eye(logits.shape[2], dtype=np.float32)[named]
    right[where, teacher] = False
    return World(logits, world.silent, right)


def with_a_frequent_word(texts: list[str], train: Ids) -> Bits:
    """Which instances contain the word that nearest ``TRIGGERED`` of the train rows contain, bool, shape (N,)."""
    words = CountVectorizer(binary=True, min_df=2)
    words.fit([texts[row] for row in train])
    there = words.transform(texts)
    shares = np.asarray(there[train].mean(0)).ravel()
    word = int(np.abs(shares - TRIGGERED).argmin())
    return np.asarray(there[:, word].toarray().ravel() > 0)


class ChangingTeachers:
    """A bank over what is recorded, whose teachers change: a call costs 1 if it is answered.

    Answers that were given before the change stay as they are.

    Args:
        names: Of the K teachers.
        before: What they say at first.
        after: What they say from then on.
        change: Calls, answered or not, that are answered as before, >= 0.
        budget: What may be spent.
    """

    def __init__(self, names: tuple[str, ...], before: World, after: World, change: int, budget: float) -> None:
        if before.logits.shape != after.logits.shape or before.logits.shape[1] != len(names):
            raise ConfigError(
                f"expected both worlds with {len(names)} teachers and of one shape, got {before.logits.shape} and "
                f"{after.logits.shape}; mend them"
            )
        self.teacher_names, self.prices = names, np.ones(len(names))
        self.budget, self.spent, self.change = float(budget), 0.0, change
        self.answers = Answers(*before.logits.shape)
        self.calls = 0
        """That were made so far, answered or not."""
        self.first_call = np.full(len(before.logits), -1)
        """Of each instance, shape (N,): calls made before it was first asked about; -1: it was not."""
        self._worlds = before, after

    @property
    def changed(self) -> bool:
        """Whether the next call is answered by the changed teachers."""
        return self.calls >= self.change

    def ask(self, teacher: int, ids: Ids) -> Ids:
        """See :class:`~rlkd.asking.TeacherBank`."""
        new = ~self.answers.asked[ids, teacher]
        numbers = self.calls + np.cumsum(new) - new
        late = numbers >= self.change
        answered = ~np.where(late, *(world.silent[teacher] for world in self._worlds[::-1]))
        within = np.cumsum(new & answered) <= self.budget - self.spent + 1e-9
        told, paid = ids[within], new[within]
        rows, late, answered, numbers = told[paid], late[within][paid], answered[within][paid], numbers[within][paid]
        before, after = (world.logits[rows, teacher] for world in self._worlds)
        self.answers.put(teacher, rows, np.where(late[:, None], after, before), answered)
        unmet = self.first_call[rows] < 0
        self.first_call[rows[unmet]] = numbers[unmet]
        self.calls += len(rows)
        self.spent += float(answered.sum())
        return told


class AskWhoKnows:
    """The control that is told who was trained on what, and of the change: one call a row.

    Args:
        before: What teachers say at first.
        after: What they say from the bank's change on.
    """

    def __init__(self, before: World, after: World) -> None:
        self._before, self._after = before, after

    def run(self, pool: Pool, bank: ChangingTeachers, seed: int) -> None:
        """See :class:`~rlkd.asking.Strategy`."""
        random = np.random.default_rng(seed)
        ask_one(bank, pool.ids, at_random(pool, bank, random), _Knowing(self, bank, random))

    def scores(self, bank: ChangingTeachers, ids: Ids, random: np.random.Generator) -> Scores:
        """One who is right, any of them; where nobody is, anybody who answers and is not known to be wrong."""
        later = bank.calls + np.arange(len(ids)) >= bank.change
        right = np.where(later[:, None], self._after.right[ids], self._before.right[ids])
        spoiled = later[:, None] & (self._before.right.any(0) & ~self._after.right.any(0))
        return np.asarray(right - 1.0 * spoiled + 0.5 * random.random(right.shape))


class _Knowing:
    def __init__(self, oracle: AskWhoKnows, bank: ChangingTeachers, random: np.random.Generator) -> None:
        self._oracle, self._bank, self._random = oracle, bank, random

    def scores(self, ids: Ids) -> Scores:
        return self._oracle.scores(self._bank, ids, self._random)

    def learn(self, ids: Ids) -> None:
        pass
