"""The ledger: a budget that holds whatever dies, and nothing that is paid twice."""

import logging
import os
import random
import re
import shlex
import shutil
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from billing import KEY, WORKERS, Billing, serve, some_more  # noqa: F401
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from networks import LABELS, task_of_texts
from typer.testing import CliRunner

from rlkd.asking.header import Header
from rlkd.asking.ledger import Ledger
from rlkd.asking.prices import UNIT, Price
from rlkd.cli import app
from rlkd.errors import CacheError, ConfigError, TeacherError, UnknownNameError
from rlkd.models.endpoints import Endpoint
from rlkd.models.served import ServedTeacher
from rlkd.models.teachers import CallableTeacher

pytest.importorskip("openai")
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # of fork


def task(rows=60):
    made = task_of_texts(rows)
    return replace(made, table=replace(made.table, texts=tuple(f"text number {row}" for row in range(rows))))


def own(name="own", log=None, die_at=None, **about):
    """A model of one's own: what it says follows from the text."""

    def logits(texts):
        if log is not None:
            log.extend(texts)
        if die_at is not None and any(text.endswith(f" {die_at}") for text in texts):
            raise RuntimeError("out of memory")
        return np.array([[float(len(text)), float(sum(map(ord, text)) % 7), 1.0] for text in texts], np.float32)

    return CallableTeacher(name, logits, **{"label_names": LABELS, "identity": f"{name}-1"} | about)


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("rlkd.models.endpoints.FIRST_PAUSE", 0.01)


# -- what it knows ---------------------------------------------------------------------------------


def test_a_ledger_asks_once_and_knows_what_it_paid(tmp_path):
    asked = []
    data, prices, folder = task(), {"own": 0.1}, tmp_path / "l"
    ledger = Ledger(folder, data, [own(log=asked), own("other")], prices=prices, budget=1.4)
    assert (ledger.spent, ledger.prices.tolist(), folder.exists()) == (0.0, [0.1, 1.0], False)
    assert ledger.ask(0, np.arange(10)).tolist() == list(range(10))
    assert ledger.spent == 1.0
    assert ledger.ask(0, np.arange(5, 20)).tolist() == list(range(5, 14))  # four more are within the budget
    assert ledger.spent == 1.4
    assert len(asked) == len(set(asked)) == 14
    again = Ledger(folder, data, [own("other"), own(log=asked), own("new")], prices=prices, budget=3.4)
    np.testing.assert_array_equal(again.answers.logits[:, 1], ledger.answers.logits[:, 0])
    assert again.spent == 1.4
    assert again.ask(0, np.arange(3)).tolist() == [0, 1]  # at a price of 1
    assert again.ask(1, np.arange(14)).tolist() == list(range(14))  # known: no budget is needed
    assert len(asked) == 14
    assert again.counts == [{"answered": 2}, {"answered": 14}, {}]
    assert (again.spent, again.spent_by.tolist()) == (3.4, [2.0, 1.4, 0.0])


def test_a_teacher_that_fails_costs_nothing_and_can_be_asked_again(tmp_path):
    ledger = Ledger(tmp_path / "l", task(), [own(die_at=7)])
    with pytest.raises(Exception, match="out of memory"):
        ledger.ask(0, np.arange(10))
    assert (ledger.spent, ledger.counts) == (0.0, [{"not sent": 10}])
    assert ledger.ask(0, np.arange(7)).tolist() == list(range(7))
    assert Ledger(tmp_path / "l", task(), [own()]).ask(0, np.arange(10)).tolist() == list(range(10))


def test_an_answer_that_is_none_is_refused_and_not_kept(tmp_path):
    """Of a teacher that does not look at what it says."""
    broken = own()
    broken.logits = lambda task, ids, **limits: torch.full((len(ids), 3), torch.nan)
    ledger = Ledger(tmp_path / "l", task(), [broken])
    with pytest.raises(TeacherError, match=r"expected finite logits of shape \(10, 3\) .* 30 are not finite"):
        ledger.ask(0, np.arange(10))
    assert (ledger.spent, ledger.answers.asked.any()) == (0.0, False)


