"""Training over several tasks: the one trainer, whose batches come from one task at a time.

A row of the joint task (:attr:`rlkd.data.collection.TaskCollection.joint`) belongs to one task; its inputs, its
teachers' logits and its weighting are looked up there, so every task keeps its own logit cache and its own weighting.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from rlkd.data.batching import Inputs, encode_inputs
from rlkd.data.collection import TaskCollection
from rlkd.errors import ConfigError
from rlkd.models.multi_task import MultiTaskForSequenceClassification
from rlkd.models.multi_task_loading import fit_multi_task
from rlkd.trainer.arguments import DistillationArguments
from rlkd.trainer.joint_batches import JointInputs, TaskBatchSampler
from rlkd.trainer.joint_teachers import JointSource, JointWeighting, NoTeachers, OnlineJointWeighting
from rlkd.trainer.task_trainer import InstanceDataset, TaskTrainer
from rlkd.types import LogitSource
from rlkd.weighting import OnlineWeighting, Weighting
from rlkd.weighting.fixed import Uniform


class MultiTaskTrainer(TaskTrainer):
    """A :class:`~rlkd.trainer.TaskTrainer` of a multi-task model; each batch is of one task.

    It evaluates task by task; metrics are called ``eval_TASK_accuracy`` and so on.
    """

    splits_batches = False

    def __init__(
        self,
        model: MultiTaskForSequenceClassification,
        args: DistillationArguments,
        *,
        collection: TaskCollection,
        sources: Mapping[str, LogitSource] | None = None,
        weightings: Mapping[str, Weighting] | None = None,
        processing_class: PreTrainedTokenizerBase,
        inputs: Mapping[str, Inputs] | None = None,
        **kwargs: Any,
    ) -> None:
        """Prepare a run.

        Args:
            model: Has a head for every task.
            args: Training and distillation arguments.
            collection: The tasks.
            sources: Teacher logits by task, teachers called alike. None: labels alone teach, with ``kd_ratio`` 0.
            weightings: By task; None: equal weights.
            processing_class: The model's tokenizer.
            inputs: Encoded inputs by task, to share them between runs of one tokenizer.
            **kwargs: Handed on to :class:`transformers.Trainer`.
        """
        if sources is None and (args.kd_ratio > 0 or weightings is not None):
            raise ConfigError(
                f"a kd_ratio of {args.kd_ratio} or weightings need teachers, got none; pass sources or set kd_ratio=0"
            )
        sources = {task.name: NoTeachers(task) for task in collection} if sources is None else sources
        chosen = {name: Uniform() for name in collection.names} if weightings is None else weightings
        learns = any(isinstance(chosen[name], OnlineWeighting) for name in collection.names)
        if inputs is None:
            processing_class = fit_multi_task(model, processing_class, "the student")
            inputs = {task.name: encode_inputs(task, processing_class, args.max_length) for task in collection}
        self.collection = collection
        super().__init__(
            model,
            args,
            task=collection.joint,
            cache=JointSource(collection, sources),
            weighting=(OnlineJointWeighting if learns else JointWeighting)(collection, chosen),
            processing_class=processing_class,
            inputs=JointInputs(collection, inputs),
            **kwargs,
        )
        self.eval_dataset = {n: InstanceDataset(collection.joint_ids(n, "validation")) for n in collection.names}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        ids = {name: self.collection.joint_ids(name, "train") for name in self.collection.names}
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        return TaskBatchSampler([self.inputs.lengths[rows] for rows in ids.values()], batch, seed=seed)

    def predict_task(self, name: str, split: str) -> NDArray[np.float32]:
        """The student's logits of one split of one task, shape (N_split, C_task), in the order of its ids."""
        return self.predict_rows(self.collection.joint_ids(name, split))
