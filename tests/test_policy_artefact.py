"""A policy as an artefact: plain arrays in, a strict config, a card that runs, graphs that agree, and the hub."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import hub
import numpy as np
import pytest
import torch

import rlkd
from rlkd.errors import PolicyError
from rlkd.features import ObservationConfig
from rlkd.logit_cache import read_state
from rlkd.types import State
from rlkd.weighting import Policy, load_policy, load_weighting
from rlkd.weighting.card import UNKNOWN
from rlkd.weighting.plain_arrays import FEWEST_ROWS
from rlkd.weighting.policy_files import saved_identity

ROOT = Path(__file__).parents[1]
RELATIVE = ObservationConfig(relative=True)


def made(observation: ObservationConfig | None = None, **training) -> Policy:
    return Policy.create(observation or ObservationConfig(), training=training, seed=2).eval()


def drawn(rows=128, teachers=3, classes=5, scale=3.0, seed=0):
    """Logits (B, K, C) with their mask (B, K) and how sure teachers are (K,), in numpy."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(rows, teachers, classes)) * rng.random((rows, 1, 1)) * scale).astype(np.float32)
    mask = rng.random((rows, teachers)) > 0.2
    mask[:, 0] |= ~mask.any(1)
    return logits, mask, (0.1 + 3 * rng.random(teachers)).astype(np.float32)


# --- plain arrays


@pytest.mark.parametrize("observation", [ObservationConfig(), RELATIVE], ids=["plain", "relative"])
def test_arrays_are_weighed_as_the_state_they_stand_for(observation):
    policy, (logits, mask, sureness) = made(observation), drawn()
    logits[~mask] = np.nan
    given = {"sureness": sureness} if observation.relative else {}
    state = State(teacher_logits=torch.tensor(logits), teacher_mask=torch.tensor(mask), sureness=torch.tensor(sureness))
    expected = policy.weights(state)
    weights = policy.weights(logits, mask=mask, **given)
    assert isinstance(weights, np.ndarray)
    assert weights.dtype == np.float32
    assert np.array_equal(weights, expected.numpy())
    tensors = {name: torch.tensor(value) for name, value in given.items()}
    assert torch.equal(policy.weights(state.teacher_logits, mask=state.teacher_mask, **tensors), expected)
    tokens = policy.weights(logits.astype(np.float64).reshape(4, 32, 3, 5), mask=mask.reshape(4, 32, 3), **given)
    assert np.array_equal(tokens.reshape(128, 3), weights)


def test_how_sure_teachers_usually_are_is_measured_where_there_are_rows_enough():
    policy, (logits, mask, _) = made(RELATIVE), drawn(rows=400)
    mask[:, 0] = True
    logits[~mask] = np.nan
    known = [rlkd.usual_sureness(logits[mask[:, k], k : k + 1]) for k in range(3)]
    expected = policy.weights(logits, mask=mask, sureness=torch.cat(known))
    np.testing.assert_allclose(policy.weights(logits, mask=mask), expected, atol=1e-6)
    mask[FEWEST_ROWS - 1 :, 1] = False
    with pytest.raises(PolicyError, match=rf"takes {FEWEST_ROWS} rows to tell, got \d+ of teacher 1; pass more rows"):
        policy.weights(logits, mask=mask)
    mask[:, 1] = False
    assert policy.weights(logits, mask=mask)[:, 1].max() == 0  # nobody asks how sure it is


