"""Teachers: anything that gives logits, aligned to the task's classes, in eval mode and without gradients.

Nothing here unpickles: HF teachers are read from safetensors, scikit-learn ones through skops (which refuses
types that it does not trust), arrays with ``allow_pickle=False``.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import skops.io
import torch
import xxhash
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlkd.data.batching import Inputs, encode_inputs
from rlkd.data.task import Task
from rlkd.errors import TeacherError
from rlkd.models.labels import align_labels, aligned_logits
from rlkd.models.students import first_line, forward_inputs, quiet_transformers

KnowsBy = Literal["class", "domain"]

SKLEARN_FILE = "teacher.skops"
INFO_FILE = "teacher.json"
TRUSTED_TYPES: tuple[str, ...] = ()
"""Types trusted beside skops' own list; a pipeline of TF-IDF and logistic regression needs none."""
SMALLEST_PROBABILITY = 1e-6
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)


class Teacher(Protocol):
    """What gives logits."""

    @property
    def name(self) -> str:
        """Unique among the teachers of a run."""

    @property
    def identity(self) -> str:
        """Hash of everything that decides the logits; caches made by another identity are refused."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the teacher's own columns."""

    @property
    def knows(self) -> frozenset[str] | None:
        """Names of the classes or domains it was trained on. None: not known, or all."""

    @property
    def knows_by(self) -> KnowsBy | None:
        """Whether ``knows`` names classes or domains."""

    def logits(self, task: Task, ids: NDArray[np.int64], *, batch_size: int, max_length: int) -> Tensor:
        """Logits of the instances ``ids`` (N,): (N, C) float32 on the CPU, in the task's class order."""


