"""Load a task from an embedded name, a local file, a folder, the Hugging Face hub, or data in memory."""

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rlkd.data.columns import Columns, Source, found_columns, read_domains, read_texts
from rlkd.data.embedded import EMBEDDED
from rlkd.data.images import read_images
from rlkd.data.labels import read_labels
from rlkd.data.origin import Origin
from rlkd.data.sources import find_source
from rlkd.data.splitting import Fractions, split_task
from rlkd.data.tables import Data, from_tables
from rlkd.data.task import Table, Task
from rlkd.errors import ConfigError, TaskError
from rlkd.settings import TaskSettings


def load_task(
    source: str | os.PathLike[str] | Data,
    *,
    text_column: str = Columns.text,
    text_pair_column: str | None = None,
    label_column: str = Columns.label,
    domain_column: str = Columns.domain,
    image_column: str | None = Columns.image,
    label_names: Sequence[str] | None = None,
    name: str | None = None,
    seed: int = TaskSettings.split_seed,
    probe_fraction: float = 0.1,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.15,
    unlabelled: bool = False,
) -> Task:
    """Load a task and split it once.

    Labels are strings (classes are their sorted names, numbers by value), integers from 0, or a ``ClassLabel``
    feature. None, NaN and -1 mean unlabelled, which only training rows may be. Names of integer labels come from
    ``label_names``, the feature, ``label_names.json`` in the folder, ``datasets.json`` beside the folder, or
    are the numbers.

    The fingerprint of a task, by which caches know it, is that of its rows in their order, their labels, domains and
    splits and the names of the classes. So the same rows have the same one as a file, a data set or a data frame; it
    is another one where the labels are numbers on one side and a ``ClassLabel`` feature names them on the other, unless
    ``label_names`` does.

    Args:
        source: An embedded name (``docstrings``, ``digits``, ``planted``); a .parquet, .csv, .tsv, .jsonl or .json
            file; a folder with ``train.*`` and perhaps ``validation.*`` (or ``dev.*``, ``valid.*``, ``val.*``) and
            ``test.*``; an id on the Hugging Face hub, ``id`` or ``id:config``; or data that are loaded already: a
            ``datasets.Dataset`` or pandas ``DataFrame``, all of it train, or a ``datasets.DatasetDict`` or a dict of
            either by the same names of splits.
        text_column: Column of the texts. If it is left at ``text`` and absent, the usual pairs of columns
            (``text_a`` and ``text_b``, ``premise`` and ``hypothesis``, ...) are looked for, then the only one that has
            another usual name (``sentence``, ``review``, ...), which is told.
        text_pair_column: Column of the second texts.
        label_column: Column of the labels. Likewise, if it is left at ``label`` and absent (``target``, ...).
        domain_column: Column of the domains; optional while it is left at ``domain``.
        image_column: Column of the images, for a task of images: pictures (a ``datasets.Image`` feature), or whole
            numbers from 0 to 255 by height, width and perhaps channels (a flat row is one grey square); all of one
            size. If it is left open, ``image`` and other usual names are looked for where there are no texts.
        label_names: Names of the C classes, in the order of the labels.
        name: Name of the task; default: from the source, of loaded data ``data``.
        seed: Seeds the splits, and an embedded task that is drawn at random.
        probe_fraction: Share of the labelled training rows that becomes the probe, at most 1,000 rows.
        validation_fraction: The same for validation, if the source has none.
        test_fraction: The same for test, if the source has none.
        unlabelled: Append the rows of ``unlabelled.*`` (or ``unlabeled.*``) in the folder, or of the split that is
            called so, to train.

    Returns:
        The task, rows ordered train, probe, validation, test.
    """
    fractions = Fractions(probe=probe_fraction, validation=validation_fraction, test=test_fraction)
    columns = Columns(text_column, text_pair_column, label_column, domain_column, image_column)
    _check_columns(columns)
    source = os.fspath(source) if isinstance(source, os.PathLike) else source
    if isinstance(source, str) and source in EMBEDDED:
        _refuse_for_embedded(source, columns, label_names, unlabelled)
        task = EMBEDDED[source](seed, fractions=fractions)
        return task if name is None else replace(task, name=name)
    find = find_source if isinstance(source, str) else from_tables
    found = find(source, columns, unlabelled=unlabelled)
    told = found.label_names if label_names is None else label_names
    return _task(replace(found, name=name or found.name, label_names=told), columns, fractions, seed)


def _check_columns(columns: Columns) -> None:
    if columns.image is not None and (columns.text, columns.pair) != (Columns.text, None):
        raise ConfigError(
            f"a task holds texts or images, got the columns {columns.pair or columns.text!r} and {columns.image!r}; "
            "leave one out"
        )


def _refuse_for_embedded(source: str, columns: Columns, label_names: Sequence[str] | None, unlabelled: bool) -> None:
    """Refuse what an embedded task would ignore."""
    if unlabelled:
        raise ConfigError(f"the embedded task {source!r} has no unlabelled rows; leave them out")
    if columns != Columns() or label_names is not None:
        raise ConfigError(f"the embedded task {source!r} has fixed columns and label names, got others; leave them out")


def _task(source: Source, columns: Columns, fractions: Fractions, seed: int) -> Task:
    columns = found_columns(source, columns)
    for split, rows in source.splits.items():
        if len(rows) == 0:
            raise TaskError(f"split {split!r} of {source.name!r} must have rows, got no rows; fill or remove it")
    label_names, labels = read_labels(source, columns.label)
    domain_names, domains = read_domains(source, columns.domain)
    images = None if columns.image is None else read_images(source, columns.image)
    table = Table(
        labels=labels,
        domains=domains,
        texts=read_texts(source, columns.text) if images is None else None,
        text_pairs=None if columns.pair is None else read_texts(source, columns.pair),
        images=images,
        origin=Origin.of(source.sizes),
    )
    return split_task(
        source.name,
        table,
        label_names,
        given=_rows_of_splits(source),
        domain_names=domain_names,
        fractions=fractions,
        seed=seed,
    )


def _rows_of_splits(source: Source) -> dict[str, NDArray[np.int64]]:
    rows, start = {}, 0
    for split, data in source.splits.items():
        rows[split] = np.arange(start, start + len(data), dtype=np.int64)
        start += len(data)
    return rows
