"""Teachers: training them, asking them once, and what room they leave."""

from dataclasses import asdict

import typer

from rlkd.cli.options import flags
from rlkd.cli.output import show, write_json
from rlkd.cli.root import app
from rlkd.settings import (
    AUTO,
    CacheCommand,
    CacheSettings,
    HeadroomCommand,
    TaskSettings,
    TeacherTraining,
    TrainTeachersCommand,
)


@app.command("train-teachers")
@flags
def train_teachers(task: TaskSettings, run: TrainTeachersCommand, training: TeacherTraining) -> None:
    """Train a set of teachers, each on all of the data or on its own classes or domains."""
    from rlkd import workflow

    rows = workflow.run_train_teachers(
        task.options(),
        run.kind,
        run.output_dir,
        device=None if run.device == AUTO else run.device,
        **run.handling(),
        **asdict(training),
    )
    show(rows, run.json)


@app.command()
@flags
def cache(task: TaskSettings, run: CacheCommand, asking: CacheSettings) -> None:
    """Ask every teacher about every instance once, and keep the logits; continues an interrupted build."""
    from rlkd import workflow

    rows = workflow.run_cache(
        task.options(),
        run.teachers,
        run.output_dir,
        embedder=run.embedder,
        device=None if run.device == AUTO else run.device,
        **run.handling(),
        **asdict(asking),
    )
    show(rows, run.json)


@app.command()
@flags
def headroom(task: TaskSettings, run: HeadroomCommand) -> None:
    """What would students gain by weighting teachers? From the cache alone, before anything is trained."""
    from rlkd import workflow
    from rlkd.report.headroom import headroom_text

    rows = workflow.run_headroom(task.options(), run.cache, run.split)
    typer.echo(headroom_text(rows))
    write_json(run.json, rows)