@dataclass(frozen=True)
class TeacherInfo:
    """What ``teacher.json`` says."""

    name: str
    kind: str | None = None
    knows: frozenset[str] | None = None
    knows_by: KnowsBy | None = None
    label_names: tuple[str, ...] | None = None
    """Names of the columns, where the model itself has none."""
    settings: str | None = None
    """Fingerprint of the task and of the settings of its training."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    def to_json(self) -> str:
        """Write the file's text; sorted, so equal teachers give equal files."""
        content = {
            "name": self.name,
            "kind": self.kind,
            "knows": None if self.knows is None else sorted(self.knows),
            "knows_by": self.knows_by,
            "label_names": None if self.label_names is None else list(self.label_names),
            "settings": self.settings,
            "metrics": dict(self.metrics),
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


class LabelledTeacher:
    """What all teachers of this module share: a name, columns with names, and what they know.

    Args:
        name: Unique among the teachers of a run.
        label_names: Names of the teacher's columns, in order.
        knows: Names of the classes or domains it was trained on. None: not known, or all.
        knows_by: Whether ``knows`` names classes or domains.
        allow_missing: Whether it may lack classes of the task. None: where it is a specialist.
    """

    def __init__(
        self,
        name: str,
        label_names: Sequence[str],
        *,
        knows: Iterable[str] | None = None,
        knows_by: KnowsBy | None = None,
        allow_missing: bool | None = None,
    ) -> None:
        self.name = name
        self.label_names = tuple(label_names)
        self.knows = None if knows is None else frozenset(knows)
        self.knows_by = knows_by
        self._allow_missing = self.knows is not None if allow_missing is None else allow_missing
        if (self.knows is None) != (knows_by is None):
            raise TeacherError(
                f"teacher {name!r} needs knows and knows_by together, came {knows!r} and {knows_by!r}; "
                "give both or neither"
            )

    def columns(self, task: Task) -> NDArray[np.int64]:
        """The teacher's column of each class of the task, shape (C,); see :func:`align_labels`."""
        return align_labels(
            self.label_names, task.label_names, teacher=self.name, allow_missing=self._allow_missing
        )

    def check(self, task: Task) -> None:
        """Raise what :meth:`logits` would raise for a task, before the long work."""
        self.columns(task)
        unknown = (self.knows or frozenset()) - set(task.label_names)
        if self.knows_by == "class" and unknown:
            raise TeacherError(
                f"expected classes of task {task.name!r} in knows of teacher {self.name!r}, came "
                f"{sorted(unknown)}; correct knows in its {INFO_FILE}"
            )

    def logits(self, task: Task, ids: NDArray[np.int64], *, batch_size: int, max_length: int) -> Tensor:
        """Logits of the instances ``ids`` (N,): (N, C) float32 on the CPU, in the task's class order."""
        self.check(task)
        if len(ids) == 0:
            return torch.zeros(0, task.num_classes)
        raw = self._raw_logits(task, np.asarray(ids, dtype=np.int64), batch_size, max_length)
        raw = raw.detach().to("cpu", torch.float32)
        if raw.shape != (len(ids), len(self.label_names)):
            raise TeacherError(
                f"expected logits of shape {(len(ids), len(self.label_names))} from teacher {self.name!r}, "
                f"came {tuple(raw.shape)}; give one row per instance and one column per label name"
            )
        bad = ~raw.isfinite().all(dim=1)
        if bad.any():
            raise TeacherError(
                f"expected finite logits from teacher {self.name!r}, came NaN or infinity for instances "
                f"{ids[bad.numpy()][:5].tolist()}; clip probabilities before taking logarithms"
            )
        return aligned_logits(raw, self.columns(task))

    def _raw_logits(self, task: Task, ids: NDArray[np.int64], batch_size: int, max_length: int) -> Tensor:
        raise NotImplementedError


class HfTeacher(LabelledTeacher):
    """A transformers classifier with its own tokenizer, frozen.

    Args:
        name: Unique among the teachers of a run.
        model: A sequence classifier.
        tokenizer: Its own tokenizer; None for models of vectors.
        label_names: Names of its columns. None: its configuration's ``id2label``.
        knows: See :class:`LabelledTeacher`.
        knows_by: See :class:`LabelledTeacher`.
        allow_missing: See :class:`LabelledTeacher`.
        device: Where it runs. None: the GPU where there is one.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        label_names: Sequence[str] | None = None,
        knows: Iterable[str] | None = None,
        knows_by: KnowsBy | None = None,
        allow_missing: bool | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        config = model.config
        names = label_names or [config.id2label[index] for index in range(config.num_labels)]
        super().__init__(name, names, knows=knows, knows_by=knows_by, allow_missing=allow_missing)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._encoded: tuple[tuple[str, int], Inputs] | None = None

    @cached_property
    def identity(self) -> str:
        """Hash of the configuration, the weights and the tokenizer."""
        digest = xxhash.xxh3_128(type(self.model).__name__.encode() + repr(self.label_names).encode())
        for key, tensor in sorted(self.model.state_dict().items()):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{key} {tuple(values.shape)} {values.dtype}".encode())
            digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
        digest.update(_tokenizer_content(self.tokenizer).encode("utf-8", "replace"))
        return digest.hexdigest()

    def check(self, task: Task) -> None:
        """Raise what :meth:`logits` would raise for a task, before the long work."""
        super().check(task)
        reads = "vectors" if self.model.main_input_name == "input_values" else "text"
        came = "text" if task.table.vectors is None else "vectors"
        if reads != came:
            raise TeacherError(
                f"teacher {self.name!r} reads {reads}, but task {task.name!r} has {came}; leave it out"
            )
        if reads == "text" and self.tokenizer is None:
            raise TeacherError(f"teacher {self.name!r} reads text, came without a tokenizer; give its own")
        size = getattr(self.model.config, "input_size", None)
        if task.table.vectors is not None and size != task.table.vectors.shape[1]:
            raise TeacherError(
                f"teacher {self.name!r} reads vectors of length {size}, the task's have length "
                f"{task.table.vectors.shape[1]}; leave it out"
            )

    def _raw_logits(self, task: Task, ids: NDArray[np.int64], batch_size: int, max_length: int) -> Tensor:
        inputs = self._inputs(task, max_length)
        # Long rows first: an out-of-memory error then comes at once, and padding is least.
        order = np.argsort(-inputs.lengths[ids], kind="stable")
        self.model.eval()
        parts = []
        with torch.inference_mode():
            for start in range(0, len(ids), batch_size):
                batch = inputs.batch(ids[order[start : start + batch_size]])
                moved = {key: value.to(self.device) for key, value in batch.items()}
                parts.append(self.model(**forward_inputs(self.model, moved)).logits.float())
        restored = torch.empty_like(joined := torch.cat(parts))
        restored[torch.from_numpy(order).to(self.device)] = joined
        return restored

    def _inputs(self, task: Task, max_length: int) -> Inputs:
        """Tokenise a task once, however many calls ask for parts of it."""
        if self.tokenizer is not None:
            max_length = min(max_length, self.tokenizer.model_max_length)
        key = (task.fingerprint, max_length)
        if self._encoded is None or self._encoded[0] != key:
            self._encoded = (key, encode_inputs(task, self.tokenizer, max_length))
        return self._encoded[1]


class SklearnTeacher(LabelledTeacher):
    """A fitted scikit-learn classifier over raw texts or vectors; logits are clipped log-probabilities.

    Second texts of pairs are joined to the first by a line break.

    Args:
        name: Unique among the teachers of a run.
        model: Has ``classes_`` and ``predict_proba`` or ``decision_function``.
        label_names: Names of ``classes_``, in order. None: the classes as text.
        knows: See :class:`LabelledTeacher`.
        knows_by: See :class:`LabelledTeacher`.
        allow_missing: See :class:`LabelledTeacher`.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        *,
        label_names: Sequence[str] | None = None,
        knows: Iterable[str] | None = None,
        knows_by: KnowsBy | None = None,
        allow_missing: bool | None = None,
    ) -> None:
        scorer = getattr(model, "predict_proba", None) or getattr(model, "decision_function", None)
        if scorer is None or not hasattr(model, "classes_"):
            raise TeacherError(
                "expected a fitted classifier with predict_proba or decision_function for teacher "
                f"{name!r}, came {type(model).__name__}; fit one"
            )
        names = label_names or [str(label) for label in model.classes_]
        super().__init__(name, names, knows=knows, knows_by=knows_by, allow_missing=allow_missing)
        self.model = model

    @cached_property
    def identity(self) -> str:
        """Hash of the fitted state."""
        digest = xxhash.xxh3_128(repr(self.label_names).encode())
        _feed(digest, self.model)
        return digest.hexdigest()

    def _raw_logits(self, task: Task, ids: NDArray[np.int64], batch_size: int, max_length: int) -> Tensor:
        # Larger than a network's batch: the cost of a call outweighs its memory here.
        step = max(batch_size, 2048)
        parts = [self._scores(task, ids[start : start + step]) for start in range(0, len(ids), step)]
        return torch.from_numpy(np.concatenate(parts).astype(np.float32))

    def _scores(self, task: Task, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        rows = joined_inputs(task, ids)
        if hasattr(self.model, "predict_proba"):
            probabilities = np.asarray(self.model.predict_proba(rows), dtype=np.float64)
            return np.log(np.clip(probabilities, SMALLEST_PROBABILITY, None))
        scores = np.asarray(self.model.decision_function(rows), dtype=np.float64)
        # Two classes have one score, the log-odds of the second.
        return np.stack([-scores / 2, scores / 2], axis=1) if scores.ndim == 1 else scores


class CallableTeacher(LabelledTeacher):
    """A function from raw inputs to logits.

    Args:
        name: Unique among the teachers of a run.
        fn: From a list of texts, a list of text pairs or an array (B, D) to logits (B, C).
        label_names: Names of its columns.
        identity: Changes whenever the function's answers change, so that caches notice. None: made from the
            function's name, which notices nothing else.
        knows: See :class:`LabelledTeacher`.
        knows_by: See :class:`LabelledTeacher`.
    """

    def __init__(
        self,
        name: str,
        fn: Callable[[Any], ArrayLike | Tensor],
        label_names: Sequence[str],
        *,
        identity: str | None = None,
        knows: Iterable[str] | None = None,
        knows_by: KnowsBy | None = None,
    ) -> None:
        super().__init__(name, label_names, knows=knows, knows_by=knows_by)
        self._fn = fn
        origin = f"{getattr(fn, '__module__', '')}.{getattr(fn, '__qualname__', type(fn).__qualname__)}"
        described = repr((name, origin, self.label_names))
        self.identity = identity or xxhash.xxh3_128_hexdigest(described.encode())

    def _raw_logits(self, task: Task, ids: NDArray[np.int64], batch_size: int, max_length: int) -> Tensor:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(ids), batch_size):
                answer = self._fn(raw_inputs(task, ids[start : start + batch_size]))
                parts.append(torch.as_tensor(answer).detach().to("cpu", torch.float32))
        return torch.cat(parts)


