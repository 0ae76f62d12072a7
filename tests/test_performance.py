"""The performance script runs from end to end; what it measures is for `benchmarks/`, not for tests."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "performance" / "measure.py"


@pytest.fixture
def measure():
    return script("measure")


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPT.with_stem(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"text": f"word{n % 7} and word{n % 11} in row {n}", "label": f"class {n % 2}"} for n in range(400)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_it_measures_and_writes_what_it_prints(measure, texts, tmp_path, capsys):
    output = tmp_path / "performance.json"
    command = [
        "--task",
        str(texts),
        "--json",
        str(output),
        "--rounds",
        "1",
        "--batches",
        "2",
        "--students",
        "two-layer",
    ]
    records = measure.main(command)
    assert json.loads(output.read_text()) == records
    printed = capsys.readouterr().out
    assert all(record["name"] in printed for record in records)
    assert [record["limit"] for record in records] == [None, None, *2 * [1.0, 1.0, None, None, None], None, None, None]
    for record in records:
        assert math.isfinite(record["value"])
        assert 0 < record["low"] <= record["value"] <= record["high"]
        assert (record["ok"] is None) == (record["limit"] is None)
        assert record["threads"] == 1


def test_a_step_is_timed_for_the_arm_that_took_it(measure):
    turns = measure.Turns(["uniform", "policy", "live"])
    steps = 12
    # a step of arm n takes n + 1 seconds
    for step in range(steps):
        turns.ends.append(turns.ends[-1] + turns.arm_at(step) + 1)
    assert turns.seconds() == pytest.approx(measure.np.tile([[[1.0], [2.0], [3.0]]], (steps // 3, 1, 2)))
    assert {turns.arm_at(step) for step in range(0, steps, 3)} == {0, 1, 2}  # each goes first at times


def test_every_arm_reads_its_own_teachers(measure, texts, tmp_path):
    bench = measure.Bench(measure.rlkd.load_task(texts), "cpu", 1, 2, tmp_path)
    asked = []

    class Told(measure.LogitCache):
        def rows(self, ids):
            asked.append((self.folder, len(ids)))
            return super().rows(ids)

    logits = [measure.np.zeros((len(bench.task.table), 2), dtype=measure.np.float32)]
    arms = [measure.Arm(measure.Uniform(), Told(logits, ["a"], folder=name)) for name in ("one", "other")]
    asked.clear()
    measure.take_turns(bench, "rlkd/mlp" if bench.task.table.texts is None else "rlkd/bilstm", arms, 2)
    steps = [name for name, rows in asked if rows == measure.BATCH]
    assert steps == ["one", "other", "other", "one"] * 2 + ["one", "other"]


def test_a_policy_is_timed_beside_equal_weights(texts, tmp_path):
    spec = importlib.util.spec_from_file_location("deployment", SCRIPT.with_name("deployment.py"))
    deployment = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(deployment)
    output = tmp_path / "deployment.json"
    command = ["--task", str(texts), "--students", "rlkd/mlp", "--rounds", "2", "--batches", "2", "--calls", "2"]
    records = deployment.main([*command, "--teachers", "3", "--classes", "2", "5", "--json", str(output)])
    assert json.loads(output.read_text()) == records
    assert [record["limit"] for record in records] == [1.02, *[None] * 6]
    figures = {record["name"]: record["cpu"] for record in records}
    for classes in (2, 5):
        of = f"weights of 32 rows (K=3, C={classes})"
        assert figures[f"{of}, policy live"] > figures[f"{of}, equal"] > 0


def test_inference_of_teacher_and_student_is_timed_in_turns(texts, tmp_path):
    inference, output = script("inference"), tmp_path / "inference.json"
    command = ["--task", str(texts), "--teacher", "rlkd/tiny", "--students", "rlkd/bilstm", "--json", str(output)]
    records = inference.main([*command, "--rounds", "2", "--calls", "2", "--batch-size", "8"])
    assert json.loads(output.read_text()) == records
    ratios = [record for record in records if record["unit"] == "ratio"]
    assert [record["name"] for record in ratios] == [
        "rlkd/tiny / rlkd/bilstm, one instance, texts",
        "rlkd/tiny / rlkd/bilstm, batches of 8, texts",
    ]
    assert all(0 < record["low"] <= record["value"] <= record["high"] for record in records)


@pytest.mark.slow
def test_a_policy_s_training_is_counted_in_distillations(texts, tmp_path):
    training, output = script("policy_training"), tmp_path / "training.json"
    command = ["--task", str(texts), "--students", "rlkd/mlp", "--jobs", "1", "--json", str(output)]
    records = training.main([*command, "--rounds", "1", "--steps", "400", "--total-timesteps", "1"])
    assert json.loads(output.read_text()) == records
    ratio, seconds = records
    assert ratio["name"] == "policy training / one distillation (rlkd/mlp), jobs 1"
    assert 0.1 < ratio["cpu"] < 100
    assert seconds["value"] > 0
