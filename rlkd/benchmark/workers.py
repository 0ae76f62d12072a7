"""Units of work over processes: in order, each after those it needs, none twice though several programs run."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from rlkd.errors import RlkdError

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
LOCKS_FOLDER = ".locks"


@dataclass(frozen=True)
class Unit:
    """Something to be done once, by whichever process gets to it first."""

    name: str
    work: Any
    needs: tuple[str, ...] = ()
    """Names of units that come before this one, whether they succeed or not."""


class Busy:
    """What a worker returns of a unit that another program is at work on: it is asked for again later."""


class Worker(Protocol):
    """Does units, one after the other, in a process of its own."""

    def do(self, unit: Unit) -> Any:
        """Do a unit; returns something that can be sent between processes, or :class:`Busy`."""


@contextmanager
def claim(folder: Path, name: str) -> Iterator[bool]:
    """Hold the right to do something while other programs may want to do it too.

    The claim is a lock on a file: it ends with the process that holds it, however that dies. What was done while it was
    held must be recorded before it ends, and looked up after it was got.

    Args:
        folder: Where the lock files lie; made if absent.
        name: Of what is to be done.

    Yields:
        Whether the claim is ours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
        with suppress(OSError):  # only of what is recorded: a later claimant finds that, whichever file it has locked
            path.unlink()
    finally:
        lock.release()


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
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used OpenMP can hang
    with ProcessPoolExecutor(
        min(processes, len(units)), mp_context=context, initializer=_start_worker, initargs=(make_worker,)
    ) as pool:
        try:
            yield from _run_in_pool(list(units), pool, processes)
        except BrokenProcessPool as error:
            raise RlkdError("a process died, most likely for want of memory; resume with fewer jobs") from error
        except BaseException:
            _stop(pool)
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
    pool = ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(make_worker,)
    )
    try:
        with _starting_process():
            for unit in units:
                pool.submit(_do_in_worker, unit)
        yield
    finally:
        _stop(pool)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the processes at once; what they are at is done again when it is asked for."""
    for process in list(pool._processes.values()):
        process.terminate()
    pool.shutdown(wait=False, cancel_futures=True)


def _run_here(waiting: list[Unit], worker: Worker) -> Iterator[tuple[Unit, Any]]:
    turned_away = 0
    while waiting:
        unit = waiting.pop(0)
        result = worker.do(unit) if _ready(unit, waiting) else Busy()
        if isinstance(result, Busy):
            waiting.append(unit)
            turned_away += 1
            if turned_away >= len(waiting):
                turned_away = 0
                time.sleep(POLL_SECONDS)
        else:
            turned_away = 0
            yield unit, result


def _ready(unit: Unit, unfinished: Sequence[Unit]) -> bool:
    return not any(other.name in unit.needs for other in unfinished)


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
        for unit in [u for u in waiting if _ready(u, [*waiting, *asleep, *running.values()])]:
            if len(running) >= processes:
                break
            waiting.remove(unit)
            with _starting_process():  # the pool starts one whenever it has fewer than it may
                future = pool.submit(_do_in_worker, unit)
            running[future] = unit
        if not running:
            time.sleep(POLL_SECONDS)
            continue
        for future in wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED).done:
            unit, result = running.pop(future), future.result()
            if isinstance(result, Busy):
                resting.append((time.monotonic() + POLL_SECONDS, unit))
            else:
                yield unit, result


@contextmanager
def _starting_process() -> Iterator[None]:
    """Hold Ctrl-C back until a process is started.

    A start that is cut short leaves a child that waits for the rest of what it is to do; and a child that Ctrl-C
    reaches before it ignores the signal dies of it. Each would print a traceback after the parent's one line.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are handled in the main thread alone
        yield
        return
    if os.name == "posix":
        resource_tracker.ensure_running()  # its start would end what is blocked below
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    blocks = hasattr(signal, "pthread_sigmask")  # what is blocked stays blocked in the child
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if blocks else None
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


_worker: Worker | None = None


def _start_worker(make_worker: Callable[[], Worker]) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = make_worker()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for units forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do_in_worker(unit: Unit) -> Any:
    assert _worker is not None
    return _worker.do(unit)
