"""A cascade that notices when a teacher is no longer what it was, forgets what it knew of it, and studies again."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rlkd.asking.bank import Ids, TeacherBank
from rlkd.asking.pool import Pool
from rlkd.asking.strategies.choosing import Scores
from rlkd.asking.strategies.verifying import BEFORE, Verifier

SLACK = 0.1
"""By which answers may agree less with the student than they used to."""
ALARM = 3.0
"""What they may agree less in all, beyond the slack, before their teacher is taken for a changed one."""
FEWEST = 20
"""Answers of a teacher before it is known how far they usually agree."""
STUDIED = 32
"""Instances that everybody is asked about after an alarm."""
REMEMBERED = 100
"""Instances asked of everybody, the latest, by which it is judged who tells nothing."""
TELLS_NOTHING = 0.3
"""Of what the others tell: a teacher that tells less is left alone."""


class FallWatch:
    """Tells when a series of numbers has fallen: one of each place of a grid.

    A sum grows by how far a number is below the mean so far, less a slack, and shrinks where it is above, to 0 at
    least; beyond a height the series has fallen.

    Args:
        shape: Of the grid.

    Source:
        Page 1954, Biometrika 41, continuous inspection schemes (one-sided cumulative sums). Deviation: the mean that is
        expected is that of the numbers so far.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._sums, self._counts, self._below = np.zeros((3, *shape))

    def add(self, place: tuple[int, ...], values: NDArray[np.float64]) -> bool:
        """Take in numbers of a place, in their order, shape (n,); whether it has fallen."""
        for value in values.tolist():
            count = self._counts[place]
            if count >= FEWEST:
                below = self._sums[place] / count - value - SLACK
                self._below[place] = max(0.0, self._below[place] + below)
            self._sums[place] += value
            self._counts[place] += 1
        return bool(self._below[place] > ALARM)

    def forget(self) -> None:
        """Begin anew."""
        for one in (self._sums, self._counts, self._below):
            one[:] = 0


class Reverifier(Verifier):
    """A verifier of teachers that may change.

    The student tells: it has learned of which class instances are, which a teacher that changes does not alter. How far
    it agrees with the answers of a teacher, ``p[named] / max p``, is watched, apart for answers that came first and
    those of a cascade; a refusal agrees with nothing. When a teacher's answers agree less than they used to, what is
    known of that teacher is forgotten, how sure teachers usually are is measured anew, and everybody is asked about the
    next ``STUDIED`` instances. Instances that everybody is asked about also tell who says nothing of them: a teacher
    whose answers agree with the student no better than its answers to other instances do, as one that always names the
    same class. Such a one is not asked but with everybody, until it tells something again.
    """

    def __init__(self, pool: Pool, bank: TeacherBank) -> None:
        super().__init__(pool, bank)
        teachers = len(bank.teacher_names)
        self._watch = FallWatch((2, teachers))
        self._idle: NDArray[np.bool_] = np.zeros(teachers, dtype=bool)
        self._of_everybody = np.empty(0, dtype=np.int64)
        self._since: Ids | None = None
        """Instances since the last alarm; None: there was none."""
        self._usual: Tensor | None = None
        self.due = 0
        """Instances that everybody is still to be asked about."""

    def scores(self, ids: Ids) -> Scores:
        """See :class:`Verifier`; those that tell nothing come last."""
        return np.where(self._idle, -1.0, super().scores(ids))

    def sure(self, ids: Ids) -> NDArray[np.float64]:
        """See :class:`Verifier`; 1 where only such are left that tell nothing."""
        exhausted = (self._bank.answers.asked[ids] | self._idle).all(1)
        return np.where(exhausted, 1.0, super().sure(ids))

    def whole(self, ids: Ids) -> NDArray[np.bool_]:
        """Which instances tell whom to ask, bool, (B,): those that everybody was asked about, a refusal tells too."""
        return np.asarray(self._bank.answers.asked[ids].all(1))

    def usual_sureness(self) -> Tensor | None:
        """How sure each teacher was since the last alarm, shape (K,); before, where it gave no answer since.

        As it was when :meth:`attend` was called last; None: it was not yet.
        """
        return self._usual

    def agreement(self, ids: Ids) -> NDArray[np.float64]:
        """How far the student agrees with each answer, (B, K), in [0, 1]; 0 where there is none."""
        answers, p = self._bank.answers, self._student.probabilities(self._pool.vectors[ids])
        named = np.take_along_axis(p, answers.logits[ids].argmax(-1), axis=1)
        return np.asarray(named / p.max(1, keepdims=True) * answers.answered[ids])

    def attend(self, ids: Ids, firsts: NDArray[np.int64], everybody: int) -> None:
        """Watch the answers to new instances, before they are learned from.

        Args:
            ids: Shape (B,).
            firsts: Who was asked first about each, or would have been, (B,).
            everybody: Of how many of the first instances everybody was asked, though the first might have done.
        """
        agreed, asked = self.agreement(ids), self._bank.answers.asked[ids]
        first = np.arange(agreed.shape[1]) == firsts[:, None]
        later = asked & ~first
        later[:everybody] = False
        fallen = set()
        for role, mine in enumerate((first & asked, later)):
            for teacher in range(agreed.shape[1]):
                if self._watch.add((role, teacher), agreed[mine[:, teacher], teacher]):
                    fallen.add(teacher)
        self._judge(ids[:everybody])
        if fallen:
            self._forget(sorted(fallen))
        if self._since is not None:
            self._since = np.concatenate([self._since, ids])
        answers = self._bank.answers
        since = answers.sureness(self._since)
        self._usual = since if (since > 0).all() else since.where(since > 0, answers.sureness())

    def tells(self, ids: Ids) -> NDArray[np.float64]:
        """What the answers of each teacher tell of instances that everybody was asked about, (K,), in [-1, 1].

        That is how far the student agrees with them beyond how far it would if they were about other instances.
        """
        answers, p = self._bank.answers, self._student.probabilities(self._pool.vectors[ids])
        named = np.eye(p.shape[1])[answers.logits[ids].argmax(-1)] * answers.answered[ids][..., None]
        by_chance = named.mean(0) @ (p / p.max(1, keepdims=True)).mean(0)
        return np.asarray(self.agreement(ids).mean(0) - by_chance)

    def _judge(self, ids: Ids) -> None:
        """Judge who tells nothing, from the latest instances that everybody was asked about."""
        self._of_everybody = np.concatenate([self._of_everybody, ids])[-REMEMBERED:]
        count = len(self._idle)
        if len(self._of_everybody) < STUDIED or count < 2:
            return
        told = self.tells(self._of_everybody)
        others = (told.sum() - told) / (count - 1)
        idle = told < TELLS_NOTHING * others.clip(0)
        self._idle = idle & ~idle.all()

    def _forget(self, teachers: list[int]) -> None:
        self._watch.forget()  # of all: others are asked now about what these were asked about
        for teacher in teachers:
            self._trusted[:, teacher] = BEFORE / self._trusted.shape[1]
            self._met[:, teacher] = BEFORE
        self._of_everybody, self._since = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        self._idle[:] = False
        self.due = STUDIED
