"""The command line's root; the other modules of this folder hang their commands on it."""

import typer

app = typer.Typer(
    name="rlkd",
    help="Learn which teacher to trust on which instance while a student is distilled.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
