"""Meta-KD's students: from an encoder's embeddings, layers, attention and transferable feature, then from logits.

The two steps of the released code are two runs of the one trainer: features alone, with live teachers, then logits
alone, from an ordinary logit cache with any weighting; ``joint`` is the paper's single sum. Without the transferable
feature and the expertise the same is TinyBERT's distillation, which the paper compares every teacher with.

Source:
    Pan et al. 2021, arXiv:2012.01266, section 3.3; Jiao et al. 2020 (TinyBERT), arXiv:1909.10351.
Deviation:
    Steps are counted, not epochs, so that students of small domains get the same budget; no checkpoint is chosen on
    validation. Attention is compared on real tokens only. Logits: ``KL(teacher || student)``, not divided by C.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlkd.cost import NO_COST, cost_in, metered
from rlkd.data.task import Task
from rlkd.errors import ConfigError
from rlkd.feature_losses import (
    EncoderSizes,
    FeatureBatch,
    FeatureLosses,
    FeatureSettings,
    Projections,
    feature_terms,
    hidden_layer_map,
)
from rlkd.logit_cache import LiveEncoders
from rlkd.models.networks import load_config, quiet_transformers
from rlkd.models.small import small_config
from rlkd.models.teacher_files import write_hf
from rlkd.models.teachers import HfTeacher
from rlkd.records import digest, file_hash, once
from rlkd.settings import StudentSettings
from rlkd.systems.meta_kd.corruption import DomainCorruption, content
from rlkd.systems.meta_kd.settings import DistillationSettings
from rlkd.systems.meta_kd.weighting import DomainExpertise
from rlkd.trainer import TaskTrainer, make_trainer
from rlkd.types import LogitSource, Wanted
from rlkd.weighting import Weighting
from rlkd.weighting.fixed import Uniform

WEIGHTS = "model.safetensors"


def feature_settings(distillation: DistillationSettings, *, logits: float) -> FeatureSettings:
    """The ordinary feature losses of a distillation, beside the logits with that weight."""
    return FeatureSettings(
        embedding=distillation.embedding, hidden=distillation.hidden, attention=distillation.attention, logits=logits
    )


def check_sizes(encoder: str, teacher_layers: int | None, *, num_layers: int, hidden_size: int) -> None:
    """Refuse a small student that cannot be compared with its teachers.

    Args:
        encoder: The teachers' encoder.
        teacher_layers: Layers of it that they keep; None: all.
        num_layers: Of the student.
        hidden_size: Of the student.

    Raises:
        StudentError: Sizes do not fit, or the student's layers do not divide the teachers'.
    """
    small_config(encoder, num_layers=num_layers, hidden_size=hidden_size)
    config = load_config(encoder)
    hidden_layer_map(teacher_layers or config.num_hidden_layers, num_layers)


TINY_BERT: dict[str, Any] = {"transfer": 0.0, "expertise": False}
"""What makes meta-distillation TinyBERT's two steps: the paper's baseline for every teacher."""


class TransferTerm:
    """Squared error between the transferable features of student and teacher, outside of lambda.

    The student has a module of its own and shares the projection of the hidden states, as in the released code.

    Source:
        Pan et al. 2021, section 3.3. Deviation: one value for each instance; the code's is a mean over the batch.
    """

    scaled = False

    def __init__(
        self,
        student: EncoderSizes,
        teachers: Sequence[EncoderSizes],
        projections: Projections,
        corruption: DomainCorruption,
        *,
        weight: float,
        seed: int = 0,
    ) -> None:
        """Compare with one meta-teacher, whose module is ``corruption``.

        Raises:
            ConfigError: There are several teachers.
        """
        if len(teachers) != 1:
            raise ConfigError(
                f"the transferable feature is one meta-teacher's, got {len(teachers)} teachers; set transfer to 0"
            )
        self.weight, self._projections, self._teachers = weight, projections, corruption
        self._students = DomainCorruption(corruption.domain_embedding.num_embeddings, student.width, seed=seed)
        self._last = (student.layers, teachers[0].layers)
        self.trained: tuple[nn.Module, ...] = (self._students, projections)
        self.of_student = Wanted(hidden=(student.layers,))
        self.of_teachers: tuple[Wanted, ...] = (Wanted(hidden=(teachers[0].layers,)),)

    def losses(self, batch: FeatureBatch) -> Tensor:
        """See :class:`~rlkd.feature_losses.FeatureTerm`."""
        domains, mask = batch.state.domains, batch.student.mask
        assert domains is not None
        mine = self._students(content(batch.student.hidden[self._last[0]], mask), domains)
        self._teachers.to(mask.device)
        theirs = self._teachers(content(batch.teachers[0].hidden[self._last[1]], mask), domains)
        error: Tensor = (self._projections[0](mine) - theirs.detach()).square().mean(-1)
        return error.unsqueeze(-1)


@dataclass(frozen=True, kw_only=True)
class TaughtDomain:
    """What one student learns from whom."""

    task: Task
    """Of one domain."""
    encoders: Sequence[HfTeacher]
    """The teachers of features; several count equally, or by lambda."""
    corruption: DomainCorruption | None = None
    """The meta-teacher's module; needed unless ``transfer`` is 0."""
    scores: NDArray[np.floating[Any]] | None = None
    """Prototype scores t of the task's instances, shape (N,), for lambda. None: 0."""
    source: LogitSource | None = None
    """Teachers of logits in the second step. None: the encoders."""
    weighting: Weighting | None = None
    """Of those. None: equal weights."""
    live: LiveEncoders | None = None
    """The encoders as a source that keeps their answers between students. None: made anew."""


