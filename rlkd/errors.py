"""Errors that users meet: what was expected, what was got, what to do.

Every class is a :class:`ValueError`, so callers may catch either. The command line prints the message on
one line and exits with code 2.
"""

import difflib
from collections.abc import Iterable


class RlkdError(ValueError):
    """Base of every error that a user's input can cause."""


class UnknownNameError(RlkdError):
    """A name that no registry holds."""


class TaskError(RlkdError):
    """Data that is missing, empty or does not fit together."""


class TeacherError(RlkdError):
    """A teacher that cannot be loaded, or whose labels or logits do not fit the task."""


class StudentError(RlkdError):
    """A student that cannot be built for the task."""


class CacheError(RlkdError):
    """A logit cache that is stale, partial, damaged or made for something else."""


class WeightingError(RlkdError):
    """A weighting whose inputs are missing or whose numbers are not weights."""


class PolicyError(RlkdError):
    """A saved policy that is damaged or made for another observation."""


class OutputDirectoryError(RlkdError):
    """An output directory that would be overwritten, or that cannot be resumed."""


class ConfigError(RlkdError):
    """A setting out of range, unknown, or that would be ignored."""


class NonFiniteLossError(RlkdError):
    """A loss that became NaN or infinite; names the step and the instances."""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> UnknownNameError:
    """Build the error for a name that is not registered, with the nearest choice.

    Args:
        kind: What was looked up, for example ``"weighting"``.
        name: The name that was given.
        choices: The names that exist.

    Returns:
        The error, ready to be raised.
    """
    names = sorted(choices)
    return UnknownNameError(f"unknown {kind} {name!r}; {nearest(name, names)}choose one of: {', '.join(names)}")


def nearest(name: str, choices: Iterable[str]) -> str:
    """Ask whether the nearest of the choices was meant, ``"did you mean 'x'? "``; nothing if none is near."""
    near = difflib.get_close_matches(name, sorted(choices), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


def one_line(error: BaseException, limit: int = 200) -> str:
    """Put another library's message on one line, cut to ``limit`` characters: ours are one line each."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:limit]
