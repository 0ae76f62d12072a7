"""The lines of ``benchmarks/results/asking.jsonl`` from what ``asking.py`` has run."""

from pathlib import Path


def write_records(folder: Path, path: Path, commit: str) -> None:
    """TODO."""
