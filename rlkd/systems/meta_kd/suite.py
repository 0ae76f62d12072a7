"""Meta-KD in suites: a task is one domain, entries are teachers with the same distillation, weightings the bridge.

The teachers are shared by the tasks of one source: one a domain, three that learn all domains, meta-teachers of other
switches. An entry of the system distils from some of them, features first, then logits. An ordinary weighting
(``uniform``, ``router``, a policy) starts from the meta-distilled features of its seed and weights the logits of the
single-domain teachers and the meta-teacher.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from rlkd.benchmark.jobs import Context
from rlkd.benchmark.policies import SMOKE_STEPS
from rlkd.benchmark.stages import plan_data
from rlkd.benchmark.suite_files import students_of
from rlkd.benchmark.suites import Suite, SuiteTask, System
from rlkd.cost import NO_COST
from rlkd.data.collection import keep_fraction, leave_domain_out
from rlkd.data.task import Task
from rlkd.errors import ConfigError, unknown_name
from rlkd.logit_cache import LiveEncoders, LogitCache, build_cache, compute_affinity, joint_knowledge
from rlkd.models.small import save_small_encoder
from rlkd.models.teachers import HfTeacher
from rlkd.models.training import training_seconds
from rlkd.records import digest, once
from rlkd.settings import StudentSettings
from rlkd.systems.meta_kd.corruption import DomainCorruption, corruption_of
from rlkd.systems.meta_kd.distillation import TaughtDomain, distil_meta_student
from rlkd.systems.meta_kd.entries import META_KD, OWN, SINGLES, MetaKdEntry, read_meta_kd, teacher_settings
from rlkd.systems.meta_kd.settings import MetaKdSettings
from rlkd.systems.meta_kd.teachers import (
    META,
    MIXED,
    MULTI_TASK,
    DomainHeads,
    domain_task,
    instance_embeddings,
    instance_scores,
    load_meta_kd_teachers,
    seen_domains,
    single_name,
    train_meta_kd_teachers,
)
from rlkd.systems.meta_kd.weighting import domain_expertise
from rlkd.trainer import TaskTrainer
from rlkd.weighting import WeightingSpec, build_weighting

FEATURES_FOLDER = "features"
"""Students after their first step, kept for the entries that share it."""
QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True, kw_only=True)
class MetaKdSystem(System):
    """Students of one domain of a task; what ``weightings`` name is an entry, or weights its features' teachers."""

    brings_teachers = True

    domain: str
    """The students'."""
    fraction: float | None = None
    """Share of the domain's training rows that teachers and students have; the other domains keep theirs."""
    leave_out: bool = False
    """Teachers never see the domain."""
    teachers: MetaKdSettings
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further meta-teachers: name to the switches in which they differ."""
    set: tuple[str, ...] = (SINGLES, META)
    """Teachers whose logits the ordinary weightings weight."""
    num_layers: int = 3
    """Of the student, from scratch."""
    hidden_size: int = 96
    """Of the student; a multiple of the encoder's heads."""
    entries: Mapping[str, MetaKdEntry]
    keep_gib: float = 2.0
    """Inner states of teachers that a process keeps in memory."""
    device: str = "cpu"

    @classmethod
    def read(cls, content: Mapping[str, Any], task: Mapping[str, Any], where: str) -> Self:
        """Read what a task says of Meta-KD; keys of other suites that it does not read are refused."""
        for key in ("planted", "teacher_share", "labels", "labelled_only", "embedder", "embeddings"):
            if task.get(key):
                raise ConfigError(f"{where}: {key!r} would be ignored beside meta_kd; leave it out")
        read = cls(**read_meta_kd(content, where))
        for name, student in students_of(task, where).items():
            if student.max_length != read.teachers.max_length:
                raise ConfigError(
                    f"{where}: student {name!r} and its teachers are compared token by token, they read "
                    f"{student.max_length} and {read.teachers.max_length} tokens; give both the same max_length"
                )
        return read

    def weighting_in(self, name: str) -> str | None:
        """None for an entry: it says itself who teaches."""
        return None if name in self.entries else name

    def made_of(self) -> list[Any]:
        """What decides teachers and students beside the entries."""
        kept = ("domain", "fraction", "leave_out", "variants", "set", "num_layers", "hidden_size")
        return [[asdict(self.teachers), {name: getattr(self, name) for name in kept}]]

    def smoke(self) -> Self:
        """A version that is done in seconds."""
        entries = {
            name: replace(entry, distillation=replace(entry.distillation, feature_steps=SMOKE_STEPS))
            for name, entry in self.entries.items()
        }
        return replace(self, teachers=replace(self.teachers, epochs=1), entries=entries)

    def on_device(self, device: str) -> Self:
        """Its networks elsewhere."""
        return replace(self, device=device)

    def check(self, suite: Suite) -> None:
        """Refuse policies that would be trained on other students than they serve, without saying so."""
        for task in suite.tasks:
            for policy in task.policies.values():
                if policy.kind != "router" and "student" not in policy.settings:
                    raise ConfigError(
                        f"task {task.name!r}: students of Meta-KD learn features first, and those of policy training "
                        f"do not; give policy {policy.name!r} the name of another student to be trained with (student)"
                    )

    def open(self, task: SuiteTask, folder: Path) -> Context:
        """One domain with the teachers of all; they lie beside the folder, because the tasks of a source share them."""
        whole = plan_data(task)[1]
        if self.domain not in whole.domain_names:
            raise unknown_name(f"domain of task {whole.name!r}", self.domain, whole.domain_names)
        if self.fraction is not None:
            whole = keep_fraction(whole, self.fraction, domains=[self.domain], seed=task.resample)
        bench = MetaKdBench(self, whole, task.name, task.weightings, folder.parent)
        return Context(bench.task, bench.cache, system=bench)

    def distiller(self, weighting: str) -> "MetaKdDistiller":
        """What distils the students of an entry, or of an ordinary weighting."""
        return MetaKdDistiller(self, weighting)


