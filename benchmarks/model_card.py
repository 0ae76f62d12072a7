"""The card of the shipped policy: what it saw, what it did on what it did not see, and when not to use it.

Text is that of ``card.md``, figures are those of ``policy.json`` and of the suite ``travel``.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd.records import read_jsonl, write_text_atomic
from rlkd.report.wording import points, spread_text
from rlkd.stats import group_runs, task_rows
from rlkd.weighting.policy_files import SHIPPED

HERE = Path(__file__).parent
RECORD = HERE / "policy.json"
TEXT = HERE / "card.md"
TRAVEL = HERE / "results" / "travel.jsonl"
UNSEEN = {
    "entropy": "entropy",
    "policy_shipped": "this policy",
    "auto_unlabelled": "`auto`",
    "router": "router of all labels there",
}
"""Arms of the table of what it did not see, with their headings."""


def write_card(folder: Path = SHIPPED, record: Path = RECORD) -> None:
    """Write the card beside the policy that a record describes."""
    seen = json.loads(record.read_text(encoding="utf-8"))["seen"]
    write_text_atomic(folder / "README.md", card(seen, read_jsonl(TRAVEL)))


def card(seen: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> str:
    """The card.

    Args:
        seen: Tasks that it was learned on, as ``policy.json`` describes them.
        records: Lines of the suite ``travel``.
    """
    text = TEXT.read_text(encoding="utf-8")
    return text.replace("{seen}", "\n".join(map(_seen, seen))).replace("{unseen}", "\n".join(unseen(records)))


def _seen(task: Mapping[str, Any]) -> str:
    return f"| {task['task']} | {task['classes']} | {task['teachers']} | {', '.join(task['kinds'])} | {task['know']} |"


def unseen(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a table: each task that all arms of it were run on, and what they gain."""
    lines = [
        f"| task | equal weights | {' | '.join(UNSEEN.values())} | its share of the gap |",
        "|---|---|---|---|---|---|---|",
    ]
    for runs in group_runs([record for record in records if record["kind"] == "run"]):
        rows = {row["weighting"]: row for row in task_rows(runs)}
        if rows.keys() >= UNSEEN.keys():
            cells = [
                runs.task,
                f"{rows['uniform']['score']:.3f}",
                *(points(rows[arm], "gain") or "-" for arm in UNSEEN),
            ]
            cells.append(spread_text(rows["policy_shipped"], "gap_share", ".2f") or "no gap")
            lines.append(f"| {' | '.join(cells)} |")
    return lines
