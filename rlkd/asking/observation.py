"""The observation of an asking policy: what is seen of an instance and of the teachers that may be asked about it.

The environment and the deployed policy call the same :func:`observation`. Every number is bounded, and none depends on
the number or the order of teachers or classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkd.features import BASE

Floats = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]

OBSERVATION_VERSION = 1
"""Of the layout and of what its numbers mean."""
PRICES = ("present", "price", "price_of_row", "asked")
"""Of every teacher: is it there; its price, of the dearest's; of what the budget leaves for each instance that is left,
x as x / (1 + x); was it asked about this instance. In [0, 1]."""
ANSWER = ("answered", *BASE[1:], "weight", "named_trusted", "named_probability", "named_lead")
"""Of its answer, zeros where it gave none: the features of :mod:`rlkd.features`, relative to how sure it usually is;
the weight that the shipped policy gives it among those that answered; of the class that it names: how far it was
trusted where instances were of that class, the student's probability, and that over the student's largest one."""
RECORD = (
    *("near_trusted", "near_confidence", "near_correct", "class_trusted", "class_confidence", "class_correct"),
    *("overall_trusted", "overall_confidence", "overall_correct", "lead"),
    *("near_count", "near_compared", "near_labelled", "count", "compared"),
)
"""What it was worth before, see ``rlkd.asking.record.SIGNALS``: near this instance, on instances of the classes that
the student takes this one for, and overall; how far ``class_trusted`` lies over that of the best other teacher, in
[-1, 1]; in how many answers near it, how many of those beside others, how many with a label; and in how many overall, x
as x / (1 + x) and x / (50 + x)."""
TEACHER_FEATURES = PRICES + ANSWER + RECORD
SHARED_FEATURES = (
    *("student_margin", "student_entropy", "student_max", "student_taught", "distance", "labelled", "labels"),
    *("budget_left", "rows_left", "rows_seen", "cheapest_of_row", "dearest_of_row"),
    *("asked_share", "asked_count", "surest", "best_odds", "mixture_max", "mixture_margin", "mixture_student"),
)
"""Of the instance: lead, entropy / log C and largest probability of what the student says, how much it was taught; how
far the nearest instance lies that was answered before; is its label known; is any. Of the budget: share that is left,
share of instances left, how many were seen; what the cheapest and the dearest teacher cost of what is left for each
instance. Of the answers so far: share of teachers asked, their number, confidence of the surest, likelihood that the
best is right as far as records tell; largest probability, lead and overlap with the student of their mixture."""
NUM_TEACHER, NUM_SHARED = len(TEACHER_FEATURES), len(SHARED_FEATURES)


@dataclass(frozen=True)
class Seen:
    """What is known of B instances at a step.

    Attributes:
        asked: Bool, shape (B, K).
        answered: Bool, shape (B, K).
        features: ``BASE`` of the answers, shape (B, K, 9).
        weights: Of the shipped policy, shape (B, K).
        named: The class that each answer names, (B, K); of no meaning where there is none.
        student: What the student says, shape (B, C).
        mixture: What the answers say under the weights, shape (B, C).
        near: Mean signals near the instances, and their effective numbers, each (B, K, S).
        distance: To the nearest instance that was answered before, in [0, 1], shape (B,).
        labelled: Bool, whether the label is known, shape (B,).
    """

    asked: Flags
    answered: Flags
    features: Floats
    weights: Floats
    named: NDArray[np.int64]
    student: Floats
    mixture: Floats
    near: tuple[Floats, Floats]
    distance: Floats
    labelled: Flags


@dataclass(frozen=True)
class Situation:
    """What is the same for all instances of a step.

    Attributes:
        prices: Of the K teachers.
        budget: In all; infinity: there is none.
        left: Of it.
        rows: Instances in all, and those that are left.
        rows_left: Instances whose turn has not come, those at hand included.
        taught: Instances that the student was taught.
        labels: Whether any label is known.
        overall: Mean signals and their number, each (K, S).
        by_class: Mean signals, shape (C, K, S).
    """

    prices: Floats
    budget: float
    left: float
    rows: int
    rows_left: int
    taught: int
    labels: bool
    overall: tuple[Floats, Floats]
    by_class: Floats


def observation(seen: Seen, now: Situation) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the policy sees.

    Returns:
        Of every teacher, shape (B, K, NUM_TEACHER), and of the instance, shape (B, NUM_SHARED), all in [-1, 1].
    """
    by_class = np.tensordot(_sharpened(seen.student), now.by_class, 1)
    prices, answer = _prices(seen, now), _answer(seen, now)
    record = _record(seen, now, by_class)
    teachers = np.concatenate([prices, answer, record], axis=-1)
    shared = _shared(seen, now, answer)
    return teachers.clip(-1, 1).astype(np.float32), shared.clip(-1, 1).astype(np.float32)