class MetaKdBench:
    """A task of one domain with its teachers, trained, asked, and held for features."""

    def __init__(self, plan: MetaKdSystem, whole: Task, name: str, weightings: Sequence[str], place: Path) -> None:
        """Open or make everything."""
        self.plan, self._whole = plan, whole
        self._taught = leave_domain_out(whole, plan.domain)[0] if plan.leave_out else whole
        made_of = [self._taught.fingerprint, asdict(plan.teachers)]
        self.folder = place / f"meta-kd-{digest(made_of, algorithm='sha256')}"
        wanted = [plan.entries[spec].teachers if spec in plan.entries else plan.set for spec in weightings]
        wanted += [plan.entries[META_KD].teachers] if any(spec not in plan.entries for spec in weightings) else []
        self.names = self.resolve([teacher for names in wanted for teacher in names])
        self._paths = self._train()
        self._teachers = load_meta_kd_teachers(self._paths, whole, device=plan.device, bf16=plan.teachers.bf16)
        self._rows = np.flatnonzero(whole.table.domains == whole.domain_names.index(plan.domain))
        self.task = replace(domain_task(whole, plan.domain), name=name)
        self.logits, self._embeddings = self._ask()
        bridge = [teacher for teacher in self.resolve(plan.set) if teacher in self.names]
        self.cache = self.logits.pick(bridge) if bridge else self.logits
        self.training_seconds = round(sum(map(training_seconds, self._paths.values())), 2)
        self.shared: dict[int, dict[str, Any]] = {}
        """Tokenizer and encoded inputs of students, by length."""

    def resolve(self, teachers: Sequence[str]) -> list[str]:
        """Names of teachers, each once: ``own`` and ``singles`` become those of this task.

        Raises:
            ConfigError: There is no such teacher, or the domain's own one although it is left out.
        """
        seen = seen_domains(self._taught)
        singles = [single_name(domain) for domain in seen]
        known = [*singles, MIXED, MULTI_TASK, META, *self.plan.variants]
        found: list[str] = []
        for name in teachers:
            if name == OWN and self.plan.domain not in seen:
                raise ConfigError(
                    f"domain {self.plan.domain!r} is left out and has no teacher of its own; drop 'single'"
                )
            found += singles if name == SINGLES else [single_name(self.plan.domain) if name == OWN else name]
        for name in found:
            if name not in known:
                raise unknown_name("teacher of Meta-KD", name, [OWN, SINGLES, *known])
        return list(dict.fromkeys(found))

    def _train(self) -> dict[str, Path]:
        plan, device = self.plan, self.plan.device
        ordinary = [name for name in self.names if name not in plan.variants]
        paths = train_meta_kd_teachers(self._taught, self.folder, plan.teachers, names=ordinary, device=device)
        for name in self.names:
            if name in plan.variants:
                made = train_meta_kd_teachers(
                    self._taught, self.folder / "variants" / name, self._variant(name), names=[META], device=device
                )
                paths[name] = made[META]
        return paths

    def _variant(self, name: str) -> MetaKdSettings:
        return teacher_settings({**asdict(self.plan.teachers), **self.plan.variants.get(name, {})}, name)

    def _ask(self) -> tuple[LogitCache, NDArray[np.float32]]:
        settings = self.plan.teachers
        found = instance_embeddings(self._whole, self.folder, settings, device=self.plan.device)
        teachers = [_named(self._teachers[name], name) for name in self.names]
        key = digest([self.task.fingerprint, self.names, dict(self.plan.variants)], algorithm="sha256")
        cache = build_cache(teachers, self.task, self.folder / f"cache-{key}", max_length=settings.max_length)
        # What teachers know is spread over all domains.
        known = joint_knowledge(teachers, self._whole)
        affinity = compute_affinity(found, self._whole, known, len(teachers))
        return cache.with_affinity(affinity[self._rows]), found

    @cached_property
    def encoders(self) -> LiveEncoders:
        """All teachers as encoders of the domain's texts; the multi-task one with the head of the domain."""
        heads = [t.head(self.plan.domain) if isinstance(t, DomainHeads) else t for t in self._teachers.values()]
        found: list[HfTeacher] = [_named(t, name) for t, name in zip(heads, self._teachers, strict=True)]
        keep = int(self.plan.keep_gib * 2**30)
        return LiveEncoders(found, self.task, max_length=self.plan.teachers.max_length, keep_bytes=keep)

    def corruption(self, name: str) -> DomainCorruption:
        """The module of a meta-teacher."""
        (teacher,) = self.encoders.only([name]).encoders
        return corruption_of(self._paths[name], teacher, self._whole)

    def scores(self, name: str) -> NDArray[np.float64]:
        """The prototype scores that belong to a meta-teacher, of the domain's instances."""
        settings = self._variant(name).prototypes
        seen = seen_domains(self._taught)
        return instance_scores(self._whole, self._embeddings, settings, domains=seen)[self._rows]

    def spread(self, name: str) -> dict[str, list[float]]:
        """How much a meta-teacher's t and lambda vary at all: 5%, 50% and 95% quantiles over the training rows."""
        rows = self.task.labelled_ids("train")
        ids, scores = torch.from_numpy(rows), self.scores(name)[rows]
        logits, labels = self.logits.pick([name]).rows(ids), torch.from_numpy(self.task.table.labels[rows])
        expertise = domain_expertise(logits, labels, torch.from_numpy(scores))[:, 0].numpy()
        shown = {"prototype_score": scores, "expertise": expertise}
        return {key: np.quantile(values, QUANTILES).round(4).tolist() for key, values in shown.items()}

    def start(self, seed: int) -> Path:
        """The student of a seed before it learns."""
        plan, name = self.plan, f"student-{self.plan.num_layers}x{self.plan.hidden_size}-{seed}"
        path = self.folder / "starts" / name

        def make() -> None:
            sizes = {"num_layers": plan.num_layers, "hidden_size": plan.hidden_size}
            save_small_encoder(plan.teachers.encoder, self.task, path, **sizes, seed=seed)

        once(path, name, make, whole=True)
        return path


