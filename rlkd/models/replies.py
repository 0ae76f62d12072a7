"""What a served model replies, and which label that names, if any."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

Kind = Literal["answered", "refused", "cut off", "no label", "rejected", "lost", "not sent"]
"""What becomes of a request; ``lost``: sent, and no answer came."""


@dataclass(frozen=True)
class Answer:
    """What a served model said of one row."""

    logits: Tensor
    """Of its labels, shape (C,), float32; zeros where it said nothing."""
    kinds: tuple[Kind, ...]
    """What became of each request; what comes after one that is lost or not sent is not sent either."""
    tokens_in: int
    tokens_out: int
    uncounted: int = 0
    """Replies whose tokens the server did not tell."""

    @property
    def answered(self) -> bool:
        """Whether a request was answered with a label."""
        return "answered" in self.kinds

    @property
    def replies(self) -> int:
        """Requests that the server replied to: those that were paid for."""
        return sum(kind not in ("lost", "not sent", "rejected") for kind in self.kinds)


def words_of(choice: Any) -> str:
    """What a choice of a reply says; nothing where it is no text, as servers of other makes have it."""
    content = getattr(choice.message, "content", None)
    return content if isinstance(content, str) else ""


def tells_tokens(usage: Any) -> bool:
    """Whether a server says how many tokens it read and wrote."""
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    return all(isinstance(count, int) and count >= 0 for count in counts)


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
