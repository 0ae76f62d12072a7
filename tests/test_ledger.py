"""The ledger: a budget that holds whatever dies, and nothing that is paid twice."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import LABELS, task_of_texts

from rlkd.asking.ledger import Ledger
from rlkd.asking.prices import Price
from rlkd.errors import CacheError, ConfigError, TeacherError, UnknownNameError
from rlkd.models.served import Endpoint, ServedTeacher
from rlkd.models.teachers import CallableTeacher

pytest.importorskip("openai")

KEY = "sk-of-the-ledger"
SERVER = Path(__file__).with_name("billing_server.py")


def task(rows=60):
    made = task_of_texts(rows)
    return replace(made, table=replace(made.table, texts=tuple(f"text number {row}" for row in range(rows))))


def own(name="own", log=None, die_at=None):
    """A model of one's own: what it says follows from the text."""

    def logits(texts):
        if log is not None:
            log.extend(texts)
        if die_at is not None and any(text.endswith(f" {die_at}") for text in texts):
            raise RuntimeError("out of memory")
        return np.array([[float(len(text)), float(sum(map(ord, text)) % 7), 1.0] for text in texts], np.float32)

    return CallableTeacher(name, logits, label_names=LABELS, identity=f"{name}-1")


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("rlkd.models.served.FIRST_PAUSE", 0.01)


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
    def billed(self):
        """Text to how often an answer was billed."""
        return Counter(self.log.read_text(encoding="utf-8").splitlines()) if self.log.exists() else Counter()

    def teacher(self, **how):
        url = f"http://127.0.0.1:{self.port}/v1"
        how = {"template": "{text}\n{labels}", "votes": 1, "concurrency": 4, "retries": 1} | how
        return ServedTeacher("llm", LABELS, Endpoint(model="m", base_url=url, **how))


@pytest.fixture
def server(tmp_path):
    made = Billing(tmp_path)
    yield made
    made.kill()


def test_a_ledger_asks_once_and_knows_what_it_paid(tmp_path):
    asked = []
    data, prices = task(), {"own": Price(call=0.5)}
    ledger = Ledger(tmp_path / "l", data, [own(log=asked), own("other")], prices=prices, budget=7.0)
    told = ledger.ask(0, np.arange(10))
    assert told.tolist() == list(range(10))
    assert ledger.spent == 5.0
    assert ledger.ask(0, np.arange(5, 20)).tolist() == list(range(5, 14))  # four more are within the budget
    assert ledger.spent == 7.0
    assert len(asked) == len(set(asked)) == 14
    again = Ledger(tmp_path / "l", data, [own("other"), own(log=asked)], prices=prices, budget=8.0)
    np.testing.assert_array_equal(again.answers.logits[:, 1], ledger.answers.logits[:, 0])
    assert again.spent == 7.0
    assert again.ask(0, np.arange(3)).tolist() == [0]  # at a price of 1
    assert len(asked) == 14
    assert again.counts == [{"answered": 1}, {"answered": 14}]
    assert (tmp_path / "l").exists()
    assert KEY not in "".join(p.read_text(errors="replace") for p in (tmp_path / "l").rglob("*") if p.is_file())


def test_a_teacher_that_fails_costs_nothing_and_can_be_asked_again(tmp_path):
    ledger = Ledger(tmp_path / "l", task(), [own(die_at=7)])
    with pytest.raises(Exception, match="out of memory"):
        ledger.ask(0, np.arange(10))
    assert ledger.spent == 0
    assert Ledger(tmp_path / "l", task(), [own()]).ask(0, np.arange(10)).tolist() == list(range(10))


