"""A teacher behind an OpenAI-compatible endpoint: a language model that is asked which label a text has.

Where the server tells how probable a token is (``votes=0``), labels are options of one letter, and their
log-probabilities are the logits. Where it does not, the model is asked several times and its answers are counted. What
is no answer, a refusal, a text that was cut off or that names no label, is counted and never guessed: its row says
nothing, which is zeros.
"""

import re
import string
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.data.task import Task, raw_inputs
from rlkd.errors import TeacherError, one_line
from rlkd.models.endpoints import Caller, Endpoint, Lost, Rejected
from rlkd.models.labels import aligned_logits
from rlkd.models.replies import Answer, Kind, kind_of_silence, named_label, tells_tokens, words_of
from rlkd.models.teachers import LabelledTeacher
from rlkd.records import digest, parse_object

ENDPOINT_FILE = "endpoint.json"
OPTIONS = string.ascii_uppercase
MOST_OPTIONS = 20
"""Log-probabilities that a server lists at most."""
TEMPLATE = "{text}\n\nWhich label fits this text best? Answer with the label alone.\nLabels: {labels}\nLabel:"
TEMPLATE_OF_OPTIONS = "{text}\n\nWhich label fits this text best? Answer with its letter alone.\n{options}\nLetter:"
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds before another attempt."""
LOST_IN_SUCCESSION = 8
"""Rows, or as many as are asked about at once, of which no answer comes before no more are asked about."""
SMOOTHING = 0.5
"""Votes that every label has beforehand: none is impossible after a few answers (Jeffreys' prior)."""


class ServedTeacher(LabelledTeacher):
    """A teacher that is asked over the network, row by row.

    Args:
        name: Unique among the teachers of a run.
        label_names: Of the classes, as the prompt names them.
        endpoint: Where and how.
        identity: Changes when the model behind its name does, a date say: a server does not tell.
    """

    paid = True
    """What it is asked costs something: a ledger never asks again what may have been served."""

    def __init__(self, name: str, label_names: Sequence[str], endpoint: Endpoint, *, identity: str = "") -> None:
        super().__init__(name, label_names)
        if not endpoint.votes and len(label_names) > MOST_OPTIONS:
            raise TeacherError(
                f"a server lists {MOST_OPTIONS} log-probabilities at most, teacher {name!r} has {len(label_names)} "
                "labels; have it vote (votes=5)"
            )
        self.endpoint, self._version = endpoint, identity
        self.counts: Counter[Kind] = Counter()
        self._caller = Caller(name, endpoint)

    @cached_property
    def identity(self) -> str:
        """Hash of what decides the answers, as far as it is known."""
        how = asdict(self.endpoint)
        for name in ("key_variable", "concurrency", "timeout", "retries", "per_minute", "overhead_tokens"):
            del how[name]
        return digest(["served", how, list(self.label_names), self._version, TEMPLATE, TEMPLATE_OF_OPTIONS], 32)

    def check(self, task: Task) -> None:
        """Raise what :meth:`logits` would raise for a task, before the long work."""
        super().check(task)
        if task.table.texts is None:
            raise TeacherError(f"teacher {self.name!r} reads texts, task {task.name!r} has none; choose another")

    def raw_logits(self, task: Task, ids: NDArray[np.int64], batch_size: int, max_length: int) -> Tensor:
        """See :meth:`LabelledTeacher.raw_logits`; texts are sent whole."""
        return torch.stack([answer.logits for answer in self.answers(raw_inputs(task, ids))])

    def answers(self, texts: Sequence[Any]) -> list[Answer]:
        """Ask about texts, or pairs of texts.

        Raises:
            TeacherError: The key is missing or was refused, or a request failed after its last retry. What was
                answered until then is lost: ask about few at a time, or through a ledger.
        """
        stopped = threading.Event()

        def ask(row: int) -> Answer:
            self._caller.pace.wait()
            answer, failure = self._asked(row, texts[row], again=True, stopped=stopped)
            if failure is not None:
                stopped.set()
                raise failure
            return answer

        self._caller.open()
        with ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            requests = [pool.submit(ask, row) for row in range(len(texts))]
            try:
                found = [request.result() for request in requests]
            except BaseException:
                stopped.set()
                for request in requests:
                    request.cancel()
                raise
        self.counts.update(kind for answer in found for kind in answer.kinds)
        return found

    def ask_each(
        self, rows: Iterator[tuple[int, Any]], settle: Callable[[int, Answer], None], stopped: threading.Event
    ) -> None:
        """Ask about rows, and tell of each at once what came of it, so that nothing is lost if another one fails.

        No request is made again of which it is not sure that it was not served.

        Args:
            rows: Numbers and texts, or pairs of texts; the next is taken when its request can be sent at once.
            settle: Is called with a row and what came of it, once for every row taken, by one thread at a time.
            stopped: Set, by whomever, when no more is to be sent; what is under way is waited for.

        Raises:
            TeacherError: The key is missing or was refused, the server could not be asked, or it lost row after row.
        """
        self._caller.open()
        taking, settling = threading.Lock(), threading.Lock()
        most_lost = max(self.endpoint.concurrency, LOST_IN_SUCCESSION)
        failed: list[TeacherError] = []
        lost = 0

        def work() -> None:
            nonlocal lost
            while True:
                self._caller.pace.wait(stopped)  # before a row is taken: what is taken is under way
                with taking:
                    taken = None if stopped.is_set() else next(rows, None)
                if taken is None:
                    return
                answer, failure = self._asked(*taken, again=False, stopped=stopped)
                with settling:
                    self.counts.update(answer.kinds)
                    settle(taken[0], answer)
                    lost = lost + 1 if "lost" in answer.kinds and not answer.answered else 0
                if failure is None and lost >= most_lost:
                    failure = TeacherError(
                        f"teacher {self.name!r} was asked about {lost} rows in succession and no answer came; they may "
                        "have been paid for: look at its server, raise timeout or lower concurrency"
                    )
                if failure is not None:
                    failed.append(failure)
                    stopped.set()

        with ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            workers = [pool.submit(work) for _ in range(self.endpoint.concurrency)]
            try:
                for worker in workers:
                    worker.result()
            finally:
                stopped.set()  # none goes on where one could not write what it was told
        if failed:
            raise failed[0]

    def in_order_of(self, task: Task, logits: Tensor) -> Tensor:
        """Its own logits (N, its classes) in the task's order of classes, (N, C)."""
        return aligned_logits(logits, self.columns(task))

    def _asked(
        self, row: int, text: Any, *, again: bool, stopped: threading.Event
    ) -> tuple[Answer, TeacherError | None]:
        """Ask about a text; what came of it, and what went wrong so that no other can be asked about.

        A text that lost some of its votes is answered by the others: they are fewer, so the answer is less sure.
        """
        replies: list[Any] = []
        ending: list[Kind] = ["not sent"] if stopped.is_set() else []
        failure: TeacherError | None = None
        for seed in range(0 if stopped.is_set() else self.endpoint.requests):
            if seed:
                self._caller.pace.wait()
            try:
                replies.append(self._caller.reply(*self._request(row, text, seed), again=again, stopped=stopped))
            except (Lost, Rejected) as error:
                ending = ["lost" if isinstance(error, Lost) else "rejected"]
                failure = error if again and isinstance(error, Lost) else None
                break
            except TeacherError as error:
                ending, failure = ["not sent"], error
                break
        choices = [reply.choices[0] for reply in replies]
        read = self._of_votes if self.endpoint.votes else self._of_options
        try:
            logits, kinds = read(choices) if choices else (self._nothing(), ())
        except TeacherError as error:  # of the server, whatever the text: it was paid for all the same
            logits, kinds, failure = self._nothing(), ("no label",), error
        used = [reply.usage for reply in replies if tells_tokens(reply.usage)]
        answer = Answer(
            logits,
            (*kinds, *ending),
            tokens_in=sum(usage.prompt_tokens for usage in used),
            tokens_out=sum(usage.completion_tokens for usage in used),
            uncounted=len(replies) - len(used),
        )
        return answer, failure

    def _request(self, row: int, text: Any, seed: int) -> tuple[dict[str, Any], str]:
        """The request of a vote, and the key that names it."""
        end, prompt = self.endpoint, self.prompt(text)
        how: dict[str, Any] = {"max_tokens": end.max_tokens, "temperature": end.temperature, "seed": seed}
        if not end.votes:
            how = {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": MOST_OPTIONS}
        request = {"model": end.model, "messages": [{"role": "user", "content": prompt}], **how}
        return request, digest([self.identity, row, prompt, seed], 32, algorithm="sha256")

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
            label = named_label(words_of(choice), self.label_names)
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
