"""Trial students that are trained at once: their parameters stacked on a leading axis, their steps one step."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from rlkd.types import State

Inputs = dict[str, Tensor]


class StudentsTogether:
    """E students of one kind as one network: every tensor that goes in or comes out has a leading axis E.

    A student's gradient comes from its own losses alone and AdamW works number by number, so that each is trained as it
    would be alone, but for the order in which sums are taken and for its draws of dropout.
    """

    def __init__(self, students: Sequence[nn.Module]) -> None:
        """Stack them.

        Args:
            students: E of them, which differ in their parameters only, on one device.
        """
        parameters, buffers = stack_module_state(list(students))
        self.parameters: dict[str, Tensor] = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        self._buffers = buffers
        self._base = copy.deepcopy(students[0]).to("meta")

    def logits(self, inputs: Inputs, *, train: bool) -> Tensor:
        """Logits (E, B, C) of the inputs (E, B, ...)."""
        self._base.train(train)

        def one(parameters: Any, buffers: Any, fields: Inputs) -> Tensor:
            logits: Tensor = functional_call(self._base, (parameters, buffers), kwargs=fields).logits
            return logits

        asked: Callable[..., Tensor] = torch.vmap(one, randomness="different")
        return asked(self.parameters, self._buffers, inputs)
