"""Strategies by name: ``[ROWS*]NAME[+threshold][:ARGUMENT]``, a learned one, or ``package.module:Name``.

Learned are ``policy:FOLDER``, ``auto``, the policy that is shipped, and ``auto:FOLDER``.
``ROWS`` says which instances come first, ``random`` (unless another is named), ``margin``, ``pairs`` or
``spread``.
"""

import importlib
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from rlkd.asking.base import Strategy
from rlkd.asking.policy import AskByPolicy, load_asker
from rlkd.asking.strategies.auto import Auto
from rlkd.asking.strategies.rows import ROWS
from rlkd.asking.strategies.rules import (
    AskAll,
    AskBest,
    AskNobody,
    AskOnly,
    AskOracle,
    AskRandom,
    ByBandit,
    ByRouter,
    Explore,
    Reverify,
    Verify,
)
from rlkd.errors import ConfigError, one_line, unknown_name
from rlkd.weighting.policy_files import AUTO

THRESHOLD = 0.5
"""Confidence, in [0, 1], below which ``+threshold`` asks another teacher."""

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "none": AskNobody,
    "all": AskAll,
    "random": AskRandom,
    "best": AskBest,
    "only": AskOnly,
    "explore": Explore,
    "router": ByRouter,
    "bandit": ByBandit,
    "thompson": partial(ByBandit, thompson=True),
    "verify": Verify,
    "reverify": Reverify,
    "oracle": AskOracle,
}
WITH_THRESHOLD, WITH_SHARE = ("explore", "router"), ("explore", "verify", "reverify")
WITH_WINDOW = ("bandit", "thompson")
NAME = re.compile(r"(?:(?P<rows>\w+)\*)?(?P<name>\w+)(?P<cascade>\+threshold)?(?::(?P<argument>.+))?")


def build_strategy(spec: str) -> Strategy:
    """Make a strategy from its name.

    Args:
        spec: See the module.

    Raises:
        UnknownNameError: There is no such strategy, or no such order of rows.
        ConfigError: An argument is missing, malformed or would be ignored.
    """
    name = spec.partition(":")[0]
    if name in ("policy", AUTO):
        return _learned(*spec.partition(":"))
    if name not in STRATEGIES and re.fullmatch(r"\w+(\.\w+)*:[A-Za-z_]\w*", spec):
        return _own(spec)
    found = NAME.fullmatch(spec)
    if found is None or found["name"] not in STRATEGIES:
        raise unknown_name("strategy", spec if found is None else found["name"], (AUTO, "policy", *STRATEGIES))
    if found["rows"] is not None and found["rows"] not in ROWS:
        raise unknown_name("order of rows", found["rows"], ROWS)
    settings: dict[str, Any] = {"rows": found["rows"] or "random"}
    if found["cascade"]:
        if found["name"] not in WITH_THRESHOLD:
            raise ConfigError(f"a threshold goes with {' and '.join(WITH_THRESHOLD)}, got {spec!r}; leave it out")
        settings["threshold"] = THRESHOLD
    return STRATEGIES[found["name"]](**settings, **_argument(found["name"], found["argument"]))


def _argument(name: str, argument: str | None) -> dict[str, Any]:
    if name == "only":
        if not argument:
            raise ConfigError("strategy 'only' needs the name of a teacher; write for example 'only:large'")
        return {"name": argument}
    if argument is None:
        return {}
    if name in WITH_WINDOW:
        if not re.fullmatch(r"[1-9]\d*", argument):
            raise ConfigError(
                f"strategy {name!r} takes a number of calls that it learns from, the latest, got {argument!r}; write "
                f"'{name}:500'"
            )
        return {"window": int(argument)}
    if name not in WITH_SHARE:
        raise ConfigError(f"strategy {name!r} takes no argument, got {argument!r}; write just {name!r}")
    try:
        share = float(argument)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise ConfigError(f"strategy {name!r} takes a share in (0, 1], got {argument!r}; write '{name}:0.1'")
    return {"share": share}


def _learned(name: str, colon: str, path: str) -> Strategy:
    if not path and (colon or name == "policy"):
        raise ConfigError(
            f"strategy {name!r} needs a folder; write for example '{name}:runs/asker/policy', or '{AUTO}' for the "
            "policy that is shipped"
        )
    asker = AskByPolicy(load_asker(path or AUTO))
    return Auto(asker) if name == AUTO else asker


def _own(spec: str) -> Strategy:
    module, _, name = spec.partition(":")
    try:
        made: Strategy = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"expected a class at {spec!r}, got {one_line(error)}; check the name") from error
    return made
