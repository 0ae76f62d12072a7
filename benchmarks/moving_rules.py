"""What is taught of rows that everybody was asked about, by rules that do not look at who is asked."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from rlkd.asking import Answers, Pool
from rlkd.asking.bank import Ids
from rlkd.asking.linear_student import LinearStudent
from rlkd.asking.trust import taught
from rlkd.weighting.online import Hedge

TRIMMED = 0.25
"""Share of the teachers that a trimmed mean leaves out at either end, at least one of three or more."""
CHUNK = 64
"""Rows after which hedge learns."""

Targets = NDArray[np.float64]
Bits = NDArray[np.bool_]


def mean(p: Targets, there: Bits) -> Targets:
    """The mean of the answers.

    Args:
        p: Probabilities of all teachers, shape (n, K, C).
        there: Bool, shape (n, K): who answered.

    Returns:
        Shape (n, C); zeros where nobody answered.
    """
    return np.asarray((p * there[..., None]).sum(1) / there.sum(1)[:, None].clip(1))


def vote(p: Targets, there: Bits) -> Targets:
    """Shares of votes, a teacher one; the mean, a thousandth of it, parts those that tie. See :func:`mean`."""
    votes = np.eye(p.shape[2])[p.argmax(2)]
    return 0.999 * mean(votes, there) + 0.001 * mean(p, there)


def trimmed_mean(p: Targets, there: Bits) -> Targets:
    """The mean of each class's probability but for its least and greatest, rows on the simplex. See :func:`mean`.

    Source: Yin et al. 2018, arXiv:1803.01498 (coordinate-wise trimmed mean).
    """
    found = np.zeros((len(p), p.shape[2]))
    for count in range(1, p.shape[1] + 1):
        rows = np.flatnonzero(there.sum(1) == count)
        cut = 0 if count < 3 else max(1, int(TRIMMED * count))
        answers = p[rows][there[rows]].reshape(len(rows), count, p.shape[2])
        found[rows] = np.sort(answers, axis=1)[:, cut : count - cut].mean(1)
    return np.asarray(found / found.sum(1, keepdims=True).clip(1e-12))


RULES: dict[str, Callable[[Targets, Bits], Targets]] = {"mean": mean, "vote": vote, "trimmed mean": trimmed_mean}


def by_rule(name: str, answers: Answers, ids: Ids) -> Targets:
    """What a rule teaches of rows (n,), shape (n, C)."""
    p = torch.from_numpy(answers.logits[ids]).double().softmax(-1).numpy()
    return RULES[name](p, answers.answered[ids])


def by_hedge(pool: Pool, answers: Answers, ids: Ids) -> Targets:
    """What hedge teaches of rows (n,) in their order, which learns from those of them whose label is known."""
    hedge = Hedge(pool.classes, answers.asked.shape[1])
    student, parts = LinearStudent(pool.vectors.shape[1], pool.classes), []
    for start in range(0, len(ids), CHUNK):
        some = ids[start : start + CHUNK]
        said = np.log(student.probabilities(pool.vectors[some]))
        state = replace(
            answers.state(some),
            labels=torch.from_numpy(pool.labels[some]),
            student_logits=torch.from_numpy(said).float(),
        )
        p = state.teacher_logits.double().softmax(-1)
        parts.append((hedge.weights(state).double().unsqueeze(-1) * p).sum(-2).numpy())
        hedge.update(state)
        student.learn(pool.vectors[some], parts[-1])
    return np.concatenate(parts)


def by_policy(pool: Pool, answers: Answers, ids: Ids) -> Targets:
    """What the shipped policy teaches of rows (n,), whatever rule asked."""
    return taught(pool, answers, ids)
