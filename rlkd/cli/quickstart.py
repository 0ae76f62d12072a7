"""The whole job in one command, and a look at the installation."""

import typer

from rlkd.cli.options import flags
from rlkd.cli.output import show, show_comparison, show_first, stop_if_failed, write_json
from rlkd.cli.root import app
from rlkd.settings import QuickstartCommand, TableCommand


@app.command()
@flags
def quickstart(run: QuickstartCommand) -> None:
    """Real text, three specialist teachers, a policy, paired students and a table: the whole job in minutes."""
    from rlkd import workflow

    rows, sentences = workflow.run_quickstart(
        run.output_dir,
        seeds=run.seeds,
        jobs=run.jobs,
        total_timesteps=run.total_timesteps,
        told=show_first,
        **run.handling(),
    )
    show_comparison(rows, sentences, f"{run.output_dir}/report.html")
    write_json(run.json, rows)
    stop_if_failed(rows)


@app.command()
@flags
def doctor(run: TableCommand) -> None:
    """Versions, device, threads, and combinations that are known not to work."""
    from rlkd.doctor import run_doctor

    rows = run_doctor()
    show(rows, run.json)
    if any(row["problem"] for row in rows):
        raise typer.Exit(1)