def distil_meta_student(
    taught: TaughtDomain,
    start: str | Path,
    distillation: DistillationSettings,
    settings: StudentSettings,
    folder: str | Path,
    *,
    seed: int = 0,
    shared: dict[str, Any] | None = None,
    keep_features: bool = True,
    callbacks: Sequence[Any] = (),
    **arguments: Any,
) -> tuple[TaskTrainer, dict[str, Any]]:
    """Distil a student of one domain.

    Args:
        taught: Data and teachers.
        start: Folder of the student to start from, see :func:`rlkd.models.small.save_small_encoder`.
        distillation: The losses and the schedule.
        settings: Budget of the step on logits; ``student`` and ``num_layers`` are not read, ``start`` is.
        folder: The first step is kept here, in a directory named after all that it is made of.
        seed: Of projections, order of batches and dropout.
        shared: A dict that keeps tokenizer and encoded inputs between students of one task.
        keep_features: Keep the student of the first step for others that begin alike.
        callbacks: Further ``TrainerCallback`` s of the last step.
        **arguments: Fields of :class:`~rlkd.trainer.DistillationArguments` of the last step.

    Returns:
        The trainer with the finished student; ``feature_seconds`` and ``feature_cost`` of its first step, and whether
        it was there already, ``features_reused``.

    Raises:
        ConfigError: The distillation needs what is not there.
    """
    _check_taught(taught, distillation)
    live = taught.live or LiveEncoders(taught.encoders, taught.task, max_length=settings.max_length)
    steps = _Steps(
        taught,
        live,
        Path(start),
        distillation,
        settings,
        Path(folder),
        seed=seed,
        shared={} if shared is None else shared,
    )
    kept: dict[str, Any] = {"callbacks": callbacks, **arguments}
    if distillation.schedule == "joint":
        trainer = steps.joint(**kept)
        _train(trainer, arguments)
        return trainer, {"feature_seconds": 0.0, "feature_cost": dict(NO_COST), "features_reused": False}
    first, figures = steps.first()
    trainer = steps.on_logits(first, **kept)
    _train(trainer, arguments)
    if not keep_features:
        shutil.rmtree(first)
    return trainer, figures


def _check_taught(taught: TaughtDomain, distillation: DistillationSettings) -> None:
    """Refuse what is missing, and what would be ignored."""
    if distillation.transfer and taught.corruption is None:
        raise ConfigError("the transferable feature needs a meta-teacher's module, got none; set transfer to 0")
    if distillation.schedule == "joint" and (taught.weighting is not None or taught.source is not None):
        raise ConfigError(
            "the joint schedule reads logits of the teachers of features, a source or weighting of other logits "
            "would be ignored; use two_step"
        )


def _train(trainer: TaskTrainer, arguments: Mapping[str, Any]) -> None:
    """From the newest checkpoint where checkpoints are kept."""
    trainer.train(resume_from_checkpoint=True if arguments.get("save_strategy", "no") != "no" else None)


