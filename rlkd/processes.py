"""Processes beside this one that do work when they are asked: how they start, end, and leave Ctrl-C alone."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, Protocol


class Worker(Protocol):
    """Does pieces of work, one after the other, in a process of its own."""

    def do(self, work: Any) -> Any:
        """Do one; returns something that can be sent between processes."""


def worker_pool(processes: int, make_worker: Callable[[], Worker]) -> ProcessPoolExecutor:
    """Processes that each have a worker; none is started before there is work.

    Args:
        processes: At most so many.
        make_worker: Called once in every process; what it holds must be importable or picklable.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used OpenMP can hang
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(make_worker,))


def submit(pool: ProcessPoolExecutor, work: Any) -> Future[Any]:
    """Hand work to a process of :func:`worker_pool`."""
    with _starting_process():  # the pool starts one whenever it has fewer than it may
        return pool.submit(_do_in_worker, work)


def stop(pool: ProcessPoolExecutor) -> None:
    """End the processes at once; what they are at is done again when it is asked for."""
    for process in list(pool._processes.values()):
        process.terminate()
    pool.shutdown(wait=False, cancel_futures=True)


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


def _do_in_worker(work: Any) -> Any:
    assert _worker is not None
    return _worker.do(work)
