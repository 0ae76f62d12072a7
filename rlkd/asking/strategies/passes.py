"""How many teachers are asked about an instance: everybody, one, or another one where the first is unsure."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rlkd.asking.bank import Ids, TeacherBank
from rlkd.asking.strategies.choosing import Chooser
from rlkd.asking.strategies.rows import RowOrder
from rlkd.asking.trust import confidence

Sureness = Callable[[Ids], NDArray[np.float64]]


def most_confident(bank: TeacherBank) -> Sureness:
    """How sure the surest of those is that answered."""
    return lambda ids: np.asarray(confidence(bank.answers, ids).max(1))


def ask_each(bank: TeacherBank, ids: Ids, teachers: np.ndarray) -> bool:
    """Ask about each instance (n,) its own teacher (n,); whether the budget sufficed."""
    for teacher in np.unique(teachers):
        mine = ids[teachers == teacher]
        if len(bank.ask(int(teacher), mine)) < len(mine):
            return False
    return True


def ask_everybody(bank: TeacherBank, ids: Ids, budget: float = np.inf) -> Ids:
    """Ask everybody about instances, one after the other, while a budget in all lasts; the instances asked about."""
    most, done = min(budget, bank.budget), 0
    while done < len(ids):
        left = ids[done:]
        new = (~bank.answers.asked[left] * bank.prices).sum(1)
        told = left[bank.spent + np.cumsum(new) <= most * (1 + 1e-12)]
        for teacher in range(len(bank.teacher_names)):
            told = bank.ask(teacher, told)
        if not len(told):
            break
        done += len(told)  # prices by token are known by now, and may allow more
    return ids[:done]


def ask_one(
    bank: TeacherBank,
    left: Ids,
    order: RowOrder,
    chooser: Chooser,
    threshold: float | None = None,
    sure: Sureness | None = None,
) -> None:
    """Ask one teacher about every instance while the budget lasts, and others where nobody asked is sure enough.

    Args:
        bank: Is asked.
        left: The instances, (M,).
        order: Which of them are next.
        chooser: Whom.
        threshold: The next teacher is asked while ``sure`` is below it, in [0, 1]; None: one is asked.
        sure: How good the answers to instances (B,) are, (B,), in [0, 1]; None: the largest confidence.
    """
    while len(left):
        ids = order(left)
        left = np.setdiff1d(left, ids, assume_unique=True)
        if not ask_until_sure(bank, ids, chooser, threshold, sure):
            return
        chooser.learn(ids)


def ask_until_sure(
    bank: TeacherBank, ids: Ids, chooser: Chooser, threshold: float | None = None, sure: Sureness | None = None
) -> bool:
    """Ask about instances (n,) as :func:`ask_one` does; whether the budget sufficed."""
    sure = sure or most_confident(bank)
    if not ask_each(bank, ids, chooser.scores(ids).argmax(1)):
        return False
    unsure = ids
    while threshold is not None and len(unsure):
        unsure = unsure[sure(unsure) < threshold]
        unsure = unsure[~bank.answers.asked[unsure].all(1)]
        if not ask_next(bank, unsure, chooser):
            return False
    return True


def ask_next(bank: TeacherBank, ids: Ids, chooser: Chooser) -> bool:
    """Ask about instances the best of those that were not asked; whether the budget sufficed."""
    scores = np.where(bank.answers.asked[ids], -np.inf, chooser.scores(ids))
    return ask_each(bank, ids, scores.argmax(1))


def spend_the_rest(bank: TeacherBank, ids: Ids, chooser: Chooser, sure: Sureness | None = None) -> None:
    """Ask further teachers about the instances of which those asked are least sure, until the budget is spent."""
    sure = sure or most_confident(bank)
    while True:
        open_ = ids[bank.answers.asked[ids].any(1) & ~bank.answers.asked[ids].all(1)]
        if not len(open_):
            return
        some = open_[np.argsort(sure(open_), kind="stable")]
        some = some[: max(1, len(some) // 8)]
        if not ask_next(bank, some, chooser):
            return
