"""What a change of where things are may not change: values and files of the version before, in ``version_before/``.

``RLKD_FREEZE=1 pytest -n 0 tests/systems`` writes them anew.
That is for changes that are meant to change what comes out, and for those alone.
"""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

HOME = Path(__file__).parent / "version_before"
WRITING = os.environ.get("RLKD_FREEZE") == "1"
COSTS = ("seconds", "peak_memory_mb", "environment", "commit")
"""What differs from run to run, by the end of its name."""
TO_THE_BIT = frozenset({"correct", "predictions", "class_recall", "hash", "policy", "path", "key", "steps"})
"""What follows the last bits of trained weights, which follow the processor; ``policy_steps`` count trial students."""
WITHIN = 0.05
"""How far numbers may lie apart on another processor or with another torch."""


def machine() -> str:
    """What the last bits of a training follow."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return f"{names[0].partition(': ')[2] if names else platform.processor()}, torch {torch.__version__}"


def same(name: str, value: Any) -> None:
    """Hold a value against that of the version before: to the last bit on the machine that wrote it.

    Args:
        name: Of its file.
        value: Plain values. Costs are left out.
    """
    path = HOME / f"{name}.json"
    value = json.loads(json.dumps(_timeless(value)), parse_constant=str)  # NaN is itself
    if WRITING:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), "value": value}, indent=1) + "\n", encoding="utf-8")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    exact = before["machine"] == machine()
    different = list(_differences(before["value"], value, exact))
    assert not different, "\n".join(different[:20])


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _timeless(each) for key, each in value.items() if not key.endswith(COSTS)}
    return [_timeless(each) for each in value] if isinstance(value, list | tuple) else value


def _differences(before: Any, now: Any, exact: bool, where: str = "") -> Any:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if key not in before or key not in now:
                yield f"{where}.{key} is on one side alone"
            elif exact or key.removeprefix("policy_") not in TO_THE_BIT:
                yield from _differences(before[key], now[key], exact, f"{where}.{key}")
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differences(old, new, exact, f"{where}[{index}]")
    elif isinstance(before, float) and isinstance(now, float) and not exact:
        if not abs(before - now) <= WITHIN:
            yield f"{where}: {before} became {now}"
    elif before != now:
        yield f"{where}: {before!r:.80} became {now!r:.80}"