@settings(max_examples=25, deadline=None)
@given(
    budget=st.floats(0, 40),
    prices=st.lists(st.floats(0.01, 5), min_size=2, max_size=2),
    orders=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 59), st.integers(1, 30)), min_size=1, max_size=6),
)
def test_a_budget_is_a_hard_stop(tmp_path_factory, budget, prices, orders):
    named = {name: Price(call=price) for name, price in zip(("a", "b"), prices, strict=True)}
    folder = tmp_path_factory.mktemp("ledger")
    for some in (orders[: len(orders) // 2], orders[len(orders) // 2 :]):  # the second half by another process
        ledger = Ledger(folder, task(), [own("a"), own("b")], prices=named, budget=budget)
        for teacher, first, count in some:
            ids = np.arange(first, min(60, first + count))
            told = ledger.ask(teacher, ids)
            assert told.tolist() == ids[: len(told)].tolist()
            assert ledger.spent <= budget + 1e-9 * max(1, budget)
            if len(told) < len(ids):
                assert ledger.spent + prices[teacher] > budget
    assert ledger.spent == pytest.approx((ledger.answers.asked * prices).sum())


def test_a_price_by_token_sets_aside_the_most_and_pays_what_was_used(server, tmp_path):
    price = Price.read("0.001+1in+2out")
    teacher = server.teacher(votes=2, max_tokens=5, concurrency=1)
    ledger = Ledger(tmp_path / "l", task(), [teacher], prices={"llm": price}, budget=1.0)
    most = price.most(teacher.prompt("text number 0"), 5, 2)
    assert ledger.prices.tolist() == [pytest.approx(most)]
    told = ledger.ask(0, np.arange(60))
    used = price.of(20, 4, 2)  # the server says 10 tokens in and 2 out of each of two calls
    assert 0 < len(told) < 60
    assert ledger.spent == pytest.approx(len(told) * used)
    assert 1.0 - most < ledger.spent <= 1.0
    assert ledger.prices.tolist() == [pytest.approx(used)]
    assert sum(server.billed.values()) == 2 * len(told)


def test_what_a_model_does_not_answer_is_paid_and_not_asked_again(tmp_path):
    server = Billing(tmp_path, silent=[3, 4])
    ledger = Ledger(tmp_path / "l", task(), [server.teacher()])
    assert len(ledger.ask(0, np.arange(6))) == len(ledger.ask(0, np.arange(6))) == 6
    server.kill()
    assert ledger.answers.answered[:6, 0].tolist() == [True, True, True, False, False, True]
    assert ledger.answers.asked[:6, 0].all()
    assert ledger.spent == 6 == sum(server.billed.values())
    assert ledger.counts == [{"answered": 4, "refused": 1, "no label": 1}]


def test_a_time_out_may_have_been_paid_and_a_wrong_key_was_not(tmp_path, monkeypatch):
    server = Billing(tmp_path, slow=[2], seconds=1.0)
    ledger = Ledger(tmp_path / "l", task(), [server.teacher(timeout=0.3)])
    assert len(ledger.ask(0, np.arange(5))) == 5
    assert ledger.counts == [{"answered": 4, "lost": 1}]
    assert ledger.spent == 5
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    with pytest.raises(TeacherError, match="refused the key"):
        ledger.ask(0, np.arange(5, 10))
    assert ledger.spent == 5
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert len(ledger.ask(0, np.arange(10))) == 10
    again = Ledger(tmp_path / "l", task(), [server.teacher(timeout=5)], ask_again=True)
    assert len(again.ask(0, np.arange(3))) == 3
    assert again.answers.answered[2, 0]
    assert again.spent == 11  # the one that was lost counts twice: it may have been paid twice
    time.sleep(0.8)
    server.kill()
    assert server.billed["text number 2"] == 2


def asker(server, folder, rows, budget, order=1):
    """A process that asks about all rows, in parts; the number of one that begins at once."""
    child = os.fork()
    if child:
        return child
    try:
        ledger = Ledger(folder, task(rows), [server.teacher()], budget=budget)
        for start in range(0, rows, 20):
            ledger.ask(0, np.arange(rows)[::order][start : start + 20])
        os._exit(0)
    except TeacherError:
        os._exit(3)
    finally:
        os._exit(4)


def ended(child):
    """How a process ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def books(server, folder, rows, kills):
    """Nothing was billed twice, nothing billed is unknown, and what is known is what was billed, but for deaths."""
    ledger = Ledger(folder, task(rows), [server.teacher()])
    billed, counts = server.billed, ledger.counts[0]
    assert max(billed.values()) == 1
    answered = {f"text number {row}" for row in np.flatnonzero(ledger.answers.answered[:, 0])}
    assert answered <= set(billed)
    maybe = counts["unsettled"] + counts["lost"]
    assert len(billed) - len(answered) <= maybe <= 4 * kills
    assert ledger.spent == counts["answered"] + maybe
    assert counts["answered"] == len(answered)
    return ledger


def killed_at_random(server, folder, *, rows, times, seed):
    chance = random.Random(seed)
    for _ in range(times):
        child = asker(server, folder, rows, rows)
        time.sleep(chance.uniform(0.1, 0.4))
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL, "it was done before it was killed"
    assert ended(asker(server, folder, rows, rows)) == 0
    ledger = books(server, folder, rows, times)
    assert (ledger.answers.asked[:, 0].sum() + ledger.counts[0]["unsettled"]) == rows
    return ledger.counts[0]["unsettled"]


def test_a_ledger_survives_its_process(tmp_path):
    server = Billing(tmp_path, seconds_each=0.02)
    killed_at_random(server, tmp_path / "l", rows=300, times=2, seed=0)
    server.kill()


@pytest.mark.slow
def test_a_ledger_survives_its_process_twenty_times(tmp_path):
    server = Billing(tmp_path, seconds_each=0.02)
    assert killed_at_random(server, tmp_path / "l", rows=2500, times=20, seed=1) > 10
    server.kill()


def survives_its_server(folder, *, rows, times, seed):
    server, chance = Billing(folder, seconds_each=0.01), random.Random(seed)
    for _ in range(times):
        child = asker(server, folder / "l", rows, rows)
        time.sleep(chance.uniform(0.2, 0.4))
        server.kill()
        assert ended(child) == 3, "an error that says what to do"
        server.start()
    assert ended(asker(server, folder / "l", rows, rows)) == 0
    books(server, folder / "l", rows, times)
    server.kill()


def test_a_ledger_survives_its_server(tmp_path):
    survives_its_server(tmp_path, rows=300, times=1, seed=0)


@pytest.mark.slow
def test_a_ledger_survives_its_server_five_times(tmp_path):
    survives_its_server(tmp_path, rows=1500, times=5, seed=1)


def test_two_processes_share_a_ledger_and_its_budget(tmp_path):
    server = Billing(tmp_path, seconds_each=0.01)
    children = [asker(server, tmp_path / "l", 120, 90, order) for order in (1, -1)]
    assert [ended(child) for child in children] == [0, 0]
    ledger = books(server, tmp_path / "l", 120, 0)
    assert ledger.spent == 90 == sum(server.billed.values())
    server.kill()


def test_another_process_that_is_asking_is_waited_for(tmp_path):
    server = Billing(tmp_path, seconds_each=0.05)
    first, second = (Ledger(tmp_path / "l", task(), [server.teacher()]) for _ in range(2))
    thread = threading.Thread(target=first.ask, args=(0, np.arange(12)))
    thread.start()
    while not sum(server.billed.values()):
        time.sleep(0.01)
    assert len(second.ask(0, np.arange(16))) == 16
    thread.join()
    server.kill()
    assert server.billed == Counter(f"text number {row}" for row in range(16))
    assert second.answers.answered[:16, 0].all()


def test_a_ledger_of_other_data_and_a_damaged_one_are_refused(tmp_path):
    folder = tmp_path / "l"
    Ledger(folder, task(), [own()]).ask(0, np.arange(10))
    with pytest.raises(CacheError, match="other data than task"):
        Ledger(folder, task(59), [own()])
    book = folder / "calls.bin"
    data = bytearray(book.read_bytes())
    book.write_bytes(data + b"a part of an entry")  # its writer was killed
    assert Ledger(folder, task(), [own()]).ask(0, np.arange(20)).tolist() == list(range(20))
    data[100] ^= 1
    book.write_bytes(data)
    with pytest.raises(CacheError, match="is damaged: entry 2"):
        Ledger(folder, task(), [own()])


@pytest.mark.parametrize("text", ["", "one", "1+2", "in", "0", "1in+2in", "-1", "nan"])
def test_what_is_no_price_is_refused(text):
    with pytest.raises(ConfigError, match="price"):
        Price.read(text)


def test_prices_belong_to_teachers(tmp_path):
    assert Price.read("0.01 + 0.5in+1.5out") == Price(call=0.01, tokens_in=0.5, tokens_out=1.5)
    assert Price(call=1, tokens_in=2, tokens_out=3).of(1000, 500, 2) == 2 + 2 + 1.5
    with pytest.raises(ConfigError, match="tells no tokens"):
        Ledger(tmp_path / "a", task(), [own()], prices={"own": Price(tokens_in=1)})
    with pytest.raises(UnknownNameError, match="did you mean 'own'"):
        Ledger(tmp_path / "b", task(), [own()], prices={"owm": Price(call=1)})
