"""``rlkd ask``: a strategy, a ledger and a budget in, a cache with gaps out that all other commands read."""

import contextlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import rlkd.cli
from rlkd.asking import Pool, TeacherBank
from rlkd.data import Task, load_task, planted_logits
from rlkd.logit_cache import LogitCache, load_cache
from rlkd.records import read_jsonl

TASK = ("--task", "planted")
STUDENT = ("--student", "rlkd/mlp", "--max-steps", 8, "--batch-size", 32, "--quiet")


class FirstRows:
    """All teachers about the first rows, the first teacher about the others; a strategy of one's own."""

    def run(self, pool: Pool, bank: TeacherBank, seed: int) -> None:
        for teacher in (1, 2):
            bank.ask(teacher, pool.ids[:20])
        bank.ask(0, pool.ids)


class Broken(FirstRows):
    """Breaks in the middle."""

    def run(self, pool: Pool, bank: TeacherBank, seed: int) -> None:
        bank.ask(0, pool.ids[:30])
        raise KeyboardInterrupt


OWN = "own.strategies:"
"""A module that stands for a user's."""


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own.strategies", sys.modules[__name__])


def command(*arguments: object) -> tuple[int, str, str]:
    """Call the door as the shell does: its code, and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["rlkd", *map(str, arguments)]
    code: Any = 0
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            rlkd.cli.main()
        except SystemExit as stop:
            code = stop.code or 0
    return code, out.getvalue(), err.getvalue()


def succeeded(*arguments: object) -> str:
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    return out


def refused(message: str, *arguments: object) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert re.search(message, err), err


@pytest.fixture(scope="module")
def whole() -> Task:
    return load_task("planted")


@pytest.fixture(scope="module")
def teachers(whole: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of logits."""
    folder = tmp_path_factory.mktemp("teachers")
    for k, name in enumerate(("small", "medium", "large")):
        np.save(folder / f"{name}.npy", planted_logits(whole)[:, k].astype(np.float32))
    return folder


def ask(teachers: Path, folder: Path, *arguments: object) -> tuple[object, ...]:
    named = [word for name in ("small", "medium", "large") for word in ("--teachers", teachers / f"{name}.npy")]
    return ("ask", *TASK, *named, "-o", folder, "--quiet", *arguments)


def rows_of(folder: Path, *arguments: object) -> list[dict[str, Any]]:
    succeeded(*arguments, "--json", folder / "rows.json")
    rows: list[dict[str, Any]] = json.loads((folder / "rows.json").read_text())
    return rows


def answered(cache: LogitCache) -> np.ndarray[Any, Any]:
    mask = cache.mask_rows(torch.arange(len(cache)))
    assert mask is not None
    return mask.numpy()


def test_what_was_asked_is_a_cache_that_other_commands_read(whole: Task, teachers: Path, tmp_path: Path, caplog: Any):
    cache = tmp_path / "cache"
    run = ask(teachers, cache, "--strategy", "explore:0.05", "--budget", 400, "--price", "large=4")
    rows = rows_of(tmp_path, *run)
    assert [row["teacher"] for row in rows] == ["small", "medium", "large"]
    mask = answered(load_cache(cache, whole))
    for k, row in enumerate(rows):
        assert row["asked"] == row["answered"] == mask[:, k].sum()
        assert (row["refused"], row["unsettled"]) == (0, 0)
        assert row["spent"] == row["asked"] * (4 if k == 2 else 1)
    train = whole.splits["train"]
    assert 390 < sum(row["spent"] for row in rows) <= 400
    assert not mask[np.setdiff1d(np.arange(len(mask)), train)].any()
    assert [line["strategy"] for line in read_jsonl(cache / "asked.jsonl")] == ["explore:0.05"]
    succeeded("distill", *TASK, "--cache", cache, "-o", tmp_path / "student", "--trial-students", 0, *STUDENT)
    arms = ("--weighting", "uniform", "--weighting", "auto", "--seeds", 1, "--trial-students", 0)
    succeeded("compare", *TASK, "--cache", cache, "-o", tmp_path / "compared", *arms, *STUDENT)
    assert f"of {len(train)} train rows {mask.any(1).sum()} have answers" in caplog.text
    runs = {run["weighting"]: run for run in read_jsonl(tmp_path / "compared" / "runs.jsonl")}
    assert set(runs) == {"uniform", "auto"}
    assert all(run["status"] == "ok" and run["mean_weights"] is run["reachable"] is None for run in runs.values())
    assert runs["uniform"]["teacher_passes"] == round(mask.sum() / len(train) * 8 * 32)
    assert "Teachers were asked about no test row" in (tmp_path / "compared" / "report.html").read_text()
    refused("expected rows of validation that all teachers answered about", "headroom", *TASK, "--cache", cache)
    looked = rows_of(tmp_path, "headroom", *TASK, "--cache", cache, "--split", "train")
    assert looked[0]["rows"] == mask.all(1).sum()
    assert looked[0]["teacher_passes"] == mask.sum()