class ArrayTeacher(LabelledTeacher):
    """Logits that were computed before, one row per instance id.

    Args:
        name: Unique among the teachers of a run.
        logits: Shape (N, C), in the order of the task's table.
        label_names: Names of the columns. None: the task's classes in the task's order.
        knows: See :class:`LabelledTeacher`.
        knows_by: See :class:`LabelledTeacher`.
    """

    def __init__(
        self,
        name: str,
        logits: ArrayLike | Tensor,
        *,
        label_names: Sequence[str] | None = None,
        knows: Iterable[str] | None = None,
        knows_by: KnowsBy | None = None,
    ) -> None:
        self._array = np.ascontiguousarray(logits, dtype=np.float32)
        if self._array.ndim != 2:
            raise TeacherError(
                f"expected an array (instances, classes) for teacher {name!r}, came shape "
                f"{self._array.shape}; save one row per row of the task"
            )
        self._ordered = label_names is None
        names = label_names or [f"LABEL_{index}" for index in range(self._array.shape[1])]
        super().__init__(name, names, knows=knows, knows_by=knows_by)

    @cached_property
    def identity(self) -> str:
        """Hash of the array."""
        described = repr((self._array.shape, self.label_names)).encode()
        return xxhash.xxh3_128_hexdigest(described + self._array.tobytes())

    def columns(self, task: Task) -> NDArray[np.int64]:
        """The array's column of each class of the task, shape (C,)."""
        if not self._ordered:
            return super().columns(task)
        if self._array.shape[1] != task.num_classes:
            raise TeacherError(
                f"expected {task.num_classes} columns from teacher {self.name!r}, "
                f"came {self._array.shape[1]}; save one column per class, or pass label_names"
            )
        return np.arange(task.num_classes)

    def check(self, task: Task) -> None:
        """Raise what :meth:`logits` would raise for a task, before the long work."""
        super().check(task)
        rows, expected = len(self._array), len(task.table)
        # A training view is a shorter table with the same ids.
        if rows < expected or (rows > expected and "test" in task.splits):
            raise TeacherError(
                f"expected {expected} rows from teacher {self.name!r}, one per instance of task "
                f"{task.name!r}, came {rows}; save logits of train, probe, validation and test in this order"
            )

    def _raw_logits(self, task: Task, ids: NDArray[np.int64], batch_size: int, max_length: int) -> Tensor:
        return torch.from_numpy(self._array[ids])


