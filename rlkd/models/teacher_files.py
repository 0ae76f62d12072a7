"""Teachers on disk: their weights, and ``teacher.json`` beside them, which says what they know.

Nothing here unpickles: HF teachers are read from safetensors, scikit-learn ones through skops (which refuses
types that it does not trust), arrays with ``allow_pickle=False``.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlkd.data.task import Task
from rlkd.errors import TeacherError, one_line
from rlkd.hub import may_be_id, snapshot
from rlkd.models.adapters import ADAPTER_FILE, base_of, is_adapter, load_adapted
from rlkd.models.arrays import holds_arrays, load_array, load_arrays
from rlkd.models.estimators import SklearnTeacher
from rlkd.models.model_objects import as_teacher, several_teachers
from rlkd.models.multi_task import MultiTaskForSequenceClassification
from rlkd.models.networks import load_classifier, load_config, load_image_processor, load_tokenizer, quiet_transformers
from rlkd.models.served import ENDPOINT_FILE, load_served
from rlkd.models.teacher_info import INFO_FILE, TeacherInfo, frozen, read_info, write_info
from rlkd.models.teachers import HfTeacher, KnowsBy, LabelledTeacher, Teacher, refuse_namesakes
from rlkd.records import write_atomic
from rlkd.settings import StepSettings
from rlkd.types import is_teacher

SKLEARN_FILE = "teacher.skops"
PICKLES = (".joblib", ".pkl", ".pickle")
"""Suffixes of files that run code when they are read."""
TRUSTED_TYPES: tuple[str, ...] = ()
"""Types trusted beside skops' own list; a pipeline of TF-IDF and logistic regression needs none."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)

HOLDS = f"config.json, {ADAPTER_FILE}, {SKLEARN_FILE}, {ENDPOINT_FILE} or train.npy"
"""What makes a folder one of a teacher."""

_LOST_SETTINGS = {"padding_side": "right", "truncation_side": "right", "split_special_tokens": False}
"""What a tokenizer does not save by itself where it was set after it was made."""


def load_teachers(
    teachers: Any, task: Task, *, device: str | torch.device | None = None, bf16: bool = StepSettings.bf16
) -> list[Teacher]:
    """Load teachers and check all of them against a task, so that errors come before long work.

    Args:
        teachers: One teacher or several (a list; a dict from names to models), each of them

            - a directory, or the hub id of a repository, with ``config.json`` (transformers; of a multi-task model the
              head with the task's name), ``adapter_config.json`` (an adapter, which needs the library peft) or
              ``teacher.skops`` (scikit-learn) or arrays of logits (``train.npy``, ``validation.npy``, ``test.npy``,
              each in the order of the user's own file), or one ``.npy`` file in the order of a task that has no files;
              or ``endpoint.json`` (a served model, the fields of :class:`~rlkd.models.endpoints.Endpoint`);
              ``teacher.json`` beside the weights says what a teacher knows;
            - a transformers classifier and its tokenizer, ``(model, tokenizer)``, or alone, if its tokenizer lies where
              it was loaded from; its columns are named by ``id2label``, and it is frozen, in eval mode, as it stands;
            - a fitted scikit-learn classifier over texts (or vectors, or pixels in [0, 1]), its columns named by
              ``classes_``;
            - a function from a list of texts (or pairs, an array of vectors, or of images in [0, 1]) to logits (B, C),
              whose columns are the task's classes in their order; a cache of its answers is not opened again for
              another such function, see :class:`~rlkd.models.teachers.CallableTeacher` for one with an ``identity`` or
              names of its own;
            - or a :class:`~rlkd.models.teachers.Teacher`.
        task: The task that they will teach.
        device: Where networks run. None: the GPU where there is one.
        bf16: Networks compute in bfloat16 where that is safe.

    Returns:
        The K teachers, in order.

    Raises:
        TeacherError: None was given, one cannot be read safely or does not fit the task, or names repeat.
    """
    found = several_teachers(teachers)
    if not found:
        raise TeacherError("expected at least one teacher, got none; name directories of teachers")
    loaded = [_load(one, task, device, bf16) for one in found]
    refuse_namesakes([teacher.name for teacher in loaded], f"rename the directory, or the name in its {INFO_FILE}")
    for teacher in loaded:
        if isinstance(teacher, LabelledTeacher):
            teacher.check(task)
    return loaded


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
    write_info(path, TeacherInfo(name, knows=frozen(knows), knows_by=knows_by, label_names=names))
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
        tokenizer: Its tokenizer; None for models of vectors; of images its image processor, or None.
        directory: Where to; created where it is missing.
        name: The teacher's name.
        knows: Names of the classes or domains it was trained on.
        knows_by: Whether ``knows`` names classes or domains.

    Returns:
        The directory.
    """
    path = Path(directory)
    write_hf(model, tokenizer, path)
    write_info(path, TeacherInfo(name, knows=frozen(knows), knows_by=knows_by))
    return path


def write_sklearn(model: Any, directory: Path) -> None:
    """Write ``teacher.skops`` whole or not at all."""
    import skops.io  # takes a second: only where a scikit-learn teacher is

    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / SKLEARN_FILE, lambda file: skops.io.dump(model, file))


def write_hf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, directory: Path) -> None:
    """Write model and tokenizer in transformers' own layout."""
    with quiet_transformers():
        model.save_pretrained(directory)
        if tokenizer is not None:
            for name, default in _LOST_SETTINGS.items():
                if getattr(tokenizer, name, default) != getattr(type(tokenizer), name, default):
                    tokenizer.init_kwargs[name] = getattr(tokenizer, name)
            tokenizer.save_pretrained(directory)