GOOD, WHERE, SURE = drawn(rows=4)
WRONG = {
    "a list": (ObservationConfig(), [[[1.0, 2.0]]], {}, r"numpy array or a tensor of numbers, got list"),
    "words": (ObservationConfig(), np.array([["a", "b"]]), {}, r"of numbers, got an array of <U1"),
    "an axis too few": (ObservationConfig(), GOOD[0, 0], {}, r"\(\.\.\., K, C\) with K >= 1.*got \(5,\)"),
    "one class": (ObservationConfig(), GOOD[..., :1], {}, r"C >= 2 classes, got \(4, 3, 1\)"),
    "NaN": (
        ObservationConfig(),
        np.full((2, 3, 4), np.nan),
        {},
        r"NaN or inf of 6 rows of teachers, the first at \(0, 0\)",
    ),
    "a mask of numbers": (ObservationConfig(), GOOD, {"mask": WHERE * 1.0}, r"expected a bool mask.*got torch.float32"),
    "a mask of others": (
        ObservationConfig(),
        GOOD,
        {"mask": WHERE[:, :2]},
        r"shape \(4, 3\) or \(3,\), got .* \(4, 2\)",
    ),
    "nobody": (ObservationConfig(), GOOD, {"mask": WHERE & False}, r"at least one teacher a row"),
    "sureness ignored": (ObservationConfig(), GOOD, {"sureness": SURE}, r"does not see how sure.*leave it out"),
    "few rows": (RELATIVE, GOOD, {}, r"takes 100 rows to tell, got 4 of teacher 0; pass more rows, or sureness="),
    "sureness of others": (RELATIVE, GOOD, {"sureness": SURE[:2]}, r"\(4, 3\) or \(3,\), got torch.float32 \(2,\)"),
    "negative sureness": (RELATIVE, GOOD, {"sureness": -SURE}, r"expected sureness >= 0"),
    "a student": (ObservationConfig(student=True), GOOD, {}, r"observes student_logits beside logits.*pass rlkd.State"),
    "a state and more": (RELATIVE, State(teacher_logits=torch.tensor(GOOD)), {"sureness": SURE}, r"has its own"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_cannot_be_weighed_are_refused_by_name(case):
    observation, logits, more, message = WRONG[case]
    with pytest.raises(PolicyError, match=message):
        made(observation).weights(logits, **more)


# --- config.json

CONFIGS = {
    "a later format": ({"format_version": 2}, r"is of format 2, this rlkd reads format 1; install the rlkd release"),
    "no format": ({"format_version": True}, r"is of format True"),
    "unknown": ({"hiden_size": 64}, r"unknown key 'hiden_size'; did you mean 'hidden_size'\? a Policy has"),
    "missing": ({"hidden_size": ...}, r"has no 'hidden_size', which a Policy needs"),
    "missing names": ({"feature_names": ...}, r"has no 'feature_names'"),
    "a width in words": ({"hidden_size": "64"}, r"must have an integer as 'hidden_size', got '64'"),
    "a width of true": ({"hidden_size": True}, r"must have an integer as 'hidden_size', got True"),
    "names of numbers": ({"feature_names": [1]}, r"must have a list of a text or null as 'feature_names', got \[1\]"),
    "switches of numbers": ({"observation": {"student": 0}}, r"an object of true or false or null as 'observation'"),
    "a listed record": ({"training": []}, r"must have an object or null as 'training', got \[\]"),
    "strength in words": ({"strength": "full"}, r"must have a number as 'strength', got 'full'"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_is_held_against_its_schema(case, tmp_path):
    made().save_pretrained(tmp_path)
    changes, message = CONFIGS[case]
    config = {**json.loads((tmp_path / "config.json").read_text()), **changes}
    (tmp_path / "config.json").write_text(json.dumps({k: value for k, value in config.items() if value is not ...}))
    for load in (load_policy, Policy.from_pretrained):
        with pytest.raises(PolicyError, match=message):
            load(tmp_path)


def test_a_config_that_names_its_format_or_no_strength_is_what_it_was(tmp_path):
    made().save_pretrained(tmp_path)
    identity, config = saved_identity(tmp_path), json.loads((tmp_path / "config.json").read_text())
    assert "format_version" not in config  # files of format 1 keep their bytes
    del config["strength"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "format_version": 1}))
    assert saved_identity(tmp_path) == identity
    assert load_policy(tmp_path).kept_as == made().kept_as


# --- the card

TRAINED = {
    "reward": "logit_gain",
    "task": ["digits", "sst2"],
    "teachers_seen": [3, 4],
    "training": {"algorithm": "ppo", "total_timesteps": 480},
    "strength_losses": {"1.0": 0.6125, "0.0": 0.75},
    "gain_over_equal": {"value": 0.1375, "low": 0.05, "high": 0.225, "students": 4},
}


@pytest.mark.parametrize("fields", [{}, {"relative": True}, {"student": True}], ids=str)
def test_the_card_says_what_was_seen_and_its_lines_run(fields, task, cache, tmp_path):
    made(ObservationConfig(**fields), **TRAINED).save_pretrained(tmp_path / "policy")
    card = (tmp_path / "policy" / "README.md").read_text()
    assert "| task | digits, sst2 |" in card
    assert "| teachers | 3, 4 |" in card
    assert "| reward | logit_gain |" in card
    assert "its 4 trial students lose 0.1375 [0.05, 0.225] (95%) nats less" in card
    assert "| 0.0 | 0.75 |" in card
    lines = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0].replace("path/to/this/folder", f"{tmp_path}/policy")
    assert len(lines.splitlines()) == 3
    state = read_state(task, cache, torch.arange(40))
    student, _ = rlkd.load_student("rlkd/mlp", task)
    names = {
        "rlkd": rlkd,
        "task": task,
        "cache": cache,
        "student": student,
        "args": rlkd.DistillationArguments(str(tmp_path / "student"), max_steps=1, use_cpu=True),
        "logits": state.teacher_logits,
        "many_logits": cache.rows(torch.arange(200)),
        "student_logits": torch.zeros(40, task.num_classes),
    }
    exec(lines, names)
    assert names["weights"].shape == (40, 3)
    assert names["trainer"] is not None


def test_the_card_of_a_router_or_of_nothing_makes_nothing_up(tmp_path):
    made(method="router", targets="gain", task="a|b\nc").save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| learned from | labels: what each teacher gains a student |" in card
    assert "| task | a\\|b c |" in card
    assert UNKNOWN in card
    assert "reward" not in card.replace("rewards", "")
    made(strength_losses=5, chosen="?", training=[], gain_over_equal={}).save_pretrained(tmp_path)  # anybody's file


# --- graphs and the hub

BLOCK = next(
    block
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "rlkd/weighting/README.md").read_text(), re.DOTALL)
    if "push_to_hub" in block
)
AND_BACK = """
assert weights.shape == logits.shape[:2]
again = rlkd.load_weighting("user/repo")
assert again.kept_as == policy.kept_as and again.training_record == policy.training_record
for refused in (lambda: policy.push_to_hub("user/repo", token="hf_wrong"), lambda: rlkd.load_weighting("user/none")):
    try:
        refused()
    except rlkd.errors.PolicyError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """What the page's block leaves behind in a process of its own, whose hub is a stand-in."""
    folder = tmp_path_factory.mktemp("published")
    load_policy("auto").save_pretrained(folder / "runs" / "policy")
    setting = "import numpy as np, rlkd, rlkd.errors\nlogits = np.random.default_rng(0).normal(size=(120, 3, 5))\n"
    with hub.running() as stand_in:
        # the client's other protocol, xet, is a server of its own; without it large files go by Git LFS
        named = {"HF_ENDPOINT": stand_in.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        environment = {**os.environ, **named, "HF_HOME": str(folder / "cache"), "HF_TOKEN": hub.TOKEN}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-c", setting + BLOCK + AND_BACK]
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return folder, run.stdout, stand_in


def test_the_hub_gives_back_the_policy_that_was_pushed(published):
    folder, said, stand_in = published
    files = stand_in.repos["user/repo"]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    for name in ("config.json", "model.safetensors"):
        assert files[name] == (folder / "runs" / "policy" / name).read_bytes()
    assert b'rlkd.load_weighting("user/repo")' in files["README.md"]
    assert re.search(r"takes the policy as 'user/repo', it was refused \(.*401.*hf auth login", said)
    assert re.search(r"got 'user/none': no such folder, and the hub gave none", said)


def differences(policy, run):
    """Of a graph's weights and the policy's, the largest of an instance."""
    found = []
    for teachers in (1, 2, 3, 5, 8):
        for classes in (2, 3, 20, 150):
            for scale in (1.0, 10.0):
                logits, mask, sureness = drawn(40, teachers, classes, scale, seed=classes + teachers)
                weights = policy.weights(logits, mask=mask, sureness=sureness)
                found.append(np.abs(run(logits, mask, sureness) - weights).max(1))
    return np.concatenate(found)


def test_the_exported_graph_says_what_the_policy_says(published):
    graph = torch.export.load(published[0] / "policy.pt2").module()
    with torch.no_grad():
        found = differences(load_policy("auto"), lambda *arrays: graph(*map(torch.tensor, arrays)).numpy())
    assert found.max() <= 1e-6


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs pip install 'rlkd[onnx]'",
)
def test_onnx_runtime_says_what_the_policy_says(tmp_path):
    """As far as float32 does: of teachers that are very sure, one library's rounding is not another's."""
    import onnxruntime

    policy = load_policy("auto")
    session = onnxruntime.InferenceSession(policy.export(tmp_path / "policy.onnx"))
    assert [one.shape for one in session.get_inputs()] == [["B", "K", "C"], ["B", "K"], ["K"]]
    names = [one.name for one in session.get_inputs()]
    found = differences(policy, lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0])
    assert np.median(found) <= 1e-6
    assert np.quantile(found, 0.9) <= 1e-5
    assert np.quantile(found, 0.99) <= 1e-3
    assert found.max() <= 0.1


def test_what_cannot_be_exported_is_refused_by_name(tmp_path, monkeypatch):
    with pytest.raises(
        PolicyError, match="reads teachers' logits alone, this policy observes labels, student_logits too"
    ):
        made(ObservationConfig(student=True, labelled=True)).export(tmp_path / "policy.pt2")
    with pytest.raises(PolicyError, match=r"ends in .pt2 \(torch.export\) or .onnx, got .*policy.pt'; rename it"):
        made().export(tmp_path / "policy.pt")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PolicyError, match=r"needs onnx and onnxscript; pip install 'rlkd\[onnx\]'"):
        made().export(tmp_path / "policy.onnx")


def test_loading_takes_where_on_the_hub(tmp_path):
    with pytest.raises(PolicyError, match="no such folder, and the hub gave none"):
        load_weighting("user/repo", revision="v1", cache_dir=tmp_path)
