"""Teachers behind an OpenAI-compatible endpoint, asked over the loopback address."""

import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from networks import LABELS, task_of_texts

from rlkd.errors import ConfigError, TeacherError
from rlkd.logit_cache import build_cache
from rlkd.models import load_teachers
from rlkd.models.endpoints import Endpoint, Pace
from rlkd.models.replies import named_label
from rlkd.models.served import MOST_OPTIONS, ServedTeacher

pytest.importorskip("openai")

KEY = "sk-of-the-tests"


class Server:
    """Replies to chats as ``reply(prompt, number)`` says: a content, a dictionary of a choice, or a status."""

    def __init__(self, reply):
        self.reply, self.prompts, self.under_way, self.most = reply, [], 0, 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = server.answer(body, self.headers["Authorization"])
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Retry-After-Ms", "1")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def answer(self, body, key):
        if key != f"Bearer {KEY}":
            return 401, {"error": {"message": "no such key"}}
        with self._lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            self.prompts.append(body["messages"][0]["content"])
            number = len(self.prompts) - 1
        said = self.reply(self.prompts[number], number)
        with self._lock:
            self.under_way -= 1
        if isinstance(said, int):
            return said, {"error": {"message": "come again"}}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        if isinstance(said, dict):
            choice |= {"message": {"role": "assistant", "content": None}} | said
        usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        return 200, {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }

    def __enter__(self):
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("rlkd.models.endpoints.FIRST_PAUSE", 0.01)


def served(server, labels=LABELS, **how):
    return ServedTeacher("llm", labels, Endpoint(model="m", base_url=server.url, **how))


def listing(**logprobs):
    entries = [{"token": token, "logprob": value, "bytes": None} for token, value in logprobs.items()]
    content = [{**entries[0], "top_logprobs": entries}]
    return {"message": {"role": "assistant", "content": "A"}, "logprobs": {"content": content, "refusal": None}}


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Sport", 0),
        (" sport.\n", 0),
        ("The label is: Water Sport!", 1),
        ("water-sport", 1),
        ("sport or art", None),
        ("sports", None),
        ("", None),
        ("Art", 2),
    ],
)
def test_an_answer_names_one_label_or_none(text, label):
    assert named_label(text, ("sport", "water sport", "art")) == label


def test_votes_are_counted_and_what_is_no_answer_is_not_guessed():
    said = {
        "warm": ["earth", "earth", "fire"],
        "cold": ["no idea", {"finish_reason": "content_filter"}, {"finish_reason": "length"}],
        "old": [{"message": {"role": "assistant", "content": None, "refusal": "I cannot"}}, "sea", "Sea."],
    }
    turns = {word: iter(replies) for word, replies in said.items()}
    with Server(lambda prompt, number: next(turns[prompt.split()[0]])) as server:
        teacher = served(server, votes=3, concurrency=1)
        answers = teacher.answers(list(said))
    shares = [torch.tensor(votes).add(0.5).div(sum(votes) + 1.5).log() for votes in ([2.0, 1.0, 0.0], [0.0, 0.0, 2.0])]
    torch.testing.assert_close(answers[0].logits, shares[0])
    assert torch.equal(answers[1].logits, torch.zeros(3))
    torch.testing.assert_close(answers[2].logits, shares[1])
    assert [answer.answered for answer in answers] == [True, False, True]
    assert answers[1].kinds == ("no label", "refused", "cut off")
    assert teacher.counts == {"answered": 5, "refused": 2, "no label": 1, "cut off": 1}
    assert (answers[0].tokens_in, answers[0].tokens_out) == (30, 6)


def test_log_probabilities_of_letters_are_logits():
    """Spellings of a letter are summed; one that is not listed has at most the least probability that is."""
    with Server(lambda prompt, number: listing(**{"B": -0.5, " b": -2.0, "The": -3.0, "A": -4.0})) as server:
        (answer,) = served(server).answers(["a text"])
    torch.testing.assert_close(answer.logits, torch.tensor([-4.0, math.log(math.exp(-0.5) + math.exp(-2)), -4.0]))
    assert server.prompts == [
        "a text\n\nWhich label fits this text best? Answer with its letter alone.\nA. earth\nB. fire\nC. sea\nLetter:"
    ]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("A", "tells no log-probabilities; have it vote instead"),
        (400, "expected an answer of teacher 'llm', got Error code: 400"),
        (500, "expected an answer of teacher 'llm', got Error code: 500"),
    ],
)
def test_a_server_that_does_not_answer_is_an_error(reply, message):
    with Server(lambda prompt, number: reply) as server, pytest.raises(TeacherError, match=message):
        served(server, retries=2).answers(["a text"])
    assert len(server.prompts) == (3 if reply == 500 else 1)


def test_a_server_that_says_to_come_again_is_asked_again():
    with Server(lambda prompt, number: (429, 503, "fire")[min(number, 2)]) as server:
        (answer,) = served(server, votes=1).answers(["a text"])
    assert answer.kinds == ("answered",)
    assert len(server.prompts) == 3


def test_time_outs_keys_and_dead_servers_are_told_apart(monkeypatch):
    with Server(lambda prompt, number: time.sleep(0.3) or "fire") as server:
        with pytest.raises(TeacherError, match=r"did not answer within 0.05 s, 2 times"):
            served(server, votes=1, timeout=0.05, retries=1).answers(["a text"])
        monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
        with pytest.raises(TeacherError, match=r"refused the key in \$OPENAI_API_KEY") as refused:
            served(server, votes=1).answers(["a text"])
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(TeacherError, match=r"from \$OPENAI_API_KEY, which is not set"):
            served(server, votes=1).answers(["a text"])
    assert "sk-" not in str(refused.value)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(TeacherError, match="Connection error"):
        served(server, votes=1, retries=1).answers(["a text"])


