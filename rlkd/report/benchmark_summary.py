"""A benchmark in short: a row a suite, and the first screen of its page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlkd.report.document import Bullets, Figure, Opening, Text
from rlkd.report.families import Interval, interval_of
from rlkd.report.forest_plots import gain_plot
from rlkd.report.tables import Row
from rlkd.report.weighting_names import ROUTER, control_of, ordered, policies
from rlkd.report.wording import brief_sentences, points
from rlkd.stats import ORACLE, TaskRuns, task_rows, verdict

Figures = dict[str, Any]

SHUFFLE = "its shuffle"
LABELS = {"policy": "policy", "policy_shuffle": SHUFFLE, ROUTER: "supervised router", ORACLE: ORACLE}
"""Of the picture."""


@dataclass(frozen=True)
class StudentSummary:
    """The first policy of a suite and what stands beside it, over the tasks of one student."""

    suite: str
    student: str | None
    """None where the suite has one only."""
    tasks: int
    policy: str
    figures: Mapping[str, Figures]
    """Gains over uniform of the policy, its shuffle, the router and the oracle; empty where one was not run."""
    over_shuffle: Figures
    """Mean of the policy less that of its shuffle, with its interval; empty likewise."""
    over_router: Figures

    @property
    def name(self) -> str:
        """Of the suite, with the student where there are several."""
        return self.suite if self.student is None else f"{self.suite}, {self.student}"

    @property
    def lead(self) -> str:
        """The policy's gain, in a few words."""
        student = "" if self.student is None else f"{self.student}: "
        return f"{student}{self.policy} {points(self.figures['policy'], 'gain')}"

    @property
    def cells(self) -> Row:
        """A row of the table over suites, in points over uniform."""
        row = self.figures["policy"]
        return {
            "suite": self.suite,
            "student": self.student,
            "tasks": self.tasks,
            "policy": f"{self.policy}: {points(row, 'gain')}",
            "pays / same / costs": f"{row['pays']} / {row['same']} / {row['costs']}",
            **{what: points(figures, "gain") for what, figures in self.figures.items() if what != "policy"},
        }

    @property
    def marks(self) -> dict[str, Interval]:
        """What a row of the picture shows, by weighting."""
        names = {"policy": "policy", SHUFFLE: "policy_shuffle", "router": ROUTER, "oracle": ORACLE}
        return {
            names[what]: interval_of(figures, "gain")
            for what, figures in self.figures.items()
            if figures.get("gain") is not None
        }


def student_summary(
    suite: str,
    student: str | None,
    tables: Sequence[TaskRuns],
    pooled: Mapping[str, Figures],
    rivals: Mapping[str, Sequence[Figures]],
) -> StudentSummary | None:
    """Sum up the tasks of one student; None without a policy that can be paired with uniform.

    Args:
        suite: Its name.
        student: Its name; None where the suite has one only.
        tables: The tasks.
        pooled: Weighting to its row of :func:`rlkd.stats.suite_rows`.
        rivals: Policy to its rows of :func:`rlkd.stats.rival_rows`.
    """
    shown = [name for name in policies(pooled) if pooled[name].get("gain") is not None]
    if not shown:
        return None
    policy = shown[0]
    shuffle = control_of(policy, "shuffle", list(pooled))
    beside = {"policy": policy, SHUFFLE: shuffle, "router": ROUTER, "oracle": ORACLE}
    against = {row["rival"]: row for row in rivals[policy]}
    return StudentSummary(
        suite=suite,
        student=student,
        tasks=len(tables),
        policy=policy,
        figures={what: pooled.get(name or "", {}) for what, name in beside.items()},
        over_shuffle=against.get(shuffle or "", {}),
        over_router=against.get(ROUTER, {}),
    )


