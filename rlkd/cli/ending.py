"""Being told to end (SIGTERM), by a scheduler or ``docker stop``: a command does then what it does on Ctrl-C.

By default a process that is told to end is gone at once: what it was about to write, such as the cache of answers that
were paid for, is not there. Here the command unwinds, and then ends by the signal, as whoever sent it expects.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TOLD = 128 + signal.SIGTERM
"""Exit code while a command unwinds."""


@contextmanager
def unwinding_when_told() -> Iterator[None]:
    """Let the first SIGTERM raise :class:`SystemExit` with ``TOLD``; a second one ends the process at once.

    In other threads than the main one, which get no signals, and where somebody else handles it, nothing changes.
    """
    usual = threading.current_thread() is threading.main_thread()
    if not usual or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    told: list[int] = []

    def unwind(number: int, frame: FrameType | None) -> None:
        told.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise SystemExit(TOLD)

    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if told:
            signal.raise_signal(signal.SIGTERM)
