"""MKD: squared error on logits, models of several tasks, training over several tasks, and the whole recipe."""

import csv
import dataclasses
import itertools
import json
import math
import shutil
from pathlib import Path

import frozen
import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from rlkd.benchmark.running import check_suite, run_suite
from rlkd.benchmark.selection import select
from rlkd.benchmark.suite_files import load_suite
from rlkd.cli import app
from rlkd.data.batching import encode_inputs
from rlkd.data.collection import TaskCollection
from rlkd.data.splitting import split_task
from rlkd.data.task import Table, Task
from rlkd.errors import ConfigError, OutputDirectoryError, StudentError, TaskError, TeacherError, WeightingError
from rlkd.logit_cache import LogitCache
from rlkd.losses import distillation_loss, divergence_gradients
from rlkd.models import MultiTaskConfig, load_multi_task, load_teachers
from rlkd.models.networks import quiet_transformers
from rlkd.records import unpack_bits, verify_manifest
from rlkd.settings import MultiTaskSettings, StudentSettings, check_loss_settings
from rlkd.stats import group_runs, task_rows
from rlkd.systems.mkd.training import build_mkd_caches, train_mkd_teachers
from rlkd.trainer import make_trainer, training_arguments
from rlkd.trainer.joint_batches import task_batches
from rlkd.trainer.joint_teachers import JointSource, JointWeighting, OnlineJointWeighting
from rlkd.trainer.multi_task import MultiTaskTrainer
from rlkd.trainer.multi_task_training import TaughtTasks, multi_task_teacher_settings, train_model
from rlkd.weighting import WeightingSpec, build_weighting
from rlkd.weighting.fixed import Uniform

WORDS = {"fruit": ("apple", "pear", "plum"), "animal": ("cat", "dog", "cow"), "tool": ("saw", "axe", "nail")}


def word_task(name: str, classes: int, rows: int, pairs: bool = False) -> Task:
    """Single: which kind of word stands in the text? Pairs: are the words of both texts of one kind?"""
    rng = np.random.default_rng(len(name) + rows)
    kinds, draw = list(WORDS), lambda kind: str(rng.choice(WORDS[kind]))
    first = rng.integers(0, 3 if pairs else classes, rows)
    labels = first
    second = None
    if pairs:
        labels = np.arange(rows) % 2
        other = (first + rng.integers(1, 3, rows)) % 3
        second = tuple(f"the {draw(kinds[k])} there" for k in np.where(labels == 1, first, other))
    texts = tuple("the " * int(rng.integers(1, 5)) + draw(kinds[k]) + " here" for k in first)
    table = Table(labels=labels, domains=np.zeros(rows, dtype=np.int64), texts=texts, text_pairs=second)
    return split_task(name, table, ["different", "same"] if pairs else kinds[:classes])


@pytest.fixture(scope="module")
def collection() -> TaskCollection:
    """Two classes, three classes, and pairs; train rows: 104, 156, 260."""
    return TaskCollection(
        (word_task("two", 2, 160), word_task("three.kinds", 3, 240), word_task("pairs", 2, 400, True))
    )


@pytest.fixture(scope="module")
def caches(collection) -> dict[str, LogitCache]:
    """A teacher that knows the labels and one that knows nothing."""
    made = {}
    for index, task in enumerate(collection):
        rng = np.random.default_rng(index)
        noise = rng.normal(size=(2, len(task.table), task.num_classes)).astype(np.float32)
        noise[0] += 4 * np.eye(task.num_classes, dtype=np.float32)[task.table.labels]
        made[task.name] = LogitCache(list(noise), ["knows", "guesses"], identity=task.name)
    return made


PHASE = MultiTaskSettings(epochs=4, learning_rate=5e-3, batch_size=16, max_length=16)


def trainer_of(collection, caches, folder, weighting="uniform", steps=12, seed=0, **arguments):
    model, tokenizer = load_multi_task("rlkd/bilstm", collection, seed=seed)
    weightings = {t.name: build_weighting(weighting, t, caches[t.name]) for t in collection}
    args = training_arguments(PHASE.settings("rlkd/bilstm", steps), folder, seed=seed, **arguments)
    return MultiTaskTrainer(
        model, args, collection=collection, sources=caches, weightings=weightings, processing_class=tokenizer
    )


