"""Trial students that are trained at once: their parameters stacked on a leading axis, their steps one step.

On an accelerator a small student waits for its kernels to be launched; E of them wait once.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from transformers import PreTrainedModel

from rlkd.devices import mixed_precision
from rlkd.errors import NonFiniteLossError
from rlkd.losses import cross_entropy, distillation_loss, likeliest_temperatures
from rlkd.types import State, on_device
from rlkd.weighting import Weighting, adapted, mixture

from .course import Course
from .setup import DistillationSetup

log = logging.getLogger(__name__)

LARGEST_NORM = 1.0
ROWS = 256
"""Validation rows that are classified at once, by every student."""

Inputs = dict[str, Tensor]


def can_be_stacked(setup: DistillationSetup) -> bool:
    """Whether several students of a setup can be one network: not those with kernels of their own, as LSTMs have."""
    try:
        students = StackedStudents([setup.make_student(seed).to(setup.device) for seed in (0, 1)], 0.0, bf16=False)
        students.logits(setup.batch(setup.train_ids[:2]), train=True, shared=True)
    except RuntimeError as error:  # of torch.vmap
        log.info("trial students are trained one after the other: %s", str(error).partition("\n")[0])
        return False
    return True


class StackedStudents:
    """E students of one kind as one network: every tensor that goes in or comes out has a leading axis E.

    A student's gradient comes from its own losses alone, it is clipped by its own norm, and AdamW works number by
    number, so that each is trained as it would be alone, but for the order in which sums are taken and for its draws of
    dropout.
    """

    def __init__(self, students: Sequence[nn.Module], learning_rate: float, *, bf16: bool) -> None:
        """Stack them.

        Args:
            students: E of them, which differ in their parameters only, on one device.
            learning_rate: Of the first step.
            bf16: Compute in bfloat16 where that is safe.
        """
        parameters, self._buffers = stack_module_state(list(students))
        self._parameters = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        self._base = copy.deepcopy(students[0]).to("meta")
        if isinstance(self._base, PreTrainedModel):
            self._base.set_attn_implementation("eager")  # made of products alone, which are stacked
        self._device, self._bf16 = next(iter(self._parameters.values())).device, bf16
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=learning_rate, weight_decay=0.0, fused=True
        )  # as of a student alone

    def logits(self, inputs: Inputs, *, train: bool, shared: bool = False) -> Tensor:
        """Logits (E, B, C), float32.

        Args:
            inputs: Of all students, (E, B, ...).
            train: With dropout.
            shared: The inputs (B, ...) are the same for all.
        """
        self._base.train(train)
        if "attention_mask" in inputs:
            inputs = inputs | {"attention_mask": self._prepared(inputs["attention_mask"])}

        def one(parameters: Any, buffers: Any, fields: Inputs) -> Tensor:
            logits: Tensor = functional_call(self._base, (parameters, buffers), kwargs=fields).logits
            return logits

        every: Callable[..., Tensor] = torch.vmap(one, (0, 0, None if shared else 0), randomness="different")
        with mixed_precision(self._device, bf16=self._bf16):
            return every(self._parameters, self._buffers, inputs).float()

    def _prepared(self, mask: Tensor) -> Tensor:
        """A padding mask (..., B, L) as attention adds it, (..., B, 1, L, L): transformers would look into it."""
        kept = mask.bool()[..., None, None, :].expand(*mask.shape[:-1], 1, mask.shape[-1], mask.shape[-1])
        return torch.zeros_like(kept, dtype=torch.float32).masked_fill(~kept, torch.finfo(torch.float32).min)

    def step(self, losses: Tensor, learning_rate: float) -> None:
        """One step of every student against the mean of its losses (E, B)."""
        self._optimizer.zero_grad()
        losses.mean(-1).sum().backward()
        gradients = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        factors = (LARGEST_NORM / (norms + 1e-6)).clamp_max(1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()


def trial_losses_at_once(
    setup: DistillationSetup, weighting: Weighting, seeds: Sequence[int], *, student: bool, refined: bool
) -> Tensor:
    """What several trial students lose on validation, see :meth:`~rlkd_envs.episode.DistillationEpisode.trial_losses`.

    Args:
        setup: What students share; theirs can be stacked, see :func:`can_be_stacked`.
        weighting: Is asked on the CPU, about the batches of all students together.
        seeds: Of E students.
        student: Whether the weighting reads the students' logits.
        refined: Refit every student's temperature first.

    Returns:
        Cross entropy of each labelled validation row, in nats, float32, shape (E, rows), on the CPU.

    Raises:
        NonFiniteLossError: If a student's loss becomes NaN or infinite.
    """
    chosen, settings, courses = adapted(weighting), setup.settings, [Course(setup, rewarded=False) for _ in seeds]
    for course, seed in zip(courses, seeds, strict=True):
        course.start(seed)
    made = [setup.make_student(seed).to(setup.device) for seed in seeds]
    students = StackedStudents(made, settings.learning_rate, bf16=settings.bf16)
    finite = torch.ones(len(courses), dtype=torch.bool, device=setup.device)
    with torch.random.fork_rng(_devices(setup.device)):
        torch.manual_seed(seeds[0])
        while not courses[0].done:
            losses = _step(setup, students, courses, chosen, student)
            finite &= losses.isfinite().all(-1)
            for course in courses:
                course.move_on()
    if not finite.all():
        raise NonFiniteLossError(
            f"loss and rewards must be finite, {int((~finite).sum())} of {len(courses)} trial students' became NaN or "
            "infinite; lower the student's learning rate"
        )
    return _validated(setup, students, refined).cpu()


def _devices(device: torch.device) -> list[torch.device]:
    return [] if device.type == "cpu" else [device]


def _step(
    setup: DistillationSetup, students: StackedStudents, courses: Sequence[Course], weighting: Any, student: bool
) -> Tensor:
    """Losses of one step, shape (E, B), detached."""
    settings, first = setup.settings, courses[0]
    inputs = _inputs(setup, [course.ids for course in courses])
    state = replace(
        stacked([course.state for course in courses]),
        progress=first.progress,
        temperature=settings.temperature,
        divergence=settings.divergence,
    )
    if student:
        with torch.no_grad():
            state = replace(state, student_logits=students.logits(inputs, train=False).cpu())
    taught = mixture(weighting, state)
    state = on_device(state, setup.device)
    losses = distillation_loss(
        students.logits(inputs, train=True),
        taught.teacher_logits.to(setup.device),
        taught.weights.to(setup.device),
        state.labels,
        scale=None if taught.scale is None else taught.scale.to(setup.device),
        kd_ratio=settings.kd_ratio,
        temperature=settings.temperature,
        mix=settings.mix,
        divergence=settings.divergence,
    )
    students.step(losses, first.learning_rate)
    return losses.detach()


def _inputs(setup: DistillationSetup, ids: Sequence[NDArray[np.int64]]) -> Inputs:
    """Inputs of every student's batch, (E, B, ...), padded to the longest of all."""
    together = setup.batch(np.concatenate(ids))
    return {name: value.view(len(ids), -1, *value.shape[1:]) for name, value in together.items()}


def stacked(states: Sequence[State]) -> State:
    """States of batches of one size as one with a leading axis; a teacher is there where some state does not say."""
    given = {name for one in states for name in one.available()}
    fields: dict[str, Any] = {name: getattr(states[0], name) for name in states[0].available()}
    for name in given:
        values = [one.present if name == "teacher_mask" else getattr(one, name) for one in states]
        if isinstance(values[0], Tensor):
            fields[name] = torch.stack(values)
    return replace(states[0], **fields)


@torch.no_grad()
def _validated(setup: DistillationSetup, students: StackedStudents, refined: bool) -> Tensor:
    """Cross entropy of labelled validation rows, shape (E, rows)."""
    ids = setup.validation_ids
    chunks = np.array_split(ids, max(1, len(ids) // ROWS))
    logits = torch.cat([students.logits(setup.batch(chunk), train=False, shared=True) for chunk in chunks], dim=1)
    labels = torch.from_numpy(setup.task.table.labels[ids]).to(setup.device)
    if refined:
        logits = logits / likeliest_temperatures(logits.transpose(0, 1), labels).view(-1, 1, 1)
    return cross_entropy(logits, labels.expand(logits.shape[:-1]))
