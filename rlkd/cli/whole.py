"""The whole job in one command, and a look at the installation."""

from typing import Annotated

import typer

from rlkd.cli.options import Config, Json, OutputDir, Overwrite, Quiet, Resume
from rlkd.cli.output import show, show_comparison
from rlkd.cli.root import app
from rlkd.defaults import TOTAL_TIMESTEPS


@app.command()
def quickstart(
    output_dir: OutputDir = "runs/quickstart",
    seeds: Annotated[int, typer.Option(help="Paired seeds.")] = 3,
    jobs: Annotated[int | None, typer.Option(help="Processes; by default one a core.")] = None,
    total_timesteps: Annotated[int, typer.Option(help="Of policy training.")] = TOTAL_TIMESTEPS,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_file: Json = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Real text, three specialist teachers, a policy, paired students and a table: the whole job in minutes."""
    from rlkd import workflow

    rows, sentences = workflow.run_quickstart(
        output_dir,
        seeds=seeds,
        jobs=jobs,
        total_timesteps=total_timesteps,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
    )
    show_comparison(rows, sentences, json_file, f"{output_dir}/report.html")


@app.command()
def doctor(json_file: Json = None) -> None:
    """Versions, device, threads, and combinations that are known not to work."""
    from rlkd.doctor import run_doctor

    rows = run_doctor()
    show(rows, json_file)
    if any(row["problem"] for row in rows):
        raise typer.Exit(1)
