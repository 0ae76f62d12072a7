"""What a suite of ``system: mkd`` says beside tasks, teachers, students and seeds: budgets, and entries.

An entry stands where other suites have a weighting and is written ``TEACHER[/STUDENT][+refined]``. TEACHER is
``labels`` (no teacher), ``single`` (that of the task alone), ``multi`` (that of all tasks) or a weighting of the two;
STUDENT is ``multi`` (one of all tasks, the default) or ``single`` (one a task); ``+refined`` fine-tunes it on
the task afterwards.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from rlkd.benchmark.reading import built
from rlkd.benchmark.suites import System
from rlkd.errors import ConfigError

LABELS = "labels"
TEACHERS: Mapping[str, str] = {"single": "fixed:1,0", "multi": "fixed:0,1"}
"""Teachers alone, as weightings of the two."""
_ENTRY = re.compile(r"(?P<teacher>.+?)(?:/(?P<student>single|multi))?(?P<refined>\+refined)?")
_SMOKE_EPOCHS = 0.2


@dataclass(frozen=True, kw_only=True)
class MkdEntry:
    """Who teaches whom, and whether the student is refined."""

    teacher: str
    student: str = "multi"
    refined: bool = False

    @property
    def weighting(self) -> str | None:
        """The weighting of the single-task and the multi-task teacher; None where labels alone teach."""
        return None if self.teacher == LABELS else TEACHERS.get(self.teacher, self.teacher)


def parse_entry(name: str) -> MkdEntry:
    """Read an entry of an MKD suite.

    Raises:
        ConfigError: It is not written as one.
    """
    match = _ENTRY.fullmatch(name)
    if match is None or match["teacher"].endswith("+refined"):
        raise ConfigError(
            f"expected an entry of MKD, 'multi', 'single/single' or 'entropy/multi+refined' for example, got {name!r}; "
            "mend it"
        )
    return MkdEntry(teacher=match["teacher"], student=match["student"] or "multi", refined=match["refined"] is not None)


@dataclass(frozen=True, kw_only=True)
class MkdBudget:
    """Budgets of an MKD suite, in passes over the training rows."""

    epochs: Mapping[str, float] | float = 10.0
    """Of students, all alike or by student."""
    refine_epochs: float = 3.0
    """Of the refinement on one task."""
    refine_kd_ratio: float = 0.0
    """Share of the teachers in its loss; 0: labels alone."""

    def __post_init__(self) -> None:
        """Check ranges."""
        budgets = self.epochs.values() if isinstance(self.epochs, Mapping) else [self.epochs]
        for value in (*budgets, self.refine_epochs):
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ConfigError(f"mkd needs epochs and refine_epochs > 0, got {value!r}; raise it")
        if not 0 <= self.refine_kd_ratio <= 1:
            raise ConfigError(f"mkd needs refine_kd_ratio in [0, 1], got {self.refine_kd_ratio}; change it")

    def epochs_of(self, student: str) -> float:
        """Passes of one of the suite's students.

        Raises:
            ConfigError: None are given for it.
        """
        if not isinstance(self.epochs, Mapping):
            return float(self.epochs)
        if student not in self.epochs:
            raise ConfigError(f"mkd gives no epochs for student {student!r}; add it to epochs")
        return float(self.epochs[student])

    def smoke(self) -> "MkdBudget":
        """Budgets that show that everything runs."""
        few = {name: _SMOKE_EPOCHS for name in self.epochs} if isinstance(self.epochs, Mapping) else _SMOKE_EPOCHS
        return replace(self, epochs=few, refine_epochs=_SMOKE_EPOCHS)


@dataclass(frozen=True, kw_only=True)
class MkdTask(System):
    """What a task of a suite of MKD says: budgets, and entries in the place of weightings."""

    budget: MkdBudget

    @classmethod
    def read(cls, content: Mapping[str, Any], task: Mapping[str, Any], where: str) -> Self:
        """Read the budgets."""
        return cls(budget=built(MkdBudget, dict(content), f"{where}, mkd"))

    def weighting_in(self, name: str) -> str | None:
        """The weighting of an entry's two teachers; None where labels alone teach."""
        return parse_entry(name).weighting

    def smoke(self) -> Self:
        """Budgets that show that everything runs."""
        return replace(self, budget=self.budget.smoke())
