"""Keys, seeded records and saved files of the version before: see :mod:`frozen`."""

import contextlib
import hashlib
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import frozen
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import rlkd.cli
from rlkd.benchmark.compared import ComparedWeighting, fit_router_into
from rlkd.benchmark.jobs import Job, run_key
from rlkd.benchmark.running import Run, plan_units, run_suite
from rlkd.benchmark.selection import select
from rlkd.benchmark.suite_files import load_suite
from rlkd.benchmark.suites import Suite
from rlkd.data import load_task
from rlkd.features import ObservationConfig
from rlkd.logit_cache import load_cache, read_state
from rlkd.records import read_jsonl
from rlkd.systems.mkd.units import ScoredStudent
from rlkd.systems.mtkd_rl.training import train_mtkd_rl
from rlkd.systems.rl_kd.training import train_rl_kd
from rlkd.types import State
from rlkd.weighting import WeightingSpec, build_weighting
from rlkd.weighting.router_targets import RouterSettings

SUITES = sorted((Path(__file__).parents[2] / "benchmarks" / "suites").glob("*.yaml"))
YOUNGER = ("images",)
"""Suites that the version before did not have."""
SAVED = frozen.HOME / "saved"
"""Teachers' arrays, a cache, a policy's training with its checkpoint, a comparison, and other learned weightings."""
DATA = ("--task", "digits", "--cache", "cache", "--student", "rlkd/mlp", "--batch-size", 16)
POLICY = ("train-policy", *DATA, "--horizon", 10, "--n-steps", 10, "--total-timesteps", 480, "-o", "policy")
COMPARED = ("--weighting", "uniform", "--weighting", "policy:policy/policy", "--max-steps", 5, "--seeds", 1)
COMPARISON = ("compare", *DATA, *COMPARED, "-o", "compared")
LEARNED = ("policy:policy/policy", "policy:router", "policy:reliable", "rl_kd:rl_kd/policy", "mtkd_rl:mtkd_rl/policy")


def command(*arguments: object) -> str:
    printed = io.StringIO()
    argv = ["rlkd", *map(str, arguments), "--quiet"]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stop:
        rlkd.cli.main()
    assert not stop.value.code, printed.getvalue()
    return printed.getvalue()


def write_runs(folder: Path) -> None:
    """What a user of today's version has on disk; run in the folder, so that no path of a machine is in it."""
    task = load_task("digits")
    rng = np.random.default_rng(0)
    for k in range(2):
        (folder / f"t{k}").mkdir()
        np.save(folder / f"t{k}" / "train.npy", rng.normal(size=(len(task.table), 10)).round(1).astype(np.float32))
    command("cache", "--task", "digits", "--teachers", "t0", "--teachers", "t1", "-o", "cache")
    command(*POLICY)
    command(*COMPARISON)
    cache = load_cache("cache", task)
    fit_router_into(folder / "router", [(task, cache)], 0)
    reliable = RouterSettings(observation=ObservationConfig(reliability=True))
    fit_router_into(folder / "reliable", [(task, cache)], 0, reliable)
    episode = {"batch_size": 16, "horizon": 14}
    for name, train in (("rl_kd", train_rl_kd), ("mtkd_rl", train_mtkd_rl)):
        train(task, cache, student="rlkd/mlp", episode=episode, pretraining_steps=4, episodes=1, output_dir=name)
    for needless in ("**/report.html", "*/checkpoint-160", "rl_kd/checkpoint-*", "mtkd_rl/checkpoint-*", "**/.lock"):
        for path in folder.glob(needless):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of what the version before left on disk, to stand in."""
    folder = tmp_path_factory.mktemp("before") / "runs"
    with contextlib.chdir(tmp_path_factory.mktemp("writing")):
        if frozen.WRITING:
            shutil.rmtree(SAVED, ignore_errors=True)
            write_runs(Path())
            shutil.copytree(Path(), SAVED)
    shutil.copytree(SAVED, folder)
    with contextlib.chdir(folder):
        yield folder


# --- keys


def planned_keys(suite: Suite) -> list[str]:
    """Keys of a suite's stages and runs, for data and logits that are taken for given."""
    keys = []
    for unit in plan_units(suite):
        work = unit.work
        task = suite.tasks[work.index]
        keys.append(" ".join([unit.name, *unit.needs]))
        if isinstance(work, ScoredStudent):
            keys.append(work.key(suite))
        elif type(work) is Run:
            given: Any = SimpleNamespace(
                task=SimpleNamespace(fingerprint="data", name=task.name), cache=SimpleNamespace(identity="logits")
            )
            arm, settings = (
                ComparedWeighting(name=work.weighting, spec=WeightingSpec(work.weighting, work.weighting)),
                task.students[work.student],
            )
            settings, distiller = task.students[work.student], task.system.distiller(work.weighting)
            job = Job(compared=arm, settings=settings, seed=work.seed, suite=suite.name, distiller=distiller)
            keys.append(run_key(given, job))
    return keys


