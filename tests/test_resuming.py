"""A run that is resumed ends as it would have, and one that had ended stays as it is."""

import hashlib
import json
import os
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainerCallback

from rlkd import plugins, workflow
from rlkd.benchmark import compare, compared
from rlkd.benchmark.suite_files import load_suite
from rlkd.errors import ConfigError, OutputDirectoryError, PolicyError, WeightingError
from rlkd.features import ObservationConfig
from rlkd.records import check_folder_name, finished, folder_of, read_jsonl
from rlkd.settings import StudentSettings
from rlkd.trainer import make_trainer
from rlkd.weighting import Policy, build_weighting
from rlkd.weighting.learned import load_policy
from rlkd.weighting.policy_files import load_module, saved_identity

SETTINGS = StudentSettings(student="rlkd/mlp", max_steps=18, batch_size=32, device="cpu")


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


class Stop(TrainerCallback):
    """Ends a run before its time, as a kill would."""

    def __init__(self, at):
        self.at = at

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.at


def run(task, cache, folder, *, stop=None, resume=False, online=False, **values):
    weighting = build_weighting("hedge" if online else "entropy", task, cache)
    values = {
        "save_strategy": "steps",
        "save_steps": 5,
        "logging_strategy": "steps",
        "logging_steps": 4,
        "lr_scheduler_type": "constant",
        **values,
    }
    trainer = make_trainer(
        task, cache, weighting, SETTINGS, folder, callbacks=[] if stop is None else [Stop(stop)], **values
    )
    return trainer, trainer.train(resume_from_checkpoint=resume)


def history(trainer):
    timing = re.compile("runtime|per_second")
    return [{k: v for k, v in line.items() if not timing.search(k)} for line in trainer.state.log_history]


