"""One suite of a benchmark: what is said over its tasks, then task by task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlkd.records import folder_of
from rlkd.report.benchmark_headroom import headroom_blocks
from rlkd.report.benchmark_plots import cost_plot, label_plot
from rlkd.report.benchmark_summary import StudentSummary, student_summary
from rlkd.report.benchmark_tables import rival_table, score_table, setting_line, suite_table, task_table, weight_table
from rlkd.report.document import Block, Bullets, Figure, Link, Section, Table, Text
from rlkd.report.families import interval_of
from rlkd.report.forest_plots import ForestPanel, forest_rows
from rlkd.report.origins import NOT_PAIRED, origin_sentences, without_uniform
from rlkd.report.plots import TIMES
from rlkd.report.weighting_names import ROUTER, ordered, policies
from rlkd.report.wording import (
    points,
    policy_sentences,
    regret_sentences,
    rival_sentences,
    settings_sentences,
    suite_sentences,
    task_sentences,
)
from rlkd.stats import UNIFORM, TaskRuns, label_curves, rival_rows, suite_rows, task_rows

Record = Mapping[str, Any]
Figures = dict[str, Any]

PAGES = "results"
"""Folder of the suites' pages and of the figures, beside ``RESULTS.md``."""
SAID = 2
"""Sentences of a suite that ``RESULTS.md`` repeats."""


@dataclass(frozen=True)
class SuiteReport:
    """What is told of a suite: at length, and in short for each student."""

    section: Section
    summaries: Sequence[StudentSummary]

    @property
    def page(self) -> str:
        """Where its own page lies beside ``RESULTS.md``; names of suites come with records, and lead nowhere else."""
        return f"{PAGES}/{folder_of(self.section.title)}.md"

    @property
    def brief(self) -> Section:
        """The suite as ``RESULTS.md`` shows it: what it says first, what it is made of, and where the rest is."""
        kept: list[Block] = []
        for block in self.section.blocks:
            if isinstance(block, Bullets) and not kept:
                kept.append(Bullets([line for i, line in enumerate(block.lines) if i < SAID or NOT_PAIRED in line]))
            elif isinstance(block, Text) and len(kept) == 1:
                kept.append(block)
        return Section(self.section.title, [*kept, Link("All tables of this suite", self.page)])

    @property
    def folded(self) -> Section:
        """The suite as the HTML page shows it."""
        return replace(self.section, folded=True, lead="; ".join(summary.lead for summary in self.summaries))


def suite_report(
    name: str, records: Sequence[Record], tables: Sequence[TaskRuns], rng: np.random.Generator
) -> SuiteReport:
    """What is told of a suite.

    Args:
        name: Of the suite.
        records: Its lines.
        tables: Its tasks, as :func:`rlkd.stats.group_runs` gives them.
        rng: For interquartile means and rank correlations.
    """
    origin = Text(" ".join(origin_sentences(records)), note=True)
    by_student: dict[str, list[TaskRuns]] = {}
    for runs in tables:
        by_student.setdefault(runs.student, []).append(runs)
    parts = {student: _student_part(group, rng) for student, group in by_student.items()}
    alone = len(parts) == 1
    summaries = [
        summary
        for student, part in parts.items()
        if (summary := student_summary(name, None if alone else student, by_student[student], part.pooled, part.rivals))
    ]
    if alone:
        (part,) = parts.values()
        first, *blocks = part.blocks
        return SuiteReport(Section(name, [first, origin, *blocks], part.sections), summaries)
    firsts = [
        f"Student `{student}`: {line}"
        for student, part in parts.items()
        for block in part.blocks[:1]
        if isinstance(block, Bullets)
        for line in block.lines
    ]
    below = [Section(f"{name}, student {student}", part.blocks, part.sections) for student, part in parts.items()]
    return SuiteReport(Section(name, [Bullets(firsts), origin], below), summaries)


@dataclass(frozen=True)
class _Part:
    """What is said of the tasks of one student, and the figures over them: pooled, and of each policy to its rivals."""

    blocks: list[Block]
    sections: list[Section]
    pooled: Mapping[str, Figures]
    rivals: Mapping[str, Sequence[Figures]]


def _student_part(tables: Sequence[TaskRuns], rng: np.random.Generator) -> _Part:
    """What is said of the tasks of one student: over tasks first, then task by task."""
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
    sections += [_rivals(policy, found, tables) for policy, found in rivals.items()]
    return _Part(blocks, sections, pooled, rivals)


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
