"""Benchmarks: running a suite, and writing its report."""

from pathlib import Path
from typing import Any

import typer

from rlkd.cli.options import flags
from rlkd.cli.output import say, show, write_json
from rlkd.cli.root import app
from rlkd.settings import BenchReportCommand, BenchRunCommand

bench = typer.Typer(help="Suites of paired runs: run them, report them.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command("run")
@flags
def run(run: BenchRunCommand) -> None:
    """Run what is not finished of a suite; several calls may share one output directory."""
    from rlkd import workflow

    plan, folder = workflow.plan_bench(
        run.suite,
        run.output_dir,
        tasks=run.task,
        weightings=run.weighting,
        seeds=run.seeds,
        device=run.device,
        smoke=run.smoke,
    )
    if run.dry_run:
        show(workflow.bench_plan_rows(plan, folder), run.json)
        typer.echo(f"{plan.num_runs} runs into {folder}.")
        return
    rows, failures = workflow.run_bench(plan, folder, jobs=run.jobs, progress=not run.quiet)
    show(rows, run.json)
    say(failures)
    typer.echo(f"Results: {folder}/results.jsonl; rlkd bench report {folder} writes the page.")
    if failures:
        raise typer.Exit(1)


@bench.command("report")
@flags
def report(run: BenchReportCommand) -> None:
    """Write RESULTS.md, a page of each suite and one of all of them: tables, intervals, tests, and words."""
    from rlkd import workflow

    written, rows, sentences = workflow.report_bench(run.paths or [Path(BenchReportCommand.output_dir)], run.output_dir)
    for path in written:
        typer.echo(f"Report: {path}")
    say(sentences)
    write_json(run.json, rows)


__all__: list[Any] = ["bench", "report", "run"]
