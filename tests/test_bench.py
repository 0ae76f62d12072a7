"""Suites: what a YAML says is what is run, once, whatever dies; what a run measures is what it says."""

import contextlib
import gc
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from filelock import BaseFileLock

from rlkd import workflow
from rlkd.benchmark import running, workers
from rlkd.benchmark.measuring import answers, choice_figures, student_scores, teachers_asked
from rlkd.benchmark.paths import portable
from rlkd.benchmark.policies import policy_kinds
from rlkd.benchmark.running import plan_units, run_suite
from rlkd.benchmark.selection import select
from rlkd.benchmark.suite_files import load_suite
from rlkd.benchmark.workers import Busy, Unit, run_units
from rlkd.cli import main
from rlkd.data import load_task
from rlkd.data.planted import PlantedSettings, planted_case
from rlkd.data.subset import drop_unlabelled, keep_labels, limit_rows, split_train
from rlkd.data.task import SPLITS, Task
from rlkd.errors import ConfigError, OutputDirectoryError, RlkdError, UnknownNameError
from rlkd.logit_cache import LogitCache, read_state
from rlkd.records import append_jsonl, claim, held, locks, read_jsonl, source, unpack_bits, unpack_classes
from rlkd.stats import instance_values
from rlkd.types import Knowledge

SUITES = Path(__file__).parents[1] / "benchmarks" / "suites"

TINY: dict[str, Any] = {
    "seeds": 2,
    "student": {"student": "rlkd/mlp", "max_steps": 10, "batch_size": 32, "learning_rate": "5e-3"},
    "policies": {"policy": {"total_timesteps": 320, "horizon": 10, "n_steps": 10}},
    "weightings": ["uniform", "policy", "policy_shuffle", "oracle"],
    "tasks": [
        {"name": "a", "planted": {"num_teachers": 2, "num_rows": 300}},
        {"name": "b", "planted": {"num_teachers": 3, "num_rows": 300, "teachers": "identical"}, "seeds": [5]},
    ],
}

README = (Path(__file__).parents[1] / "rlkd" / "weighting" / "README.md").read_text(encoding="utf-8")
OWN = (
    README.split("# mine.py\n")[1].split("```")[0]
    + """

class Broken(Surest):
    def weights(self, state):
        raise RuntimeError("not today")
"""
)
"""The weighting that the README shows."""


def suite_file(folder: Path, **changed: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changed}))
    return path


def runs_in(folder: Path) -> list[dict[str, Any]]:
    return [record for record in read_jsonl(folder / "results.jsonl") if record["kind"] == "run"]


