"""Fit the lines from what is reachable to what students gain, which ``rlkd headroom`` predicts with.

``python benchmarks/fit_headroom.py [FILE ...]`` reads runs, by default of all suites in ``benchmarks/results``, whose
records say what was reachable, and writes ``rlkd/headroom.json``. Which student is imagined is chosen by how well lines
of other tasks tell a task's gains: rank correlation, and verdicts of more or less than half a point.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rlkd.headroom import LINES
from rlkd.records import commit, write_json_atomic
from rlkd.report.headroom_points import HINTED, MEASURED, Fit, best_fit, learned_points, one_each
from rlkd.stats import group_runs
from rlkd.stats.prediction import noise_of
from rlkd.workflow.bench import read_suites

RESULTS = Path(__file__).parent / "results"
KINDS = {"reachable": MEASURED, "hint": HINTED}
NOTE = "Fitted by benchmarks/fit_headroom.py on the points below; every task counts once."


def main(arguments: Sequence[str]) -> None:
    """Fit, print how good the lines are on tasks left out, and write them."""
    files = [Path(name) for name in arguments] or sorted(RESULTS.glob("*.jsonl"))
    suites = read_suites(files)
    points = one_each(learned_points(runs for records in suites.values() for runs in group_runs(records)))
    for student in dict.fromkeys(noise_of(name) for name in points[0].reachable) if points else ():
        for kind in (MEASURED, HINTED):
            said(kind, best_fit(points, kind, student))
    measured = best_fit(points)
    hinted = None if measured is None else best_fit(points, HINTED, measured.student)
    if measured is None or hinted is None:
        sys.exit(f"expected runs of four tasks that say what was reachable, got {len(points)} points; run a suite anew")
    lines = {
        "student": measured.student,
        "measured": measured.line.record(),
        "hinted": hinted.line.record(),
        "left_out": {name: quality(fit) for name, fit in (("measured", measured), ("hinted", hinted))},
        "suites": list(suites),
        "note": NOTE,
        "commit": commit(),
        "points": [
            {"task": point.task, "family": point.family, "student": point.student, "weighting": point.weighting}
            | {"gain": round(point.gain, 3)}
            | {name: round(point.surely(measured.student, kind), 5) for name, kind in KINDS.items()}
            for point in points
        ],
    }
    write_json_atomic(LINES, lines)
    print(f"wrote {LINES}: {measured.student}, of {measured.line.tasks} tasks")


def quality(fit: Fit) -> dict[str, float]:
    """How good predictions of tasks left out are."""
    figures = {"rank_correlation": fit.rank_correlation, "right_verdicts": fit.right}
    figures |= {"right_where_sure": fit.right_where_sure, "sure": float(fit.sure)}
    figures |= {"covered": fit.covered, "points_off": fit.off}
    return {name: round(value, 3) for name, value in figures.items()}


def said(kind: str, fit: Fit | None) -> None:
    """Print the quality of one imagined student."""
    if fit is not None:
        print(f"{fit.student}, {kind}: slope {fit.line.slope:.1f}, spread {fit.line.spread:.1f}, {quality(fit)}")


if __name__ == "__main__":
    main(sys.argv[1:])
