"""Teachers whose answers cost something: what was asked, what they said, and what it took of a budget."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.errors import ConfigError
from rlkd.features import usual_sureness
from rlkd.logit_cache import LogitCache, refuse_gaps
from rlkd.types import State

Ids = NDArray[np.int64]


class Answers:
    """What is known of the teachers' answers to N instances.

    Attributes:
        logits: Shape (N, K, C), float32; zeros where there is no answer.
        asked: Bool, shape (N, K): who was asked, and is not asked again.
        answered: Bool, shape (N, K): who was asked and gave an answer; a refusal is none.
    """

    def __init__(self, rows: int, teachers: int, classes: int) -> None:
        """Begin with nothing known; memory is taken as answers come."""
        self.logits: NDArray[np.float32] = np.zeros((rows, teachers, classes), dtype=np.float32)
        self.asked: NDArray[np.bool_] = np.zeros((rows, teachers), dtype=bool)
        self.answered: NDArray[np.bool_] = np.zeros((rows, teachers), dtype=bool)

    def put(self, teacher: int, ids: Ids, logits: NDArray[np.float32], answered: NDArray[np.bool_]) -> None:
        """Remember what a teacher said of different instances.

        Args:
            teacher: Its number, in [0, K).
            ids: Shape (n,).
            logits: Shape (n, C).
            answered: Bool, shape (n,).
        """
        self.asked[ids, teacher], self.answered[ids, teacher] = True, answered
        self.logits[ids[answered], teacher] = logits[answered]

    def sureness(self, ids: Ids | None = None) -> Tensor:
        """How sure each teacher usually is, from what it has answered so far, shape (K,); 0 of who never did.

        Args:
            ids: Of these instances alone; None: of all.
        """
        some = np.arange(len(self.answered)) if ids is None else ids
        rows = some[self.answered[some].any(1)]
        if not len(rows):
            return torch.zeros(self.asked.shape[1])
        return usual_sureness(torch.from_numpy(self.logits[rows]), torch.from_numpy(self.answered[rows]))

    def state(self, ids: Ids, sureness: Tensor | None = None) -> State:
        """The state of some instances, whose absent teachers are those that gave no answer.

        Args:
            ids: Shape (B,).
            sureness: Shape (K,); None: measured on everything answered so far.
        """
        usual = self.sureness() if sureness is None else sureness
        logits = torch.from_numpy(self.logits[ids])
        present = torch.from_numpy(self.answered[ids])
        return State(
            teacher_logits=logits, teacher_mask=present, sureness=usual.expand(len(ids), -1), ids=torch.from_numpy(ids)
        )


class TeacherBank(Protocol):
    """Teachers with prices and a budget: what strategies ask."""

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """Names of the K teachers."""

    @property
    def prices(self) -> NDArray[np.float64]:
        """What one answer of each teacher costs, shape (K,), >= 0: of a price per token the mean so far."""

    @property
    def answers(self) -> Answers:
        """What is known."""

    @property
    def budget(self) -> float:
        """What may be spent in all, those before included; infinity: everything."""

    @property
    def spent(self) -> float:
        """What was spent so far."""

    def ask(self, teacher: int, ids: Ids) -> Ids:
        """Ask one teacher about instances; those that it was asked about before cost nothing and are not asked again.

        Args:
            teacher: Its number.
            ids: Different instances, shape (n,), in the order in which they are asked about.

        Returns:
            The first of them, (m,), m <= n: as many as the budget allows. Their answers are in :attr:`answers`, but for
            refusals.
        """


class RecordedTeachers:
    """A bank whose teachers have answered everything already: asking costs what it would, and is free.

    Strategies are compared, and policies trained, on such.

    Args:
        source: Of all answers, a cache.
        prices: Of an answer of each teacher, shape (K,), finite and > 0; None: 1 each.
        budget: What may be spent.
    """

    def __init__(self, source: LogitCache, prices: NDArray[np.float64] | None = None, budget: float = np.inf) -> None:
        refuse_gaps(source, "asking that is only counted")
        self.teacher_names = tuple(source.teacher_names)
        self.prices = np.ones(len(self.teacher_names)) if prices is None else np.asarray(prices, dtype=np.float64)
        if self.prices.shape != (len(self.teacher_names),) or not (np.isfinite(self.prices) & (self.prices > 0)).all():
            raise ConfigError(
                f"expected a price above 0 of each of {len(self.teacher_names)} teachers, got {self.prices.tolist()}; "
                "mend them"
            )
        self.budget, self.spent = float(budget), 0.0
        self._source = source
        rows, _, classes = len(source), len(self.teacher_names), source.rows(torch.zeros(1, dtype=torch.int64)).shape[2]
        self.answers = Answers(rows, len(self.teacher_names), classes)

    def ask(self, teacher: int, ids: Ids) -> Ids:
        """See :class:`TeacherBank`."""
        ids = affordable(self, teacher, ids)
        new = ids[~self.answers.asked[ids, teacher]]
        if len(new):
            logits = self._source.rows(torch.from_numpy(new))[:, teacher].numpy()
            self.answers.put(teacher, new, logits, np.ones(len(new), dtype=bool))
            self.spent += len(new) * self.prices[teacher]
        return ids


class OneRun:
    """A bank as a strategy finds it that begins: it knows nothing, and pays nothing for what is known already.

    So a run that was interrupted goes the same way again, without paying, until it is where it was: what a strategy
    sees follows from what it has asked itself, and from nothing else that the bank knows.

    Args:
        bank: Is asked; its own budget holds for everything that was ever asked of it.
        budget: Of this run, in which everything that it asks about counts, paid or known; None: the bank's.
    """

    def __init__(self, bank: TeacherBank, budget: float | None = None) -> None:
        self.teacher_names = bank.teacher_names
        self.budget, self.spent = bank.budget if budget is None else float(budget), 0.0
        self.answers = Answers(*bank.answers.logits.shape)
        self._bank = bank

    @property
    def prices(self) -> NDArray[np.float64]:
        """Those of the bank."""
        return self._bank.prices

    def ask(self, teacher: int, ids: Ids) -> Ids:
        """See :class:`TeacherBank`."""
        done = 0
        while len(some := affordable(self, teacher, ids[done:])):
            told = self._bank.ask(teacher, some)
            new = told[~self.answers.asked[told, teacher]]
            known = self._bank.answers
            self.answers.put(teacher, new, known.logits[new, teacher], known.answered[new, teacher])
            self.spent += len(new) * float(self.prices[teacher])
            done += len(told)
            if len(told) < len(some):
                break
            # once some have answered it is known what an answer costs: less than the most that it may, and more follow
        return ids[:done]


def affordable(bank: TeacherBank, teacher: int, ids: Ids) -> Ids:
    """The first of the instances that the budget allows to ask about, when an answer has a fixed price."""
    new = ~bank.answers.asked[ids, teacher]
    cost = np.cumsum(new) * bank.prices[teacher]
    left = bank.budget - bank.spent
    return ids[cost <= left * (1 + 1e-12)] if len(ids) else ids
