"""What a setting is: a field of a dataclass with its default, its help, and its range or its choices, all in one place.

Flags of commands, keys of YAML files and keyword arguments are read from the fields; ranges are checked here alone.
"""

from collections.abc import Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from math import inf
from numbers import Real
from typing import Any, ClassVar

from rlkd.errors import ConfigError, nearest


@dataclass(frozen=True)
class Range:
    """Numbers that a setting may have; neither NaN nor an infinity is ever among them."""

    low: float = -inf
    high: float = inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: object) -> bool:
        """Whether a setting may have the value."""
        return isinstance(value, Real) and self._above(value) and self._below(value)

    def _above(self, value: Any) -> bool:
        return bool(value > self.low if self.open_low or self.low == -inf else value >= self.low)

    def _below(self, value: Any) -> bool:
        return bool(value < self.high if self.open_high or self.high == inf else value <= self.high)

    def __str__(self) -> str:
        """As a message says it: ``be > 0``, ``be >= 1``, ``lie in [0, 1)``."""
        if self.high == inf:
            return f"be {'>' if self.open_low else '>='} {self.low:g}"
        return f"lie in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"

    def remedy(self, value: object) -> str:
        """What to do about a value that is not in the range."""
        if not isinstance(value, Real) or value != value:
            return "pass a number"
        return "lower it" if self._above(value) else "raise it"


def at_least(low: float) -> Range:
    """The range ``>= low``."""
    return Range(low)


def above(low: float) -> Range:
    """The range ``> low``."""
    return Range(low, open_low=True)


SHARE = Range(0, 1)
"""The range of a share: [0, 1]."""


def knob(
    default: Any,
    help: str,
    within: Range | None = None,
    *,
    choices: Sequence[str] | None = None,
    flag: str | None = None,
    short: str | None = None,
    hidden: bool = False,
    argument: bool = False,
) -> Any:
    """A field of a dataclass of settings.

    Args:
        default: Its default; ``MISSING``, as :func:`required` says it, for none.
        help: What it is, in words that can be understood alone.
        within: Numbers that it may be; ``None`` is allowed where that is the default.
        choices: Words that it may be, likewise.
        flag: Name of its flag, with underscores, if that is not the field's.
        short: A further flag of one letter.
        hidden: It has no flag.
        argument: It stands on the command line without a flag.
    """
    metadata = {"help": help, "range": within, "choices": choices, "flag": flag, "short": short}
    return field(default=default, metadata=metadata | {"hidden": hidden, "argument": argument})


def required(help: str, within: Range | None = None, **more: Any) -> Any:
    """A field without a default; arguments are those of :func:`knob`."""
    return knob(MISSING, help, within, **more)


def like(settings: type, name: str, **changed: Any) -> Any:
    """The same field as that of other settings, where its default or its help differs in what ``changed`` says."""
    there = field_of(settings, name)
    default = changed.pop("default", there.default)
    return field(default=default, metadata={**there.metadata, **changed})


def field_of(settings: type, name: str) -> Field[Any]:
    """A field of a dataclass of settings."""
    found: Field[Any] = settings.__dataclass_fields__[name]  # type: ignore[attr-defined]  # a dataclass
    return found


def names_of(settings: type) -> frozenset[str]:
    """Names of all fields of a dataclass of settings."""
    return frozenset(one.name for one in fields(settings))


def check(settings: type, **values: Any) -> None:
    """Refuse values that are out of the range, or not among the choices, of the fields of those names.

    Args:
        settings: The dataclass whose fields say what is allowed.
        **values: Value by name; names that are no field of ``settings`` are not looked at.

    Raises:
        ConfigError: Says what was expected, what was got, and what to do.
    """
    for one in fields(settings):
        if one.name not in values or (values[one.name] is None and one.default is None):
            continue
        value, allowed, choices = values[one.name], one.metadata.get("range"), one.metadata.get("choices")
        usual = "" if one.default in (None, MISSING) else f"; its default is {one.default}"
        if choices is not None and value not in choices:
            near = nearest(str(value), choices)
            raise ConfigError(f"{one.name} must be one of {', '.join(choices)}, got {value!r}; {near}choose one{usual}")
        if allowed is not None and value not in allowed:
            raise ConfigError(f"{one.name} must {allowed}, got {value!r}; {allowed.remedy(value)}{usual}")


class Settings:
    """Base of the dataclasses of settings: what one is made of is checked when it is made."""

    YOUNGER: ClassVar[frozenset[str]] = frozenset()
    """Settings that did not exist when the first runs were recorded."""

    def __post_init__(self) -> None:
        """Check ranges and choices."""
        check(type(self), **vars(self))

    def record(self) -> dict[str, Any]:
        """The settings as plain values; those of ``YOUNGER`` that are at their default are left out.

        So a setting that is added later changes neither the keys nor the run directories of runs made before it.
        """
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]  # every subclass is a dataclass
        return {n: v for n, v in values.items() if n not in self.YOUNGER or v != field_of(type(self), n).default}
