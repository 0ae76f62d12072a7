"""Tables that belong to no suite, such as those of performance: a page for each subject, and where it is."""

from collections.abc import Mapping, Sequence

from rlkd.records import folder_of
from rlkd.report.benchmark_suite import PAGES
from rlkd.report.document import Link, Section, Table, Text
from rlkd.report.tables import Row

FOLDER = f"{PAGES}/tables"
"""Of these pages, beside ``RESULTS.md``."""


def more_pages(tables: Mapping[str, Sequence[Row]], notes: Mapping[str, str]) -> dict[str, Section]:
    """Pages by where they lie beside ``RESULTS.md``: captions that begin alike, up to a comma, share one.

    Args:
        tables: By caption; of those without a row nothing is told.
        notes: What is to be said below some of these captions.
    """
    subjects: dict[str, list[Section]] = {}
    for caption, rows in tables.items():
        if rows:
            told = [Text(notes[caption], note=True)] if caption in notes else []
            subjects.setdefault(caption.partition(",")[0], []).append(Section(caption, [*told, Table(list(rows))]))
    pages = {_page(subject): Section(subject, sections=found) for subject, found in subjects.items()}
    return {path: page.sections[0] if len(page.sections) == 1 else page for path, page in pages.items()}


def _page(subject: str) -> str:
    return f"{FOLDER}/{folder_of('-'.join(subject.lower().split()))}.md"


def links(pages: Mapping[str, Section]) -> list[Section]:
    """What of them ``RESULTS.md`` has: where each lies, and the tables on it."""
    return [Section("More tables", [Link(_words(page), path) for path, page in pages.items()])] if pages else []


def _words(page: Section) -> str:
    captions = [section.title.removeprefix(f"{page.title}, ") for section in page.sections]
    return f"{page.title}: {'; '.join(captions)}" if captions else page.title
