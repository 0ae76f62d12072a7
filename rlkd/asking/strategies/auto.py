"""The asking policy, as far as students of what it asks are not surely worse than those of everybody's answers."""

from dataclasses import dataclass

import numpy as np

from rlkd.asking.bank import Ids, TeacherBank
from rlkd.asking.linear_student import LinearStudent, refined_losses
from rlkd.asking.policy import AskByPolicy
from rlkd.asking.pool import Pool
from rlkd.asking.strategies.passes import ask_everybody
from rlkd.asking.trust import mixtures
from rlkd.data.task import UNLABELLED

LEAST_LABELS = 20
"""Labelled instances that can tell something of trial students."""
TRIED = 0.1
"""Of the budget, for each of two trial students."""
SURELY = 1.645
"""Standard errors of a mean difference beyond which it is no chance: one side, 95%."""


@dataclass(frozen=True)
class Auto:
    """Asks as a policy says; where labels are known, trial students decide how far it is followed.

    The policy begins with the labelled instances, and asks about others for a tenth of the budget. Everybody is asked
    about further ones for as much. A student learns from each, and both are judged by the labelled instances, which
    neither is taught. The policy is followed to the end unless its student is surely the worse one; then everybody is
    asked about the instances that are left. Few labels cannot tell: the policy is the prior. Nothing is asked in vain.

    Attributes:
        asker: Follows the policy.
    """

    asker: AskByPolicy

    def run(self, pool: Pool, bank: TeacherBank, seed: int) -> None:
        """See :class:`~rlkd.asking.base.Strategy`."""
        walk, draws = self.asker.begin(pool, bank, seed)
        if len(pool.labelled) >= LEAST_LABELS:
            tenth = TRIED * min(bank.budget, float(bank.prices.sum()) * len(pool.ids))
            self.asker.follow(walk, draws, until=lambda: bool((pool.labels[walk.waiting] == UNLABELLED).all()))
            most = bank.spent + tenth
            self.asker.follow(walk, draws, until=lambda: bank.spent >= most)
            others = walk.waiting[::-1]
            told = ask_everybody(bank, others, bank.spent + tenth)
            walk.drop(told)
            if surely_worse(pool, bank, walk.come, told):
                ask_everybody(bank, others)
                return
        self.asker.follow(walk, draws)


def surely_worse(pool: Pool, bank: TeacherBank, ids: Ids, than: Ids) -> bool:
    """Whether a student of the answers to some instances surely loses more on labelled ones than one of others."""
    first, second = (_losses(pool, bank, some) for some in (ids, than))
    difference = first - second
    return bool(difference.mean() > SURELY * difference.std(ddof=1) / np.sqrt(len(difference)))


def _losses(pool: Pool, bank: TeacherBank, ids: Ids) -> np.ndarray:
    """What a student of the answers to instances without a label loses on those with one."""
    told = ids[bank.answers.answered[ids].any(1) & (pool.labels[ids] == UNLABELLED)]
    student, judges = LinearStudent(pool.vectors.shape[1], pool.classes), pool.labelled
    if len(told):
        student.learn(pool.vectors[told], mixtures(pool, bank.answers, told))
    return refined_losses(student, pool.vectors[judges], pool.labels[judges])