def _load(path: Any, task: Task, device: str | torch.device | None, bf16: bool) -> Teacher:
    if not isinstance(path, str | os.PathLike):
        return path if is_teacher(path) else as_teacher(path, task, device=device, bf16=bf16)
    place = Path(path)
    if place.suffix == ".npy" and place.is_file():
        return load_array(place, task)
    _refuse_pickles(place)
    name, of_the_hub = place.resolve().name, may_be_id(path)
    if of_the_hub:
        place = snapshot(str(path), expected=f"a directory with {HOLDS}", error=TeacherError)
    info = read_info(place) or TeacherInfo(name)
    if (place / "config.json").is_file() or is_adapter(place):
        return _load_hf(place, info, task, device, bf16)
    if (place / SKLEARN_FILE).is_file():
        return load_sklearn(place, info)
    if (place / ENDPOINT_FILE).is_file() and not of_the_hub:  # whose it is would be sent our texts
        return load_served(place / ENDPOINT_FILE, info.name, info.label_names or task.label_names)
    if holds_arrays(place):
        return load_arrays(place, info.name, info.label_names, knows=info.knows, knows_by=info.knows_by)
    state = "neither" if place.exists() else "missing"
    raise TeacherError(
        f"expected a directory with {HOLDS}, a .npy file or a hub id; got {str(path)!r}, which is {state}; check the "
        "path"
    )


def _refuse_pickles(place: Path) -> None:
    """Say how to convert a pickled teacher, or the only pickle in a folder that holds no teacher of ours."""
    known = any((place / name).exists() for name in ("config.json", SKLEARN_FILE)) or holds_arrays(place)
    pickles = [place] if place.suffix in PICKLES else []
    if place.is_dir() and not known:
        pickles = sorted(path for path in place.iterdir() if path.suffix in PICKLES)
    if pickles and pickles[0].is_file():
        name = pickles[0].stem
        folder = pickles[0].with_suffix("") if pickles[0] == place else place
        raise TeacherError(
            f"expected a teacher without pickle, which runs code when it is read, got {str(pickles[0])!r}; if you "
            f"trust it, convert it once and name {str(folder)!r}: import joblib; from rlkd.models import "
            f"save_sklearn_teacher; save_sklearn_teacher(joblib.load({str(pickles[0])!r}), {str(folder)!r}, "
            f"name={name!r})"
        )


