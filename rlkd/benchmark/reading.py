"""Reading what a YAML file says into settings: an unknown key or a wrong value is told with its place."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from rlkd.errors import ConfigError, nearest, one_line


def check_keys(content: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse a key that is not known, with the nearest that is."""
    for key in content:
        if key not in known:
            raise ConfigError(
                f"{where} has the unknown key {key!r}; {nearest(str(key), known)}known are: {', '.join(sorted(known))}"
            )


def mapping_in(content: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """The mapping under a key; empty where there is none."""
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected names and values in {key!r}, got {type(value).__name__}; mend it")
    return value


def names_in(content: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """The list of different names under a key; empty where there is none."""
    value = content.get(key) or []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value) or len(set(value)) < len(value):
        raise ConfigError(f"{where}: expected a list of different names in {key!r}, got {value!r:.80}; mend it")
    return tuple(value)


def built(cls: Any, content: Any, where: str) -> Any:
    """A dataclass of settings from a mapping, its numbers as it wants them."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected settings, got {type(content).__name__}; write 'name: value'")
    known = {f.name: f for f in fields(cls)}
    check_keys(content, frozenset(known), where)
    try:
        return cls(**{key: as_number(value, known[key].type) for key, value in content.items()})
    except TypeError as error:
        raise ConfigError(f"{where}: a value has the wrong type: {one_line(error)}; mend it") from error


def as_number(value: Any, wanted: Any) -> Any:
    """YAML reads ``2e-3`` as text; where a float is wanted it is a number."""
    if isinstance(value, str) and wanted is float:
        try:
            return float(value)
        except ValueError as error:
            raise ConfigError(f"expected a number, got {value!r}; mend it") from error
    return value