def test_who_is_paid_is_not_asked_again_of_what_may_have_been_paid_for(tmp_path, caplog):
    """A function that says so of itself is treated like a served teacher."""
    failing = own(die_at=7)
    failing.paid = True
    ledger = Ledger(tmp_path / "l", task(), [failing], budget=12, batch_size=5)
    with pytest.raises(Exception, match="out of memory"):
        ledger.ask(0, np.arange(10))
    assert (ledger.spent, ledger.counts) == (10.0, [{"answered": 5, "unsettled": 5}])
    whole = own()
    whole.paid = True
    again = Ledger(tmp_path / "l", task(), [whole], budget=12)
    assert "may have been paid for 5 answers that never came (rows 5, 6, 7, 8, 9)" in caplog.text
    assert again.ask(0, np.arange(20)).tolist() == list(range(12))
    assert (again.spent, again.unsettled.tolist(), again.answers.answered.sum()) == (12.0, [5], 7)
    caplog.clear()
    twice = Ledger(tmp_path / "l", task(), [whole], budget=15, ask_again=True)
    assert "asked again, and may be paid twice" in caplog.text
    assert twice.ask(0, np.arange(20)).tolist() == list(range(8))  # three of five, for both count
    assert (twice.spent, twice.unsettled.tolist()) == (15.0, [2])


