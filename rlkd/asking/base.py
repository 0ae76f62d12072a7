"""The contract of a strategy: which instances, and which teachers, while the budget lasts."""

from typing import Protocol

from rlkd.asking.bank import TeacherBank
from rlkd.asking.pool import Pool


class Strategy(Protocol):
    """Anything that asks teachers about instances until it has asked enough, or may not ask more."""

    def run(self, pool: Pool, bank: TeacherBank, seed: int) -> None:
        """Ask.

        A strategy is a function of pool, seed and what the bank has answered in this run, so that one that was
        interrupted goes the same way again, without paying, until it is where it was (:class:`~rlkd.asking.OneRun`).

        Args:
            pool: What is known before.
            bank: Is asked; a budget that is spent ends the run.
            seed: Of what is drawn.
        """


class StrategyBuilder(Protocol):
    """An entry of the registry: a class that makes a strategy from ``name:argument``."""

    def build(self, argument: str | None) -> Strategy:
        """Make it; a class method.

        Raises:
            ConfigError: The argument is missing, unexpected or malformed.
        """
