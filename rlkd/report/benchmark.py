"""The report of a benchmark, from run records: ``RESULTS.md``, a page of each suite, and all of it as one HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlkd.records import write_text_atomic
from rlkd.records.files import cannot_write
from rlkd.report.benchmark_headroom import headroom_overall
from rlkd.report.benchmark_more import links, more_pages
from rlkd.report.benchmark_suite import PAGES, SuiteReport, suite_report
from rlkd.report.benchmark_summary import opening
from rlkd.report.benchmark_tables import seed_table
from rlkd.report.document import Block, Figure, Section, Table, Text, html, markdown
from rlkd.report.page import weights_blocks
from rlkd.report.plots import as_file, plot_style
from rlkd.report.tables import Row
from rlkd.stats import STATISTICS_SEED, TaskRuns, group_runs

Record = Mapping[str, Any]

TITLE = "Benchmark of teacher weightings"


def write_benchmark_report(
    suites: Mapping[str, Sequence[Record]],
    output_dir: str | Path,
    *,
    tables: Mapping[str, Sequence[Row]] | None = None,
    notes: Mapping[str, str] | None = None,
    weights: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = STATISTICS_SEED,
) -> tuple[Path, ...]:
    """Write ``RESULTS.md``, a page of each suite, and ``report.html``. The same input gives the same bytes.

    Args:
        suites: Suite to its run records, see :mod:`rlkd.stats.suites`.
        output_dir: Where to write; must exist.
        tables: Further tables by caption, for example of performance, which get pages of their own, see
            :func:`~rlkd.report.benchmark_more.more_pages`; rows of flat values.
        notes: What is to be said below some of these captions.
        weights: Where policies put their weight, by caption; each as :func:`rlkd.report.write_report` takes it.
        seed: Of the generator that interquartile means and rank correlations draw from.

    Returns:
        The paths of ``RESULTS.md``, of ``report.html``, of the suites' pages and of those of further tables.

    Raises:
        ConfigError: If records of one task do not fit together.
        OutputDirectoryError: If a file cannot be written.
    """
    # Each suite draws from a generator of its own: its figures are the same, whatever else is reported.
    rngs = {name: np.random.default_rng(seed) for name in suites}
    with plot_style():
        found = {name: group_runs(records) for name, records in suites.items()}
        told = {name: suite_report(name, suites[name], runs, rngs[name]) for name, runs in found.items()}
        overall = headroom_overall(found, np.random.default_rng(seed), f"{PAGES}/headroom.svg")
        overall += _weights_section(weights or {})
        first_screen = opening([summary for suite in told.values() for summary in suite.summaries], found)
    more = more_pages(tables or {}, notes or {})
    words: list[Block] = [*map(Text, _introduction(found))]
    folder = Path(output_dir)
    _make(folder / PAGES)
    text, page = folder / "RESULTS.md", folder / "report.html"
    overview = Table([summary.cells for suite in told.values() for summary in suite.summaries])
    briefs = [suite.brief for suite in told.values()]
    write_text_atomic(text, markdown("Results", [*words, overview], [*briefs, *overall, *links(more)]))
    below = [section for page in more.values() for section in page.sections or [page]]
    folded = [replace(section, folded=True) for section in (*overall, *below, *_seeds_section(found))]
    meaning = Section("What the figures mean", words, folded=True)
    write_text_atomic(page, html(TITLE, first_screen, [*(s.folded for s in told.values()), *folded, meaning]))
    for figure in _files(overall):
        write_text_atomic(folder / figure.file, as_file(figure.svg))
    pages = [_write_page(folder, suite, found[name]) for name, suite in told.items()]
    return text, page, *pages, *(_write_more(folder / path, section) for path, section in more.items())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _files(sections: Sequence[Section]) -> list[Figure]:
    """The figures that are files too."""
    return [block for section in sections for block in section.blocks if isinstance(block, Figure) and block.file]


def _write_page(folder: Path, suite: SuiteReport, tables: Sequence[TaskRuns]) -> Path:
    """The page of one suite."""
    path, section = folder / suite.page, suite.section
    seeds = _seeds_section({section.title: tables})
    write_text_atomic(path, markdown(section.title, section.blocks, [*section.sections, *seeds]))
    return path


def _write_more(path: Path, section: Section) -> Path:
    """A page of tables that belong to no suite."""
    _make(path.parent)
    write_text_atomic(path, markdown(section.title, section.blocks, section.sections))
    return path


# -- the words at the top --------------------------------------------------------------------------


def _introduction(suites: Mapping[str, Sequence[TaskRuns]]) -> list[str]:
    tables = [runs for group in suites.values() for runs in group]
    others = sorted({f"`{runs.task}` ({runs.metric})" for runs in tables if runs.metric != "accuracy"})
    metric = "The primary metric is accuracy on the test split"
    metric += f", and elsewhere: {', '.join(others)}." if others else "."
    seeds_only = sorted({f"`{runs.task}`" for runs in tables if runs.panel is not None and runs.panel.instances == 1})
    about = "Intervals are 95% t intervals about other students and other test instances"
    about += f" (other students alone, on the same instances, for {', '.join(seeds_only)})" if seeds_only else ""
    return [
        "Generated by `rlkd bench report` from the lines in `benchmarks/results/`; not edited by hand.",
        f"{metric} Neither rewards, policies, routers nor the choice between them see that split. For a seed every "
        "weighting gets the same student initialisation, batches and budget, so differences are paired by seed; a "
        "point is a hundredth of the metric.",
        f"{about}: the variance over seeds counts with as many degrees of freedom as there are seeds less one, that "
        "over test instances is added. The tasks, the teachers and the trained policies are held fixed; over tasks "
        "the means per seed vary, since a seed gives students the same start on every task. Said where there is no "
        "difference, **pays** or **costs** is wrong in at most 5% of cases, by simulation, at 3 seeds as at 10. p is "
        "of the same test: it is below 0.05 where the interval leaves zero out. p Holm is corrected for the "
        "weightings of its table. P(better) is the probability that a run beats a run of uniform.",
        "**Pays** and **costs** mean that the interval lies on one side of zero; elsewhere a difference is not sure, "
        "which is not to say that there is none. `policy_shuffle` permutes the policy's weights over the instances of "
        "each batch, `policy_mean` gives every instance its average weights: "
        "where the shuffle does as well, instance weighting is not the cause. The gap is that from uniform to the "
        "oracle where one is known; its share is left out where the gap's own interval reaches zero.",
    ]


# -- what comes after the suites -------------------------------------------------------------------


def _weights_section(weights: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    parts = {caption: weights_blocks(summary) for caption, summary in weights.items()}
    below = [Section(caption, blocks, folded=True) for caption, blocks in parts.items() if blocks]
    return [Section("Where the policy puts its weight", sections=below)] if below else []


def _seeds_section(suites: Mapping[str, Sequence[TaskRuns]]) -> list[Section]:
    below = [
        Section(_of_student(name, runs.task, runs.student), [Table(seed_table(runs))], folded=True)
        for name, group in suites.items()
        for runs in group
        if runs.finished
    ]
    return [Section("Every seed", sections=below)] if below else []


def _of_student(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