# -- budgets ---------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    budget=st.one_of(st.floats(0, 40), st.sampled_from([0.3, 0.7, 2.1])),
    prices=st.lists(st.one_of(st.floats(1e-3, 5), st.sampled_from([0.1, 0.07])), min_size=2, max_size=2),
    orders=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 59), st.integers(1, 30)), min_size=1, max_size=6),
    batch_size=st.integers(1, 40),
)
def test_a_budget_is_a_hard_stop(tmp_path_factory, budget, prices, orders, batch_size):
    named, folder = dict(zip("ab", prices, strict=True)), tmp_path_factory.mktemp("ledger")
    for some in (orders[: len(orders) // 2], orders[len(orders) // 2 :]):  # the second half by another one
        ledger = Ledger(folder, task(), [own("a"), own("b")], prices=named, budget=budget, batch_size=batch_size)
        for teacher, first, count in some:
            ids = np.arange(first, min(60, first + count))
            told = ledger.ask(teacher, ids)
            assert told.tolist() == ids[: len(told)].tolist()
            assert ledger.spent <= budget
            if len(told) < len(ids):
                assert ledger.spent + ledger.prices[teacher] > budget
    assert ledger.spent == pytest.approx((ledger.answers.asked * ledger.prices).sum())


@settings(max_examples=5, deadline=None, phases=[Phase.generate])  # shrinking takes minutes
@given(
    concurrency=st.integers(1, 9),
    votes=st.integers(1, 3),
    price=st.tuples(st.floats(0, 0.1), st.floats(0, 900), st.floats(1, 900)),
    share=st.floats(0, 1.1),
    order=st.permutations(range(20)),
)
def test_a_budget_by_token_is_a_hard_stop_by_the_servers_own_bill(tmp_path_factory, concurrency, votes, **drawn):
    folder, (call, read, wrote) = tmp_path_factory.mktemp("ledger"), drawn["price"]
    server = Billing(folder, tokens_out=5, faults=0.3)
    price = Price(call=call, million_in=read, million_out=wrote)
    how = {"concurrency": concurrency, "votes": votes, "max_tokens": 5, "retries": 3}
    every = price.of(20 * votes * 35, 20 * votes * 3, 20 * votes) / UNIT  # about what all cost
    ledger = Ledger(folder / "l", task(), [server.teacher(**how)], prices={"llm": price}, budget=drawn["share"] * every)
    try:
        told = ledger.ask(0, np.array(drawn["order"]))
    finally:
        server.kill()
    bill = sum(price.of(read_by, written) for _, _, _, read_by, written in server.bills) / UNIT
    assert bill - 1e-6 <= ledger.spent <= ledger.budget
    if not ledger.counts[0]["unsettled"] + ledger.counts[0]["lost votes"]:
        assert ledger.spent == pytest.approx(bill, abs=1e-6)
    if len(told) < 20:
        ahead = price.most(server.teacher(**how).prompt("text number 00"), 256, 5, votes) / UNIT
        assert ledger.spent + ahead > ledger.budget


def test_a_price_by_token_sets_aside_the_most_and_pays_what_was_used(serve, tmp_path):
    server, price = serve(tokens_in=10), Price.read("0.001 + 1/1k in + 2/1k out")
    teacher = server.teacher(votes=2, max_tokens=5)
    most = price.most(teacher.prompt("text number 0"), 256, 5, 2) / UNIT
    ledger = Ledger(tmp_path / "l", task(), [teacher], prices={"llm": price}, budget=0.6)
    assert ledger.prices.tolist() == [most]
    told = ledger.ask(0, np.arange(60))
    used = price.of(20, 3, 2) / UNIT  # one and two tokens of two votes
    assert 0 < len(told) < 60
    assert ledger.spent == pytest.approx(len(told) * used)
    assert 0.6 - 1.1 * most < ledger.spent <= 0.6
    assert ledger.prices.tolist() == [pytest.approx(used)]
    assert sum(server.billed.values()) == 2 * len(told)
    assert len({key for _, _, key, *_ in server.bills}) == 2 * len(told)


def test_a_server_that_tells_no_tokens_is_paid_the_most_and_one_that_tells_too_many_is_left(serve, tmp_path):
    silent, prices = serve(silent_on_tokens=True), {"llm": "1/1k in"}
    ledger = Ledger(tmp_path / "a", task(), [silent.teacher()], prices=prices)
    most = ledger.prices[0]
    ledger.ask(0, np.arange(10))
    assert ledger.spent == pytest.approx(10 * most)
    greedy = serve(tokens_in=400)
    ledger = Ledger(tmp_path / "b", task(), [greedy.teacher(concurrency=1)], prices=prices)
    with pytest.raises(TeacherError, match=r"counts 400 tokens read and 1 written for row 0, .* raise overhead_tokens"):
        ledger.ask(0, np.arange(10))
    assert ledger.spent == pytest.approx(0.4)  # what is true, once


# -- served teachers -------------------------------------------------------------------------------


def test_what_a_model_does_not_answer_is_not_asked_again(serve, tmp_path):
    server = serve(silent=[3, 4], long=[5])
    ledger = Ledger(tmp_path / "l", task(), [server.teacher()])
    assert len(ledger.ask(0, np.arange(7))) == len(ledger.ask(0, np.arange(7))) == 7
    assert ledger.answers.answered[:7, 0].tolist() == [True, True, True, False, False, False, True]
    assert ledger.answers.asked[:7, 0].all()
    assert ledger.spent == 6 == sum(server.billed.values())
    assert ledger.counts == [{"answered": 4, "refused": 1, "no label": 1, "rejected": 1}]


def test_a_time_out_may_have_been_paid_and_a_wrong_key_was_not(serve, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    server = serve(slow=[2], seconds=0.6)
    ledger = Ledger(tmp_path / "l", task(), [server.teacher(timeout=0.3)])
    assert len(ledger.ask(0, np.arange(5))) == 5
    assert ledger.counts == [{"answered": 4, "unsettled": 1}]
    assert ledger.spent == 5
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    with pytest.raises(TeacherError, match="refused the key") as refused:
        ledger.ask(0, np.arange(5, 10))
    assert ledger.spent == 5
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert len(ledger.ask(0, np.arange(10))) == 10
    again = Ledger(tmp_path / "l", task(), [server.teacher(timeout=5)], ask_again=True)
    assert len(again.ask(0, np.arange(3))) == 3
    assert again.answers.answered[2, 0]
    assert again.spent == 11  # the one that was lost counts twice: it may have been paid twice
    assert again.counts[0]["answered"] == 10
    assert 1 <= again.counts[0].pop("not sent") <= WORKERS  # under a wrong key
    assert server.billed[2] == 2
    assert len({key for text, _, key, *_ in server.bills if text == "text number 2"}) == 1  # by which it can be told
    everything = "".join(p.read_text(errors="replace") for p in (tmp_path / "l").rglob("*") if p.is_file())
    assert "Sending HTTP Request" in caplog.text, "the client tells what it does"
    assert "sk-" not in everything + str(refused.value) + caplog.text


@pytest.mark.parametrize("fault", ["cut", "cut billed", "502"])
def test_a_server_that_loses_row_after_row_is_left_before_the_budget_is_gone(serve, tmp_path, fault):
    ledger = Ledger(tmp_path / "l", task(), [serve(fault=fault).teacher()], budget=50)
    with pytest.raises(TeacherError, match=r"asked about \d rows in succession and no answer came"):
        ledger.ask(0, np.arange(60))
    assert 8 <= ledger.spent == ledger.counts[0]["unsettled"] < 8 + WORKERS


def test_a_row_that_lost_a_vote_is_answered_by_the_others(serve, tmp_path):
    server = serve(faults=0.3, seed=3)
    ledger = Ledger(tmp_path / "l", task(), [server.teacher(votes=4, retries=3)])
    ledger.ask(0, np.arange(40))
    votes = Counter(Counter(int(text.rpartition(" ")[2]) for text, *_ in server.bills).values())
    assert votes[4] > 10 < 40 - votes[4], "some lost votes"
    p = np.exp(ledger.answers.logits[ledger.answers.answered[:, 0], 0])
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    surest = {round(float(value), 4) for value in p.max(1)}
    assert surest == {round((n + 0.5) / (n + 1.5), 4) for n in (1, 2, 3, 4)}  # the fewer, the less sure
    counts = ledger.counts[0]
    assert 0 < counts["lost votes"] <= 40 - votes[4]
    assert len(server.bills) <= ledger.spent <= len(server.bills) + counts["lost votes"] + 4 * counts["unsettled"]


def test_rows_that_wait_for_their_minute_are_not_under_way(serve, tmp_path):
    server = serve()
    child = asker(server, tmp_path / "l", 60, 60, per_minute=240)
    while len(server.bills) < 3:
        time.sleep(0.01)
    time.sleep(0.1)  # what was under way is settled; four others wait
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    assert books(server, tmp_path / "l", 60, 1).answers.asked.sum() < 3 + WORKERS


def test_whatever_goes_wrong_no_row_is_billed_twice_and_none_is_forgotten(serve, tmp_path):
    server = serve(faults=0.4, seed=0)
    ledger = Ledger(tmp_path / "l", task(), [server.teacher(retries=4)])
    assert len(ledger.ask(0, np.arange(60))) == 60
    books(server, tmp_path / "l", 60, most=60)
    assert 5 < ledger.counts[0]["unsettled"] < 40


# -- deaths ----------------------------------------------------------------------------------------


def asker(server, folder, rows, budget, order=1, **how):
    """A process that asks about all rows, in parts; the number of one that begins at once."""
    child = os.fork()
    if child:
        return child
    code = 4
    try:
        ledger = Ledger(folder, task(rows), [server.teacher(**how)], budget=budget)
        for start in range(0, rows, 20):
            ledger.ask(0, np.arange(rows)[::order][start : start + 20])
        code = 0
    except TeacherError:
        code = 3
    except KeyboardInterrupt:
        code = 5
    finally:
        os._exit(code)


def ended(child):
    """How a process ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def books(server, folder, rows, most):
    """Nothing was billed twice, nothing billed is unknown, and what is known is what was billed, but for deaths."""
    ledger = Ledger(folder, task(rows), [server.teacher()])
    billed, counts = server.billed, ledger.counts[0]
    answered, asked = set(np.flatnonzero(ledger.answers.answered[:, 0])), set(np.flatnonzero(ledger.answers.asked))
    assert max(billed.values()) == 1
    assert answered <= set(billed) <= asked
    assert counts["answered"] == len(answered)
    assert len(billed) - len(answered) <= counts["unsettled"] == len(asked) - len(answered) <= most
    assert ledger.spent == len(asked)
    return ledger


def killed_at_random(server, folder, *, rows, times, seed):
    chance = random.Random(seed)
    for _ in range(times):
        child = asker(server, folder, rows, rows)
        some_more(server, chance)
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL, "it was done before it was killed"
        time.sleep(0.05)  # what was under way is billed
        books(server, folder, rows, WORKERS * times)
    assert ended(asker(server, folder, rows, rows)) == 0
    ledger = books(server, folder, rows, WORKERS * times)
    assert ledger.answers.asked.all()
    return ledger, server.billed.total()


def test_a_ledger_survives_its_process(serve, tmp_path):
    ledger, _ = killed_at_random(serve(seconds_each=0.06), tmp_path / "l", rows=60, times=2, seed=0)
    assert ledger.unsettled[0] > 0


@pytest.mark.slow
def test_a_ledger_survives_its_process_twenty_times(serve, tmp_path):
    ledger, billed = killed_at_random(serve(seconds_each=0.03), tmp_path / "l", rows=1000, times=20, seed=1)
    print(f"{ledger.counts[0]}, {billed} billed, spent {ledger.spent:g}")  # noqa: T201
    assert ledger.unsettled[0] > 10


def survives_its_server(server, folder, *, rows, times, seed):
    chance = random.Random(seed)
    for _ in range(times):
        child = asker(server, folder, rows, rows)
        some_more(server, chance)
        server.kill()
        assert ended(child) == 3, "an error that says what to do"
        server.start()
    assert ended(asker(server, folder, rows, rows)) == 0
    ledger = books(server, folder, rows, 2 * WORKERS * times)
    return ledger, server.billed.total()


def test_a_ledger_survives_its_server(serve, tmp_path):
    ledger, _ = survives_its_server(serve(seconds_each=0.08), tmp_path / "l", rows=40, times=1, seed=0)
    assert ledger.unsettled[0] > 0


@pytest.mark.slow
def test_a_ledger_survives_its_server_five_times(serve, tmp_path):
    server = serve(seconds_each=0.1)
    ledger, billed = survives_its_server(server, tmp_path / "l", rows=300, times=5, seed=1)
    assert ledger.unsettled[0] > 5
    print(f"{ledger.counts[0]}, {billed} billed, spent {ledger.spent:g}")  # noqa: T201


def test_two_processes_share_a_ledger_and_its_budget(serve, tmp_path):
    server = serve(seconds_each=0.01)
    children = [asker(server, tmp_path / "l", 60, 45, order) for order in (1, -1)]
    assert [ended(child) for child in children] == [0, 0]
    ledger = books(server, tmp_path / "l", 60, 0)
    assert ledger.spent == 45 == sum(server.billed.values())


@pytest.mark.slow
def test_two_processes_that_are_killed_again_and_again_share_a_ledger(serve, tmp_path):
    server, chance, rows = serve(seconds_each=0.03), random.Random(2), 800
    for _ in range(10):
        children = [asker(server, tmp_path / "l", rows, rows, order) for order in (1, -1)]
        some_more(server, chance)
        os.kill(children[0], signal.SIGKILL)
        some_more(server, chance)
        os.kill(children[1], signal.SIGKILL)
        assert [ended(child) for child in children] == [-signal.SIGKILL] * 2
    children = [asker(server, tmp_path / "l", rows, rows, order) for order in (1, -1)]
    assert [ended(child) for child in children] == [0, 0]
    ledger = books(server, tmp_path / "l", rows, 20 * WORKERS)
    print(f"{ledger.counts[0]}, {server.billed.total()} billed, spent {ledger.spent:g}")  # noqa: T201
    assert ledger.answers.asked.all()
    assert ledger.unsettled[0] > 20


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 5), (signal.SIGTERM, -signal.SIGTERM)])
def test_who_is_told_to_end_waits_for_what_is_under_way(serve, tmp_path, number, code):
    server = serve(seconds_each=0.05)
    child = asker(server, tmp_path / "l", 300, 900, votes=3)
    while len(server.bills) < 13:
        time.sleep(0.01)
    os.kill(child, number)
    assert ended(child) == code
    ledger = Ledger(tmp_path / "l", task(300), [server.teacher(votes=3)])
    assert not ledger.unsettled.any()
    assert set(server.billed.values()) == {3}, "all votes of a row that is begun"
    assert set(ledger.counts[0]) <= {"answered", "not sent"}
    assert 13 < len(server.bills) == ledger.spent == 3 * ledger.answers.answered.sum() < 90
    assert not list((tmp_path / "l" / "owners").iterdir()), "nobody has died"


def test_another_process_that_dies_while_it_is_waited_for_is_not_asked_after(serve, tmp_path):
    server = serve(slow=[0, 1, 2, 3], seconds=1.0)
    child = asker(server, tmp_path / "l", 12, 12)
    ledger = Ledger(tmp_path / "l", task(12), [server.teacher()])
    while server.received < WORKERS:
        time.sleep(0.01)
    threading.Timer(0.1, os.kill, (child, signal.SIGKILL)).start()
    assert len(ledger.ask(0, np.arange(12))) == 12
    assert ended(child) == -signal.SIGKILL
    while server.billed.total() < 12:  # the four are answered to nobody, and billed
        time.sleep(0.01)
    assert server.billed == Counter(range(12))
    assert (ledger.unsettled.tolist(), ledger.answers.answered.sum(), ledger.spent) == ([4], 8, 12)


def test_another_process_that_is_asking_is_waited_for(serve, tmp_path):
    server = serve(seconds_each=0.05)
    first, second = (Ledger(tmp_path / "l", task(), [server.teacher()]) for _ in range(2))
    thread = threading.Thread(target=first.ask, args=(0, np.arange(12)))
    thread.start()
    while not server.bills:
        time.sleep(0.01)
    assert len(second.ask(0, np.arange(16))) == 16
    thread.join()
    assert server.billed == Counter(range(16))
    assert second.answers.answered[:16, 0].all()
    assert not list((tmp_path / "l" / "owners").iterdir())


def test_while_all_answers_are_looked_at_nobody_adds_one(tmp_path):
    mine, other = (Ledger(tmp_path / "l", task(), [own()]) for _ in range(2))
    with mine.standing_still() as answers:
        assert not answers.asked.any()
    mine.ask(0, np.arange(5))
    other.ask(0, np.arange(10))
    thread = threading.Thread(target=other.ask, args=(0, np.arange(20)))
    with mine.standing_still() as answers:
        assert answers.answered.sum() == 10, "another one's too"
        thread.start()
        time.sleep(0.1)
        assert thread.is_alive()
    thread.join()
    assert other.answers.answered.sum() == 20


# -- what the README shows -------------------------------------------------------------------------

ASKING = Path(__file__).parents[1] / "rlkd" / "asking" / "README.md"
PAGE = ASKING.read_text(encoding="utf-8").split("## Your teachers are LLMs")[1]


def test_what_the_readme_shows_runs(serve, tmp_path, monkeypatch):
    server, (endpoint,) = serve(), re.findall(r"```json\n(.*?)\n```", PAGE.split("\n## ")[0])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llms" / "small").mkdir(parents=True)
    address = re.sub(r"http[^\"]*", f"http://127.0.0.1:{server.port}/v1", endpoint)
    (tmp_path / "llms" / "small" / "endpoint.json").write_text(address)
    (tmp_path / "data").mkdir()
    rows = [f"text number {n},{LABELS[n % 3]}" for n in range(60)]
    (tmp_path / "data" / "train.csv").write_text("\n".join(["text,label", *rows]))
    monkeypatch.setenv("LLM_KEY", KEY)
    space = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], space)
    assert set(server.billed.values()) == {3}
    assert len(server.billed) == len(space["told"]) == 20
    assert space["logits"].shape == (20, 3)
    assert space["spent"] == pytest.approx(sum(0.15e-6 * read + 0.6e-6 * wrote for *_, read, wrote in server.bills))
    words = shlex.split(re.search(r"(rlkd ask .*?)\n```", PAGE, re.DOTALL)[1].replace("\\\n", ""))
    (tmp_path / "llms" / "large").mkdir()
    (tmp_path / "llms" / "large" / "endpoint.json").write_text(address.replace("small", "large"))
    asked = CliRunner().invoke(app, words[1:], catch_exceptions=False)
    assert "Nobody was asked" in asked.output
    assert len(server.bills) == 60


# -- what is in the folder -------------------------------------------------------------------------


def test_a_ledger_of_something_else_is_refused(tmp_path):
    folder = tmp_path / "l"
    Ledger(folder, task(), [own()]).ask(0, np.arange(10))
    with pytest.raises(CacheError, match=r"expected a ledger of task 'elements' with data \w+ in .*paid for"):
        Ledger(folder, task(59), [own()])
    with pytest.raises(CacheError, match=r"with max_length 64 in .* with 128"):
        Ledger(folder, task(), [own()], max_length=64)
    with pytest.raises(CacheError, match=r"expected teacher 'own' as it was asked before .* a name of its own"):
        Ledger(folder, task(), [own(identity="own-2")])
    with pytest.raises(TeacherError, match="got 'own' and 'twin', which are the same"):
        Ledger(folder, task(), [own(), own("twin", identity="own-1")])
    with pytest.raises(TeacherError, match="reads texts, task 'elements' has none"):
        Ledger(folder, task_of_texts(vectors=True), [ServedTeacher("llm", LABELS, Endpoint(model="m", votes=1))])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(CacheError, match=r"found thesis\.tex; choose another"):
        Ledger(tmp_path / "other", task(), [own()])


class Founded(type(Path())):
    """A folder in which another process begins a ledger just after it was looked for one."""

    def is_dir(self):
        Ledger(Path(self), task(), [own()]).ask(0, np.arange(3))
        return super().is_dir()


def test_two_processes_may_begin_a_ledger_at_once(tmp_path):
    header = Header(Founded(tmp_path / "l"), task(), [own()], 128)
    assert header.exists()
    assert header.numbers() == [0]


def test_a_damaged_ledger_is_refused_and_a_torn_end_is_none(tmp_path):
    folder, book = tmp_path / "l", tmp_path / "l" / "calls.bin"
    Ledger(folder, task(), [own()]).ask(0, np.arange(10))
    whole = book.read_bytes()
    for torn in (b"a part of an entry", bytes(3 * len(whole))):  # of a process that was killed, a machine that died
        book.write_bytes(whole + torn)
        assert Ledger(folder, task(), [own()]).ask(0, np.arange(20)).tolist() == list(range(20))
    damaged = bytearray(whole)
    damaged[100] ^= 1
    book.write_bytes(damaged)
    with pytest.raises(CacheError, match=r"is damaged: entry 1 of calls\.bin"):
        Ledger(folder, task(), [own()])
    book.write_bytes(whole)
    (folder / "ledger.json").unlink()
    with pytest.raises(CacheError, match=r"has lost its ledger.json"):
        Ledger(folder, task(), [own()])


def test_answers_that_are_gone_stay_paid(tmp_path, caplog):
    asked, folder = [], tmp_path / "l"
    Ledger(folder, task(), [own(log=asked)]).ask(0, np.arange(10))
    shutil.rmtree(folder / "answers")
    ledger = Ledger(folder, task(), [own(log=asked)])
    assert "10 answers of teacher own were paid for and are gone (rows 0, 1, 2, 3, 4, ...)" in caplog.text
    assert len(ledger.ask(0, np.arange(10))) == len(asked) == 10
    assert (ledger.spent, ledger.answers.answered.any()) == (10.0, False)
    ledger = Ledger(folder, task(), [own(log=asked)], ask_again=True)
    assert len(ledger.ask(0, np.arange(4))) == 4
    assert (ledger.spent, ledger.answers.answered.sum(), len(asked)) == (14.0, 4, 14)


@pytest.mark.parametrize(
    "text", ["", "one", "1+2", "1/1k", "0", "1/1k in+2/1M in", "-1", "nan", "1in", "1/2k in", "inf"]
)
def test_what_is_no_price_is_refused(text):
    with pytest.raises(ConfigError, match="price"):
        Price.read(text)


def test_prices_belong_to_teachers(tmp_path):
    assert Price.read("0.01 + 0.5/1k in + 1.5/1M out") == Price(call=0.01, million_in=500, million_out=1.5)
    assert Price(call=1, million_in=2, million_out=3).of(1000, 500, 2) == 2_003_500_000
    assert Price(call=0.1).of(0, 0, 3) == Price(call=0.3).of(0, 0)  # no last bit of a float
    with pytest.raises(ConfigError, match="tells no tokens"):
        Ledger(tmp_path / "a", task(), [own()], prices={"own": "1/1k in"})
    with pytest.raises(UnknownNameError, match="did you mean 'own'"):
        Ledger(tmp_path / "b", task(), [own()], prices={"owm": 1})
    with pytest.raises(ConfigError, match="a budget must be >= 0"):
        Ledger(tmp_path / "c", task(), [own()], budget=-1)
