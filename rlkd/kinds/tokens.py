"""Classes of tokens: of every one, or of the next one."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlkd.errors import TeacherError
from rlkd.kinds.base import Kind, Positions
from rlkd.types import State


class TokenClassification(Kind):
    """Every token has one of C classes; those without a label, padding among them, are not taught."""

    name = "token classification"
    causal: ClassVar[bool] = False

    def positions(self, batch: Mapping[str, Any]) -> Positions:
        """Tokens with a label; without labels all that the ``attention_mask`` has."""
        labels, causal = batch.get("labels"), self.causal
        if labels is None:
            mask = batch.get("attention_mask")
            taken = torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
            taken = taken[:, 1:] if causal else taken
            return Positions(taken, None, int(taken.sum()), causal)
        told = labels[:, 1:] if causal else labels
        taken = told >= 0
        return Positions(taken, told[taken], int(taken.sum()), causal)

    def state(self, known: State, student: Tensor, labels: Tensor | None) -> State:
        """The tokens that are taught, one after the other.

        Raises:
            TeacherError: Teachers tell something of rows, as caches do.
        """
        if len(known.teacher_logits) != len(student):
            raise TeacherError(
                f"{self.name} needs an answer of every teacher for each of {len(student)} tokens, got one for each of "
                f"{len(known.teacher_logits)} rows, as a cache or a classifier of texts has them; pass models of the "
                "student's kind"
            )
        return super().state(known, student, labels)


class CausalTokens(TokenClassification):
    """Every token is told by those before it."""

    name = "tokens of a causal model"
    causal = True
