"""What an answer costs, and at most costs, before it is asked for.

Amounts are whole numbers of billionths of the user's unit, rounded up call by call: sums are then exact and the same in
any order, so that a budget is not exceeded by the last bit of a float either.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from rlkd.errors import ConfigError, unknown_name
from rlkd.models.served import ServedTeacher
from rlkd.models.teachers import Teacher

FORM = "0.01 (a call), 0.15/1M in + 0.6/1M out (tokens read and written), or 0.002 + 0.5/1k in + 1.5/1k out"
UNIT = 10**9
"""Parts of the user's unit in which amounts are counted."""
MOST = 1e6
"""A price is below it: no amount then exceeds what an entry holds."""
TERM = re.compile(r"(\d+\.?\d*(?:e-?\d+)?|\.\d+(?:e-?\d+)?)(?:/1([km])(in|out))?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Price:
    """Of one teacher, in a unit of the user's own.

    Attributes:
        call: Of every call, in [0, 1e6).
        million_in: Of a million tokens that the teacher reads, likewise.
        million_out: Of a million tokens that it writes, likewise.
    """

    call: float = 0.0
    million_in: float = 0.0
    million_out: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if not all(0 <= value < MOST for value in (self.call, self.million_in, self.million_out)):
            raise ConfigError(f"a price must be at least 0 and below {MOST:,.0f}, got {self}; mend it")
        if self.call + self.million_in + self.million_out == 0:
            raise ConfigError("a price of 0 sets no bound to what is asked; give a small one, or no budget")

    @classmethod
    def read(cls, text: str) -> "Price":
        """Read a price from text such as ``"1"`` or ``"0.002 + 0.5/1k in + 1.5/1k out"``.

        Raises:
            ConfigError: It is none.
        """
        found: dict[str, float] = {}
        for term in text.replace(" ", "").split("+"):
            match = TERM.fullmatch(term)
            name = f"million_{match[3].lower()}" if match and match[3] else "call"
            if match is None or name in found:
                raise ConfigError(f"expected a price such as {FORM}, got {text!r}; mend it")
            found[name] = float(match[1]) * (1000 if (match[2] or "").lower() == "k" else 1)
        return cls(**found)

    @property
    def by_token(self) -> bool:
        """Whether it is known only afterwards what a call cost."""
        return self.million_in > 0 or self.million_out > 0

    def of(self, tokens_in: int, tokens_out: int, calls: int = 1) -> int:
        """What calls cost that read and wrote so many tokens in all, in billionths."""
        tokens = tokens_in * exact(self.million_in) + tokens_out * exact(self.million_out)
        return math.ceil((calls * exact(self.call) + tokens / 10**6) * UNIT)

    def most(self, prompt: str, overhead: int, tokens_out: int, calls: int = 1) -> int:
        """What calls with a prompt cost at most, in billionths: no token stands for less than a byte of its text.

        Args:
            prompt: What each of the calls says.
            overhead: Tokens at most that the server puts around it.
            tokens_out: That an answer has at most.
            calls: How many.
        """
        read = len(prompt.encode("utf-8", "surrogatepass")) + overhead
        return self.of(calls * read, calls * tokens_out, calls)


def exact(value: float) -> Fraction:
    """The number that a float is written as: 0.1 is a tenth."""
    return Fraction(repr(float(value)))


def whole(amount: float) -> float:
    """A budget in billionths, rounded down; infinity stays."""
    return amount if math.isinf(amount) else math.floor(exact(amount) * UNIT)


def prices_of(teachers: Sequence[Teacher], prices: Mapping[str, Price | float | str]) -> list[Price]:
    """The price of each teacher, (K,)."""
    names = [teacher.name for teacher in teachers]
    for name in prices:
        if name not in names:
            raise unknown_name("teacher with a price", name, names)
    given = [prices.get(name, 1.0) for name in names]
    found = [one if isinstance(one, Price) else Price.read(str(one)) for one in given]
    for teacher, price in zip(teachers, found, strict=True):
        if price.by_token and not isinstance(teacher, ServedTeacher):
            raise ConfigError(
                f"teacher {teacher.name!r} tells no tokens, got a price by token; give it one for each call"
            )
    return found
