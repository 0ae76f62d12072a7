"""How every command begins to write: the run directory, made, resumed or emptied once nothing can be refused."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from rlkd.records import HARMLESS_KEYS, RunDirectory, prepare_output_dir
from rlkd.types import LogitSource

log = logging.getLogger(__name__)


def tell_if_alone(source: LogitSource) -> bool:
    """Warn, before anything is trained, that one teacher leaves nothing to weight; whether it is so."""
    names = source.teacher_names
    if len(names) > 1:
        return False
    log.warning(
        "teacher %r is alone (K = 1): with one teacher every weighting is the same, so nothing can be learned or "
        "compared but what it adds to labels alone; build the cache with more teachers to weight them",
        *names,
    )
    return True


def open_run(
    output_dir: str | Path,
    config: Mapping[str, object],
    *,
    resume: bool,
    overwrite: bool,
    harmless: Iterable[str] = HARMLESS_KEYS,
    shared: bool = False,
) -> RunDirectory:
    """Make, resume or empty the directory of a run, and record its config.

    An earlier run may be deleted here: a command calls :func:`~rlkd.records.check_output_dir` first, before it reads
    anything, and this once everything else that can be refused was.

    Args:
        output_dir: The directory.
        config: The resolved arguments, plain values.
        resume: Continue what is there.
        overwrite: Delete what is there, if it looks like a run of ours.
        harmless: Top-level keys of the config that may differ on resume.
        shared: Processes of a launcher work on this run together, and the first alone calls this.

    Raises:
        ConfigError: If both flags are set, or a launcher has started several processes that do not share the run.
        OutputDirectoryError: If the directory cannot be used, or the run in it was started with another config.
    """
    folder = prepare_output_dir(output_dir, resume=resume, overwrite=overwrite, shared=shared)
    return RunDirectory(folder, config, harmless=harmless, shared=shared)
