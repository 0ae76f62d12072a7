"""A walk over instances, several at once, at which a teacher is asked about each, or the next one is taken.

The environment and the deployed policy take the same walk.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rlkd.asking.bank import Ids, TeacherBank
from rlkd.asking.linear_student import LinearStudent
from rlkd.asking.observation import NUM_SHARED, NUM_TEACHER, Flags, Floats, Seen, Situation, observation
from rlkd.asking.pool import Pool
from rlkd.asking.record import SIGNALS, AnswerRecord
from rlkd.asking.trust import label_probabilities, weighting_of
from rlkd.data.task import UNLABELLED
from rlkd.features import BASE, teacher_features, usual_sureness
from rlkd.types import State
from rlkd.weighting.learned import action_weights

STOP = 0
"""The action that ends an instance: before anything was asked it skips it. Action k + 1 asks teacher k."""


@dataclass(frozen=True)
class Finished:
    """Instances whose turn ended at a step.

    Attributes:
        places: Where they were, shape (n,).
        ids: Which they are, shape (n,).
        asked: Bool, shape (n, K).
        answered: Bool, shape (n, K).
        targets: What the student is taught, shape (n, C); of no meaning where nobody answered.
        student: What it said before, shape (n, C).
    """

    places: NDArray[np.int64]
    ids: Ids
    asked: Flags
    answered: Flags
    targets: Floats
    student: Floats


def walking_order(pool: Pool, random: np.random.Generator) -> Ids:
    """The instances of a pool, those with a label first, each in random order."""
    order = random.permutation(pool.ids)
    return np.asarray(order[np.argsort(pool.labels[order] == UNLABELLED, kind="stable")])


class Walk:
    """A walk in which B instances are at hand at any time.

    Args:
        pool: Gives instances.
        bank: Is asked; its budget is never exceeded.
        order: Of the instances.
        places: B.
    """

    def __init__(self, pool: Pool, bank: TeacherBank, order: Ids, places: int) -> None:
        self.pool, self.bank = pool, bank
        self.prices = np.array(bank.prices, dtype=np.float64)
        size, teachers = pool.vectors.shape[1], len(bank.teacher_names)
        self.student = LinearStudent(size, pool.classes)
        if len(pool.labelled):
            self.student.learn(pool.vectors[pool.labelled], np.eye(pool.classes)[pool.labels[pool.labelled]])
        self.record = AnswerRecord(size, pool.classes, teachers)
        self._order, self._next = order, 0
        self._leads = np.zeros((2, teachers))
        self.ids: Ids = np.full(places, -1)
        """At hand; -1: none is left for the place."""
        self._features = np.zeros((places, teachers, len(BASE)))
        self._weights = np.zeros((places, teachers))
        self._named = np.zeros((places, teachers), dtype=np.int64)
        self._near = np.zeros((2, places, teachers, len(SIGNALS)))
        self._distance = np.ones(places)
        self._student, self._mixture = np.zeros((2, places, pool.classes))
        self._take(np.arange(places))

    @property
    def active(self) -> Flags:
        """Places with an instance, bool, shape (B,)."""
        return np.asarray(self.ids >= 0)

    @property
    def left(self) -> float:
        """Of the budget."""
        return max(self.bank.budget - self.bank.spent, 0.0)

    @property
    def come(self) -> Ids:
        """Instances whose turn has come, those at hand included, in their order."""
        return np.asarray(self._order[: self._next])

    @property
    def waiting(self) -> Ids:
        """Instances whose turn has not come, in their order."""
        return np.asarray(self._order[self._next :])

    def drop(self, ids: Ids) -> None:
        """Leave out waiting instances, which somebody else asks about."""
        waiting = self.waiting
        self._order = np.concatenate([self._order[: self._next], waiting[~np.isin(waiting, ids)]])

    @property
    def done(self) -> bool:
        """Whether all instances had their turn, or no answer can be paid any more."""
        return not self.active.any()

    def mask(self) -> Flags:
        """Which actions mean something, bool, shape (B, K + 1): to stop always does."""
        asked = self._asked()
        dear = self.prices > self.left * (1 + 1e-12)
        able = ~asked & ~dear & self.active[:, None]
        return np.concatenate([np.ones((len(able), 1), dtype=bool), able], axis=1)

    def _asked(self) -> Flags:
        return np.asarray(self.bank.answers.asked[self.ids] & self.active[:, None])

    def _answered(self) -> Flags:
        return np.asarray(self.bank.answers.answered[self.ids] & self.active[:, None])

    def observe(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What is seen of every place, zeros where there is no instance, see :mod:`rlkd.asking.observation`."""
        here = np.flatnonzero(self.active)
        teachers = np.zeros((len(self.ids), len(self.prices), NUM_TEACHER), dtype=np.float32)
        shared = np.zeros((len(self.ids), NUM_SHARED), dtype=np.float32)
        if len(here):
            teachers[here], shared[here] = observation(self._seen(here), self._situation())
        return teachers, shared

    def _seen(self, here: NDArray[np.int64]) -> Seen:
        return Seen(
            asked=self._asked()[here],
            answered=self._answered()[here],
            features=self._features[here],
            weights=self._weights[here],
            named=self._named[here],
            student=self._student[here],
            mixture=self._mixture[here],
            near=(self._near[0, here], self._near[1, here]),
            distance=self._distance[here],
            labelled=self.pool.labels[self.ids[here]] != UNLABELLED,
        )

    def _situation(self) -> Situation:
        return Situation(
            prices=self.prices,
            budget=self.bank.budget,
            left=self.left,
            rows=len(self._order),
            rows_left=len(self._order) - self._next + int(self.active.sum()),
            taught=self.student.taught,
            labels=bool(len(self.pool.labelled)),
            overall=self.record.overall(),
            by_class=self.record.by_class(),
        )

    def act(self, actions: NDArray[np.int64]) -> Finished:
        """Ask, and go on.

        Args:
            actions: One a place, shape (B,), in [0, K]; one that the mask forbids stops.

        Returns:
            The instances whose turn has ended.
        """
        possible = np.take_along_axis(self.mask(), actions[:, None], axis=1)[:, 0]
        chosen = np.where(possible, actions, STOP)
        for teacher in np.unique(chosen[chosen != STOP]) - 1:
            mine = np.flatnonzero(chosen == teacher + 1)
            told = mine[: len(self.bank.ask(int(teacher), self.ids[mine]))]
            self._note_leads(int(teacher), self.ids[told])
        self._read(np.flatnonzero((chosen != STOP) & self.active))
        ended = (chosen == STOP) & self.active
        if self.prices.min() > self.left * (1 + 1e-12):
            ended = self.active
            self._next = len(self._order)
        return self._end(np.flatnonzero(ended))

    def _note_leads(self, teacher: int, ids: Ids) -> None:
        answers = self.bank.answers
        told = ids[answers.answered[ids, teacher]]
        if len(told):
            usual = usual_sureness(torch.from_numpy(answers.logits[told, teacher : teacher + 1]))
            self._leads[:, teacher] += float(usual[0]) * len(told), len(told)

    def _read(self, places: NDArray[np.int64]) -> None:
        """Look at the answers of some places, where there are any: a budget may not have sufficed, or all refused."""
        places = places[self._answered()[places].any(1)]
        if not len(places):
            return
        ids, answers = self.ids[places], self.bank.answers
        present = torch.from_numpy(answers.answered[ids])
        usual = torch.from_numpy(self._leads[0] / self._leads[1].clip(1)).float().expand(len(ids), -1)
        logits = torch.from_numpy(answers.logits[ids])
        state = State(teacher_logits=logits, teacher_mask=present, sureness=usual)
        policy = weighting_of(self.pool)
        with torch.no_grad():
            features = teacher_features(state, policy.observation)
            weights = action_weights(policy.strength * policy(features), present)
        self._features[places], self._weights[places] = features.numpy(), weights.numpy()
        self._named[places] = answers.logits[ids].argmax(-1)
        self._mixture[places] = (weights.unsqueeze(-1) * logits.softmax(-1)).sum(-2).numpy()

    def _end(self, places: NDArray[np.int64]) -> Finished:
        ids = self.ids[places].copy()
        asked, answered = self.bank.answers.asked[ids], self.bank.answers.answered[ids]
        found = Finished(places, ids, asked, answered, self._targets(places), self._student[places].copy())
        self._learn(found)
        self._take(places)
        return found

    def _targets(self, places: NDArray[np.int64]) -> Floats:
        """What is taught of some places: the label where it is known, elsewhere the mixture."""
        targets, labels = self._mixture[places].copy(), self.pool.labels[self.ids[places]]
        known = labels != UNLABELLED
        targets[known] = np.eye(self.pool.classes)[labels[known]]
        return targets

    def _learn(self, ended: Finished) -> None:
        told = np.flatnonzero(ended.answered.any(1))
        if not len(told):
            return
        ids, targets, answered = ended.ids[told], ended.targets[told], ended.answered[told]
        known, places = self.pool.labels[ids] != UNLABELLED, ended.places[told]
        vectors = self.pool.vectors[ids]
        if not known.all():  # labels were taught before
            self.student.learn(vectors[~known], targets[~known])
        weights = self._weights[places].copy()
        if known.any():
            right = label_probabilities(self.bank.answers, ids[known], self.pool.labels[ids[known]])
            weights[known] = right / right.sum(1, keepdims=True).clip(1e-12)
        share = weights * answered.sum(1, keepdims=True)
        correct = self._named[places] == self.pool.labels[ids][:, None]
        signals = np.stack([share / (1 + share), self._features[places, :, BASE.index("max_probability")], correct], -1)
        several = answered & (answered.sum(1, keepdims=True) > 1)
        self.record.add(vectors, targets, signals, np.stack([several, answered, answered & known[:, None]], axis=-1))

    def _take(self, places: NDArray[np.int64]) -> None:
        """Go on to the next instances."""
        following = self._order[self._next : self._next + len(places)]
        self._next += len(following)
        self.ids[places] = -1
        self.ids[places[: len(following)]] = following
        for one in (self._features, self._weights, self._mixture, self._named):
            one[places] = 0
        here = places[: len(following)]
        if not len(here):
            return
        vectors = self.pool.vectors[following]
        self._student[here] = self.student.probabilities(vectors)
        self._near[0, here], self._near[1, here], nearest = self.record.near(vectors)
        self._distance[here] = 1 - nearest