def _sharpened(p: Floats) -> Floats:
    """A modest student's probabilities, to the power of 1.5."""
    sharp = p**1.5
    return np.asarray(sharp / sharp.sum(1, keepdims=True))


def _of_row(prices: Floats, now: Situation) -> Floats:
    """Prices over what the budget leaves for each instance that is left, x as x / (1 + x)."""
    if np.isinf(now.left):
        return np.zeros_like(prices)
    each = now.left / max(now.rows_left, 1)
    return np.asarray(prices / (prices + each))


def _prices(seen: Seen, now: Situation) -> Floats:
    size, count = seen.asked.shape
    found = np.empty((size, count, len(PRICES)))
    found[..., 0], found[..., 1], found[..., 2] = 1, now.prices / now.prices.max(), _of_row(now.prices, now)
    found[..., 3] = seen.asked
    return found


def _answer(seen: Seen, now: Situation) -> Floats:
    named = seen.named
    said = np.take_along_axis(seen.student, named, axis=1)
    trusted = now.by_class[named, np.arange(named.shape[1]), 0]
    own = [seen.weights, trusted, said, said / seen.student.max(1, keepdims=True)]
    return np.concatenate([seen.features, np.stack(own, axis=-1)], axis=-1) * seen.answered[..., None]


def _record(seen: Seen, now: Situation, by_class: Floats) -> Floats:
    means, counts = seen.near
    overall, total = (np.broadcast_to(one, means.shape) for one in now.overall)
    numbers = [counts[..., 1], counts[..., 0], counts[..., 2]]
    counted = [x / (1 + x) for x in numbers] + [
        total[..., 1] / (50 + total[..., 1]),
        total[..., 0] / (50 + total[..., 0]),
    ]
    columns = np.stack([_lead(by_class[..., 0]), *counted], axis=-1)
    return np.concatenate([means, by_class, overall, columns], axis=-1)


def _lead(values: Floats) -> Floats:
    """How far each lies over the best of the others, (B, K); 0 of one that is alone."""
    if values.shape[1] < 2:
        return np.zeros_like(values)
    first = np.partition(values, -2, axis=1)[:, -2:]
    best = values == first[:, 1:]
    return np.asarray(values - np.where(best, first[:, :1], first[:, 1:]))


def _two_largest(p: Floats) -> tuple[Floats, Floats]:
    first = np.partition(p, -2, axis=1)[:, -2:]
    return first[:, 1], first[:, 0]


def _shared(seen: Seen, now: Situation, answer: Floats) -> Floats:
    p, q = seen.student, seen.mixture
    best, second = _two_largest(p)
    most, next_ = _two_largest(q)
    told = seen.answered.any(1)
    entropy = -(p * np.log(p.clip(1e-12))).sum(1) / np.log(max(p.shape[1], 2))
    left = 1.0 if np.isinf(now.budget) else now.left / max(now.budget, 1e-12)
    of_row, seen_rows = _of_row(now.prices, now), now.rows - now.rows_left
    odds = answer[..., ANSWER.index("named_trusted")] * answer[..., ANSWER.index("max_probability")]
    count = seen.asked.sum(1)
    columns: list[Any] = [
        *(best - second, entropy, best, now.taught / (100 + now.taught), seen.distance, seen.labelled, now.labels),
        *(left, now.rows_left / max(now.rows, 1), seen_rows / (100 + seen_rows), of_row.min(), of_row.max()),
        *(seen.asked.mean(1), count / (2 + count), answer[..., ANSWER.index("max_probability")].max(1), odds.max(1)),
        *(most * told, (most - next_) * told, np.minimum(p, q).sum(1) * told),
    ]
    return np.stack([np.broadcast_to(np.asarray(one, dtype=np.float64), best.shape) for one in columns], axis=-1)
