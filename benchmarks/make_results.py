"""Generate ``RESULTS.md`` and ``report.html`` from the lines in ``benchmarks/results``; the pages are never edited."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rlkd.report.benchmark import write_benchmark_report
from rlkd.report.wording import points
from rlkd.stats import STATISTICS_SEED, TaskRuns, group_runs, rival_row, verdict
from rlkd.workflow.bench import HEADROOM, read_suites

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CLAIMS = HERE / "claims.yaml"
CAME = {"pays": "yes", "same": "not sure", "costs": "the other way", None: "one seed"}
"""Words for the side of zero on which the interval of a claimed difference lies."""


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
    for suite, blocks in yaml.safe_load(CLAIMS.read_text(encoding="utf-8")).items():
        tables |= _claims(suites.get(suite, []), blocks)
    tables["MKD, accuracy of the teachers on validation"] = _teachers(suites.get("mkd", []))
    tables["Meta-KD, how much t and lambda vary over the training rows"] = _spread(suites.get("meta_kd", []))
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


def _claims(records: Sequence[dict[str, Any]], blocks: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Tables by caption, each of differences in points; none where nothing was run."""
    rng = np.random.default_rng(STATISTICS_SEED)
    runs = group_runs([record for record in records if record["kind"] == "run"])
    return {caption: _differences(runs, block, rng) for caption, block in blocks.items()}


def _differences(runs: Sequence[TaskRuns], block: Mapping[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Means over the tasks of each group, student by student."""
    rows = []
    for student in dict.fromkeys(table.student for table in runs):
        for claim in block["claims"]:
            row = {"student": student, "claim": claim["says"], "arms": f"{claim['left']} minus {claim['right']}"}
            for group, tasks in block["groups"].items():
                tables = [table for table in runs if table.student == student and table.task in tasks]
                found = rival_row(tables, claim["left"], claim["right"], rng)
                row[group] = None if found is None else f"{points(found, 'mean')}, {CAME[verdict(found, 'mean')]}"
            rows.append(row)
    return rows


def _spread(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Quantiles of the prototype score and the domain expertise, of every task and meta-teacher."""
    found = {
        (record["task"], *record["recipe"]["teachers"], *map(tuple, (record["prototype_score"], record["expertise"])))
        for record in records
        if record.get("prototype_score")
    }
    columns = ("t, 5%", "t, half", "t, 95%", "lambda, 5%", "lambda, half", "lambda, 95%")
    return [
        {"task": task, "meta-teacher": teacher}
        | {column: f"{value:.3f}" for column, value in zip(columns, (*scores, *expertise), strict=True)}
        for task, teacher, scores, expertise in sorted(found)
    ]


def _teachers(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy of the teachers on validation, task by task."""
    rows = [
        {"task": record["task"]}
        | {
            name: f"{accuracy:.3f}"
            for name, accuracy in zip(record["teachers"], record["teacher_accuracy"], strict=True)
        }
        for record in records
        if record["kind"] == "task" and record["status"] == "ok"
    ]
    return sorted(rows, key=lambda row: row["task"])


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else "-"


if __name__ == "__main__":
    main()