# -- squared error on logits -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        ("mse", 9.0),  # (1, 2, 3) - (2, 4, 5): 1 + 4 + 4
        ("mse_centred", 2 / 3),  # (-1, 0, 1) - (-5/3, 1/3, 4/3): 4/9 + 1/9 + 1/9
    ],
)
def test_squared_error_on_logits_by_hand(divergence, expected):
    student, teachers = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[[2.0, 4.0, 5.0], [0.0, 0.0, 0.0]]])
    one = torch.tensor([[1.0, 0.0]])
    loss = distillation_loss(student, teachers, one, divergence=divergence)
    assert loss.tolist() == pytest.approx([expected])
    shifted = distillation_loss(student + 7, teachers, one, divergence=divergence).item()
    assert shifted == pytest.approx(expected if divergence == "mse_centred" else 36 + 25 + 25)
    half = distillation_loss(student, teachers, one, torch.tensor([2]), kd_ratio=0.5, divergence=divergence)
    ce = math.log(1 + math.exp(-1) + math.exp(-2))
    assert half.item() == pytest.approx(0.5 * expected + 0.5 * ce)
    nobody = distillation_loss(student, teachers, torch.zeros(1, 2), torch.tensor([2]), divergence=divergence)
    assert nobody.item() == pytest.approx(ce)
    assert distillation_loss(student, teachers, one, scale=torch.tensor([3.0]), divergence=divergence).item() == (
        pytest.approx(3 * expected)
    )


@pytest.mark.parametrize("divergence", ["mse", "mse_centred"])
def test_a_mixture_of_logits_pulls_as_the_weighted_single_errors_do(divergence):
    torch.manual_seed(0)
    student, teachers = torch.randn(5, 4, requires_grad=True), torch.randn(5, 3, 4)
    weights = torch.rand(5, 3).softmax(-1)
    closed = divergence_gradients(student.detach(), teachers, divergence=divergence)
    mixed = distillation_loss(student, teachers, weights, divergence=divergence).sum()
    expected = (weights.unsqueeze(-1) * closed).sum(1)
    assert torch.allclose(torch.autograd.grad(mixed, student)[0], expected, atol=1e-6)
    for k, single in enumerate(torch.eye(3)):
        loss = distillation_loss(student, teachers, single.expand(5, 3), divergence=divergence).sum()
        assert torch.allclose(torch.autograd.grad(loss, student)[0], closed[:, k], atol=1e-6)


def test_squared_error_has_no_temperature():
    with pytest.raises(ConfigError, match="has no temperature, got 2"):
        StudentSettings(divergence="mse", temperature=2.0)
    with pytest.raises(ConfigError, match="divergence must be one of kl, mse, mse_centred, got 'l2'"):
        check_loss_settings(1.0, 1.0, "logit", "l2")


def test_keys_of_runs_from_before_there_was_a_choice_stay():
    assert "divergence" not in StudentSettings().record()
    assert StudentSettings(divergence="mse").record()["divergence"] == "mse"


def test_a_student_of_one_task_learns_logits_too(task, cache, tmp_path):
    settings = StudentSettings(student="rlkd/mlp", max_steps=60, batch_size=32, divergence="mse")
    trainer = make_trainer(task, cache, Uniform(), settings, tmp_path, logging_strategy="steps", logging_steps=20)
    trainer.train()
    state = trainer.task_state(torch.arange(8), torch.zeros(8, task.num_classes))
    assert state.divergence == "mse"
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]