def named(records: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    return [(record["task"], record["weighting"], record["seed"]) for record in records]


EXPECTED = {
    *(("a", weighting, seed) for weighting in TINY["weightings"] for seed in (0, 1)),
    *(("b", weighting, 5) for weighting in TINY["weightings"]),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny suite, with its YAML beside it."""
    folder = tmp_path_factory.mktemp("bench")
    run_suite(load_suite(suite_file(folder)), folder / "out")
    return folder


# --- what is run


def test_a_suite_gives_one_line_a_run_with_everything_that_made_it(finished: Path) -> None:
    records = read_jsonl(finished / "out" / "results.jsonl")
    assert set(named(runs_in(finished / "out"))) == EXPECTED
    assert len(runs_in(finished / "out")) == len(EXPECTED)
    assert {(r["kind"], r["task"]) for r in records} == {(k, t) for k in ("run", "task", "policy") for t in "ab"}
    assert all(record["status"] == "ok" and record["suite"] == "tiny" for record in records)
    policies = {record["task"]: record for record in records if record["kind"] == "policy"}
    for run in runs_in(finished / "out"):
        assert {"macro_f1", "matthews", "nll", "ece", "seconds", "fit_seconds", "data", "logits"} <= set(run)
        assert len(run["class_recall"]) == 8
        assert np.mean(run["class_recall"]) == pytest.approx(run["accuracy"], abs=0.1)  # balanced classes
        assert run["settings"]["learning_rate"] == 5e-3
        assert run["peak_memory_mb"] > 50
        learned = run["weighting"].startswith("policy")
        for unit in ("seconds", "cpu_seconds", "steps"):
            assert run[f"policy_{unit}"] == (policies[run["task"]][unit] if learned else 0)
        assert run["steps"] == 10  # the student's
        assert run["environment"]["source"] == source()
        assert 0 < run["cpu_seconds"] < run["seconds"] + 1  # one thread
        assert policies[run["task"]]["steps"] > 10  # trial students, and the agent
        assert run["policy"] == (policies[run["task"]]["hash"] if learned else None)
        assert len(run["mean_weights"]) == len(run["teachers"])
        seen = min(run["rows"]["train"], 10 * 32)
        assert run["teacher_passes"] == len(run["teachers"]) * seen
    uniform = {run["task"]: run for run in runs_in(finished / "out") if run["weighting"] == "uniform"}
    assert uniform["a"]["regret"] == 0.5
    assert uniform["b"]["regret"] == 0  # identical teachers: nothing to regret


def test_splits_that_rewards_choices_and_reports_see_are_different(finished: Path) -> None:
    task, _ = (plan for plan in load_suite(finished / "tiny.yaml").tasks)
    assert task.planted is not None
    data = planted_case(task.planted).task
    ids = [set(data.splits[name].tolist()) for name in SPLITS]
    assert sum(map(len, ids)) == len(set().union(*ids)) == len(data.table)
    assert len(data.training_view().table) == len(data.table) - len(data.splits["test"])
    assert runs_in(finished / "out")[0]["rows"]["test"] == len(data.splits["test"])


def test_a_finished_suite_is_left_as_it_is(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (finished / "out" / "results.jsonl").read_bytes()
    for name in ("run_job", "make_policy", "make_teachers"):
        monkeypatch.setattr(running, name, None)
    records = run_suite(load_suite(finished / "tiny.yaml"), finished / "out")
    assert set(named([r for r in records if r["kind"] == "run"])) == EXPECTED
    assert (finished / "out" / "results.jsonl").read_bytes() == before
    assert not (finished / "out" / ".locks").exists()


def test_more_seeds_and_weightings_add_runs_and_repeat_none(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "out", tmp_path / "out")
    more = select(load_suite(finished / "tiny.yaml"), tasks=["a"], weightings=["entropy"], seeds=3)
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    run_suite(more, tmp_path / "out")
    after = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert after.startswith(before)
    added = named(runs_in(tmp_path / "out"))[len(EXPECTED) :]
    assert set(added) == {("a", w, 2) for w in TINY["weightings"]} | {("a", "entropy", seed) for seed in range(3)}


def test_a_stage_that_fails_is_a_row_and_so_are_the_runs_that_need_it(tmp_path: Path) -> None:
    broken = {"policy": {**TINY["policies"]["policy"], "student": "rlkd/tiny"}}  # reads text
    path = suite_file(tmp_path, policies=broken, tasks=TINY["tasks"][:1], seeds=1)
    records = run_suite(load_suite(path), tmp_path / "out")
    status = {(r["kind"], r.get("weighting")): r["status"] for r in records}
    assert status == {
        ("task", None): "ok",
        ("policy", None): "failed",
        ("run", "uniform"): "ok",
        ("run", "policy"): "failed",
        ("run", "policy_shuffle"): "failed",
        ("run", "oracle"): "ok",
    }
    errors = {r["kind"]: r["error"] for r in records if r["status"] != "ok"}
    assert "reads text, but task 'a' has vectors" in errors["policy"]
    assert "expected the finished policy 'policy'" in errors["run"]
    _, sentences = workflow.run_bench(load_suite(path), tmp_path / "out", jobs=1)
    assert sentences[0].startswith("**3 of 6 runs failed**. policy `policy`: StudentError: ")


PROGRAM = [sys.executable, "-c", "from rlkd.cli import main; main()", "bench", "run"]


def test_two_programs_share_a_suite_and_a_killed_one_costs_nothing_finished(tmp_path: Path) -> None:
    path = suite_file(tmp_path, student={**TINY["student"], "max_steps": 40}, tasks=TINY["tasks"][:1], seeds=4)
    results = tmp_path / "out" / "results.jsonl"
    command = [*PROGRAM, str(path), "-o", str(tmp_path / "out"), "--quiet", "--jobs", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    first, second = (subprocess.Popen(command, **pipes) for _ in range(2))  # type: ignore[call-overload]
    deadline = time.monotonic() + 120
    while not results.exists() or results.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < deadline
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.02)
    first.kill()
    before = results.read_bytes()
    out, _ = second.communicate(timeout=180)
    first.communicate()
    assert (second.returncode, first.returncode) == (0, -signal.SIGKILL), out
    runs = runs_in(tmp_path / "out")
    assert len(runs) == len({run["key"] for run in runs}) == 4 * 4
    assert results.read_bytes().startswith(before.rpartition(b"\n")[0])
    assert all(record["status"] == "ok" for record in read_jsonl(results))


def test_more_processes_change_no_figure(finished: Path, tmp_path: Path) -> None:
    run_suite(load_suite(finished / "tiny.yaml"), tmp_path / "out", jobs=2)
    figures = [
        {(r["task"], r["weighting"], r["seed"]): (r["correct"], r["nll"], r["regret"]) for r in runs_in(folder / "out")}
        for folder in (finished, tmp_path)
    ]
    assert figures[0] == figures[1]


# --- a weighting of one's own


def rlkd_command(*arguments: object) -> tuple[int, str]:
    """Call the door as the shell does, in this process: exit code and what it printed."""
    out = io.StringIO()
    with mock.patch.object(sys, "argv", ["rlkd", *map(str, arguments)]), contextlib.redirect_stdout(out):
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0), out.getvalue()
    return 0, out.getvalue()


def test_a_weighting_of_ones_own_goes_through_compare_bench_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)  # where a user's own module lies
    monkeypatch.setattr(sys, "path", sys.path[:])
    mine = ("--weighting", "mine:Surest")
    path = suite_file(tmp_path, tasks=TINY["tasks"][:1], policies={}, weightings=["uniform"])
    code, out = rlkd_command("bench", "run", path, *mine, "--weighting", "mine:Broken", "--quiet", "--jobs", 1)
    assert code == 1
    assert "2 of 7 runs failed. mine:Broken, seed 0: RuntimeError: not today (mine.py:" in out
    runs = [run for run in runs_in(tmp_path / "runs" / "bench" / "tiny") if run["status"] == "ok"]
    assert {run["weighting"] for run in runs} == {"uniform", "mine:Surest"}
    assert rlkd_command("bench", "report")[0] == 0
    for page in ("results/tiny.md", "report.html"):
        assert "mine:Surest" in (tmp_path / "runs" / "bench" / page).read_text()
    rows = len(load_task("planted").table)
    np.save("t.npy", np.random.default_rng(0).normal(size=(rows, 6)).astype(np.float32))
    data = ("--task", "planted", "--quiet")
    assert rlkd_command("cache", *data, "--teachers", "t.npy", "--output-dir", "cache")[0] == 0
    steps = ("--student", "rlkd/mlp", "--max-steps", 5, "--seeds", 1, "-o", "compared")
    code, out = rlkd_command("compare", *data, "--cache", "cache", *mine, "--weighting", "uniform", *steps)
    assert code == 0
    assert "mine:Surest" in out


def test_bench_report_says_which_lines_carry_no_commit(tmp_path: Path) -> None:
    known = {"environment": {"commit": "0" * 40}}
    line = {"kind": "run", "suite": "s", "task": "t", "weighting": "uniform", "status": "ok", "accuracy": 0.5}
    for seed, environment in enumerate(({"environment": {"commit": None}}, known, {})):
        append_jsonl(tmp_path / "results.jsonl", {**line, "seed": seed, **environment})
    code, out = rlkd_command("bench", "report", tmp_path, "-o", tmp_path)
    assert code == 0
    assert "s: 2 of 3 lines carry no commit; which code made them is not known." in out
    assert "**2 of 3 lines carry no commit**" in (tmp_path / "RESULTS.md").read_text()
    (tmp_path / "results.jsonl").unlink()
    append_jsonl(tmp_path / "results.jsonl", {**line, "seed": 0, **known})
    assert "no commit" not in rlkd_command("bench", "report", tmp_path, "-o", tmp_path)[1]


# --- what a suite may say


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_suite_of_ours_can_be_read(path: Path) -> None:
    suite = load_suite(path)
    running.check_suite(suite)
    assert suite.name == path.stem
    assert suite.description
    units = plan_units(suite)
    names = [unit.name for unit in units]
    assert len(set(names)) == len(names)
    for index, unit in enumerate(units):
        assert set(unit.needs) <= set(names[:index])
    assert (
        sum(isinstance(unit.work, running.Run) and not unit.name.startswith("student") for unit in units)
        == suite.num_runs
    )
    running.check_suite(select(suite, smoke=True))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"wieghtings": []}, ConfigError, "unknown key 'wieghtings'; did you mean 'weightings'"),
        ({"student": {"max_step": 5}}, ConfigError, "student has the unknown key 'max_step'; did you mean 'max_steps'"),
        ({"student": {"learning_rate": "fast"}}, ConfigError, "expected a number, got 'fast'"),
        ({"student": {"max_steps": "many"}}, ConfigError, "max_steps must be >= 1, got 'many'; pass a number"),
        ({"student": None}, ConfigError, "expected student, or students by name"),
        ({"weightings": ["unifrom"]}, UnknownNameError, "unknown weighting 'unifrom'; did you mean 'uniform'"),
        ({"weightings": ["uniform", "uniform"]}, ConfigError, "a list of different names in 'weightings'"),
        ({"weightings": []}, ConfigError, "expected weightings, got none"),
        ({"without": ["entropy"]}, UnknownNameError, "unknown weighting to leave out 'entropy'"),
        ({"policies": {"p": {"kind": "polcy"}}}, UnknownNameError, "kind of policy 'polcy'; did you mean 'policy'"),
        ({"policies": {"p": {"rewrd": "x"}}}, ConfigError, "unknown policy setting 'rewrd'; did you mean 'reward'"),
        ({"policies": {"p": {"reward": "influense"}}}, UnknownNameError, "'influense'; did you mean 'influence'"),
        ({"policies": {"p": {"gamma": 2}}}, ConfigError, r"gamma must lie in \[0, 1\]"),
        *(
            ({"policies": {"p": {"kind": kind, "prest": 1}}}, ConfigError, "no switch 'prest'")
            for kind in policy_kinds()
            if kind not in ("policy", "router", "auto")
        ),
        ({"policies": {"p": {"kind": "router", "x": 1}}}, ConfigError, "a router's settings are"),
        ({"seeds": 0}, ConfigError, "expected a number of seeds"),
        ({"seeds": [1, 1]}, ConfigError, "a list of different ones"),
        ({"seeds": [-1]}, ConfigError, "seed must lie between 0"),
        ({"metric": "accurcy"}, UnknownNameError, "did you mean 'accuracy'"),
        ({"teachers": {"kinds": ["tfidf"]}}, ConfigError, "planted tasks bring their teachers"),
        ({"tasks": []}, ConfigError, "a suite with a list of tasks"),
        ({"tasks": [{"name": "a b", "planted": {}}]}, ConfigError, "every task needs a name"),
        ({"tasks": [{"name": "a"}]}, ConfigError, "expected a source or planted"),
        ({"tasks": [{"name": "a", "planted": {}}] * 2}, ConfigError, "a name of its own, got a, a"),
        ({"tasks": [{"name": "a", "planted": {"slices": "clas"}}]}, ConfigError, "slices must be one of class, region"),
        ({"tasks": [{"name": "a", "source": "${HOME}/x"}]}, UnknownNameError, "unknown place in a suite 'HOME'"),
        (
            {"tasks": [{"name": "a", "source": "digits"}]},
            ConfigError,
            "expected kinds of teachers, sets of them or paths",
        ),
        (
            {"tasks": [{"name": "a", "source": "digits", "teachers": {"kinds": ["tfidf"], "epoch": 1}}]},
            ConfigError,
            "teachers has the unknown key 'epoch'; did you mean 'epochs'",
        ),
    ],
)
def test_a_suite_that_makes_no_sense_is_refused_before_anything_is_written(
    changed: Mapping[str, Any], error: type[RlkdError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = suite_file(tmp_path, **changed)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        workflow.plan_bench(path, None)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["[", "- a", "", "tasks: 5", "\x00"])
def test_a_file_that_is_no_suite_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(ConfigError, match="expected a suite"):
        load_suite(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("teachers", "known"),
    [
        ({"kinds": ["tfidf", "tfidf"]}, False),
        ({"kinds": ["tfidf", "tfidf"], "specialize": "class"}, True),
        ({"sets": {"some": {"kinds": ["tfidf"]}, "rest": {"kinds": ["tfidf"], "specialize": "class"}}}, False),
        ({"sets": {"some": {"kinds": ["tfidf"]}}, "specialize": "domain"}, True),
        ({"paths": ["teachers/a"]}, True),  # their own files say
    ],
)
def test_an_oracle_that_would_know_nothing_is_refused_before_teachers_are_trained(
    tmp_path: Path, teachers: dict[str, Any], known: bool
) -> None:
    task = {"name": "x", "source": "docstrings", "teachers": teachers, "student": {"student": "rlkd/bilstm"}}
    suite = load_suite(suite_file(tmp_path, tasks=[task]))
    if known:
        running.check_suite(suite)
    else:
        with pytest.raises(ConfigError, match="task 'x': the oracle needs teachers that are all specialists"):
            run_suite(suite, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_task_lays_its_settings_over_those_of_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/elsewhere")
    teachers = {"kinds": ["tfidf", "tfidf"], "epochs": 3}
    task = {
        "name": "x",
        "source": "${DATA}/x",
        "teachers": {"epochs": 5},
        "student": {"max_steps": 7},
        "without": ["oracle"],
    }
    (plan,) = load_suite(suite_file(tmp_path, teachers=teachers, tasks=[task], policy_seeds=[3, 4])).tasks
    assert plan.source == {"source": "/elsewhere/x"}
    assert plan.teachers == {"kinds": ["tfidf", "tfidf"], "epochs": 5}
    assert plan.students["rlkd/mlp"].max_steps == 7
    assert plan.students["rlkd/mlp"].batch_size == 32
    assert plan.weightings == ("uniform", "policy", "policy_shuffle")
    assert [plan.policy_of(name) for name in plan.weightings] == [None, ("policy", ""), ("policy", "shuffle")]
    assert [plan.policy_seed(seed) for seed in plan.seeds] == [3, 4]
    (router,) = select(replace_tasks(tmp_path, plan), weightings=["router"]).tasks
    assert router.policies["router"].kind == "router"
    (cuda,) = select(replace_tasks(tmp_path, plan), device="cuda").tasks
    assert cuda.students["rlkd/mlp"].device == cuda.teachers["device"] == cuda.policies["policy"].settings["device"]


def replace_tasks(folder: Path, plan: Any) -> Any:
    return replace(load_suite(folder / "tiny.yaml"), tasks=(plan,))


def test_tasks_that_differ_in_labels_only_share_their_teachers(tmp_path: Path) -> None:
    tasks = [{"name": name, "source": "digits", "labels": n} for name, n in (("few", 30), ("many", 100))]
    path = suite_file(tmp_path, tasks=tasks, teachers={"kinds": ["tfidf"]})
    few, many = load_suite(path).tasks
    assert few.teachers_key == many.teachers_key
    assert few.policy_key("policy", 0) != many.policy_key("policy", 0)
    makers = [unit for unit in plan_units(load_suite(path)) if isinstance(unit.work, running.Teachers)]
    assert makers[1].needs == (makers[0].name,)


ELSEWHERE = {
    "policies": {
        "all": {"kind": "router", "elsewhere": True},
        "one": {"kind": "router", "elsewhere": ["b"]},
        "rewards": {"warm_start": True, "elsewhere": True},
        "unused": {"kind": "router", "elsewhere": ["a"]},
    },
    "weightings": ["uniform"],
    "tasks": [
        {"name": "a", "planted": {"num_rows": 200}, "family": "a", "weightings": ["uniform", "all", "one", "rewards"]},
        {"name": "b", "planted": {"num_rows": 210}, "family": "b", "weightings": []},
        {"name": "c", "planted": {"num_rows": 220}, "family": "c"},
        {"name": "few", "planted": {"num_rows": 210}, "family": "b", "labels": 30},
    ],
}


def test_a_policy_learns_elsewhere_on_all_other_families_or_on_the_tasks_that_it_names(tmp_path: Path) -> None:
    path = suite_file(tmp_path, **ELSEWHERE)
    task = load_suite(path).tasks[0]
    assert {name: plan.others for name, plan in task.policies.items()} == {
        "all": ("b", "c"),
        "one": ("b",),
        "rewards": ("b", "c"),
        "unused": (),
    }
    assert task.policy_key("all", 0) != task.policy_key("one", 0)
    for wrong, message in (
        ("a", "learns on 'a', no task of another family"),
        ("nobody", "learns on 'nobody', no task of another family that has all labels; name some of b, c"),
        (5, "true, false, or names of tasks, got"),
    ):
        policies = {"one": {"kind": "router", "elsewhere": [wrong]}}
        with pytest.raises(ConfigError, match=message):
            load_suite(suite_file(tmp_path, **{**ELSEWHERE, "policies": {**ELSEWHERE["policies"], **policies}}))


def test_a_task_that_is_run_alone_brings_the_tasks_that_its_policies_learn_on(tmp_path: Path) -> None:
    """Their teachers, not their students, by the names of the whole suite: nothing is made twice."""
    suite = load_suite(suite_file(tmp_path, **ELSEWHERE))
    alone = select(suite, tasks=["a"])
    assert [task.name for task in alone.tasks if task.weightings] == ["a"]
    assert [task.name for task in alone.tasks if not task.weightings] == ["b", "c"]
    whole = {unit.name for unit in plan_units(suite)}
    assert {unit.name for unit in plan_units(alone)} < whole
    for names in permutations("abc"):  # others in another order would be another policy
        for some in (names[:1], names[:2], names):
            assert {unit.name for unit in plan_units(select(suite, tasks=some))} <= whole
    (record, *_) = run_suite(select(suite, tasks=["a"], smoke=True), tmp_path / "out")
    assert record["status"] == "ok"
    assert {record["weighting"] for record in runs_in(tmp_path / "out")} == {"uniform", "all", "one", "rewards"}
    assert all(record["status"] == "ok" for record in read_jsonl(tmp_path / "out" / "results.jsonl"))
    assert [task.name for task in select(suite, tasks=["c"]).tasks] == ["c"]


def test_where_data_lie_is_no_part_of_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teachers = {"kinds": ["tfidf", "${ENCODER}"]}
    tasks = [{"name": "x", "source": "${DATA}/x", "teachers": teachers, "students": {"s": {"student": "${ENCODER}"}}}]
    path = suite_file(tmp_path, tasks=tasks, weightings=["uniform", "policy"], student=None)
    units = []
    for place in (None, "/here", "/there/else"):
        for name in ("DATA", "ENCODER"):
            monkeypatch.delenv(name, raising=False) if place is None else monkeypatch.setenv(name, f"{place}/{name}")
        units.append([unit.name for unit in plan_units(load_suite(path))])
    assert units[0] == units[1] == units[2]


def test_records_name_no_place_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCODER", "/home/me/models/encoder")
    record = {"student": "/home/me/models/encoder", "kinds": ["/home/me/models/encoder/x", "tfidf"], "seed": 3}
    assert portable(record) == {"student": "${ENCODER}", "kinds": ["${ENCODER}/x", "tfidf"], "seed": 3}


def test_a_report_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputDirectoryError, match=r"expected results.jsonl in .*, got none; run a suite"):
        workflow.report_bench([tmp_path], tmp_path / "x")


# --- what a run measures


def test_regret_and_selection_by_hand() -> None:
    task = planted_case(PlantedSettings(num_teachers=2, num_rows=100)).task
    matrix = np.array([[True, False], [False, True], [True, True]])  # teacher 2 is right everywhere
    knowledge = Knowledge(by="domain", groups=("x", "y"), matrix=matrix)
    source = LogitCache([np.zeros((100, 8), np.float32)] * 3, "abc", knowledge=knowledge)
    ids = torch.tensor([int(np.flatnonzero(task.table.domains == slice_)[0]) for slice_ in (0, 1, 1)])
    weights = torch.tensor([[0.5, 0.2, 0.3], [0.6, 0.3, 0.1], [0.4, 0.2, 0.4]])
    figures = choice_figures(weights, read_state(task, source, ids), source)
    assert figures["regret"] == pytest.approx((0.2 + 0.6 + 0.4) / 3)
    assert figures["selection_accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)  # the last row is a tie
    silent = LogitCache([np.zeros((100, 8), np.float32)], "a")
    assert choice_figures(weights, read_state(task, silent, ids), silent) == {
        "regret": None,
        "selection_accuracy": None,
    }


@pytest.mark.parametrize(
    ("weights", "asked"),
    [([[0.5, 0.5, 0.0]] * 3, 2), ([[0, 1, 0]] * 3, 1), ([[1, 0, 0], [0, 1, 0]], 3), ([[1 / 3] * 3], 3)],
)
def test_teachers_asked_by_hand(weights: list[list[float]], asked: int) -> None:
    assert teachers_asked(torch.tensor(weights)) == asked


def test_scores_by_hand() -> None:
    logits = np.log(np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.7, 0.3]]))
    scores = student_scores(logits, np.array([0, 0, 1, 1]))
    assert scores["accuracy"] == 0.75
    assert scores["class_recall"] == [1.0, 0.5]
    assert scores["matthews"] == pytest.approx(1 / np.sqrt(3))  # (2*1 - 1*0) / sqrt(3*1*2*2) * 2 by the 2x2 formula


def test_a_record_keeps_what_its_score_needs() -> None:
    logits, labels = np.random.default_rng(0).normal(size=(50, 12)), np.arange(50) % 12
    for metric in ("matthews", "macro_f1"):
        kept = answers(logits, labels, metric)
        assert np.array_equal(unpack_classes(kept["labels"]), labels)
        assert np.array_equal(unpack_classes(kept["predictions"]), logits.argmax(-1))
        assert np.array_equal(unpack_bits(kept["correct"]), logits.argmax(-1) == labels)
        spread = instance_values(metric, unpack_classes(kept["labels"]), unpack_classes(kept["predictions"]))
        assert spread.mean() == pytest.approx(student_scores(logits, labels)[metric])
    assert set(answers(logits, labels, "accuracy")) == {"correct"}


# --- units, claims


class Recorder:
    """Does what it is told, refuses each unit once, and remembers the order."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def do(self, unit: Unit) -> Any:
        self.seen.append(unit.name)
        return Busy() if self.seen.count(unit.name) == 1 and unit.work else unit.name.upper()


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_units_wait_for_what_they_need_and_busy_ones_are_asked_again(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.01)
    units = [Unit("a", True), Unit("b", False, ("a",)), Unit("c", False), Unit("d", False, ("b", "c"))]
    done = [(unit.name, result) for unit, result in run_units(units, Recorder, processes)]
    order = [name for name, _ in done]
    assert sorted(done) == [("a", "A"), ("b", "B"), ("c", "C"), ("d", "D")]
    assert order.index("c") < order.index("a") or processes == 2  # "a" is busy at first, "c" needs nothing
    assert order.index("a") < order.index("b") < order.index("d")


def test_no_lock_has_its_destructor_run_while_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised in one is lost, Ctrl-C too."""
    destroyed: list[Any] = []
    monkeypatch.setattr(BaseFileLock, "__del__", destroyed.append, raising=True)
    with claim(tmp_path, "x") as ours, claim(tmp_path, "x") as again, held(tmp_path / "y"):
        assert (ours, again) == (True, False)
    gc.collect()
    assert destroyed == []


def test_a_claim_is_held_by_one_and_dies_with_its_process(tmp_path: Path) -> None:
    # the file alone: its package would import every library
    holder = f"import sys; from pathlib import Path; sys.path.append({str(Path(locks.__file__).parent)!r})\n"
    holder += "from locks import claim\n"
    holder += "with claim(Path(sys.argv[1]), 'x') as ours: print(ours, flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == "True\n"
        with claim(tmp_path, "x") as ours, claim(tmp_path, "y") as another:
            assert (ours, another) == (False, True)
        other.kill()
    with claim(tmp_path, "x") as ours:
        assert ours
    assert list(tmp_path.iterdir()) == []  # what was claimed and done leaves nothing behind


# --- planted cases and smaller tasks


@pytest.mark.parametrize("slices", ["class", "region", "noise"])
@pytest.mark.parametrize("teachers", [2, 5, 8])
def test_planted_teachers_are_right_where_they_are_best(slices: Any, teachers: int) -> None:
    case = planted_case(PlantedSettings(slices=slices, num_teachers=teachers, num_rows=2000))
    right = case.logits.argmax(-1) == case.task.table.labels[:, None]
    best = case.best.T[case.task.table.domains]
    assert np.array_equal(case.best, np.eye(teachers, dtype=bool))
    assert right[best].mean() > 0.98
    assert right[~best].mean() < 0.25
    assert np.bincount(case.task.table.domains).min() > 2000 / teachers * 0.6
    if slices != "class":  # which slice it is says nothing about the class
        counts = np.histogram2d(case.task.table.domains, case.task.table.labels, bins=(teachers, 8))[0]
        assert counts.min() > 0.4 * counts.mean()


def test_planted_extras() -> None:
    harmful = planted_case(PlantedSettings(extra="harmful", num_rows=1000))
    assert (harmful.logits[:, 3].argmax(-1) == harmful.task.table.labels).mean() < 0.05
    assert not harmful.best[3].any()
    twin = planted_case(PlantedSettings(extra="duplicate", num_rows=1000))
    assert np.array_equal(twin.logits[:, 3], twin.logits[:, 0])
    assert np.array_equal(twin.best[3], twin.best[0])
    same = planted_case(PlantedSettings(teachers="identical", num_rows=1000))
    assert (same.logits == same.logits[:, :1]).all()
    assert same.best.all()
    good = planted_case(PlantedSettings(teachers="good", num_rows=1000))
    assert good.best.all()
    assert not np.array_equal(good.logits[:, 0], good.logits[:, 1])


def test_smaller_tasks_keep_their_rows_apart(task: Task) -> None:
    small = limit_rows(task, {"train": 50, "test": 20})
    assert {name: len(ids) for name, ids in small.splits.items()} == {
        "train": 50,
        "probe": len(task.splits["probe"]),
        "validation": len(task.splits["validation"]),
        "test": 20,
    }
    assert small.fingerprint == limit_rows(task, {"train": 50, "test": 20}).fingerprint
    assert small.fingerprint != limit_rows(task, {"train": 50, "test": 20}, seed=1).fingerprint
    assert limit_rows(task, {"train": 10**6}) is task
    taught, left = split_train(task, 0.25)
    assert task.table.vectors is not None
    rows = [{vector.tobytes() for vector in t.table.vectors[t.splits["train"]]} for t in (taught, left)]  # type: ignore[index]
    assert rows[0].isdisjoint(rows[1])
    assert len(rows[0] | rows[1]) == len(task.splits["train"])
    assert np.array_equal(taught.table.vectors[taught.splits["test"]], task.table.vectors[task.splits["test"]])  # type: ignore[index]


def test_few_labels_are_few_outside_the_test_split_and_unlabelled_rows_can_be_dropped(
    task: Task, cache: LogitCache
) -> None:
    few = keep_labels(task, 30)
    assert {name: len(few.labelled_ids(name)) for name in SPLITS} == {
        "train": 18,
        "probe": 6,
        "validation": 6,
        "test": len(task.splits["test"]),
    }
    assert np.array_equal(few.labels("test"), task.labels("test"))
    part, ids = drop_unlabelled(few)
    assert len(part.splits["train"]) == 18
    assert np.array_equal(part.table.labels, few.table.labels[ids])
    kept = torch.arange(len(ids))
    assert torch.equal(cache.take(ids).rows(kept), cache.rows(torch.from_numpy(ids)))
    for message, call in {
        "10 labels or more": partial(keep_labels, task, 5),
        "labels were to be kept": partial(keep_labels, task, 10**6),
        "must lie between 0 and 1": partial(split_train, task, 1.0),
        "1 row or more": partial(limit_rows, task, {"train": 0}),
        "unknown split 'tran'; did you mean 'train'": partial(limit_rows, task, {"tran": 1}),
    }.items():
        with pytest.raises(RlkdError, match=message):
            call()


def test_what_a_plan_says_is_printed_without_running(tmp_path: Path) -> None:
    plan, folder = workflow.plan_bench(suite_file(tmp_path), str(tmp_path / "out"))
    rows = workflow.bench_plan_rows(plan, folder)
    assert [(row["task"], row["runs"], row["finished"]) for row in rows] == [("a", 8, 0), ("b", 4, 0)]
    assert not folder.exists()
    assert re.fullmatch(r"runs.bench.tiny-smoke", str(workflow.plan_bench(suite_file(tmp_path), None, smoke=True)[1]))
    assert json.dumps(rows)