@dataclass(frozen=True)
class _Steps:
    """The steps of one student: its trainers, and the student between them."""

    taught: TaughtDomain
    live: LiveEncoders
    start: Path
    distillation: DistillationSettings
    settings: StudentSettings
    folder: Path
    seed: int
    shared: dict[str, Any]

    def joint(self, **arguments: Any) -> TaskTrainer:
        """Of all losses at once, for the steps of both."""
        steps = self.distillation.feature_steps + self.settings.max_steps
        return self._on_features(self._from(self.start, max_steps=steps), 1.0, **arguments)

    def first(self) -> tuple[Path, dict[str, Any]]:
        """The student after the step on features; students that differ only in what comes after share it."""
        made_of = self._made_of()
        path, reused = self.folder / f"features-{made_of}", True

        def make() -> dict[str, Any]:
            nonlocal reused
            reused = False
            step = self._from(
                self.start,
                max_steps=self.distillation.feature_steps,
                learning_rate=self.distillation.feature_learning_rate,
            )
            trainer = self._on_features(step, 0.0, lr_scheduler_type="constant")
            with metered() as cost:
                trainer.train()
            with quiet_transformers():
                write_hf(trainer.model, trainer.processing_class, path)
            return cost.record()

        spent = cost_in(once(path, made_of, make, whole=True))
        return path, {"feature_seconds": float(spent["seconds"]), "feature_cost": spent, "features_reused": reused}

    def on_logits(self, student: Path, **arguments: Any) -> TaskTrainer:
        """Of the step on logits, from the student of the first step."""
        source, weighting = self.taught.source or self.live, self.taught.weighting or Uniform()
        return self._trainer(source, weighting, self._from(student), "logits", **arguments)

    def _from(self, student: Path, **changes: Any) -> StudentSettings:
        return replace(self.settings, student=str(student), num_layers=None, **changes)

    def _on_features(self, settings: StudentSettings, logits_weight: float, **arguments: Any) -> TaskTrainer:
        taught, distillation, seed = self.taught, self.distillation, self.seed

        def features(student: PreTrainedModel) -> FeatureLosses:
            sizes = EncoderSizes.of(student)
            others = [EncoderSizes.of(teacher.model) for teacher in taught.encoders]
            projections = Projections(sizes, others, seed=seed)
            terms = feature_terms(sizes, others, feature_settings(distillation, logits=logits_weight), projections)
            if distillation.transfer and taught.corruption is not None:
                weight = distillation.transfer
                terms.append(TransferTerm(sizes, others, projections, taught.corruption, weight=weight, seed=seed))
            return FeatureLosses(terms, logits_weight=logits_weight)

        weighting: Weighting = Uniform()
        if distillation.expertise:
            scores = taught.scores
            known = None if scores is None else torch.from_numpy(np.array(scores, dtype=np.float32))
            weighting = DomainExpertise(known)
        return self._trainer(self.live, weighting, settings, "features", features=features, **arguments)

    def _trainer(
        self, source: LogitSource, weighting: Weighting, settings: StudentSettings, place: str, **arguments: Any
    ) -> TaskTrainer:
        task, folder = self.taught.task, self.folder / place
        return make_trainer(task, source, weighting, settings, folder, seed=self.seed, shared=self.shared, **arguments)

    def _made_of(self) -> str:
        taught, start, distillation, settings = self.taught, self.start, self.distillation, self.settings
        scores = None if taught.scores is None else hashlib.sha256(np.asarray(taught.scores).tobytes()).hexdigest()
        corruption = None
        if taught.corruption is not None:
            weights = taught.corruption.state_dict().items()
            corruption = hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for _, value in weights)).hexdigest()
        described = [
            taught.task.fingerprint,
            [teacher.identity for teacher in taught.encoders],
            scores if distillation.expertise else None,
            corruption if distillation.transfer else None,
            file_hash(start / WEIGHTS) if (start / WEIGHTS).is_file() else str(start),
            asdict(distillation),
            [settings.batch_size, settings.max_length, *(["bf16"] if settings.bf16 else [])],
            self.seed,
        ]
        return digest(described, 12, algorithm="sha256", in_order=True)
