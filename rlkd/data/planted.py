"""Synthetic vectors and teachers whose right answers are planted: what a weighting can find is known."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rlkd.data.splitting import DEFAULT_FRACTIONS, Fractions, check_seed, split_task
from rlkd.data.task import UNLABELLED, Table, Task
from rlkd.errors import ConfigError, TaskError

Slices = Literal["class", "region", "noise"]
Teachers = Literal["specialists", "identical", "good"]
Extra = Literal["none", "harmful", "duplicate"]

_FALSE_LEAN = 1.0
"""What a teacher that does not know gives to a wrong class."""


def planted(
    seed: int = 0,
    num_rows: int = 3000,
    num_classes: int = 6,
    num_domains: int = 3,
    dim: int = 16,
    *,
    fractions: Fractions = DEFAULT_FRACTIONS,
) -> Task:
    """Build synthetic vectors with a known structure, for tests of what a weighting can find.

    The generating model: class prototypes m_c ~ N(0, I); rows take the classes in turn; a row of class c is
    m_c + e with e ~ N(0, I); the domain of class c is c mod ``num_domains``. See :func:`planted_logits` for
    teachers.

    Args:
        seed: Seeds prototypes, noise and splits.
        num_rows: Rows N.
        num_classes: Classes C.
        num_domains: Domains, at most C.
        dim: Length of the vectors D.
        fractions: Sizes of probe, validation and test.

    Returns:
        A vector task with domains.
    """
    if num_classes < 2 or not 1 <= num_domains <= num_classes or dim < 1 or num_rows < 10 * num_classes:
        raise ConfigError(
            "a planted task needs num_classes >= 2, 1 <= num_domains <= num_classes, dim >= 1 and 10 rows a "
            f"class, got num_classes={num_classes}, num_domains={num_domains}, dim={dim}, "
            f"num_rows={num_rows}; change them"
        )
    check_seed(seed)
    rng = np.random.default_rng(seed)
    prototypes = rng.standard_normal((num_classes, dim))
    labels = np.arange(num_rows, dtype=np.int64) % num_classes
    vectors = prototypes[labels] + rng.standard_normal((num_rows, dim))
    table = Table(labels=labels, domains=labels % num_domains, vectors=vectors.astype(np.float32))
    return split_task(
        "planted",
        table,
        [f"class {c}" for c in range(num_classes)],
        domain_names=[f"domain {d}" for d in range(num_domains)],
        fractions=fractions,
        seed=seed,
    )


def planted_logits(
    task: Task, num_teachers: int = 3, seed: int = 0, mode: str = "specialists", *, sharpness: float = 4.0
) -> NDArray[np.float32]:
    """Draw teachers' logits for a task with labels and domains.

    The generating model, for teacher k on a row with label y: every logit starts as N(0, 1). On domain
    k mod ``num_domains`` the logit of y gains ``sharpness``, so the teacher is sharp and nearly always right; on the
    other domains the logit of one wrong class, uniform among the C - 1, gains 1, so it is diffuse and mostly
    wrong. Its largest probability tells the two apart, without labels: at sharpness 4 with some overlap (a policy
    can put about 0.93 of the weight on the teacher that knows), at 8 with next to none. Mode ``identical`` repeats
    teacher 0.

    Rows are drawn in order, so the logits of a training view are the head of those of its task.

    Args:
        task: The task; all its rows labelled.
        num_teachers: Teachers K.
        seed: Seeds the teachers.
        mode: ``specialists`` or ``identical``.
        sharpness: What the logit of y gains where the teacher knows it; >= 0.

    Returns:
        Logits, shape (N, K, C).
    """
    if mode not in ("specialists", "identical"):
        raise ConfigError(f"mode must be 'specialists' or 'identical', got {mode!r}; choose one of these")
    check_seed(seed)
    if num_teachers < 1:
        raise ConfigError(f"num_teachers must be 1 or more, got {num_teachers}; raise it")
    _check_sharpness(sharpness)
    drawn = 1 if mode == "identical" else num_teachers
    known = np.arange(drawn) % max(1, len(task.domain_names)) == task.table.domains[:, None]
    logits = _draw_logits(task, known, np.full(drawn, _FALSE_LEAN), sharpness, seed)
    return np.repeat(logits, num_teachers, axis=1) if mode == "identical" else logits


def _check_sharpness(sharpness: float) -> None:
    if not 0 <= sharpness < float("inf"):
        raise ConfigError(f"sharpness must be finite and >= 0, got {sharpness}; 4 is usual")


def _draw_logits(
    task: Task, known: NDArray[np.bool_], false_lean: NDArray[np.float64], sharpness: float, seed: int
) -> NDArray[np.float32]:
    """Logits (N, K, C) that lean to the label where known (N, K), else by ``false_lean`` (K,) to a wrong class."""
    labels = task.table.labels
    if (labels == UNLABELLED).any():
        raise TaskError(f"planted teachers need a label in every row, task {task.name!r} has rows without; drop them")
    # Two streams, so that the wrong classes of a prefix of the rows do not depend on how many rows follow.
    noise, lean = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    logits = noise.standard_normal((*known.shape, task.num_classes)).astype(np.float32)
    shift = lean.integers(1, task.num_classes, size=known.shape)
    favoured = np.where(known, labels[:, None], (labels[:, None] + shift) % task.num_classes)
    gain = np.where(known, sharpness, false_lean).astype(np.float32)
    rows, teachers = np.indices(known.shape)
    logits[rows, teachers, favoured] += gain
    return logits


@dataclass(frozen=True, kw_only=True)
class PlantedSettings:
    """A planted case: rows in slices, and teachers that are right on some of them."""

    slices: Slices = "class"
    """What cuts the rows into slices: ``class`` (class mod S), ``region`` (a sector of the last two features, which say
    nothing about the class) or ``noise`` (at random: each teacher learned the labels of its slice, and noise
    elsewhere)."""
    teachers: Teachers = "specialists"
    """``specialists``: teacher k knows slice k; ``good``: each knows all, with noise of its own; ``identical``: the
    same teacher, which knows slice 0, over and over."""
    num_teachers: int = 3
    """Teachers before the extra one, and slices S. Range: >= 2."""
    extra: Extra = "none"
    """One more teacher: ``harmful`` (always leans to a wrong class, half as strongly as a teacher that knows) or
    ``duplicate`` (repeats teacher 0)."""
    sharpness: float = 8.0
    """What the logit of the label gains where a teacher knows it. Range: >= 0."""
    num_rows: int = 3000
    num_classes: int = 8
    dim: int = 16
    """Features that tell the class."""
    spread: float = 1.0
    """Standard deviation of those features around their class. Range: > 0."""
    seed: int = 0
    """Of rows and teachers."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        for name, allowed in (("slices", Slices), ("teachers", Teachers), ("extra", Extra)):
            if getattr(self, name) not in get_args(allowed):
                raise ConfigError(
                    f"planted {name} must be one of {', '.join(get_args(allowed))}, got {getattr(self, name)!r}"
                )
        _check_sharpness(self.sharpness)
        check_seed(self.seed)
        if not 2 <= self.num_teachers <= self.num_classes or self.dim < 1 or not 0 < self.spread < float("inf"):
            raise ConfigError(
                "a planted case needs 2 <= num_teachers <= num_classes, dim >= 1 and spread > 0, got "
                f"{self.num_teachers}, {self.num_classes}, {self.dim} and {self.spread}; change them"
            )
        if self.num_rows < 10 * self.num_classes:
            raise ConfigError(
                f"a planted case needs 10 rows a class, got {self.num_rows} for {self.num_classes}; raise num_rows"
            )


