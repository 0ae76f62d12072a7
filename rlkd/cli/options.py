"""Flags out of settings: a parameter of a command that is a dataclass of settings stands for a flag of every field."""

import functools
import inspect
import json
import math
import os
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from rlkd.errors import ConfigError, nearest, one_line


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's keys the defaults of the command's flags."""
    if path is None:
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"expected a readable YAML file at {path}: {one_line(error)}; mend or name another"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"expected flags and values in {path}, got {type(content).__name__}; write 'flag: value'")
    named = ((_flag_name(parameter), parameter) for parameter in context.command.params)
    flags = {name: parameter for name, parameter in named if name not in ("config", "help")}
    defaults = {}
    for key, value in content.items():
        if key not in flags:
            raise ConfigError(
                f"{path} has the unknown key {key!r}; {nearest(str(key), flags)}known are: {', '.join(sorted(flags))}"
            )
        defaults[flags[key].name] = _config_value(path, key, value, many=getattr(flags[key], "multiple", False))
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _flag_name(parameter: Any) -> str:
    """``output_dir`` for ``--output-dir, -o``."""
    longest: str = max(parameter.opts, key=len)
    return longest.lstrip("-").replace("-", "_")


def _config_value(path: Path, key: str, value: Any, *, many: bool) -> Any:
    """A value as its flag takes it: one is a list of one where a flag is repeatable, a mapping is JSON."""
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list) and not many:
        raise ConfigError(f"{path} must give {key!r} one value, got a list; only repeatable flags take lists")
    return [value] if many and value is not None and not isinstance(value, list) else value


def finite(parameter: typer.CallbackParam, value: float | None) -> float | None:
    """Refuse NaN and infinities."""
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"{parameter.opts[0]} must be a finite number, got {value}; leave it out for its default")
    return value


def writable(path: Path | None) -> Path | None:
    """Refuse a file that cannot be written before the work of which it is to hold the result."""
    if path is None:
        return None
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"--json expected a file that can be written, got {path}; name another")
    return path


CHECKS: dict[str, dict[str, Any]] = {
    "config": {"callback": read_config, "is_eager": True},
    "json": {"callback": writable},
}
"""What is done with the value of a flag beside handing it on."""


def flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of its settings: each parameter is annotated with a dataclass and arrives as one.

    Defaults, help and spelling of the flags are those of the fields, see :func:`rlkd.settings.knobs.knob`. The fields
    are kept as ``command.knobs``, by flag.
    """
    groups = {name: one.annotation for name, one in inspect.signature(command, eval_str=True).parameters.items()}
    members = {name: {flag_of(f): f for f in fields(group) if not hidden(f)} for name, group in groups.items()}
    knobs = {flag: one for group in members.values() for flag, one in group.items()}
    assert len(knobs) == sum(map(len, members.values())), "a flag belongs to one group of settings"

    @functools.wraps(command)
    def call(**values: Any) -> None:
        made = {
            name: groups[name](**{one.name: _plain(one, values[flag]) for flag, one in group.items()})
            for name, group in members.items()
        }
        command(**made)

    parameters = [_parameter(flag, one) for flag, one in knobs.items()]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.knobs = knobs  # type: ignore[attr-defined]
    return call


def flag_of(knob: Field[Any]) -> str:
    """Name of a field's flag, with underscores: that is its key in a file too."""
    return knob.metadata["flag"] or knob.name


def hidden(knob: Field[Any]) -> bool:
    """Whether a field has no flag."""
    return bool(knob.metadata["hidden"])


def _plain(knob: Field[Any], value: Any) -> Any:
    """Values of a repeatable flag as settings hold them: a tuple, which is empty where none is given."""
    if knob.default == () and value is None:
        return ()
    return tuple(value) if isinstance(value, list) else value


def _parameter(flag: str, knob: Field[Any]) -> inspect.Parameter:
    """A field as typer reads a parameter."""
    kind, default = _kind(knob), inspect.Parameter.empty if knob.default is MISSING else knob.default
    if default == ():
        kind, default = kind | None, None
    told: dict[str, Any] = {"help": knob.metadata["help"], **CHECKS.get(flag, {})}
    if kind in (float, float | None):
        told["callback"] = finite
    if knob.metadata["argument"]:
        described: Any = typer.Argument(**told, show_default=False)
    else:
        described = typer.Option(*_spellings(flag, knob), **told)
    return inspect.Parameter(
        flag, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, described]
    )


def _spellings(flag: str, knob: Field[Any]) -> list[str]:
    """``--flag``, with its letter or its opposite: what is on by default can be switched off."""
    long, short = f"--{flag.replace('_', '-')}", knob.metadata["short"]
    both = f"{long}/--no-{long[2:]}" if knob.default is True else long
    return [both] if short is None else [both, f"-{short}"]


def _kind(knob: Field[Any]) -> Any:
    """Type of a flag's value: words among choices are plain ones, which settings check in words of ours."""
    kind: Any = knob.type
    if typing.get_origin(kind) is typing.Literal:
        kind = str
    if typing.get_origin(kind) is tuple:
        kind = list[typing.get_args(kind)[0]]  # type: ignore[misc]  # of one type
    left_open = knob.default is None and not isinstance(kind, types.UnionType)  # a number once the settings are made
    return kind | None if left_open else kind
