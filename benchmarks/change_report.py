"""The table of what the shipped policy would change of what is taught, beside what students gained by it."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlkd.report.headroom_points import learned_points
from rlkd.stats import group_runs

CAPTION = "What the policy would change of what is taught, and what students gained by it"
TOLD = (
    "Made by `python benchmarks/change.py`, which says how. Gains are those of the policy itself, however little it "
    "changes: of `travel` that of all other families, elsewhere the one that is shipped, in points of accuracy, or of "
    "labels found. `auto` is equal weights below the line, which was drawn with all these rows in sight."
)


def change_table(
    rows: Sequence[Mapping[str, Any]],
    suites: Mapping[str, Sequence[dict[str, Any]]],
    kinds: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Sets of teachers by how much the policy would change.

    Args:
        rows: Of ``change.json``.
        suites: Records by suite.
        kinds: Of ``kinds.json``.
    """
    gains = {
        (suite, point.task, point.weighting): (point.gain, point.gain_low, point.gain_high)
        for suite in dict.fromkeys(row["suite"] for row in rows)
        for runs in group_runs([record for record in suites.get(suite, []) if record["kind"] == "run"])
        for point in learned_points([runs])
        if not point.student.endswith("tiny")
    }
    gains |= {
        ("kinds", row["task"], row["arm"]): tuple(100 * row[end] for end in ("gain", "low", "high")) for row in kinds
    }
    return [
        {
            "suite": row["suite"],
            "task": row["task"],
            "change": f"{row['change']:.3f}",
            "points over equal weights": _spread(*gains[row["suite"], row["task"], row["arm"]]),
            "`auto` is": "the policy" if row["change"] >= row["least"] else "equal weights",
        }
        for row in sorted(rows, key=lambda row: float(row["change"]))
    ]


def _spread(gain: float, low: float | None, high: float | None) -> str:
    return f"{gain:+.1f}" if low is None else f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]"
