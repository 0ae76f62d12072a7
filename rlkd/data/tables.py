"""Splits of a source that lie in memory: data sets of ``datasets``, data frames, and what their names mean."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rlkd.data.columns import Columns, Source, resolved_columns
from rlkd.data.labels import clean_label
from rlkd.errors import TaskError, one_line

logger = logging.getLogger(__name__)

SPLIT_NAMES: Mapping[str, Collection[str]] = {
    "train": ("train",),
    "validation": ("validation", "dev", "valid", "val"),
    "test": ("test",),
}
"""Split to what sources call it."""
UNLABELLED_NAMES = ("unlabelled", "unlabeled", "unsupervised")
NAME = "data"
"""Of a task whose data have none."""

Data = Any
"""A ``Dataset``, a ``DatasetDict``, a pandas ``DataFrame``, or a mapping from split to one of them."""


def from_tables(data: Data, columns: Columns, *, unlabelled: bool = False) -> Source:
    """The source that data in memory are.

    Args:
        data: One table, all of which is ``train``, or a table for each split.
        columns: What is a label.
        unlabelled: Append the rows of the split ``unlabelled`` to train.

    Returns:
        Its splits, always one named ``train``.

    Raises:
        TaskError: It is something else, a table cannot be read, or there is no training split.
    """
    given = data if isinstance(data, Mapping) else {"train": data}
    tables = {str(name): _table(value, str(name)) for name, value in given.items()}
    splits = chosen_splits(tables, NAME, columns, more=UNLABELLED_NAMES if unlabelled else ())
    labelled = len(splits["train"])
    if unlabelled:
        found = [name for name in UNLABELLED_NAMES if name in tables]
        if len(found) != 1:
            raise TaskError(
                f"the data must have one split of unlabelled rows, 'unlabelled', got {_told(tables)}; add it"
            )
        splits["train"] = with_unlabelled(splits["train"], tables[found[0]], found[0], columns)
    return Source(NAME, splits, unlabelled=len(splits["train"]) - labelled)


def _table(value: Any, split: str) -> Any:
    """One split as a ``Dataset`` of plain values: neither tensors of a format nor categories of pandas."""
    import datasets
    import pandas as pd

    if isinstance(value, datasets.Dataset):
        return value.with_format(None)
    if isinstance(value, pd.DataFrame):
        categories = value.select_dtypes("category").columns
        try:
            return datasets.Dataset.from_pandas(value.astype(dict.fromkeys(categories, object)), preserve_index=False)
        except (ValueError, TypeError) as error:  # those of pyarrow are these too
            raise TaskError(
                f"the data frame of {split!r} must have columns of one type each, reading gave {one_line(error)}; "
                "convert the column"
            ) from error
    if isinstance(value, datasets.IterableDataset):
        raise TaskError(
            f"a task must have rows that can be counted, {split!r} is a stream; take some: "
            "datasets.Dataset.from_list(list(stream.take(n)))"
        )
    raise TaskError(
        "expected a name, a path, a Dataset, a DatasetDict, a DataFrame, or a dict of them by split, got "
        f"{type(value).__name__} for {split!r}; make one, for example with datasets.Dataset.from_dict or .from_list"
    )


def chosen_splits(tables: Mapping[str, Any], name: str, columns: Columns, more: Collection[str] = ()) -> dict[str, Any]:
    """Train, validation and test among tables; what has another name is left out, which is told.

    Args:
        tables: Data sets by the name that the source gives them.
        name: Of the source.
        columns: Which column holds the labels: a test split that hides them is left out.
        more: Names that are used otherwise.

    Raises:
        TaskError: There is no training split, or two that could be one.
    """
    splits: dict[str, Any] = {}
    for split, names in SPLIT_NAMES.items():
        present = [one for one in names if one in tables]
        if len(present) > 1:
            raise TaskError(f"{name!r} must have one split for {split!r}, got {', '.join(present)}; leave one out")
        if present:
            splits[split] = tables[present[0]]
    if "train" not in splits:
        raise TaskError(f"{name!r} must have a train split, it has: {_told(tables)}; choose another, or name one so")
    left = [one for one in tables if one not in more and not any(one in names for names in SPLIT_NAMES.values())]
    if left:
        logger.warning(
            "%r also has the splits %s, which are left out; known are train, validation and test", name, ", ".join(left)
        )
    label = resolved_columns(splits["train"].column_names, columns, name).label
    if "test" in splits and _hides_labels(splits["test"], label):
        logger.warning("the test split of %r has no labels; one is carved from train instead", name)
        del splits["test"]
    return splits


def _told(tables: Mapping[str, Any]) -> str:
    return ", ".join(tables) or "none"


def _hides_labels(data: Any, label: str) -> bool:
    """Whether a split has rows and none is labelled, as in competitions that keep their test labels."""
    return len(data) > 0 and label in data.column_names and all(clean_label(v) is None for v in data[label][:])


def with_unlabelled(train: Any, rows: Any, where: str, columns: Columns) -> Any:
    """Training rows, and behind them others whose labels are hidden.

    Args:
        train: Data set.
        rows: Data set with the same columns; it may lack the labels.
        where: What the rows are called.
        columns: Which column holds the labels.
    """
    import datasets

    label = resolved_columns(train.column_names, columns, where).label
    missing = [name for name in train.column_names if name not in (*rows.column_names, label)]
    if missing or label not in train.column_names:
        raise TaskError(f"{where!r} must have the columns of train, it lacks {', '.join(missing)}; add them")
    features = train.features
    hidden = {label: [None] * len(rows)}
    rows = rows.select_columns([name for name in train.column_names if name != label])
    labels = datasets.Dataset.from_dict(hidden, features=datasets.Features({label: features[label]}))
    with quiet_datasets():
        rows = datasets.concatenate_datasets([rows, labels], axis=1).select_columns(train.column_names)
        return datasets.concatenate_datasets([train, rows.cast(features)])


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Silence progress bars and logs of ``datasets`` and the hub's client: what goes wrong is raised, in our words."""
    import datasets
    import huggingface_hub.utils.logging as hub_logging

    bars = not datasets.utils.are_progress_bars_disabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    hub_verbosity = hub_logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    hub_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        hub_logging.set_verbosity(hub_verbosity)
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