def test_a_dry_run_asks_nobody_and_writes_nothing(whole: Task, teachers: Path, tmp_path: Path) -> None:
    run = ask(teachers, tmp_path / "cache", "--budget", 100, "--price", "large=2.5")
    rows = rows_of(tmp_path, *run, "--dry-run")
    count = len(whole.splits["train"])
    assert [(row["to_ask"], row["costs_at_most"]) for row in rows] == [
        (count, count),
        (count, count),
        (count, 2.5 * count),
    ]
    assert "At most 100 would be spent" in succeeded(*run, "--dry-run")
    assert not (tmp_path / "cache").exists()
    succeeded(*ask(teachers, tmp_path / "cache", "--budget", 20, "--strategy", "random"))
    left = sum(row["to_ask"] for row in rows_of(tmp_path, *run, "--dry-run"))
    assert left == 3 * count - 20
    assert "At most 80 would be spent: the budget is 100, 20 of it spent before" in succeeded(*run, "--dry-run")


def test_another_call_goes_on_and_pays_nothing_twice(whole: Task, teachers: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = rows_of(tmp_path, *ask(teachers, folder, "--budget", 60, "--strategy", "random", "--seed", 3))
    before = load_cache(folder, whole)
    assert rows_of(tmp_path, *ask(teachers, folder, "--budget", 60, "--strategy", "random", "--seed", 3)) == first
    assert load_cache(folder, whole).identity == before.identity
    out = succeeded(*ask(teachers, folder, "--budget", 150, "--strategy", f"{OWN}FirstRows"))
    after = load_cache(folder, whole)
    assert (answered(before) <= answered(after)).all()
    assert after.answers == 150
    assert "Spent 150 of 150, 60 of it before" in out
    ids = torch.from_numpy(np.flatnonzero(answered(after)[:, 0]))
    assert torch.equal(after.rows(ids)[:, 0], torch.from_numpy(planted_logits(whole))[ids, 0].float())
    assert [line["spent"] for line in read_jsonl(folder / "asked.jsonl")] == [60, 60, 150]


def test_what_was_paid_for_before_something_broke_is_in_the_cache(whole: Task, teachers: Path, tmp_path: Path) -> None:
    code, _, err = command(*ask(teachers, tmp_path / "cache", "--budget", 99, "--strategy", f"{OWN}Broken"))
    assert code == 130
    assert "the same command continues" in err
    assert load_cache(tmp_path / "cache", whole).answers == 30


def test_flags_are_keys_of_a_file(teachers: Path, tmp_path: Path) -> None:
    names = [str(teachers / f"{name}.npy") for name in ("small", "large")]
    content = {"task": "planted", "teachers": names, "budget": 30, "strategy": "only:large", "price": ["large=3"]}
    (tmp_path / "ask.yaml").write_text(json.dumps({**content, "output_dir": str(tmp_path / "cache"), "quiet": True}))
    rows = rows_of(tmp_path, "ask", "--config", tmp_path / "ask.yaml")
    assert [(row["teacher"], row["asked"], row["spent"]) for row in rows] == [("small", 0, 0), ("large", 10, 30)]


def test_what_a_newcomer_gets_wrong_is_said_in_a_line(teachers: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for message, arguments in (
        ("unknown strategy 'exlpore'; did you mean 'explore'", ("--budget", 9, "--strategy", "exlpore")),
        ("budget must be > 0, got -5", ("--budget", -5)),
        ("name and a price, got 'large'; write for example small=10", ("--budget", 9, "--price", "large")),
        ("unknown teacher 'huge'", ("--budget", 9, "--price", "huge=2")),
        ("expected a price such as", ("--budget", 9, "--price", "large=cheap")),
        ("'large' got a second one", ("--budget", 9, "--price", "large=2", "--price", "large=3")),
        ("the cheapest costs 1, got 0.5; raise it", ("--budget", 0.5)),
        ("the cheapest costs 1, got 0.5; raise it", ("--budget", 0.5, "--dry-run")),
    ):
        refused(message, *ask(teachers, folder, *arguments))
    succeeded(*ask(teachers, folder, "--budget", 9, "--strategy", "random"))
    refused(r"what was spent in .*cache before or more, 9, got 5; it counts", *ask(teachers, folder, "--budget", 5))
    swapped = ("--teachers", teachers / "large.npy", "--teachers", teachers / "small.npy", "-o", folder, "--budget", 20)
    refused("holds answers of small, medium, large", "ask", *TASK, *swapped)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    refused("one that rlkd ask has written to, got .*thesis.tex", *ask(teachers, tmp_path / "mine", "--budget", 9))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    full = ("--teachers", teachers / "small.npy", "-o", tmp_path / "full", "--quiet")
    succeeded("cache", *TASK, *full)
    refused("nothing is left to ask", "ask", *TASK, *full, "--budget", 9)
    refused("holds a cache with gaps", "cache", *TASK, "--teachers", teachers / "small.npy", "-o", folder, "--quiet")
