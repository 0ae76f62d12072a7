"""A cascade that learns, from instances that everybody answered, when one answer will do."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rlkd.asking.bank import Ids, TeacherBank
from rlkd.asking.linear_student import LinearStudent
from rlkd.asking.pool import Pool
from rlkd.asking.strategies.choosing import Scores
from rlkd.asking.trust import confidence, taught, trust

SHARPNESS = 1.5
"""Power of the student's probabilities when it says of which class an instance is: it is modest."""
BEFORE = 0.5
"""Instances that every teacher has answered with equal trust, of each class, before anything is known."""


class Verifier:
    """Whom to ask, and whether an answer is right, from what was answered so far.

    A student of the answers says of which class an instance is; the record of a teacher on a class, which instances
    that everybody answered tell, says whom to ask. Whether an answer is right is told by a logistic regression on how
    sure the teacher is, its record on the class that it names, and what the student says of that class: fitted on
    instances that everybody answered, whose class is the label or that of the mixture under the shipped policy.

    Args:
        pool: Gives instances.
        bank: Gives answers.
    """

    def __init__(self, pool: Pool, bank: TeacherBank) -> None:
        teachers = len(bank.teacher_names)
        self._pool, self._bank = pool, bank
        self._student = LinearStudent(pool.vectors.shape[1], pool.classes)
        self._trusted = np.full((pool.classes, teachers), BEFORE / teachers)
        self._met = np.full((pool.classes, teachers), BEFORE)
        self._model: Any = None

    @property
    def record(self) -> NDArray[np.float64]:
        """Mean trust in each teacher on instances of each class, shape (C, K)."""
        return np.asarray(self._trusted / self._met)

    def scores(self, ids: Ids) -> Scores:
        """See :class:`~rlkd.asking.strategies.choosing.Chooser`; what is likely gained for the price of an answer."""
        p = self._student.probabilities(self._pool.vectors[ids]) ** SHARPNESS
        prices = self._bank.prices / self._bank.prices.mean()
        return np.asarray((p / p.sum(1, keepdims=True)) @ self.record / prices)

    def learn(self, ids: Ids) -> None:
        """Learn from the answers to new instances: the student from all, records from those that everybody answered."""
        answers = self._bank.answers
        told = ids[answers.answered[ids].any(1)]
        if not len(told):
            return
        usual = self.usual_sureness()
        targets = taught(self._pool, answers, told, usual)
        self._student.learn(self._pool.vectors[told], targets)
        whole = self.whole(told)
        self._trusted += targets[whole].T @ trust(self._pool, answers, told[whole], usual)
        self._met += targets[whole].sum(0)[:, None]

    def whole(self, ids: Ids) -> NDArray[np.bool_]:
        """Which instances tell whom to ask, bool, (B,): those that everybody answered."""
        return np.asarray(self._bank.answers.answered[ids].all(1))

    def usual_sureness(self) -> Tensor | None:
        """How sure each teacher usually is, shape (K,); None: as it was on everything answered so far."""
        return None

    def study(self, ids: Ids) -> None:
        """Learn from instances that everybody answered, and when an answer is right: on halves that it has not seen."""
        halves = np.array_split(ids, 2)
        signs, right = [], []
        for learned, asked in (halves, halves[::-1]):
            if len(learned) and len(asked):
                other = Verifier(self._pool, self._bank)
                other.learn(learned)
                signs.append(other.signs(asked).reshape(-1, SIGNS))
                named = self._bank.answers.logits[asked].argmax(-1)
                right.append((named == taught(self._pool, self._bank.answers, asked).argmax(1)[:, None]).reshape(-1))
        self.learn(ids)
        if signs and len(np.unique(np.concatenate(right))) == 2:
            self._fit(np.concatenate(signs), np.concatenate(right))

    def _fit(self, signs: NDArray[np.float64], right: NDArray[np.bool_]) -> None:
        from sklearn.linear_model import LogisticRegression

        self._model = LogisticRegression(max_iter=1000).fit(signs, right)

    def signs(self, ids: Ids) -> NDArray[np.float64]:
        """What tells whether answers are right, (B, K, SIGNS); of no meaning where there is none."""
        answers = self._bank.answers
        sure, named = confidence(answers, ids, self.usual_sureness()), answers.logits[ids].argmax(-1)
        p = self._student.probabilities(self._pool.vectors[ids])
        agreed, record = np.take_along_axis(p, named, axis=1), self.record[named, np.arange(named.shape[1])]
        odds = np.log(sure.clip(1e-3) / (1 - sure).clip(1e-3))
        scores = Verifier.scores(self, ids) * self._bank.prices / self._bank.prices.mean()
        return np.stack([sure, odds, scores, agreed, agreed / p.max(1, keepdims=True), record, record * sure], axis=-1)

    def sure(self, ids: Ids) -> NDArray[np.float64]:
        """How likely the best of the answers is right, (B,), in [0, 1]; 0 where there is none."""
        answered = self._bank.answers.answered[ids]
        if self._model is None:
            return np.asarray(confidence(self._bank.answers, ids, self.usual_sureness()).max(1))
        signs = self.signs(ids)
        right = self._model.predict_proba(signs.reshape(-1, SIGNS))[:, 1].reshape(answered.shape)
        return np.asarray(np.where(answered, right, 0.0).max(1))


SIGNS = 7
"""Numbers of :meth:`Verifier.signs`."""
