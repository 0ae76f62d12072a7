"""Columns of a source: which they are; texts and domains, checked row by row."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import UnionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkd.errors import TaskError
from rlkd.settings import TaskSettings

logger = logging.getLogger(__name__)

KNOWN_PAIRS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("sentence_a", "sentence_b"),
)
TEXT_NAMES = frozenset(
    "text texts sentence review review_text content comment tweet post message utterance document body title headline "
    "question answer query passage context abstract description summary email sms".split()
)
"""What the column of the texts is called elsewhere; two of them leave open which is meant."""
LABEL_NAMES = frozenset(
    "label labels target targets category class sentiment intent emotion topic y rating stars coarse_label fine_label "
    "label_coarse label_fine gold_label".split()
)
"""Likewise of the labels."""
IMAGE_NAMES = frozenset("image images img picture photo pixels".split())
"""Likewise of the images."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read."""

    text: str = TaskSettings.text_column
    pair: str | None = TaskSettings.text_pair_column
    label: str = TaskSettings.label_column
    domain: str = TaskSettings.domain_column
    image: str | None = TaskSettings.image_column
    """None: looked for where there are no texts."""


@dataclass(frozen=True)
class Source:
    """The splits of a source as data sets of ``datasets``, and what is known about it."""

    name: str
    splits: Mapping[str, Any]
    label_names: Sequence[str] | None = None
    unlabelled: int = 0
    """Rows at the end of ``train`` that come from a file of unlabelled rows."""

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of every file."""
        sizes = {split: len(data) for split, data in self.splits.items()}
        return sizes | {"train": sizes["train"] - self.unlabelled, "unlabelled": self.unlabelled}


def folded(name: str) -> str:
    """A column's name without regard to case, blanks and hyphens."""
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def resolved_columns(names: Collection[str], columns: Columns, where: str) -> Columns:
    """Choose the columns that were left open: the usual ones, else the only one that is often called so elsewhere.

    Args:
        names: Of the columns that are there.
        columns: Those that are asked for; only those at their defaults are left open.
        where: Of which source.

    Raises:
        TaskError: Several columns could be meant.
    """
    texts_open = columns.text == Columns.text and columns.pair is None
    if columns.image is None and texts_open and columns.text not in names:
        pairs = [pair for pair in KNOWN_PAIRS if set(pair) <= set(names)]
        if pairs:
            columns = replace(columns, text=pairs[0][0], pair=pairs[0][1])
        else:
            columns = _text_or_image(names, columns, where)
    if columns.label == Columns.label and columns.label not in names:
        columns = replace(columns, label=_alike(names, "label", LABEL_NAMES, where))
    return columns


def _text_or_image(names: Collection[str], columns: Columns, where: str) -> Columns:
    """The only column with a known name of texts, or of images."""
    images = [name for name in names if folded(name) in IMAGE_NAMES]
    texts = [name for name in names if folded(name) in TEXT_NAMES]
    if len(images) > 1 or (images and texts):
        raise TaskError(
            f"{where!r} must have one column of instances, it has several that may be meant: "
            f"{', '.join([*texts, *images])}; name one with --text-column (text_column=) or --image-column "
            "(image_column=)"
        )
    if images:
        return replace(columns, image=images[0])
    return replace(columns, text=_alike(names, "text", TEXT_NAMES, where))


def _alike(names: Collection[str], field: str, known: Collection[str], where: str) -> str:
    """The only column with a known name; the usual one, which is not there, where there is none."""
    found = [name for name in names if folded(name) in known]
    if len(found) > 1:
        second = ", and with --text-pair-column the second of a pair" if field == "text" else ""
        raise TaskError(
            f"{where!r} must have the column {field!r}, it has several that may be meant: {', '.join(found)}; name "
            f"one with --{field}-column ({field}_column=){second}"
        )
    return found[0] if found else field


def found_columns(source: Source, columns: Columns) -> Columns:
    """The columns of a source, each in every split; one that has not its usual name is told of."""
    present = source.splits["train"].column_names
    found = resolved_columns(present, columns, source.name)
    for field, usual, name in (("text", columns.text, found.text), ("label", columns.label, found.label)):
        if name != usual and found.pair in (None, columns.pair):
            logger.warning(
                "%r has no column %r; its %ss are read from %r (name another with --%s-column or %s_column=)",
                source.name,
                usual,
                field,
                name,
                field,
                field,
            )
    wanted = {"text": found.text, "label": found.label}
    if found.image is not None:
        wanted = {"image": found.image, "label": found.label}
    if found.pair is not None:
        wanted["text-pair"] = found.pair
    if found.domain != Columns.domain or found.domain in present:
        wanted["domain"] = found.domain
    for split, data in source.splits.items():
        for field, name in wanted.items():
            if name not in data.column_names:
                raise TaskError(
                    f"split {split!r} of {source.name!r} must have the column {name!r}, it has: "
                    f"{', '.join(data.column_names)}; {_suggestion(data, field)}name the column to use with "
                    f"--{field}-column ({field.replace('-', '_')}_column=)"
                )
    return found


_LOOK_AT = 1000
_MOST_CLASSES = 200


def _suggestion(data: Any, field: str) -> str:
    """Ask whether the column was meant whose values look most like it: the longest texts, or the fewest classes."""
    rows = data.select(range(min(len(data), _LOOK_AT)))
    kinds = {name: str(getattr(feature, "dtype", "")) for name, feature in rows.features.items()}
    if field == "text":
        sizes = {name: -sum(map(len, filter(None, rows[name][:]))) for name, kind in kinds.items() if "string" in kind}
    elif field == "label":
        discrete = [name for name, kind in kinds.items() if "string" in kind or "int" in kind or kind == "bool"]
        counts = {name: len(set(rows[name][:])) for name in discrete}
        sizes = {name: size for name, size in counts.items() if 2 <= size <= min(_MOST_CLASSES, len(rows) / 2)}
    else:
        return ""
    return f"did you mean {min(sizes, key=lambda name: sizes[name])!r}? " if sizes else ""


def read_texts(source: Source, column: str) -> tuple[str, ...]:
    """The text of every row, splits in their order."""
    return tuple(text for text, _ in _checked_values(source, column, str, "texts"))


def read_domains(source: Source, column: str) -> tuple[list[str], NDArray[np.int64]]:
    """Sorted domain names and the domain index of every row, shape (N,); zeros without the column."""
    if column not in source.splits["train"].column_names:
        return [], np.zeros(sum(len(data) for data in source.splits.values()), dtype=np.int64)
    values = [
        class_names[value] if class_names and isinstance(value, int) else str(value)
        for value, class_names in _checked_values(source, column, str | int, "domain names")
    ]
    names, indices = np.unique(np.array(values, dtype=object), return_inverse=True)
    return [str(name) for name in names], indices.astype(np.int64)


def _checked_values(
    source: Source, column: str, kind: type | UnionType, what: str
) -> Iterator[tuple[Any, Sequence[str] | None]]:
    """Values of a column, splits in their order, each with the class names of its split's feature."""
    for split, data in source.splits.items():
        class_names = getattr(data.features[column], "names", None)
        for row, value in enumerate(data[column][:]):
            # pandas writes a missing domain as an empty cell; a missing text is legal, and told of elsewhere
            if not isinstance(value, kind) or (value == "" and kind is not str):
                raise TaskError(
                    f"column {column!r} of {source.name!r} must hold {what}, row {row} of {split} is "
                    f"{value!r:.40}; fix the row or name another column"
                )
            yield value, class_names