@dataclass(frozen=True)
class MetaKdDistiller:
    """One entry of Meta-KD, or a weighting of logits on top of its features."""

    plan: MetaKdSystem
    weighting: str

    @property
    def _entry(self) -> MetaKdEntry:
        return self.plan.entries.get(self.weighting, self.plan.entries[META_KD])

    def described(self) -> Any:
        """What decides the student beside data, logits and weighting."""
        entry = self._entry
        return [*self.plan.made_of(), {"teachers": entry.teachers, "recipe": asdict(entry.distillation)}]

    def record(self) -> dict[str, Any]:
        """What a run's line says of it."""
        size = f"encoder {self.plan.num_layers}x{self.plan.hidden_size}"
        return {"recipe": {"teachers": list(self._entry.teachers), **asdict(self._entry.distillation)}, "network": size}

    def distil(
        self, opened: MetaKdBench, spec: WeightingSpec | None, settings: StudentSettings, seed: int, folder: Path
    ) -> tuple[TaskTrainer, dict[str, Any]]:
        """Distil a student; features of the same entry and seed are made once."""
        bench, entry, task, started = opened, self._entry, opened.task, time.perf_counter()
        names = bench.resolve(entry.teachers)
        live = bench.encoders.only(names)
        meta = names[0] if entry.distillation.transfer or entry.distillation.expertise else None
        weighting = None
        source: LogitCache | None = bench.logits.pick(names)
        if spec is not None:
            source = bench.cache
            weighting = build_weighting(spec, task, bench.cache, seed=seed)
        fit_seconds = round(time.perf_counter() - started, 2)
        taught = TaughtDomain(
            task=task,
            encoders=live.encoders,
            corruption=bench.corruption(names[0]) if entry.distillation.transfer else None,
            scores=None if meta is None else bench.scores(meta),
            source=None if entry.distillation.schedule == "joint" and weighting is None else source,
            weighting=weighting,
            live=live,
        )
        shared = bench.shared.setdefault(settings.max_length, {})
        trainer, figures = distil_meta_student(
            taught,
            bench.start(seed),
            entry.distillation,
            settings,
            folder / FEATURES_FOLDER,
            seed=seed,
            shared=shared,
            keep_features=entry == self.plan.entries[META_KD],  # those that weightings start from
        )
        reused, features = figures.pop("features_reused"), figures.pop("feature_cost")
        flat = {} if meta is None else bench.spread(meta)
        return trainer, {**figures, **flat, "fit_seconds": fit_seconds, "cost_before": features if reused else NO_COST}


def _named(teacher: Any, name: str) -> Any:
    teacher.name = name
    return teacher
