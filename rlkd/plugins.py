"""What published systems add to the core: found by their folders, named by strings.

A system is a folder of :mod:`rlkd.systems`. Its ``__init__.py`` imports nothing heavy and says in ``REGISTERED`` what
the system adds and where that is, ``"module:Name"``; whoever asks for a name imports it then. The core knows no system
by name: without its folder, a system's names are unknown, and everything else is as before.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

KINDS = ("weightings", "policies", "suites", "commands")
"""What a system may add: weightings by name; kinds of policy that suites train; what a suite of the system does;
commands."""
FENCE = "rlkd.systems"


@cache
def systems() -> tuple[str, ...]:
    """Names of the systems that are here, in alphabetical order."""
    folder = importlib.import_module(FENCE).__path__
    return tuple(sorted(found.name for found in pkgutil.iter_modules(folder) if found.ispkg))


@cache
def registered(kind: str) -> Mapping[str, str]:
    """What all systems add of a kind: name to ``"module:Name"``.

    Args:
        kind: One of :data:`KINDS`.
    """
    added = [importlib.import_module(f"{FENCE}.{system}").REGISTERED for system in systems()]
    return {name: where for each in added for name, where in each.get(kind, {}).items()}


def load(kind: str, name: str) -> Any:
    """Import what a system has registered.

    Raises:
        KeyError: No system has registered the name.
    """
    module, _, attribute = registered(kind)[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
