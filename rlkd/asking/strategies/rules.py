"""The rules that are known: everybody, one at random, the best, a share and then one, a router, a bandit."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from rlkd.asking.bank import Ids, TeacherBank
from rlkd.asking.pool import Pool
from rlkd.asking.strategies.choosing import Always, AtRandom, Bandit, Router
from rlkd.asking.strategies.passes import ask_everybody, ask_one, ask_until_sure, spend_the_rest
from rlkd.asking.strategies.reverifying import STUDIED, Reverifier
from rlkd.asking.strategies.rows import CHUNK, ROWS, RowOrder
from rlkd.asking.strategies.verifying import Verifier
from rlkd.asking.trust import trust
from rlkd.errors import ConfigError, unknown_name

KNOWN_SHARE = 0.05
"""Of the budget, to learn who is best where no label is known."""


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """A strategy with an order of rows.

    Attributes:
        rows: One of :data:`~rlkd.asking.strategies.rows.ROWS`.
    """

    rows: str = "random"

    def run(self, pool: Pool, bank: TeacherBank, seed: int) -> None:
        """See :class:`~rlkd.asking.Strategy`."""
        random = np.random.default_rng(seed)
        self.ask(pool, bank, ROWS[self.rows](pool, bank, random), random)

    @abstractmethod
    def ask(self, pool: Pool, bank: TeacherBank, order: RowOrder, random: np.random.Generator) -> None:
        """Ask, in an order of rows."""


class AskNobody(Rule):
    """The labels at hand are all there is."""

    def ask(self, pool: Pool, bank: TeacherBank, order: RowOrder, random: np.random.Generator) -> None:
        """Nothing."""


class AskAll(Rule):
    """Everybody about every instance."""

    def ask(self, pool: Pool, bank: TeacherBank, order: RowOrder, random: np.random.Generator) -> None:
        """See :class:`Rule`."""
        left = pool.ids
        while len(left):
            ids = order(left)
            left = np.setdiff1d(left, ids, assume_unique=True)
            if len(ask_everybody(bank, ids)) < len(ids):
                return


class AskRandom(Rule):
    """One teacher about every instance, any."""

    def ask(self, pool: Pool, bank: TeacherBank, order: RowOrder, random: np.random.Generator) -> None:
        """See :class:`Rule`."""
        ask_one(bank, pool.ids, order, AtRandom(len(bank.teacher_names), random))


class AskBest(Rule):
    """The one that is trusted most where labels are known; where none is, on a share of the budget."""

    def ask(self, pool: Pool, bank: TeacherBank, order: RowOrder, random: np.random.Generator) -> None:
        """See :class:`Rule`."""
        known = ask_everybody(bank, seen(pool, order, bank), bank.spent + _share_left(bank, pool, KNOWN_SHARE))
        ask_one(bank, pool.ids, order, Always(trust(pool, bank.answers, known).sum(0)))


@dataclass(frozen=True, kw_only=True)
class AskOnly(Rule):
    """One teacher about every instance, always the same.

    Attributes:
        name: Of the teacher.
    """

    name: str

    def ask(self, pool: Pool, bank: TeacherBank, order: RowOrder, random: np.random.Generator) -> None:
        """See :class:`Rule`."""
        if self.name not in bank.teacher_names:
            raise unknown_name("teacher", self.name, bank.teacher_names)
        ask_one(
            bank, pool.ids, order, Always(np.array([name == self.name for name in bank.teacher_names], dtype=float))
        )


class AskOracle(Rule):
    """One that was trained on the instance's class or domain, if there is one: nobody who deploys knows that."""

    def ask(self, pool: Pool, bank: TeacherBank, order: RowOrder, random: np.random.Generator) -> None:
        """See :class:`Rule`."""
        if pool.right is None:
            raise ConfigError(
                "strategy 'oracle' needs teachers of which it is known who was trained on what, got others"
            )
        ask_one(bank, pool.ids, order, Always(pool.right + 0.5 * random.random(pool.right.shape)))


@dataclass(frozen=True, kw_only=True)
class Routed(Rule):
    """Everybody about some instances; then whom a router says that learned from these, and another where unsure.

    What is left of the budget when every instance has an answer goes to the instances of which the teachers asked are
    least sure.

    Attributes:
        threshold: See :func:`~rlkd.asking.strategies.passes.ask_one`.
    """

    threshold: float | None = None

    def ask(self, pool: Pool, bank: TeacherBank, order: RowOrder, random: np.random.Generator) -> None:
        """See :class:`Rule`."""
        router = Router(pool, bank)
        router.learn(ask_everybody(bank, self.lessons(pool, order), bank.spent + _share_left(bank, pool, 0.5)))
        ask_one(bank, pool.ids, order, router, self.threshold)
        spend_the_rest(bank, pool.ids, router)

    @abstractmethod
    def lessons(self, pool: Pool, order: RowOrder) -> Ids:
        """The instances that everybody is asked about, as far as half the budget goes."""


@dataclass(frozen=True, kw_only=True)
class Explore(Routed):
    """The router learns from a share of the instances: from labels, elsewhere from what the shipped policy says.

    Attributes:
        share: Of the instances, in (0, 1].
    """

    share: float = 0.1

    def lessons(self, pool: Pool, order: RowOrder) -> Ids:
        """The labelled ones, and the first of the order."""
        ids = first(pool.ids, order, max(1, round(self.share * len(pool.ids))))
        return np.concatenate([pool.labelled, np.setdiff1d(ids, pool.labelled)])


