"""The card of the shipped asking policy: what it saw, what it did on what it did not see, and when not to use it.

Text is that of ``asker_card.md``, figures are those of ``asker.json`` and of the suite ``asking``.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd.asking.policy import SHIPPED
from rlkd.records import write_text_atomic

HERE = Path(__file__).parent
RECORD = HERE / "asker.json"
TEXT = HERE / "asker_card.md"
ASKING = HERE / "results" / "asking.json"
ARMS = ("random", "all", "verify", "policy", "shuffled policy", "oracle")
"""Of the table of what it did not see."""
BUDGET = 0.35


def write_card(folder: Path = SHIPPED, record: Path = RECORD) -> None:
    """Write the card beside the policy that a record describes."""
    seen = json.loads(record.read_text(encoding="utf-8"))["seen"]
    write_text_atomic(folder / "README.md", card(seen, json.loads(ASKING.read_text(encoding="utf-8"))))


def card(seen: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> str:
    """The card.

    Args:
        seen: Tasks that it was learned on, as ``asker.json`` describes them.
        records: Of the suite ``asking``.
    """
    text = TEXT.read_text(encoding="utf-8")
    return text.replace("{seen}", "\n".join(map(_seen, seen))).replace("{unseen}", "\n".join(unseen(records)))


def _seen(task: Mapping[str, Any]) -> str:
    return f"| {task['task']} | {task['family']} | {task['classes']} | {len(task['teachers'])} | {task['rows']} |"


def unseen(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a table: each task that all arms were run on without a label, and their students' accuracy."""
    lines = [f"| task | {' | '.join(ARMS)} |", "|---" * (len(ARMS) + 1) + "|"]
    some = [row for row in records if row["labels"] == 0 and row["budget"] == BUDGET]
    for task in dict.fromkeys(row["task"] for row in some):
        rows = {row["arm"]: row for row in some if row["task"] == task}
        if "policy" in rows:
            cells = (f"{rows[arm]['accuracy']:.3f}" if arm in rows else "-" for arm in ARMS)
            lines.append(f"| {task} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    write_card()
