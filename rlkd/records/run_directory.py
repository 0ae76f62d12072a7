"""The directory of one run: made, resumed or emptied, and what is recorded in it."""

import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlkd.errors import ConfigError, OutputDirectoryError
from rlkd.records.digests import digest
from rlkd.records.files import cannot_write, plain, read_object, write_json_atomic, write_text_atomic
from rlkd.records.lines import append_jsonl, read_jsonl
from rlkd.records.processes import check_one_process
from rlkd.records.provenance import environment

logger = logging.getLogger(__name__)

RUN_MARKER = "environment.json"
"""Written first into every run: a directory without it is not ours to delete or to resume. Models have a
``config.json`` too."""
HARMLESS_KEYS = frozenset(
    {"output_dir", "resume", "overwrite", "progress", "quiet", "verbose", "traceback", "num_workers"}
)
"""Settings that may change when a run is resumed: none of them touches a number."""

_METRIC_KEY = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_./-]+")


def _some_names(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir())
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def _refusal(directory: Path) -> str | None:
    """Why ``directory`` must not be deleted, or None."""
    resolved = directory.resolve()
    if directory.is_symlink():
        return "a symbolic link"
    if Path.cwd().is_relative_to(resolved) or Path.home().is_relative_to(resolved):
        return "the directory you work in, or one above it"
    if (directory / ".git").exists():
        return "a git repository"
    if not (directory / RUN_MARKER).is_file():
        return f"no {RUN_MARKER} but {_some_names(directory)}"
    return None


def _empty(directory: Path) -> None:
    """Delete what is in ``directory``; the marker goes last, so a killed deletion can be repeated."""
    for path in sorted(directory.iterdir(), key=lambda path: path.name == RUN_MARKER):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def check_output_dir(path: str | Path, *, resume: bool | None, overwrite: bool, shared: bool = False) -> None:
    """Raise what :func:`prepare_output_dir` would raise, and touch nothing: it is called before anything is read.

    Args:
        path: The directory.
        resume: Continue what is there. An absent or empty directory is fine: there is nothing to continue. None: such
            runs cannot be continued, and nobody is told to.
        overwrite: Delete what is there, if it looks like a run of ours.
        shared: Processes of a launcher work on this run together, and the first alone calls this.

    Raises:
        ConfigError: If both flags are set, or a launcher has started several processes that do not share the run.
        OutputDirectoryError: If the directory is not empty and neither flag is set, is a file, or holds
            something that is not ours to delete.
    """
    path = Path(path)
    if not shared:
        check_one_process("a run directory is written")
    if resume and overwrite:
        raise ConfigError("expected resume or overwrite, got both; resume keeps the run, overwrite deletes it")
    try:
        # A writer that was killed may have left a temporary file and nothing else.
        empty = not path.exists() or all(entry.name.endswith(".tmp") for entry in path.iterdir())
    except NotADirectoryError as error:
        raise OutputDirectoryError(
            f"expected a directory at {path}, got a file; choose another output directory"
        ) from error
    except OSError as error:
        raise cannot_write(path, error) from error
    if empty:
        return
    if resume:
        if not (path / RUN_MARKER).is_file():
            raise OutputDirectoryError(
                f"resume expected a run directory at {path}, got no {RUN_MARKER} but {_some_names(path)}; "
                "choose another"
            )
        return
    if not overwrite:
        going_on = "" if resume is None else "resume to continue that run, "
        raise OutputDirectoryError(
            f"expected an empty output directory, got {path} with {_some_names(path)}; "
            f"pass {going_on}overwrite to delete it, or choose another directory"
        )
    refusal = _refusal(path)
    if refusal is not None:
        raise OutputDirectoryError(
            f"overwrite expected a run directory at {path}, got {refusal}; delete it or choose another"
        )


def prepare_output_dir(path: str | Path, *, resume: bool | None, overwrite: bool, shared: bool = False) -> Path:
    """Create the directory of a run, or empty the one there; everything that can be refused is refused before.

    Args:
        path: The directory; created with its parents if absent.
        resume: See :func:`check_output_dir`.
        overwrite: See :func:`check_output_dir`.
        shared: See :func:`check_output_dir`.

    Returns:
        ``path`` as a :class:`~pathlib.Path`; the directory exists.

    Raises:
        ConfigError: See :func:`check_output_dir`.
        OutputDirectoryError: Likewise, or if the directory cannot be made.
    """
    path = Path(path)
    check_output_dir(path, resume=resume, overwrite=overwrite, shared=shared)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    if overwrite:
        _empty(path)
    return path


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


