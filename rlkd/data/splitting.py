"""Cut rows into train / probe / validation / test once, seeded and stratified, and order them so."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlkd.data.checks import check_splits, check_table
from rlkd.data.task import SPLITS, UNLABELLED, Table, Task
from rlkd.errors import ConfigError, TaskError

logger = logging.getLogger(__name__)

MAX_PROBE_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class Fractions:
    """Shares of the labelled training rows that are carved off; validation and test only where not given."""

    probe: float = 0.1
    validation: float = 0.1
    test: float = 0.15

    def __post_init__(self) -> None:
        shares = (self.probe, self.validation, self.test)
        if not all(0 < share < 1 for share in shares) or sum(shares) >= 1:
            raise ConfigError(
                "split fractions must each lie between 0 and 1 and leave something for train, "
                f"got probe={self.probe}, validation={self.validation}, test={self.test}; lower them"
            )


DEFAULT_FRACTIONS = Fractions()


def check_seed(seed: int) -> None:
    """Refuse a seed that numpy or scikit-learn would refuse in words of their own."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed must lie between 0 and 2**32 - 1, got {seed}; choose another")


def split_task(
    name: str,
    table: Table,
    label_names: Sequence[str],
    *,
    given: Mapping[str, NDArray[np.int64]] | None = None,
    domain_names: Sequence[str] = (),
    fractions: Fractions = DEFAULT_FRACTIONS,
    seed: int = 0,
) -> Task:
    """Make a task from rows in any order.

    Args:
        name: Name of the task.
        table: N rows.
        label_names: The C class names.
        given: Rows of the splits that the source already has (``train``, perhaps ``validation`` and
            ``test``); None puts every row into ``train``. Missing splits are carved out of ``train``.
        domain_names: Names of the domains, if there are any.
        fractions: Sizes of what is carved, as shares of the labelled training rows.
        seed: Seeds the choice of rows.

    Returns:
        The task, its rows re-ordered train, probe, validation, test.
    """
    check_seed(seed)
    check_table(name, table, len(label_names), len(domain_names))
    parts = dict(given) if given is not None else {"train": np.arange(len(table))}
    kept = tuple(parts)
    parts = _carve_missing(name, table.labels, parts, fractions, seed)
    order = np.concatenate([parts[split] for split in SPLITS])
    bounds = np.cumsum([0, *(len(parts[split]) for split in SPLITS)])
    splits = {split: np.arange(bounds[i], bounds[i + 1]) for i, split in enumerate(SPLITS)}
    task = Task(
        name=name,
        label_names=tuple(label_names),
        table=table.take(order),
        splits=splits,
        domain_names=tuple(domain_names),
    )
    check_splits(task, kept)
    return task


def _carve_missing(
    name: str, labels: NDArray[np.int64], given: dict[str, NDArray[np.int64]], fractions: Fractions, seed: int
) -> dict[str, NDArray[np.int64]]:
    parts = {split: np.asarray(rows, dtype=np.int64) for split, rows in given.items()}
    train = parts["train"]
    labelled = train[labels[train] != UNLABELLED]
    sizes = {
        "test": round(fractions.test * len(labelled)),
        "validation": round(fractions.validation * len(labelled)),
        "probe": min(round(fractions.probe * len(labelled)), MAX_PROBE_ROWS),
    }
    wanted = {split: max(1, size) for split, size in sizes.items() if split not in parts}
    if sum(wanted.values()) >= len(labelled):
        raise TaskError(
            f"task {name!r}: train must have more than {sum(wanted.values())} labelled rows to carve "
            f"{', '.join(wanted)} from, got {len(labelled)}; add labelled rows"
        )
    left = labelled
    for split, size in wanted.items():
        left, parts[split] = _draw(left, labels[left], size, seed, f"{split} of task {name!r}")
    carved = np.setdiff1d(labelled, left)
    # Rows keep the order of their source inside every split, so that files and ids can be compared by eye.
    parts["train"] = np.setdiff1d(train, carved)
    return {split: np.sort(rows) for split, rows in parts.items()}


def _draw(
    rows: NDArray[np.int64], labels: NDArray[np.int64], size: int, seed: int, what: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split off ``size`` rows, stratified by label where the counts allow it: (kept, drawn)."""
    from sklearn.model_selection import train_test_split

    try:
        kept, drawn = train_test_split(rows, test_size=size, random_state=seed, stratify=labels)
    except ValueError as reason:
        logger.warning("%s is drawn without stratifying by label: %s", what, reason)
        kept, drawn = train_test_split(rows, test_size=size, random_state=seed)
    return kept, drawn
