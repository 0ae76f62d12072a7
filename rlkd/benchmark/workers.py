"""Units of work over processes: in order, each after those it needs, none twice though several programs run."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rlkd.errors import RlkdError
from rlkd.processes import Worker, stop, submit, worker_pool

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Unit:
    """Something to be done once, by whichever process gets to it first."""

    name: str
    work: Any
    needs: tuple[str, ...] = ()
    """Names of units that come before this one, whether they succeed or not."""


class Busy:
    """What a worker returns of a unit that another program is at work on: it is asked for again later."""


def run_units(units: Sequence[Unit], make_worker: Callable[[], Worker], processes: int) -> Iterator[tuple[Unit, Any]]:
    """Do units, in order as far as their needs allow.

    Args:
        units: Each after those it needs.
        make_worker: Called once in every process; what it holds must be importable or picklable.
        processes: How many; 1 works in this process.

    Yields:
        Every unit once, with what the worker returned, in the order in which they end.

    Raises:
        RlkdError: A process died.
    """
    if processes <= 1 or len(units) <= 1:
        yield from _run_here(list(units), make_worker())
        return
    with worker_pool(min(processes, len(units)), make_worker) as pool:
        try:
            yield from _run_in_pool(list(units), pool, processes)
        except BrokenProcessPool as error:
            raise RlkdError("a process died, most likely for want of memory; resume with fewer jobs") from error
        except BaseException:
            stop(pool)
            raise


@contextmanager
def one_more_process(units: Sequence[Unit], make_worker: Callable[[], Worker]) -> Iterator[None]:
    """Have units done by another process while this one is at something else.

    What the worker records of them is found by whoever asks for them later; the rest is left undone, and so is a unit
    that fails. The process ends with the block.

    Args:
        units: In the order in which they are done; none needs another.
        make_worker: Called once in the process; what it holds must be importable or picklable.
    """
    pool = worker_pool(1, make_worker)
    try:
        for unit in units:
            submit(pool, unit)
        yield
    finally:
        stop(pool)


def _run_here(waiting: list[Unit], worker: Worker) -> Iterator[tuple[Unit, Any]]:
    turned_away = 0
    while waiting:
        unit = waiting.pop(0)
        unfinished = {other.name for other in waiting}
        result = worker.do(unit) if unfinished.isdisjoint(unit.needs) else Busy()
        if isinstance(result, Busy):
            waiting.append(unit)
            turned_away += 1
            if turned_away >= len(waiting):
                turned_away = 0
                time.sleep(POLL_SECONDS)
        else:
            turned_away = 0
            yield unit, result


def _run_in_pool(waiting: list[Unit], pool: ProcessPoolExecutor, processes: int) -> Iterator[tuple[Unit, Any]]:
    """Keep every process busy; no more is handed out than is being done, so units stay in order."""
    running: dict[Future[Any], Unit] = {}
    resting: list[tuple[float, Unit]] = []
    """Units that another program is at, with the time to ask again."""
    while waiting or running or resting:
        now = time.monotonic()
        awake = [unit for due, unit in resting if due <= now]
        resting = [(due, unit) for due, unit in resting if due > now]
        waiting += awake
        asleep = [unit for _, unit in resting]
        unfinished = {unit.name for unit in (*waiting, *asleep, *running.values())}
        ready = (unit for unit in tuple(waiting) if unfinished.isdisjoint(unit.needs))
        for unit in islice(ready, processes - len(running)):
            waiting.remove(unit)
            running[submit(pool, unit)] = unit
        if not running:
            time.sleep(POLL_SECONDS)
            continue
        for future in wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED).done:
            unit, result = running.pop(future), future.result()
            if isinstance(result, Busy):
                resting.append((time.monotonic() + POLL_SECONDS, unit))
            else:
                yield unit, result
