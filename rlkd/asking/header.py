"""What a ledger says of itself: whose answers to which task are in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkd.asking.ledger_file import BOOK
from rlkd.data.task import Task
from rlkd.errors import CacheError, TeacherError
from rlkd.models.teachers import Teacher
from rlkd.records import parse_object, write_json_atomic

HEADER = "ledger.json"
FORMAT_VERSION = 1
TEACHER_FIELDS = {"name", "identity", "paid"}


class Header:
    """The header of a ledger, whose teachers have numbers: places in its list, which only grows.

    Args:
        folder: Of the ledger.
        task: Whose instances are asked about.
        teachers: Those of this process.
        max_length: Tokens that models of one's own read of a text.

    Raises:
        TeacherError: Two teachers are the same.
        CacheError: There is something else in the folder.
    """

    def __init__(self, folder: Path, task: Task, teachers: Sequence[Teacher], max_length: int) -> None:
        self._path, self._task, self._teachers = folder / HEADER, task, teachers
        self._about = {
            "format_version": FORMAT_VERSION,
            "task": task.name,
            "data": task.fingerprint,
            "labels": list(task.label_names),
            "max_length": max_length,
        }
        self.paid = set[int]()
        """Numbers of all teachers that are paid; filled by :meth:`numbers`."""
        self._check_teachers()
        if not self.exists() and folder.is_dir():
            self._check_empty(folder)

    def exists(self) -> bool:
        """Whether it was written."""
        return self._path.exists()

    def is_paid(self, teacher: int) -> bool:
        """Whether a teacher of this process is paid."""
        return bool(getattr(self._teachers[teacher], "paid", False))

    def numbers(self) -> list[int]:
        """The number of each teacher of this process, (K,), when the ledger is held; new ones are written.

        Raises:
            CacheError: It is of another task, or of other teachers of these names, or is no header.
        """
        known = self._known() if self.exists() else []
        numbers, before = [], len(known)
        for place, teacher in enumerate(self._teachers):
            self._check_same(teacher, known)
            entry = {"name": teacher.name, "identity": teacher.identity, "paid": self.is_paid(place)}
            same = [number for number, other in enumerate(known) if other["identity"] == teacher.identity]
            numbers.append(same[0] if same else len(known))
            if not same:
                known.append(entry)
        if len(known) > before or not self.exists():
            write_json_atomic(self._path, self._about | {"teachers": known})
        self.paid |= {number for number, entry in enumerate(known) if entry["paid"]}
        return numbers

    def _known(self) -> list[dict[str, Any]]:
        found = parse_object(self._path.read_bytes()) or {}
        known: Any = found.get("teachers")
        if found.get("format_version") != FORMAT_VERSION or not _are_teachers(known):
            raise CacheError(f"expected a ledger of format {FORMAT_VERSION} in {self._path}, got none; restore it")
        for name, said in self._about.items():
            if name != "task" and found.get(name) != said:
                raise CacheError(
                    f"expected a ledger of task {self._task.name!r} with {name} {said!s:.60} in "
                    f"{self._path.parent}, got one of task {found.get('task')!r} with {found.get(name)!s:.60}; "
                    "choose another folder: what is in this one was paid for"
                )
        teachers: list[dict[str, Any]] = known
        return teachers

    def _check_same(self, teacher: Teacher, known: Sequence[dict[str, Any]]) -> None:
        for entry in known:
            if entry["name"] == teacher.name and entry["identity"] != teacher.identity:
                raise CacheError(
                    f"expected teacher {teacher.name!r} as it was asked before through the ledger "
                    f"{self._path.parent}, got another (identity {teacher.identity:.16}, then "
                    f"{entry['identity']:.16}); give the new one a name of its own"
                )

    def _check_teachers(self) -> None:
        seen: dict[str, str] = {}
        for teacher in self._teachers:
            same = [name for name, identity in seen.items() if teacher.name == name or teacher.identity == identity]
            if same:
                raise TeacherError(
                    f"expected different teachers with names of their own, got {same[0]!r} and {teacher.name!r}, which "
                    "are the same; leave one out: the answers would be paid twice"
                )
            seen[teacher.name] = teacher.identity

    def _check_empty(self, folder: Path) -> None:
        book = folder / BOOK
        begun = book.exists() and bool(book.stat().st_size)
        foreign = sorted(path.name for path in folder.iterdir() if path != book and path.suffix != ".tmp")
        if self.exists():  # another process has begun it meanwhile; all else is written after the header
            return
        if begun:
            raise CacheError(f"the ledger {folder} has lost its {HEADER}; restore it from a copy")
        if foreign:
            raise CacheError(
                f"expected an empty folder or a ledger in {folder}, found {', '.join(foreign[:3])}; choose another"
            )


def _are_teachers(known: object) -> bool:
    return isinstance(known, list) and all(isinstance(one, dict) and set(one) >= TEACHER_FIELDS for one in known)
