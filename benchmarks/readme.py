"""The figures of all README files: each stands behind a comment that names the cell of the results that it repeats.

``<!--glue; mnli_genres; policy; gain-->+1.2 [+0.6, +1.9]`` names headings above a table, cells of a row and a column,
as many as single one cell out, in any order; where several cells are left, the one with the fewest headings that were
not named is meant. ``negated`` turns the sign. A figure has as many digits as its author gave it.
``<!--transcript: SUITE-->`` stands before a block that is printed anew, ``<!--transcript: SUITE_headroom-->`` before
what ``rlkd headroom`` says of it, ``<!--untraced-->`` and ``<!--/untraced-->`` around a sentence that is said anew.

Every other number is a setting. ``readme_settings.yaml`` lists them, page by page and section by section, so that none
changes unseen.

    python benchmarks/readme.py              # rewrite what RESULTS.md says otherwise, and tell what is left
    python benchmarks/readme.py --settings   # the same, and take the other numbers as they stand now
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rlkd.report import brief_table, format_table, plain, task_sentences
from rlkd.report.headroom import headroom_text
from rlkd.stats import group_runs, task_rows

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS, SETTINGS = HERE / "RESULTS.md", HERE / "readme_settings.yaml"
PAGES = tuple(
    path.relative_to(ROOT).as_posix()
    for folder in ("*.md", "benchmarks/**/README.md", "envs/**/README.md", "rlkd/**/README.md")
    for path in sorted(ROOT.glob(folder))
    if path.parent.name != "auto"  # the card of the shipped policy: generated with it
)
"""Every page that is written by hand; the first is the README of the repository."""
COLUMNS = {
    "gain": ("points over uniform", "mean points over uniform"),
    "share": ("share of the gap", "IQM share of the gap"),
    "accuracy": ("accuracy [95%]",),
    **dict.fromkeys(("pays", "same", "costs"), ("pays / same / costs",)),
}
"""Short names of columns."""
PARTS = ("pays", "same", "costs")
"""Names of the numbers in one cell."""
NEGATED = "negated"
MEASURED = ("Results", "When will this help me?")
"""Sections in which no number with a decimal point is a setting."""

_NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?"
_FIGURE = re.compile(rf"<!--(?P<key>[^<>]*?)-->\**(?P<figure>{_NUMBER}\**(?: \[{_NUMBER}, {_NUMBER}\])?)")
_TRANSCRIPT = re.compile(r"(<!--transcript: (?P<suite>\w+)-->\n```text\n)(?P<text>.*?)(?=```)", re.DOTALL)
_UNTRACED = re.compile(r"(<!--untraced-->\n)(?P<text>.*?)(?=<!--/untraced-->)", re.DOTALL)
_FIRST = re.compile(r"^ *<!--(?!transcript|/?untraced)(.*?)-->", re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_WORD = re.compile(r"[\w.:+/=%-]+")
_DIGIT = re.compile(r"\d")
_GAIN = re.compile(r"(?<![\w.:])[+-]\d+\.\d+")
_FENCED = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    headings: tuple[str, ...]
    column: str
    row: tuple[str, ...]
    text: str

    @property
    def labels(self) -> frozenset[str]:
        """Everything that it can be named by."""
        return frozenset((*self.headings, self.column, *self.row))


def results_text() -> str:
    """``RESULTS.md`` and all pages of results as one text.

    The page of a suite or of one table is a section of the highest level; a page of several tables has such sections.
    """
    pages = [page.read_text(encoding="utf-8") for page in sorted((HERE / "results").glob("*.md"))]
    more = [page.read_text(encoding="utf-8") for page in sorted((HERE / "results" / "tables").glob("*.md"))]
    pages += [page for page in more if "\n## " not in page]
    below = [re.sub(r"^#", "##", page, flags=re.MULTILINE) for page in pages]
    several = [page for page in more if "\n## " in page]
    return "\n".join([RESULTS.read_text(encoding="utf-8"), *below, *several])


class Results:
    """The pages of results as cells that can be looked up."""

    def __init__(self, text: str) -> None:
        """Read the page."""
        self.text = text
        self._found: dict[str, Cell] = {}

    @cached_property
    def cells(self) -> list[Cell]:
        """Of all tables, those of single seeds too."""
        return list(_cells(self.text))

    @cached_property
    def _index(self) -> dict[str, set[int]]:
        index: dict[str, set[int]] = {}
        for number, cell in enumerate(self.cells):
            for label in cell.labels:
                index.setdefault(label, set()).add(number)
        return index

    def find(self, key: str) -> Cell:
        """The cell that a key names.

        Raises:
            LookupError: It names none, or several that say different things.
        """
        if key not in self._found:
            self._found[key] = self._find(key)
        return self._found[key]

    def _find(self, key: str) -> Cell:
        labels = [label for label in _labels(key) if label != NEGATED]
        columns = [COLUMNS[label] for label in labels if label in COLUMNS]
        sets = [
            set().union(*(self._index.get(name, set()) for name in COLUMNS.get(label, (label,)))) for label in labels
        ]
        cells = [self.cells[number] for number in set.intersection(*sets)] if sets else []
        cells = [cell for cell in cells if all(cell.column in names for names in columns)]
        if not cells:
            raise LookupError("names no cell of RESULTS.md")
        unnamed = [len(set(cell.headings) - set(labels)) for cell in cells]
        nearest = [cell for cell, count in zip(cells, unnamed, strict=True) if count == min(unnamed)]
        nearest = [cell for cell in nearest if cell.column in labels] or nearest
        if len({cell.text for cell in nearest}) > 1:
            told = "; ".join(f"{' > '.join(cell.headings)}, {cell.column}: {cell.text}" for cell in nearest[:3])
            raise LookupError(f"names {len(nearest)} cells of RESULTS.md ({told}); name more")
        return nearest[0]

    @cached_property
    def sections(self) -> dict[str, str]:
        """Text of each section of the highest level, by heading."""
        parts = re.split(r"^## (.*)$", self.text, flags=re.MULTILINE)[1:]
        return {_unescaped(title): body for title, body in zip(parts[::2], parts[1::2], strict=True)}

    def untraced(self, keys: Sequence[str]) -> list[str]:
        """Sections behind these keys whose lines no commit explains."""
        behind = dict.fromkeys(self.find(key).headings[0] for key in keys)
        return [name for name in behind if name in self._untraced]

    @cached_property
    def _untraced(self) -> set[str]:
        return {name for name, text in self.sections.items() if "carry no commit" in text}


def _labels(key: str) -> list[str]:
    return [label.strip() for label in key.split(";")]


def _unescaped(text: str) -> str:
    for safe, character in (("\\|", "|"), ("\\\\", "\\"), ("&gt;", ">"), ("&lt;", "<"), ("&amp;", "&")):
        text = text.replace(safe, character)
    return text


def _cells(text: str) -> Iterator[Cell]:
    headings: list[str] = []
    columns: list[str] = []
    for line in text.splitlines():
        if mark := re.match(r"(#+) (.*)", line):
            headings = [*headings[: len(mark[1]) - 1], _unescaped(mark[2])]
        if not line.startswith("|"):
            columns = []
            continue
        row = [_unescaped(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not columns:
            columns = row
        elif not all(re.fullmatch("-+:?", cell) for cell in row):
            for index, (column, cell) in enumerate(zip(columns, row, strict=True)):
                yield Cell(tuple(headings[1:]), column, tuple(row[:index] + row[index + 1 :]), cell)


# -- figures ---------------------------------------------------------------------------------------


def shown(cell: str, key: str, old: str) -> str:
    """A cell as the README shows it: with the digits, the signs and the interval of what it shows now.

    Raises:
        LookupError: The cell holds no such figure any more.
    """
    figure, brackets, _ = old.partition(" [")
    labels = _labels(key)
    part = next((PARTS.index(label) for label in labels if label in PARTS), None)
    numbers = re.findall(_NUMBER, cell)
    taken = numbers[:3] if part is None else numbers[part : part + 1]
    if len(taken) < (3 if brackets else 1) or not re.match(r"[+-]?\d", cell):
        raise LookupError(f"is {cell!r} now")
    values = [Decimal(number.replace(",", "")) for number in taken[: 3 if brackets else 1]]
    if NEGATED in labels:
        values = [-value for value in (values[0], *values[:0:-1])]
    before = re.findall(_NUMBER, old)
    plus = "+" in old or (all(number.startswith("-") for number in before) and "+" in "".join(taken))
    mean, *ends = [_written(value, number, plus) for value, number in zip(values, before, strict=True)]
    stars = figure.removeprefix(figure.rstrip("*"))
    return mean + stars + (f" [{', '.join(ends)}]" if ends else "")


def _written(value: Decimal, like: str, plus: bool) -> str:
    digits = len(like.partition(".")[2])
    rounded = value.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN)
    sign = "+" if plus else ""
    grouping = "," if "," in like or abs(rounded) >= 10_000 else ""
    return format(abs(rounded) if not rounded else rounded, f"{sign}{grouping}.{digits}f")


def transcript(records: Sequence[Mapping[str, Any]]) -> str:
    """What the terminal shows of a comparison, printed by the code that prints it there."""
    (runs,) = group_runs(records)
    rows = task_rows(runs)
    table = brief_table(rows)
    return "\n".join([format_table(table, list(table[0])), *map(plain, task_sentences(runs, rows))]) + "\n"


def headroom_transcript(rows: Sequence[Mapping[str, Any]]) -> str:
    """What ``rlkd headroom`` says of a suite without its single teachers, from what it wrote."""
    whole, *others = rows
    return headroom_text([whole, *(row for row in others if "measured" in row)]) + "\n"


def untraced_sentence(names: Sequence[str]) -> str:
    """Says so where no commit explains the lines behind some figures; nothing where all are explained."""
    if not names:
        return ""
    return f"The lines behind `{'`, `'.join(names)}` carry no commit: which code made them is not known.\n"


def rewritten(text: str, results: Results, transcripts: Mapping[str, str]) -> str:
    """A page as it should be; figures whose cell is gone stay as they are, see :func:`problems`."""

    def figure(found: re.Match[str]) -> str:
        try:
            new = shown(results.find(found["key"]).text, found["key"], found["figure"])
        except LookupError:
            return found[0]
        return found[0].removesuffix(found["figure"]) + new

    def printed(found: re.Match[str]) -> str:
        return found[1] + transcripts.get(found["suite"], found["text"])

    return _UNTRACED.sub(
        lambda found: found[1] + untraced_sentence(_untraced(text, results)),
        _TRANSCRIPT.sub(printed, _FIGURE.sub(figure, text)),
    )


def _untraced(text: str, results: Results) -> list[str]:
    keys = []
    for key in _keys(text):
        try:
            keys.append(key) if results.find(key) else None
        except LookupError:
            continue
    return results.untraced(keys)


def _keys(text: str) -> list[str]:
    return [found["key"] for found in _FIGURE.finditer(text)]


# -- settings --------------------------------------------------------------------------------------


def settings(text: str) -> dict[str, dict[str, int]]:
    """Every number that no comment binds, with how often it is there, section by section."""
    bare = _COMMENT.sub("", _FIGURE.sub("", _TRANSCRIPT.sub("", _UNTRACED.sub("", text))))
    parts = re.split(r"^## (.*)$", bare, flags=re.MULTILINE)
    bodies = {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}
    found = {name: _numbers(body) for name, body in bodies.items()}
    return {name: dict(sorted(words.items())) for name, words in found.items() if words}


def _numbers(text: str) -> Counter[str]:
    return Counter(word.strip(".:-/=") for word in _WORD.findall(text) if _DIGIT.search(word))


def unbound(text: str) -> list[str]:
    """Numbers that can only be measured and that no comment binds: gains anywhere, decimals among the results."""
    bare = _FENCED.sub("", _COMMENT.sub("", _FIGURE.sub("", _TRANSCRIPT.sub("", text))))
    titles = "|".join(map(re.escape, MEASURED))
    measured = re.finditer(rf"^## (?:{titles})\n(.*?)(?=^## |\Z)", bare, re.MULTILINE | re.DOTALL)
    decimals = [number for found in measured for number in re.findall(r"(?<![\w.:-])\d+\.\d+(?![\w.])", found[1])]
    return [*_GAIN.findall(bare), *decimals]


# -- both ------------------------------------------------------------------------------------------


def problems(
    text: str, results: Results, transcripts: Mapping[str, str], accepted: Mapping[str, Mapping[str, int]]
) -> list[str]:
    """What of a page does not hold, one sentence each; nothing where all does."""
    said = []
    for found in _FIGURE.finditer(text):
        try:
            new = shown(results.find(found["key"]).text, found["key"], found["figure"])
        except LookupError as error:
            said.append(f"{found['figure']} ({found['key']}): the comment {error}")
            continue
        if new != found["figure"]:
            said.append(f"{found['figure']} ({found['key']}): RESULTS.md says {new}")
    # Markdown takes a line that begins with a comment for HTML: its paragraph would end there.
    said += [f"{found[1]}: the comment begins a line; put a word before it" for found in _FIRST.finditer(text)]
    said += [f"{key}: no number behind the comment" for key in _without_number(text)]
    for found in _TRANSCRIPT.finditer(text):
        if found["text"] != transcripts.get(found["suite"]):
            said.append(f"the transcript of {found['suite']} is not what its records print")
    sentence, written = untraced_sentence(_untraced(text, results)), _UNTRACED.search(text)
    if sentence != ("" if written is None else written["text"]):
        said.append(f"the sentence about lines without a commit, between <!--untraced-->, should be {sentence!r}")
    said += [f"{number}: measured, and bound to no cell; put a comment before it" for number in unbound(text)]
    return [*said, *_changed_settings(settings(text), accepted)]


def _without_number(text: str) -> list[str]:
    comments = [found[0][4:-3] for found in _COMMENT.finditer(text)]
    known = Counter(_keys(text))
    other = re.compile(r"transcript: \w+|/?untraced")
    return [key for key, count in (Counter(comments) - known).items() if not other.fullmatch(key) for _ in range(count)]


def _changed_settings(now: Mapping[str, Mapping[str, int]], accepted: Mapping[str, Mapping[str, int]]) -> list[str]:
    said = []
    for section in dict.fromkeys((*now, *accepted)):
        new, old = Counter(now.get(section, {})), Counter(accepted.get(section, {}))
        changes = [f"{word} is new" for word in new - old] + [f"{word} is gone" for word in old - new]
        if changes:
            said.append(
                f"section {section or 'at the top'!r}, numbers without a comment: {', '.join(changes)}; "
                "bind what is measured, then python benchmarks/readme.py --settings"
            )
    return said


def read_pages() -> dict[str, str]:
    """Text of every page."""
    return {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}


def read_settings() -> dict[str, dict[str, dict[str, int]]]:
    """The settings as they were accepted, by page and section."""
    return yaml.safe_load(SETTINGS.read_text(encoding="utf-8")) if SETTINGS.exists() else {}


def read_transcripts(suites: Mapping[str, Sequence[Mapping[str, Any]]], text: str) -> dict[str, str]:
    """What the blocks of a page should say, by the name in their comment."""
    names = [found["suite"] for found in _TRANSCRIPT.finditer(text)]
    printed = {name: transcript(suites[name]) for name in names if name in suites}
    for name in names:
        kept = HERE / "results" / f"{name.removesuffix('_headroom')}-headroom.json"
        if name.endswith("_headroom") and kept.exists():
            printed[name] = headroom_transcript(json.loads(kept.read_text(encoding="utf-8")))
    return printed


def update(suites: Mapping[str, Sequence[Mapping[str, Any]]], *, accept_settings: bool = False) -> list[str]:
    """Rewrite the figures of all pages, print what changed, and give what is left to do."""
    results, pages = Results(results_text()), read_pages()
    transcripts = {page: read_transcripts(suites, text) for page, text in pages.items()}
    for page, old in pages.items():
        pages[page] = new = rewritten(old, results, transcripts[page])
        for before, after in zip(_FIGURE.finditer(old), _FIGURE.finditer(new), strict=True):
            if before["figure"] != after["figure"]:
                print(f"{page}: {before['figure']} -> {after['figure']} ({before['key']})")
        if new != old:
            (ROOT / page).write_text(new, encoding="utf-8")
    if accept_settings:
        SETTINGS.write_text(_settings_file(pages), encoding="utf-8")
    accepted = read_settings()
    return [
        f"{page}: {problem}"
        for page, text in pages.items()
        for problem in problems(text, results, transcripts[page], accepted.get(page) or {})
    ]


def _settings_file(pages: Mapping[str, str]) -> str:
    lines = [
        "# Numbers of the README files that are no measurements: page, section, number, how often it stands there."
    ]
    lines += ["# Written by python benchmarks/readme.py --settings"]
    for page, text in pages.items():
        lines += [f"{json.dumps(page)}:"]
        lines += [f"  {json.dumps(name)}: {json.dumps(words)}" for name, words in settings(text).items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Rewrite the pages from the results as they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", action="store_true", help="take the numbers without a comment as they are now")
    from make_results import read_records

    left = update(read_records(), accept_settings=parser.parse_args().settings)
    for problem in left:
        print(problem)
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()
