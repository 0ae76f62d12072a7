"""Teachers whose logits were computed before: arrays in the order of the task, or of the user's own files."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, from_numpy

from rlkd.data.origin import FILES
from rlkd.data.task import Task
from rlkd.errors import TeacherError, nearest, one_line
from rlkd.models.probabilities import are_probabilities, as_logits
from rlkd.models.teachers import KnowsBy, LabelledTeacher

NAMES_FILE = "label_names.json"
IDS = ".ids"
_FILE_NAMES = {**{name: name for name in FILES}, "dev": "validation", "unlabeled": "unlabelled"}


class ArrayTeacher(LabelledTeacher):
    """Logits that were computed before, one row per instance id.

    Args:
        name: Unique among the teachers of a run.
        logits: Shape (N, C), in the order of the task's table: train, probe, validation, test. Probabilities (rows that
            are not negative and sum to 1) are replaced by their logarithms, which is told.
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
        self._array = as_logits(name, _matrix(name, logits))
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
                f"got {self._array.shape[1]}; save one column per class, or pass label_names"
            )
        return np.arange(task.num_classes)

    def check(self, task: Task) -> None:
        """Raise what :meth:`logits` would raise for a task, before the long work."""
        super().check(task)
        self._check_rows(task)

    def _check_rows(self, task: Task) -> None:
        rows, expected = len(self._array), len(task.table)
        # A training view is a shorter table with the same ids.
        if rows < expected or (rows > expected and "test" in task.splits):
            raise TeacherError(
                f"expected {expected} rows from teacher {self.name!r}, one per instance of task "
                f"{task.name!r}, got {rows}; save logits of train, probe, validation and test in this order"
            )

    def raw_logits(self, task: Task, ids: NDArray[np.int64], batch_size: int, max_length: int) -> Tensor:
        """See :meth:`~rlkd.models.teachers.LabelledTeacher.raw_logits`."""
        return from_numpy(self._array[ids])


class FileArrayTeacher(ArrayTeacher):
    """Logits that were computed before, an array for each file of the user's data, in the order of its rows.

    Args:
        name: Unique among the teachers of a run.
        arrays: ``train``, ``validation``, ``test`` or ``unlabelled`` to an array (rows of the file, C). ``train`` has a
            row for each row of the train file (or of the only file), those that the task gave to other splits too.
        rows: The same names to the row numbers in the file, from 0, of an array in another order, shape (rows,).
        label_names: See :class:`ArrayTeacher`.
        knows: See :class:`LabelledTeacher`.
        knows_by: See :class:`LabelledTeacher`.
    """

    def __init__(
        self,
        name: str,
        arrays: Mapping[str, ArrayLike | Tensor],
        *,
        rows: Mapping[str, ArrayLike | Tensor] | None = None,
        label_names: Sequence[str] | None = None,
        knows: Iterable[str] | None = None,
        knows_by: KnowsBy | None = None,
    ) -> None:
        given = {file: _matrix(name, arrays[file]) for file in FILES if file in arrays}
        unknown = sorted((set(arrays) | set(rows or {})) - set(given))
        for file, array in given.items():
            bad = np.flatnonzero(~np.isfinite(array).all(1))
            if len(bad):
                raise TeacherError(
                    f"expected finite logits from teacher {name!r}, got NaN or infinity in {len(bad)} of {len(array)} "
                    f"rows of {file}.npy: {bad[:5].tolist()}; clip probabilities before taking logarithms"
                )
        widths = {file: array.shape[1] for file, array in given.items()}
        if unknown or len(set(widths.values())) != 1:
            raise TeacherError(
                f"expected arrays of one width for {', '.join(FILES)} from teacher {name!r}, got "
                f"{', '.join(unknown) or widths or 'none'}; save one column a class"
            )
        joined = np.concatenate(list(given.values()))
        shares = [file for file, array in given.items() if are_probabilities(array)]
        if shares and not are_probabilities(joined):
            raise TeacherError(
                f"expected logits in all arrays of teacher {name!r}, got probabilities for {', '.join(shares)} and "
                f"something else for {', '.join(file for file in given if file not in shares)}; save all alike"
            )
        numbers = rows or {}
        self._whole = set(given) - set(numbers)
        self._rows: dict[str, NDArray[np.int64]] = {
            file: np.arange(len(array)) if file in self._whole else _row_numbers(name, file, numbers[file], len(array))
            for file, array in given.items()
        }
        super().__init__(name, joined, label_names=label_names, knows=knows, knows_by=knows_by)

    @cached_property
    def identity(self) -> str:
        """Hash of the arrays and of what their rows are."""
        described = repr((super().identity, [(file, len(rows)) for file, rows in self._rows.items()])).encode()
        return xxhash.xxh3_128_hexdigest(described + b"".join(rows.tobytes() for rows in self._rows.values()))

    def _check_rows(self, task: Task) -> None:
        origin = task.table.origin
        if origin is None:
            raise TeacherError(
                f"expected one array in the order of task {task.name!r} from teacher {self.name!r}, got "
                f"{', '.join(self._rows)}: the task has no files; save all rows as one .npy"
            )
        for file in self._rows:
            if file not in origin.sizes:
                raise TeacherError(
                    f"expected arrays for {', '.join(origin.sizes)} from teacher {self.name!r}, the files of task "
                    f"{task.name!r}, got {file}.npy too; leave it out"
                )
        for file, size in origin.sizes.items():
            needed, rows = origin.rows_of(file)[1], self._rows.get(file)
            if rows is None and len(needed):
                raise TeacherError(
                    f"expected {file}.npy from teacher {self.name!r}, with the {size} rows of {file} of task "
                    f"{task.name!r} in their order, got {', '.join(self._rows)} alone; save it"
                )
            short = file in self._whole and rows is not None and len(rows) != size
            if rows is not None and (short or rows.max(initial=0) >= size or not np.isin(needed, rows).all()):
                raise TeacherError(
                    f"expected {size} rows from teacher {self.name!r} in {file}.npy, one per row of {file} of task "
                    f"{task.name!r} in their order, got {len(rows)}; save one for each, those without a label too"
                )

    def raw_logits(self, task: Task, ids: NDArray[np.int64], batch_size: int, max_length: int) -> Tensor:
        """See :meth:`~rlkd.models.teachers.LabelledTeacher.raw_logits`."""
        origin = task.table.origin
        if origin is None:  # check() has refused it
            raise TeacherError(f"expected a task with files for teacher {self.name!r}, got {task.name!r}")
        index, start, chosen = np.empty(len(ids), dtype=np.int64), 0, origin.take(ids)
        for file, rows in self._rows.items():
            where, wanted = chosen.rows_of(file)
            order = np.argsort(rows)
            index[where] = start + order[np.searchsorted(rows, wanted, sorter=order)]
            start += len(rows)
        return from_numpy(self._array[index])


