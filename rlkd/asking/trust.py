"""How far each teacher is to be trusted on instances that it has answered."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.asking.bank import Answers, Ids
from rlkd.asking.pool import Pool
from rlkd.data.task import UNLABELLED
from rlkd.features import finite_logits, relative_logits
from rlkd.weighting import Policy, load_weighting

AT_ONCE = 4096
"""Instances that are weighted at once."""


@cache
def shipped_policy() -> Policy:
    """The weighting policy that ships with the package: it reads no label."""
    policy = load_weighting("auto")
    assert isinstance(policy, Policy)
    return policy


def weighting_of(pool: Pool) -> Policy:
    """The policy that says how far answers are trusted."""
    return shipped_policy() if pool.weighting is None else pool.weighting


def trust(pool: Pool, answers: Answers, ids: Ids, sureness: Tensor | None = None) -> NDArray[np.float64]:
    """Weights of the teachers that answered, rows on the simplex, zeros where nobody did, shape (B, K).

    Where a strategy knows the label, in the proportion of the probability that each teacher gives it; elsewhere what
    the pool's policy makes of the answers, which is told how sure each teacher usually is, ``sureness`` of shape (K,);
    None: on everything answered so far.
    """
    weights = np.zeros(answers.asked[ids].shape)
    told = np.flatnonzero(answers.answered[ids].any(1))
    if not len(told):
        return weights
    usual = answers.sureness() if sureness is None else sureness
    for start in range(0, len(told), AT_ONCE):
        rows = told[start : start + AT_ONCE]
        weights[rows] = weighting_of(pool).weights(answers.state(ids[rows], usual)).numpy()
    known = told[pool.labels[ids[told]] != UNLABELLED]
    if len(known):
        right = label_probabilities(answers, ids[known], pool.labels[ids[known]])
        weights[known] = right / right.sum(1, keepdims=True).clip(1e-12)
    return weights


def mixtures(pool: Pool, answers: Answers, ids: Ids, sureness: Tensor | None = None) -> NDArray[np.float64]:
    """What a student would be taught of instances (:func:`trust`), (B, C); zeros where nobody answered."""
    p = torch.from_numpy(answers.logits[ids]).double().softmax(-1).numpy()
    return np.asarray((trust(pool, answers, ids, sureness)[..., None] * p).sum(1))


def taught(pool: Pool, answers: Answers, ids: Ids, sureness: Tensor | None = None) -> NDArray[np.float64]:
    """The same, but for instances whose label is known: those are taught the label, whoever answered."""
    targets, labels = mixtures(pool, answers, ids, sureness), pool.labels[ids]
    known = labels != UNLABELLED
    targets[known] = np.eye(pool.classes)[labels[known]]
    return targets


def label_probabilities(answers: Answers, ids: Ids, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """The probability that each teacher gives the label, shape (B, K); 0 of who gave no answer."""
    p = torch.from_numpy(answers.logits[ids]).double().softmax(-1)
    picked = p.gather(-1, torch.from_numpy(labels)[:, None, None].expand(*p.shape[:2], 1)).squeeze(-1).numpy()
    return np.asarray(np.where(answers.answered[ids], picked, 0.0))


def confidence(answers: Answers, ids: Ids, sureness: Tensor | None = None) -> NDArray[np.float64]:
    """How sure each teacher is of its answer, for one that is usually as sure as the others, shape (B, K).

    The largest probability of :func:`rlkd.features.relative_logits`, in [0, 1]; 0 of who gave no answer.
    """
    usual = answers.sureness() if sureness is None else sureness
    logits = finite_logits(torch.from_numpy(answers.logits[ids]))
    largest = relative_logits(logits, usual.expand(logits.shape[:-1])).softmax(-1).amax(-1).double().numpy()
    return np.asarray(np.where(answers.answered[ids], largest, 0.0))
