"""The door: one call per command. Everything heavy is imported inside the commands, so ``--help`` is instant.

Every command takes ``--config FILE.yaml``; its keys are the flags, with underscores, and flags win over it.
"""

import importlib
import io
import logging
import os
import sys
from functools import cache
from typing import Any

import typer

from rlkd import plugins
from rlkd.cli.ending import TOLD, unwinding_when_told
from rlkd.errors import RlkdError

ENDED = {130: "interrupted", TOLD: "told to end"}
"""Exit codes of commands that did not come to their end."""
ROOMS = ("quickstart", "teachers", "asking", "policies", "students", "bench")


@cache
def assembled() -> typer.Typer:
    """The command line with all commands, those of published systems too."""
    for room in ROOMS:  # they hang their commands on the root
        importlib.import_module(f"rlkd.cli.{room}")
    root: typer.Typer = importlib.import_module("rlkd.cli.root").app
    for name in plugins.registered("commands"):
        root.command(name)(plugins.load("commands", name))
    return root


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'rlkd.cli' has no attribute {name!r}")
    return assembled()


def _is_first() -> bool:
    """Whether this process is alone, or the first of a launcher's."""
    if not any(name.endswith("RANK") for name in os.environ):
        return True  # without the import, which takes longer than all the help
    from rlkd.records import process_rank

    return process_rank() == 0


def main() -> None:
    """Run the command line: exit code 2 and one line for bad input, 130 for an interrupt, by the signal if told to end.

    Of a launcher's processes the first alone prints and warns.
    """
    first = _is_first()
    logging.basicConfig(level=logging.WARNING if first else logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    if not first:
        sys.stdout = io.StringIO()
    # Read when transformers is imported, which sets its own level then.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for a user's own weighting; last, so that it shadows no library
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character must not cost the table
            stream.reconfigure(errors="replace")
    with unwinding_when_told():
        _run()


def _run() -> None:
    try:
        assembled()()
    except RlkdError as error:
        if os.environ.get("RLKD_TRACEBACK"):
            raise
        typer.echo(f"rlkd: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code in ENDED:  # typer turns Ctrl-C into the first
            continues = "the same command continues, with --resume where it has that flag"
            typer.echo(f"\nrlkd: {ENDED[stop.code]}; {continues}", err=True)
        raise