def assert_same_end(ours, theirs):
    (trainer, result), (whole, expected) = ours, theirs
    for (name, weight), other in zip(trainer.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    assert result.global_step == expected.global_step
    assert result.training_loss == expected.training_loss
    assert trainer.state.log_history[-1]["train_loss"] == whole.state.log_history[-1]["train_loss"]
    assert np.array_equal(trainer.weight_record.sums, whole.weight_record.sums)
    assert np.array_equal(trainer.weight_record.counts, whole.weight_record.counts)
    said = {entry["step"]: entry for entry in history(trainer) if "loss" in entry}
    assert {entry["step"]: entry for entry in history(whole) if "loss" in entry} == said


@pytest.mark.parametrize(("max_steps", "online"), [(18, False), (26, True)])  # inside, and at the end of, an epoch
def test_a_finished_run_takes_no_further_step(max_steps, online, task, cache, tmp_path):
    whole = run(task, cache, tmp_path, max_steps=max_steps, online=online)
    for _ in range(2):
        again = run(task, cache, tmp_path, max_steps=max_steps, online=online, resume=True)
        assert_same_end(again, whole)


@pytest.mark.parametrize("stop", [slow(7), 10, slow(12)])  # between log and checkpoint, at a checkpoint, at a log
def test_a_resumed_run_says_what_the_uninterrupted_one_says(stop, task, cache, tmp_path):
    whole = run(task, cache, tmp_path / "whole")
    run(task, cache, tmp_path / "broken", stop=stop)
    assert_same_end(run(task, cache, tmp_path / "broken", resume=True), whole)
    step_by_step = run(task, cache, tmp_path / "steps", logging_steps=1)
    losses = [entry["loss"] for entry in history(step_by_step[0]) if "loss" in entry]
    assert len(losses) == 18
    assert whole[1].training_loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_checkpoint_that_lacks_the_loss_so_far_is_refused(task, cache, tmp_path):
    run(task, cache, tmp_path, stop=12)
    newest = tmp_path / "checkpoint-10"
    (newest / "losses.json").unlink()
    with pytest.raises(WeightingError, match=r"expected the loss so far in .*losses.json, found nothing"):
        make_trainer(task, cache, build_weighting("entropy", task, cache), SETTINGS, tmp_path).train(str(newest))


# --- the commands


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Options of the planted task, and a cache of three specialists."""
    folder, options = tmp_path_factory.mktemp("data"), {"source": "planted"}
    workflow.run_train_teachers(options, ["tfidf"] * 3, str(folder / "teachers"), specialize="domain")
    workflow.run_cache(options, [str(folder / "teachers")], str(folder / "cache"))
    return options, str(folder / "cache")


def distil(data, folder, **values):
    constant = {"lr_scheduler_type": "constant"}
    settings = StudentSettings(student="rlkd/mlp", max_steps=20, batch_size=16, device="cpu")
    given = {"weighting": "entropy", "settings": settings, "save_steps": 10, "arguments": constant}
    return workflow.run_distill(*data, str(folder), **(given | values))


def hashes(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_resuming_a_finished_distillation_changes_nothing(data, tmp_path):
    rows = distil(data, tmp_path / "run")
    before = hashes(tmp_path / "run")
    assert distil(data, tmp_path / "run", resume=True) == rows
    assert hashes(tmp_path / "run") == before


@pytest.mark.parametrize(
    "lost",
    [
        slow(["done.json", "report.html"]),
        slow(["done.json", "report.html", "results.json"]),
        ["done.json", "report.html", "results.json", "student"],
        slow(["done.json", "student"]),
    ],
)
def test_a_distillation_that_was_killed_after_its_last_step_ends_alike(lost, data, tmp_path):
    rows = distil(data, tmp_path / "run")
    before = hashes(tmp_path / "run")
    for name in lost:
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    metrics = tmp_path / "run" / "metrics.jsonl"
    if len(lost) == 4:  # before the last line was said
        metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    for _ in range(2):
        assert distil(data, tmp_path / "run", resume=True) == rows
        assert hashes(tmp_path / "run") == before
    assert sum("student/train_loss" in line for line in read_jsonl(metrics)) == 1


def set_strength(folder, strength):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"strength": strength}))


def test_a_policy_of_another_strength_is_another_policy(data, tmp_path):
    policy, settings = tmp_path / "policy", StudentSettings(student="rlkd/mlp", max_steps=5, device="cpu")
    made = Policy.create(ObservationConfig(), training={}, seed=0)
    with torch.no_grad():
        made.score[-1].weight.mul_(50)
    made.save_pretrained(policy)
    distil(data, tmp_path / "d", weighting=f"policy:{policy}")
    run = {"settings": settings, "weightings": [f"policy:{policy}", f"policy_mean:{policy}"], "seeds": 1}
    workflow.run_compare(*data, str(tmp_path / "c"), **run)
    before = read_jsonl(tmp_path / "c" / "runs.jsonl")
    workflow.run_compare(*data, str(tmp_path / "c"), **run, resume=True)
    assert read_jsonl(tmp_path / "c" / "runs.jsonl") == before  # the same policy: nothing is done again
    set_strength(policy, 0.25)
    with pytest.raises(OutputDirectoryError, match=r'was started with policy = "\w{64}", got "\w{64}"'):
        distil(data, tmp_path / "d", weighting=f"policy:{policy}", resume=True)
    workflow.run_compare(*data, str(tmp_path / "c"), **run, resume=True)
    after = read_jsonl(tmp_path / "c" / "runs.jsonl")
    assert after[:2] == before
    assert [line["policy_strength"] for line in after] == [1.0, None, 0.25, None]
    assert len({line["key"] for line in after}) == 4
    assert not np.allclose(after[0]["mean_weights"], after[2]["mean_weights"], atol=1e-3)
    set_strength(policy, 1.0)
    assert saved_identity(policy) == before[0]["policy"]  # and back: names of runs stay


SAVED = {Policy: lambda: Policy.create(ObservationConfig(), training={"reward": "logit_gain"}, seed=0)}
SELECTOR = {"decision": "mode", "empty_set": "all", "joint": False, "initial_probability": 0.5}
TRAINED = {
    "rl_kd": lambda cls: cls(
        ["a", "b"], 3, empty_set="all", decision="mode", sampling_seed=4, training={"seed": 4, "settings": SELECTOR}
    ),
    "mtkd_rl": lambda cls: cls(["a", "b"], 3, training={"settings": {"log_std": 0.0}}),
}
"""Policies of systems that may not be here."""
for name in (name for name in TRAINED if name in plugins.registered("weightings")):
    SAVED[plugins.load("weightings", name)] = partial(TRAINED[name], plugins.load("weightings", name))
OTHERS = {
    "strength": [0.0, 0.5],
    "hidden_size": [32],
    "feature_version": [99],
    "feature_names": [["present"]],
    "teachers": [["a", "b", "c"]],  # others of the same number are refused by the weighting, with their names
    "num_classes": [4],
    "embedding_size": [1],
    "joint": [True],
    "empty_set": ["label_only", "argmax", "resample"],
    "decision": ["mode", "sample"],
    "initial_probability": [0.25],
    "sampling_seed": [5],
    "temperature": [1.0],
    "observation": [],
}


@pytest.mark.parametrize("cls", SAVED)
def test_whatever_decides_weights_is_part_of_a_policy_s_identity(cls, tmp_path):
    SAVED[cls]().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    identity = saved_identity(tmp_path)
    weights = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert identity == weights  # as trained: names of earlier runs stay
    assert set(config) - {"training"} <= set(OTHERS)
    for name in set(config) - {"training"}:
        for value in OTHERS[name]:
            (tmp_path / "config.json").write_text(json.dumps({**config, name: value}))
            try:
                load_module(cls, tmp_path)
            except PolicyError:
                continue
            changed = config[name] != value
            assert (saved_identity(tmp_path) != identity) == changed, (name, value)


def test_the_size_of_a_policy_tells_what_it_observes():
    """So that identities need not name it: but for labels, which are named, no two observations are of one size."""
    groups = ("student", "affinity", "reliability")
    sizes = [
        ObservationConfig(**dict(zip(groups, map(bool, (a, b, c)), strict=True))).num_features
        for a in (0, 1)
        for b in (0, 1)
        for c in (0, 1)
    ]
    assert len(set(sizes)) == 8


def test_labels_for_an_affinity_are_another_identity(tmp_path):
    Policy.create(ObservationConfig(affinity=True), training={}).save_pretrained(tmp_path)
    identity, config = saved_identity(tmp_path), json.loads((tmp_path / "config.json").read_text())
    other = ObservationConfig(labelled=True)
    config |= {"observation": other.to_dict(), "feature_names": list(other.feature_names)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    load_policy(tmp_path)  # the sizes fit
    assert saved_identity(tmp_path) != identity


# --- what a kill leaves behind


def spoiled(folder, how):
    config, weights = folder / "config.json", folder / "model.safetensors"
    if how == "empty config":
        config.write_text("")
    elif how == "partial config":
        config.write_text(config.read_text()[:40])
    elif how == "no config":
        config.unlink()
    elif how == "partial weights":
        weights.write_bytes(weights.read_bytes()[:-64])
    elif how == "no weights":
        weights.unlink()
    else:
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.mark.parametrize(
    "how",
    ["empty config", slow("partial config"), slow("no config"), "partial weights", slow("no weights"), slow("empty")],
)
def test_a_router_that_a_kill_left_behind_is_fitted_again(how, task, cache, tmp_path, monkeypatch):
    fits = []

    def counted(folder, *args, **kwargs):
        fits.append(folder)
        Policy.create(ObservationConfig(), training={}, seed=1).save_pretrained(folder)

    monkeypatch.setattr(compared, "fit_router_into", counted)
    settings = StudentSettings(student="rlkd/mlp", max_steps=2, batch_size=32, device="cpu")
    (first,) = compare(task, cache, ["router"], settings, tmp_path, seeds=(0,))
    (folder,) = tmp_path.glob("router-*")
    compare(task, cache, ["router"], settings, tmp_path, seeds=(0,))
    assert len(fits) == 1  # a whole one is kept
    spoiled(folder, how)
    records = compare(task, cache, ["router"], settings, tmp_path, seeds=(0, 1))
    assert [record["status"] for record in records] == ["ok", "ok"]
    assert len(fits) == 2
    load_policy(folder)
    assert first["status"] == "ok"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("old", [False, True])
def test_a_policy_is_saved_whole_or_not_at_all(old, tmp_path, monkeypatch):
    """Killed before each of the renames of which saving is made."""
    replace, folder = os.replace, tmp_path / "policy"
    first, second = (
        Policy.create(ObservationConfig(), training={}, seed=seed, strength=s) for seed, s in ((0, 1), (1, 0.5))
    )
    for last in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        if old:
            first.save_pretrained(folder)
        calls = []

        def killed(source, target, calls=calls, last=last):
            if len(calls) == last:
                raise Killed
            calls.append(target)
            replace(source, target)

        monkeypatch.setattr(os, "replace", killed)
        try:
            second.save_pretrained(folder)
        except Killed:
            with pytest.raises(PolicyError, match="has no"):
                load_module(Policy, folder)
            assert finished(folder) is None
            continue
        finally:
            monkeypatch.setattr(os, "replace", replace)
        whole = load_policy(folder)
        assert whole.strength == 0.5
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
        assert [path.name for path in tmp_path.iterdir()] == ["policy"]
        assert last == 3  # README, weights, config
        return
    raise AssertionError("it was never saved")


# --- names that become folders

EVIL = ["../../evil", "..", ".", "/etc", "a/b", "a\\b", "", ".hidden", "a\0b", "x" * 300, "a\nb", 7, None]
TASK = """
suite: {suite}
tasks:
  - name: {task}
    source: digits
    teachers: {{sets: {{{set}: {{kinds: [tfidf]}}}}}}
    students: {{{student}: {{student: rlkd/mlp}}}}
    policies: {{{policy}: {{kind: router}}}}
    weightings: [uniform]
"""
NAMED = {"suite": "suite", "task": "task", "set": "set of teachers", "student": "student", "policy": "policy"}


@pytest.mark.parametrize("which", NAMED)
@pytest.mark.parametrize("name", EVIL)
def test_a_name_that_leads_out_of_its_folder_is_refused(which, name, tmp_path):
    path = tmp_path / "suite.yaml"
    fine = {key: f"a-{key}.1" for key in NAMED}
    path.write_text(TASK.format(**{key: json.dumps(value) for key, value in fine.items()}))
    suite = load_suite(path)
    assert (suite.name, suite.tasks[0].name) == ("a-suite.1", "a-task.1")
    path.write_text(TASK.format(**{key: json.dumps(value) for key, value in (fine | {which: name}).items()}))
    with pytest.raises(ConfigError, match=f"every {NAMED[which]} needs a name of letters, digits"):
        load_suite(path)


@given(st.text(), st.text())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_name_that_comes_with_data_has_a_folder_of_its_own(one, other):
    folder = folder_of(one)
    assert check_folder_name(folder, "here", "folder") == folder
    assert folder == folder_of(one)
    assert (folder == folder_of(other)) == (one == other)
