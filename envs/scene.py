"""What a reward sees of a student's step, and what a reward is."""

from typing import Protocol

from torch import Tensor


class Scene(Protocol):
    """What a reward may look at around one optimisation step."""

    labels: Tensor
    """Of the batch, shape (B,)."""
    student_logits: Tensor
    """Of the batch, from the forward pass of the step itself, detached, shape (B, C)."""
    student_hidden: Tensor
    """Inputs of the student's last layer in that pass, detached, shape (B, H)."""

    @property
    def gradient(self) -> Tensor:
        """Of the loss that the student is trained with, of each instance at its logits in that pass, shape (B, C).

        What the step follows, whatever temperature, ratio, divergence and mix are.
        """

    @property
    def equal_gradient(self) -> Tensor:
        """What :attr:`gradient` would have been, had the present teachers been weighted equally, shape (B, C)."""

    @property
    def probe_labels(self) -> Tensor:
        """Of the probe rows drawn for this step, shape (P,)."""

    @property
    def learning_rate(self) -> float:
        """Of this step; a first-order reward of a step that cannot move the student is zero."""

    def batch_logits(self) -> Tensor:
        """The student's logits of the batch now, in eval mode, shape (B, C)."""

    def cost_of_mixture(self, logits: Tensor) -> Tensor:
        """What a student with these logits (B, C) pays for what it was taught of the batch, shape (B,)."""

    def probe_logits(self) -> tuple[Tensor, Tensor]:
        """The student's logits (P, C) and last-layer inputs (P, H) on the probe rows now, in eval mode."""


class Reward(Protocol):
    """Called around every optimisation step of the student."""

    @property
    def reads_labels(self) -> bool:
        """Whether an instance without a label of its own earns nothing that could teach the agent."""

    def before(self, scene: Scene) -> None:
        """Look at the student before the step."""

    def after(self, scene: Scene) -> Tensor:
        """Reward of each instance after the step, shape (B,), float32."""

    def of_equal_weights(self, scene: Scene) -> Tensor | None:
        """What the instances would have earned at this step with equal weights, shape (B,); asked after :meth:`after`.

        None where only another step of the student could tell.
        """


class MeasuredAcross:
    """A reward that is read off the student after its step: nothing tells it of a step that was not taken."""

    def of_equal_weights(self, scene: Scene) -> None:
        """None."""
