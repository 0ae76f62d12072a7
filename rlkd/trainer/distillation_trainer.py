"""The trainer that people use: what :class:`transformers.Trainer` takes, with teachers; or of a task."""

from inspect import signature
from pathlib import Path
from typing import Any

from transformers import Trainer

from rlkd.trainer.image_batches import image_collator
from rlkd.trainer.task_trainer import TaskTrainer
from rlkd.trainer.training import BatchTrainer
from rlkd.weighting import Weighting


class DistillationTrainer(BatchTrainer):
    """A :class:`transformers.Trainer` whose loss is the weighted multi-teacher distillation loss.

    It takes what the Trainer takes, plain ``TrainingArguments`` too, and ``teachers`` and ``weighting``, see
    :class:`~rlkd.trainer.DistillationMixin`. Checkpoints are whole or not used, and a run that was broken off resumes
    to what it would have been. Pictures (a ``datasets.Image`` column) become ``pixel_values`` by themselves where
    ``processing_class`` is an image processor and there is no collator. :meth:`from_task` makes one of a task and a
    cache.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *trainer_args: Any,
        teachers: Any = None,
        weighting: Weighting | str | Path | None = None,
        cache: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        """Prepare a run; see :class:`~rlkd.trainer.DistillationMixin`.

        Args:
            model: The student.
            args: Training arguments, :class:`DistillationArguments` or transformers' own.
            *trainer_args: Further ones of the Trainer.
            teachers: See :class:`~rlkd.trainer.DistillationMixin`.
            weighting: See :class:`~rlkd.trainer.DistillationMixin`.
            cache: See :class:`~rlkd.trainer.DistillationMixin`.
            **kwargs: Of the Trainer.
        """
        self._pictures: tuple[str, ...] = ()
        given = by_name(self, model, args, *trainer_args, **kwargs)
        if given.get("data_collator") is None:
            collator = image_collator(given.get("processing_class"), given.get("train_dataset"), model)
            if collator is not None:
                given["data_collator"], self._pictures = collator, (collator.column,)
        super().__init__(teachers=teachers, weighting=weighting, cache=cache, **given)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        mine: Any = self
        mine._signature_columns = list(dict.fromkeys([*mine._signature_columns, *self._pictures]))

    @staticmethod
    def from_task(*args: Any, **kwargs: Any) -> TaskTrainer:
        """A trainer of a task and its teachers' logits; arguments are those of :class:`~rlkd.trainer.TaskTrainer`."""
        return TaskTrainer(*args, **kwargs)


def by_name(trainer: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Arguments of the Trainer by name, however they were given."""
    given = signature(Trainer.__init__).bind_partial(trainer, *args, **kwargs).arguments
    del given["self"]
    return given
