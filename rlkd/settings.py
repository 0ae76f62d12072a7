"""Settings that every student shares, whether an agent watches its training or not."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from rlkd.defaults import FROM_SCRATCH_RATE, student_rate
from rlkd.errors import ConfigError
from rlkd.losses import Divergence, check_loss_settings

AUTO = "auto"


def found_device(name: str) -> str:
    """What ``auto`` stands for on this machine: its accelerator, else the processor; other names stay as they are."""
    if name != AUTO:
        return name
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """How one optimisation step of a student is taken."""

    batch_size: int = 64
    """Instances a step. Range: >= 1."""
    learning_rate: float = FROM_SCRATCH_RATE
    """Of AdamW, falling linearly to zero over the student's budget. Range: >= 0."""
    temperature: float = 1.0
    """Of the distillation loss. Range: > 0."""
    kd_ratio: float = 1.0
    """Share of the distillation term in the loss. Range: [0, 1]."""
    max_length: int = 128
    """Tokens a text is cut to. Range: >= 1."""
    bf16: bool = False
    """Compute the student's forward pass in bfloat16 where that is safe; weights and losses stay in float32."""
    divergence: Divergence = "kl"
    """Of the distillation term: ``kl``, or squared error on logits, ``mse`` or ``mse_centred``."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_loss_settings(self.temperature, self.kd_ratio, "probability", self.divergence)
        if self.batch_size < 1 or self.max_length < 1 or self.learning_rate < 0:
            raise ConfigError(
                "a student's step needs batch_size and max_length >= 1 and learning_rate >= 0, got "
                f"{self.batch_size}, {self.max_length} and {self.learning_rate}; mend the one out of range"
            )


@dataclass(frozen=True, kw_only=True)
class StudentSettings(StepSettings):
    """A student and the budget it is distilled with; shared by ``distill``, ``compare`` and the benchmarks."""

    student: str = "rlkd/tiny"
    """A from-scratch name, a hub id or a path; see :func:`rlkd.models.students.load_student`."""
    learning_rate: float = None  # type: ignore[assignment]  # a number once the settings are made
    """Of AdamW, falling linearly to zero. None: by kind of student, see :func:`rlkd.defaults.student_rate`."""
    num_layers: int | None = None
    """Keep only the first layers of a pretrained student."""
    max_steps: int = 400
    """Optimisation steps. Range: >= 1."""
    device: str = AUTO
    """``cpu``, an accelerator (``cuda``), or ``auto``: the accelerator where there is one; what was found is kept."""

    def __post_init__(self) -> None:
        """Put in what is left to us, and check ranges."""
        object.__setattr__(self, "device", found_device(self.device))
        rate: Any = self.learning_rate
        if rate is None:
            object.__setattr__(self, "learning_rate", student_rate(self.student))
        super().__post_init__()
        if self.max_steps < 1:
            raise ConfigError(f"a student needs max_steps >= 1, got {self.max_steps}; 400 is a start")

    def record(self) -> dict[str, Any]:
        """The settings as plain values; those of :data:`YOUNGER` that are at their default are left out.

        So a setting that is added later changes neither the keys nor the run directories of runs made before it.
        """
        defaults = {field.name: field.default for field in fields(self)}
        return {key: value for key, value in asdict(self).items() if key not in YOUNGER or value != defaults[key]}


YOUNGER = frozenset({"bf16", "divergence"})
"""Settings that did not exist when the first runs were recorded."""
