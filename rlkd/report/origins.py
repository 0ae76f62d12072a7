"""What a reader must know of the lines of a report: which code made them, and what could not be compared."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rlkd.stats import TaskRuns

Record = Mapping[str, Any]

SHORT = 8
"""Digits by which a commit is named."""
NOT_PAIRED = "without runs of `uniform`"


def records_hash(records: Sequence[Record]) -> str:
    """16 hexadecimal digits of what a suite's tables are made of: other lines give others."""
    found = hashlib.sha256()
    for record in records:
        found.update(json.dumps(record, sort_keys=True).encode())
    return found.hexdigest()[:16]


def origin_sentences(records: Sequence[Record]) -> list[str]:
    """Which lines a suite's tables are made of, and which code made them and their policies."""
    named = _named(_environments(records))
    said = [f"Made of {_lines(len(records))}, `{records_hash(records)}`, by the code of {named}."]
    said += untraced(records)
    dirty = sum(bool(found.get("dirty")) for found in _environments(records))
    if dirty:
        said.append(f"**{dirty} of {_lines(len(records))} were made with changes that their commit lacks.**")
    policies = [record for record in records if record.get("policy") is not None]
    if policies:
        trained = [record.get("policy_environment") or {} for record in policies]
        said.append(f"Their policies were trained by the code of {_named(trained)}.")
    return [*said, *_before_strengths(policies)]


def untraced(records: Sequence[Record]) -> list[str]:
    """Says so where nobody can look up the code that made some of the lines; nothing where everybody can."""
    lacking = [found for found in _environments(records) if not found.get("commit")]
    if not lacking:
        return []
    hashed = sum(bool(found.get("source")) for found in lacking)
    count = f"**{len(lacking)} of {_lines(len(records))} carry no commit**"
    if hashed == len(lacking):
        return [f"{count}, only the hash of their source files."]
    return [f"{count}; which code made {'them' if not hashed else 'those without a hash of it'} is not known."]


def _before_strengths(policies: Sequence[Record]) -> list[str]:
    """Runs of the trainer say at what strength their policy acts, since there are strengths; systems' own never did."""
    asked = [record for record in policies if not record.get("recipe")]
    silent = sum("policy_strength" not in record for record in asked)
    if not silent:
        return []
    return [f"**{silent} of {len(asked)} lines of policies know no strength**: today's code would choose one."]


def _environments(records: Sequence[Record]) -> list[Mapping[str, Any]]:
    return [record.get("environment") or {} for record in records]


def _named(environments: Sequence[Mapping[str, Any]]) -> str:
    """Commits, or what stands for one, with the number of lines of each where there are several."""
    found = Counter(_code(environment) for environment in environments)
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{name} ({count})" for name, count in sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _code(environment: Mapping[str, Any]) -> str:
    if environment.get("commit"):
        return f"`{environment['commit'][:SHORT]}`"
    if environment.get("source"):
        return f"source files `{environment['source'][:SHORT]}`"
    return "an unknown commit"


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count} lines"


def without_uniform(tables: Sequence[TaskRuns]) -> list[str]:
    """Which tasks stand in no difference to equal weights; nothing where all do."""
    named = [f"`{runs.task}` ({', '.join(f'`{name}`' for name in runs.weightings)})" for runs in tables]
    if not named:
        return []
    return [f"In no difference to equal weights, {NOT_PAIRED}: {'; '.join(named)}; only their scores are told."]
