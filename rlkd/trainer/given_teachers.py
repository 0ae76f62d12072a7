"""What people pass as teachers of a trainer: objects, paths, hub ids, estimators, functions, a cache."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from rlkd.data.columns import KNOWN_PAIRS, TEXT_NAMES, Columns
from rlkd.errors import ConfigError, TeacherError
from rlkd.hub import may_be_id, snapshot
from rlkd.kinds import PROBLEM_TYPES, CausalTokens, Kind, Regression
from rlkd.logit_cache import MANIFEST, LogitCache, open_cache, read_manifest
from rlkd.models.estimators import SklearnTeacher
from rlkd.models.labels import MISSING, align_labels, are_generic
from rlkd.models.model_objects import NamedModel, parts_of, several_teachers
from rlkd.models.teacher_files import SKLEARN_FILE, load_sklearn
from rlkd.models.teachers import CallableTeacher, HfTeacher, refuse_namesakes
from rlkd.trainer.asking_teachers import FunctionTeacher, NetworkTeacher, reader_of_batches
from rlkd.trainer.batch_teachers import AskedTeachers, AskingTeacher, BatchTeachers
from rlkd.trainer.image_batches import same_processing
from rlkd.trainer.looked_up_teachers import CachedTeachers
from rlkd.trainer.remembering import RememberedTeachers, store_folder
from rlkd.trainer.student_class import auto_class, base_model, is_causal, outputs_of
from rlkd.trainer.teacher_folders import network_of
from rlkd.types import ONCE

log = logging.getLogger(__name__)

PROBES = ("A sentence of several words, and of a few more: 12 of them!", "naïve CAFÉ  don't", "")


class TeacherReader:
    """Makes teachers of what is passed, for one student.

    Args:
        student: The network that is trained.
        tokenizer: The student's, or its image processor; None: it has neither.
        device: Where the student is.
        max_length: Tokens that texts are cut to for teachers with tokenizers of their own.
        offload: Keep teachers on the CPU but while they are asked.
        text_columns: Columns of texts, for teachers that read them. None: found among ``data_columns``.
        data_columns: Columns of the training data, as far as they are known.
        id_column: Column of the numbers of rows in a cache.
        cache: Keep what teachers say of rows: a folder, or ``auto``; see :mod:`rlkd.trainer.remembering`.
        kind: Of the task: what answers are.
    """

    def __init__(
        self,
        student: nn.Module,
        tokenizer: Any,
        *,
        device: torch.device,
        max_length: int,
        offload: bool = False,
        text_columns: Sequence[str] | None = None,
        data_columns: Sequence[str] = (),
        id_column: str = "id",
        cache: str | Path | None = None,
        kind: type[Kind] = Kind,
    ) -> None:
        self._student = base_model(student)
        self._tokenizer = tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None
        self._processor = tokenizer if isinstance(tokenizer, BaseImageProcessor) else None
        self._device, self._max_length, self._offload = device, max_length, offload
        self._data_columns, self._id_column = tuple(data_columns), id_column
        self._cache, self._kind = cache, kind
        self._text_columns = tuple(text_columns) if text_columns else found_text_columns(self._data_columns)
        names = getattr(self._student.config, "id2label", None) or {}
        self._labels = tuple(str(names[index]) for index in sorted(names))

    def read(self, given: Any) -> BatchTeachers:
        """Make the teachers.

        Raises:
            TeacherError: Something is no teacher, does not fit the student, or reads texts that there are none of.
        """
        if isinstance(given, str | Path) and (Path(given) / MANIFEST).is_file():
            given = self._opened(Path(given))
        kept = isinstance(given, LogitCache) or (hasattr(given, "carry") and hasattr(given, "state"))
        if kept and self._cache is not None:
            raise ConfigError(f"cache would be ignored, got {str(self._cache)!r}: these teachers are not asked")
        if isinstance(given, LogitCache):
            return CachedTeachers(given, self._id_column, self._device)
        if hasattr(given, "carry") and hasattr(given, "state"):
            teachers: BatchTeachers = given
            return teachers
        named = self._named(given)
        if not named:
            raise TeacherError(
                "expected at least one teacher, got none (K = 0); pass models, paths, hub ids or a cache"
            )
        refuse_namesakes([name for name, _ in named], "pass a mapping from names to teachers")
        asked = [self._teacher(name, one) for name, one in named]
        readers = [teacher.name for teacher in asked if teacher.reads_text]
        if readers and not self._text_columns:
            raise TeacherError(
                f"teacher {readers[0]!r} reads texts, and none of the columns "
                f"{', '.join(self._data_columns) or '(none)'} is known to hold them; keep the text in the training "
                "data and name it with text_columns"
            )
        outputs = outputs_of(self._student)
        if self._cache is not None:
            self._check_size(outputs)
            return RememberedTeachers(asked, self._text_columns, outputs, store_folder(self._cache), self._kind)
        return AskedTeachers(asked, self._text_columns, outputs, self._kind)

    def _check_size(self, outputs: int) -> None:
        if self._kind is CausalTokens:
            size = 4e-6 * outputs * self._max_length
            raise ConfigError(
                f"cache would keep all {outputs} logits of every token of causal teachers, {size:.0f} MB for a row of "
                f"{self._max_length} tokens, got {str(self._cache)!r}; leave it out: they are asked in every epoch"
            )

    def _opened(self, folder: Path) -> LogitCache:
        labels = tuple(read_manifest(folder)["labels"])
        if labels != self._labels:
            raise TeacherError(
                f"expected the student's classes {', '.join(self._labels)} in the cache {folder}, in this order, got "
                f"{', '.join(labels)}; set id2label of the student to the cache's"
            )
        return open_cache(folder)

    def _named(self, given: Any) -> list[tuple[str, Any]]:
        if isinstance(given, Mapping):
            return [(str(name), one) for name, one in given.items()]
        return [
            (one.name, one.model) if isinstance(one, NamedModel) else (getattr(one, "name", "") or Path(one).name, one)
            for one in several_teachers(given)
        ]

    def _teacher(self, name: str, given: Any) -> AskingTeacher:
        if isinstance(given, str | Path):
            return self._from_path(name, given)
        if isinstance(given, HfTeacher):
            return self._network(name, given.model, given.tokenizer, given.label_names)
        if isinstance(given, SklearnTeacher):
            return self._estimator(name, given.model, given.label_names)
        if isinstance(given, CallableTeacher):
            columns = self._columns(name, given.label_names)
            made_of = given.function if given.identity.startswith(ONCE) else given.identity
            return self._function(name, given.function, made_of, columns)
        model, tokenizer = parts_of(given)
        if isinstance(model, nn.Module):
            return self._network(name, model, tokenizer)
        if _is_estimator(given):
            return self._estimator(name, given)
        if self._kind is Regression and hasattr(given, "predict"):
            read = reader_of_batches(name, given, Regression)
            return FunctionTeacher(name, read, reads_text=self._reads_text, made_of=given)
        if callable(given):
            return self._function(name, given, getattr(given, "identity", None) or given)
        raise TeacherError(
            "expected a model, a pair of model and tokenizer, a path, a hub id, a scikit-learn classifier or a "
            f"function as teacher {name!r}, got {type(given).__name__}"
        )

    def _from_path(self, name: str, path: str | Path) -> AskingTeacher:
        if may_be_id(path):
            place = snapshot(str(path), expected=f"a folder of teacher {name!r}", error=TeacherError)
        elif Path(path).is_dir():
            place = Path(path)
        else:
            raise TeacherError(
                f"expected a folder or a hub id as teacher {name!r}, got {str(path)!r}, which is no folder; check it"
            )
        if (place / SKLEARN_FILE).is_file():
            loaded = load_sklearn(place)
            return self._estimator(name, loaded.model, loaded.label_names)
        model, own, label_names = network_of(auto_class(self._student), name, place)
        return self._network(name, model, own, label_names)

    def _network(
        self, name: str, model: nn.Module, tokenizer: Any, label_names: Sequence[str] | None = None
    ) -> NetworkTeacher:
        if isinstance(tokenizer, BaseImageProcessor):
            self._check_processor(name, tokenizer)
            tokenizer = None  # it reads the student's batch
        config = getattr(model, "config", None)
        self._check_problem(name, getattr(config, "problem_type", None))
        own = getattr(config, "id2label", None)
        names = label_names or (None if own is None else [str(own[index]) for index in sorted(own)])
        if tokenizer is not None and self._tokenizer is not None and same_tokens(tokenizer, self._tokenizer):
            tokenizer = None
        if tokenizer is None and isinstance(model, PreTrainedModel) and self._tokenizer is not None:
            config = model.config.get_text_config()
            if config.pad_token_id is None:
                config.pad_token_id = self._tokenizer.pad_token_id  # of what it reads
        return NetworkTeacher(
            name,
            model,
            tokenizer,
            None if names is None or is_causal(self._student) else self._columns(name, names),
            max_length=self._max_length,
            device=self._device,
            offload=self._offload,
        )

    def _check_processor(self, name: str, own: BaseImageProcessor) -> None:
        """Refuse a teacher of images that was made for other ``pixel_values`` than those that the student reads."""
        if self._processor is not None and not same_processing(own, self._processor):
            raise TeacherError(
                f"teacher {name!r} and the student read one batch of pixel_values, and their image processors have "
                "different settings; give them the same, or build a cache (rlkd.build_cache), for which each teacher "
                "reads with its own"
            )

    def _check_problem(self, name: str, problem_type: str | None) -> None:
        """Refuse a network that says it is of another kind of task."""
        if problem_type is None or self._kind not in PROBLEM_TYPES.values():
            return
        if PROBLEM_TYPES.get(problem_type) is not self._kind:
            raise TeacherError(
                f"expected teacher {name!r} to be of {self._kind.name}, as the student is, got problem_type "
                f"{problem_type!r} in its config; set problem_type of the student's config, or leave this teacher out"
            )

    def _function(self, name: str, function: Any, made_of: Any, columns: Any = None) -> FunctionTeacher:
        return FunctionTeacher(name, function, reads_text=bool(self._text_columns), made_of=made_of, columns=columns)

    def _estimator(self, name: str, model: Any, label_names: Sequence[str] | None = None) -> FunctionTeacher:
        classes = np.asarray(model.classes_)
        if classes.ndim != 1:
            raise TeacherError(
                f"expected a classifier with one column a class or label as teacher {name!r}, got "
                f"{type(model).__name__} with one answer a label; fit OneVsRestClassifier"
            )
        if label_names is None and np.issubdtype(classes.dtype, np.integer):
            columns = _by_id(classes, len(self._labels), name)  # the numbers that the student is trained with
        else:
            columns = self._columns(name, label_names or [str(label) for label in classes])
        read = reader_of_batches(name, model, self._kind)
        return FunctionTeacher(name, read, reads_text=self._reads_text, made_of=model, columns=columns)

    @property
    def _reads_text(self) -> bool:
        """Whether estimators read texts, not what the student reads."""
        return bool(self._text_columns) and self._tokenizer is not None

    def _columns(self, name: str, theirs: Sequence[str]) -> NDArray[np.int64] | None:
        if tuple(theirs) == self._labels or len(theirs) == len(self._labels) == 1:
            return None
        if are_generic(self._labels) and not are_generic(theirs):
            raise TeacherError(
                f"expected a student whose classes have names, as those of teacher {name!r} have "
                f"({', '.join(theirs[:8])}), got {', '.join(self._labels[:3])}, ...; pass id2label where the "
                "student is loaded, in the order of the labels in the data"
            )
        columns = align_labels(theirs, self._labels, teacher=name, may_lack=self._labels)
        lacking = [label for label, column in zip(self._labels, columns, strict=True) if column == MISSING]
        if lacking:
            log.warning("teacher %r says nothing of %s; there the others teach", name, ", ".join(lacking[:8]))
        return columns


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers read texts alike: the same vocabulary, and the same tokens of a few sentences."""
    if one.get_vocab() != other.get_vocab() or one.all_special_ids != other.all_special_ids:
        return False
    return all(one(text)["input_ids"] == other(text)["input_ids"] for text in PROBES)


def found_text_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """The columns of texts, or of pairs of texts, by their usual names; none where that leaves open which is meant."""
    pairs = [pair for pair in KNOWN_PAIRS if set(pair) <= set(columns)]
    if pairs:
        return pairs[0]
    usual = [name for name in columns if name in TEXT_NAMES]
    return (Columns.text,) if Columns.text in usual else tuple(usual) if len(usual) == 1 else ()


def _by_id(classes: NDArray[np.integer[Any]], count: int, name: str) -> NDArray[np.int64] | None:
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < count:
        raise TeacherError(
            f"expected classes 0 to {count - 1} of teacher {name!r}, as the student has them, got "
            f"{classes.tolist()[:8]}; fit it on the numbers or names of the student's classes"
        )
    columns = np.full(count, MISSING, dtype=np.int64)
    columns[classes] = np.arange(len(classes))
    return None if np.array_equal(columns, np.arange(count)) else columns


def _is_estimator(given: Any) -> bool:
    return hasattr(given, "classes_") and (hasattr(given, "predict_proba") or hasattr(given, "decision_function"))