@dataclass(frozen=True, kw_only=True)
class ByRouter(Routed):
    """The router learns from the labelled instances alone."""

    def lessons(self, pool: Pool, order: RowOrder) -> Ids:
        """The labelled ones."""
        if not len(pool.labelled):
            raise ConfigError("strategy 'router' learns from labels, there are none; label some rows, or use 'explore'")
        return pool.labelled


@dataclass(frozen=True, kw_only=True)
class Verify(Rule):
    """Everybody about a share of the instances, which tell when an answer is right; then others until one likely is.

    See :class:`~rlkd.asking.strategies.verifying.Verifier`. What is left of the budget when every instance has an
    answer goes to those whose answers are least likely right.

    Attributes:
        share: Of the instances, in (0, 1]; at most a quarter of the budget is spent on them.
        threshold: How likely an answer is to be right, in [0, 1].
    """

    share: float = 0.04
    threshold: float = 0.75

    def ask(self, pool: Pool, bank: TeacherBank, order: RowOrder, random: np.random.Generator) -> None:
        """See :class:`Rule`."""
        verifier = Verifier(pool, bank)
        told = study(verifier, pool, bank, order, random, self.share)
        ask_one(bank, np.setdiff1d(pool.ids, told), order, verifier, self.threshold, verifier.sure)
        spend_the_rest(bank, pool.ids, verifier, verifier.sure)


@dataclass(frozen=True, kw_only=True)
class Reverify(Rule):
    """As :class:`Verify`, but for teachers that may change: it goes on asking everybody about some, and learns anew.

    See :class:`~rlkd.asking.strategies.reverifying.Reverifier`.

    Attributes:
        share: Of the instances after the first ones, in (0, 1], everybody is asked about these all the way.
        threshold: How likely an answer is to be right, in [0, 1].
    """

    share: float = 0.05
    threshold: float = 0.75

    def ask(self, pool: Pool, bank: TeacherBank, order: RowOrder, random: np.random.Generator) -> None:
        """See :class:`Rule`."""
        verifier = Reverifier(pool, bank)
        left = np.setdiff1d(pool.ids, study(verifier, pool, bank, order, random, Verify.share))
        while len(left):
            ids = order(left)[:STUDIED]
            left = np.setdiff1d(left, ids, assume_unique=True)
            everybody = min(len(ids), max(verifier.due, round(self.share * len(ids))))
            verifier.due = max(0, verifier.due - everybody)
            firsts = verifier.scores(ids).argmax(1)
            if len(ask_everybody(bank, ids[:everybody])) < everybody:
                return
            if not ask_until_sure(bank, ids[everybody:], verifier, self.threshold, verifier.sure):
                return
            verifier.attend(ids, firsts, everybody)
            verifier.learn(ids)
        spend_the_rest(bank, pool.ids, verifier, verifier.sure)


@dataclass(frozen=True, kw_only=True)
class ByBandit(Rule):
    """One teacher, by a contextual bandit.

    Attributes:
        thompson: Draw models; otherwise upper confidence bounds.
        window: Calls that it learns from, the latest, >= 1; None: all.
    """

    thompson: bool = False
    window: int | None = None

    def ask(self, pool: Pool, bank: TeacherBank, order: RowOrder, random: np.random.Generator) -> None:
        """See :class:`Rule`."""
        bandit = Bandit(pool, bank, random=random if self.thompson else None, window=self.window)
        ask_one(bank, pool.ids, order, bandit)
        spend_the_rest(bank, pool.ids, bandit)


def study(
    verifier: Verifier, pool: Pool, bank: TeacherBank, order: RowOrder, random: np.random.Generator, share: float
) -> Ids:
    """Have a verifier learn from what everybody says of labelled instances and of a share of all; which these are."""
    ids = first(pool.ids, order, max(CHUNK, round(share * len(pool.ids))))
    ids = np.concatenate([pool.labelled, np.setdiff1d(ids, pool.labelled)])
    told = ask_everybody(bank, ids, bank.spent + _share_left(bank, pool, 0.25))
    verifier.study(random.permutation(told))
    return told


def first(left: Ids, order: RowOrder, count: int) -> Ids:
    """The first instances of an order, (count,)."""
    chosen: list[Ids] = []
    while len(left) and sum(map(len, chosen)) < count:
        chosen.append(order(left))
        left = np.setdiff1d(left, chosen[-1], assume_unique=True)
    found: Ids = np.concatenate([*chosen, np.empty(0, dtype=np.int64)])[:count]
    return found


def seen(pool: Pool, order: RowOrder, bank: TeacherBank) -> Ids:
    """The labelled instances, or as many as a chunk of the order."""
    return pool.labelled if len(pool.labelled) else first(pool.ids, order, CHUNK)


def _share_left(bank: TeacherBank, pool: Pool, share: float) -> float:
    """A share of the budget, or of what asking everybody about everything costs where that is less."""
    return share * min(bank.budget, float(bank.prices.sum()) * len(pool.ids))
