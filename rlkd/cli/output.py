"""What commands print and write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer


def show(rows: Sequence[dict[str, Any]], json_path: Path | None, columns: Sequence[str] | None = None) -> None:
    """Print rows as a table, and write them where that is asked for."""
    from rlkd.report import format_table

    names = columns or list(dict.fromkeys(key for row in rows for key in row))
    typer.echo(format_table(rows, names))
    write_json(json_path, rows)


def say(sentences: Sequence[str]) -> None:
    """Print sentences of a report, without their markup."""
    from rlkd.report import plain

    for sentence in sentences:
        typer.echo(plain(sentence))


def write_json(path: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON; nothing without a path."""
    from rlkd.records import process_rank, write_json_atomic

    if path is not None and process_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, list(rows))


def show_first(rows: Sequence[dict[str, Any]], sentences: Sequence[str]) -> None:
    """Print a table that another will follow."""
    from rlkd.report import brief_table

    say(sentences)
    show(brief_table(rows), None)
    typer.echo()


def show_comparison(rows: Sequence[dict[str, Any]], sentences: Sequence[str], report: str) -> None:
    """Print a comparison with its sentences."""
    from rlkd.report import brief_table

    show(brief_table(rows), None)
    say(sentences)
    typer.echo(f"Report: {report}")


def stop_if_failed(rows: Sequence[dict[str, Any]]) -> None:
    """Exit with code 1 where a run of a comparison failed."""
    if any(row["failed"] for row in rows):
        raise typer.Exit(1)