def _load_hf(path: Path, info: TeacherInfo, task: Task, device: str | torch.device | None, bf16: bool) -> HfTeacher:
    text, beneath = task.table.holds == "text", base_of(path) if is_adapter(path) else None
    reading = path if beneath is None or has_tokenizer(path) else beneath
    if text and not has_tokenizer(reading):
        raise TeacherError(
            f"expected teacher {info.name!r} with its own tokenizer, got {str(path)!r} without tokenizer "
            "files; save its tokenizer there (tokenizer.save_pretrained)"
        )
    try:
        with quiet_transformers():
            model = _network(path, beneath, info)
            if isinstance(model, MultiTaskForSequenceClassification) and len(model.config.tasks) > 1:
                model = model.for_task(task.name)
            tokenizer = load_tokenizer(reading, local_files_only=True) if text else None
            if task.table.holds == "images":
                tokenizer = load_image_processor(reading, local_files_only=True)
    except TeacherError:
        raise
    except Exception as error:
        # transformers raises many kinds of errors for damaged directories.
        raise TeacherError(
            f"expected a classifier with safetensors weights in {str(path)!r}, got a directory that cannot "
            f"be loaded ({one_line(error)}); save it with save_hf_teacher"
        ) from error
    return HfTeacher(
        info.name,
        model,
        tokenizer,
        label_names=info.label_names,
        knows=info.knows,
        knows_by=info.knows_by,
        device=device,
        bf16=bf16,
    )


def has_tokenizer(path: Path) -> bool:
    """Whether files of a tokenizer lie in a folder."""
    return any((path / name).is_file() for name in _TOKENIZER_FILES)


def _network(path: Path, beneath: Path | None, info: TeacherInfo) -> Any:
    def load(place: Path, config: Any, **options: Any) -> Any:
        return load_classifier(place, config, local_files_only=True, output_loading_info=True, **options)

    if beneath is not None:
        return load_adapted(path, beneath, load, info.label_names)
    model, report = load(path, load_config(path))
    if report["missing_keys"]:
        raise TeacherError(
            f"expected all weights of teacher {info.name!r}, but {min(report['missing_keys'])!r} is missing, "
            "as in an encoder that was never fine-tuned; train it first (train_teachers)"
        )
    return model


def load_sklearn(path: Path, info: TeacherInfo | None = None) -> SklearnTeacher:
    """Read a scikit-learn teacher from its folder.

    Args:
        path: Holds ``teacher.skops``.
        info: What its ``teacher.json`` says. None: read here.

    Raises:
        TeacherError: The file cannot be read, or has types that skops does not trust.
    """
    import skops.io

    info = info or read_info(path) or TeacherInfo(path.resolve().name)
    file = path / SKLEARN_FILE
    try:
        untrusted = set(skops.io.get_untrusted_types(file=file)) - set(TRUSTED_TYPES)
        if not untrusted:
            model = skops.io.load(file, trusted=list(TRUSTED_TYPES))
    except Exception as error:
        # The file may come from a stranger: whatever goes wrong in it, the answer is the same.
        raise TeacherError(
            f"expected a scikit-learn model saved by skops in {str(file)!r}, got a file that cannot be read "
            f"({one_line(error)}); save it with save_sklearn_teacher"
        ) from error
    if untrusted:
        raise TeacherError(
            f"expected only types that skops trusts in {str(file)!r}, got {', '.join(sorted(untrusted))}; "
            "load it yourself and pass a SklearnTeacher if you trust it"
        )
    return SklearnTeacher(info.name, model, label_names=info.label_names, knows=info.knows, knows_by=info.knows_by)