def raw_inputs(task: Task, ids: NDArray[np.int64]) -> Any:
    """What a person would call the inputs: texts, pairs of texts, or vectors (N, D).

    Args:
        task: The task.
        ids: Instance ids, shape (N,).

    Returns:
        ``list[str]``, ``list[tuple[str, str]]`` or an array.
    """
    table = task.table
    if table.vectors is not None:
        return table.vectors[ids]
    texts, pairs = table.texts or (), table.text_pairs
    if pairs is None:
        return [texts[index] for index in ids]
    return [(texts[index], pairs[index]) for index in ids]


def joined_inputs(task: Task, ids: NDArray[np.int64]) -> Any:
    """As :func:`raw_inputs`, with the two texts of a pair joined by a line break.

    Args:
        task: The task.
        ids: Instance ids, shape (N,).

    Returns:
        ``list[str]`` or an array (N, D).
    """
    rows = raw_inputs(task, ids)
    return rows if task.table.text_pairs is None else ["\n".join(pair) for pair in rows]


def load_teachers(
    paths: Sequence[str | os.PathLike[str] | Teacher],
    task: Task,
    *,
    device: str | torch.device | None = None,
) -> list[Teacher]:
    """Load teachers and check all of them against a task, so that errors come before long work.

    Args:
        paths: Directories with ``config.json`` (transformers) or ``teacher.skops`` (scikit-learn), ``.npy``
            files of logits, or teachers that exist already. ``teacher.json`` beside the weights says what a
            teacher knows.
        task: The task that they will teach.
        device: Where networks run. None: the GPU where there is one.

    Returns:
        The K teachers, in order.

    Raises:
        TeacherError: None was given, one cannot be read safely or does not fit the task, or names repeat.
    """
    if not paths:
        raise TeacherError("expected at least one teacher, came none; name directories of teachers")
    teachers = [_load(path, task, device) for path in paths]
    names = [teacher.name for teacher in teachers]
    for name in names:
        if names.count(name) > 1:
            raise TeacherError(
                f"expected teachers with different names, came {name!r} {names.count(name)} times; "
                f"rename the directory, or the name in its {INFO_FILE}"
            )
    for teacher in teachers:
        if isinstance(teacher, LabelledTeacher):
            teacher.check(task)
    return teachers


