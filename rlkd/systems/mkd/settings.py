"""Settings of ``rlkd mkd``; free of torch, for ``--help``."""

from dataclasses import dataclass

from rlkd.settings import (
    BY_KIND,
    DistillCommand,
    Divergence,
    LossSettings,
    MultiTaskSettings,
    ResumableCommand,
    StudentSettings,
    TaskSettings,
)
from rlkd.settings.knobs import above, at_least, knob, like, required


@dataclass(frozen=True, kw_only=True)
class MkdCommand(ResumableCommand):
    """``rlkd mkd``: tasks, teachers, the joint student, and its refinement."""

    task: tuple[str, ...] = required(
        "Task of texts or pairs, repeatable: a file, a folder of splits, or a hub id, or NAME=one of these."
    )
    text_column: str = like(TaskSettings, "text_column")
    text_pair_column: str | None = like(TaskSettings, "text_pair_column")
    label_column: str = like(TaskSettings, "label_column")
    split_seed: int = like(TaskSettings, "split_seed")
    teacher: str = required("Encoder of the teachers: rlkd/bilstm, rlkd/tiny, a hub id or a path.")
    teachers: str = knob(
        "multi", "Teachers: multi, one of all tasks; single, one a task; or both.", choices=("multi", "single", "both")
    )
    weighting: str = knob("uniform", "Weighting of the two teachers of a task, with --teachers both.")
    student: str = knob("rlkd/bilstm", "Encoder of the student: rlkd/bilstm, rlkd/tiny, a hub id or a path.")
    num_layers: int | None = like(StudentSettings, "num_layers")
    epochs: float = knob(10, "Passes of the joint student over the training rows.", above(0))
    learning_rate: float = like(StudentSettings, "learning_rate")
    divergence: Divergence = like(MultiTaskSettings, "divergence")
    kd_ratio: float = like(LossSettings, "kd_ratio")
    refine_epochs: float = knob(3, "Passes of the refinement over each task; 0 for no refinement.", at_least(0))
    refine_kd_ratio: float = like(
        LossSettings,
        "kd_ratio",
        default=0.0,
        help="Share of the distillation term in the refinement; 0 learns from labels alone.",
    )
    teacher_epochs: float = knob(3, "Passes of the teachers over the labelled rows.", above(0))
    teacher_learning_rate: float | None = like(
        StudentSettings, "learning_rate", help=f"Learning rate of the teachers; {BY_KIND}."
    )
    batch_size: int = like(MultiTaskSettings, "batch_size")
    max_length: int = like(MultiTaskSettings, "max_length")
    bf16: bool = like(MultiTaskSettings, "bf16")
    save_steps: int = like(DistillCommand, "save_steps", default=500)
    seed: int = like(DistillCommand, "seed")
    device: str = like(StudentSettings, "device")
