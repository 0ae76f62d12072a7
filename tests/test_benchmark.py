import json
import multiprocessing
import re
import shutil
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlkd import processes
from rlkd.benchmark import (
    check_comparison,
    compare,
    compared,
    compared_weightings,
    comparing,
    pack_bits,
    students_beside,
    unpack_bits,
    weights_summary,
)
from rlkd.data.task import UNLABELLED, Task
from rlkd.errors import ConfigError, RlkdError, StudentError, UnknownNameError, WeightingError
from rlkd.features import ObservationConfig
from rlkd.logit_cache import LogitCache
from rlkd.records import append_jsonl, read_jsonl
from rlkd.report import failures, task_sentences, write_report
from rlkd.settings import StudentSettings
from rlkd.stats import group_runs, task_rows
from rlkd.weight_record import WeightRecord
from rlkd.weighting import Evidence, Policy
from rlkd.weighting.router_targets import RouterSettings

SETTINGS = StudentSettings(student="rlkd/mlp", max_steps=10, batch_size=32)

MODULE = """
import torch


class Base:
    requires = frozenset()

    @classmethod
    def build(cls, argument, evidence):
        return cls()

    def weights(self, state):
        return torch.full(state.teacher_logits.shape[:-1], 1 / state.teacher_logits.shape[-2])


class Spy(Base):
    seen = []

    def weights(self, state):
        self.seen.append((state.progress, state.ids.clone(), state.student_logits.clone()))
        return super().weights(state)


class OtherSpy(Spy):
    seen = []


class Broken(Base):
    calls = 0

    def weights(self, state):
        self.calls += 1
        if self.calls == 5:
            raise RuntimeError("the fifth batch\\nis too much")
        return super().weights(state)


class BrokenOnce(Base):
    broken = True

    def weights(self, state):
        if type(self).broken:
            raise RuntimeError("at first")
        return super().weights(state)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{re.sub('[^a-z0-9]', '_', tmp_path.name.lower())}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def scores(records: list[dict[str, Any]]) -> dict[tuple[str, int], str]:
    return {(record["weighting"], record["seed"]): record["correct"] for record in records}


@pytest.fixture(scope="module")
def finished(task: Task, cache: LogitCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two weightings over two seeds."""
    folder = tmp_path_factory.mktemp("compare")
    compare(task, cache, ["uniform", "oracle"], SETTINGS, folder, seeds=(0, 1))
    return folder


def test_one_run_is_one_line_with_everything_that_made_it(task: Task, cache: LogitCache, finished: Path) -> None:
    records = read_jsonl(finished / "runs.jsonl")
    assert [(r["seed"], r["weighting"], r["status"]) for r in records] == [
        (0, "uniform", "ok"),
        (0, "oracle", "ok"),
        (1, "uniform", "ok"),
        (1, "oracle", "ok"),
    ]
    record = records[1]
    assert record["settings"]["max_steps"] == 10
    assert record["teachers"] == ["a", "b", "c"]
    assert record["environment"]["versions"]["torch"] == torch.__version__
    assert unpack_bits(record["correct"]).mean() == record["accuracy"]
    assert record["knowing_mass_early"] == record["knowing_mass_late"] == pytest.approx(1)
    assert len({r["key"] for r in records}) == 4
    assert {path.name for path in finished.iterdir()} == {"runs.jsonl", "weights"}
    weights = json.loads((finished / "weights" / f"{record['key']}.json").read_text())
    assert weights["teachers"] == ["a", "b", "c"]
    assert np.shape(weights["mean"]) == (20, 3, 3)


def test_finished_runs_are_kept_and_nothing_is_repeated(
    task: Task, cache: LogitCache, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished / "runs.jsonl").read_bytes()
    monkeypatch.setattr(comparing, "run_job", None)
    records = compare(task, cache, ["oracle", "uniform"], SETTINGS, finished, seeds=(0, 1))
    assert [record["weighting"] for record in records] == ["oracle", "uniform"] * 2
    assert (finished / "runs.jsonl").read_bytes() == before