_ABSENT = object()


def _shown(value: object) -> str:
    return "nothing" if value is _ABSENT else json.dumps(value)


def _first_difference(
    old: Mapping[str, Any], new: Mapping[str, Any], harmless: Iterable[str]
) -> tuple[str, str, str] | None:
    """Key, old and new value of the first setting that differs; None if none does."""
    skipped = frozenset(harmless)
    flat_old = _flat({key: value for key, value in old.items() if key not in skipped})
    flat_new = _flat({key: value for key, value in new.items() if key not in skipped})
    for key in sorted(flat_old.keys() | flat_new.keys()):
        before, after = flat_old.get(key, _ABSENT), flat_new.get(key, _ABSENT)
        if before != after:
            return key, _shown(before), _shown(after)
    return None


class RunDirectory:
    """The directory of one run: ``config.json``, ``environment.json`` and ``metrics.jsonl``.

    A directory that already holds a config is resumed: its config must equal the new one, except for
    ``harmless`` keys, and the first config and environment are kept.

    Args:
        path: The directory; created if absent. See :func:`prepare_output_dir` for the flags.
        config: The resolved arguments, plain values.
        harmless: Top-level keys that may differ on resume.
        shared: See :func:`check_output_dir`.

    Raises:
        ConfigError: If a launcher has started several processes that do not share the run.
        OutputDirectoryError: If the stored config differs (names the key) or is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, object],
        *,
        harmless: Iterable[str] = HARMLESS_KEYS,
        shared: bool = False,
    ) -> None:
        if not shared:
            check_one_process("a run directory is written")
        self.path = Path(path)
        self.config: dict[str, Any] = plain(config)
        skipped = frozenset(harmless)
        self.key = digest({name: value for name, value in self.config.items() if name not in skipped}, 16)
        """Of the settings that touch a number: what the run is made of, see :func:`~rlkd.records.once`."""
        self.path.mkdir(parents=True, exist_ok=True)
        stored = self.path / "config.json"
        self.resumed = stored.exists()
        if self.resumed:
            self._check(read_object(stored), harmless)
        # First: it marks the directory as a run of ours.
        self._record_environment()
        if not self.resumed:
            # Last: a directory with a config is one whose other files are there.
            write_json_atomic(stored, self.config)

    def _check(self, stored: dict[str, Any], harmless: Iterable[str]) -> None:
        difference = _first_difference(stored, self.config, harmless)
        if difference is not None:
            key, before, after = difference
            raise OutputDirectoryError(
                f"{self.path} was started with {key} = {before}, got {after}; "
                f"resume with the same {key}, or choose another directory"
            )

    def _record_environment(self) -> None:
        path = self.path / RUN_MARKER
        now = environment()
        if not (self.resumed and path.exists()):
            write_json_atomic(path, now)
            return
        difference = _first_difference(read_object(path), now, ())
        if difference is not None:
            logger.warning("%s: %s was %s when the run began and is %s now", self.path, *difference)

    @property
    def metrics_path(self) -> Path:
        """Where the metrics are: ``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    def log(self, step: int, /, **values: object) -> None:
        """Append one line of metrics.

        No time is recorded: two runs with one seed write the same bytes.

        Args:
            step: The step the values belong to; >= 0.
            **values: ``group/name`` to a number or a list of numbers, for example
                ``**{"student/loss": 0.3}``; NaN is written as ``null``.

        Raises:
            ConfigError: If a key is not ``group/name``.
        """
        for key in values:
            if not _METRIC_KEY.fullmatch(key):
                raise ConfigError(f"expected a metric key like 'student/loss', got {key!r}; name its group first")
        append_jsonl(self.metrics_path, {"step": int(step), **values})

    def metrics(self) -> list[dict[str, Any]]:
        """Read the metrics back, one mapping a line, each with ``step``."""
        return read_jsonl(self.metrics_path)

    def rewind(self, step: int, *, without: str | None = None) -> None:
        """Drop metrics after ``step``: a run resumed from a checkpoint logs those steps again.

        Args:
            step: The step of the checkpoint; its own metrics are kept.
            without: Drop lines that hold this key too: what is said once, at the end.
        """
        records = self.metrics()
        kept = [record for record in records if record.get("step", 0) <= step and without not in record]
        if len(kept) != len(records):
            write_text_atomic(self.metrics_path, "".join(json.dumps(record) + "\n" for record in kept))
