"""Other sets of teachers for the instances of a batch: what is learned on one set is to serve on others."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rlkd.settings import EpisodeSettings
from rlkd.settings.knobs import check
from rlkd.types import State, pick_teachers


@dataclass(frozen=True, kw_only=True)
class TeacherSets:
    """How an instance's set of teachers differs from the real one.

    A network that only ever saw three teachers learns what agreement means among three. Copies make sets larger and
    agreement cheap: a teacher and its copy agree without being right.
    """

    copies: int = EpisodeSettings.teacher_copies
    """At most so many further places in the set, each held by a copy of a teacher drawn for the instance; how many are
    held is drawn too, so that the real set is met beside larger ones. Range: >= 0."""
    dropout: float = EpisodeSettings.teacher_dropout
    """Chance that a place is empty. Range: [0, 1)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check(EpisodeSettings, teacher_copies=self.copies, teacher_dropout=self.dropout)

    @property
    def vary(self) -> bool:
        """Whether any set differs from the real one."""
        return self.copies > 0 or self.dropout > 0

    def draw(self, state: State, random: np.random.Generator) -> tuple[State, Tensor]:
        """Draw a set of J = K + copies places for every instance.

        Args:
            state: Of K teachers, shape (B, K, C).
            random: The only source of randomness.

        Returns:
            The same instances with their drawn sets, and which teacher holds each place, int64, shape (B, J).
        """
        rows, teachers = state.teacher_logits.shape[:2]
        chosen = torch.arange(teachers).expand(rows, teachers)
        held = np.ones((rows, teachers), dtype=bool)
        if self.copies > 0:
            drawn = torch.from_numpy(random.integers(teachers, size=(rows, self.copies)))
            copied = np.arange(self.copies) < random.integers(self.copies + 1, size=(rows, 1))
            chosen, held = torch.cat([chosen, drawn], dim=1), np.concatenate([held, copied], axis=1)
            state = pick_teachers(state, chosen)
        if self.dropout > 0:
            kept = held & (random.random(chosen.shape) >= self.dropout)
            held = np.where(kept.any(axis=1, keepdims=True), kept, held)  # somebody has to be there
        if not held.all():
            state = replace(state, teacher_mask=torch.from_numpy(held) & state.present)
        return state, chosen
