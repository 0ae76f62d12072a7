"""Teachers that cost: asking them within a budget."""

import typer

from rlkd.cli.options import flags
from rlkd.cli.output import say, show
from rlkd.cli.root import app
from rlkd.settings import AUTO, AskCommand, AskerTraining, TaskSettings, TasksSettings, TrainAskerCommand


@app.command()
@flags
def ask(task: TaskSettings, run: AskCommand) -> None:
    """Ask teachers about what pays, within a budget; the answers are a cache, and nothing is paid for twice."""
    from rlkd import workflow

    asked = workflow.run_ask(
        task.options(),
        run.teachers,
        run.output_dir,
        strategy=run.strategy,
        budget=run.budget,
        prices=run.price,
        dry_run=run.dry_run,
        ask_again=run.ask_again,
        batch_size=run.batch_size,
        max_length=run.max_length,
        device=None if run.device == AUTO else run.device,
        seed=run.seed,
        progress=not run.quiet,
    )
    show(asked.rows, run.json)
    say(asked.sentences)
    typer.echo(asked.following)


@app.command("train-asker")
@flags
def train_asker(tasks: TasksSettings, run: TrainAskerCommand, training: AskerTraining) -> None:
    """Learn with reinforcement learning whom to ask, on tasks whose caches hold every answer; asking there is free."""
    from rlkd import workflow
    from rlkd.data import EMBEDDED

    rows = workflow.run_train_asker(
        tasks.options(EMBEDDED),
        run.cache,
        run.output_dir,
        training=training,
        episode=run.episode(),
        resume=run.resume,
        overwrite=run.overwrite,
        progress=not run.quiet,
    )
    show(rows, run.json)
    typer.echo(f"Ask with it: rlkd ask --strategy policy:{run.output_dir}/policy ...")
