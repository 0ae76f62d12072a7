"""``rlkd ask`` killed at random moments, its server too, and two at once: no call is paid twice, and none is lost."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from billing import KEY, WORKERS, serve  # noqa: F401
from networks import LABELS, WORDS

from rlkd.asking.ledger import Ledger
from rlkd.asking.prices import UNIT, Price
from rlkd.data import load_task
from rlkd.logit_cache import load_cache
from rlkd.models import load_teachers
from rlkd.records import read_jsonl

pytest.importorskip("openai")

ROWS, VOTES = 600, 3
PRICE = "1 + 20/1k in + 60/1k out"
BUDGET = 100_000
"""More than everything costs."""


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("LLM_KEY", KEY)


class Asking:
    """``rlkd ask`` about a file of texts into one folder, again and again."""

    def __init__(self, folder, server, *, names=("small",), budget=BUDGET, price=PRICE, strategy="all"):
        self.server, self.cache, self.names, self.budget = server, folder / "cache", names, budget
        chance = random.Random(0)
        (folder / "data").mkdir(parents=True)
        with open(folder / "data" / "train.jsonl", "w", encoding="utf-8") as file:
            for number in range(ROWS):
                text = f"{' '.join(chance.choices(WORDS, k=4))} {number}"
                file.write(json.dumps({"text": text, "label": LABELS[number % 3]}) + "\n")
        self.task = load_task(folder / "data")
        self.rows = {int(text.rpartition(" ")[2]): row for row, text in enumerate(self.task.table.texts)}
        for name in names:
            how = {"model": name, "base_url": f"http://127.0.0.1:{server.port}/v1", "key_variable": "LLM_KEY"}
            how |= {"votes": VOTES, "concurrency": WORKERS, "retries": 2, "template": name + " {text}\n{labels}"}
            (folder / "llms" / name).mkdir(parents=True)
            (folder / "llms" / name / "endpoint.json").write_text(json.dumps(how))
        self.teachers = load_teachers([folder / "llms" / name for name in names], self.task)
        self.prices = {name: Price.read(price) for name in names}
        self._words = ["ask", "--task", folder / "data", "--strategy", strategy, "--budget", budget, "--quiet"]
        for name in names:
            self._words += ["--teachers", folder / "llms" / name, "--price", f"{name}={price}"]
        self._words += ["-o", self.cache]
        self._log, self._started = folder / "said", 0

    def start(self):
        """The command in a process of its own."""
        self._started += 1
        said = Path(f"{self._log}-{self._started}")
        with open(said, "w", encoding="utf-8") as file:
            words = [sys.executable, "-m", "rlkd", *map(str, self._words), "--json", f"{said}.json"]
            process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
        process.said = said
        return process

    def ledger(self):
        return Ledger(self.cache / "ledger", self.task, self.teachers, prices=self.prices, budget=self.budget)

    def bills(self):
        """Of each answer that the server billed: teacher, row and vote, to what it costs."""
        found = {}
        for text, vote, _, read, wrote in self.server.bills:
            call = self.names.index(text.partition(" ")[0]), self.rows[int(text.rpartition(" ")[2])], vote
            assert call not in found, "a call was billed twice"
            found[call] = self.prices[self.names[call[0]]].of(read, wrote)
        return found

    def books(self, *, server_died=False):
        """The ledger's own count against the server's log; and the cache, where there is one, against the ledger."""
        ledger, bills = self.ledger(), self.bills()
        votes = Counter(call[:2] for call in bills)
        asked, answered = ledger.answers.asked, ledger.answers.answered
        everything = paid = 0
        for k, teacher in enumerate(self.teachers):
            billed = {row for place, row in votes if place == k}
            known, open_ones = set(np.flatnonzero(answered[:, k])), set(np.flatnonzero(asked[:, k] & ~answered[:, k]))
            assert known <= billed, "an answer that nobody was paid for"
            assert billed <= known | open_ones, "the ledger does not know of a call that was billed"
            assert ledger.counts[k]["answered"] == len(known)
            assert ledger.counts[k]["unsettled"] == len(open_ones)
            assert server_died or all(votes[k, row] == VOTES for row in known)
            texts, price = self.task.table.texts, self.prices[teacher.name]
            most = sum(price.most(teacher.prompt(texts[row]), 256, 16, VOTES) for row in open_ones)
            everything += most + sum(cost for call, cost in bills.items() if call[0] == k and call[1] in known)
            paid += sum(cost for call, cost in bills.items() if call[0] == k)
        assert paid / UNIT <= ledger.spent + 1e-6 <= self.budget + 1e-6
        if not server_died:
            assert ledger.spent == pytest.approx(everything / UNIT)
        if (self.cache / "manifest.json").exists():
            there = answered_in(load_cache(self.cache, self.task, teachers=self.teachers))
            assert not (there & ~answered).any()
        return ledger

    def fewer(self):
        """Who has billed less than all votes about what."""
        counts = Counter(call[:2] for call in self.bills())
        votes = np.array([[counts[k, row] for k in range(len(self.names))] for row in range(ROWS)])
        return votes < VOTES

    def unsettled(self):
        return int(self.ledger().unsettled.sum())


def answered_in(cache):
    return cache.mask_rows(torch.arange(len(cache))).numpy()


def warned_of(process):
    """How many answers a command says may have been paid for: when it began, and at its end."""
    told = re.findall(r"may have been paid for (\d+) answers that never came \(rows \d", process.said.read_text())
    return [int(count) for count in told]


def wait_for(process, condition):
    """Look again and again until something is so; the command goes on meanwhile."""
    while not condition():
        assert process.poll() is None, f"it ended before it was killed: {process.said.read_text()}"
        time.sleep(0.001)


def some_more(asking, process, chance):
    """Wait until a random number of requests more have come in, and a random moment longer."""
    most = asking.server.received + chance.randrange(1, 25)
    wait_for(process, lambda: asking.server.received >= most)
    time.sleep(chance.uniform(0, 0.05))


def writing(asking, process, chance):
    """Wait until it writes the cache, and a random moment longer."""
    before = set(asking.cache.glob(".*.tmp"))
    wait_for(process, lambda: set(asking.cache.glob(".*.tmp")) - before)
    time.sleep(chance.uniform(0, 0.02))


class Killer:
    """Kills a command at random moments, and looks at the books after each."""

    def __init__(self, asking, seed, startup):
        self._asking, self._chance, self._startup = asking, random.Random(seed), startup
        self.kills = Counter()

    def __call__(self, moment):
        before, process = self._asking.unsettled(), self._asking.start()
        number = getattr(self, moment)(process) or signal.SIGKILL
        process.send_signal(number)
        code = process.wait()
        assert code == (130 if number == signal.SIGINT else -number), process.said.read_text()
        time.sleep(0.1)  # what was under way is billed
        ledger = self._asking.books()
        if number != signal.SIGKILL:
            assert ledger.unsettled.sum() == before, "what was under way was waited for"
        if moment not in ("starting", "founding") and before:
            assert warned_of(process)[:1] == [before], "what is unsettled is named"
        self.kills[moment] += 1

    def starting(self, process):
        time.sleep(self._chance.uniform(0, self._startup))

    def founding(self, process):
        wait_for(process, (self._asking.cache / "ledger").exists)
        time.sleep(self._chance.uniform(0, 0.01))

    def asking(self, process):
        some_more(self._asking, process, self._chance)

    def told_to_end(self, process):
        some_more(self._asking, process, self._chance)
        return signal.SIGTERM

    def interrupted(self, process):
        some_more(self._asking, process, self._chance)
        return signal.SIGINT

    def interrupted_and_writing(self, process):
        some_more(self._asking, process, self._chance)
        process.send_signal(signal.SIGINT)
        writing(self._asking, process, self._chance)

    def writing(self, process):
        writing(self._asking, process, self._chance)


def undisturbed(folder, server, **how):
    """The cache of a run that nobody kills, and the seconds before it asks."""
    asking = Asking(folder, server, **how)
    began, process = time.monotonic(), asking.start()
    wait_for(process, lambda: asking.server.received)
    startup = time.monotonic() - began
    assert process.wait() == 0, process.said.read_text()
    assert asking.books().unsettled.sum() == 0
    return load_cache(asking.cache, asking.task), startup


def finished(asking, process, whole, *, server_died=False):
    """A command that has run to its end says what there is, and its cache has all of it, as if nothing had happened."""
    assert process.wait() == 0, process.said.read_text()
    ledger = asking.books(server_died=server_died)
    answered, unsettled = ledger.answers.answered, ledger.unsettled
    cache, rows = load_cache(asking.cache, asking.task), json.loads(Path(f"{process.said}.json").read_text())
    assert [row["unsettled"] for row in rows] == unsettled.tolist()
    assert [row["answered"] for row in rows] == answered.sum(0).tolist()
    assert sum(row["spent"] for row in rows) == pytest.approx(ledger.spent)
    assert read_jsonl(asking.cache / "asked.jsonl")[-1]["spent"] == pytest.approx(ledger.spent)
    told = [count for count in unsettled.tolist() if count]
    assert warned_of(process)[-len(told) :] == told, "what is unsettled is named"
    np.testing.assert_array_equal(answered_in(cache), answered)
    both, ids = answered & answered_in(whole) & ~asking.fewer(), torch.arange(ROWS)
    assert not ((cache.rows(ids) != whole.rows(ids)).any(-1).numpy() & both).any()
    assert not list(asking.cache.glob(".*.tmp"))
    return ledger


def told(ledger, asking, what):
    counts = dict(sum(ledger.counts, Counter()))
    print(f"{what}: {counts}, {len(asking.bills())} calls billed, spent {ledger.spent:g}")  # noqa: T201


@pytest.mark.slow
def test_a_command_survives_being_killed_twenty_times(serve, tmp_path):
    whole, startup = undisturbed(tmp_path / "whole", serve(tmp_path / "a"))
    asking = Asking(tmp_path / "killed", serve(tmp_path / "b", seconds_each=0.1))
    killer, chance = Killer(asking, 1, startup), random.Random(2)
    moments = ["starting"] * 4 + ["asking"] * 8 + ["interrupted_and_writing"] * 3 + ["told_to_end", "interrupted"] * 2
    chance.shuffle(moments)
    for moment in ("starting", "founding", "founding", *moments):
        killer(moment)
    process = asking.start()
    ledger = finished(asking, process, whole)
    assert ledger.answers.asked[asking.task.splits["train"]].all()
    for _ in range(2):  # there is nothing left to ask: what is killed are the start and the end
        killer("writing")
    ledger = finished(asking, asking.start(), whole)
    assert ledger.unsettled.sum() > 8
    assert killer.kills.total() == 24, "four of them by request"
    told(ledger, asking, dict(killer.kills))


@pytest.mark.slow
def test_a_command_survives_its_server_five_times(serve, tmp_path):
    whole, _ = undisturbed(tmp_path / "whole", serve(tmp_path / "a"))
    server = serve(tmp_path / "b", seconds_each=0.02, seconds_to_reply=0.04)  # much that is lost is billed
    asking, chance, starts = Asking(tmp_path / "killed", server), random.Random(3), 1
    process = asking.start()
    for seconds in (0.1, 4.0, 0.4, 4.0, 0.7):  # a command bears the short ones, and says what to do after the others
        some_more(asking, process, chance)
        server.kill()
        time.sleep(seconds)
        server.start()
        if seconds > 2:
            assert process.wait() == 2
            (error,) = [line for line in process.said.read_text().splitlines() if line.startswith("rlkd: ")]
            assert "teacher 'small'" in error
            there = answered_in(load_cache(asking.cache, asking.task))
            np.testing.assert_array_equal(there, asking.books(server_died=True).answers.answered)
            process, starts = asking.start(), starts + 1
    ledger = finished(asking, process, whole, server_died=True)
    assert ledger.answers.asked[asking.task.splits["train"]].all()
    fewer = asking.fewer()[:, 0] & ledger.answers.answered[:, 0]
    assert 3 <= ledger.unsettled[0] + fewer.sum() <= 5 * WORKERS, "what was under way when a server died, and no more"
    told(ledger, asking, f"{starts} commands, 5 servers killed, {fewer.sum()} answered by fewer votes")


@pytest.mark.slow
def test_two_commands_that_are_killed_again_and_again_share_a_folder_and_its_budget(serve, tmp_path):
    how = {"names": ("small", "large"), "strategy": "explore:0.3", "price": "1", "budget": 1500}
    whole, startup = undisturbed(tmp_path / "whole", serve(tmp_path / "a"), **how)
    asking, chance = Asking(tmp_path / "killed", serve(tmp_path / "b", seconds_each=0.02), **how), random.Random(4)
    kills = 0
    for moment in ("starting", "asking", "asking", "asking", "asking"):
        both = [asking.start() for _ in range(2)]
        if moment == "starting":
            time.sleep(chance.uniform(0, 2 * startup))
        for process in both:
            if moment == "asking":
                some_more(asking, process, chance)
            process.kill()
            kills += 1
        assert [process.wait() for process in both] == [-signal.SIGKILL] * 2
        time.sleep(0.1)
        asking.books()
    both = [asking.start() for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0], [process.said.read_text() for process in both]
    for process in both:
        finished(asking, process, whole)
    ledger = finished(asking, asking.start(), whole)
    assert ledger.unsettled.sum() > 5
    told(ledger, asking, f"{kills} kills of two commands")
