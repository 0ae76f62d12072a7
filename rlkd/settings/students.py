"""The distillation loss, a student's step, and a student with its budget."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

from rlkd.errors import ConfigError
from rlkd.settings.knobs import SHARE, Range, Settings, above, at_least, check, knob, like, names_of, required

Mix = Literal["probability", "logit"]
MIXES: tuple[str, ...] = get_args(Mix)
Divergence = Literal["kl", "mse", "mse_centred"]
DIVERGENCES: tuple[str, ...] = get_args(Divergence)

AUTO = "auto"
FROM_SCRATCH_RATE = 2e-3
"""Learning rate of a network that begins at random weights."""
FINE_TUNING_RATE = 5e-5
"""Of one that was pretrained: from the range in which encoders are fine-tuned (2e-5 to 5e-5 in Devlin et al. 2019,
arXiv:1810.04805, appendix A.3); at forty times that, what it had learned is lost in the first steps."""
BY_KIND = f"by default {FROM_SCRATCH_RATE:g} from scratch, {FINE_TUNING_RATE:g} pretrained"
SCRATCH_PREFIX = "rlkd/"
"""Names of students that begin at random weights start so."""


def is_pretrained(student: str) -> bool:
    """Whether a student does not begin at random weights, by its name."""
    return not student.startswith(SCRATCH_PREFIX)


def student_rate(student: str) -> float:
    """Learning rate of a student that is given none, by its kind."""
    return FINE_TUNING_RATE if is_pretrained(student) else FROM_SCRATCH_RATE


def common_rate(students: Iterable[str | None]) -> float:
    """Learning rate of students that share one and are given none, by their kind.

    Args:
        students: Their names; None begins at random weights.

    Raises:
        ConfigError: They are of kinds that learn at different rates.
    """
    rates = {name: student_rate(name) for name in (name or f"{SCRATCH_PREFIX}..." for name in students)}
    if len(set(rates.values())) > 1:
        told = ", ".join(f"{rate:g} for {name}" for name, rate in rates.items())
        raise ConfigError(
            f"the students of a policy's training share a learning rate, got kinds that have different ones ({told}); "
            "pass learning_rate, or students of one kind"
        )
    return next(iter(rates.values()), FROM_SCRATCH_RATE)


@dataclass(frozen=True, kw_only=True)
class LossSettings(Settings):
    """The distillation loss, see :func:`rlkd.losses.distillation_loss`."""

    temperature: float = knob(1.0, "Temperature that softens teachers and student in the distillation loss.", above(0))
    kd_ratio: float = knob(
        1.0, "Share of the distillation term: loss = (1 - kd_ratio) * CE + kd_ratio * distillation.", SHARE
    )
    mix: Mix = knob("probability", "How teachers are mixed: their probabilities or their logits.", choices=MIXES)
    scale_by_temperature: bool = knob(True, "Multiply the distillation term by temperature ** 2.")
    divergence: Divergence = knob(
        "kl",
        "Distance to the teachers: kl, or squared error on logits, mse or mse_centred (their means subtracted).",
        choices=DIVERGENCES,
    )


def check_loss_settings(
    temperature: float, kd_ratio: float, mix: str, divergence: str = LossSettings.divergence
) -> None:
    """Refuse loss settings out of range, before any long work.

    Raises:
        ConfigError: If a value is out of its range.
    """
    check(LossSettings, temperature=temperature, kd_ratio=kd_ratio, mix=mix, divergence=divergence)
    if divergence != "kl" and temperature != 1:
        raise ConfigError(
            f"divergence {divergence!r} compares logits and has no temperature, got {temperature}; set temperature=1"
        )


@dataclass(frozen=True, kw_only=True)
class StepSettings(Settings):
    """How one optimisation step of a student is taken."""

    batch_size: int = knob(64, "Instances a step.", at_least(1))
    learning_rate: float = knob(
        FROM_SCRATCH_RATE, "Learning rate of the student's AdamW, falling linearly to zero.", at_least(0)
    )
    temperature: float = like(LossSettings, "temperature")
    kd_ratio: float = like(LossSettings, "kd_ratio")
    max_length: int = knob(128, "Tokens a text is cut to.", at_least(1))
    bf16: bool = knob(
        False, "Compute forward passes in bfloat16 where that is safe: faster where the processor has it."
    )
    divergence: Divergence = like(LossSettings, "divergence")

    def __post_init__(self) -> None:
        """Check ranges, and that the divergence has a temperature if one is set."""
        super().__post_init__()
        check_loss_settings(self.temperature, self.kd_ratio, LossSettings.mix, self.divergence)


@dataclass(frozen=True, kw_only=True)
class StudentSettings(StepSettings):
    """A student and the budget it is distilled with; shared by ``distill``, ``compare`` and the benchmarks."""

    YOUNGER: ClassVar = frozenset({"bf16", "divergence"})

    student: str = knob(
        "rlkd/tiny",
        "Student: rlkd/tiny, rlkd/bilstm, rlkd/mlp, rlkd/cnn (images), a hub id or a path. rlkd/bilstm, rlkd/mlp and "
        "rlkd/cnn load in transformers beside an import of rlkd, all others in plain transformers.",
    )
    learning_rate: float = like(  # a number once the settings are made
        StepSettings, "learning_rate", default=None, help=f"Learning rate of the student; {BY_KIND}."
    )
    num_layers: int | None = knob(None, "Keep only so many first layers of a pretrained student.")
    max_steps: int = knob(400, "Optimisation steps of the student.", at_least(1))
    device: str = knob(AUTO, "Device of the networks: cpu, cuda, or auto, the accelerator where there is one.")

    def __post_init__(self) -> None:
        """Put in what is left to us, the device that is found too, and check ranges."""
        from rlkd.devices import found_device  # imports torch, which --help must not wait for

        object.__setattr__(self, "device", found_device(self.device))
        rate: Any = self.learning_rate
        if rate is None:
            object.__setattr__(self, "learning_rate", student_rate(self.student))
        super().__post_init__()

    def flags(self) -> list[str]:
        """Words of a command line that stand for these settings: the student, and what is not as usual for it."""
        usual, words = StudentSettings(student=self.student), ["--student", self.student]
        for one in fields(self):
            value, flag = getattr(self, one.name), f"--{one.name.replace('_', '-')}"
            if value != getattr(usual, one.name):
                words += [flag] if value is True else [flag, str(value)]
        return words


@dataclass(frozen=True, kw_only=True)
class MultiTaskSettings(Settings):
    """One training of a multi-task model, its budget counted in passes over the training rows.

    So a student of one task and a joint student see every row equally often.
    """

    epochs: float = required("Passes over the training rows.", above(0))
    learning_rate: float = required("Peak learning rate of AdamW, falling linearly to zero.", at_least(0))
    batch_size: int = like(StepSettings, "batch_size", default=32, help="Instances a step, all of one task.")
    max_length: int = like(StepSettings, "max_length")
    kd_ratio: float = like(LossSettings, "kd_ratio")
    divergence: Divergence = like(LossSettings, "divergence", default="mse")  # as the paper: not centred
    temperature: float = like(LossSettings, "temperature")
    warmup: float = knob(0.0, "Share of the steps in which the learning rate rises.", Range(0, 1, open_high=True))
    bf16: bool = like(StepSettings, "bf16")
    device: str = like(StudentSettings, "device", default="cpu")

    def __post_init__(self) -> None:
        """Check ranges, and that the divergence has a temperature if one is set."""
        super().__post_init__()
        check_loss_settings(self.temperature, self.kd_ratio, LossSettings.mix, self.divergence)

    @classmethod
    def of(cls, student: StudentSettings, *, epochs: float) -> "MultiTaskSettings":
        """A student's own settings, with passes for steps."""
        shared = {name: value for name, value in vars(student).items() if name in names_of(cls)}
        return cls(epochs=epochs, **shared)

    def settings(self, student: str, max_steps: int) -> StudentSettings:
        """The same as settings of a student."""
        shared = {name: value for name, value in vars(self).items() if name in names_of(StudentSettings)}
        return StudentSettings(student=student, max_steps=max_steps, **shared)

    def steps(self, collection: Iterable[Any]) -> int:
        """Optimisation steps on a collection of tasks."""
        batches = sum(-(-len(task.splits["train"]) // self.batch_size) for task in collection)
        return max(1, round(self.epochs * batches))
