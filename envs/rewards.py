"""Rewards of the weighting agent: one number per instance, positive when the student's step was good.

A reward sees the student only through a :class:`~rlkd_envs.scene.Scene`, which holds training and probe rows and
nothing else.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from rlkd.errors import unknown_name
from rlkd.losses import cross_entropy, likeliest_temperatures, logit_gain
from rlkd.losses.classes import one_hot

from .level_rewards import RlKd1, RlKd2, RlKd3
from .scene import MeasuredAcross, Reward, Scene


class LogitGain:
    """First-order drop of the instance's own cross entropy in logit space: ``(p - q) . (p - y)``.

    p is the student, q the mixture it was taught, y the label. The step moves the logits against ``p - q``, the
    gradient of the divergence; the cross entropy falls by the inner product with its own gradient ``p - y``. With
    another temperature, ratio, divergence or mix the gradient of that loss stands in the place of ``p - q``, see
    :func:`rlkd.losses.logit_gain`. Closed form: no further forward pass, no probe.
    """

    reads_labels = True

    def before(self, scene: Scene) -> None:
        """Nothing to remember."""

    def after(self, scene: Scene) -> Tensor:
        """Gain per unit of learning rate, shape (B,); in [-2, 2] at temperature 1."""
        return self._along(scene, scene.gradient)

    def of_equal_weights(self, scene: Scene) -> Tensor:
        """The gain along the other gradient, shape (B,)."""
        return self._along(scene, scene.equal_gradient)

    @staticmethod
    def _along(scene: Scene, gradient: Tensor) -> Tensor:
        return logit_gain(scene.student_logits, gradient, scene.labels) * float(scene.learning_rate > 0)


class StudentGain(MeasuredAcross):
    """Drop of the instance's cross entropy across the step, in nats, both sides in eval mode."""

    reads_labels = True

    def before(self, scene: Scene) -> None:
        """Remember the loss of each instance."""
        self._before = cross_entropy(scene.batch_logits(), scene.labels)

    def after(self, scene: Scene) -> Tensor:
        """Drop per instance, shape (B,)."""
        return self._before - cross_entropy(scene.batch_logits(), scene.labels)


class Influence:
    """First-order drop of the probe loss that each instance causes through the last layer.

    With logits z = W h and G = mean over probe rows of ``(p - y) outer h``, the reward of instance i is
    ``(p_i - q_i) . (G h_i)``, scaled by its mean absolute value over the batch. ``p_i - q_i`` is the gradient of the
    divergence at temperature 1; with other settings of the loss, its gradient stands there.

    Refined, the probe loss is the one that is left when the student's temperature is refitted on the probe rows, see
    :func:`rlkd.losses.refined_cross_entropy`: to make the student surer of all it says, or less so, earns nothing.

    Source:
        Koh and Liang 2017, arXiv:1703.04730, with the identity in place of the Hessian and the last layer alone.
    """

    reads_labels = False
    """Those of probe rows; an instance of the batch needs none."""

    def __init__(self, *, refined: bool = False) -> None:
        """Choose the probe loss."""
        self.refined = refined

    def before(self, scene: Scene) -> None:
        """Remember the gradient of the probe loss at the last layer."""
        logits, hidden = scene.probe_logits()
        if self.refined:
            logits = logits / likeliest_temperatures(logits.unsqueeze(1), scene.probe_labels)
        p = F.softmax(logits, dim=-1)
        self._gradient = (p - one_hot(scene.probe_labels, p)).T @ hidden / len(p)

    def after(self, scene: Scene) -> Tensor:
        """Scaled drop, shape (B,)."""
        self._direction = scene.student_hidden @ self._gradient.T
        drop = (scene.gradient * self._direction).sum(-1)
        self._unit = drop.abs().mean().clamp_min(1e-12)
        return drop / self._unit * float(scene.learning_rate > 0)

    def of_equal_weights(self, scene: Scene) -> Tensor:
        """The drop along the other gradient on the scale of this step, shape (B,)."""
        drop = (scene.equal_gradient * self._direction).sum(-1)
        return drop / self._unit * float(scene.learning_rate > 0)


class ProbeGain(MeasuredAcross):
    """Drop of the mean probe loss across the step, in nats: one number, shared by the whole batch."""

    reads_labels = False

    def before(self, scene: Scene) -> None:
        """Remember the probe loss."""
        self._before = self._loss(scene)

    def after(self, scene: Scene) -> Tensor:
        """The drop, repeated for each instance, shape (B,)."""
        return (self._before - self._loss(scene)).expand(len(scene.labels)).clone()

    @staticmethod
    def _loss(scene: Scene) -> Tensor:
        return cross_entropy(scene.probe_logits()[0], scene.probe_labels).mean()


class BatchMean:
    """Another reward, of which every instance of the batch gets the mean: the credit of the published system.

    Where the reward reads labels it is the mean of those that have one.
    """

    def __init__(self, reward: Reward) -> None:
        """Wrap a reward."""
        self.inner, self.reads_labels = reward, reward.reads_labels

    def before(self, scene: Scene) -> None:
        """Let the reward look at the student before the step."""
        self.inner.before(scene)

    def after(self, scene: Scene) -> Tensor:
        """The mean, repeated for each instance, shape (B,)."""
        return self._mean(self.inner.after(scene), scene)

    def of_equal_weights(self, scene: Scene) -> Tensor | None:
        """The mean of what the instances would have earned, shape (B,)."""
        rewards = self.inner.of_equal_weights(scene)
        return None if rewards is None else self._mean(rewards, scene)

    def _mean(self, rewards: Tensor, scene: Scene) -> Tensor:
        paid = rewards[scene.labels >= 0] if self.reads_labels else rewards
        mean = paid.mean() if len(paid) else rewards.new_zeros(())
        return mean.expand(len(rewards)).clone()


REWARDS: dict[str, Callable[[], Reward]] = {
    "logit_gain": LogitGain,
    "student_gain": StudentGain,
    "influence": Influence,
    "refined_influence": partial(Influence, refined=True),
    "probe_gain": ProbeGain,
    **{"rl_kd_1": RlKd1, "rl_kd_2": RlKd2, "rl_kd_3": RlKd3},
}
"""Every reward by name."""


CREDITS = ("instance", "batch")
"""Whose reward an instance gets: its own, or the mean of its batch."""


def make_reward(name: str, *, credit: str = "instance") -> Reward:
    """Make a reward by name.

    Args:
        name: A key of :data:`REWARDS`.
        credit: One of :data:`CREDITS`.

    Raises:
        UnknownNameError: If there is no such reward or credit.
    """
    if name not in REWARDS:
        raise unknown_name("reward", name, REWARDS)
    if credit not in CREDITS:
        raise unknown_name("credit", credit, CREDITS)
    reward = REWARDS[name]()
    return BatchMean(reward) if credit == "batch" else reward