def test_labels_alone_learn_from_labelled_rows_alone(
    task: Task, cache: LogitCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = task.table.labels.copy()
    labels[task.splits["train"][::3]] = UNLABELLED
    few = replace(task, table=replace(task.table, labels=labels))
    alone, mixed = compare(few, cache, ["labels", "uniform"], SETTINGS, tmp_path / "c", seeds=(0,))
    assert alone["labelled_only"]
    assert alone["rows"]["train"] == len(few.labelled_ids("train")) < mixed["rows"]["train"]
    assert "falls back" not in caplog.text


def test_a_torn_last_line_costs_one_run(task: Task, cache: LogitCache, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "torn"
    shutil.copytree(finished, folder)
    lines = (finished / "runs.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "runs.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:50])
    records = compare(task, cache, ["uniform", "oracle"], SETTINGS, folder, seeds=(0, 1))
    assert scores(records) == scores(read_jsonl(finished / "runs.jsonl"))
    assert (folder / "runs.jsonl").read_bytes().splitlines(keepends=True)[:3] == lines[:3]


def arrays_of(cache: LogitCache) -> list[Any]:
    return list(cache.rows(torch.arange(len(cache))).numpy().transpose(1, 0, 2))


@pytest.mark.parametrize("change", ["settings", "data", "teachers", "weighting"])
def test_another_comparison_in_the_same_folder_runs_anew(
    change: str, task: Task, cache: LogitCache, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(finished, folder)
    settings, specs = SETTINGS, ["uniform"]
    if change == "settings":
        settings = replace(SETTINGS, learning_rate=1e-3)
    elif change == "data":
        task = replace(task, label_names=tuple(f"new {name}" for name in task.label_names))
    elif change == "teachers":
        cache = LogitCache(
            list(cache.rows(torch.arange(len(cache))).numpy().transpose(1, 0, 2)),
            cache.teacher_names,
            knowledge=cache.knowledge,
            identity="another",
        )
    else:
        specs = ["fixed:1,1,1"]
    compare(task, cache, specs, settings, folder, seeds=(0,))
    assert len(read_jsonl(folder / "runs.jsonl")) == 5


def test_weightings_of_a_seed_share_initial_weights_and_batches(
    task: Task, cache: LogitCache, tmp_path: Path, module: str
) -> None:
    compare(task, cache, [f"{module}:Spy", f"{module}:OtherSpy"], SETTINGS, tmp_path / "c", seeds=(0, 1))
    own = __import__(module)
    mine, others = ([batch for batch in spy.seen if batch[0] < 1] for spy in (own.Spy, own.OtherSpy))  # of training
    assert len(mine) == len(others) == 20
    for (p, ids, logits), (q, other_ids, other_logits) in zip(mine, others, strict=True):
        assert p == q
        assert torch.equal(ids, other_ids)
        assert torch.equal(logits, other_logits)  # the two weightings are equal, so their students stay equal
    assert not torch.equal(mine[0][1], mine[10][1])
    assert set(torch.cat([ids for _, ids, _ in mine]).tolist()) <= set(task.splits["train"].tolist())


def test_a_failed_run_is_a_row_and_the_others_finish(
    task: Task, cache: LogitCache, tmp_path: Path, module: str
) -> None:
    specs = ["uniform", f"{module}:Broken"]
    records = compare(task, cache, specs, SETTINGS, tmp_path / "c", seeds=(0, 1))
    assert [record["status"] for record in records] == ["ok", "failed", "ok", "failed"]
    assert re.fullmatch(rf"RuntimeError: the fifth batch is too much \({module}\.py:\d+\)", records[1]["error"])
    (runs,) = group_runs(records)
    rows = task_rows(runs)
    assert [(row["weighting"], row["seeds"], row["failed"]) for row in rows] == [("uniform", 2, 0), (specs[1], 0, 2)]
    assert "accuracy" in rows[0]
    assert "accuracy" not in rows[1]
    unfinished, failed = task_sentences(runs, rows)
    assert unfinished == f"Without a finished run: `{specs[1]}`."
    assert failed.startswith(f"**2 of 4 runs failed**. `{specs[1]}`, seed 0: RuntimeError: the fifth batch is too much")
    assert failures(records[:1]) == []


def test_a_failed_run_is_tried_again_and_its_newest_record_counts(
    task: Task, cache: LogitCache, tmp_path: Path, module: str
) -> None:
    specs = ["uniform", f"{module}:BrokenOnce"]
    records = compare(task, cache, specs, SETTINGS, tmp_path / "c", seeds=(0,))
    assert [record["status"] for record in records] == ["ok", "failed"]
    __import__(module).BrokenOnce.broken = False
    records = compare(task, cache, specs, SETTINGS, tmp_path / "c", seeds=(0,))
    assert [record["status"] for record in records] == ["ok", "ok"]
    assert len(read_jsonl(tmp_path / "c" / "runs.jsonl")) == 3


@pytest.mark.slow  # two processes import all libraries; the suites' fast test of this name runs the same workers
def test_more_processes_change_no_figure(task: Task, cache: LogitCache, finished: Path, tmp_path: Path) -> None:
    records = compare(task, cache, ["uniform", "oracle"], SETTINGS, tmp_path, seeds=(0, 1), jobs=2)
    assert scores(records) == scores(read_jsonl(finished / "runs.jsonl"))
    assert len(list((tmp_path / "weights").glob("*.json"))) == 4


def test_students_that_are_begun_beside_something_else_are_not_distilled_again(
    task: Task, cache: LogitCache, finished: Path, tmp_path: Path
) -> None:
    arms, seeds = ["uniform", "oracle"], (0, 1)
    with students_beside(task, cache, arms, SETTINGS, tmp_path, seeds=range(100)):
        deadline = time.monotonic() + 60
        while not (tmp_path / "runs.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (beside,) = multiprocessing.active_children()
        records = compare(task, cache, arms, SETTINGS, tmp_path, seeds=seeds)
    deadline = time.monotonic() + 10
    while beside.is_alive():  # the pool's own thread waits for it too, and is told first
        assert time.monotonic() < deadline, "it had most of its students to do"
        time.sleep(0.02)
    assert scores(records) == scores(read_jsonl(finished / "runs.jsonl"))
    keys = [record["key"] for record in read_jsonl(tmp_path / "runs.jsonl")]
    assert 4 <= len(keys) == len(set(keys)) < 200
    with students_beside(task, cache, arms, SETTINGS, tmp_path, seeds=seeds):
        assert multiprocessing.active_children() == []  # nothing is left to do


def test_processes_that_die_are_told(
    task: Task, cache: LogitCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead:
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def __enter__(self) -> "Dead":
            return self

        def __exit__(self, *args: object) -> None: ...

        def submit(self, *args: Any) -> Any:
            raise BrokenProcessPool

    monkeypatch.setattr(processes, "ProcessPoolExecutor", Dead)
    with pytest.raises(RlkdError, match="died, most likely for want of memory; resume with fewer jobs"):
        compare(task, cache, ["uniform"], SETTINGS, tmp_path, jobs=2)


def save_policy(folder: Path, seed: int) -> None:
    Policy.create(ObservationConfig(), training={}, seed=seed).save_pretrained(folder)


@pytest.mark.parametrize("prefix", ["policy:", ""])
def test_a_policy_replaced_in_place_is_run_again(prefix: str, task: Task, cache: LogitCache, tmp_path: Path) -> None:
    specs = [f"{prefix}{tmp_path / 'policy'}"]
    save_policy(tmp_path / "policy", seed=0)
    (first,) = compare(task, cache, specs, SETTINGS, tmp_path / "c", seeds=(0,))
    (same,) = compare(task, cache, specs, SETTINGS, tmp_path / "c", seeds=(0,))
    save_policy(tmp_path / "policy", seed=1)
    (other,) = compare(task, cache, specs, SETTINGS, tmp_path / "c", seeds=(0,))
    assert first["weighting"] == other["weighting"] == "policy"
    assert first == same
    assert first["key"] != other["key"]


def test_names_lose_their_path_only_where_nothing_is_confused(task: Task, cache: LogitCache, tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    for path in (a, b):
        save_policy(Path(path), seed=0)
    specs = [f"policy:{a}", b, f"policy_mean:{a}", "fixed:1,0,0", "fixed:0,1,0"]
    named = compared_weightings(specs, task, cache, tmp_path, SETTINGS)
    assert [arm.name for arm in named] == [f"policy:{a}", b, "policy_mean", "fixed:1,0,0", "fixed:0,1,0"]


def test_a_router_is_fitted_once_and_anew_for_other_teachers(
    task: Task, cache: LogitCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = []

    def fit(evidence: list[Evidence], settings: RouterSettings) -> Policy:
        fitted.extend(len(one.task.table) for one in evidence)
        return Policy.create(settings.observation, training={})

    monkeypatch.setattr(compared, "train_router", fit)
    (arm,) = compared_weightings(["router"], task, cache, tmp_path, SETTINGS)
    (again,) = compared_weightings(["router"], task, cache, tmp_path, SETTINGS)
    assert arm.name == "router"
    assert arm == again
    changed = LogitCache(
        list(cache.rows(torch.arange(len(cache))).numpy().transpose(1, 0, 2))[::-1],
        cache.teacher_names,
        knowledge=cache.knowledge,
        identity="changed",
    )
    (other,) = compared_weightings(["router"], task, changed, tmp_path, SETTINGS)
    assert other.spec != arm.spec
    assert fitted == [len(task.training_view().table)] * 2
    (knowing,) = compared_weightings(["router:knows"], task, cache, tmp_path, SETTINGS)
    assert (knowing.name, knowing.spec != arm.spec) == ("router:knows", True)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"seeds": ()}, ConfigError, "needs weightings and seeds, got 1 and 0"),
        ({"specs": []}, ConfigError, "needs weightings and seeds, got 0 and 3"),
        ({"seeds": (0, -1)}, ConfigError, "seed must lie between 0"),
        ({"jobs": 0}, ConfigError, "needs jobs >= 1, got 0"),
        ({"specs": ["uniform", "uniform"]}, WeightingError, "named once, got uniform, uniform"),
        ({"specs": ["uniform", "entrop"]}, UnknownNameError, "unknown weighting 'entrop'; did you mean 'entropy'"),
        ({"specs": ["fixed:1,2"]}, WeightingError, "one number for each of 3 teachers, got 2"),
        ({"specs": ["router:x"]}, WeightingError, "'router' takes no argument"),
        ({"settings": replace(SETTINGS, student="rlkd/mpl")}, UnknownNameError, "did you mean 'rlkd/mlp'"),
        ({"settings": replace(SETTINGS, student="rlkd/tiny")}, StudentError, "reads text, but task 'planted' has vec"),
        ({"settings": replace(SETTINGS, device="cuda:99")}, ConfigError, "device must be one that this machine has"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    changed: dict[str, Any], error: type[RlkdError], message: str, task: Task, cache: LogitCache, tmp_path: Path
) -> None:
    arguments = {"specs": ["uniform"], "settings": SETTINGS, "seeds": (0, 1, 2), "jobs": 1, **changed}
    specs, settings = arguments.pop("specs"), arguments.pop("settings")
    with pytest.raises(error, match=message):
        check_comparison(task, cache, specs, settings, **arguments)
    with pytest.raises(error, match=message):
        compare(task, cache, specs, settings, tmp_path / "c", **arguments)
    assert list(tmp_path.iterdir()) == []


# --- what records hold


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_bits_survive_packing(count: int) -> None:
    correct = np.random.default_rng(count).random(count) < 0.5
    assert np.array_equal(unpack_bits(pack_bits(correct)), correct)


def test_groups_that_were_not_seen_are_gaps_that_the_report_can_draw(tmp_path: Path) -> None:
    weights = WeightRecord(["sea", "sky"], 2)
    weights.add(0.0, torch.tensor([0, 0, -1]), torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
    summary = weights_summary(weights, ["a", "b"])
    assert summary["mean"][0] == [[0.75, 0.25], [None, None]]
    assert summary["mean"][19] == [[None, None], [None, None]]
    append_jsonl(tmp_path / "x.jsonl", summary)
    write_report(tmp_path / "report.html", title="x", summary=[], weights=summary)
