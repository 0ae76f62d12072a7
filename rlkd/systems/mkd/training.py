"""MKD: many tasks distilled jointly into one student of any architecture.

A multi-task teacher (one encoder, a head a task) learns all tasks from their labels; a student of the same form learns
its logits on all tasks; then, one task at a time, it is refined. Teachers of single tasks can stand beside the
multi-task teacher, or instead of it, and any weighting may weight them: task by task, with a logit cache each.

Source: Liu, Wang, Lin, Socher, Xiong 2019, arXiv:1911.03588; the teacher's training after MT-DNN, arXiv:1901.11504.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from rlkd.data.collection import TaskCollection
from rlkd.devices import check_device
from rlkd.errors import ConfigError
from rlkd.logit_cache import LogitCache, build_cache
from rlkd.models.multi_task_loading import check_multi_task
from rlkd.models.teacher_files import load_teachers
from rlkd.models.teachers import LabelledTeacher
from rlkd.records import folder_of
from rlkd.settings import MultiTaskSettings
from rlkd.systems.mkd.settings import MkdCommand
from rlkd.trainer.multi_task_training import TaughtTasks, train_model

Part = Literal["single", "multi"]
PARTS: tuple[str, ...] = get_args(Part)
"""What teachers there are: one for each task alone, and one for all."""


def refinement_settings(
    training: MultiTaskSettings,
    *,
    epochs: float = MkdCommand.refine_epochs,
    kd_ratio: float = MkdCommand.refine_kd_ratio,
) -> MultiTaskSettings:
    """How a student that was distilled jointly is refined on one task: by default fine-tuned on its labels.

    Args:
        training: Of the joint distillation; the rate is half of its own.
        epochs: Passes over the task's rows.
        kd_ratio: Share of the teachers in the loss.
    """
    return replace(training, epochs=epochs, learning_rate=training.learning_rate / 2, kd_ratio=kd_ratio)


def train_mkd_teachers(
    collection: TaskCollection,
    kind: str,
    folder: str | Path,
    training: MultiTaskSettings,
    *,
    parts: Sequence[str] = ("multi",),
    num_layers: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, dict[str, Path]]:
    """Train the multi-task teacher, the teachers of single tasks, or both; the same network, rate and passes.

    Args:
        collection: The tasks.
        kind: Encoder, see :func:`rlkd.models.multi_task_loading.load_multi_task`.
        folder: ``multi`` and ``single/TASK`` are made in it.
        training: See :func:`multi_task_teacher_settings`.
        parts: ``single``, ``multi`` or both.
        num_layers: Keep only the first layers of a pretrained encoder.
        seed: Of heads, order of batches and dropout.
        progress: Show progress bars.

    Returns:
        Folders by task, then by part.
    """
    check_parts(parts)
    paths: dict[str, dict[str, Path]] = {name: {} for name in collection.names}
    for part in parts:
        for name in collection.names:
            path = Path(folder) / part if part == "multi" else Path(folder) / part / folder_of(name)
            paths[name][part] = path
            if part == "multi" and name != collection.names[0]:
                continue
            taught = TaughtTasks(collection=collection if part == "multi" else collection.only(name))
            train_model(path, kind, taught, training, num_layers=num_layers, seed=seed, progress=progress)
    return paths


def check_parts(parts: Sequence[str]) -> None:
    """Refuse parts that teachers cannot have.

    Raises:
        ConfigError: None, unknown, or one twice.
    """
    if not parts or not set(parts) <= set(PARTS) or len(set(parts)) < len(parts):
        raise ConfigError(f"teachers are single, multi or both, got {', '.join(parts) or 'none'}; name some of them")


def build_mkd_caches(
    collection: TaskCollection,
    paths: Mapping[str, Mapping[str, Path]],
    folder: str | Path,
    *,
    max_length: int = MultiTaskSettings.max_length,
    bf16: bool = MultiTaskSettings.bf16,
    device: str | None = MultiTaskSettings.device,
    progress: bool = False,
) -> dict[str, LogitCache]:
    """The logits of a task's teachers, one cache a task; teachers are called by their part.

    Args:
        collection: The tasks.
        paths: Folders of teachers by task, then by part; of any kind that :func:`rlkd.models.load_teachers` reads.
        folder: Holds a cache for each task.
        max_length: Tokens a text is cut to.
        bf16: Teachers compute in bfloat16 where that is safe.
        device: Where teachers run.
        progress: Show progress bars.
    """
    caches = {}
    for task in collection:
        teachers: list[Any] = []
        for part, path in paths[task.name].items():
            (teacher,) = load_teachers([path], task, device=device, bf16=bf16)
            if isinstance(teacher, LabelledTeacher):
                teacher.name = part
            teachers.append(teacher)
        caches[task.name] = build_cache(
            teachers, task, Path(folder) / folder_of(task.name), max_length=max_length, progress=progress
        )
    return caches


def check_mkd(
    collection: TaskCollection,
    kind: str,
    student: str,
    trainings: Sequence[MultiTaskSettings],
    num_layers: int | None = None,
) -> None:
    """Refuse before any long work what cannot run.

    Args:
        collection: The tasks.
        kind: Encoder of the teachers.
        student: Encoder of the student.
        trainings: Of teachers first, then of the student.
        num_layers: Of the student.
    """
    check_multi_task(kind, collection, max_length=trainings[0].max_length)
    for training in trainings[1:]:
        check_multi_task(student, collection, num_layers=num_layers, max_length=training.max_length)
    for training in trainings:
        check_device(training.device)
