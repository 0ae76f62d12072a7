"""What an answer costs, and at most costs, before it is asked for."""

import re
from dataclasses import dataclass

from rlkd.errors import ConfigError

FORM = "a number for each call, and numbers for each thousand tokens, as in 0.01, 0.5in+1.5out or 0.01+0.5in+1.5out"
THOUSAND = 1000
TEMPLATE_TOKENS = 64
"""Tokens that a server may put around a prompt, at most: a chat template's roles and marks."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """Of one teacher, in a unit of the user's own.

    Attributes:
        call: Of every call, >= 0.
        tokens_in: Of a thousand tokens that the teacher reads, >= 0.
        tokens_out: Of a thousand tokens that it writes, >= 0.
    """

    call: float = 0.0
    tokens_in: float = 0.0
    tokens_out: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if not all(0 <= value < float("inf") for value in (self.call, self.tokens_in, self.tokens_out)):
            raise ConfigError(f"a price must be finite and not below 0, got {self}; mend it")
        if self.call + self.tokens_in + self.tokens_out == 0:
            raise ConfigError("a price of 0 sets no bound to what is asked; leave the budget out instead")

    @classmethod
    def read(cls, text: str) -> "Price":
        """Read a price from text.

        Raises:
            ConfigError: It is none.
        """
        found: dict[str, float] = {}
        for part in text.replace(" ", "").split("+"):
            match = re.fullmatch(r"(\d+\.?\d*(?:e-?\d+)?|\.\d+)(in|out)?", part)
            name = {"in": "tokens_in", "out": "tokens_out", None: "call"}[match[2]] if match else ""
            if match is None or name in found:
                raise ConfigError(f"expected a price such as {FORM}, got {text!r}; mend it")
            found[name] = float(match[1])
        return cls(**found)

    @property
    def by_token(self) -> bool:
        """Whether it is known only afterwards what a call cost."""
        return self.tokens_in > 0 or self.tokens_out > 0

    def of(self, tokens_in: int, tokens_out: int, calls: int = 1) -> float:
        """What calls cost that read and wrote so many tokens in all."""
        return calls * self.call + (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / THOUSAND

    def most(self, prompt: str, tokens_out: int, calls: int = 1) -> float:
        """What calls with a prompt may cost: no token has less than a byte of its text.

        Args:
            prompt: What each of the calls says.
            tokens_out: That an answer has at most.
            calls: How many.
        """
        read = len(prompt.encode("utf-8", "surrogatepass")) + TEMPLATE_TOKENS
        return self.of(calls * read, calls * tokens_out, calls)
