"""Benchmarks: suites to runs to a page."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlkd.benchmark.running import RESULTS_FILE, check_suite, run_suite
from rlkd.benchmark.selection import select
from rlkd.benchmark.suite_files import load_suite
from rlkd.benchmark.suites import Suite
from rlkd.errors import OutputDirectoryError
from rlkd.records import read_jsonl
from rlkd.report import failures, untraced, write_benchmark_report
from rlkd.settings import BenchReportCommand, BenchRunCommand
from rlkd.workflow.teachers import Rows

BENCH_FOLDER = Path(BenchReportCommand.output_dir)
MOST_PROCESSES = 8
"""Unless more are asked for: each holds a task and a student."""
HEADROOM = ("best_teacher", "equal_mixture", "best_per_instance", "room", "disagreement")


def plan_bench(
    suite: str | Path,
    output_dir: str | None,
    *,
    tasks: Sequence[str] = (),
    weightings: Sequence[str] = (),
    seeds: int | None = BenchRunCommand.seeds,
    device: str | None = BenchRunCommand.device,
    smoke: bool = BenchRunCommand.smoke,
) -> tuple[Suite, Path]:
    """What a call would run, and where; everything that can be refused is refused here, before anything is written."""
    chosen = select(load_suite(suite), tasks=tasks, weightings=weightings, seeds=seeds, device=device, smoke=smoke)
    check_suite(chosen)
    name = f"{chosen.name}-smoke" if smoke else chosen.name
    return chosen, BENCH_FOLDER / name if output_dir is None else Path(output_dir)


def bench_plan_rows(suite: Suite, folder: Path) -> Rows:
    """What would be run: one row a task."""
    known = [record for record in read_jsonl(folder / RESULTS_FILE) if record["kind"] == "run"]
    finished = [record["task"] for record in known if record["status"] == "ok"]
    return [
        {
            "task": task.name,
            "students": ", ".join(task.students),
            "policies": len({found.policy for name in task.weightings if (found := task.policy_of(name))}),
            "weightings": len(task.weightings),
            "seeds": len(task.seeds),
            "runs": len(task.weightings) * len(task.seeds) * len(task.students),
            "finished": finished.count(task.name),
        }
        for task in suite.tasks
    ]


def run_bench(
    suite: Suite, folder: Path, *, jobs: int | None = BenchRunCommand.jobs, progress: bool = False
) -> tuple[Rows, list[str]]:
    """Run what is not finished: mean scores by task and weighting, and sentences on what failed."""
    processes = min(os.cpu_count() or 1, MOST_PROCESSES) if jobs is None else jobs
    records = run_suite(suite, folder, jobs=processes, progress=progress)
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for record in sorted((r for r in records if r["kind"] == "run"), key=_place(suite)):
        groups.setdefault((record["task"], record["student"], record["weighting"]), []).append(record)
    rows = []
    for (task, student, weighting), runs in groups.items():
        fine = [run for run in runs if run["status"] == "ok"]
        row: dict[str, Any] = {"task": task, "student": student, "weighting": weighting, "runs": len(fine)}
        row["failed"] = len(runs) - len(fine)
        if fine:
            row[str(fine[0]["metric"])] = float(np.mean([run[run["metric"]] for run in fine]))
            row["seconds"] = float(np.mean([run["seconds"] for run in fine]))
        if fine and fine[0]["regret"] is not None:
            row["regret"] = float(np.mean([run["regret"] for run in fine]))
        rows.append(row)
    return rows, failures(records)


def _place(suite: Suite) -> Any:
    """Order of a record in the suite's own order: runs end in another."""
    tasks = {task.name: index for index, task in enumerate(suite.tasks)}
    names = {(task.name, name): index for task in suite.tasks for index, name in enumerate(task.weightings)}
    return lambda r: (tasks[r["task"]], r["student"], names[r["task"], r["weighting"]], r["seed"])


def report_bench(paths: Sequence[Path], output_dir: str | Path) -> tuple[tuple[Path, ...], Rows, list[str]]:
    """Write RESULTS.md and the page of all suites in some files or folders; says where no commit made the lines."""
    suites = read_suites(paths)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    written = write_benchmark_report(suites, folder)
    said = [f"{name}: {line}" for name, records in suites.items() for line in untraced(records)]
    return written, [record for records in suites.values() for record in records], said


def read_suites(paths: Sequence[Path]) -> dict[str, Rows]:
    """Run records by suite, each with what the lines of its task and its policy say.

    Args:
        paths: Files of results, or folders that hold some, directly or in folders of suites.

    Raises:
        OutputDirectoryError: A path holds no results.
    """
    suites: dict[str, Rows] = {}
    for path in paths:
        found = [path] if path.is_file() else sorted({*path.glob(RESULTS_FILE), *path.glob(f"*/{RESULTS_FILE}")})
        if not found:
            raise OutputDirectoryError(
                f"expected {RESULTS_FILE} in {path} or in folders in it, got none; run a suite with rlkd bench run"
            )
        for file in found:
            records = read_jsonl(file)
            rooms = {r["task"]: {name: r[name] for name in HEADROOM} for r in records if _is_room(r)}
            trained = {r["hash"]: r.get("environment") for r in records if r.get("kind") == "policy" and "hash" in r}
            for record in records:
                if record.get("kind", "run") != "run":
                    continue
                name = record.get("suite") or (file.parent.name if file.name == RESULTS_FILE else file.stem)
                suites.setdefault(name, []).append({**record, **_beside(record, rooms, trained)})
    return suites


def _beside(record: Mapping[str, Any], rooms: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """What other lines say of a run: the headroom of its task, and what its policy was trained on."""
    found = trained.get(str(record.get("policy")), record.get("policy_environment"))
    return {"headroom": rooms.get(record["task"])} | ({} if found is None else {"policy_environment": found})


def _is_room(record: Mapping[str, Any]) -> bool:
    return record.get("kind") == "task" and record["status"] == "ok"
