"""Which kind of task a student and its batches are of, and what a weighting is built from where there is no task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from rlkd.errors import ConfigError, TeacherError, WeightingError
from rlkd.kinds import CausalTokens, Kind, TokenClassification, kind_of_instances
from rlkd.trainer.student_class import auto_class, base_model
from rlkd.weighting import BaseWeighting, Evidence, WeightingSpec, adapted, load_policy, load_weighting
from rlkd.weighting.policy_files import AUTO

LABELS = ("labels", "label", "label_ids")
"""What a collator of transformers takes for labels, in a row of a data set."""


def kind_of(student: nn.Module, labels: Tensor | None) -> type[Kind]:
    """The kind of task of a batch.

    Args:
        student: Its class, ``config.problem_type`` and ``config.num_labels`` say most.
        labels: Of the batch, (B,) or (B, ...); None: it has none.

    Raises:
        ConfigError: ``problem_type`` is none that there is.
    """
    auto = auto_class_or_none(student)
    if auto is AutoModelForCausalLM:
        return CausalTokens
    if auto is AutoModelForTokenClassification:
        return TokenClassification
    config = base_model(student).config
    problem_type = getattr(config, "problem_type", None)
    tokens = labels is not None and labels.ndim == 2 and not labels.is_floating_point()
    if tokens and problem_type in (None, "single_label_classification"):
        return TokenClassification
    return kind_of_instances(problem_type, config.num_labels, labels)


def likely_kind(student: nn.Module, first: Mapping[str, Any] | None) -> type[Kind]:
    """The kind of task by the first row of a data set, which a collator of one's own may still change."""
    try:
        return kind_of(student, labels_of(first))
    except ConfigError:
        return kind_of(student, None)


def labels_of(row: Mapping[str, Any] | None) -> Tensor | None:
    """Labels of a row, as a batch; None where they are not to be known."""
    found = [] if row is None else [row[name] for name in LABELS if name in row]
    try:
        return torch.as_tensor(found[0]).unsqueeze(0) if found else None
    except (TypeError, ValueError):  # names of classes, which a collator of one's own may number
        return None


def auto_class_or_none(model: nn.Module) -> Any:
    """What loads networks of a student's kind, None for one of no kind that is known."""
    try:
        return auto_class(model)
    except TeacherError:
        return None


def weighting_of(text: str | Path, known: "KnownOfBatches") -> BaseWeighting:
    """A weighting by its name, or of a policy's path or hub id, for a trainer that has no task.

    Raises:
        WeightingError: It is fitted on the labelled rows of a task.
    """
    if str(text) == AUTO:
        return load_policy(AUTO)  # restrained when it is known what teachers say
    if "/" in str(text) and not Path(text).exists() and ":" not in str(text):
        return load_weighting(text)
    spec = WeightingSpec.parse(str(text))
    return adapted(spec.builder.build(spec.argument, cast(Evidence, known)))


class KnownOfBatches:
    """What a weighting is built from where there is no task, in place of its evidence: teachers and classes.

    Whoever reads more of it is refused by name.
    """

    def __init__(self, text: str | Path, kind: type[Kind], teachers: tuple[str, ...], outputs: int, seed: int) -> None:
        """Say who asks, and what is known."""
        self._text, self._kind, self.seed = str(text), kind, seed
        self.teacher_names, self.num_classes = teachers, kind().contexts(outputs)

    @property
    def task(self) -> "KnownOfBatches":
        """Its number of classes."""
        return self

    @property
    def source(self) -> "KnownOfBatches":
        """Its teachers' names."""
        return self

    def __iter__(self) -> Any:
        return self.splits  # asked like several at once

    def __getattr__(self, field: str) -> Any:
        where = (
            "fit it there and pass the policy (rlkd train-policy, rlkd compare), fit it on labelled "
            "rows (rlkd.labelled_answers), or make the trainer with DistillationTrainer.from_task"
            if self._kind is Kind
            else f"tasks are of {Kind.name}"
        )
        raise WeightingError(
            f"weighting {self._text!r} is fitted on a task, and a trainer has batches, here of {self._kind.name}; "
            f"{where}, or choose {self._kind.choose}"
        )
