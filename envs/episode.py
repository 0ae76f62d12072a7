"""One student's training run, a batch at a time: what both faces of the environment stand on."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlkd.devices import mixed_precision
from rlkd.errors import NonFiniteLossError
from rlkd.logit_cache import answered_ids, read_state
from rlkd.losses import cost_of_mixture, cross_entropy, distillation_loss, loss_gradient, refined_cross_entropy
from rlkd.models.students import last_linear
from rlkd.types import State, on_device
from rlkd.weighting import Mixture, Weighting, adapted, mixture
from rlkd.weighting.checks import check_weights
from rlkd.weighting.simplex import equal_weights

from .course import Course
from .scene import Reward
from .setup import DistillationSetup

VALIDATION_ROWS = 2000
"""Rows at most on which a policy is watched while it learns."""


class HiddenTap:
    """Remembers the input of a student's last linear layer in the newest forward pass."""

    def __init__(self, layer: nn.Linear) -> None:
        """Hook the layer."""
        self.value = torch.empty(0)
        layer.register_forward_pre_hook(self._remember)

    def _remember(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.value = args[0].detach().float()


class DistillationEpisode:
    """A student that is distilled step by step with weights from outside; a :class:`~rlkd_envs.scene.Scene`.

    Which batches it meets is for its :class:`~rlkd_envs.course.Course` to say. All of its randomness is a function of
    the seed given to :meth:`start`; the global random state is left alone.
    """

    def __init__(self, setup: DistillationSetup, reward: Reward | None = None) -> None:
        """Begin nothing yet.

        Args:
            setup: What episodes share.
            reward: Called around every step. None: a trial student's episode, of which no step is rewarded.
        """
        self.setup, self.settings, self.device, self.reward = setup, setup.settings, setup.device, reward
        self.course = Course(setup, rewarded=reward is not None)

    def start(self, seed: int) -> None:
        """Begin a new episode: a fresh student, and a fresh order of batches."""
        self.seed = seed
        self._random = torch.Generator().manual_seed(seed).get_state()
        self.student = self.setup.make_student(seed).to(self.device)
        self._tap = HiddenTap(last_linear(self.student, self.setup.task.num_classes))
        self._optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=self.settings.learning_rate, weight_decay=0.0, fused=True
        )  # as the trainer of the student that is reported
        self.course.start(seed)
        self._look()

    @property
    def step_index(self) -> int:
        """Steps that were taken."""
        return self.course.step_index

    @property
    def ids(self) -> NDArray[np.int64]:
        """Of the batch at hand, shape (B,)."""
        return self.course.ids

    @property
    def num_places(self) -> int:
        """Places in an instance's set of teachers: those of the task, and copies."""
        return self._state.teacher_logits.shape[-2]

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.course.done

    @property
    def learning_rate(self) -> float:
        """Of the step at hand."""
        return self.course.learning_rate

    def _look(self) -> None:
        """Take the batch at hand to where the student is."""
        self._batch = self.setup.batch(self.course.ids)
        self._state = on_device(self.course.state, self.device)
        assert self._state.labels is not None
        self.labels = self._state.labels

    @property
    def probe_labels(self) -> Tensor:
        """Labels of the probe rows drawn for this step, shape (P,)."""
        return torch.from_numpy(self.setup.task.table.labels[self.course.probe_ids]).to(self.device)

    def observed_state(self, *, student: bool) -> State:
        """The state of the batch at hand, with the student's eval-mode logits if asked for."""
        settings = self.settings
        state = replace(
            self._state, progress=self.course.progress, temperature=settings.temperature, divergence=settings.divergence
        )
        return replace(state, student_logits=self.batch_logits()) if student else state

    def validation_state(self, *, student: bool) -> State:
        """The state of labelled validation rows that teachers answered about."""
        ids = answered_ids(self.setup.source, self.setup.validation_ids)[:VALIDATION_ROWS]
        state = read_state(self.setup.task, self.setup.source, torch.from_numpy(ids))
        state = replace(state, progress=self.course.progress)
        return replace(state, student_logits=self._logits_of(ids).cpu()) if student else state

    def trial_losses(self, weighting: Weighting, seed: int, *, student: bool, refined: bool = False) -> Tensor:
        """What a student that is taught by a weighting loses on validation: that is what policies are chosen by.

        A fresh student is distilled over the whole horizon, without exploration. The episode at hand, and the global
        random state, are left as they are.

        Args:
            weighting: Is asked on the CPU, where the agent is, wherever the student lies.
            seed: Of the student, its batches and its sets of teachers: weightings that share it are paired.
            student: Whether the weighting reads the student's logits.
            refined: Refit the student's temperature first, see :func:`rlkd.losses.refined_cross_entropy`.

        Returns:
            Cross entropy of each labelled validation row, in nats, float32, on the CPU.

        Raises:
            NonFiniteLossError: If the student's loss becomes NaN or infinite.
        """
        trial, validation = DistillationEpisode(self.setup), self.setup.validation_ids
        chosen = adapted(weighting)
        trial.start(seed)
        while not trial.done:
            state = on_device(trial.observed_state(student=student), torch.device("cpu"))
            trial._check_finite(trial._optimise(mixture(chosen, state)))
            trial._move_on()
        labels = torch.from_numpy(self.setup.task.table.labels[validation]).to(self.device)
        loss = refined_cross_entropy if refined else cross_entropy
        return loss(trial._logits_of(validation), labels).cpu()

    def _logits_of(self, ids: NDArray[np.int64]) -> Tensor:
        chunks = np.array_split(ids, max(1, len(ids) // 256))
        return torch.cat([self._evaluate(self.setup.batch(chunk)) for chunk in chunks])

    def step(self, weights: Tensor) -> tuple[Tensor, float]:
        """Take one optimisation step with these weights and move on to the next batch.

        Args:
            weights: Rows on the simplex, shape (B, K), for the batch at hand.

        Returns:
            The reward of each instance, shape (B,), float32, on the CPU, and the mean loss in nats. ``rewarded``, bool,
            shape (B,), says which instances it was measured for: all, or those with a label if the reward reads them.
            ``over_equal``, float32, shape (B,), is the reward less what equal weights would have earned; None where
            the reward cannot tell.

        Raises:
            NonFiniteLossError: If loss or reward is NaN or infinite.
            WeightingError: If the weights are none, see :func:`rlkd.weighting.checks.check_weights`.
        """
        assert self.reward is not None
        weights = weights.to(self.device)
        check_weights(weights, self._state, "of the environment's actions")
        self.reward.before(self)
        losses = self._optimise(Mixture(teacher_logits=self._state.teacher_logits, weights=weights))
        earned = self.reward.after(self)
        equal = self.reward.of_equal_weights(self)
        self.over_equal = None if equal is None else (earned - equal).float().cpu()
        rewards = earned.float().cpu()
        self._check_finite(losses, rewards)
        self.rewarded = (self.labels >= 0).cpu() if self.reward.reads_labels else torch.ones(len(rewards)).bool()
        self._move_on()
        return rewards, float(losses.mean())

    def _move_on(self) -> None:
        self.course.move_on()
        self._look()

    def _optimise(self, taught: Mixture) -> Tensor:
        teachers, weights = taught.teacher_logits.to(self.device), taught.weights.to(self.device)
        scale = None if taught.scale is None else taught.scale.to(self.device)
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.student.train()
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            logits = self._forward(self._batch)
            self._random = torch.get_rng_state()
            losses = distillation_loss(
                logits, teachers, weights, self.labels, scale=scale, kd_ratio=self.settings.kd_ratio, **self._distance
            )
            self._optimizer.zero_grad()
            losses.mean().backward()
        self.student_logits, self.student_hidden = logits.detach(), self._tap.value
        self._taught = Mixture(teacher_logits=teachers, weights=weights, scale=scale)
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self._optimizer.step()
        return losses.detach()

    @property
    def _distance(self) -> dict[str, Any]:
        """How a student's distance to the mixture is measured."""
        return {name: getattr(self.settings, name) for name in ("temperature", "mix", "divergence")}

    @property
    def gradient(self) -> Tensor:
        """Gradient of the newest step's losses at the student's logits, shape (B, C)."""
        return self._gradient_of(self._taught)

    @property
    def equal_gradient(self) -> Tensor:
        """What :attr:`gradient` would have been, had the present teachers been weighted equally, shape (B, C)."""
        return self._gradient_of(replace(self._taught, weights=equal_weights(self._state.present)))

    def _gradient_of(self, taught: Mixture) -> Tensor:
        return loss_gradient(
            self.student_logits,
            taught.teacher_logits,
            taught.weights,
            self.labels,
            scale=taught.scale,
            kd_ratio=self.settings.kd_ratio,
            **self._distance,
        )

    def cost_of_mixture(self, logits: Tensor) -> Tensor:
        """What a student with these logits (B, C) pays for what the newest step taught, shape (B,)."""
        taught = self._taught
        return cost_of_mixture(logits, taught.teacher_logits, taught.weights, self.labels, **self._distance)

    def _check_finite(self, losses: Tensor, rewards: Tensor | float = 0.0) -> None:
        bad = ~torch.isfinite(losses.cpu() + rewards)
        if bad.any():
            raise NonFiniteLossError(
                f"loss and rewards must be finite, the loss is {float(losses.mean())} at step {self.step_index}, "
                f"instances {self.ids[bad.numpy()].tolist()[:16]}; lower the student's learning rate or look at these "
                "rows"
            )

    def batch_logits(self) -> Tensor:
        """The student's logits of the batch now, in eval mode, shape (B, C)."""
        return self._evaluate(self._batch)

    def probe_logits(self) -> tuple[Tensor, Tensor]:
        """The student's logits (P, C) and last-layer inputs (P, H) on this step's probe rows, in eval mode."""
        return self._evaluate(self.setup.batch(self.course.probe_ids)), self._tap.value

    @torch.no_grad()
    def _evaluate(self, batch: dict[str, Tensor]) -> Tensor:
        self.student.eval()
        return self._forward(batch)

    def _forward(self, batch: dict[str, Tensor]) -> Tensor:
        with mixed_precision(self.device, bf16=self.settings.bf16):
            logits: Tensor = self.student(**batch).logits
        return logits.float()