# -- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rlkd/bilstm", "rlkd/tiny"])
def test_a_model_of_many_tasks_is_saved_loaded_and_taken_apart(name, collection, tmp_path):
    model, tokenizer = load_multi_task(name, collection, seed=3)
    again, _ = load_multi_task(name, collection, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        for weight in model.parameters():  # as training would leave them
            weight.add_(0.01 * torch.randn_like(weight))
    model.eval()
    with quiet_transformers():
        model.save_pretrained(tmp_path / "all")
        tokenizer.save_pretrained(tmp_path / "all")
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "all").eval()
    assert (tmp_path / "all" / "model.safetensors").is_file()
    for task in collection:
        batch = encode_inputs(task, tokenizer, 16).batch(np.arange(6))
        logits = model(**batch, task=task.name).logits
        assert logits.shape == (6, task.num_classes)
        assert torch.equal(loaded(**batch, task=task.name).logits, logits)
        alone = model.for_task(task.name)
        with quiet_transformers():
            alone.save_pretrained(tmp_path / task.name)
            ordinary = AutoModelForSequenceClassification.from_pretrained(tmp_path / task.name).eval()
        assert torch.equal(ordinary(**batch).logits, logits)  # one head: no name is needed
        assert list(ordinary.config.id2label.values()) == list(task.label_names)
        assert alone.encoder is model.encoder
        (teacher,) = load_teachers([tmp_path / "all"], task, device="cpu")  # the head with the task's name
        asked = teacher.logits(task, np.arange(6), batch_size=6, max_length=16)
        assert torch.allclose(asked, logits, atol=1e-5)
    with pytest.raises(StudentError, match=r"two, three\.kinds, pairs\), got None"):
        model(**batch)
    with pytest.raises(TeacherError, match="got 'elsewhere'"):
        load_teachers([tmp_path / "all"], dataclasses.replace(collection["two"], name="elsewhere"))


def test_a_saved_model_keeps_the_heads_that_fit(collection, tmp_path):
    model, tokenizer = load_multi_task("rlkd/bilstm", collection)
    with quiet_transformers():
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
    other = dataclasses.replace(collection["two"], label_names=("no", "yes"))
    loaded, _ = load_multi_task(str(tmp_path), TaskCollection((other, collection["pairs"])), seed=1)
    assert list(loaded.config.tasks) == ["two", "pairs"]
    assert torch.equal(loaded.heads["task_pairs"].weight, model.heads["task_pairs"].weight)
    assert not torch.equal(loaded.heads["task_two"].weight, model.heads["task_two"].weight)
    assert torch.equal(loaded.encoder.embedding.weight, model.encoder.embedding.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": {"a": "xy"}}, "class names of task 'a'"),
        ({"tasks": {"a": ["x", "x"]}}, "different class names"),
        ({"encoder": {"hidden_size": 3}}, "with a model_type, got None"),
        ({"encoder": {"model_type": "rlkd-multi-task"}}, "got 'rlkd-multi-task'"),
    ],
)
def test_a_hostile_configuration_is_refused(change, message):
    with pytest.raises(StudentError, match=message):
        MultiTaskConfig(**{"tasks": {"a": ["x", "y"]}, **change})


def test_what_cannot_be_a_multi_task_student_is_told(collection, tmp_path):
    with pytest.raises(ValueError, match="unknown multi-task student 'rlkd/bilstn'; did you mean 'rlkd/bilstm'"):
        load_multi_task("rlkd/bilstn", collection)
    with pytest.raises(StudentError, match="num_layers keeps the first layers"):
        load_multi_task("rlkd/tiny", collection, num_layers=1)
    with pytest.raises(StudentError, match="could not be loaded"):
        load_multi_task(str(tmp_path), collection)


def test_padding_changes_no_pair(collection):
    model, tokenizer = load_multi_task("rlkd/bilstm", collection)
    inputs, ids = encode_inputs(collection["pairs"], tokenizer, 16), np.arange(12)
    together = model.eval()(**inputs.batch(ids), task="pairs").logits
    alone = torch.cat([model(**inputs.batch(ids[i : i + 1]), task="pairs").logits for i in range(12)])
    assert torch.allclose(together, alone, atol=1e-6)
    assert len(set(inputs.lengths[ids])) > 1
    batch = inputs.batch(ids)
    batch["token_type_ids"][3] = 0
    with pytest.raises(StudentError, match="pairs or one of single texts"):
        model(**batch, task="pairs")


# -- batches and trainer ---------------------------------------------------------------------------


