"""Steps of the Trainer without what it does in each of them and need not: same results, to the last bit, in less time.

A step on a small student takes some ten milliseconds, of which the Trainer has one or two for itself. Some of them are
for looking things up that do not change while it trains, and for multiplying gradients by one.
"""

import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ABSENT = ("lomo_optim",)
"""Packages that accelerate looks for on the disk, twice in every step of an optimizer."""
SMALL, SURELY_BELOW = 1e-6, 0.9999
"""What torch adds to a norm before it divides by it, see :func:`torch.nn.utils.clip_grads_with_norm_`; and the share of
the largest norm up to which the factor is then at least one, which it never exceeds."""
EXACT = (torch.float32, torch.float64)
"""Types whose rounding cannot bring that factor below one; half precision can."""

IDEMPOTENT = (nn.Module.train, PreTrainedModel.train)
"""Ways of putting a model into training which change nothing where it is; another may, such as one that freezes."""


@contextmanager
def known_absent(packages: Iterable[str] = ABSENT) -> Iterator[None]:
    """Let Python know that packages are not there, as far as they are not: asked for again, it does not look.

    That is what None in :data:`sys.modules` means. It ends with the block.
    """
    absent = [name for name in packages if name not in sys.modules and importlib.util.find_spec(name) is None]
    modules = cast(dict[str, Any], sys.modules)
    modules.update(dict.fromkeys(absent))
    try:
        yield
    finally:
        for name in absent:
            if modules.get(name, "") is None:
                del modules[name]


def total_norm(values: Sequence[Tensor]) -> Tensor:
    """:func:`torch.nn.utils.get_total_norm`, on the CPU without sorting values that are all of one type.

    Accelerators have a kernel for all values at once, which is faster and rounds otherwise.
    """
    kinds = {(value.device.type, value.dtype) for value in values}
    if len(kinds) != 1 or kinds.pop()[0] != "cpu":
        return nn.utils.get_total_norm(values)
    total: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(values))))
    return total


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """:func:`torch.nn.utils.clip_grad_norm_`, which on the CPU leaves gradients alone that it would multiply by one.

    Args:
        parameters: Whose gradients are scaled in place, together, to a norm of at most ``max_norm``.
        max_norm: > 0.

    Returns:
        Their norm before.
    """
    held = [one for one in parameters if one.grad is not None]
    total = total_norm([one.grad for one in held if one.grad is not None])
    may_skip = total.device.type == "cpu" and total.dtype in EXACT  # elsewhere asking would wait
    if may_skip and total.item() <= SURELY_BELOW * max_norm - SMALL:
        return total
    nn.utils.clip_grads_with_norm_(held, max_norm, total)
    return total


class LeanMixin:
    """What a trainer does in every step, once a run where that is all it takes; named before the Trainer's class."""

    args: Any
    accelerator: Any
    model: Any
    optimizer: Any

    @cached_property
    def _processes(self) -> int:
        """How many share every batch."""
        return int(self.args.world_size)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own."""
        self.__dict__.pop("_walked", None)
        try:
            with known_absent():
                return cast(Any, super()).train(*args, **kwargs)
        finally:
            walked = self.__dict__.pop("_walked", None)
            if walked is not None:
                vars(walked.model).pop("zero_grad", None)  # of a step that was broken off

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own, which walks over the student's modules, and its loop does after it: they are known."""
        walk = self._looked(model)
        if walk.modules is None:
            return cast(Any, super()).training_step(model, *args, **kwargs)
        own = vars(model)
        own["train"] = walk.train
        try:
            loss = cast(Any, super()).training_step(model, *args, **kwargs)
        finally:
            del own["train"]
        if self.accelerator.gradient_state.sync_gradients:  # the optimizer steps next
            own["zero_grad"] = walk.zero_grad
        return loss

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> Any:
        """The Trainer's own, which counts the student's parameters: once for inputs of a size."""
        main = inputs.get(getattr(self.model, "main_input_name", "input_ids"))
        if not isinstance(main, Tensor):
            return cast(Any, super()).floating_point_ops(inputs)
        known, size = self._walk(self.model).operations, main.numel()
        if size not in known:
            known[size] = cast(Any, super()).floating_point_ops(inputs)
        return known[size]

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        # what the Trainer's own comes to where gradients are neither scaled nor sharded
        if self._processes > 1 or self.accelerator.scaler is not None:
            return cast(Any, super())._clip_grad_norm(model)
        return clip_grad_norm(self._walk(model).parameters, self.args.max_grad_norm)

    def _walk(self, model: nn.Module) -> "Walk":
        # of this step, in which nothing but the optimizer changes a model
        walked: Walk | None = self.__dict__.get("_walked")
        return walked if walked is not None and walked.model is model else self._looked(model)

    def _looked(self, model: nn.Module) -> "Walk":
        # again when the optimizer has got other parameters, as where a callback adds an adapter
        stepped = sum(len(group["params"]) for group in self.optimizer.param_groups)
        walked: Walk | None = self.__dict__.get("_walked")
        if walked is None or (walked.model, walked.stepped) != (model, stepped):
            walked = self.__dict__["_walked"] = walk_over(model, stepped)
        return walked


@dataclass(frozen=True)
class Walk:
    """What a walk over a student's modules found."""

    model: nn.Module
    stepped: int
    """Parameters that the optimizer had."""
    parameters: list[nn.Parameter]
    operations: dict[int, Any]
    """Floating point operations of inputs, by their number of elements."""
    modules: list[nn.Module] | None
    """All; None where one has its own way of being put into training, or of letting go of gradients."""
    train: "InTraining"
    zero_grad: "ZeroGradOnce"


def walk_over(model: nn.Module, stepped: int) -> Walk:
    """Walk over a student whose optimizer has so many parameters."""
    modules, parameters = plain_modules(model), list(model.parameters())
    train, zero_grad = InTraining(model, modules or []), ZeroGradOnce(model, parameters)
    return Walk(model, stepped, parameters, {}, modules, train, zero_grad)


def plain_modules(model: nn.Module) -> list[nn.Module] | None:
    """The modules of a model, itself too, if it does nothing to those that are in training already."""
    modules = list(model.modules())
    plain = all(type(one).train in IDEMPOTENT and "train" not in vars(one) for one in modules)
    return modules if plain and type(model).zero_grad is nn.Module.zero_grad else None


@dataclass(frozen=True)
class InTraining:
    """A model's ``train``, which leaves its modules alone where all are in training already."""

    model: nn.Module
    modules: list[nn.Module]

    def __call__(self, mode: bool = True) -> nn.Module:
        """As :meth:`torch.nn.Module.train`."""
        if mode and all([one.training for one in self.modules]):
            return self.model
        return type(self.model).train(self.model, mode)


@dataclass(frozen=True)
class ZeroGradOnce:
    """A model's ``zero_grad`` for parameters that are known, once: then it is the model's own again."""

    model: nn.Module
    parameters: list[nn.Parameter]

    def __call__(self, set_to_none: bool = True) -> None:
        """As :meth:`torch.nn.Module.zero_grad`."""
        vars(self.model).pop("zero_grad", None)
        if not set_to_none:
            self.model.zero_grad(set_to_none)
            return
        for parameter in self.parameters:
            parameter.grad = None
