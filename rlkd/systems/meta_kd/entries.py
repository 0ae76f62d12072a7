"""What a suite of ``system: meta_kd`` says of its teachers, students and entries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlkd.benchmark.reading import built, check_keys, mapping_in
from rlkd.errors import ConfigError
from rlkd.records import check_folder_name
from rlkd.settings import PrototypeSettings
from rlkd.systems.meta_kd.distillation import TINY_BERT
from rlkd.systems.meta_kd.settings import DistillationSettings, MetaKdSettings
from rlkd.systems.meta_kd.teachers import META, MIXED, MULTI_TASK

OWN, SINGLES = "own", "singles"
"""In an entry's teachers: the one of the student's domain; those of all single domains that were seen."""
META_KD = "meta_kd"
ENTRIES: Mapping[str, Mapping[str, Any]] = {
    "single": {"teachers": [OWN], **TINY_BERT},
    "mixed": {"teachers": [MIXED], **TINY_BERT},
    "multi_task": {"teachers": [MULTI_TASK], **TINY_BERT},
    "average": {"teachers": [SINGLES], **TINY_BERT},
    "meta": {"teachers": [META], **TINY_BERT},
    META_KD: {"teachers": [META]},
}
"""Rows of the paper's tables: every teacher with TinyBERT's distillation, the average of all single-domain teachers,
and the meta-teacher with meta-distillation, which is what entries have unless they say otherwise."""


@dataclass(frozen=True, kw_only=True)
class MetaKdEntry:
    """One row of a table."""

    teachers: tuple[str, ...]
    distillation: DistillationSettings


def read_meta_kd(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Read what a suite says of Meta-KD.

    Its keys are ``domain``, ``fraction``, ``leave_out``; ``teachers`` (fields of :class:`MetaKdSettings`) and
    ``variants`` of the meta-teacher; ``student`` (``num_layers``, ``hidden_size``); ``distillation`` (fields of
    :class:`DistillationSettings`) and ``arms``, which say what differs; ``set``; ``keep_gib``.

    Raises:
        ConfigError: A key is unknown or missing, or a value out of range.
    """
    known = ("domain", "fraction", "leave_out", "teachers", "variants", "student", "distillation", "arms", "set")
    check_keys(content, (*known, "keep_gib", "device"), f"{where}, meta_kd")
    if not isinstance(content.get("domain"), str) or "encoder" not in (content.get("teachers") or {}):
        raise ConfigError(f"{where}: meta_kd needs the students' domain and teachers with an encoder; give both")
    variants = mapping_in(content, "variants", where)
    for name, changes in variants.items():
        check_folder_name(name, where, "variant")
        teacher_settings({**content["teachers"], **changes}, f"{where}, variant {name!r}")
    base = mapping_in(content, "distillation", where)
    entries = {
        name: _entry(base, entry, f"{where}, entry {name!r}")
        for name, entry in {**ENTRIES, **mapping_in(content, "arms", where)}.items()
    }
    student = mapping_in(content, "student", where)
    check_keys(student, ("num_layers", "hidden_size"), f"{where}, meta_kd student")
    rest = {key: content[key] for key in ("fraction", "leave_out", "keep_gib", "device") if key in content}
    return {
        "domain": content["domain"],
        "teachers": teacher_settings(content["teachers"], f"{where}, meta_kd teachers"),
        "variants": variants,
        "entries": entries,
        "set": tuple(content.get("set", (SINGLES, META))),
        **student,
        **rest,
    }


def _entry(base: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> MetaKdEntry:
    teachers = changes.get("teachers")
    if not isinstance(teachers, Sequence) or isinstance(teachers, str) or not teachers:
        raise ConfigError(f"{where}: expected a list of teachers, got {teachers!r:.60}; name some")
    own = {key: value for key, value in changes.items() if key != "teachers"}
    return MetaKdEntry(teachers=tuple(teachers), distillation=built(DistillationSettings, {**base, **own}, where))


def teacher_settings(content: Mapping[str, Any], where: str) -> MetaKdSettings:
    """Settings of teachers with those of their prototypes in them.

    Raises:
        ConfigError: A key is unknown, or a value out of range.
    """
    prototypes = content.get("prototypes") or {}
    settings: MetaKdSettings = built(
        MetaKdSettings, {**content, "prototypes": built(PrototypeSettings, prototypes, f"{where}, prototypes")}, where
    )
    return settings
