"""What several test files share: one thread, no network, and a small task with planted teachers."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported; subprocesses inherit it

import gc
import signal
import socket
from typing import Any

import numpy as np
import pytest
import torch

from rlkd.data.planted import planted, planted_logits
from rlkd.data.task import Task
from rlkd.logit_cache import LogitCache
from rlkd.types import Knowledge

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background, and what tests start would ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Leave what the libraries hold alone: looking through it for garbage takes a quarter of the tests' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            raise OSError(f"tests use no network, got a connection to {address}")
        connect(self, address)

    def refuse_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in (None, "localhost", "127.0.0.1", "::1"):
            raise OSError(f"tests use no network, got a look-up of {host}")
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse_lookup)


@pytest.fixture(scope="session")
def task() -> Task:
    return planted(num_rows=600)


@pytest.fixture(scope="session")
def cache(task: Task) -> LogitCache:
    """Three teachers; teacher k knows domain k."""
    knowledge = Knowledge(by="domain", groups=task.domain_names, matrix=np.eye(3, dtype=bool))
    return LogitCache(list(planted_logits(task).transpose(1, 0, 2)), ["a", "b", "c"], knowledge=knowledge)
