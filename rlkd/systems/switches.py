"""Settings of a published system with some switches set by hand."""

from dataclasses import fields
from typing import Any, TypeVar

from rlkd.errors import ConfigError, nearest

SettingsT = TypeVar("SettingsT")


def with_switches(cls: type[SettingsT], system: str, switches: dict[str, Any]) -> SettingsT:
    """Make settings from keywords; what is not named has its default.

    Args:
        cls: A dataclass.
        system: What an error calls it.
        switches: Fields by name.

    Raises:
        ConfigError: If a switch is unknown or out of range.
    """
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for name in switches:
        if name not in known:
            raise ConfigError(
                f"{system} has no switch {name!r}; {nearest(name, known)}expected one of {', '.join(sorted(known))}"
            )
    return cls(**switches)
