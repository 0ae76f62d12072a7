"""Who learns what, where every teacher is a specialist for a share of the classes or domains, by default half."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from rlkd.data.task import Task
from rlkd.errors import ConfigError
from rlkd.models.teachers import KnowsBy
from rlkd.settings import TeacherTraining


def specialist_groups(
    num_groups: int,
    num_teachers: int,
    *,
    share: float = TeacherTraining.share,
    variant: int = TeacherTraining.variant,
    minimum: int = 1,
) -> list[list[int]]:
    """Deal groups (classes or domains) to teachers, to each about a share of them.

    Group g is known by teachers g, g + 1, ..., modulo K: by share * K of them on average, and by one at least. So
    with three teachers and a share of a half group g is known by teacher g % 3, every second one by the next too.
    Where there are too few groups for that (two teachers would be the same, or know too little), teachers get the
    subsets of about that share of the groups that keep all groups known equally often.

    Args:
        num_groups: Number of groups G.
        num_teachers: Number of teachers K.
        share: Of the groups that a teacher knows, in (0, 1].
        variant: 0 deals the groups in order, another number in an order drawn from it.
        minimum: Fewest groups that a teacher may know.

    Returns:
        K sorted lists of group indices; all different, none empty, together all. One teacher knows all.

    Raises:
        ConfigError: There are not so many different sets, or the share is out of range.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"expected a specialist's share of the groups in (0, 1], got {share}; 0.5 is half of them")
    if num_teachers == 1:
        return [list(range(num_groups))]
    dealt = _dealt_in_turn(num_groups, num_teachers, share)
    if not _is_valid(dealt, num_groups, minimum):
        size = max(minimum, math.ceil(share * num_groups))
        dealt = _dealt_evenly(num_groups, num_teachers, size, minimum)
    if not _is_valid(dealt, num_groups, minimum) or len(dealt) != num_teachers:
        raise ConfigError(
            f"expected enough groups for {num_teachers} different specialists that know {minimum} or more "
            f"each, got {num_groups}; train fewer teachers or do not specialize"
        )
    order = np.random.default_rng(variant).permutation(num_groups) if variant else np.arange(num_groups)
    return [sorted(int(order[group]) for group in groups) for groups in dealt]


def _dealt_in_turn(num_groups: int, num_teachers: int, share: float) -> list[tuple[int, ...]]:
    dealt: list[list[int]] = [[] for _ in range(num_teachers)]
    knowing = max(1.0, share * num_teachers)
    for group in range(num_groups):
        # widths whose mean is share * K: the whole part of what is due so far, less what was dealt
        width = int((group + 1) * knowing + 1e-9) - int(group * knowing + 1e-9)
        for step in range(width):
            dealt[(group + step) % num_teachers].append(group)
    return [tuple(groups) for groups in dealt]


def _dealt_evenly(num_groups: int, num_teachers: int, size: int, minimum: int) -> list[tuple[int, ...]]:
    # Only few groups come here, so all their subsets can be listed.
    sizes = range(max(minimum, 1), num_groups + 1)
    free = [subset for size in sizes for subset in combinations(range(num_groups), size)]
    counts = [0] * num_groups
    dealt: list[tuple[int, ...]] = []
    while free and len(dealt) < num_teachers:
        best = min(free, key=lambda s: (abs(len(s) - size), sum(counts[g] for g in s), s))
        free.remove(best)
        dealt.append(best)
        for group in best:
            counts[group] += 1
    return dealt


def _is_valid(dealt: Sequence[tuple[int, ...]], num_groups: int, minimum: int) -> bool:
    distinct = len(set(dealt)) == len(dealt)
    complete = {group for groups in dealt for group in groups} == set(range(num_groups))
    return distinct and complete and all(len(groups) >= max(minimum, 1) for groups in dealt)


def known_names(
    task: Task, specialize: KnowsBy | None, num_teachers: int, variant: int, share: float = TeacherTraining.share
) -> list[tuple[str, ...] | None]:
    """Deal a task's classes or domains to teachers by name.

    Args:
        task: The task.
        specialize: What is dealt. None: nothing, all teachers know all.
        num_teachers: Number of teachers K.
        variant: See :func:`specialist_groups`.
        share: Likewise.

    Returns:
        For each of the K teachers the names that it may know; None where it knows all.

    Raises:
        ConfigError: The task has no domains, or too few classes or domains for K specialists.
    """
    if specialize is None:
        return [None] * num_teachers
    if specialize not in ("class", "domain"):
        raise ConfigError(f"expected specialize 'class', 'domain' or None, got {specialize!r}; choose one")
    names = task.label_names if specialize == "class" else task.domain_names
    if not names:
        raise ConfigError(
            f"specialize 'domain' needs a task with domains, task {task.name!r} has none; use specialize 'class'"
        )
    # A classifier for a single class learns nothing.
    minimum = 2 if specialize == "class" else 1
    groups = specialist_groups(len(names), num_teachers, share=share, variant=variant, minimum=minimum)
    return [tuple(names[group] for group in known) for known in groups]


def known_rows(
    task: Task, ids: NDArray[np.int64], known: Sequence[str] | None, knows_by: KnowsBy | None
) -> NDArray[np.int64]:
    """Those of the instances whose class or domain a teacher may know.

    Args:
        task: The task.
        ids: Instance ids, shape (N,).
        known: Names of classes or domains. None: all.
        knows_by: Which of the two.

    Returns:
        The ids that are left, in order.
    """
    if known is None:
        return ids
    by_class = knows_by == "class"
    names = task.label_names if by_class else task.domain_names
    groups = task.table.labels if by_class else task.table.domains
    wanted = [names.index(name) for name in known]
    return ids[np.isin(groups[ids], wanted)]