def save_sklearn_teacher(
    model: Any,
    directory: str | os.PathLike[str],
    *,
    name: str,
    knows: Iterable[str] | None = None,
    knows_by: KnowsBy | None = None,
    label_names: Sequence[str] | None = None,
) -> Path:
    """Save a fitted scikit-learn classifier without pickle.

    Args:
        model: The classifier or pipeline.
        directory: Where to; created where it is missing.
        name: The teacher's name.
        knows: Names of the classes or domains it was trained on.
        knows_by: Whether ``knows`` names classes or domains.
        label_names: Names of ``classes_``, where they are not names already.

    Returns:
        The directory.
    """
    path = Path(directory)
    write_sklearn(model, path)
    names = None if label_names is None else tuple(label_names)
    write_info(path, TeacherInfo(name, knows=_frozen(knows), knows_by=knows_by, label_names=names))
    return path


def save_hf_teacher(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    directory: str | os.PathLike[str],
    *,
    name: str,
    knows: Iterable[str] | None = None,
    knows_by: KnowsBy | None = None,
) -> Path:
    """Save a transformers classifier and its tokenizer.

    Args:
        model: The classifier; its ``id2label`` names its columns.
        tokenizer: Its tokenizer; None for models of vectors.
        directory: Where to; created where it is missing.
        name: The teacher's name.
        knows: Names of the classes or domains it was trained on.
        knows_by: Whether ``knows`` names classes or domains.

    Returns:
        The directory.
    """
    path = Path(directory)
    write_hf(model, tokenizer, path)
    write_info(path, TeacherInfo(name, knows=_frozen(knows), knows_by=knows_by))
    return path


def write_sklearn(model: Any, directory: Path) -> None:
    """Write ``teacher.skops`` whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / (SKLEARN_FILE + ".tmp")
    skops.io.dump(model, temporary)
    os.replace(temporary, directory / SKLEARN_FILE)


def write_hf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, directory: Path) -> None:
    """Write model and tokenizer in transformers' own layout."""
    with quiet_transformers():
        model.save_pretrained(directory)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)


def write_info(directory: Path, info: TeacherInfo) -> None:
    """Write ``teacher.json`` whole or not at all; written last, it marks a teacher as finished."""
    temporary = directory / (INFO_FILE + ".tmp")
    temporary.write_text(info.to_json(), encoding="utf-8")
    os.replace(temporary, directory / INFO_FILE)


def read_info(directory: Path) -> TeacherInfo | None:
    """Read and check ``teacher.json``.

    Args:
        directory: A teacher's directory.

    Returns:
        Its content; None where the file is missing.

    Raises:
        TeacherError: It is not JSON, or has other keys or types than :class:`TeacherInfo`.
    """
    path = directory / INFO_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TeacherError(
            f"expected JSON in {str(path)!r}, came text that is not ({first_line(error)}); "
            "correct or delete it"
        ) from error
    problem = _info_problem(content)
    if problem:
        raise TeacherError(
            f"expected a description of a teacher in {str(path)!r}, came {problem}; correct it"
        )
    names = content.get("label_names")
    return TeacherInfo(
        name=content["name"],
        kind=content.get("kind"),
        knows=_frozen(content.get("knows")),
        knows_by=content.get("knows_by"),
        label_names=None if names is None else tuple(names),
        settings=content.get("settings"),
        metrics=content.get("metrics", {}),
    )