def test_no_more_requests_are_under_way_than_allowed():
    with Server(lambda prompt, number: time.sleep(0.01) or "fire") as server:
        served(server, votes=2, concurrency=3).answers([f"text {n}" for n in range(9)])
    assert server.most == 3
    assert len(server.prompts) == 18


def test_requests_begin_no_faster_than_allowed():
    now, waited = [0.0], []

    def sleep(seconds):
        waited.append(seconds)
        now[0] += seconds

    pace = Pace(30, clock=lambda: now[0], sleep=sleep)
    for _ in range(3):
        pace.wait()
    assert waited == [0.0, 2.0, 2.0]


def test_a_cache_is_built_of_served_teachers(tmp_path):
    task = task_of_texts(24)
    with Server(
        lambda prompt, number: next((label for label in LABELS if label in prompt.splitlines()[0]), "?")
    ) as server:
        teacher = served(server, votes=1)
        cache = build_cache([teacher], task, tmp_path)
        assert len(server.prompts) == 24
        build_cache([served(server, votes=1)], task, tmp_path)  # opened, nobody is asked
        assert len(server.prompts) == 24
    logits = cache.rows(torch.arange(24))[:, 0]
    for text, row in zip(task.table.texts, logits, strict=True):
        named = [label in text for label in LABELS]
        assert (row.argmax() == int(np.argmax(named))) if any(named) else torch.equal(row, torch.zeros(3))
    assert KEY not in "".join(path.read_text(errors="ignore") for path in tmp_path.iterdir())
    assert served(server, votes=2).identity != teacher.identity == served(server, votes=1, timeout=5).identity


def test_a_folder_names_an_endpoint_and_never_a_key(tmp_path):
    task = task_of_texts(24)
    path = tmp_path / "llm" / "endpoint.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"model": "m", "votes": 3, "base_url": "http://127.0.0.1:9/v1"}))
    (teacher,) = load_teachers([path.parent], task)
    assert (teacher.name, teacher.endpoint.votes, teacher.label_names) == ("llm", 3, task.label_names)
    for content, message in (
        ({"model": "m", "api_key": KEY}, "got 'api_key'; keys are read from the environment alone"),
        ({"votes": 3}, 'expected an object with "model"'),
        ({"model": "m", "votes": "3"}, "expected numbers and texts in"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(TeacherError, match=message):
            load_teachers([path.parent], task)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"votes": -1}, "votes must be >= 0, got -1"),
        ({"concurrency": 0}, "concurrency must be >= 1, got 0"),
        ({"timeout": 0}, "timeout and per_minute must be > 0, got 0 and None"),
        ({"template": "Which?", "votes": 1}, r"a template needs \{text\} and \{labels\}, got 'Which\?'"),
        ({"template": "{text} {labels}"}, r"a template needs \{text\} and \{options\}"),
    ],
)
def test_what_cannot_be_asked_is_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        Endpoint(model="m", **how)


def test_more_labels_than_a_server_lists_need_votes():
    labels = [f"label {n}" for n in range(MOST_OPTIONS + 1)]
    with pytest.raises(TeacherError, match=r"lists 20 log-probabilities at most, .* 21 labels; have it vote"):
        ServedTeacher("llm", labels, Endpoint(model="m"))
    assert ServedTeacher("llm", labels, Endpoint(model="m", votes=1)).label_names == tuple(labels)


@contextmanager
def transformers_serve(folder):
    """The server that transformers has, with a small causal model made on the spot."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = "from transformers.cli.transformers import main; main()"
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-c", command, "serve", str(folder / "lm"), "--port", str(port), "--host", "127.0.0.1"],
        stdout=log,
        stderr=log,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()
        log.close()


@pytest.mark.slow
def test_the_server_of_transformers_votes(tmp_path):
    pytest.importorskip("fastapi")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = ["[UNK]", "[EOS]", *LABELS, "other"]
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="[EOS]", pad_token="[EOS]")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=6, n_embd=16, n_layer=1, n_head=2, n_positions=128, eos_token_id=1, bos_token_id=1)
    model = GPT2LMHeadModel(config)
    model.generation_config.pad_token_id, model.generation_config.do_sample = 1, True
    model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    with transformers_serve(tmp_path) as url:
        endpoint = Endpoint(model=str(tmp_path / "lm"), base_url=url, votes=8, max_tokens=1, timeout=60)
        teacher = ServedTeacher("lm", LABELS, endpoint)
        answers = teacher.answers(["earth", "fire sea", "other"])
        with pytest.raises(TeacherError, match="tells no log-probabilities; have it vote instead"):
            ServedTeacher("lm", LABELS, Endpoint(model=endpoint.model, base_url=url)).answers(["earth"])
    kinds = [kind for answer in answers for kind in answer.kinds]
    assert len(kinds) == 24
    assert set(kinds) <= {"answered", "no label", "cut off"}
    assert 0 < kinds.count("answered") < 24  # it says words at random, three of six are labels
    assert all(answer.tokens_in > 0 and answer.tokens_out > 0 for answer in answers)
