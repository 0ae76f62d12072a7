"""Levels of the student's loss, measured after the step: what RL-KD and MTKD-RL pay.

A level pays for what the student knows, not for what the step taught it: it never averages to zero, and it drifts as
the student learns. ``logit_gain`` and ``student_gain`` are rewards without these two faults.
"""

from torch import Tensor

from rlkd.losses import cross_entropy

from .scene import MeasuredAcross, Scene


class RlKd1(MeasuredAcross):
    """Minus the cross entropy of the student to the label, in nats.

    Source:
        Yuan et al. 2021, arXiv:2012.06048 (RL-KD), reward 1.
    Deviation:
        One number per instance; the paper's is the batch mean, which ``credit="batch"`` gives back.
    """

    reads_labels = True

    def before(self, scene: Scene) -> None:
        """Nothing to remember."""

    def after(self, scene: Scene) -> Tensor:
        """Minus the loss of each instance, shape (B,), <= 0."""
        return -cross_entropy(scene.batch_logits(), scene.labels)


class RlKd2(MeasuredAcross):
    """Minus the cross entropy to the label, minus the cross entropy to the mixture the student was taught.

    Source:
        Yuan et al. 2021, arXiv:2012.06048 (RL-KD), reward 2.
    Deviation:
        One number per instance, see :class:`RlKd1`; the distillation term is that of the student's own loss.
    """

    reads_labels = True

    def before(self, scene: Scene) -> None:
        """Nothing to remember."""

    def after(self, scene: Scene) -> Tensor:
        """Minus the two losses of each instance, shape (B,), <= 0."""
        logits = scene.batch_logits()
        return -cross_entropy(logits, scene.labels) - scene.cost_of_mixture(logits)


class RlKd3(RlKd2):
    """Half of reward 2, and half of the accuracy on the probe rows of the step, which the whole batch shares.

    Source:
        Yuan et al. 2021, arXiv:2012.06048 (RL-KD), reward 3.
    Deviation:
        One number per instance, see :class:`RlKd1`; the paper's share of the accuracy and the size of its
        development set are not known to us; measured on probe rows, never on those that models are chosen on.
    """

    ACCURACY_SHARE = 0.5

    def after(self, scene: Scene) -> Tensor:
        """The mix of each instance, shape (B,), <= 0.5."""
        accuracy = (scene.probe_logits()[0].argmax(-1) == scene.probe_labels).float().mean()
        return (1 - self.ACCURACY_SHARE) * super().after(scene) + self.ACCURACY_SHARE * accuracy
