"""Generate ``RESULTS.md`` and ``report.html`` from the lines in ``benchmarks/results``; the pages are never edited."""

import json
from pathlib import Path
from typing import Any

from rlkd.report.benchmark import write_benchmark_report
from rlkd.workflow.bench import HEADROOM, read_suites

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def main() -> None:
    """Write the pages."""
    suites = read_suites(sorted(RESULTS.glob("*.jsonl")))
    for name, records in suites.items():
        kept = RESULTS / f"{name}-headroom.json"  # of suites that were run command by command
        if kept.exists():
            (room, *_) = json.loads(kept.read_text(encoding="utf-8"))
            suites[name] = [{**record, "headroom": {key: room[key] for key in HEADROOM}} for record in records]
    tables = {_caption(path): _rows(path) for path in sorted(RESULTS.glob("*.json")) if _caption(path)}
    tables["The published algorithms on planted teachers, shown for what they are"] = _published()
    write_benchmark_report(suites, HERE, tables=tables)


def _caption(path: Path) -> str:
    kind, _, rest = path.stem.partition("-")
    return f"Performance, {rest}" if kind == "performance" else ""


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def _published() -> list[dict[str, Any]]:
    """Where selections and weights end on planted teachers, means over seeds; a coin flip selects with 0.5."""
    cases: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in _rows(RESULTS / "published-algorithms.json"):
        cases.setdefault((row["system"], row["case"]), []).append(row)
    figures = ("probability_right", "probability_wrong", "mass_right")
    return [
        {"system": system, "case": case, "seeds": len(rows)}
        | {name: _mean([row[name] for row in rows if row.get(name) is not None]) for name in figures}
        for (system, case), rows in cases.items()
    ]


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else "-"


if __name__ == "__main__":
    main()
