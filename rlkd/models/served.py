"""A teacher behind an OpenAI-compatible endpoint: a language model that is asked which label a text has.

Where the server tells how probable a token is (``votes=0``), labels are options of one letter, and their
log-probabilities are the logits. Where it does not, the model is asked several times and its answers are counted. What
is no answer, a refusal, a text that was cut off or that names no label, is counted and never guessed: its row says
nothing, which is zeros.
"""

import os
import re
import string
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.data.task import Task, raw_inputs
from rlkd.errors import ConfigError, TeacherError, one_line
from rlkd.models.labels import aligned_logits
from rlkd.models.teachers import LabelledTeacher
from rlkd.records import digest, parse_object

Kind = Literal["answered", "refused", "cut off", "no label"]

ENDPOINT_FILE = "endpoint.json"
OPTIONS = string.ascii_uppercase
MOST_OPTIONS = 20
"""Log-probabilities that a server lists at most."""
TEMPLATE = "{text}\n\nWhich label fits this text best? Answer with the label alone.\nLabels: {labels}\nLabel:"
TEMPLATE_OF_OPTIONS = "{text}\n\nWhich label fits this text best? Answer with its letter alone.\n{options}\nLetter:"
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds before another attempt."""
SMOOTHING = 0.5
"""Votes that every label has beforehand: none is impossible after a few answers (Jeffreys' prior)."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a model is served, and how it is asked."""

    model: str
    """Its name at the server."""
    base_url: str | None = None
    """Of the server, up to ``/v1``. None: what the client takes from ``OPENAI_BASE_URL``, or OpenAI's own."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key: it is read when the teacher is asked, and written nowhere."""
    template: str | None = None
    """Of the prompt: ``{text}`` (and ``{text_pair}``), and ``{labels}`` or, for letters, ``{options}``."""
    votes: int = 0
    """How often a row is asked about; 0: once, for log-probabilities, which only some servers tell."""
    temperature: float = 1.0
    """Of the answers that are votes, >= 0."""
    max_tokens: int = 16
    """Of an answer."""
    concurrency: int = 8
    """Requests under way at once."""
    timeout: float = 60.0
    """Of a request, in seconds."""
    retries: int = 4
    """After a time-out, a lost connection, or an answer of the server that says to come again; with growing pauses."""
    per_minute: float | None = None
    """Requests at most. None: as many as the server bears."""

    def __post_init__(self) -> None:
        """Check ranges, and that the template asks."""
        least = {"votes": 0, "temperature": 0, "max_tokens": 1, "concurrency": 1, "retries": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"{name} must be >= {bound}, got {getattr(self, name)}; mend it")
        if self.timeout <= 0 or (self.per_minute is not None and self.per_minute <= 0):
            raise ConfigError(f"timeout and per_minute must be > 0, got {self.timeout} and {self.per_minute}")
        choices = "{labels}" if self.votes else "{options}"
        if self.template is not None and not ("{text}" in self.template and choices in self.template):
            raise ConfigError(f"a template needs {{text}} and {choices}, got {self.template!r:.80}; put both in")


class NotSent(TeacherError):
    """A request that surely was not served: it was not paid for, and can be made again."""


class Lost(TeacherError):
    """A request that was sent, and of which no answer came: it may have been paid for."""


@dataclass(frozen=True)
class Answer:
    """What a served model said of one row."""

    logits: Tensor
    """Of its labels, shape (C,), float32; zeros where it said nothing."""
    kinds: tuple[Kind, ...]
    """What became of each request."""
    tokens_in: int
    tokens_out: int

    @property
    def answered(self) -> bool:
        """Whether a request was answered with a label."""
        return "answered" in self.kinds


class ServedTeacher(LabelledTeacher):
    """A teacher that is asked over the network.

    Args:
        name: Unique among the teachers of a run.
        label_names: Of the classes, as the prompt names them.
        endpoint: Where and how.
        identity: Changes when the model behind its name does, a date say: a server does not tell.
    """

    def __init__(self, name: str, label_names: Sequence[str], endpoint: Endpoint, *, identity: str = "") -> None:
        super().__init__(name, label_names)
        if not endpoint.votes and len(label_names) > MOST_OPTIONS:
            raise TeacherError(
                f"a server lists {MOST_OPTIONS} log-probabilities at most, teacher {name!r} has {len(label_names)} "
                "labels; have it vote (votes=5)"
            )
        self.endpoint, self._version = endpoint, identity
        self.counts: Counter[Kind] = Counter()
        self._pace = Pace(endpoint.per_minute)

    @cached_property
    def identity(self) -> str:
        """Hash of what decides the answers, as far as it is known."""
        how = asdict(self.endpoint)
        for name in ("key_variable", "concurrency", "timeout", "retries", "per_minute"):
            del how[name]
        return digest(["served", how, list(self.label_names), self._version, TEMPLATE, TEMPLATE_OF_OPTIONS], 32)

    def raw_logits(self, task: Task, ids: NDArray[np.int64], batch_size: int, max_length: int) -> Tensor:
        """See :meth:`LabelledTeacher.raw_logits`; texts are sent whole."""
        if task.table.texts is None:
            raise TeacherError(f"teacher {self.name!r} reads texts, task {task.name!r} has none; choose another")
        return torch.stack([answer.logits for answer in self.answers(raw_inputs(task, ids))])

    def answers(self, texts: Sequence[Any]) -> list[Answer]:
        """Ask about texts, or pairs of texts.

        Raises:
            TeacherError: The key is missing or was refused, or a request failed after its last retry. What was
                answered until then is lost: ask about few at a time, or through a ledger.
        """
        client = self._client()
        with ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            requests = [pool.submit(self._asked, client, text, again=True) for text in texts]
            try:
                found = [request.result() for request in requests]
            except BaseException:
                for request in requests:
                    request.cancel()
                raise
        self.counts.update(kind for answer in found for kind in answer.kinds)
        return found

    @property
    def calls_a_row(self) -> int:
        """Requests about a text."""
        return self.endpoint.votes or 1

    @property
    def most_tokens_out(self) -> int:
        """Tokens that an answer has at most."""
        return self.endpoint.max_tokens if self.endpoint.votes else 1

    def ask_each(
        self,
        texts: Sequence[Any],
        begin: Callable[[int], bool],
        settle: Callable[[int, Answer | NotSent | Lost], None],
    ) -> None:
        """Ask about texts, and tell of each at once what came of it, so that nothing is lost if the next one fails.

        A request of which it is not sure that it was not served is not made again.

        Args:
            texts: Texts, or pairs of texts.
            begin: Is called with the place of a text before it is asked about, which it is if this says so.
            settle: Is called with the place of every text that was begun and what came of it. Both are called by one
                thread at a time.

        Raises:
            TeacherError: The key is missing or was refused, or the server could not be asked; no request is begun then.
        """
        client, lock, stopped = self._client(), threading.Lock(), threading.Event()
        failed: list[TeacherError] = []

        def ask(place: int) -> None:
            with lock:
                if stopped.is_set() or not begin(place):
                    return
            said: Answer | NotSent | Lost
            try:
                said = self._asked(client, texts[place], again=False)
            except Lost as error:
                said = error
            except TeacherError as error:
                failed.append(error)
                stopped.set()
                said = NotSent(str(error))
            with lock:
                if isinstance(said, Answer):
                    self.counts.update(said.kinds)
                settle(place, said)

        with ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            requests = [pool.submit(ask, place) for place in range(len(texts))]
            try:
                for request in requests:
                    request.result()
            except BaseException:  # Ctrl-C, a full disk: those under way are waited for, no other is begun
                stopped.set()
                raise
        if failed:
            raise failed[0]

    def in_order_of(self, task: Task, logits: Tensor) -> Tensor:
        """Its own logits (N, its classes) in the task's order of classes, (N, C)."""
        return aligned_logits(logits.float(), self.columns(task))

    def _client(self) -> Any:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise TeacherError("a served teacher needs the package openai; pip install 'rlkd[served]'") from error
        key = os.environ.get(self.endpoint.key_variable)
        if not key:
            raise TeacherError(
                f"teacher {self.name!r} takes its key from ${self.endpoint.key_variable}, which is not set; export it, "
                "or name another variable"
            )
        where = self.endpoint
        return OpenAI(api_key=key, base_url=where.base_url, timeout=where.timeout, max_retries=0)  # see _reply

    def _asked(self, client: Any, text: Any, *, again: bool) -> Answer:
        """Ask about a text; ``again``: also where it may have been served."""
        read = self._of_votes if self.endpoint.votes else self._of_options
        replies: list[Any] = []
        for seed in range(self.calls_a_row):
            try:
                replies.append(self._reply(client, text, seed, again=again))
            except NotSent as error:
                if replies:  # its other votes were paid for
                    raise Lost(str(error)) from error
                raise
        logits, kinds = read([reply.choices[0] for reply in replies])
        used = [reply.usage for reply in replies if reply.usage is not None]
        return Answer(logits, kinds, sum(u.prompt_tokens for u in used), sum(u.completion_tokens for u in used))

    def _reply(self, client: Any, text: Any, seed: int, *, again: bool) -> Any:
        import openai

        for attempt in range(self.endpoint.retries + 1):
            self._pace.wait()
            try:
                return self._request(client, text, seed)
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                variable = self.endpoint.key_variable
                raise TeacherError(
                    f"the server of teacher {self.name!r} refused the key in ${variable}; set a valid one"
                ) from error
            except openai.OpenAIError as error:
                sent = may_be_served(error)
                if (sent and not again) or attempt == self.endpoint.retries or not worth_another_try(error):
                    raise self._failure(error, attempt + 1, sent=sent) from error
                time.sleep(pause(error, attempt))
        raise AssertionError("the last attempt returns or raises")

    def _request(self, client: Any, text: Any, seed: int) -> Any:
        end, prompt = self.endpoint, self.prompt(text)
        how: dict[str, Any] = {"max_tokens": end.max_tokens, "temperature": end.temperature, "seed": seed}
        if not end.votes:
            how = {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": MOST_OPTIONS}
        key = digest([self.identity, prompt, seed], 32)  # a server that knows such keys bills a request once
        messages = [{"role": "user", "content": prompt}]
        return client.chat.completions.create(
            model=end.model, messages=messages, extra_headers={"Idempotency-Key": key}, **how
        )

    def _failure(self, error: Exception, attempts: int, *, sent: bool) -> TeacherError:
        import openai

        kind = Lost if sent else NotSent
        if isinstance(error, openai.APITimeoutError):
            return kind(
                f"teacher {self.name!r} did not answer within {self.endpoint.timeout:g} s, {attempts} times; raise "
                "timeout, or lower concurrency"
            )
        return kind(f"expected an answer of teacher {self.name!r}, got {one_line(error)}")

    def prompt(self, text: Any) -> str:
        """What the model reads of a text, or a pair of texts."""
        first, second = (text, "") if isinstance(text, str) else text
        template = self.endpoint.template or (TEMPLATE if self.endpoint.votes else TEMPLATE_OF_OPTIONS)
        if second and "{text_pair}" not in template:
            first = f"{first}\n{second}"
        options = "\n".join(f"{letter}. {label}" for letter, label in zip(OPTIONS, self.label_names, strict=False))
        fields = {"text": first, "text_pair": second, "labels": ", ".join(self.label_names), "options": options}
        return re.sub(r"\{(text|text_pair|labels|options)\}", lambda found: fields[found[1]], template)

    def _of_options(self, choices: Sequence[Any]) -> tuple[Tensor, tuple[Kind, ...]]:
        """Log-probabilities of the letters; of one that is not listed, that of the last that is."""
        (choice,) = choices
        content = None if choice.logprobs is None else choice.logprobs.content
        if not content:
            if kind_of_silence(choice) == "refused":
                return self._nothing(), ("refused",)
            raise TeacherError(
                f"the server of teacher {self.name!r} tells no log-probabilities; have it vote instead (votes=5)"
            )
        listed: dict[str, float] = {}
        for entry in content[0].top_logprobs:
            letter = entry.token.strip().upper()
            listed[letter] = float(np.logaddexp(listed.get(letter, -np.inf), entry.logprob))
        letters = OPTIONS[: len(self.label_names)]
        if not set(letters) & set(listed):
            return self._nothing(), ("no label",)
        floor = min(entry.logprob for entry in content[0].top_logprobs)
        return torch.tensor([listed.get(letter, floor) for letter in letters]), ("answered",)

    def _of_votes(self, choices: Sequence[Any]) -> tuple[Tensor, tuple[Kind, ...]]:
        """Logarithms of the smoothed shares of votes."""
        votes, kinds = torch.zeros(len(self.label_names)), []
        for choice in choices:
            label = named_label(choice.message.content or "", self.label_names)
            kinds.append("answered" if label is not None else kind_of_silence(choice))
            if label is not None:
                votes[label] += 1
        if votes.sum() == 0:
            return self._nothing(), tuple(kinds)
        return ((votes + SMOOTHING) / (votes + SMOOTHING).sum()).log(), tuple(kinds)

    def _nothing(self) -> Tensor:
        return torch.zeros(len(self.label_names))


def load_served(path: Path, name: str, label_names: Sequence[str]) -> ServedTeacher:
    """A served teacher from a file with the fields of an :class:`Endpoint`, and ``identity``, see the teacher.

    Raises:
        TeacherError: The file is damaged, lacks the model or has a field that an endpoint has not; a key is one.
    """
    content, known = parse_object(path.read_bytes()), {entry.name for entry in fields(Endpoint)} | {"identity"}
    if content is None or not isinstance(content.get("model"), str):
        raise TeacherError(f'expected an object with "model" and other fields of an endpoint in {path}, got none')
    unknown = sorted(set(content) - known)
    if unknown:
        raise TeacherError(
            f"expected fields of an endpoint in {path} ({', '.join(sorted(known))}), got {unknown[0]!r}; keys are read "
            "from the environment alone, whose variable is named by key_variable"
        )
    identity = str(content.pop("identity", ""))
    try:
        return ServedTeacher(name, label_names, Endpoint(**content), identity=identity)
    except TypeError as error:
        raise TeacherError(f"expected numbers and texts in {path}, got {one_line(error)}") from error


def may_be_served(error: Exception) -> bool:
    """Whether a request that failed may have been answered all the same: it had been sent, and no status came back."""
    import openai

    if not isinstance(error, openai.APIConnectionError):
        return False
    # by name: which library carries the client's requests differs between its releases
    return type(error.__cause__).__name__ not in ("ConnectError", "ConnectTimeout", "PoolTimeout")


def worth_another_try(error: Exception) -> bool:
    """Whether a server said to come again, or could not be reached."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError)


def pause(error: Exception, attempt: int) -> float:
    """Seconds to wait before the next attempt: what the server says, else twice as long each time."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return min(LONGEST_PAUSE, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**attempt)


def kind_of_silence(choice: Any) -> Kind:
    """What a choice of a reply is that names no label."""
    if getattr(choice.message, "refusal", None) or choice.finish_reason == "content_filter":
        return "refused"
    return "cut off" if choice.finish_reason == "length" else "no label"


def named_label(text: str, labels: Sequence[str]) -> int | None:
    """Which label an answer names: one alone stands in it, or in none but that; case and punctuation do not count."""
    words = f" {_words(text)} "
    named = [place for place, label in enumerate(labels) if f" {_words(label)} " in words]
    longest = [place for place in named if not any(_inside(labels[place], labels[other]) for other in named)]
    return longest[0] if len(longest) == 1 else None


def _inside(label: str, other: str) -> bool:
    """Whether a label is a part of another, as "sport" is of "water sport"."""
    return _words(label) != _words(other) and f" {_words(label)} " in f" {_words(other)} "


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


class Pace:
    """Lets requests begin no faster than so many a minute, whoever asks."""

    def __init__(
        self,
        per_minute: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Begin; None: no limit."""
        self._gap, self._next = 0.0 if per_minute is None else 60 / per_minute, 0.0
        self._clock, self._sleep, self._lock = clock, sleep, threading.Lock()

    def wait(self) -> None:
        """Until the next request may begin."""
        if self._gap == 0:
            return
        with self._lock:
            now = self._clock()
            start = max(now, self._next)
            self._next = start + self._gap
        self._sleep(start - now)
