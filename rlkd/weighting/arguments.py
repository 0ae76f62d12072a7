"""What stands behind the colon of a name of a weighting, read or refused."""

from rlkd.errors import WeightingError


def refuse_argument(name: str, argument: str | None) -> None:
    """Raise if an argument was given to a weighting that takes none."""
    if argument is not None:
        raise WeightingError(f"weighting {name!r} takes no argument, got {argument!r}; write just {name!r}")


def require_argument(name: str, argument: str | None, example: str) -> str:
    """Return the argument, or raise with an example of one."""
    if not argument:
        raise WeightingError(f"weighting {name!r} needs an argument, got none; write for example {example!r}")
    return argument


def number(name: str, argument: str) -> float:
    """Read an argument that must be a number."""
    try:
        return float(argument)
    except ValueError as error:
        raise WeightingError(
            f"weighting {name!r} takes a number, got {argument!r}; write for example '{name}:0.5'"
        ) from error