def test_every_suite_of_ours_is_planned_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where data lie as usual, which is how the published records were made."""
    for place in ("DATA", "ENCODER"):
        monkeypatch.delenv(place, raising=False)
    keys = {path.stem: planned_keys(load_suite(path)) for path in SUITES if path.stem not in YOUNGER}
    assert len(keys) == 12
    frozen.same(
        "keys",
        {name: [len(each), hashlib.sha256("\n".join(each).encode()).hexdigest()] for name, each in keys.items()},
    )


@pytest.mark.parametrize("name", ["digits", "docstrings", "planted"])
def test_embedded_tasks_are_as_before(name: str) -> None:
    task = load_task(name)
    frozen.same(f"task-{name}", [task.fingerprint, {split: len(ids) for split, ids in task.splits.items()}])


# --- seeded runs


def test_a_seeded_suite_gives_the_records_it_gave(tmp_path: Path) -> None:
    suite = select(load_suite(SUITES[0].with_name("planted.yaml")), tasks=["class-3"], smoke=True)
    frozen.same("planted", run_suite(suite, tmp_path))


# --- saved files


def test_a_finished_comparison_is_not_repeated(before: Path) -> None:
    runs = (before / "compared" / "runs.jsonl").read_bytes()
    table, report, _ = command(*COMPARISON, "--resume").partition("Report: compared/report.html\n")  # advice is new
    frozen.same("compared", [read_jsonl(before / "compared" / "runs.jsonl"), table + report])
    assert (before / "compared" / "runs.jsonl").read_bytes() == runs


def test_a_policy_goes_on_from_its_checkpoint_to_the_same_end(before: Path) -> None:
    shutil.copytree("policy", "continued")
    weights = before / "continued" / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])  # damaged since: as if it were not there
    command(*POLICY[:-1], "continued", "--resume")
    ended, whole = (load_file(before / name / "policy" / "model.safetensors") for name in ("continued", "policy"))
    frozen.same("continued", {name: ended[name].flatten()[:20].tolist() for name in sorted(ended)})
    for name, tensor in ended.items():
        assert torch.allclose(tensor, whole[name], atol=frozen.WITHIN)


def test_learned_weightings_load_and_weigh_as_before(before: Path) -> None:
    task = load_task("digits")
    cache = load_cache("cache", task)
    state = read_state(task, cache, torch.from_numpy(task.splits["test"][:8]))
    state = State(**{**vars(state), "student_logits": state.teacher_logits.mean(1) / 2, "progress": 0.5})
    weights = {spec: build_weighting(spec, task, cache).weights(state).tolist() for spec in LEARNED}
    frozen.same("weights", weights)


def test_what_is_saved_again_is_what_was_saved(before: Path) -> None:
    task = load_task("digits")
    cache = load_cache("cache", task)
    for spec in LEARNED:
        folder = Path(spec.partition(":")[2])
        build_weighting(spec, task, cache).save_pretrained(before / "again")  # type: ignore[attr-defined]
        for name in ("config.json", "model.safetensors"):
            assert (before / "again" / name).read_bytes() == (folder / name).read_bytes()
