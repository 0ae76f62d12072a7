"""Processes that a launcher started for one run: the first says what all do, and writes what there is to write."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlkd.records import once, process_rank, processes_started


def is_first() -> bool:
    """Whether this process writes, and shows what is shown; so does one without a launcher."""
    return process_rank() == 0


def told_by_the_first(value: Any) -> Any:
    """What the first process has, in all of them, which call this together; anything that can be pickled."""
    if processes_started() == 1:
        return value
    from accelerate.utils import broadcast_object_list  # loads torch

    (told,) = broadcast_object_list([value])
    return told


def once_by_all(
    folder: str | Path, made_of: str, make: Callable[[], Mapping[str, Any] | None], *, whole: bool = False
) -> dict[str, Any]:
    """Make a folder by all processes together, unless it is finished; see :func:`rlkd.records.once`.

    Args:
        folder: What is made; all processes see it.
        made_of: Key of all that decides its content.
        make: Called in every process or in none; the first alone writes.
        whole: It is made in one go.

    Returns:
        What ``make`` gave in the first process, now or then.
    """
    if not is_first():
        if told_by_the_first(None):
            make()
        made: dict[str, Any] = told_by_the_first(None)
        return made
    begun = []

    def together() -> Mapping[str, Any] | None:
        begun.append(told_by_the_first(True))
        return make()

    made = once(folder, made_of, together, whole=whole)
    if not begun:  # it was finished, or another program finished it meanwhile
        told_by_the_first(False)
    told_by_the_first(made)
    return made
