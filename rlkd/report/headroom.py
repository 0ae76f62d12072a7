"""What ``rlkd headroom`` shows: what teachers know, what weighting them can reach, and what to do."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlkd.report.tables import format_table
from rlkd.report.weighting_names import ROUTER
from rlkd.report.wording import spread_text
from rlkd.stats import UNIFORM
from rlkd.stats.prediction import FEWEST_ROWS, WORTH

Row = Mapping[str, Any]

AUTO = "auto"
ARM = "expected_gain"
"""The key of rows that are of a weighting."""
UNSHOWN = ("labels", "teacher_passes")
COLUMNS = {
    "weighting": "what",
    "label's probability": "probability",
    "geometric mean": "geometric",
    "accuracy": "accuracy",
    "reachable": "reachable",
}
"""Of the table of weightings: what a column is called, and the key it shows."""


def headroom_text(rows: Sequence[Row]) -> str:
    """All of it: the set of teachers, each weighting, each teacher, and the verdict.

    Args:
        rows: What :func:`rlkd.workflow.run_headroom` gives: the set of teachers first.
    """
    whole, *others = rows
    arms, teachers = [row for row in others if "measured" in row], [row for row in others if "measured" not in row]
    shown = [{key: value for key, value in whole.items() if key not in UNSHOWN}]
    shown_arms = [
        {name: row[key] for name, key in COLUMNS.items() if key in row}
        | {"expected gain, points": spread_text(dict(row), ARM, "+.1f")}
        for row in arms
    ]
    tables = [table for table in (shown, shown_arms, teachers) if table]
    drawn = [format_table(table, list(dict.fromkeys(key for row in table for key in row))) for table in tables]
    return "\n".join([*drawn, headroom_verdict(rows)])


def headroom_verdict(rows: Sequence[Row]) -> str:
    """Which weighting to use, what to expect of it and what it costs, or that nothing is reachable.

    Args:
        rows: As of :func:`headroom_text`; earlier versions wrote what a perfect choice would gain, and that alone.
    """
    arms = {str(row["what"]): row for row in rows if ARM in row}
    if AUTO not in arms:
        perfect = 100 * (rows[0]["best_per_instance"] - rows[0]["equal_mixture"])
        return (
            f"A perfect choice per instance would gain up to {perfect:.1f} points over equal weights, but only labels "
            "can make it; what is reachable was not measured here."
        )
    auto, router = arms[AUTO], arms.get(ROUTER)
    best = auto if router is None or not _worth_its_labels(router, auto) else router
    if best[ARM] < WORTH:
        best = max(arms.values(), key=lambda row: float(row[ARM]))
    told = {name: f"{spread_text(dict(row), ARM, '+.1f')} points over equal weights" for name, row in arms.items()}
    name = str(best["what"])
    if best is auto and auto.get("abstains"):
        said = (
            f"Use {UNIFORM}, as {AUTO} does: the policy that is shipped would change {auto['change']:.0%} of what "
            "students are taught, too little for a gain."
        )
    elif best[ARM] < WORTH:
        said = f"Use {UNIFORM}: with {name} students are expected to gain {told[name]}, less than half a point."
    elif best is auto:
        said = f"Use {AUTO}, the policy that is shipped: students are expected to gain {told[AUTO]}, at no more cost."
    else:
        said = (
            f"Use {ROUTER}: students are expected to gain {told[ROUTER]}, for its labels and {best['seconds']:.0f} s "
            f"of fitting; with {AUTO}, which takes neither, {told[AUTO]}."
        )
    (whole, *_) = rows
    said += f" The {whole['teacher_passes']:,} teacher passes of the cache are paid."
    if auto["measured"]:
        return said
    few = f"With {whole['labels']} labels" if whole["labels"] else "Without labels"
    hundreds = f"label {FEWEST_ROWS} rows of {whole['split']} at least, better hundreds"
    return f"{said} {few} this is a hint, not a measurement: {hundreds}."


def _worth_its_labels(router: Row, auto: Row) -> bool:
    """Whether a router helps where the shipped policy does not, or surely helps half a point more on other rows too."""
    if router[ARM] < WORTH or auto[ARM] < WORTH:
        return bool(router[ARM] >= WORTH)
    by_chance = 2 * math.hypot(router["error"], auto["error"])
    return bool(router[ARM] - auto[ARM] >= WORTH and router["reachable"] - auto["reachable"] > by_chance)
