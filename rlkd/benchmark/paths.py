"""Places of a machine, which neither suites nor records name: ``${DATA}`` and ``${ENCODER}``."""

import os
import re
from collections.abc import Mapping
from typing import Any

from rlkd.errors import unknown_name

PLACES = {"DATA": "../shared/data", "ENCODER": "../shared/models/minilm-l6-h384"}
"""Environment variables that a suite may use as ``${NAME}``, with what they are where they are not set."""


def with_places(content: Any) -> Any:
    """Fill in ``${DATA}`` and ``${ENCODER}``: no path of a machine stands in a suite."""
    if isinstance(content, dict):
        return {key: with_places(value) for key, value in content.items()}
    if isinstance(content, list):
        return [with_places(value) for value in content]
    return re.sub(r"\$\{(\w+)\}", _place, content) if isinstance(content, str) else content


def _place(match: re.Match[str]) -> str:
    name = match[1]
    if name not in PLACES:
        raise unknown_name("place in a suite", name, PLACES)
    return os.environ.get(name, PLACES[name])


def portable(content: Any) -> Any:
    """The places of this machine as a suite writes them, ``${DATA}``: records are read elsewhere."""
    return _placed(content, {name: f"${{{name}}}" for name in PLACES})


def as_usual(content: Any) -> Any:
    """The places of this machine as they are where nothing is set: keys do not tell where data lie."""
    return _placed(content, PLACES)


def _placed(content: Any, instead: Mapping[str, str]) -> Any:
    """Paths that begin with a place of this machine, beginning with something else."""
    if isinstance(content, Mapping):
        return {key: _placed(value, instead) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_placed(value, instead) for value in content]
    for name, usual in PLACES.items() if isinstance(content, str) else ():
        place = os.environ.get(name, usual)
        if content == place or content.startswith(f"{place}/"):
            return f"{instead[name]}{content[len(place) :]}"
    return content