def opening(summaries: Sequence[StudentSummary], suites: Mapping[str, Sequence[TaskRuns]]) -> Opening:
    """The first screen: does the policy pay, the picture of it, and what its controls say.

    Args:
        summaries: Of every suite and student with a policy.
        suites: Tasks of each suite.
    """
    tables = [runs for group in suites.values() for runs in group]
    if len(tables) == 1:
        return _opening_of_task(tables[0])
    if not summaries:
        return Opening("No policy was run beside equal weights.")
    rows = {summary.name: summary.marks for summary in summaries}
    of_tasks = len(summaries) == 1
    if of_tasks:
        rows = _task_marks(summaries[0], tables)
    what = "of each task" if of_tasks else "over the tasks of each suite"
    note = f"Means {what}, with 95% intervals; filled where the interval leaves zero out."
    words = "; ".join(f"{name} {marks['policy'][0]:+.1f}" for name, marks in rows.items() if "policy" in marks)
    picture = Figure(gain_plot(rows, LABELS), f"Points of the policy over equal weights: {words}.")
    return Opening(_verdict(summaries), [picture, Text(note, note=True)], [Bullets(_controls(summaries))])


def _opening_of_task(runs: TaskRuns) -> Opening:
    """The first screen of a single task: every weighting is a row of the picture."""
    rows = {row["weighting"]: row for row in task_rows(runs)}
    shown = {
        name: {name: interval_of(rows[name], "gain")} for name in ordered(rows) if rows[name].get("gain") is not None
    }
    said, *beside = brief_sentences(runs, list(rows.values()))
    if not shown:
        return Opening(said, [], [Bullets(beside)] if beside else [])
    words = "; ".join(f"{name} {marks[name][0]:+.1f}" for name, marks in shown.items())
    picture = Figure(gain_plot(shown), f"Points over equal weights: {words}.")
    return Opening(
        said,
        [picture, Text("With 95% intervals; filled where the interval leaves zero out.", note=True)],
        [Bullets(beside)],
    )


def _task_marks(summary: StudentSummary, tables: Sequence[TaskRuns]) -> dict[str, dict[str, Interval]]:
    """Rows of the picture of one suite: its tasks."""
    found: dict[str, dict[str, Interval]] = {}
    for runs in tables:
        rows = {row["weighting"]: row for row in task_rows(runs) if row.get("gain") is not None}
        shuffle = control_of(summary.policy, "shuffle", list(rows))
        names = {"policy": summary.policy, "policy_shuffle": shuffle, ROUTER: ROUTER, ORACLE: ORACLE}
        found[runs.task] = {what: interval_of(rows[name], "gain") for what, name in names.items() if name in rows}
    return {task: marks for task, marks in found.items() if marks}


def _verdict(summaries: Sequence[StudentSummary]) -> str:
    """Does the policy pay?"""
    rows = [summary.figures["policy"] for summary in summaries]
    pays, costs, tasks = (sum(row[key] for row in rows) for key in ("pays", "costs", "tasks"))
    on = f"**pays on {pays} of {tasks} tasks** and costs accuracy on {costs}"
    if len(summaries) == 1:
        return f"`{summaries[0].policy}` {on}: {points(rows[0], 'gain')} points over equal weights on the mean."
    least, *_, most = sorted(summaries, key=lambda summary: summary.figures["policy"]["gain"])
    ends = [f"{points(summary.figures['policy'], 'gain')} ({summary.name})" for summary in (least, most)]
    return f"The learned policy {on}; means of suites go from {ends[0]} to {ends[1]} points over equal weights."


def _controls(summaries: Sequence[StudentSummary]) -> list[str]:
    """Do instances matter, and did rewards add to the router?"""
    of = "suites" if len(summaries) > 1 else "suite"
    said = []
    shuffles = [verdict(summary.over_shuffle, "mean") for summary in summaries if summary.over_shuffle]
    if shuffles:
        said.append(
            f"**Instances matter** in {_count(shuffles, 'pays')} {of}: shuffling the policy's weights over them surely "
            "costs accuracy there; elsewhere it is not sure to."
        )
    routers = [verdict(summary.over_router, "mean") for summary in summaries if summary.over_router]
    if routers:
        said.append(
            f"**Rewards added** to the supervised router in {_count(routers, 'pays')} {of}; the router alone is surely "
            f"better in {_count(routers, 'costs')}."
        )
    return said


def _count(sides: Sequence[str | None], side: str) -> str:
    return f"{sides.count(side)} of {len(sides)}"
