"""Ctrl-C and the request to end: nothing more is begun, what is under way is waited for, and then the process ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Hold back the signals that end a process; the first sets the event that is given, and acts at the end.

    The second acts at once. In other threads than the main one, which get no signals, nothing is held back.
    """
    stopped, came = threading.Event(), list[int]()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        stopped.set()
        if len(came) > 1:
            restore()
            signal.raise_signal(number)

    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}

    def restore() -> None:
        for number, handler in before.items():
            if handler is not None:  # of another language than Python: it cannot be put back
                signal.signal(number, handler)

    try:
        yield stopped
    finally:
        restore()
        if len(came) == 1:
            signal.raise_signal(came[0])
