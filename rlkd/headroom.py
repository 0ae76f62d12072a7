"""What weighting teachers per instance can reach, from their cached answers alone, before a student is trained.

What a weighting would have students taught is held against equal weights on labelled rows that it has not learned from.
Students average what they are taught of alike instances, and err: so it counts how surely the label leads in the mean
of a few rows of its class (:func:`lead`). A line over the tasks of all suites says what students make of that
(:class:`~rlkd.stats.prediction.GainLine`; ``headroom.json``, made by ``benchmarks/fit_headroom.py``). A choice that
only labels could make (:func:`rlkd.metrics.headroom`) is out of reach, and says little about students.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.data.task import UNLABELLED, Task
from rlkd.errors import TaskError
from rlkd.logit_cache import answered_ids, read_state
from rlkd.losses import soft_targets
from rlkd.stats.prediction import FEWEST_ROWS, GainLine, rise
from rlkd.types import LogitSource, State
from rlkd.weighting.base import BaseWeighting, Evidence, mixture
from rlkd.weighting.learned import load_policy
from rlkd.weighting.policy_files import AUTO
from rlkd.weighting.router import train_router
from rlkd.weighting.router_targets import RouterSettings
from rlkd.weighting.shipped import LEAST_CHANGE, mean_change, restrained
from rlkd.weighting.simplex import equal_weights

LINES = Path(__file__).with_suffix(".json")
"""From what is reachable to what students gain: the noise of the imagined ``student`` that tells best, and the lines
for what is ``measured`` on labelled rows and what is ``hinted`` without."""
STUDENTS = tuple((alike, noise) for alike in (1, 3, 5) for noise in (0.25, 0.5))
"""Students that are imagined: alike rows that they average, and nats by which they err. Records keep all; students of
one noise count together (:func:`rlkd.stats.prediction.rise`)."""
DRAWS = 4
"""Crowds of alike rows drawn for every row."""
SMALLEST_PROBABILITY = 1e-6
"""Of a class: one hopeless row must not decide."""
ROUTER_ROWS = 1000
"""Labelled rows that the router is fitted on at most: it is a matter of seconds."""
ENOUGH = 100
"""Labelled rows of train and probe that will do for a router; with fewer, parts of the judged rows help out."""
FOLDS = 5
BATCH = 1024
ROUTER, EQUAL = "router", "uniform"
TOLD = frozenset({"affinity", "reliability", "sureness", "embeddings", "domains", "ids"})
"""What a weighting may require to be looked at before there is a student, and without the labels it is judged by."""

Figures = dict[str, Any]


def lead(targets: Tensor, labels: Tensor, noise: float) -> Tensor:
    """How surely a student that has learned these targets, but for normal noise, answers the label.

    The log odds of the label to the strongest other class are learned with an error: sharper targets are no better
    where the label is clear already.

    Args:
        targets: Probabilities, shape (N, C), C >= 2.
        labels: Shape (N,), all given.
        noise: Standard deviation of the error, in nats; > 0.

    Returns:
        Shape (N,), in [0, 1], float64.
    """
    place = labels.unsqueeze(-1)
    kept = targets.double().clamp_min(SMALLEST_PROBABILITY)
    rival = kept.scatter(-1, place, 0.0).amax(-1)
    surely: Tensor = torch.special.ndtr((kept.gather(-1, place).squeeze(-1).log() - rival.log()) / noise)
    return surely


def reachable(
    weighting: BaseWeighting, task: Task, source: LogitSource, ids: NDArray[np.int64], *, labels: bool = True
) -> Figures:
    """What a weighting would have students taught, beside what equal weights would.

    Args:
        weighting: Requires neither labels nor a student.
        task: Gives the labels.
        source: The teachers' logits.
        ids: Rows that the weighting has not learned from, shape (N,), N >= 1.
        labels: All rows have a label. False: none is read.

    Returns:
        ``rows``; ``moved``, the mean share of the weight that is not where equal weights have it; by student
        (:data:`STUDENTS`, as :func:`student_name` calls them) ``hint``, the rise of :func:`lead` over equal weights if
        labels were drawn from the weighting's own mixture. With labels also ``own`` and ``equal``, the means of the
        label's ``probability``, its ``geometric`` mean, and the ``accuracy`` of what is taught; and by student
        ``gain``, the rise with the true labels. Rises are in [-1, 1], with standard errors.
    """
    own, equal = [], []
    moved = 0.0
    for rows in torch.from_numpy(ids).split(BATCH):
        state = replace(read_state(task, source, rows), labels=None)
        taught, weights = mixture(weighting, state), equal_weights(state.present)
        own.append(soft_targets(taught.teacher_logits, taught.weights))
        equal.append(soft_targets(state.teacher_logits, weights))
        moved += float((taught.weights - weights).abs().sum()) / 2
    pair = torch.cat(own), torch.cat(equal)
    record: Figures = {"rows": len(ids), "moved": moved / len(ids)}
    drawn = torch.multinomial(pair[0], 1, generator=torch.Generator().manual_seed(0)).squeeze(-1)
    rises = {student: _rise("hint", pair, drawn, *student) for student in STUDENTS}
    if labels:
        given = torch.from_numpy(task.table.labels[ids])
        record |= {who: _label_figures(mixed, given) for who, mixed in zip(("own", "equal"), pair, strict=True)}
        rises = {student: rise | _rise("gain", pair, given, *student) for student, rise in rises.items()}
    return record | {"by_student": {student_name(*student): rise for student, rise in rises.items()}}


def student_name(alike: int, noise: float) -> str:
    """What records call one of :data:`STUDENTS`."""
    return f"{alike} alike, {noise:g} nats"


def _label_figures(targets: Tensor, labels: Tensor) -> Figures:
    probability = targets.double().gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return {
        "probability": float(probability.mean()),
        "geometric": float(probability.clamp_min(SMALLEST_PROBABILITY).log().mean().exp()),
        "accuracy": float((targets.argmax(-1) == labels).double().mean()),
    }


def _rise(name: str, pair: tuple[Tensor, Tensor], labels: Tensor, alike: int, noise: float) -> dict[str, float]:
    """Mean rise of :func:`lead` from the second targets to the first, over crowds of rows of a label; standard error.

    Rows share their crowds, so that the error is up to the square root of ``alike`` times that of as many rows.
    """
    rises = torch.zeros(len(labels), dtype=torch.float64)
    draws = 1 if alike == 1 else DRAWS
    for crowd in _crowds(labels, alike, draws):
        for rows in torch.arange(len(labels)).split(BATCH):
            mine, theirs = (lead(targets[crowd[rows]].mean(1), labels[rows], noise) for targets in pair)
            rises[rows] += (mine - theirs) / draws
    spread = float(rises.std()) if len(rises) > 1 else 1.0
    return {name: float(rises.mean()), f"{name}_error": spread * (alike / len(rises)) ** 0.5}


def _crowds(labels: Tensor, alike: int, draws: int) -> Iterator[Tensor]:
    """Rows that are averaged, shape (N, alike): each row, and others that are drawn from those of its label."""
    order = labels.argsort(stable=True)
    counts = labels.bincount()
    first = counts.cumsum(0) - counts
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        drawn = torch.rand((len(labels), alike - 1), generator=generator) * counts[labels].unsqueeze(-1)
        others = order[first[labels].unsqueeze(-1) + drawn.long().clamp_max(counts[labels].unsqueeze(-1) - 1)]
        yield torch.cat([torch.arange(len(labels)).unsqueeze(-1), others], dim=1)


def run_figures(weighting: BaseWeighting, task: Task, source: LogitSource) -> Figures | None:
    """What the record of a run keeps of :func:`reachable` on validation; None where it cannot be known beforehand."""
    ids = answered_ids(source, task.labelled_ids("validation"))
    return reachable(weighting, task, source, ids) if len(ids) and weighting.requires <= TOLD else None


class _Judged(BaseWeighting):
    """Weights that are known row by row: what routers say of rows that they were not fitted on."""

    requires = frozenset({"ids"})

    def __init__(self, ids: NDArray[np.int64], weights: Tensor) -> None:
        self._place, self._weights = {row: place for place, row in enumerate(ids.tolist())}, weights

    def weights(self, state: State) -> Tensor:
        assert state.ids is not None
        return self._weights[[self._place[row] for row in state.ids.tolist()]]


def crossfitted_router(
    task: Task, source: LogitSource, ids: NDArray[np.int64], *, seed: int = 0
) -> BaseWeighting | None:
    """A router's weights on labelled rows, each fitted without them.

    It learns from other labelled rows of train and probe. Where there are fewer than ``ENOUGH``, each of ``FOLDS``
    parts of the rows is judged by a router that learned from the other parts too.

    Args:
        task: Labels of test rows are read only where ``ids`` names them.
        source: The teachers' logits.
        ids: Labelled rows, shape (N,).
        seed: Of the parts, and of the fits.

    Returns:
        The weights, for these rows alone; None where there are fewer than ``FEWEST_ROWS`` to learn from.
    """
    labelled = np.concatenate([task.labelled_ids(split) for split in ("train", "probe")])
    pool = np.setdiff1d(answered_ids(source, labelled), ids)
    places = np.random.default_rng(seed).permutation(len(ids))
    folds = [places] if len(pool) >= ENOUGH else np.array_split(places, min(FOLDS, len(ids)))
    weights = None
    for fold in folds:
        known = np.concatenate([pool, np.delete(ids, fold)]) if len(folds) > 1 else pool
        if len(known) < FEWEST_ROWS:
            return None
        router = train_router(
            Evidence(task=_labelled_at(task, known), source=source, seed=seed), RouterSettings(rows=ROUTER_ROWS)
        )
        for part in np.array_split(fold, -(-len(fold) // BATCH)):
            own = router.weights(read_state(task, source, torch.from_numpy(ids[part])))
            weights = own.new_zeros(len(ids), own.shape[-1]) if weights is None else weights
            weights[torch.from_numpy(part)] = own
    return None if weights is None else _Judged(ids, weights)


def _labelled_at(task: Task, ids: NDArray[np.int64]) -> Task:
    """The task with labels of these rows alone, all of them rows of train."""
    labels = np.full_like(task.table.labels, UNLABELLED)
    labels[ids] = task.table.labels[ids]
    splits = {"train": np.arange(len(labels)), "probe": np.arange(0)}
    return replace(task, table=replace(task.table, labels=labels), splits=splits)


def headroom_rows(task: Task, source: LogitSource, split: str) -> list[Figures]:
    """What the shipped policy and a cross-fitted router can reach on a split, and what students would make of it.

    Args:
        task: The task.
        source: The teachers' logits.
        split: Whose rows are looked at: the labelled ones if there are ``FEWEST_ROWS``, else all, without labels.

    Returns:
        Flat records: ``what`` (``uniform``, ``auto``, ``router``), ``rows``, ``measured`` (False: hinted at), where it
        is measured the label's ``probability``, ``geometric`` mean and ``accuracy``, and but for ``uniform``
        ``reachable`` (the rise of :func:`lead`) with its standard ``error``, ``expected_gain`` in points with the ends
        of its prediction interval (``_low``, ``_high``), and the ``seconds`` that asking took. Of ``auto`` also the
        ``change`` of what is taught, and whether it ``abstains`` because that is too little, see
        :mod:`rlkd.weighting.shipped`: then equal weights are looked at, which gain nothing.
    """
    ids, shipped = answered_ids(source, task.labelled_ids(split)), load_policy(AUTO)
    changes = mean_change(shipped, task, source)
    policy = restrained(shipped, changes)
    if len(ids) < FEWEST_ROWS:
        every = answered_ids(source, task.splits[split])
        if len(every) == 0:
            raise TaskError(
                f"task {task.name!r} has no {split} rows, so there is nothing to look at; name another split"
            )
        started = time.perf_counter()
        return [_auto(reachable(policy, task, source, every, labels=False), started, changes)]
    started = time.perf_counter()
    found = reachable(policy, task, source, ids)
    rows = [{"what": EQUAL, "rows": len(ids), "measured": True, **found["equal"]}, _auto(found, started, changes)]
    started = time.perf_counter()
    router = crossfitted_router(task, source, ids) if len(source.teacher_names) > 1 else None
    return rows if router is None else [*rows, _arm(ROUTER, reachable(router, task, source, ids), started)]


def _auto(found: Figures, started: float, changes: float) -> Figures:
    """The record of the shipped policy, or of the equal weights that are taken in its place, which gain 0."""
    arm = _arm(AUTO, found, started) | {"change": changes, "abstains": changes < LEAST_CHANGE}
    unsure = ("expected_gain", "expected_gain_low", "expected_gain_high")
    return arm | dict.fromkeys(unsure, 0.0) if arm["abstains"] else arm


def _arm(name: str, found: Figures, started: float) -> Figures:
    """The record of a weighting, from what is reachable with it."""
    lines = json.loads(LINES.read_text(encoding="utf-8"))
    measured = "own" in found
    kind, line = ("gain", "measured") if measured else ("hint", "hinted")
    reached = rise(found["by_student"], lines["student"], kind)
    expected = GainLine(**lines[line]).predicted(reached.sure, reached.error)
    return {
        "what": name,
        "rows": found["rows"],
        "measured": measured,
        **found.get("own", {}),
        "reachable": reached.mean,
        "error": reached.error,
        "expected_gain": expected.mean,
        "expected_gain_low": expected.low,
        "expected_gain_high": expected.high,
        "seconds": round(time.perf_counter() - started, 2),
    }
