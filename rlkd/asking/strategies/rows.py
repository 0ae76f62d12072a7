"""Which instances are asked about next."""

from collections.abc import Callable

import numpy as np

from rlkd.asking.bank import Ids, TeacherBank
from rlkd.asking.linear_student import LinearStudent, margin
from rlkd.asking.pool import Pool
from rlkd.asking.trust import mixtures

CHUNK = 64
"""Instances that are chosen at once."""
CANDIDATES = 1024
"""Instances among which the next are looked for."""

RowOrder = Callable[[Ids], Ids]
"""From the instances that are left, (M,), to the next of them, (m,), m <= CHUNK."""


def at_random(pool: Pool, bank: TeacherBank, random: np.random.Generator) -> RowOrder:
    """In a random order."""
    order = random.permutation(pool.ids)
    place = np.empty(len(pool.vectors), dtype=np.int64)
    place[order] = np.arange(len(order))
    return lambda left: left[np.argsort(place[left], kind="stable")[:CHUNK]]


def by_margin(pool: Pool, bank: TeacherBank, random: np.random.Generator, candidates: int = CANDIDATES) -> RowOrder:
    """First those whose class a student of what was answered so far is least sure of, among candidates drawn anew.

    Source:
        Settles 2009, Active learning literature survey, section 3.1 (margin sampling).
    """
    student, taught = LinearStudent(pool.vectors.shape[1], pool.classes), np.zeros(len(pool.vectors), dtype=bool)

    def chosen(left: Ids) -> Ids:
        new = np.flatnonzero(bank.answers.answered.any(1) & ~taught)
        taught[new] = True
        if len(new):
            student.learn(pool.vectors[new], mixtures(pool, bank.answers, new))
        some = random.permutation(left)[:candidates]
        if not student.taught:
            return some[:CHUNK]
        return some[np.argsort(margin(student.probabilities(pool.vectors[some])), kind="stable")[:CHUNK]]

    return chosen


def by_pairs(pool: Pool, bank: TeacherBank, random: np.random.Generator) -> RowOrder:
    """The less sure half of twice as many as are wanted: near random, and so no heap of what nobody can tell."""
    return by_margin(pool, bank, random, candidates=2 * CHUNK)


def by_spread(pool: Pool, bank: TeacherBank, random: np.random.Generator) -> RowOrder:
    """First those that lie farthest from what was chosen before.

    Source:
        Sener, Savarese 2018, arXiv:1708.00489 (greedy k-center), among candidates drawn at random.
    """
    nearest = np.full(len(pool.vectors), -np.inf)

    def chosen(left: Ids) -> Ids:
        some, found = random.permutation(left)[:CANDIDATES], []
        for _ in range(min(CHUNK, len(some))):
            pick = int(some[np.argmin(nearest[some])])
            found.append(pick)
            np.maximum(nearest, pool.vectors @ pool.vectors[pick], out=nearest)
            nearest[pick] = np.inf
        return np.asarray(found)

    return chosen


ROWS = {"random": at_random, "margin": by_margin, "pairs": by_pairs, "spread": by_spread}
