"""The report of a benchmark, from run records: ``RESULTS.md``, a page of each suite, and all of it as one HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlkd.records import folder_of, write_text_atomic
from rlkd.records.files import cannot_write
from rlkd.report.arms import control_of, ordered, policies
from rlkd.report.benchmark_headroom import headroom_blocks, headroom_overall
from rlkd.report.benchmark_plots import ForestPanel, cost_plot, forest_rows, interval_of, label_plot
from rlkd.report.benchmark_tables import (
    rival_table,
    score_table,
    seed_table,
    setting_line,
    suite_table,
    task_table,
    weight_table,
)
from rlkd.report.document import Block, Bullets, Figure, Link, Section, Table, Text, Weights, html, markdown
from rlkd.report.origins import NOT_PAIRED, origin_sentences, without_uniform
from rlkd.report.page import weights_part
from rlkd.report.plots import TIMES, as_file, plot_style
from rlkd.report.tables import Row
from rlkd.report.wording import (
    points,
    policy_sentences,
    regret_sentences,
    rival_sentences,
    settings_sentences,
    suite_sentences,
    task_sentences,
)
from rlkd.stats import (
    ORACLE,
    STATISTICS_SEED,
    UNIFORM,
    TaskRuns,
    group_runs,
    label_curves,
    rival_rows,
    suite_rows,
    task_rows,
)

Record = Mapping[str, Any]
Figures = dict[str, Any]

ROUTER = "router"
TITLE = "Benchmark of teacher weightings"
PAGES = "results"
"""Folder of the suites' pages and of the figures, beside ``RESULTS.md``."""
SAID = 2
"""Sentences of a suite that ``RESULTS.md`` repeats."""


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
        tables: Further tables by caption, for example of performance; rows of flat values.
        notes: What is to be said below some of these captions.
        weights: Where policies put their weight, by caption; each as :func:`rlkd.report.write_report` takes it.
        seed: Of the generator that interquartile means and rank correlations draw from.

    Returns:
        The paths of ``RESULTS.md``, of ``report.html`` and of the suites' pages.

    Raises:
        ConfigError: If records of one task do not fit together.
        OutputDirectoryError: If a file cannot be written.
    """
    # Each suite draws from a generator of its own: its figures are the same, whatever else is reported.
    rngs = {name: np.random.default_rng(seed) for name in suites}
    with plot_style():
        found = {name: group_runs(records) for name, records in suites.items()}
        told = {name: _suite(name, suites[name], runs, rngs[name]) for name, runs in found.items()}
        overall = headroom_overall(found, np.random.default_rng(seed), f"{PAGES}/headroom.svg")
        overall += _weights_section(weights or {})
        overall += _more_tables(tables or {}, notes or {})
    words: list[Block] = [*map(Text, _introduction(found))]
    folder = Path(output_dir)
    _make(folder / PAGES)
    sections = [suite.section for suite in told.values()]
    text, page = folder / "RESULTS.md", folder / "report.html"
    overview = Table([row for suite in told.values() for row in suite.overview])
    write_text_atomic(text, markdown("Results", [*words, overview], [*map(_brief, told.values()), *overall]))
    opening = [*words, Bullets(_summary(sections))]
    write_text_atomic(page, html(TITLE, opening, [*sections, *overall, *_seeds_section(found)]))
    for figure in _files(overall):
        write_text_atomic(folder / figure.file, as_file(figure.svg))
    return text, page, *(_write_page(folder, suite, found[name]) for name, suite in told.items())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def _files(sections: Sequence[Section]) -> list[Figure]:
    """The figures that are files too."""
    return [block for section in sections for block in section.blocks if isinstance(block, Figure) and block.file]


def _write_page(folder: Path, suite: "_Suite", tables: Sequence[TaskRuns]) -> Path:
    """The page of one suite."""
    path, section = folder / suite.page, suite.section
    seeds = _seeds_section({section.title: tables})
    write_text_atomic(path, markdown(section.title, section.blocks, [*section.sections, *seeds]))
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


def _summary(sections: Sequence[Section]) -> list[str]:
    """The first sentence of each suite, and what it leaves out."""
    said = []
    for section in sections:
        lines = [line for block in section.blocks[:1] if isinstance(block, Bullets) for line in block.lines]
        shown = [line for i, line in enumerate(lines) if not i or NOT_PAIRED in line]
        said += [f"{section.title}: {line}" for line in shown]
    return said


# -- one suite -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Suite:
    """What is told of a suite: at length, and in a row of a table for each student."""

    section: Section
    overview: Sequence[Row]

    @property
    def page(self) -> str:
        """Where its own page lies beside ``RESULTS.md``; names of suites come with records, and lead nowhere else."""
        return f"{PAGES}/{folder_of(self.section.title)}.md"


def _brief(suite: _Suite) -> Section:
    """A suite as ``RESULTS.md`` shows it: what it says first, what it is made of, and where the rest is."""
    kept: list[Block] = []
    for block in suite.section.blocks:
        if isinstance(block, Bullets) and not kept:
            kept.append(Bullets([line for i, line in enumerate(block.lines) if i < SAID or NOT_PAIRED in line]))
        elif isinstance(block, Text) and len(kept) == 1:
            kept.append(block)
    return Section(suite.section.title, [*kept, Link("All tables of this suite", suite.page)])


def _overview(suite: str, student: str | None, tables: Sequence[TaskRuns], pooled: Mapping[str, Figures]) -> list[Row]:
    """The first policy of a suite beside its control and what is possible, in points over uniform; none without one."""
    shown = [name for name in policies(pooled) if pooled[name].get("gain") is not None]
    if not shown:
        return []
    policy, row = shown[0], pooled[shown[0]]
    beside = {"its shuffle": control_of(policy, "shuffle", list(pooled)), "router": ROUTER, "oracle": ORACLE}
    return [
        {
            "suite": suite,
            "student": student,
            "tasks": len(tables),
            "policy": f"{policy}: {points(row, 'gain')}",
            "pays / same / costs": f"{row['pays']} / {row['same']} / {row['costs']}",
            **{what: points(pooled.get(name or "", {}), "gain") for what, name in beside.items()},
        }
    ]


def _suite(name: str, records: Sequence[Record], tables: Sequence[TaskRuns], rng: np.random.Generator) -> _Suite:
    origin = Text(" ".join(origin_sentences(records)), note=True)
    students = list(dict.fromkeys(runs.student for runs in tables))
    by_student = {student: [runs for runs in tables if runs.student == student] for student in students}
    if len(students) == 1:
        (first, *blocks), sections, pooled = _student_parts(tables, rng)
        section = Section(name, [first, origin, *blocks], sections)
        return _Suite(section, _overview(name, None, tables, pooled))
    parts = {student: _student_parts(group, rng) for student, group in by_student.items()}
    firsts = [
        f"Student `{student}`: {line}"
        for student, (blocks, _, _) in parts.items()
        for block in blocks[:1]
        if isinstance(block, Bullets)
        for line in block.lines
    ]
    below = [Section(f"{name}, student {student}", blocks, inner) for student, (blocks, inner, _) in parts.items()]
    rows = [
        row
        for student, (_, _, pooled) in parts.items()
        for row in _overview(name, student, by_student[student], pooled)
    ]
    return _Suite(Section(name, [Bullets(firsts), origin], below), rows)


def _student_parts(
    tables: Sequence[TaskRuns], rng: np.random.Generator
) -> tuple[list[Block], list[Section], Mapping[str, Figures]]:
    """What is said of the tasks of one student: over tasks first, then task by task; and the figures over tasks."""
    rows = {runs.task: task_rows(runs) for runs in tables}
    pooled = {row["weighting"]: row for row in suite_rows(tables, rng)}
    names = ordered(name for runs in tables for name in runs.weightings)
    over = [pooled[name] for name in names if name in pooled]
    said = suite_sentences(over) if len(tables) > 1 else policy_sentences(tables[0], rows[tables[0].task])
    alone = [runs for runs in tables if runs.panel is not None and UNIFORM not in runs.panel.names]
    blocks: list[Block] = [Bullets([*said, *regret_sentences(rows), *without_uniform(alone)])]
    blocks += [score_table(alone, rows)] if alone else []
    if any(row["tasks"] for row in over):
        blocks += [suite_table(over)] if len(tables) > 1 else []
        blocks += _forest(tables, rows, names)
        blocks += _cost(over, tables)
    blocks += _label_curve(tables, rows, names)
    blocks += headroom_blocks(tables, rows, names, rng)
    rivals = {policy: rival_rows(tables, policy, rng) for policy in policies(names)}
    blocks += _against_router(rivals, tables)
    sections = [_task_section(runs, rows[runs.task]) for runs in tables]
    return blocks, [*sections, *(_rivals(policy, found, tables) for policy, found in rivals.items())], pooled


def _forest(tables: Sequence[TaskRuns], rows: Mapping[str, Sequence[Figures]], names: Sequence[str]) -> list[Block]:
    panels = [
        ForestPanel(
            runs.task,
            {row["weighting"]: interval_of(row, "gain") for row in rows[runs.task] if row.get("gain") is not None},
        )
        for runs in tables
    ]
    panels = [panel for panel in panels if panel.gains]
    shown = [name for name in names if any(name in panel.gains for panel in panels)]
    note = (
        "Difference to uniform (the line at zero) with its interval; each task has its own scale. "
        "An arrow names what lies too far below to be drawn."
    )
    figures = forest_rows(panels, shown)
    words = "; ".join(f"{panel.title}: {_gain_words(panel, shown)}" for panel in panels)
    alt = f"Points over uniform per weighting and task. {words}."
    # The description stands once, with the first of the figures.
    return [
        Text(note, note=True),
        *(Figure(svg, alt if not i else "The same, next tasks.", "full") for i, svg in enumerate(figures)),
    ]


def _gain_words(panel: ForestPanel, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {panel.gains[name][0]:+.1f}" for name in names if name in panel.gains)


_OF_POLICY = {"cost": "policy_cpu_seconds", "wall_cost": "policy_seconds"}


def _cost(rows: Sequence[Figures], tables: Sequence[TaskRuns]) -> list[Block]:
    unit = "cost" if any(row.get("cost") is not None for row in rows) else "wall_cost"
    costs = {row["weighting"]: row[unit] for row in rows if row.get(unit) is not None}
    if not costs:
        return []
    gains = {row["weighting"]: interval_of(row, "gain") for row in rows if row["weighting"] in costs}
    words = "; ".join(f"{name} {TIMES}{costs[name]:.2f}, {gains[name][0]:+.1f} points" for name in costs)
    untold = [
        f"`{name}`"
        for name in policies(costs)
        if any(record.get(_OF_POLICY[unit]) is None for runs in tables for record in _of(runs, name))
    ]
    note = "Cost against gain: CPU seconds of a run, with the training of its policy, over those of uniform."
    if unit == "wall_cost":
        note = note.replace("CPU seconds", "seconds by the clock") + " The clock counts what else the machine did."
    if untold:
        note += f" The records of {', '.join(untold)} do not say what its training took: it is not counted."
    return [
        Text(note, note=True),
        Figure(cost_plot(costs, gains), f"Cost and mean gain per weighting: {words}.", "middle"),
    ]


def _of(runs: TaskRuns, name: str) -> list[Record]:
    return [record for (weighting, _), record in runs.finished.items() if weighting == name]


def _against_router(rivals: Mapping[str, Sequence[Figures]], tables: Sequence[TaskRuns]) -> list[Block]:
    """What reinforcement learning adds to a supervised router, where several policies were made in several ways."""
    rows = {policy: row for policy, found in rivals.items() for row in found if row["rival"] == ROUTER}
    if len(rows) < 2:
        return []
    note = "Each policy minus the supervised router, in points: what reinforcement learning adds."
    return [Text(note, note=True), rival_table(rows, [runs.task for runs in tables], what="policy")]


def _label_curve(
    tables: Sequence[TaskRuns], rows: Mapping[str, Sequence[Figures]], names: Sequence[str]
) -> list[Block]:
    """Gain against the number of labels, of tasks with the same logits of the same teachers."""
    blocks: list[Block] = []
    for curve in label_curves(tables):
        by_count = {count: {row["weighting"]: row for row in rows[task]} for count, task in curve.items()}
        shown = [name for name in names if all(by_count[c].get(name, {}).get("gain") is not None for c in by_count)]
        gains = {name: [interval_of(by_count[count][name], "gain") for count in by_count] for name in shown}
        if not gains:
            continue
        told = [
            {"labels": count, **{name: points(by_count[count][name], "gain") for name in shown}} for count in by_count
        ]
        note = (
            "Points over uniform by the number of labels that weightings may learn from (train, probe and "
            f"validation): {', '.join(curve.values())}, with the same teachers."
        )
        alt = f"Points over uniform against the number of labels, for {', '.join(gains)}."
        blocks += [Text(note, note=True), Figure(label_plot(list(curve), gains), alt, "middle"), Table(told)]
    return blocks


def _rivals(policy: str, rival_figures: Sequence[Figures], tables: Sequence[TaskRuns]) -> Section:
    found = {row["rival"]: row for row in rival_figures}
    rows = [found[name] for name in ordered(found)]
    said = rival_sentences(policy, rows)
    return Section(
        f"{policy} minus every other weighting",
        [*map(Text, said), rival_table({row["rival"]: row for row in rows}, [runs.task for runs in tables])],
        folded=True,
    )


def _task_section(runs: TaskRuns, rows: Sequence[Figures]) -> Section:
    by_name = {row["weighting"]: row for row in rows}
    names = ordered(by_name)
    sentences = [*settings_sentences(runs), *task_sentences(runs, rows)]
    shown = policies(by_name)
    lead = "; ".join(
        f"{name} {points(by_name[name], 'gain')}" for name in shown if by_name[name].get("gain") is not None
    )
    return Section(
        runs.task,
        [
            *(Text(line, note=True) for line in setting_line(runs)),
            task_table(runs, [by_name[name] for name in names]),
            Bullets(sentences),
            *_mean_weights(runs),
        ],
        folded=True,
        lead=lead,
    )


def _mean_weights(runs: TaskRuns) -> list[Block]:
    table = weight_table(runs)
    return [] if table is None else [Text("Mean weight on test rows, as deployed after training:", note=True), table]


# -- what comes after the suites -------------------------------------------------------------------


def _more_tables(tables: Mapping[str, Sequence[Row]], notes: Mapping[str, str]) -> list[Section]:
    said = {caption: [Text(notes[caption], note=True)] if caption in notes else [] for caption in tables}
    return [Section(caption, [*said[caption], Table(list(rows))]) for caption, rows in tables.items() if rows]


def _weights_section(weights: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    parts = {caption: weights_part(summary) for caption, summary in weights.items()}
    below = [Section(caption, [Weights(part)], folded=True) for caption, part in parts.items() if part is not None]
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
