"""``teacher.json``, which lies beside a teacher's weights and says what it is called and what it knows."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlkd.errors import TeacherError
from rlkd.models.teachers import KnowsBy
from rlkd.records import parse_object, write_json_atomic

INFO_FILE = "teacher.json"


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


def write_info(directory: Path, info: TeacherInfo) -> None:
    """Write ``teacher.json`` whole or not at all."""
    write_json_atomic(directory / INFO_FILE, asdict(info))


def read_info(directory: Path) -> TeacherInfo | None:
    """Read and check ``teacher.json``.

    Args:
        directory: A teacher's directory.

    Returns:
        Its content; None where the file is missing.

    Raises:
        TeacherError: It is no JSON object, or has other keys or types than :class:`TeacherInfo`.
    """
    path = directory / INFO_FILE
    if not path.exists():
        return None
    content = parse_object(path.read_bytes())
    problem = "something that is no JSON object" if content is None else _info_problem(content)
    if content is None or problem:
        raise TeacherError(f"expected a description of a teacher in {str(path)!r}, got {problem}; correct or delete it")
    names = content.get("label_names")
    return TeacherInfo(
        name=content["name"],
        kind=content.get("kind"),
        knows=frozen(content.get("knows")),
        knows_by=content.get("knows_by"),
        label_names=None if names is None else tuple(names),
        settings=content.get("settings"),
        metrics=content.get("metrics", {}),
    )


def _info_problem(content: Mapping[str, Any]) -> str | None:
    """Say what is wrong with the content of a ``teacher.json``."""
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


def frozen(names: Iterable[str] | None) -> frozenset[str] | None:
    """Names as a set, where there are any."""
    return None if names is None else frozenset(names)
