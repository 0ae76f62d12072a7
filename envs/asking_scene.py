"""What an episode of asking is about: rows, teachers, prices, a budget and labels, drawn from a task."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rlkd.asking.bank import RecordedTeachers
from rlkd.asking.linear_student import LinearStudent, refined_losses
from rlkd.asking.pool import Pool, instance_vectors
from rlkd.asking.trust import mixtures
from rlkd.data.task import UNLABELLED, Task
from rlkd.errors import TaskError
from rlkd.logit_cache import LogitCache, refuse_gaps
from rlkd.settings import AskingEpisode
from rlkd.types import LogitSource

Floats = NDArray[np.float64]

JUDGED = 500
"""Validation rows that judge students, at most."""
LEAST_DROP = 0.05
"""Of log C: what everybody's answers take off a student's loss at least, so that nothing is divided by less."""


class AskingGround:
    """A task whose teachers have answered everything; no test row is in its memory.

    Args:
        task: The task; cut to its training view here.
        source: The teachers' logits; cut likewise.
        vectors: Of all rows of the training view, see :class:`~rlkd.asking.pool.Pool`; None: made of the task.
    """

    def __init__(self, task: Task, source: LogitSource, vectors: NDArray[np.float32] | None = None) -> None:
        refuse_gaps(source, "an environment in which asking is learned")
        view = task.training_view()
        self.name, self.classes, self.labels = view.name, view.num_classes, view.table.labels
        self.train = view.labelled_ids("train")
        self.validation = view.labelled_ids("validation")[:JUDGED]
        if len(self.train) < 2 or not len(self.validation):
            raise TaskError(
                f"asking is rewarded by labels of train and validation rows, task {task.name!r} has {len(self.train)} "
                f"and {len(self.validation)}; label some"
            )
        self.names = tuple(source.teacher_names)
        self.logits = source.head(len(view.table)).rows(torch.arange(len(view.table))).numpy()
        self.vectors = instance_vectors(view) if vectors is None else vectors


@dataclass(frozen=True)
class AskingScene:
    """One drawn episode.

    Attributes:
        pool: Of M rows, numbered from 0; labels are those that are shown.
        truth: The labels of all of them, shape (M,).
        bank: Its teachers, prices and budget.
        order: Of the rows.
        begun: Loss of a student of the shown labels alone, in nats, on validation rows.
        drop: What a student of everybody's answers loses less.
        judges: Vectors and labels of validation rows.
    """

    pool: Pool
    truth: NDArray[np.int64]
    bank: RecordedTeachers
    order: NDArray[np.int64]
    begun: float
    drop: float
    judges: tuple[NDArray[np.float32], NDArray[np.int64]]

    @property
    def budget_of_row(self) -> float:
        """What the budget holds for each instance."""
        return self.bank.budget / len(self.order)

    def recovered(self, student: LinearStudent) -> float:
        """How much less than at the beginning a student loses, of what everybody's answers take off, in [-1, 2]."""
        return float(np.clip((self.begun - refined_losses(student, *self.judges).mean()) / self.drop, -1, 2))


def draw_scene(ground: AskingGround, settings: AskingEpisode, random: np.random.Generator) -> AskingScene:
    """Draw an episode of a task."""
    rows = random.permutation(ground.train)[: settings.rows]
    chosen = _teachers(len(ground.names), settings, random)
    truth, vectors = ground.labels[rows], ground.vectors[rows]
    pool = Pool(
        ids=np.arange(len(rows)), vectors=vectors, labels=_shown(truth, settings, random), classes=ground.classes
    )
    cache = LogitCache([ground.logits[rows, k] for k in chosen], [ground.names[k] for k in chosen])
    prices = _prices(len(chosen), settings, random)
    share = np.exp(random.uniform(np.log(settings.least_budget), np.log(settings.largest_budget)))
    # enough for one answer of the cheapest
    budget = max(share * prices.sum() * len(rows), float(prices.min()))
    order = random.permutation(len(rows))
    order = order[np.argsort(pool.labels[order] == UNLABELLED, kind="stable")]
    judges = ground.vectors[ground.validation], ground.labels[ground.validation]
    begun, drop = _worth(pool, cache, judges)
    return AskingScene(pool, truth, RecordedTeachers(cache, prices, budget), order, begun, drop, judges)


def _teachers(count: int, settings: AskingEpisode, random: np.random.Generator) -> NDArray[np.int64]:
    least = min(settings.least_teachers, count)
    return random.permutation(count)[: random.integers(least, count + 1)]


def _prices(count: int, settings: AskingEpisode, random: np.random.Generator) -> Floats:
    if random.random() < 0.5:
        return np.ones(count)
    return np.asarray(np.exp(random.uniform(0, np.log(settings.dearest), count)))


def _shown(truth: NDArray[np.int64], settings: AskingEpisode, random: np.random.Generator) -> NDArray[np.int64]:
    """Labels that are shown: of some rows, or of none."""
    shown = np.full(len(truth), UNLABELLED)
    if random.random() < settings.labelled_share:
        most = min(settings.most_labels, len(truth))
        some = random.permutation(len(truth))[: random.integers(min(10, most), most + 1)]
        shown[some] = truth[some]
    return shown


def _worth(pool: Pool, cache: LogitCache, judges: tuple[NDArray[np.float32], NDArray[np.int64]]) -> tuple[float, float]:
    """What a student of the shown labels loses, and what one of everybody's answers loses less."""
    everybody = RecordedTeachers(cache)
    for teacher in range(len(cache.teacher_names)):
        everybody.ask(teacher, pool.ids)
    student = LinearStudent(pool.vectors.shape[1], pool.classes)
    if len(pool.labelled):
        student.learn(pool.vectors[pool.labelled], np.eye(pool.classes)[pool.labels[pool.labelled]])
    begun = float(refined_losses(student, *judges).mean())
    others = np.setdiff1d(pool.ids, pool.labelled)
    if len(others):
        student.learn(pool.vectors[others], mixtures(pool, everybody.answers, others))
    drop = begun - float(refined_losses(student, *judges).mean())
    return begun, max(drop, LEAST_DROP * float(np.log(pool.classes)))