def load_array(path: Path, task: Task) -> ArrayTeacher:
    """A single ``.npy`` file, where only one order of its rows can be meant."""
    teacher = ArrayTeacher(path.stem, _read(path))
    origin = task.table.origin
    if origin is not None and not origin.in_order:
        files = ", ".join(f"{file}.npy ({size} rows)" for file, size in origin.sizes.items())
        raise TeacherError(
            f"expected an array for each file of task {task.name!r} from teacher {teacher.name!r}, got the one array "
            f"{str(path)!r}, whose order is not known: the task's is not that of its files, as splits are carved out "
            f"of train; save a folder with {files}, each in the order of its file"
        )
    return teacher


def holds_arrays(folder: Path) -> bool:
    """Whether a folder has arrays in it."""
    return folder.is_dir() and any(folder.glob("*.npy"))


def load_arrays(folder: Path, name: str, label_names: Sequence[str] | None, **knows: Any) -> FileArrayTeacher:
    """A folder of ``train.npy``, ``validation.npy``, ``test.npy``, each in the order of the user's file of that name.

    ``train.ids.npy`` beside ``train.npy`` gives the row numbers in the file, from 0, where the order is another one;
    ``label_names.json`` names the columns.

    Args:
        folder: Holds them.
        name: The teacher's name.
        label_names: Names of the columns by ``teacher.json``.
        **knows: What the teacher knows, by ``teacher.json``.
    """
    arrays: dict[str, NDArray[Any]] = {}
    rows: dict[str, NDArray[Any]] = {}
    for path in sorted(folder.glob("*.npy")):
        stem = path.stem.removesuffix(IDS)
        file, kept = _FILE_NAMES.get(stem), rows if path.stem.endswith(IDS) else arrays
        if file is None or file in kept:
            choices = [f"{known}.npy" for known in _FILE_NAMES]
            raise TeacherError(
                f"expected one array for each file of the data in {str(folder)!r} ({', '.join(choices[:4])}), got "
                f"{path.name!r}{' twice' if file else ''}; {nearest(path.name, choices)}rename or remove it"
            )
        kept[file] = _read(path)
    own = _read_names(folder / NAMES_FILE)
    if own and label_names and list(own) != list(label_names):
        raise TeacherError(
            f"expected one list of columns for teacher {name!r}, got others in {NAMES_FILE} than in its teacher.json; "
            "remove one"
        )
    return FileArrayTeacher(name, arrays, rows=rows, label_names=own or label_names, **knows)


def _matrix(name: str, logits: ArrayLike | Tensor) -> NDArray[np.float32]:
    given = np.asarray(logits)
    if given.dtype.kind not in "fiu":
        raise TeacherError(f"expected real numbers from teacher {name!r}, got {given.dtype}; save float32")
    array = np.ascontiguousarray(given, dtype=np.float32)
    if array.ndim != 2:
        raise TeacherError(
            f"expected an array (instances, classes) for teacher {name!r}, got shape "
            f"{array.shape}; save one row per row of the task"
        )
    return array


def _row_numbers(name: str, file: str, given: ArrayLike | Tensor, size: int) -> NDArray[np.int64]:
    rows = np.asarray(given)
    if rows.dtype.kind not in "iu" or rows.shape != (size,) or rows.min(initial=0) < 0 or len(np.unique(rows)) < size:
        raise TeacherError(
            f"expected {size} different row numbers from 0 for {file} of teacher {name!r}, got {rows.dtype} of shape "
            f"{rows.shape}{' with repeats or below 0' if rows.dtype.kind in 'iu' else ''}; save the number of each "
            "row in its file"
        )
    return rows.astype(np.int64)


def _read(path: Path) -> NDArray[Any]:
    try:
        values: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TeacherError(
            f"expected an array of logits in {str(path)!r}, got a file that cannot be read without pickle "
            f"({one_line(error)}); save it with numpy.save as float32"
        ) from error
    return values


def _read_names(path: str | os.PathLike[str]) -> list[str] | None:
    place = Path(path)
    if not place.exists():
        return None
    try:
        names = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TeacherError(f"expected JSON in {str(place)!r}, got {one_line(error)}; repair or remove it") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise TeacherError(f"expected a list of class names in {str(place)!r}, got {names!r:.60}; repair it")
    return names
