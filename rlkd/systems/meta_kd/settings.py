"""Settings of Meta-KD, in Python, in suites and on the command line; free of torch, for ``--help``.

Source:
    Pan et al. 2021, arXiv:2012.01266, and its released code; where the two differ, there is a switch.
"""

from dataclasses import dataclass, field
from typing import Any

from rlkd.errors import ConfigError
from rlkd.settings import (
    FINE_TUNING_RATE,
    DistillCommand,
    PrototypeSettings,
    ResumableCommand,
    StepSettings,
    StudentSettings,
)
from rlkd.settings.knobs import Settings, above, at_least, knob, like, required


@dataclass(frozen=True, kw_only=True)
class MetaKdSettings(Settings):
    """How teachers are trained; the meta-teacher's own switches last."""

    encoder: str = required("Pretrained encoder that the teachers are fine-tuned from: a hub id or a path.")
    num_layers: int | None = knob(None, "Keep only so many first layers of the encoder.")
    epochs: float = knob(3, "Passes of the teachers over the training rows.", above(0))
    learning_rate: float = knob(FINE_TUNING_RATE, "Peak learning rate of the teachers.", above(0))
    batch_size: int = like(StepSettings, "batch_size", default=32)
    max_length: int = like(StepSettings, "max_length")
    bf16: bool = like(StepSettings, "bf16")
    seed: int = like(DistillCommand, "seed")
    prototypes: PrototypeSettings = field(default_factory=PrototypeSettings)
    weighted: bool = knob(True, "Multiply the meta-teacher's loss of each instance by its prototype score t.")
    corruption_weight: float = knob(
        0.5,
        "Weight of the domain-corruption loss, the paper's gamma_1; 0 leaves its module at random values, as the "
        "released script does.",
        at_least(0),
    )


@dataclass(frozen=True, kw_only=True)
class DistillationSettings(Settings):
    """What students learn from encoders beside their logits; the defaults are meta-distillation."""

    embedding: float = knob(1.0, "Weight of the embedding loss.", at_least(0))
    hidden: float = knob(1.0, "Weight of the hidden loss.", at_least(0))
    attention: float = knob(1.0, "Weight of the attention loss.", at_least(0))
    transfer: float = knob(0.5, "Weight of the loss on the transferable feature, the paper's gamma_2.", at_least(0))
    expertise: bool = knob(True, "Multiply the other losses of each instance by the domain expertise lambda.")
    schedule: str = knob(
        "two_step",
        "Schedule: two_step, features, then logits without lambda, as in the released code; joint, all at once, as in "
        "the paper, for the steps of both.",
        choices=("two_step", "joint"),
    )
    feature_steps: int = knob(400, "Steps of the student on features.", at_least(1))
    feature_learning_rate: float = knob(1e-3, "Constant learning rate of the steps on features.", above(0))

    def __post_init__(self) -> None:
        """Check names and ranges."""
        super().__post_init__()
        if not (self.transfer or self.embedding or self.hidden or self.attention):
            raise ConfigError("the first step needs a feature loss whose weight is not 0, got none; raise one")


@dataclass(frozen=True, kw_only=True)
class MetaKdCommand(ResumableCommand):
    """``rlkd meta-kd``, beside the task and what students learn."""

    encoder: str = like(MetaKdSettings, "encoder")
    teacher_epochs: float = like(MetaKdSettings, "epochs")
    teacher_learning_rate: float = like(MetaKdSettings, "learning_rate")
    prototypes: str = like(PrototypeSettings, "kind")
    centred: bool = like(PrototypeSettings, "centred")
    weighted: bool = like(MetaKdSettings, "weighted")
    corruption_weight: float = like(MetaKdSettings, "corruption_weight")
    domain: tuple[str, ...] = knob((), "Domain to make a student for, repeatable; by default all.")
    num_layers: int = knob(3, "Layers of the students; they must divide the encoder's.")
    hidden_size: int = knob(96, "Width of the students; a multiple of the encoder's number of heads.")
    max_steps: int = like(StudentSettings, "max_steps", default=200)
    batch_size: int = like(MetaKdSettings, "batch_size")
    learning_rate: float = like(StepSettings, "learning_rate", default=5e-4)
    temperature: float = like(StepSettings, "temperature")
    kd_ratio: float = like(StepSettings, "kd_ratio")
    max_length: int = like(MetaKdSettings, "max_length")
    bf16: bool = like(MetaKdSettings, "bf16")
    device: str = like(StudentSettings, "device")
    seed: int = like(MetaKdSettings, "seed")

    def teaching(self) -> MetaKdSettings:
        """How the meta-teacher learns."""
        return MetaKdSettings(
            epochs=self.teacher_epochs,
            learning_rate=self.teacher_learning_rate,
            prototypes=PrototypeSettings(kind=self.prototypes, centred=self.centred),
            **self._same("encoder", "weighted", "corruption_weight", "batch_size", "max_length", "bf16", "seed"),
        )

    def student(self) -> StudentSettings:
        """The budget of the students' step on logits."""
        loss = self._same("temperature", "kd_ratio")
        step = self._same("max_steps", "batch_size", "learning_rate", "max_length", "bf16", "device")
        return StudentSettings(**loss, **step)

    def _same(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}