@dataclass(frozen=True)
class PlantedCase:
    """A task with its teachers, and which of them are best where."""

    task: Task
    """Vectors; a row's domain is its slice."""
    logits: NDArray[np.float32]
    """Shape (N, K, C)."""
    best: NDArray[np.bool_]
    """Shape (K, S): the best teachers of each slice; all of them where teachers do not differ."""


def planted_case(
    settings: PlantedSettings, *, name: str = "planted", fractions: Fractions = DEFAULT_FRACTIONS, seed: int = 0
) -> PlantedCase:
    """Draw the rows and the teachers of a planted case.

    Args:
        settings: What is planted.
        name: Of the task.
        fractions: Sizes of probe, validation and test.
        seed: Of the splits.
    """
    task = _planted_rows(settings, name, fractions, seed)
    slices, count = task.table.domains, settings.num_teachers
    drawn = 1 if settings.teachers == "identical" else count
    knows = np.ones((drawn, count), bool) if settings.teachers == "good" else np.eye(count, dtype=bool)[:drawn]
    lean = np.full(drawn, _FALSE_LEAN)
    if settings.extra == "harmful":
        knows = np.vstack([knows, np.zeros((1, count), bool)])
        lean = np.append(lean, settings.sharpness / 2)
    logits = _draw_logits(task, knows.T[slices], lean, settings.sharpness, settings.seed)
    which = list(range(len(knows)))
    if settings.teachers == "identical":
        which = [0] * count + which[1:]
    if settings.extra == "duplicate":
        which.append(0)
    best = knows[which]
    best = best | ~best.any(0)  # where nobody knows, nobody is better
    return PlantedCase(task, logits[:, which], best)


def _planted_rows(settings: PlantedSettings, name: str, fractions: Fractions, seed: int) -> Task:
    rng = np.random.default_rng(settings.seed)
    labels = np.arange(settings.num_rows, dtype=np.int64) % settings.num_classes
    prototypes = rng.standard_normal((settings.num_classes, settings.dim))
    told = prototypes[labels] + settings.spread * rng.standard_normal((settings.num_rows, settings.dim))
    place = rng.standard_normal((settings.num_rows, 2))
    count = settings.num_teachers
    if settings.slices == "class":
        slices = labels % count
    elif settings.slices == "region":
        turn = (np.arctan2(place[:, 1], place[:, 0]) / (2 * np.pi)) % 1.0
        slices = np.minimum((turn * count).astype(np.int64), count - 1)
    else:
        slices = rng.integers(count, size=settings.num_rows)
    table = Table(labels=labels, domains=slices, vectors=np.hstack([told, place]).astype(np.float32))
    return split_task(
        name,
        table,
        [f"class {c}" for c in range(settings.num_classes)],
        domain_names=[f"slice {s}" for s in range(count)],
        fractions=fractions,
        seed=seed,
    )
