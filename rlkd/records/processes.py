"""How many processes a launcher has started: one writes a run directory, and several must know of one another."""

import os
from collections.abc import Iterable, Mapping

from rlkd.errors import ConfigError

WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where torchrun and the MPI launchers say how many processes there are."""
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Where they say which of them one is."""

LOCAL_RANKS = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
"""Where they say which of those on its machine one is."""


def processes_started(environment: Mapping[str, str] | None = None) -> int:
    """How many processes the launcher of this one has started; 1 without a launcher."""
    return _told(WORLD_SIZES, os.environ if environment is None else environment, 1)


def process_rank(environment: Mapping[str, str] | None = None) -> int:
    """Which of the launcher's processes this one is, from 0; 0 without a launcher."""
    return _told(RANKS, os.environ if environment is None else environment, 0)


def rank_on_machine(environment: Mapping[str, str] | None = None) -> int:
    """Which of the launcher's processes on this machine this one is, from 0; where that is not said, which of all."""
    told = os.environ if environment is None else environment
    return _told(LOCAL_RANKS, told, process_rank(told))


def _told(names: Iterable[str], environment: Mapping[str, str], default: int) -> int:
    return max((int(environment[name]) for name in names if environment.get(name, "").isdigit()), default=default)


def check_launcher(environment: Mapping[str, str] | None = None) -> None:
    """Refuse to be the one process of a launcher that was asked for several.

    ``accelerate launch --cpu --num_processes 2`` is one: it names a meeting place for its processes, starts one, and
    says nothing.

    Raises:
        ConfigError: Says how several are started.
    """
    told = os.environ if environment is None else environment
    launched = "ACCELERATE_MIXED_PRECISION" in told and "MASTER_PORT" in told
    if launched and not any(name in told for name in WORLD_SIZES):
        raise ConfigError(
            "expected the processes that accelerate launch was asked for, got this one alone (it starts one where "
            "--cpu is set); use torchrun --nproc-per-node N, or --num_processes 1 and no MASTER_PORT"
        )


def check_one_process(what: str) -> None:
    """Refuse to do in each of several processes what is done by one.

    Args:
        what: For the message, such as ``"a run directory is written"``.

    Raises:
        ConfigError: A launcher has started several.
    """
    check_launcher()
    count = processes_started()
    if count > 1:
        raise ConfigError(
            f"{what} by one process, got {count} from a launcher; start it without one, --jobs works on several "
            "students at once (rlkd distill, rlkd cache and trainers in scripts of your own may have several processes)"
        )
