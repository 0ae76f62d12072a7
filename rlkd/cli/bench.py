"""Benchmarks: running a suite, and writing its report."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rlkd.cli.options import Config, Json, Quiet
from rlkd.cli.output import say, show, write_json
from rlkd.cli.root import app

bench = typer.Typer(help="Suites of paired runs: run them, report them.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command("run")
def run(
    suite: Annotated[Path, typer.Argument(help="A suite in YAML, see benchmarks/suites.", show_default=False)],
    output_dir: Annotated[
        str | None, typer.Option("--output-dir", "-o", help="By default runs/bench/ and the suite's name.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes, each with one thread; by default one a core.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")] = None,
    weighting: Annotated[
        list[str] | None, typer.Option(help="Run this one too, such as my_module:MyWeighting; repeatable.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Of every task, instead of the suite's own.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or auto; by default as the suite says, else cpu.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and stop.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Few rows and steps: does everything run? No figure means anything.")
    ] = False,
    json_file: Json = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Run what is not finished of a suite; several calls may share one output directory."""
    from rlkd import workflow

    plan, folder = workflow.plan_bench(
        suite, output_dir, tasks=task or (), weightings=weighting or (), seeds=seeds, device=device, smoke=smoke
    )
    if dry_run:
        show(workflow.bench_plan_rows(plan, folder), json_file)
        typer.echo(f"{plan.num_runs} runs into {folder}.")
        return
    rows, failures = workflow.run_bench(plan, folder, jobs=jobs, progress=not quiet)
    show(rows, json_file)
    say(failures)
    typer.echo(f"Results: {folder}/results.jsonl; rlkd bench report {folder} writes the page.")
    if failures:
        raise typer.Exit(1)


@bench.command("report")
def report(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files of results or folders that hold them; by default runs/bench.")
    ] = None,
    output_dir: Annotated[str, typer.Option("--output-dir", "-o", help="Where the pages are written.")] = "runs/bench",
    json_file: Json = None,
    config: Config = None,
) -> None:
    """Write RESULTS.md, a page of each suite and one of all of them: tables, intervals, tests, and words."""
    from rlkd import workflow

    written, rows, sentences = workflow.report_bench(paths or [Path("runs/bench")], output_dir)
    for path in written:
        typer.echo(f"Report: {path}")
    say(sentences)
    write_json(json_file, rows)


__all__: list[Any] = ["bench", "report", "run"]