def test_batches_are_of_one_task_in_proportion_to_its_rows():
    rng = np.random.default_rng(0)
    lengths = [rng.integers(1, 20, size) for size in (100, 33, 5)]
    starts, seen = np.array([0, 100, 133, 138]), []
    for epoch in (0, 1):
        order = task_batches(lengths, 8, seed=4, epoch=epoch)
        owner = np.searchsorted(starts, order.reshape(-1, 8), side="right") - 1
        assert (owner == owner[:, :1]).all()
        assert np.bincount(owner[:, 0]).tolist() == [13, 5, 1]
        assert set(order) == set(range(138))
        assert np.bincount(order).max() <= 2
        assert not (owner[:13, 0] == 0).all()  # shuffled together
        seen.append(order)
        assert np.array_equal(order, task_batches(lengths, 8, seed=4, epoch=epoch))
    assert not np.array_equal(*seen)


def test_the_loss_of_a_batch_is_that_of_its_task(collection, caches, tmp_path):
    trainer = trainer_of(collection, caches, tmp_path, "entropy")
    for task in collection:
        rows = task.splits["train"][:8]
        batch = trainer.collate(collection.joint_ids(task.name, "train")[:8].tolist())
        torch.manual_seed(0)
        loss = trainer.compute_loss(trainer.model.train(), dict(batch))
        torch.manual_seed(0)
        student = trainer.model(
            **{key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")}, task=task.name
        ).logits
        state = trainer.task_state(batch["instance_ids"], student)
        weighting, own = trainer.weighting.own(state)
        assert own.ids.tolist() == rows.tolist()
        teachers = caches[task.name].rows(torch.from_numpy(rows))
        expected = distillation_loss(student, teachers, weighting.weights(own), divergence="mse").mean()
        assert torch.allclose(loss, expected)
        assert torch.equal(batch["labels"], torch.from_numpy(task.table.labels[rows]))


def test_a_joint_student_learns_every_task_and_records_weights_by_task(collection, caches, tmp_path):
    trainer = trainer_of(collection, caches, tmp_path, "fixed:1,0", steps=260)
    trainer.train()
    for task in collection:
        accuracy = (trainer.predict_task(task.name, "test").argmax(1) == task.labels("test")).mean()
        assert accuracy > 0.85, task.name
    assert trainer.weight_record.groups == collection.names
    assert np.allclose(trainer.weight_record.sums.sum(0)[:, 1], 0)
    scores = trainer.evaluate()
    right = trainer.predict_task("pairs", "validation").argmax(1) == collection["pairs"].labels("validation")
    assert scores["eval_pairs_accuracy"] == pytest.approx(right.mean())
    with pytest.raises(TaskError, match="one task at a time"):
        trainer.predict_split("test")


@pytest.mark.parametrize("weighting", ["uniform", "hedge"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(weighting, collection, caches, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 20}
    whole = trainer_of(collection, caches, tmp_path / "whole", weighting, 50, **saving)
    whole.train()
    broken = trainer_of(collection, caches, tmp_path / "broken", weighting, 50, **saving)
    broken.args.max_steps = 50
    stop = broken.training_step

    def dies(*args, **kwargs):
        if broken.state.global_step == 30:
            raise KeyboardInterrupt
        return stop(*args, **kwargs)

    broken.training_step = dies
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = trainer_of(collection, caches, tmp_path / "broken", weighting, 50, **saving)
    resumed.train(resume_from_checkpoint=True)
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert np.array_equal(whole.weight_record.sums, resumed.weight_record.sums)


def test_every_task_has_a_weighting_of_its_own(collection, caches):
    trained = {t.name: build_weighting("hedge", t, caches[t.name]) for t in collection}
    assert OnlineJointWeighting(collection, trained).requires == {"labels", "student_logits"}
    with pytest.raises(WeightingError, match=r"on two, three\.kinds, pairs, got two"):
        OnlineJointWeighting(collection, trained).load_state_dict({"two": {}})
    mixed = {**trained, "two": Uniform()}
    assert list(OnlineJointWeighting(collection, mixed).state_dict()) == ["three.kinds", "pairs"]
    assert JointWeighting(collection, {name: Uniform() for name in collection.names}).requires == frozenset()


def test_teachers_of_all_tasks_must_go_together(collection, caches, tmp_path):
    other = {**caches, "pairs": LogitCache([np.zeros((400, 2), np.float32)] * 2, ["knows", "sleeps"])}
    with pytest.raises(ConfigError, match="knows, sleeps on 'pairs'"):
        JointSource(collection, other)
    with pytest.raises(ConfigError, match=r"'three\.kinds' has none"):
        JointSource(collection, {"two": caches["two"]})
    model, tokenizer = load_multi_task("rlkd/bilstm", collection)
    args = training_arguments(StudentSettings(), tmp_path)
    with pytest.raises(ConfigError, match="need teachers, got none"):
        MultiTaskTrainer(model, args, collection=collection, processing_class=tokenizer)


# -- the recipe ------------------------------------------------------------------------------------


def test_the_recipe_from_labels_to_a_refined_student(collection, tmp_path):
    training = multi_task_teacher_settings("rlkd/bilstm", epochs=6, learning_rate=5e-3, batch_size=16, max_length=16)
    paths = train_mkd_teachers(collection, "rlkd/bilstm", tmp_path / "teachers", training, parts=("single", "multi"))
    caches = build_mkd_caches(collection, paths, tmp_path / "caches", max_length=16)
    assert {cache.teacher_names for cache in caches.values()} == {("single", "multi")}
    for task in collection:
        ids = torch.from_numpy(task.splits["test"])
        right = caches[task.name].rows(ids).argmax(-1).numpy() == task.labels("test")[:, None]
        assert (right.mean(0) > 0.8).all()
    taught = TaughtTasks(collection=collection, caches=caches, weighting=WeightingSpec.parse("entropy"))
    done = train_model(tmp_path / "student", "rlkd/bilstm", taught, PHASE, seed=1)
    assert verify_manifest(tmp_path / "student")
    assert done["steps"] == 4 * sum(math.ceil(len(t.splits["train"]) / 16) for t in collection)
    assert all(sum(row) == pytest.approx(1, abs=1e-3) for row in done["weights"].values())
    assert train_model(tmp_path / "student", "rlkd/bilstm", taught, PHASE, seed=1) == done  # kept
    with pytest.raises(OutputDirectoryError, match="other settings or data"):
        train_model(tmp_path / "student", "rlkd/bilstm", taught, PHASE, seed=2)
    labels = dataclasses.replace(PHASE, epochs=1, kd_ratio=0.0)
    train_model(tmp_path / "refined", tmp_path / "student", taught.only("pairs"), labels, seed=1)
    refined, joint = (
        load_teachers([tmp_path / name], collection["pairs"], device="cpu")[0] for name in ("refined", "student")
    )
    for teacher in (refined, joint):
        ids = collection["pairs"].splits["test"]
        logits = teacher.logits(collection["pairs"], ids, batch_size=64, max_length=16)
        assert (logits.argmax(1).numpy() == collection["pairs"].labels("test")).mean() > 0.7
    assert refined.identity != joint.identity
    assert json.loads((tmp_path / "refined" / "config.json").read_text())["tasks"] == {"pairs": ["different", "same"]}
    assert not list(tmp_path.glob(".*"))  # checkpoints are gone


def test_settings_out_of_range_are_refused_by_name(collection, tmp_path):
    for wrong in ({"epochs": 0.0}, {"warmup": 1.0}, {"kd_ratio": 2.0}, {"batch_size": 0}, {"divergence": "l1"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            MultiTaskSettings(**{"epochs": 1.0, "learning_rate": 1e-3, **wrong})
    for parts in ((), ("multi", "multi"), ("both",)):
        with pytest.raises(ConfigError, match="single, multi or both"):
            train_mkd_teachers(collection, "rlkd/bilstm", tmp_path, PHASE, parts=parts)


# -- the command -----------------------------------------------------------------------------------


def written(task: Task, path) -> str:
    """A task as a CSV file of its own columns."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        pairs = task.table.text_pairs
        lines.writerow(["text_a", "text_b", "label"] if pairs else ["text", "label"])
        for i, (text, label) in enumerate(zip(task.table.texts, task.table.labels, strict=True)):
            lines.writerow([text, *([pairs[i]] if pairs else []), task.label_names[label]])
    return str(path)


def rlkd(*arguments: str):
    return CliRunner().invoke(app, ["mkd", "--quiet", *arguments])


def test_the_command_runs_on_files_and_continues(collection, tmp_path):
    two, pairs = (written(collection[name], tmp_path / f"{name}.csv") for name in ("two", "pairs"))
    out = tmp_path / "run"
    arguments = ["--task", two, "--task", f"same={pairs}", "--teacher", "rlkd/bilstm", "--teachers", "both"]
    arguments += ["--weighting", "entropy", "--student", "rlkd/tiny", "--epochs", "2", "--refine-epochs", "1"]
    arguments += ["--teacher-epochs", "4", "--batch-size", "16", "--max-length", "16", "-o", str(out)]
    done = rlkd(*arguments)
    assert done.exit_code == 0, done.output
    rows = json.loads((out / "results.json").read_text())
    models = ["single-task teacher", "multi-task teacher", "student", "refined"]
    assert [(r["task"], r["split"], r["model"]) for r in rows] == [
        (task, split, model) for task in ("two", "same") for split in ("validation", "test") for model in models
    ]
    teachers = [r["accuracy"] for r in rows if r["split"] == "test" and r["model"] == "multi-task teacher"]
    assert max(teachers) > 0.9
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"student/loss", "weight/single", "weight/multi"} <= logged[0].keys()
    assert "Mean accuracy over tasks on test" in (out / "report.html").read_text()
    before = (out / "student" / "model.safetensors").read_bytes()
    shutil.rmtree(out / "refined" / "same")
    again = rlkd(*arguments, "--resume")
    assert again.exit_code == 0, again.output
    assert json.loads((out / "results.json").read_text()) == rows
    assert (out / "student" / "model.safetensors").read_bytes() == before
    other = CliRunner().invoke(app, ["mkd", "--quiet", *arguments, "--seed", "1", "--resume"])
    assert isinstance(other.exception, OutputDirectoryError)
    assert "was started with seed = 0, got 1" in str(other.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teachers", "all"], "teachers must be one of multi, single, both, got 'all'"),
        (["--weighting", "entropy"], "'entropy' would be ignored"),
        (["--weighting", "entropie", "--teachers", "both"], "did you mean 'entropy'"),
        (["--divergence", "l2"], "divergence must be one of"),
        (["--student", "rlkd/mlp"], "unknown multi-task student"),
        (["--student", "rlkd/mlp", "--refine-epochs", "0"], "unknown multi-task student"),  # 0: it is not refined
        (["--epochs", "0"], "epochs must be > 0, got 0.0"),
        (["--max-length", "2"], "max_length must be at least"),
        (["--task", "digits"], "'digits' has vectors"),
    ],
)
def test_what_cannot_run_is_told_before_anything_is_written(arguments, message, collection, tmp_path):
    two = written(collection["two"], tmp_path / "two.csv")
    out = tmp_path / "run"
    done = rlkd("--task", two, "--teacher", "rlkd/bilstm", *arguments, "-o", str(out))
    assert message in str(done.exception)
    assert not out.exists()


# -- suites ----------------------------------------------------------------------------------------

ARMS = ["uniform", "labels/single", "multi/multi", "multi/multi+refined", "router/single+refined"]


@pytest.fixture
def suite(collection, tmp_path):
    """Two tasks in files, a small student and six arms."""
    content = {
        "suite": "small",
        "system": "mkd",
        "seeds": 1,
        "mkd": {"epochs": {"small": 1}, "refine_epochs": 0.5},
        "teachers": {
            "kinds": ["rlkd/bilstm"],
            "epochs": 1,
            "learning_rate": "5e-3",
            "batch_size": 16,
            "max_length": 16,
        },
        "students": {
            "small": {"student": "rlkd/bilstm", "divergence": "mse", "learning_rate": 0.005, "max_length": 16}
        },
        "weightings": ARMS,
        "tasks": [
            {"name": name, "source": written(collection[name], tmp_path / f"{name}.csv")} for name in ("two", "pairs")
        ],
    }
    content["students"]["small"]["batch_size"] = 16
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path, content


def test_a_suite_of_mkd_gives_the_records_of_any_other(suite, tmp_path):
    path, _ = suite
    plan, folder = load_suite(path), tmp_path / "bench"
    check_suite(plan)
    records = run_suite(plan, folder)
    assert [record for record in records if record["status"] != "ok"] == []
    runs = {(r["task"], r["weighting"], r["seed"]): r for r in records if r["kind"] == "run"}
    assert set(runs) == {(task, arm, seed) for task in ("two", "pairs") for arm in ARMS for seed in (0,)}
    assert len(runs) == plan.num_runs
    frozen.same("mkd", [{name: run[name] for name in run if name != "key"} for run in runs.values()])
    for (_, arm, _), run in runs.items():
        assert (run["mean_weights"] is None) == arm.startswith("labels")
        assert len(unpack_bits(run["correct"])) == run["rows"]["test"]
        assert run["accuracy"] == pytest.approx(unpack_bits(run["correct"]).mean())
    assert runs["two", "multi/multi", 0]["mean_weights"] == [0, 1]
    assert runs["two", "uniform", 0]["mean_weights"] == [0.5, 0.5]
    assert len({json.dumps(run["settings"]) for run in runs.values()}) == 1  # arms are paired
    students = [record for record in records if record["kind"] == "student"]
    # joint: uniform, and multi for both of its arms; alone: labels and router on both tasks
    assert len(students) == 2 + 2 * 2
    steps = {(s["weighting"].partition("+")[0], s["task"]): s["steps"] for s in students}
    assert steps["multi/multi", "two"] == sum(steps["router/single", task] for task in ("two", "pairs"))
    assert not list((folder / "models").iterdir())  # every student was used
    assert {record["key"] for record in run_suite(plan, folder)} == {record["key"] for record in records}
    tables = group_runs([r for r in records if r["kind"] == "run"])
    rows = task_rows(tables[0])
    assert {row["weighting"] for row in rows if row.get("gain") is not None} == set(ARMS) - {"uniform"}


def test_an_arm_that_is_added_distils_its_student_again(suite, tmp_path):
    path, content = suite
    small = {**content, "seeds": 1, "weightings": ["multi"]}
    path.write_text(yaml.safe_dump(small))
    run_suite(load_suite(path), tmp_path / "bench")
    path.write_text(yaml.safe_dump({**small, "weightings": ["multi", "multi+refined"]}))
    records = run_suite(load_suite(path), tmp_path / "bench")
    runs = [record for record in records if record["kind"] == "run"]
    assert [run["status"] for run in runs] == ["ok"] * 4
    assert {run["weighting"] for run in runs} == {"multi", "multi+refined"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": "mdk"}, "unknown system"),
        ({"mkd": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"mkd": {"epochs": {"large": 3}}}, "no epochs for student 'small'"),
        ({"mkd": {"epochs": 0}}, "epochs and refine_epochs > 0"),
        ({"weightings": ["uniform+refined+refined"]}, "expected an entry of MKD"),
        ({"weightings": ["unifrom/single"]}, "did you mean 'uniform'"),
        ({"teachers": {"kinds": ["rlkd/bilstm"], "specialize": "class"}}, "got 'specialize'"),
        ({"students": {"small": {"student": "rlkd/bilstm", "max_steps": 77}}}, "max_steps of student 'small'"),
    ],
)
def test_a_suite_that_cannot_run_is_refused(change, message, suite):
    path, content = suite
    path.write_text(yaml.safe_dump({**content, **change}))
    with pytest.raises(ValueError, match=message):
        check_suite(load_suite(path))


def test_the_suite_of_the_repository_can_be_planned():
    path = Path(__file__).parents[2] / "benchmarks" / "suites" / "mkd.yaml"
    plan = select(load_suite(path), smoke=True)
    check_suite(plan)
    assert len(plan.tasks) >= 5
    for teacher, student, refined in itertools.product(("single", "multi"), ("single", "multi"), ("", "+refined")):
        assert f"{teacher}/{student}{refined}" in plan.tasks[0].weightings
