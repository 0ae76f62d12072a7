"""What all students of an environment share."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.data.batching import encode_inputs
from rlkd.data.task import Task
from rlkd.errors import ConfigError, TaskError
from rlkd.logit_cache import answered_ids
from rlkd.models.students import StudentFactory, load_student
from rlkd.settings import EpisodeSettings
from rlkd.types import LogitSource
from rlkd.weighting.teacher_sets import TeacherSets


class DistillationSetup:
    """What all students of an environment share: task, teachers, encoded inputs, and how a student is made.

    Holds the training view of the task and of the teachers: no row of the test split is in its memory. Nothing in it
    changes while students are trained.
    """

    def __init__(
        self, task: Task, source: LogitSource, student: str | StudentFactory, settings: EpisodeSettings, device: str
    ) -> None:
        """Prepare everything once.

        Args:
            task: The task; cut to its training view here.
            source: The teachers' logits; cut likewise.
            student: A name or path for :func:`rlkd.models.students.load_student`, or a function of a seed.
            settings: How a student is trained.
            device: Of the students.
        """
        self.task = task.training_view()
        self.source = source.head(len(self.task.table))
        self.settings, self.device = settings, torch.device(device)
        self.teacher_sets = TeacherSets(copies=settings.teacher_copies, dropout=settings.teacher_dropout)
        self.train_ids = answered_ids(self.source, self.task.splits["train"])  # about others there is nothing to decide
        self.labelled_ids = np.intersect1d(self.train_ids, self.task.labelled_ids("train"))
        self.probe_ids, self.validation_ids = self.task.labelled_ids("probe"), self.task.labelled_ids("validation")
        if len(self.labelled_ids) == 0 or len(self.probe_ids) == 0:
            raise TaskError(
                f"rewards need labelled train and probe rows, those of train with answers of teachers, task "
                f"{task.name!r} has {len(self.labelled_ids)} and {len(self.probe_ids)}; label some rows of train"
            )
        self.make_student = self._student_factory(student)

    def _student_factory(self, student: str | StudentFactory) -> StudentFactory:
        layers, length = self.settings.num_layers, self.settings.max_length
        if callable(student):
            if layers is not None:
                raise ConfigError("num_layers would be ignored for a student that a function makes; leave it out")
            self.inputs = encode_inputs(self.task, None, length)
            return student
        _, tokenizer = load_student(student, self.task, num_layers=layers)
        self.inputs = encode_inputs(self.task, tokenizer, length)
        return lambda seed: load_student(student, self.task, num_layers=layers, seed=seed, tokenizer=tokenizer)[0]

    def batch(self, ids: NDArray[np.int64]) -> dict[str, Tensor]:
        """Inputs of some rows, where the students are."""
        return {name: tensor.to(self.device) for name, tensor in self.inputs.batch(ids).items()}
