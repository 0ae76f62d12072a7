"""Endpoints that serve a model, and requests to them: which failed, and whether a failed one may have been served.

What is paid by the request must not be made twice by accident. So the client's own retries are off, and a request is
made again only if it surely was not served: the server was not reached, or said that it did not take it. Of one that
was sent and never answered nobody knows; it is :class:`Lost`, unless whoever asks would rather pay twice.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlkd.errors import ConfigError, TeacherError, one_line

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 120.0
"""Seconds before another attempt; a server that asks for more patience is not waited for."""
UNREACHED = ("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol")
"""What the client meets before anything of a request is sent, by name: its carrier differs between its releases."""
REJECTED = ("content_filter", "context_length_exceeded", "content_policy_violation", "string_above_max_length")
"""Codes of a server that does not take this text, and would take others."""


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
    overhead_tokens: int = 256
    """Tokens at most that the server puts around a prompt, its own system prompt say: for what a call costs at most."""

    def __post_init__(self) -> None:
        """Check ranges, and that the template asks."""
        least = {"votes": 0, "temperature": 0, "max_tokens": 1, "concurrency": 1, "retries": 0, "overhead_tokens": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"{name} must be >= {bound}, got {getattr(self, name)}; mend it")
        if self.timeout <= 0 or (self.per_minute is not None and self.per_minute <= 0):
            raise ConfigError(f"timeout and per_minute must be > 0, got {self.timeout} and {self.per_minute}")
        choices = "{labels}" if self.votes else "{options}"
        if self.template is not None and not ("{text}" in self.template and choices in self.template):
            raise ConfigError(f"a template needs {{text}} and {choices}, got {self.template!r:.80}; put both in")

    @property
    def requests(self) -> int:
        """About a text."""
        return self.votes or 1

    @property
    def most_tokens_out(self) -> int:
        """Of an answer."""
        return self.max_tokens if self.votes else 1


class NotSent(TeacherError):
    """A request that surely was not served: it was not paid for, and can be made again."""


class Lost(TeacherError):
    """A request that was sent and of which no answer came: it may have been paid for."""


class Rejected(TeacherError):
    """A text that the server does not take, too long or against its rules; others it would."""


class Caller:
    """Sends the requests of one teacher.

    Args:
        teacher: Its name, for errors.
        endpoint: Where they go.
    """

    def __init__(self, teacher: str, endpoint: Endpoint) -> None:
        self._teacher, self._endpoint = teacher, endpoint
        self.pace = Pace(endpoint.per_minute)
        """To be waited for before a request; further attempts wait by themselves."""
        self._client: tuple[str, Any] | None = None

    def open(self) -> None:
        """See that requests can be made.

        Raises:
            TeacherError: The client is not installed, or the key is missing.
        """
        try:
            from openai import OpenAI
        except ImportError as error:
            raise TeacherError("a served teacher needs the package openai; pip install 'rlkd[served]'") from error
        where = self._endpoint
        key = os.environ.get(where.key_variable)
        if not key:
            raise TeacherError(
                f"teacher {self._teacher!r} takes its key from ${where.key_variable}, which is not set; export it, "
                "or name another variable"
            )
        if self._client is None or self._client[0] != key:
            client = OpenAI(api_key=key, base_url=where.base_url, timeout=where.timeout, max_retries=0)
            weakref.finalize(self, client.close)
            self._client = key, client

    def reply(self, request: Mapping[str, Any], key: str, *, again: bool, stopped: threading.Event) -> Any:
        """What the server replies to a request, after :meth:`open`.

        Args:
            request: Arguments of a chat completion.
            key: Names the request: a server that knows such keys serves, and bills, it once.
            again: Make it again even if it may have been served.
            stopped: Ends pauses; no further attempt is made then.

        Raises:
            NotSent: It surely was not served.
            Lost: It may have been.
            Rejected: The server does not take this text.
            TeacherError: The server refused the key.
        """
        import openai

        assert self._client is not None
        create, headers = self._client[1].chat.completions.create, {"Idempotency-Key": key}
        for attempt in range(self._endpoint.retries + 1):
            if attempt:
                self.pace.wait(stopped)
                if stopped.is_set():
                    break
            try:
                return checked(create(extra_headers=headers, **request))
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                variable = self._endpoint.key_variable
                raise TeacherError(
                    f"the server of teacher {self._teacher!r} refused the key in ${variable}; set a valid one"
                ) from error
            except (openai.OpenAIError, ValueError) as error:  # a body that is no JSON is a ValueError
                if is_rejection(error):
                    raise Rejected(f"teacher {self._teacher!r} does not take a text: {one_line(error)}") from error
                pause = pause_before_next(error, attempt)
                if pause is None or attempt == self._endpoint.retries or (may_be_served(error) and not again):
                    raise self._failure(error, attempt + 1) from error
                stopped.wait(pause)
        raise NotSent(f"asking teacher {self._teacher!r} was stopped")

    def _failure(self, error: Exception, attempts: int) -> TeacherError:
        import openai

        kind = Lost if may_be_served(error) else NotSent
        if isinstance(error, openai.APITimeoutError):
            return kind(
                f"teacher {self._teacher!r} did not answer within {self._endpoint.timeout:g} s, {attempts} times; "
                "raise timeout, or lower concurrency"
            )
        return kind(f"expected an answer of teacher {self._teacher!r}, got {one_line(error)}")


def checked(reply: Any) -> Any:
    """A reply that has a choice.

    Raises:
        ValueError: It has none.
    """
    if not getattr(reply, "choices", None):
        raise ValueError("a reply without a choice")
    return reply


def may_be_served(error: Exception) -> bool:
    """Whether a request that failed may have been served, and be paid for, all the same.

    Not where the server was never reached or says that it did not take the request: 4xx, 503, and a 500 that asks to
    come again. A gateway's 502 or 504 tells nothing of the model behind it.
    """
    import openai

    if isinstance(error, openai.APIConnectionError):
        return type(error.__cause__).__name__ not in UNREACHED
    if isinstance(error, openai.APIStatusError):
        told_to_return = error.status_code == 500 and told_pause(error) is not None
        return error.status_code >= 500 and error.status_code not in (501, 503) and not told_to_return
    return True


def pause_before_next(error: Exception, attempt: int) -> float | None:
    """Seconds to wait before attempt ``attempt + 1``: what the server says, else twice as long each time; None: none.

    There is none where the server would say the same again, or wants more patience than :data:`LONGEST_PAUSE`.
    """
    import openai

    if isinstance(error, openai.APIStatusError):
        if error.status_code not in (408, 409, 429) and error.status_code < 500:
            return None
    elif not isinstance(error, openai.APIConnectionError):
        return None
    told = told_pause(error)
    if told is not None:
        return told if told <= LONGEST_PAUSE else None
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**attempt)


def told_pause(error: Exception) -> float | None:
    """Seconds that a server says to wait."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return max(0.0, seconds)
    return None


def is_rejection(error: Exception) -> bool:
    """Whether a server says of a text that it cannot be asked about."""
    import openai

    if not isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
        return False
    return error.code in REJECTED or "context length" in str(error).lower()


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

    def wait(self, stopped: threading.Event | None = None) -> None:
        """Until the next request may begin, or it is said that none is to."""
        if self._gap == 0:
            return
        with self._lock:
            now = self._clock()
            start = max(now, self._next)
            self._next = start + self._gap
        if stopped is None:
            self._sleep(start - now)
        else:
            stopped.wait(start - now)
