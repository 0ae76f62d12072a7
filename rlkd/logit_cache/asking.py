"""Ask a teacher about every instance: at once, or by several processes, each about pieces that no other is at.

What a teacher says of a row depends, in the last bits, on what else is in its batch. Pieces are of whole batches, those
of one process, so that what is joined of them is what one process would have been told, to the last bit.
"""

import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlkd.data.task import Task
from rlkd.errors import TeacherError
from rlkd.records import LOCKS_FOLDER, claim, processes_started, rank_on_machine, write_array_atomic

if TYPE_CHECKING:  # a deployed policy then loads neither transformers nor scikit-learn
    from rlkd.models.teachers import Teacher

MOST_PIECES = 64
"""Of a teacher, however many processes ask it: another number of them continues an interrupted build."""
POLL_SECONDS = 0.05

Logits = NDArray[np.floating[Any]]


class Answers:
    """The array of a teacher's answers to a task, as it is written.

    Args:
        teacher: One that does not say how it reads is taken to read batch after batch.
        task: The task, of N >= 1 instances.
        path: Of the array; pieces lie beside it. Its name tells the task, the teacher and the length of texts.
        dtype: Number format on disk.
        batch_size: Instances a forward pass.
        max_length: Tokens a text is cut to.
    """

    def __init__(
        self, teacher: "Teacher", task: Task, path: Path, *, dtype: str, batch_size: int, max_length: int
    ) -> None:
        self._teacher, self._task, self._path, self._dtype = teacher, task, path, dtype
        self._limits = {"batch_size": batch_size, "max_length": max_length}

    def write(self) -> None:
        """Write them all; of what an interrupted build of several processes was told nothing is asked again.

        Raises:
            TeacherError: Some are not finite.
        """
        if processes_started() == 1 and not self._left():
            logits = self._ask(np.arange(len(self._task.table)))
        else:
            self._path.unlink(missing_ok=True)  # where it is there, nobody asks
            self.ask_some()
            logits = self._joined()
        write_array_atomic(self._path, logits)
        for piece in self._left():
            piece.unlink()

    def ask_some(self) -> None:
        """Ask about pieces that nobody has asked about and nobody is at; each process begins elsewhere."""
        count = len(self._pieces)
        first = rank_on_machine() * count // processes_started()
        for index in (*range(first, count), *range(first)):
            self._done(index)

    @cached_property
    def _pieces(self) -> list[NDArray[np.int64]]:
        ids, order = np.arange(len(self._task.table)), getattr(self._teacher, "reading_order", None)
        read = ids if order is None else ids[order(self._task, ids, self._limits["max_length"])]
        rows = self._batch * -(-len(ids) // (self._batch * MOST_PIECES))
        return [read[start : start + rows] for start in range(0, len(read), rows)]

    @property
    def _batch(self) -> int:
        size, at_once = self._limits["batch_size"], getattr(self._teacher, "rows_at_once", None)
        return size if at_once is None else int(at_once(size))

    def _joined(self) -> Logits:
        """All rows, (N, C): where a process died at a piece, it is asked about again."""
        for index in range(len(self._pieces)):
            while not self._done(index):
                time.sleep(POLL_SECONDS)
        together = np.concatenate([np.load(self._place(i), allow_pickle=False) for i in range(len(self._pieces))])
        whole: Logits = np.empty_like(together)
        whole[np.concatenate(self._pieces)] = together
        return whole

    def _done(self, index: int) -> bool:
        """Ask about one piece, unless somebody has, or is at it; whether it is done."""
        place = self._place(index)
        if place.is_file() or self._path.is_file():
            return True
        with claim(self._path.parent / LOCKS_FOLDER, place.name) as ours:
            if ours and not (place.is_file() or self._path.is_file()):
                write_array_atomic(place, self._ask(self._pieces[index]))
        return ours

    def _place(self, index: int) -> Path:
        return self._path.with_suffix(f".{self._batch}-{index}.npy")

    def _left(self) -> list[Path]:
        return sorted(self._path.parent.glob(f"{self._path.stem}.*.npy"))

    def _ask(self, ids: NDArray[np.int64]) -> Logits:
        """What is stored of instances ``ids`` (n,), shape (n, C), all finite."""
        name, logits = self._teacher.name, self._teacher.logits(self._task, ids, **self._limits).numpy()
        with np.errstate(over="ignore"):
            stored: Logits = logits.astype(self._dtype)
        bad = int((~np.isfinite(stored)).any(axis=1).sum())
        if bad:
            overflow = "; they are too large for float16, cache as float32" if np.isfinite(logits).all() else ""
            raise TeacherError(
                f"teacher {name!r} must give finite logits, {bad} of {len(logits)} rows hold NaN or infinity"
                f"{overflow or '; mend the teacher'}"
            )
        return stored
