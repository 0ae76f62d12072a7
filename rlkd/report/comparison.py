"""A comparison of weightings as text: every mean with its interval, for terminals and for the results page."""

from collections.abc import Mapping, Sequence
from typing import Any

Cells = dict[str, object]


def brief_comparison(rows: Sequence[Mapping[str, Any]]) -> list[Cells]:
    """The rows of :func:`rlkd.benchmark.summarise` as a terminal is wide; columns that no row fills are left out."""
    return filled([_brief(row) for row in rows])


def full_comparison(rows: Sequence[Mapping[str, Any]]) -> list[Cells]:
    """The same with p-values, calibration and cost, for a page."""
    return filled([_brief(row) | _rest(row) for row in rows])


def _brief(row: Mapping[str, Any]) -> Cells:
    masses = [row.get("knowing_mass_early"), row.get("knowing_mass_late")]
    return {
        "weighting": row["weighting"],
        "seeds": row["seeds"],
        "accuracy [95%]": _spread(row, "accuracy", ".3f"),
        "points over uniform": _spread(row, "gain", "+.1f", 100),
        "share of the gap": _spread(row, "gap_share", ".2f"),
        "mass early, late": None if None in masses else ", ".join(format(mass, ".2f") for mass in masses),
    }


def _rest(row: Mapping[str, Any]) -> Cells:
    forms = {"p_value": ".2f", "nll": ".2f", "ece": ".3f", "seconds": ".0f"}
    values = {name: row.get(name) for name in forms}
    return {name: None if value is None else format(value, forms[name]) for name, value in values.items()}


def _spread(row: Mapping[str, Any], name: str, form: str, unit: float = 1) -> str | None:
    if row.get(name) is None:
        return None
    mean, low, high = (format(unit * row[key], form) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{mean} [{low}, {high}]"


def filled(rows: Sequence[Cells]) -> list[Cells]:
    """Rows of equal keys without the columns that no row fills."""
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)] if rows else []
    return [{name: row[name] for name in names} for row in rows]
