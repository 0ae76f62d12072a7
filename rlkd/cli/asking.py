"""Teachers that cost: asking them within a budget."""

import typer

from rlkd.cli.options import flags
from rlkd.cli.output import say, show
from rlkd.cli.root import app
from rlkd.settings import AUTO, AskCommand, TaskSettings


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
