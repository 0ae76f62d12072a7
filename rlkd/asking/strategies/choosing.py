"""Whom to ask about an instance: what is predicted of teachers before they are asked."""

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

    An answer pays how sure the teacher is of it, or whether it is right where the label is known.

    Args:
        pool: Gives instances.
        bank: Gives answers.
        width: Of the upper confidence bound, in standard deviations, >= 0; with ``random``, of the draws.
        random: Draws models, as Thompson does; None: upper bounds.

    Source:
        Li et al. 2010, arXiv:1003.0146, algorithm 1 (LinUCB with disjoint models); Agrawal, Goyal 2013,
        arXiv:1209.3352 (Thompson sampling). Deviation: models are taught in batches.
    """

    def __init__(
        self, pool: Pool, bank: TeacherBank, width: float = 0.3, random: np.random.Generator | None = None
    ) -> None:
        size, teachers = pool.vectors.shape[1] + 1, len(bank.teacher_names)
        self._pool, self._bank, self._width, self._random = pool, bank, width, random
        self._products = np.stack([np.eye(size)] * teachers)
        self._paid = np.zeros((teachers, size))

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
        """Learn from every answer."""
        answers, contexts = self._bank.answers, with_constant(self._pool.vectors[ids])
        paid, labels = confidence(answers, ids), self._pool.labels[ids]
        known = labels != UNLABELLED
        paid[known] = answers.logits[ids[known]].argmax(-1) == labels[known, None]
        for teacher in range(paid.shape[1]):
            mine = answers.answered[ids, teacher]
            self._products[teacher] += contexts[mine].T @ contexts[mine]
            self._paid[teacher] += contexts[mine].T @ paid[mine, teacher]
