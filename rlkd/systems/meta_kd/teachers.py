"""Meta-KD's teachers: one meta-teacher that carries what transfers between domains, and those it is compared with.

The meta-teacher is trained on all domains at once. Instances that are typical of their own and of other domains count
more (:mod:`rlkd.prototypes`), and a second head must name *false* domains from a mixture of content and domain
(:mod:`rlkd.systems.meta_kd.corruption`), so that the content keeps what domains share. Students are distilled in
:mod:`rlkd.systems.meta_kd.distillation`.

Source:
    Pan, Wang, Qiu, Zhang, Li, Huang 2021, "Meta-KD: A Meta Knowledge Distillation Framework for Language Model
    Compression across Domains", arXiv:2012.01266, and its released code. Where the two differ,
    :class:`~rlkd.systems.meta_kd.settings.MetaKdSettings` has a switch.
Deviation:
    The classifier is transformers' own, with dropout and without the code's ReLU. Means leave padding out. Teachers
    answer in eval mode; the released code leaves their dropout on.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.data.collection import TaskCollection, keep_domains
from rlkd.data.task import Task, joined_inputs
from rlkd.errors import TaskError, TeacherError, unknown_name
from rlkd.models import load_teachers
from rlkd.models.embedding import TextEmbedder
from rlkd.models.networks import load_config, quiet_transformers
from rlkd.models.specialists import known_rows
from rlkd.models.students import PREFIX, check_student
from rlkd.models.teacher_settings import TeacherSettings, check_rows, teacher_settings
from rlkd.models.teachers import HfTeacher, KnowsBy, LabelledTeacher, Teacher
from rlkd.models.training import train_teacher
from rlkd.prototypes import prototype_scores
from rlkd.records import held, read_object, write_array_atomic
from rlkd.settings import PrototypeSettings
from rlkd.systems.meta_kd.corruption import MetaTeacherObjective
from rlkd.systems.meta_kd.settings import MetaKdSettings
from rlkd.trainer.multi_task_training import TaughtTasks, multi_task_teacher_settings, train_model

SINGLE, MIXED, MULTI_TASK, META = "single", "mixed", "multi_task", "meta"
EMBEDDINGS_FILE = "embeddings.npy"


def single_name(domain: str) -> str:
    """Name of the teacher of one domain alone, and of its directory."""
    return f"{SINGLE}-{re.sub(r'[^A-Za-z0-9._-]+', '-', domain)}"


def teacher_names(task: Task) -> tuple[str, ...]:
    """All teachers that a task can have: one a domain, and three that learn all domains."""
    return (*map(single_name, seen_domains(task)), MIXED, MULTI_TASK, META)


def seen_domains(task: Task) -> tuple[str, ...]:
    """Names of the domains that have labelled training rows.

    Raises:
        TaskError: The task has fewer than two domains.
    """
    if len(task.domain_names) < 2:
        raise TaskError(
            f"Meta-KD needs a task with two domains or more, task {task.name!r} has {len(task.domain_names)}; add a "
            "column of domains"
        )
    seen = np.unique(task.table.domains[task.labelled_ids("train")])
    return tuple(task.domain_names[index] for index in seen)


def check_meta_kd(task: Task, settings: MetaKdSettings, names: Sequence[str]) -> None:
    """Refuse before any long work what cannot be trained.

    Raises:
        ConfigError: A setting is out of range.
        TaskError: The task has no domains, no texts, or train rows without a label.
        TeacherError: The encoder cannot be loaded, or a domain has too few rows.
        UnknownNameError: There is no such teacher.
    """
    known = teacher_names(task)
    if len(set(known)) < len(known):
        raise TaskError(f"domains need names that differ in letters or digits, got {', '.join(known)}; rename one")
    for name in names:
        if name not in known:
            raise unknown_name("teacher of Meta-KD", name, known)
    bare = len(task.splits["train"]) - len(task.labelled_ids("train"))
    if bare:
        raise TaskError(
            f"Meta-KD reads the label of every training row, {bare} of task {task.name!r} have none; leave them out"
        )
    if task.table.texts is None:
        raise TaskError(f"Meta-KD distils encoders of texts, task {task.name!r} has {task.table.holds}; give it texts")
    if settings.encoder.startswith(PREFIX):
        raise TeacherError(
            f"Meta-KD fine-tunes a pretrained encoder, got {settings.encoder!r}; name a hub id or a path"
        )
    check_student(settings.encoder, task, num_layers=settings.num_layers, max_length=settings.max_length)
    for name, plan in _plans(task, settings, names).items():
        check_rows(task, plan, name)


def _plans(task: Task, settings: MetaKdSettings, names: Sequence[str]) -> dict[str, TeacherSettings]:
    """How each teacher is fine-tuned: all alike, but for the domains that it sees."""
    (plan,) = teacher_settings(
        task,
        kinds=[settings.encoder],
        max_length=settings.max_length,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        seed=settings.seed,
        num_layers=settings.num_layers,
        bf16=settings.bf16,
    )
    by: KnowsBy = "domain"
    return {name: replace(plan, known=_known(task, name), knows_by=by) for name in names}


def _known(task: Task, name: str) -> tuple[str, ...]:
    seen = seen_domains(task)
    return tuple(domain for domain in seen if single_name(domain) == name) or seen


def instance_scores(
    task: Task,
    embeddings: NDArray[np.floating[Any]],
    settings: PrototypeSettings,
    *,
    domains: Sequence[str] | None = None,
) -> NDArray[np.float64]:
    """The prototype score t of every instance of a task, shape (N,), from prototypes of its train rows.

    Args:
        task: The task.
        embeddings: Shape (N, D).
        settings: How.
        domains: Those whose rows make prototypes: the ones that the meta-teacher saw. None: all.
    """
    table = task.table
    rows = known_rows(task, task.labelled_ids("train"), domains, "domain")
    return prototype_scores(embeddings, table.labels, table.domains, rows=rows, settings=settings)


def instance_embeddings(
    task: Task, folder: str | Path, settings: MetaKdSettings, *, device: str | None = None
) -> NDArray[np.float32]:
    """Embeddings of all instances by the plain encoder, mean-pooled with the mask, shape (N, D); made once a folder."""
    path = Path(folder) / f"{task.fingerprint[:16]}-{EMBEDDINGS_FILE}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(path.with_name(f".{path.name}.lock")):
        if not path.is_file():
            with quiet_transformers():
                embed = TextEmbedder(
                    settings.encoder, max_length=settings.max_length, device=device, bf16=settings.bf16
                )
            write_array_atomic(path, embed(joined_inputs(task, np.arange(len(task.table)))))
    return np.asarray(np.load(path, allow_pickle=False))


def train_meta_kd_teachers(
    task: Task,
    folder: str | Path,
    settings: MetaKdSettings,
    *,
    names: Sequence[str] = (META,),
    device: str | None = None,
    progress: bool = False,
) -> dict[str, Path]:
    """Train the meta-teacher, and whichever others are asked for; what is finished is kept.

    Programs that ask for teachers of one folder at the same time wait for each other.

    Args:
        task: With domains; those without training rows are unknown to the teachers.
        folder: Each teacher gets a directory in it.
        settings: Of all of them.
        names: Of :func:`teacher_names`.
        device: ``"cpu"`` keeps networks off the GPU.
        progress: Show progress bars.

    Returns:
        Directories by name.
    """
    check_meta_kd(task, settings, names)
    return {
        name: _train(task, Path(folder), settings, name, plan, device=device, progress=progress)
        for name, plan in _plans(task, settings, names).items()
    }


def _train(
    task: Task,
    place: Path,
    settings: MetaKdSettings,
    name: str,
    plan: TeacherSettings,
    *,
    device: str | None,
    progress: bool,
) -> Path:
    if name == MULTI_TASK:
        return _train_multi_task(task, place, settings, device=device, progress=progress)
    objective = None
    if name == META:
        scores = instance_scores(task, instance_embeddings(task, place, settings, device=device), settings.prototypes)
        width = load_config(settings.encoder).hidden_size
        objective = MetaTeacherObjective(task, scores, settings, width)
    path = place / name
    train_teacher(task, path, plan, objective=objective, device=device, progress=progress)
    return path


def _train_multi_task(task: Task, place: Path, settings: MetaKdSettings, *, device: str | None, progress: bool) -> Path:
    """One encoder with a head for each domain, as MKD trains it."""
    collection = TaskCollection(tuple(domain_task(task, domain) for domain in seen_domains(task)))
    training = multi_task_teacher_settings(
        settings.encoder,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        max_length=settings.max_length,
        bf16=settings.bf16,
        device="cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda",
    )
    path = place / MULTI_TASK / "multi"
    train_model(
        path,
        settings.encoder,
        TaughtTasks(collection=collection),
        training,
        num_layers=settings.num_layers,
        seed=settings.seed,
        progress=progress,
    )
    return path


def domain_task(task: Task, domain: str) -> Task:
    """The rows of one domain as a task of that name."""
    return replace(keep_domains(task, [domain]), name=domain)


class DomainHeads(LabelledTeacher):
    """The multi-task teacher over a whole task: each instance is answered by the head of its own domain."""

    def __init__(self, name: str, heads: Mapping[str, HfTeacher]) -> None:
        """Hold the classifier of every domain."""
        first = next(iter(heads.values()))
        super().__init__(name, first.label_names, knows=list(heads), knows_by="domain", allow_missing=False)
        self._heads = dict(heads)

    @property
    def identity(self) -> str:
        """Hashes of all heads with the encoder that they share."""
        return "-".join(f"{domain}:{head.identity}" for domain, head in self._heads.items())

    def head(self, domain: str) -> HfTeacher:
        """The classifier of one domain.

        Raises:
            TeacherError: The domain was left out of the training.
        """
        if domain not in self._heads:
            raise TeacherError(
                f"the multi-task teacher has heads for {', '.join(self._heads)}, got domain {domain!r}, which it never "
                "saw; leave the multi-task teacher out"
            )
        return self._heads[domain]

    def raw_logits(self, task: Task, ids: NDArray[np.int64], batch_size: int, max_length: int) -> Tensor:
        """See :meth:`~rlkd.models.teachers.LabelledTeacher.raw_logits`."""
        logits = torch.zeros(len(ids), len(self.label_names))
        domains = task.table.domains[ids]
        for index in np.unique(domains):
            mine = np.flatnonzero(domains == index)
            head = self.head(task.domain_names[index])
            logits[torch.from_numpy(mine)] = head.raw_logits(task, ids[mine], batch_size, max_length).float().cpu()
        return logits


def load_meta_kd_teachers(
    paths: Mapping[str, Path], task: Task, *, device: str | None = None, bf16: bool = False
) -> dict[str, Teacher]:
    """Load what :func:`train_meta_kd_teachers` trained, by name, for logits of the whole task."""
    return {name: _load(name, path, task, device, bf16) for name, path in paths.items()}


def _load(name: str, path: Path, task: Task, device: str | None, bf16: bool) -> Teacher:
    if name != MULTI_TASK:
        return load_teachers([path], task, device=device, bf16=bf16)[0]
    tasks = read_object(path / "config.json")["tasks"]
    heads: dict[str, HfTeacher] = {}
    for domain in tasks:
        (head,) = load_teachers([path], replace(task, name=domain), device=device, bf16=bf16)
        assert isinstance(head, HfTeacher)
        heads[domain] = head
    return DomainHeads(name, heads)
