"""Processes that a launcher started for one run: the first says what all do, and writes what there is to write."""

from typing import Any


def told_by_the_first(value: Any) -> Any:
    """What the first process has, in all of them, which call this together; anything that can be pickled."""
    from accelerate.utils import broadcast_object_list  # loads torch

    (told,) = broadcast_object_list([value])
    return told
