"""Whom to ask about an instance: what is predicted of teachers before they are asked."""

from collections import deque
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rlkd.asking.bank import Ids, TeacherBank
from rlkd.asking.linear_student import LinearStudent, with_constant
from rlkd.asking.pool import Pool
from rlkd.asking.trust import confidence, trust
from rlkd.data.task import UNLABELLED

Scores = NDArray[np.float64]


class Chooser(Protocol):
    """Scores teachers for instances, and learns from what they answer."""

    def scores(self, ids: Ids) -> Scores:
        """Who should be asked about instances (B,): the higher, the sooner, shape (B, K)."""

    def learn(self, ids: Ids) -> None:
        """Learn from the answers of the bank to instances (B,), which are new."""


class AtRandom:
    """Everybody is as good as anybody."""

    def __init__(self, teachers: int, random: np.random.Generator) -> None:
        self._teachers, self._random = teachers, random

    def scores(self, ids: Ids) -> Scores:
        """See :class:`Chooser`."""
        return self._random.random((len(ids), self._teachers))

    def learn(self, ids: Ids) -> None:
        """Nothing."""


class Always:
    """The same scores for all instances, or those of each (N, K)."""

    def __init__(self, scores: Scores) -> None:
        self._scores = scores

    def scores(self, ids: Ids) -> Scores:
        """See :class:`Chooser`."""
        return (
            self._scores[ids]
            if self._scores.ndim == 2
            else np.broadcast_to(self._scores, (len(ids), self._scores.size))
        )

    def learn(self, ids: Ids) -> None:
        """Nothing."""


class Router:
    """Ridge regression from an instance to who is trusted on it, taught by instances that everybody answered."""

    def __init__(self, pool: Pool, bank: TeacherBank) -> None:
        self._pool, self._bank = pool, bank
        self._model = LinearStudent(pool.vectors.shape[1], len(bank.teacher_names))

    def scores(self, ids: Ids) -> Scores:
        """See :class:`Chooser`."""
        return self._model.probabilities(self._pool.vectors[ids])

    def learn(self, ids: Ids) -> None:
        """Learn from the instances that everybody answered."""
        whole = ids[self._bank.answers.answered[ids].all(1)]
        if len(whole):
            self._model.learn(self._pool.vectors[whole], trust(self._pool, self._bank.answers, whole))


class Bandit:
    """A contextual bandit with a linear model of each teacher, paid by the answers alone.

    An answer pays how sure the teacher is of it, or whether it is right where the label is known; none pays nothing.

    Args:
        pool: Gives instances.
        bank: Gives answers.
        width: Of the upper confidence bound, in standard deviations, >= 0; with ``random``, of the draws.
        random: Draws models, as Thompson does; None: upper bounds.
        window: Calls that are remembered, the latest, >= 1; None: all.

    Source:
        Li et al. 2010, arXiv:1003.0146, algorithm 1 (LinUCB with disjoint models); Agrawal, Goyal 2013,
        arXiv:1209.3352 (Thompson sampling); Cheung, Simchi-Levi, Zhu 2019, arXiv:1810.03024 (sliding window).
        Deviation: models are taught in batches.
    """

    def __init__(
        self,
        pool: Pool,
        bank: TeacherBank,
        width: float = 0.3,
        random: np.random.Generator | None = None,
        window: int | None = None,
    ) -> None:
        size, teachers = pool.vectors.shape[1] + 1, len(bank.teacher_names)
        self._pool, self._bank, self._width, self._random = pool, bank, width, random
        self._products = np.stack([np.eye(size)] * teachers)
        self._paid = np.zeros((teachers, size))
        self._window = window
        self._remembered: deque[tuple[int, NDArray[np.float64], NDArray[np.float64]]] = deque()

    def scores(self, ids: Ids) -> Scores:
        """See :class:`Chooser`."""
        contexts = with_constant(self._pool.vectors[ids])
        inverse = np.linalg.inv(self._products)
        means = np.einsum("kde,ke->kd", inverse, self._paid)
        if self._random is not None:
            factors = np.linalg.cholesky(inverse)
            drawn = self._random.standard_normal(means.shape)
            means = means + self._width * np.einsum("kde,ke->kd", factors, drawn)
            return np.asarray(contexts @ means.T)
        spread = np.sqrt(np.einsum("bd,kde,be->bk", contexts, inverse, contexts, optimize=True))
        return np.asarray(contexts @ means.T + self._width * spread)

    def learn(self, ids: Ids) -> None:
        """Learn from every answer, and that there was none."""
        answers, contexts = self._bank.answers, with_constant(self._pool.vectors[ids])
        paid, labels = confidence(answers, ids), self._pool.labels[ids]
        known = labels != UNLABELLED
        named = answers.logits[ids[known]].argmax(-1)
        paid[known] = (named == labels[known, None]) & answers.answered[ids[known]]
        for teacher in range(paid.shape[1]):
            mine = answers.asked[ids, teacher]
            self._add(teacher, contexts[mine], paid[mine, teacher])

    def _add(self, teacher: int, contexts: NDArray[np.float64], paid: NDArray[np.float64]) -> None:
        """Remember calls of a teacher (n,), and forget as many as are too many, the oldest first."""
        self._products[teacher] += contexts.T @ contexts
        self._paid[teacher] += contexts.T @ paid
        if self._window is None:
            return
        self._remembered.append((teacher, contexts, paid))
        beyond = sum(len(one) for _, _, one in self._remembered) - self._window
        while beyond > 0:
            whose, old, earned = self._remembered.popleft()
            gone = min(beyond, len(earned))
            self._products[whose] -= old[:gone].T @ old[:gone]
            self._paid[whose] -= old[:gone].T @ earned[:gone]
            if gone < len(earned):
                self._remembered.appendleft((whose, old[gone:], earned[gone:]))
            beyond -= gone
