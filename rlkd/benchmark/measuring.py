"""What a run measures beside its scores: where the deployed weighting puts its weight, and what it costs."""

import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.data.task import Task
from rlkd.logit_cache import answered_ids, read_state
from rlkd.metrics import classification_metrics
from rlkd.records import pack_bits, pack_classes
from rlkd.stats import ACCURACY
from rlkd.types import LogitSource, State
from rlkd.weight_record import WeightRecord
from rlkd.weighting import BaseWeighting, mixture
from rlkd.weighting.heuristic import Oracle

FLAT = 1e-6
"""Weights that differ by less are called equal."""


def student_scores(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> dict[str, Any]:
    """All scores of a student: those of :func:`classification_metrics`, Matthews' correlation, recall per class.

    Args:
        logits: Shape (N, C).
        labels: Shape (N,), all labelled.
    """
    from sklearn.metrics import matthews_corrcoef, recall_score

    predictions = logits.argmax(-1)
    classes = np.arange(logits.shape[-1])
    recall = recall_score(labels, predictions, labels=classes, average=None, zero_division=0.0)
    return {
        **classification_metrics(logits, labels),
        "matthews": float(matthews_corrcoef(labels, predictions)),
        "class_recall": [round(float(value), 4) for value in recall],
    }


def answers(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64], metric: str) -> dict[str, str]:
    """What a record keeps of each test instance, so that intervals can be about other test instances.

    Args:
        logits: Shape (N, C).
        labels: Shape (N,), all labelled.
        metric: The score that counts; one that is no mean over right and wrong needs what was answered.

    Returns:
        ``correct``, and for such a score ``predictions`` and ``labels``.
    """
    predictions = logits.argmax(-1)
    kept = {"correct": pack_bits(np.asarray(predictions == labels))}
    if metric != ACCURACY:
        kept |= {"predictions": pack_classes(predictions), "labels": pack_classes(labels)}
    return kept


@torch.no_grad()
def deployed_weights(
    weighting: BaseWeighting,
    task: Task,
    source: LogitSource,
    ids: NDArray[np.int64],
    student_logits: NDArray[np.floating[Any]],
    batch_size: int,
) -> tuple[State, Tensor]:
    """What a weighting does on instances, in batches as it meets them in training, at the end of a student's budget.

    Args:
        weighting: The weighting, as the run left it behind.
        task: The task.
        source: The teachers' logits.
        ids: Instances, shape (N,).
        student_logits: Of the finished student, shape (N, C).
        batch_size: Instances a batch: some weightings look at the whole batch.

    Returns:
        The state of the N instances and the weights, shape (N, K).
    """
    state = read_state(task, source, torch.from_numpy(ids))
    state = replace(state, student_logits=torch.from_numpy(np.asarray(student_logits)).float(), progress=1.0)
    parts = []
    for start in range(0, len(ids), batch_size):
        rows = slice(start, start + batch_size)
        fields = {name: getattr(state, name) for name in state.available()}
        cut: dict[str, Any] = {name: value[rows] for name, value in fields.items() if isinstance(value, Tensor)}
        parts.append(mixture(weighting, replace(state, **cut)).weights)
    return state, torch.cat(parts)


def deployed_figures(
    weighting: BaseWeighting,
    task: Task,
    source: LogitSource,
    student_logits: NDArray[np.floating[Any]],
    batch_size: int,
) -> dict[str, Any]:
    """What a record keeps of a deployed weighting, on the test rows that teachers answered about.

    Args:
        weighting: The weighting, as the run left it behind.
        task: The task.
        source: The teachers' logits.
        student_logits: Of the finished student on the test rows, shape (N, C).
        batch_size: See :func:`deployed_weights`.

    Returns:
        What :func:`choice_figures` tells, and ``mean_weights`` (K): None where no teacher answered about a test row;
        and ``asked``, how many teachers answered for a train row, on average where there are gaps.
    """
    train, test = task.splits["train"], task.splits["test"]
    ids = answered_ids(source, test)
    figures: dict[str, Any] = {"regret": None, "selection_accuracy": None, "mean_weights": None}
    asked: float = 0
    if len(ids):
        shown = student_logits[np.isin(test, ids)]
        state, weights = deployed_weights(weighting, task, source, ids, shown, batch_size)
        means = [round(float(value), 4) for value in weights.mean(0)]
        figures, asked = {**choice_figures(weights, state, source), "mean_weights": means}, teachers_asked(weights)
    answered = source.mask_rows(torch.from_numpy(train))
    return {**figures, "asked": asked if answered is None else float(answered.sum(1).double().mean())}


def choice_figures(weights: Tensor, state: State, source: LogitSource) -> dict[str, float | None]:
    """How far a weighting is from the best known choice.

    ``regret`` is the mean weight that is not on the best teachers of the instance; ``selection_accuracy`` the share of
    instances whose largest weight is on one of them, ties shared. The best teachers are those that were trained on the
    instance's class or domain, or were planted as right there.

    Args:
        weights: Shape (N, K).
        state: Of the N instances.
        source: Says who knows what.

    Returns:
        Both figures in [0, 1]; None where it is not known who knows what.
    """
    if source.knowledge is None:
        return {"regret": None, "selection_accuracy": None}
    best = Oracle(source.knowledge).knows(state)
    known = best.any(-1)
    weights, best = weights[known].double(), best[known].double()
    largest = (weights >= weights.amax(-1, keepdim=True) - FLAT).double()
    return {
        "regret": round(max(0.0, float(1 - (weights * best).sum(-1).mean())), 6),  # no trace of float32
        "selection_accuracy": float(((largest * best).sum(-1) / largest.sum(-1)).mean()),
    }


def teachers_asked(weights: Tensor) -> int:
    """How many teachers must answer for an instance so that it can be weighted.

    All of them, unless the weights are the same for all instances: then those with weight.

    Args:
        weights: Shape (N, K).
    """
    same = bool((weights - weights[:1]).abs().max() < FLAT)
    return int((weights[0] > FLAT).sum()) if same else weights.shape[-1]


def weights_summary(record: WeightRecord, teacher_names: Sequence[str]) -> dict[str, Any]:
    """What the report draws of a run's weights: means of shape (bins, groups, K), None where nothing was seen."""
    means = record.means()
    shown = means.astype(object)
    shown[np.isnan(means)] = None
    return {
        "teachers": list(teacher_names),
        "groups": list(record.groups),
        "bins": [(index + 0.5) / record.BINS for index in range(record.BINS)],
        "mean": shown.tolist(),
    }


def reset_peak_memory() -> None:
    """Forget the process's peak where the kernel can; elsewhere the peak is that of all its runs so far."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Largest resident memory of this process since :func:`reset_peak_memory`, libraries included, in MB (10^6)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
