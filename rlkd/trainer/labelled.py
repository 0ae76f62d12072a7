"""What teachers say of labelled instances, or tokens, of a trainer's data: a task and a cache to fit a weighting on."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rlkd.data.task import Table, Task
from rlkd.errors import TaskError
from rlkd.kinds.base import Positions
from rlkd.logit_cache import LogitCache
from rlkd.records import check_one_process
from rlkd.trainer.collating import CARRIED
from rlkd.trainer.randomness import generators_as_they_were
from rlkd.trainer.rows import some_rows
from rlkd.trainer.training import DistillationMixin

ROWS = 4096
"""Labelled instances, or tokens, that are asked about."""
SHARES = {"probe": 0.15, "validation": 0.2}
"""Of the rows of the data, of which train has the rest."""
NEIGHBOURS, WIDTH = 2, 64
"""Tokens to each side of a place, and numbers of each at most, that stand for it."""


def labelled_answers(
    trainer: DistillationMixin, data: Any, *, rows: int = ROWS, seed: int = 0
) -> tuple[Task, LogitCache]:
    """Ask a trainer's teachers about labelled data, in the places that the trainer would teach.

    A weighting that is fitted on labels (``router``), or trained (:func:`rlkd.train_policy`), takes a task; what comes
    out is passed to a trainer as its ``weighting``::

        task, cache = labelled_answers(trainer, labelled)
        router = rlkd.build_weighting("router", task, cache)

    An instance of the task is an instance of the data, or one of its labelled tokens, at most the same number of each
    row. Splits are of rows of the data, so that tokens of one row stay together; there is no test split. In place of
    its inputs it has a vector, for the small students of a policy's training: of tokens the student's own input
    embeddings of it and its neighbours (of a causal model those before), of texts their mean, of other inputs the
    numbers themselves.

    Args:
        trainer: A :class:`~rlkd.DistillationTrainer` or a trainer with the mixin, whatever its weighting.
        data: Like its training data, with labels; those of its training data that have one, for example.
        rows: About so many instances N or tokens at most; their logits take N * K * C * 4 bytes.
        seed: Of which tokens of a row are taken, and of the splits.

    Returns:
        The task and its teachers' logits.

    Raises:
        TaskError: Labels are no classes, or there are too few rows with a label.
    """
    check_one_process("labelled answers are asked for")
    chosen, mine = some_rows(data, rows), cast(Any, trainer)
    if len(chosen) == 0:
        raise TaskError("expected labelled rows to fit a weighting on, got none; pass some")
    with generators_as_they_were():
        parts = [torch.cat(part).numpy() for part in zip(*_asked(mine, chosen, rows, seed), strict=True)]
    splits = dealt_rows(parts[0], seed)
    order, ends = np.concatenate(list(splits.values())), np.cumsum([0, *map(len, splits.values())])
    labels, said, present, vectors = (part[order] for part in parts[1:])
    task = Task(
        name="labelled",
        label_names=class_names(mine.model, said.shape[-1]),
        table=Table(labels=labels, domains=np.zeros_like(order), vectors=vectors),
        splits={split: np.arange(start, end) for split, start, end in zip(splits, ends, ends[1:], strict=False)},
    )
    mask = None if present.all() else present
    return task, LogitCache([said[:, k] for k in range(said.shape[1])], mine.teachers.names, mask=mask).measured(task)


def _asked(trainer: Any, data: Any, rows: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Of every batch its labelled places: row of the data, label, logits (N, K, C), who answered (N, K), and vector."""
    most, random, start = max(1, rows // len(data)), torch.Generator().manual_seed(seed), 0
    for batch in trainer.get_test_dataloader(data):
        fields = dict(trainer._prepare_inputs(batch))
        carried = fields.pop(CARRIED, {})
        positions = trainer._positions(fields)
        size = len(fields.pop("labels", ()))
        labels = _classes(positions.labels, size)
        known = trainer.teachers.state(fields, carried, positions.pick)
        vectors = positions.pick(places_as_vectors(trainer.model, fields, positions))
        source = start + row_of_places(positions, size)
        kept = ((labels >= 0).cpu() & at_most(source, most, random)).nonzero().squeeze(1)
        found = (labels, known.teacher_logits, known.present, vectors)
        yield source[kept], *(values[kept.to(values.device)].cpu() for values in found)
        start += size


def _classes(labels: Tensor | None, size: int) -> Tensor:
    if labels is None or labels.is_floating_point() or labels.ndim != 1:
        raise TaskError(
            "a weighting is fitted on labels that are classes, one of an instance or of a token, got "
            f"{'none' if labels is None else f'{labels.dtype} {tuple(labels.shape)}'} for {size} rows; give data with "
            "such labels"
        )
    return labels


def row_of_places(positions: Positions, size: int) -> Tensor:
    """Which of the rows of a batch each place is of, shape (N,)."""
    return torch.arange(size) if positions.taken is None else positions.taken.nonzero()[:, 0].cpu()


def at_most(groups: Tensor, most: int, random: torch.Generator) -> Tensor:
    """So many of each group, drawn: bool, shape (N,), of groups (N,) that stand together."""
    order = torch.rand(len(groups), generator=random).argsort()
    order = order[groups[order].argsort(stable=True)]
    _, counts = groups.unique_consecutive(return_counts=True)
    rank = torch.cat([torch.arange(int(count)) for count in counts]) if len(counts) else order
    return torch.zeros(len(groups), dtype=torch.bool).index_fill_(0, order[rank < most], True)


@torch.no_grad()
def places_as_vectors(student: nn.Module, fields: Mapping[str, Any], positions: Positions) -> Tensor:
    """What stands where in a batch, for small students: (B, L, D) of tokens, else (B, D)."""
    ids = fields.get("input_ids")
    if ids is None:
        values = [value for value in fields.values() if isinstance(value, Tensor) and value.is_floating_point()]
        return values[0].flatten(1).float()
    embeddings = cast(Any, student).get_input_embeddings()
    found: Tensor = embeddings(ids).float() / embeddings.weight.float().std().clamp_min(1e-6)
    if found.shape[-1] > WIDTH:  # distances are kept: as many numbers as small students can do with
        drawn = torch.randn(found.shape[-1], WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5
        found = found @ drawn.to(found.device)
    mask = fields.get("attention_mask")
    shown = torch.ones_like(ids) if mask is None else mask
    found = found * shown.unsqueeze(-1)
    if positions.taken is None:
        return found.sum(1) / shown.sum(1, keepdim=True).clamp_min(1)
    before, after = (2 * NEIGHBOURS, 0) if positions.causal else (NEIGHBOURS, NEIGHBOURS)
    around: Tensor = F.pad(found, (0, 0, before, after)).unfold(1, before + after + 1, 1)
    return around.flatten(2)


def dealt_rows(source: NDArray[np.int64], seed: int) -> dict[str, NDArray[np.int64]]:
    """Which places each split has, of the rows of the data (N,) that they are of.

    Raises:
        TaskError: There are too few rows.
    """
    rows = np.unique(source)
    counts = {split: max(1, round(share * len(rows))) for split, share in SHARES.items()}
    if sum(counts.values()) >= len(rows):
        raise TaskError(
            f"expected more than {sum(counts.values())} rows with a label to fit a weighting on, got {len(rows)}; "
            "label some more"
        )
    bounds = np.cumsum([len(rows) - sum(counts.values()), *counts.values()])[:-1]
    parts = np.split(np.random.default_rng(seed).permutation(rows), bounds)
    return {split: np.flatnonzero(np.isin(source, part)) for split, part in zip(("train", *SHARES), parts, strict=True)}


def class_names(student: Any, classes: int) -> tuple[str, ...]:
    """Of a student; those of a causal model, which are tokens, are their numbers."""
    names = getattr(student.config, "id2label", None) or {}
    return tuple(str(names[place] if len(names) == classes else place) for place in range(classes))
