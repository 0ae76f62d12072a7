"""A server that bills what it answers, and is killed and started again, for the tests of who asks it."""

import json
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from networks import LABELS

from rlkd.models.endpoints import Endpoint
from rlkd.models.served import ServedTeacher

KEY = "sk-of-the-ledger"
SERVER = Path(__file__).with_name("billing_server.py")
WORKERS = 4
"""Requests under way at once."""


class Billing:
    """The server of ``billing_server.py`` in a process of its own, which can be killed and started again."""

    def __init__(self, folder, **settings):
        self.log = folder / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._settings = settings
        self.start()

    def start(self):
        arguments = [str(self.port), str(self.log), json.dumps(self._settings)]
        self._process = subprocess.Popen([sys.executable, "-S", str(SERVER), *arguments])
        for _ in range(400):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)
        raise AssertionError("the server does not answer")

    def kill(self):
        self._process.kill()
        self._process.wait()

    @property
    def bills(self):
        """Lines of the log: text, vote, key, tokens in, tokens out."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @property
    def received(self):
        """How many requests have come in, billed or not yet."""
        log = Path(f"{self.log}.received")
        return len(log.read_text().splitlines()) if log.exists() else 0

    @property
    def billed(self):
        """Row to how often an answer was billed."""
        return Counter(int(text.rpartition(" ")[2]) for text, *_ in self.bills)

    def teacher(self, **how):
        url = f"http://127.0.0.1:{self.port}/v1"
        how = {"template": "{text}\n{labels}", "votes": 1, "concurrency": WORKERS, "retries": 2} | how
        return ServedTeacher("llm", LABELS, Endpoint(model="m", base_url=url, **how))


@pytest.fixture
def serve(tmp_path):
    """Starts servers, which end with the test."""
    started = []

    def start(folder=tmp_path, **how):
        folder.mkdir(exist_ok=True)
        started.append(Billing(folder, **how))
        return started[-1]

    yield start
    for server in started:
        server.kill()


def some_more(server, chance):
    """Wait until a random number of answers more is billed, and a random moment longer."""
    most = server.billed.total() + chance.randrange(2, 20)
    while server.billed.total() < most:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.05))