def _info_problem(content: Any) -> str | None:
    """Say what is wrong with the content of a ``teacher.json``."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__} instead of an object"
    checks: dict[str, Callable[[Any], bool]] = {
        "name": lambda value: isinstance(value, str) and bool(value),
        "kind": lambda value: value is None or isinstance(value, str),
        "knows": lambda value: value is None or _is_names(value),
        "knows_by": lambda value: value in (None, "class", "domain"),
        "label_names": lambda value: value is None or _is_names(value),
        "settings": lambda value: value is None or isinstance(value, str),
        "metrics": _is_metrics,
    }
    unknown = sorted(set(content) - set(checks))
    if unknown:
        return f"the unknown keys {unknown}"
    if "name" not in content:
        return "no name"
    wrong = [key for key, value in content.items() if not checks[key](value)]
    if wrong:
        return f"a wrong value of {wrong[0]!r}"
    if (content.get("knows") is None) != (content.get("knows_by") is None):
        return "only one of knows and knows_by"
    return None


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _is_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(
        number is None or (isinstance(number, int | float) and not isinstance(number, bool))
        for number in value.values()
    )


def _frozen(names: Iterable[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)


def _load(path: str | os.PathLike[str] | Teacher, task: Task, device: str | torch.device | None) -> Teacher:
    if not isinstance(path, str | os.PathLike):
        return path
    place = Path(path)
    if place.suffix == ".npy" and place.is_file():
        return _load_array(place)
    info = read_info(place) or TeacherInfo(place.resolve().name)
    if (place / "config.json").is_file():
        return _load_hf(place, info, task, device)
    if (place / SKLEARN_FILE).is_file():
        return _load_sklearn(place, info)
    state = "neither" if place.exists() else "missing"
    raise TeacherError(
        f"expected a directory with config.json or {SKLEARN_FILE}, or a .npy file; came {str(place)!r}, "
        f"which is {state}; download models of the hub first (hf download)"
    )


def _load_array(path: Path) -> ArrayTeacher:
    try:
        values = np.load(path, allow_pickle=False)
        return ArrayTeacher(path.stem, values)
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, TeacherError):
            raise
        raise TeacherError(
            f"expected an array of logits in {str(path)!r}, came a file that cannot be read without pickle "
            f"({first_line(error)}); save it with numpy.save as float32"
        ) from error


def _load_hf(path: Path, info: TeacherInfo, task: Task, device: str | torch.device | None) -> HfTeacher:
    text = task.table.vectors is None
    if text and not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise TeacherError(
            f"expected teacher {info.name!r} with its own tokenizer, came {str(path)!r} without tokenizer "
            "files; save its tokenizer there (tokenizer.save_pretrained)"
        )
    # Said outright: when it is left open, transformers asks at the keyboard whether to run a model's code.
    safely = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet_transformers():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **safely,
            )
            tokenizer = AutoTokenizer.from_pretrained(path, **safely) if text else None
    except Exception as error:
        # transformers raises many kinds of errors for damaged directories.
        raise TeacherError(
            f"expected a classifier with safetensors weights in {str(path)!r}, came a directory that cannot "
            f"be loaded ({first_line(error)}); save it with save_hf_teacher"
        ) from error
    if report["missing_keys"]:
        raise TeacherError(
            f"expected all weights of teacher {info.name!r}, but {min(report['missing_keys'])!r} is missing, "
            "as in an encoder that was never fine-tuned; train it first (train_teachers)"
        )
    return HfTeacher(
        info.name,
        model,
        tokenizer,
        label_names=info.label_names,
        knows=info.knows,
        knows_by=info.knows_by,
        device=device,
    )


def _load_sklearn(path: Path, info: TeacherInfo) -> SklearnTeacher:
    file = path / SKLEARN_FILE
    try:
        untrusted = set(skops.io.get_untrusted_types(file=file)) - set(TRUSTED_TYPES)
        if not untrusted:
            model = skops.io.load(file, trusted=list(TRUSTED_TYPES))
    except Exception as error:
        # The file may come from a stranger: whatever goes wrong in it, the answer is the same.
        raise TeacherError(
            f"expected a scikit-learn model saved by skops in {str(file)!r}, came a file that cannot be read "
            f"({first_line(error)}); save it with save_sklearn_teacher"
        ) from error
    if untrusted:
        raise TeacherError(
            f"expected only types that skops trusts in {str(file)!r}, came {', '.join(sorted(untrusted))}; "
            "load it yourself and pass a SklearnTeacher if you trust it"
        )
    return SklearnTeacher(
        info.name, model, label_names=info.label_names, knows=info.knows, knows_by=info.knows_by
    )


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase | None) -> str:
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return repr(sorted(tokenizer.get_vocab().items()))
    content = json.loads(backend.to_str())
    # The last call leaves its truncation and padding behind.
    return json.dumps({**content, "truncation": None, "padding": None})


def _feed(digest: Any, value: Any) -> None:
    """Hash a fitted estimator by its content: equal before and after saving, unlike its pickle."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"{value.dtype.str}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            digest.update(repr(_plain(key)).encode("utf-8", "replace"))
            _feed(digest, value[key])
    elif isinstance(value, list | tuple | np.ndarray):
        digest.update(f"[{len(value)}]".encode())
        for item in value:
            _feed(digest, item)
    elif isinstance(value, set | frozenset):
        _feed(digest, sorted(map(repr, value)))
    elif value is None or isinstance(value, str | bytes | int | float | complex | np.generic):
        digest.update(repr(_plain(value)).encode("utf-8", "replace"))
    else:
        digest.update(_type_name(value).encode())
        state = None if hasattr(value, "__qualname__") else _state(value)
        if state is not None:
            _feed(digest, state)


def _state(value: Any) -> Any:
    state = value.__getstate__()
    # scikit-learn adds its version, which changes no answer.
    return {k: v for k, v in state.items() if k != "_sklearn_version"} if isinstance(state, dict) else state


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _type_name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"<{named.__module__}.{named.__qualname__}>"
