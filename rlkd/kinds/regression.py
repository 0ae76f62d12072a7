"""Numbers."""

from dataclasses import replace

from torch import Tensor

from rlkd.errors import ConfigError
from rlkd.kinds.base import Kind, Measured, as_measured
from rlkd.losses import regression_loss, squared_error
from rlkd.settings import LossSettings
from rlkd.types import State
from rlkd.weighting.base import Mixture


class Regression(Kind):
    """An instance has D numbers, mostly one: the squared error to the teachers' weighted mean.

    There are no classes that a teacher could be sure of: what is observed is what the teachers say, and how far apart
    they are. So formulas of probabilities and policies that observe them are refused, and ``gate`` is there.
    """

    name = "regression"
    answers = "numbers"
    lacks = frozenset({"reliability", "sureness"})
    choose = "'uniform', 'fixed:1,0,...' or 'gate', which learns from the labels"
    measured = "squared_error"

    def check_settings(self, settings: LossSettings) -> None:
        """Numbers have neither a temperature nor probabilities; the divergence is the squared error."""
        wrong = {
            "temperature": settings.temperature != LossSettings.temperature,
            "mix": settings.mix != LossSettings.mix,
            "divergence": settings.divergence not in (LossSettings.divergence, "mse"),
        }
        for setting, is_so in wrong.items():
            if is_so:
                raise ConfigError(
                    f"{setting} {getattr(settings, setting)!r} is of classes, and {self.name} has numbers, whose loss "
                    "is the squared error; leave it out"
                )

    def known(self, labels: Tensor) -> Tensor:
        """The numbers (B, D); NaN where one is not known."""
        return labels.float().reshape(len(labels), -1)

    def state(self, known: State, student: Tensor, labels: Tensor | None) -> State:
        """The teachers' numbers, and whether an instance has a label: 0 or -1.

        Raises:
            ConfigError: Labels and outputs are of different numbers.
        """
        if labels is not None and labels.shape != student.shape:
            raise ConfigError(
                f"{self.name} needs labels {tuple(student.shape)}, a number for each output of the student, got "
                f"{tuple(labels.shape)}; set num_labels of the student to 1, or give classes as integers"
            )
        return replace(
            known,
            student_logits=student.detach(),
            labels=None if labels is None else labels.isnan().all(-1).long().neg(),
            targets=labels,
            sureness=None,
            reliability=None,
        )

    def losses(
        self, student: Tensor, state: State, taught: Mixture, settings: LossSettings, certain: Tensor | None = None
    ) -> Tensor:
        """Squared errors to the teachers' mean and to the label."""
        return regression_loss(
            student,
            taught.teacher_logits,
            taught.weights,
            state.targets,
            kd_ratio=settings.kd_ratio,
            scale=taught.scale,
        )

    def label_losses(self, student: Tensor, state: State) -> tuple[Tensor, Tensor] | None:
        """Squared error to the label."""
        if state.targets is None:
            return None
        return squared_error(student.detach().float(), state.targets), ~state.targets.isnan().all(-1)

    def measured_later(self, student: Tensor, state: State) -> Measured | None:
        """Computed at once."""
        told = self.label_losses(student, state)
        return None if told is None else Measured(self.measured, as_measured, *told)
