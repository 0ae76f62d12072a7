"""What is reachable: planted teachers where the answer is known, labels or none, and the line to students' gains."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import rlkd.headroom
from rlkd.data.planted import planted
from rlkd.data.task import UNLABELLED, Task
from rlkd.errors import ConfigError, TaskError
from rlkd.headroom import LINES, STUDENTS, crossfitted_router, headroom_rows, lead, reachable, run_figures
from rlkd.logit_cache import LogitCache
from rlkd.report.headroom import headroom_text, headroom_verdict
from rlkd.report.headroom_points import best_fit, learned_points, one_each
from rlkd.report.weighting_names import family, ordered
from rlkd.stats import group_runs
from rlkd.stats.prediction import GainLine, left_out_predictions, right_verdicts, rise, surely
from rlkd.weighting import build_weighting, load_policy
from rlkd.weighting.fixed import Uniform


def teachers(task: Task, kind: str, count: int = 3) -> LogitCache:
    """Teachers that know every ``count``-th class and agree on the same wrong one elsewhere, or know all, or copies."""
    rng, labels = np.random.default_rng(0), task.table.labels
    knows = labels[:, None] % count == np.arange(count) if kind != "good" else np.ones((len(labels), count), bool)
    logits = rng.normal(size=(len(labels), count, task.num_classes)) / 2
    rows, places = np.indices(knows.shape)
    said = np.where(knows, labels[:, None], (labels[:, None] + 1) % task.num_classes)
    logits[rows, places, said] += np.where(knows, 6.0, 3.0)
    if kind == "identical":
        logits[:] = logits[:, :1]
    return LogitCache(list(logits.astype(np.float32).transpose(1, 0, 2)), [f"t{k}" for k in range(count)])


def with_labels(task: Task, kept: int) -> Task:
    """With labels of so many validation rows alone."""
    labels = np.full_like(task.table.labels, UNLABELLED)
    ids = task.splits["validation"][:kept]
    labels[ids] = task.table.labels[ids]
    return replace(task, table=replace(task.table, labels=labels))


def said(task: Task, cache: LogitCache) -> tuple[dict[str, dict[str, Any]], str]:
    """Rows by weighting, and the verdict."""
    rows = headroom_rows(task, cache, "validation")
    passes = len(task.table) * len(cache.teacher_names)
    whole = {"what": "all", "split": "validation", "labels": len(task.labelled_ids("validation"))}
    whole |= {"teacher_passes": passes}
    assert headroom_text([whole, *rows]).endswith(headroom_verdict([whole, *rows]))
    return {row["what"]: row for row in rows}, headroom_verdict([whole, *rows])


def test_the_lead_of_a_label_by_hand() -> None:
    targets = torch.tensor([[0.5, 0.5, 0.0], [0.8, 0.2, 0.0], [0.8, 0.2, 0.0], [0.9, 0.1, 0.0]])
    even, ahead, behind, clear = lead(targets, torch.tensor([0, 0, 1, 0]), 0.5).tolist()
    assert even == 0.5
    assert ahead == pytest.approx(0.5 * (1 + math.erf(math.log(4) / 0.5 / math.sqrt(2))))
    assert behind == pytest.approx(1 - ahead)
    assert 0 < clear - ahead < 0.005  # sharper than clear is hardly better


def test_specialists_leave_something_to_reach_and_policy_and_router_reach_it(task: Task) -> None:
    rows, verdict = said(task, teachers(task, "specialists"))
    assert rows["uniform"]["accuracy"] < 0.2
    for name in ("auto", "router"):
        assert rows[name]["measured"]
        assert rows[name]["reachable"] > 0.5
        assert rows[name]["expected_gain_low"] < rows[name]["expected_gain"] <= 100
    assert not verdict.startswith("Use uniform")
    assert f"{3 * len(task.table):,} teacher passes" in verdict


@pytest.mark.parametrize(
    ("auto", "router", "used"),
    [(3.0, 3.2, "auto"), (3.0, 6.0, "router"), (3.0, None, "auto"), (0.1, 0.9, "router"), (-1.0, 0.3, "uniform")],
)
def test_what_verdicts_name(auto: float, router: float | None, used: str) -> None:
    whole = {"what": "all teachers", "split": "validation", "labels": 500, "teacher_passes": 1200}
    rows = [
        {"what": name, "measured": True, "expected_gain": gain, "expected_gain_low": gain - 1, "seconds": 2.2}
        | {"expected_gain_high": gain + 1, "reachable": gain / 100, "error": 0.005}
        for name, gain in (("auto", auto), ("router", router))
        if gain is not None
    ]
    verdict = headroom_verdict([whole, *rows])
    assert verdict.startswith(f"Use {used}")
    assert f"{max(auto, router or auto) if used != 'auto' else auto:+.1f} [" in verdict
    assert "2 s of fitting" in verdict or used != "router"
    old = {"what": "all teachers", "best_per_instance": 0.8, "equal_mixture": 0.5}
    assert "up to 30.0 points over equal weights, but only labels can make it" in headroom_verdict([old])


@pytest.mark.parametrize("kind", ["identical", "good"])
def test_where_all_are_alike_or_good_nothing_is_reachable(task: Task, kind: str) -> None:
    rows, verdict = said(task, teachers(task, kind))
    assert abs(rows["router"]["reachable"]) < 1e-3
    auto = rows["auto"]
    assert auto["abstains"]
    assert auto["reachable"] == auto["expected_gain_low"] == auto["expected_gain_high"] == 0
    assert verdict.startswith("Use uniform")
    assert "less than half a point" in verdict or f"would change {auto['change']:.0%} of what" in verdict


def test_one_teacher_and_two_classes() -> None:
    task = planted(num_rows=300, num_classes=2, num_domains=2)
    rows, verdict = said(task, teachers(task, "specialists", 1))
    assert list(rows) == ["uniform", "auto"]
    assert rows["auto"]["reachable"] == 0
    assert verdict.startswith("Use uniform")
    rows, _ = said(task, teachers(task, "specialists", 2))
    assert rows["auto"]["reachable"] > rows["uniform"].get("reachable", 0)


@pytest.mark.parametrize(("labels", "begins"), [(0, "Without labels"), (1, "With 1 labels"), (9, "With 9 labels")])
def test_few_labels_and_none_give_a_hint_that_says_so(task: Task, labels: int, begins: str) -> None:
    rows, verdict = said(with_labels(task, labels), teachers(task, "specialists"))
    assert list(rows) == ["auto"]
    assert not rows["auto"]["measured"]
    assert verdict.startswith("Use auto")
    assert f"{begins} this is a hint, not a measurement" in verdict


def test_a_hint_reads_no_label_and_nothing_to_look_at_is_told(task: Task) -> None:
    cache, ids, policy = teachers(task, "specialists"), task.splits["validation"], load_policy("auto")
    hints = [reachable(policy, one, cache, ids, labels=False) for one in (task, with_labels(task, 0))]
    assert hints[0] == hints[1]
    nothing = {"train": np.arange(len(task.table)), "probe": np.arange(0), "validation": np.arange(0)}
    with pytest.raises(TaskError, match="name another split"):
        headroom_rows(replace(task, splits=nothing), cache, "validation")


@pytest.mark.parametrize("pool", [True, False])
def test_no_router_is_judged_on_rows_that_it_learned(monkeypatch: pytest.MonkeyPatch, task: Task, pool: bool) -> None:
    taught = []

    def train(evidence: Any, plan: Any) -> Uniform:
        taught.append(set(np.flatnonzero(evidence.task.table.labels != UNLABELLED).tolist()))
        return Uniform()

    monkeypatch.setattr(rlkd.headroom, "train_router", train)
    task = task if pool else with_labels(task, 20)
    ids = task.labelled_ids("validation")
    router = crossfitted_router(task, teachers(task, "good"), ids)
    assert router is not None
    assert len(taught) == (1 if pool else 5)
    judged = [set(ids.tolist()) - known for known in taught]
    assert set().union(*judged) == set(ids.tolist())
    assert sum(map(len, judged)) == len(ids)
    assert not set().union(*taught) & set(task.splits["test"].tolist())


def test_a_run_keeps_what_could_be_known_before_it(task: Task) -> None:
    cache = teachers(task, "specialists")
    equal = run_figures(build_weighting("uniform", task, cache), task, cache)
    assert equal is not None
    assert equal["own"] == equal["equal"]
    assert all(figures["gain"] == figures["hint"] == 0 for figures in equal["by_student"].values())
    assert len(equal["by_student"]) == len(STUDENTS)
    assert run_figures(build_weighting("best_per_instance", task, cache), task, cache) is None
    assert run_figures(Uniform(), with_labels(task, 0), cache) is None


# --- the line


def synthetic(count: int, slope: float = 80.0, noise: float = 0.2) -> tuple[Any, Any, list[str]]:
    """What is reachable on tasks, and gains on a known line, the further off the more there is."""
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=count)) / 10
    return x, slope * x * (1 + noise * rng.normal(size=count)), [f"task {i}" for i in range(count)]


def test_a_known_line_is_found_and_its_intervals_cover() -> None:
    x, y, tasks = synthetic(200)
    line = GainLine.fit(x, y, tasks)
    assert abs(line.slope - 80) < 3 * line.error < 10
    found = left_out_predictions(x, y, tasks)
    assert 0.9 <= np.mean([one.low <= gain <= one.high for one, gain in zip(found, y, strict=True)]) <= 1
    assert right_verdicts([one.mean for one in found], y) > 0.9
    assert line.predicted(0.1, error=0.05).high > line.predicted(0.1).high > line.predicted(0.1).mean
    repeated = GainLine.fit([*x, *x], [*y, *y], [*tasks, *tasks])
    assert repeated.record() == pytest.approx(line.record())  # it is tasks that count, not points


def test_what_few_rows_leave_open_is_not_reachable() -> None:
    assert [surely(x, 0.25) for x in (2.0, 0.5, 0.25, 0.0, -0.25, -0.5, -2.0)] == [1.5, 0, 0, 0, 0, 0, -1.5]
    assert surely(0.1, 0.0) == 0.1


def test_students_of_a_noise_count_together_however_many_rows_they_average() -> None:
    found = {
        "1 alike, 0.25 nats": {"gain": 0.5, "gain_error": 0.125, "hint": 0.0, "hint_error": 1.0},
        "3 alike, 0.25 nats": {"gain": -0.25, "gain_error": 0.25, "hint": 0.0, "hint_error": 1.0},
        "3 alike, 0.5 nats": {"gain": 9.0, "gain_error": 9.0, "hint": 9.0, "hint_error": 0.0},
    }
    assert rise(found, "0.25 nats", "gain") == (0.125, 0.1875, 0.125)  # surely: (0.25 + 0) / 2
    assert rise(found, "0.5 nats", "hint") == (9.0, 0.0, 9.0)


def test_a_task_has_no_part_in_its_own_prediction() -> None:
    x, y, tasks = synthetic(6)
    changed = y.copy()
    changed[2] = -50.0
    assert left_out_predictions(x, y, tasks)[2] == left_out_predictions(x, changed, tasks)[2]
    assert left_out_predictions(x, y, tasks)[3] != left_out_predictions(x, changed, tasks)[3]
    with pytest.raises(ConfigError, match="3 tasks"):
        GainLine.fit(x[:2], y[:2], tasks[:2])


def test_the_shipped_lines_are_those_of_their_points() -> None:
    lines = json.loads(LINES.read_text(encoding="utf-8"))
    points = lines["points"]
    for name, key in (("measured", "reachable"), ("hinted", "hint")):
        fitted = GainLine.fit([p[key] for p in points], [p["gain"] for p in points], [p["family"] for p in points])
        assert fitted.record() == pytest.approx(lines[name], rel=1e-3)


def runs(task: str, gain: float, reached: float | None) -> list[dict[str, Any]]:
    """Two seeds of equal weights and of a policy."""
    other = {"gain": 0.3 - (reached or 0), "hint": 0.0, "gain_error": 0.01, "hint_error": 0.01}
    own = {"gain": reached, "hint": reached, "gain_error": 0.01, "hint_error": 0.03}
    lower = {"gain": own["gain"] / 2 if reached else reached, "hint": 0.0, "gain_error": 0.01, "hint_error": 0.01}
    found = {"rows": 100, "by_student": {"1 alike, a": own, "3 alike, a": lower, "1 alike, b": other}}
    head = {"kind": "run", "status": "ok", "task": task, "student": "s", "metric": "accuracy"}
    return [
        {**head, "weighting": name, "seed": seed, "accuracy": 0.5 + more}
        | ({"policy": "hash"} if name != "uniform" else {})
        | ({"reachable": found} if reached is not None and name != "uniform" else {})
        for name, more in (("uniform", 0.0), ("policy", gain), ("policy_shuffle", -gain))
        for seed in range(2)
    ]


def test_auto_is_drawn_as_the_policy_that_it_is_and_stands_beside_it() -> None:
    assert [family(name) for name in ("auto", "auto:here", "policy", "router")] == ["policy"] * 3 + ["other"]
    assert ordered(["policy", "auto", "mine", "router"]) == ["mine", "router", "auto", "policy"]


def test_points_are_of_runs_that_say_what_was_reachable() -> None:
    lines = [run for i in range(6) for run in runs(f"task{i}-30", 0.05 * i, 0.04 * i if i < 5 else None)]
    points = learned_points(group_runs(lines))
    assert [point.task for point in points] == [f"task{i}-30" for i in range(5)]
    assert {point.weighting for point in points} == {"policy"}
    router = replace(points[0], weighting="router")
    shipped = replace(points[0], weighting="policy_shipped")
    assert one_each([router, points[0], shipped, points[1]]) == [shipped, points[1]]
    assert [round(points[2].surely("a", kind), 9) for kind in ("gain", "hint")] == [0.04, 0.01]
    fit = best_fit(points)
    assert fit is not None
    assert (fit.student, fit.rank_correlation) == ("a", pytest.approx(1.0))
    assert best_fit(points[:3]) is None
