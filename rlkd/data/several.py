"""One task or several, and what belongs to each."""

from collections.abc import Sequence
from typing import Any

from rlkd.errors import ConfigError


def several(given: Any) -> tuple[Any, ...]:
    """What a list or a tuple holds; anything else, text too, is one thing."""
    return tuple(given) if isinstance(given, (list, tuple)) else (given,)


def check_pairs(tasks: Sequence[str], caches: Sequence[str]) -> None:
    """Refuse tasks and caches that are not as many; they pair up in order.

    Args:
        tasks: Their names.
        caches: What tells them apart in words.

    Raises:
        ConfigError: Names all of them.
    """
    if len(tasks) != len(caches):
        raise ConfigError(
            f"every task needs a cache, in the same order, got {len(tasks)} of task ({', '.join(tasks)}) and "
            f"{len(caches)} of cache ({', '.join(caches)}); name as many"
        )


def one_each(what: str, given: Any, count: int) -> tuple[Any, ...]:
    """One thing a task: the same for all where one is given.

    Args:
        what: What an error calls it.
        given: One thing, or as many as there are tasks.
        count: Number of tasks.

    Raises:
        ConfigError: Another number was given.
    """
    found = several(given)
    if len(found) not in (1, count):
        raise ConfigError(
            f"expected one {what} for all tasks or one for each of {count}, got {len(found)} "
            f"({', '.join(map(str, found))}); name one or {count}"
        )
    return found * count if len(found) == 1 else found
