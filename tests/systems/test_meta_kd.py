"""Meta-KD: prototype scores and expertise by hand, false domains, students of each domain, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import frozen
import numpy as np
import pytest
import torch
import yaml
from transformers import BertConfig, BertModel

from rlkd.benchmark.running import check_suite, run_suite
from rlkd.benchmark.selection import select
from rlkd.benchmark.suite_files import load_suite
from rlkd.cli import main
from rlkd.cost import NO_COST
from rlkd.data.collection import keep_domains
from rlkd.data.task import Table, Task
from rlkd.errors import (
    ConfigError,
    OutputDirectoryError,
    RlkdError,
    StudentError,
    TaskError,
    TeacherError,
    UnknownNameError,
)
from rlkd.feature_losses import FeatureLosses
from rlkd.logit_cache import build_cache
from rlkd.metrics import classification_metrics
from rlkd.models import load_teachers, train_tokenizer
from rlkd.models.networks import quiet_transformers
from rlkd.models.small import save_small_encoder
from rlkd.prototypes import prototype_scores
from rlkd.records import read_jsonl
from rlkd.settings import PrototypeSettings, StudentSettings
from rlkd.systems.meta_kd.corruption import (
    DomainCorruption,
    MetaTeacherObjective,
    content,
    false_domains,
    load_corruption,
)
from rlkd.systems.meta_kd.distillation import TINY_BERT, TaughtDomain, distil_meta_student
from rlkd.systems.meta_kd.settings import DistillationSettings, MetaKdSettings
from rlkd.systems.meta_kd.teachers import (
    domain_task,
    load_meta_kd_teachers,
    teacher_names,
    train_meta_kd_teachers,
)
from rlkd.systems.meta_kd.weighting import DomainExpertise, domain_expertise
from rlkd.types import InnerStates, State
from rlkd.weighting import mixture
from rlkd.weighting.fixed import Fixed, Uniform

# --- prototype scores

VECTORS = np.array([[1, 0], [0, 1], [-1, 0], [3, 4], [-4, 3], [-4, -3]], dtype=np.float32)
LABELS = np.array([0, 0, 1, 0, 1, 1])
DOMAINS = np.array([0, 0, 0, 1, 1, 1])
ALL = np.arange(6)
HALF = 0.5**0.5


def test_class_wise_scores_of_six_vectors_by_hand():
    # prototypes: domain 0 (1/2, 1/2) and (-1, 0), domain 1 (3, 4) and (-4, 0)
    scores = prototype_scores(VECTORS, LABELS, DOMAINS, rows=ALL)
    expected = [(HALF + 0.6) / 2, (HALF + 0.8) / 2, 1.0, (1 + 1.4 * HALF) / 2, 0.8, 0.8]
    np.testing.assert_allclose(scores, expected, atol=1e-7)
    own = prototype_scores(VECTORS, LABELS, DOMAINS, rows=ALL, settings=PrototypeSettings(own_share=0.8))
    assert own[0] == pytest.approx(0.8 * HALF + 0.2 * 0.6)


def test_domain_wise_scores_of_six_vectors_by_hand():
    # prototypes: (0, 1/3) and (-5/3, 4/3)
    scores = prototype_scores(VECTORS, LABELS, DOMAINS, rows=ALL, settings=PrototypeSettings(kind="domain"))
    root = 41**0.5
    expected = [-5 / root, 1 + 4 / root, 5 / root, 1 / (5 * root) + 0.8, 32 / (5 * root) + 0.6, 8 / (5 * root) - 0.6]
    np.testing.assert_allclose(scores, np.array(expected) / 2, atol=1e-7)


def test_kinds_differ_in_how_three_domains_are_averaged():
    vectors = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    domains, labels = np.arange(3), np.zeros(3, dtype=np.int64)
    by_class = prototype_scores(vectors, labels, domains, rows=domains)
    by_domain = prototype_scores(vectors, labels, domains, rows=domains, settings=PrototypeSettings(kind="domain"))
    # cosines 0 and -1 to the others, or -1 / sqrt(5) to their mean (-1/2, 1)
    assert by_class[0] == pytest.approx(0.5 - 0.25)
    assert by_domain[0] == pytest.approx(0.5 - 0.5 / 5**0.5)


def test_a_domain_without_rows_and_a_lonely_one_have_the_part_that_is_there():
    held_out = prototype_scores(VECTORS, LABELS, DOMAINS, rows=np.arange(3))
    assert held_out[3] == pytest.approx(1.4 * HALF)  # (3, 4) to the one prototype (1/2, 1/2)
    assert held_out[0] == pytest.approx(HALF)


def test_centred_scores_vary_more_where_all_embeddings_point_the_same_way():
    rng = np.random.default_rng(0)
    vectors = 20 + rng.normal(size=(60, 4)) + 2 * np.repeat(np.eye(3, 4), 20, axis=0)
    labels, domains = np.arange(60) % 2, np.repeat(np.arange(3), 20)
    plain, centred = (
        prototype_scores(vectors, labels, domains, rows=np.arange(60), settings=PrototypeSettings(centred=centred))
        for centred in (False, True)
    )
    assert 10 * plain.std() < centred.std()


def test_scores_that_cannot_be_made_are_refused():
    with pytest.raises(TaskError, match="NaN or infinity"):
        prototype_scores(np.full((6, 2), np.nan), LABELS, DOMAINS, rows=ALL)
    with pytest.raises(TaskError, match="a class without any"):
        prototype_scores(VECTORS, LABELS, DOMAINS, rows=np.array([2, 4, 5]))
    with pytest.raises(ConfigError, match="kind must be one of class, domain, got 'classes'"):
        PrototypeSettings(kind="classes")
    with pytest.raises(ConfigError, match=r"own_share must lie in \(0, 1\), got 1"):
        PrototypeSettings(own_share=1)
    unlabelled = prototype_scores(VECTORS, np.array([0, 0, 1, 0, 1, -1]), DOMAINS, rows=ALL[:5])
    assert np.isnan(unlabelled[5])
    assert np.isfinite(unlabelled[:5]).all()


# --- domain expertise


def logits_of(probabilities: list[float]) -> torch.Tensor:
    """Teachers that give class 0 these probabilities, shape (1, K, 2)."""
    p = torch.tensor([probabilities], dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], dim=-1)


def test_expertise_lies_between_0_2689_and_one_half_at_t_0():
    sure, half, wrong = domain_expertise(logits_of([1 - 1e-9, 0.5, 1e-9]), torch.tensor([0]))[0].tolist()
    assert sure == pytest.approx(0.5)
    assert half == pytest.approx(1 / (1 + np.exp(0.25)))
    assert wrong == pytest.approx(0.2689, abs=5e-5)
    raised = domain_expertise(logits_of([1 - 1e-9]), torch.tensor([0]), torch.tensor([0.8]))
    assert raised.item() == pytest.approx(0.9)


def test_expertise_weights_teachers_and_scales_the_loss_of_its_instance():
    logits = logits_of([1 - 1e-9, 0.5]).float().repeat(2, 1, 1)
    state = State(teacher_logits=logits, labels=torch.tensor([0, 0]), ids=torch.tensor([1, 0]))
    taught = mixture(DomainExpertise(torch.tensor([0.5, -0.5])), state)
    half = 1 / (1 + np.exp(0.25))
    assert taught.weights[0].tolist() == pytest.approx([0.5 / (0.5 + half), half / (0.5 + half)])
    assert taught.scale.tolist() == pytest.approx([0.5 * (0.5 + half) / 2, 1.5 * (0.5 + half) / 2])


# --- teachers


@pytest.fixture(scope="module")
def task() -> Task:
    """Two classes by their words in three domains, each with words of its own."""
    rng = np.random.default_rng(0)
    rows = 144
    labels, domains = np.arange(rows) % 2, np.arange(rows) // 2 % 3
    words = [["good", "fine", "glad", "kind"], ["bad", "poor", "sad", "mean"]]
    own = [["page", "plot"], ["screen", "scene"], ["pan", "oven"]]
    texts = tuple(
        " ".join([*rng.choice(own[d], 1 + i % 2), *rng.choice(words[y], 1 + i % 3)])
        for i, (y, d) in enumerate(zip(labels, domains, strict=True))
    )
    bounds = [0, 72, 84, 108, 144]
    splits = {n: np.arange(bounds[i], bounds[i + 1]) for i, n in enumerate(("train", "probe", "validation", "test"))}
    table = Table(labels=labels, domains=domains, texts=texts)
    names = ("books", "film & dvd", "kitchen")
    return Task(name="reviews", label_names=("pro", "con"), table=table, splits=splits, domain_names=names)


@pytest.fixture(scope="module")
def encoder(task, tmp_path_factory) -> str:
    """A BERT of 4 layers and width 16 with random weights, and a tokenizer."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_tokenizer(task.table.texts)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    sizes |= {"max_position_embeddings": 32, "initializer_range": 0.2}  # narrow networks stall at 0.02
    torch.manual_seed(0)
    with quiet_transformers():
        BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def settings(encoder) -> MetaKdSettings:
    return MetaKdSettings(encoder=encoder, epochs=8, learning_rate=5e-3, batch_size=24, max_length=12)


@pytest.fixture(scope="module")
def trained(task, settings, tmp_path_factory) -> dict[str, Path]:
    return train_meta_kd_teachers(
        task, tmp_path_factory.mktemp("teachers"), settings, names=teacher_names(task), device="cpu"
    )


def test_false_domains_are_the_batchs_own_in_another_order():
    domains = torch.tensor([0, 0, 1, 2])
    assert false_domains(domains, torch.tensor([2, 3, 0, 1])).tolist() == [1, 2, 0, 0]
    torch.manual_seed(0)
    many = torch.arange(3).repeat(1000)
    drawn = false_domains(many)
    assert torch.equal(drawn.sort().values, many.sort().values)
    assert (drawn == many).float().mean() == pytest.approx(1 / 3, abs=0.03)  # right by accident


def test_content_is_the_mean_behind_the_first_token_without_padding():
    hidden = torch.arange(6.0).reshape(1, 6, 1)
    right, left = torch.tensor([[1, 1, 1, 0, 0, 0]]).bool(), torch.tensor([[0, 0, 1, 1, 1, 1]]).bool()
    assert content(hidden, right).item() == 1.5
    assert content(hidden, left).item() == 4.0
    assert content(hidden, torch.tensor([[1, 0, 0, 0, 0, 0]]).bool()).item() == 0.0  # nothing stands behind it


def test_the_meta_teachers_loss_by_hand(task, settings):
    scores = np.linspace(0.1, 0.9, len(task.table))
    objective = MetaTeacherObjective(task, scores, settings, 16)
    objective.module.eval()
    inside = InnerStates(mask=torch.ones(3, 4, dtype=torch.bool), hidden={4: torch.randn(3, 4, 16)}, attention={})
    logits, ids = torch.randn(3, 2), torch.tensor([0, 2, 4])  # one of each domain
    labels = torch.from_numpy(task.table.labels[ids.numpy()])
    torch.manual_seed(5)
    found = objective.losses(logits, inside, ids, labels)
    torch.manual_seed(5)
    wrong = torch.arange(3)[torch.randperm(3)]
    named = objective.module["head"](objective.corruption(inside.hidden[4][:, 1:].mean(1), torch.arange(3)))
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    expected = expected + 0.5 * torch.nn.functional.cross_entropy(named, wrong, reduction="none")
    assert torch.allclose(found, expected * torch.from_numpy(scores[[0, 2, 4]]).float(), atol=1e-6)


def test_all_teachers_are_trained_once_and_know_what_they_saw(task, settings, trained):
    assert list(trained) == ["single-books", "single-film-dvd", "single-kitchen", "mixed", "multi_task", "meta"]
    teachers = load_meta_kd_teachers(trained, task, device="cpu")
    assert teachers["single-film-dvd"].knows == {"film & dvd"}
    assert teachers["meta"].knows == set(task.domain_names)
    ids = task.splits["test"]
    for name in ("mixed", "multi_task", "meta"):
        logits = teachers[name].logits(task, ids, batch_size=16, max_length=12)
        assert (logits.argmax(1).numpy() == task.table.labels[ids]).mean() > 0.8
    cache_names = [teacher.name for teacher in teachers.values()]
    assert cache_names == list(trained)
    before = {path: path.stat().st_mtime_ns for path in trained["meta"].iterdir()}
    again = train_meta_kd_teachers(task, trained["meta"].parent, settings, names=["meta"], device="cpu")
    assert {path: path.stat().st_mtime_ns for path in again["meta"].iterdir()} == before
    module = load_corruption(trained["meta"], 3, 16)
    fresh = DomainCorruption(3, 16, seed=settings.seed)
    assert not torch.allclose(module.dense.weight, fresh.dense.weight)  # trained with the network


def test_the_multi_task_teacher_answers_with_the_head_of_the_domain(task, trained):
    teacher = load_meta_kd_teachers({"multi_task": trained["multi_task"]}, task, device="cpu")["multi_task"]
    ids = task.splits["test"]
    logits = teacher.logits(task, ids, batch_size=16, max_length=12)
    mine = np.flatnonzero(task.table.domains[ids] == 1)
    alone = domain_task(task, "film & dvd")
    own = teacher.head("film & dvd").logits(alone, alone.splits["test"], batch_size=16, max_length=12)
    assert torch.allclose(logits[mine], own, atol=1e-5)
    with pytest.raises(TeacherError, match="got domain 'toys', which it never saw"):
        teacher.head("toys")


def test_other_objectives_are_other_teachers(task, settings, trained):
    for changed in ({"weighted": False}, {"corruption_weight": 0.0}, {"prototypes": PrototypeSettings(kind="domain")}):
        with pytest.raises(OutputDirectoryError, match="other settings"):
            train_meta_kd_teachers(
                task, trained["meta"].parent, replace(settings, **changed), names=["meta"], device="cpu"
            )


def test_what_meta_kd_cannot_learn_from_is_refused_before_anything_is_written(task, settings, tmp_path):
    def refused(changed: Task, names=("meta",), chosen=settings):
        return train_meta_kd_teachers(changed, tmp_path / "none", chosen, names=names, device="cpu")

    with pytest.raises(TaskError, match="two domains or more"):
        refused(replace(task, domain_names=()))
    labels = task.table.labels.copy()
    labels[:2] = -1
    with pytest.raises(TaskError, match="2 of task 'reviews' have none"):
        refused(replace(task, table=replace(task.table, labels=labels)))
    with pytest.raises(UnknownNameError, match=r"'single-toys'.*single-books"):
        refused(task, names=("single-toys",))
    with pytest.raises(TaskError, match="differ in letters or digits"):
        refused(replace(task, domain_names=("a b", "a-b", "c")))
    with pytest.raises(StudentError, match="nowhere"):
        refused(task, chosen=replace(settings, encoder="nowhere"))
    with pytest.raises(TeacherError, match="fine-tunes a pretrained encoder"):
        refused(task, chosen=replace(settings, encoder="rlkd/tiny"))
    with pytest.raises(ConfigError, match="corruption_weight"):
        replace(settings, corruption_weight=-1)
    assert not (tmp_path / "none").exists()
    left_out = keep_domains(task, ["books", "kitchen"])
    assert teacher_names(left_out)[:2] == ("single-books", "single-kitchen")


# --- students


@pytest.fixture(scope="module")
def start(task, encoder, tmp_path_factory) -> Path:
    return save_small_encoder(encoder, task, tmp_path_factory.mktemp("start"), num_layers=2, hidden_size=8)


STEPS = StudentSettings(max_steps=30, batch_size=12, learning_rate=1e-2, max_length=12)
BRIEF = DistillationSettings(feature_steps=30, feature_learning_rate=1e-2)


def lesson_of(task: Task, trained: dict[str, Path], name: str, domain: str = "kitchen", **more: Any) -> TaughtDomain:
    alone = domain_task(task, domain)
    (teacher,) = load_teachers([trained[name]], alone, device="cpu")
    return TaughtDomain(task=alone, encoders=[teacher], **more)


def test_meta_distillation_is_two_runs_of_which_the_first_is_shared(task, trained, start, settings, tmp_path):
    corruption = load_corruption(trained["meta"], 3, 16)
    alone = domain_task(task, "kitchen")
    taught = lesson_of(task, trained, "meta", corruption=corruption, scores=np.full(len(alone.table), 0.5))
    trainer, figures = distil_meta_student(taught, start, BRIEF, STEPS, tmp_path)
    accuracy = classification_metrics(trainer.predict_split("test"), alone.labels("test"))["accuracy"]
    assert accuracy > 0.8
    (first,) = tmp_path.glob("features-*")
    written = (first / "model.safetensors").stat().st_mtime_ns
    # the output step alone is new: another weighting of other teachers' logits
    both = [load_teachers([trained[name]], alone, device="cpu")[0] for name in ("meta", "single-kitchen")]
    cache = build_cache(both, alone, tmp_path / "cache", max_length=12)
    again, same = distil_meta_student(
        replace(taught, source=cache, weighting=Fixed(torch.tensor([0.0, 1.0]))), start, BRIEF, STEPS, tmp_path
    )
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert same == {**figures, "features_reused": True}
    assert again.cache is cache
    assert list(tmp_path.glob("features-*")) == [first]
    # other losses are another first step
    distil_meta_student(taught, start, replace(BRIEF, transfer=0.0), STEPS, tmp_path)
    assert len(list(tmp_path.glob("features-*"))) == 2


def test_lambda_scales_the_features_and_not_the_transferable_one(task, trained, start, tmp_path, monkeypatch):
    seen = {}
    plain = FeatureLosses.losses

    def watching(self, student, teachers, state, taught):
        seen.setdefault("scale", taught.scale)
        seen.setdefault("scaled", [term.scaled for term in self.terms])
        return plain(self, student, teachers, state, taught)

    monkeypatch.setattr(FeatureLosses, "losses", watching)
    corruption = load_corruption(trained["meta"], 3, 16)
    taught = lesson_of(task, trained, "meta", corruption=corruption)
    taught = replace(taught, scores=np.full(len(taught.task.table), 1.0))
    distil_meta_student(taught, start, BRIEF, replace(STEPS, max_steps=2), tmp_path)
    assert seen["scaled"] == [True, True, True, False]
    assert 2 * 0.2689 < seen["scale"].min() <= seen["scale"].max() <= 1.0  # (1 + t) times [0.2689, 0.5]


def test_tiny_bert_distillation_and_the_joint_schedule_work_with_any_teacher(task, trained, start, tmp_path):
    for name in ("mixed", "multi_task"):
        taught = lesson_of(task, trained, name)
        trainer, _ = distil_meta_student(taught, start, replace(BRIEF, **TINY_BERT), STEPS, tmp_path / name)
        scores = classification_metrics(trainer.predict_split("test"), taught.task.labels("test"))
        assert scores["accuracy"] > 0.8
    two = lesson_of(task, trained, "mixed")
    two = replace(two, encoders=[*two.encoders, *lesson_of(task, trained, "single-kitchen").encoders])
    joint = replace(BRIEF, **TINY_BERT, schedule="joint", feature_steps=5)
    trainer, figures = distil_meta_student(two, start, joint, replace(STEPS, max_steps=5), tmp_path / "joint")
    assert trainer.state.global_step == 10
    assert figures == {"feature_seconds": 0.0, "feature_cost": NO_COST, "features_reused": False}
    assert not list((tmp_path / "joint").glob("features-*"))


def test_recipes_that_cannot_be_followed_are_refused(task, trained, start, encoder, tmp_path):
    taught = lesson_of(task, trained, "mixed")
    with pytest.raises(ConfigError, match="needs a meta-teacher's module, got none; set transfer to 0"):
        distil_meta_student(taught, start, BRIEF, STEPS, tmp_path)
    joint = replace(BRIEF, **TINY_BERT, schedule="joint")
    with pytest.raises(ConfigError, match="a source or weighting of other logits would be ignored"):
        distil_meta_student(replace(taught, weighting=Uniform()), start, joint, STEPS, tmp_path)
    two = replace(taught, encoders=taught.encoders * 2, corruption=load_corruption(trained["meta"], 3, 16))
    with pytest.raises(ConfigError, match="one meta-teacher's, got 2 teachers"):
        distil_meta_student(two, start, BRIEF, STEPS, tmp_path)
    with pytest.raises(ConfigError, match="schedule must be one of two_step, joint, got 'both'"):
        DistillationSettings(schedule="both")
    with pytest.raises(ConfigError, match="feature_steps"):
        DistillationSettings(feature_steps=0)
    with pytest.raises(ConfigError, match="a feature loss whose weight is not 0"):
        DistillationSettings(embedding=0, hidden=0, attention=0, transfer=0)
    with pytest.raises(TeacherError, match="for 2 domains of width 16"):
        load_corruption(trained["meta"], 2, 16)
    with pytest.raises(StudentError, match="multiple of its 2 heads and 1 to 4 layers, got 9 and 2"):
        save_small_encoder(encoder, task, tmp_path / "odd", num_layers=2, hidden_size=9)


# --- the command


@pytest.fixture(scope="module")
def data(task, tmp_path_factory) -> str:
    """The task as files, as a user has it."""
    folder = tmp_path_factory.mktemp("data")
    rows = {"train": np.arange(84), "validation": task.splits["validation"], "test": task.splits["test"]}
    for split, ids in rows.items():
        lines = ["text,label,domain"]
        for i in ids:
            label, domain = task.label_names[task.table.labels[i]], task.domain_names[task.table.domains[i]]
            lines.append(f"{task.table.texts[i]},{label},{domain}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


def rlkd(*arguments: str) -> int:
    """Exit code of a call."""
    with mock.patch("sys.argv", ["rlkd", *arguments]), pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


QUICK = "--teacher-epochs 6 --teacher-learning-rate 5e-3 --batch-size 12 --max-length 12 --num-layers 2 --hidden-size 8"
QUICK += " --feature-steps 30 --feature-learning-rate 1e-2 --max-steps 30 --learning-rate 1e-2 --domain kitchen --quiet"


def test_the_command_trains_a_meta_teacher_and_students_and_continues(data, encoder, tmp_path, capsys):
    flags = ["meta-kd", "--task", data, "--encoder", encoder, "-o", str(tmp_path / "run"), *QUICK.split()]
    assert rlkd(*flags, "--json", str(tmp_path / "rows.json")) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(r["domain"], r["model"], r["split"]) for r in rows] == [
        ("kitchen", model, split) for split in ("validation", "test") for model in ("meta-teacher", "student")
    ]
    assert all(row["accuracy"] > 0.7 for row in rows)
    student = tmp_path / "run" / "students" / "kitchen" / "student" / "model.safetensors"
    teacher = tmp_path / "run" / "teachers" / "meta" / "teacher.json"
    before = student.stat().st_mtime_ns, teacher.stat().st_mtime_ns
    assert rlkd(*flags, "--domain", "books", "--resume") == 0  # one more domain; what is there stays
    assert (student.stat().st_mtime_ns, teacher.stat().st_mtime_ns) == before
    assert "Prototype scores t" in (tmp_path / "run" / "report.html").read_text()
    assert "books" in capsys.readouterr().out
    assert rlkd(*flags, "--resume", "--transfer", "0") == 2
    assert "recipe.transfer = 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--domain", "toys"], "unknown domain of task"),
        (["--num-layers", "3"], "3 layers must divide 4"),
        (["--hidden-size", "9"], "multiple of its 2 heads"),
        (["--schedule", "both"], "schedule must be one of two_step, joint, got 'both'"),
        (["--prototypes", "classes"], "prototypes must be one of class, domain, got 'classes'"),
    ],
)
def test_the_command_refuses_in_one_line_before_anything_is_written(data, encoder, tmp_path, capsys, wrong, said):
    flags = ["meta-kd", "--task", data, "--encoder", encoder, "-o", str(tmp_path / "run"), *QUICK.split()]
    assert rlkd(*flags, *wrong) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


# --- suites


def suite_of(encoder: str, data: str, folder: Path, **changed: Any) -> Path:
    content = {
        "system": "meta_kd",
        "seeds": 1,
        "source": data,
        "student": {"student": "rlkd/bilstm", "max_steps": 3, "batch_size": 8, "max_length": 12},
        "weightings": ["single", "average", "meta_kd", "domain_wise", "uniform", "router"],
        "meta_kd": {
            "teachers": {"encoder": encoder, "epochs": 1, "learning_rate": "5e-3", "batch_size": 12, "max_length": 12},
            "variants": {"by_domain": {"prototypes": {"kind": "domain"}}},
            "student": {"num_layers": 2, "hidden_size": 8},
            "distillation": {"feature_steps": 3},
            "arms": {"domain_wise": {"teachers": ["by_domain"], "attention": 0}},
        },
        "tasks": [
            {"name": "kitchen", "meta_kd": {"domain": "kitchen"}},
            {"name": "film", "weightings": ["multi_task"], "meta_kd": {"domain": "film & dvd"}},
            {
                "name": "few",
                "weightings": ["single"],
                "meta_kd": {"domain": "kitchen", "fraction": 0.25},
            },
            {"name": "unseen", "weightings": ["average"], "meta_kd": {"domain": "books", "leave_out": True}},
        ],
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**content, **changed}))
    return path


def test_a_suite_runs_the_papers_rows_and_the_bridge(data, encoder, tmp_path):
    suite = load_suite(suite_of(encoder, data, tmp_path))
    records = run_suite(suite, tmp_path / "out")
    assert [record.get("error") for record in records if record["status"] != "ok"] == []
    runs = {(r["task"], r["weighting"]): r for r in records if r["kind"] == "run"}
    assert len(runs) == suite.num_runs == 9
    frozen.same("meta_kd", [{name: run[name] for name in run if name != "key"} for run in runs.values()])
    bridge = ["single-books", "single-film-dvd", "single-kitchen", "meta"]
    for weighting in ("uniform", "router"):
        run = runs["kitchen", weighting]
        assert run["teachers"] == bridge
        assert len(run["mean_weights"]) == 4
        assert run["feature_seconds"] == runs["kitchen", "meta_kd"]["feature_seconds"]  # the same first step
        assert run["seconds"] > run["feature_seconds"]  # though it did not take that step itself
    assert runs["kitchen", "uniform"]["mean_weights"] == [0.25] * 4
    assert runs["kitchen", "average"]["recipe"]["teachers"] == ["singles"]
    assert runs["kitchen", "domain_wise"]["recipe"]["attention"] == 0
    assert runs["kitchen", "single"]["recipe"]["expertise"] is False
    assert runs["kitchen", "meta_kd"]["network"] == "encoder 2x8"
    assert len({run["data"] for run in runs.values()}) == 4
    assert runs["few", "single"]["rows"]["train"] < runs["kitchen", "single"]["rows"]["train"]
    assert runs["few", "single"]["rows"]["test"] == runs["kitchen", "single"]["rows"]["test"]
    teachers = tmp_path / "out" / "teachers"
    assert len(list(teachers.glob("meta-kd-*"))) == 3  # whole, few, unseen
    assert len(list(teachers.glob("meta-kd-*/single-*"))) == 3 + 1 + 2
    assert len(list((tmp_path / "out" / "features").glob("features-*"))) == 1  # meta_kd's: others are of no more use
    before = len(read_jsonl(tmp_path / "out" / "results.jsonl"))
    run_suite(suite, tmp_path / "out")
    assert len(read_jsonl(tmp_path / "out" / "results.jsonl")) == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"teachers": {"kinds": ["tfidf"]}}, "meta_kd tasks bring their teachers"),
        ({"labels": 20}, "'labels' would be ignored beside meta_kd"),
        ({"student": {"max_length": 13}}, "they read 13 and 12 tokens"),
        ({"weightings": ["singel"]}, "unknown weighting 'singel'"),
        ({"meta_kd": {"domain": "kitchen"}}, "needs the students' domain and teachers with an encoder"),
        ({"system": "metakd"}, "unknown system"),
        ({"system": None}, "'meta_kd' needs 'system: meta_kd' at the top"),
    ],
)
def test_suites_that_say_what_cannot_be_are_refused_by_place(data, encoder, tmp_path, wrong, said):
    changed = {"weightings": ["meta_kd"], "tasks": [{"name": "kitchen", "meta_kd": {"domain": "kitchen"}}], **wrong}
    with pytest.raises(RlkdError, match=said):
        load_suite(suite_of(encoder, data, tmp_path, **changed))


def test_unknown_teachers_and_left_out_ones_become_failed_rows(data, encoder, tmp_path):
    changed = {"tasks": [{"name": "x", "weightings": ["single"], "meta_kd": {"domain": "kitchen", "leave_out": True}}]}
    records = run_suite(load_suite(suite_of(encoder, data, tmp_path, **changed)), tmp_path / "out")
    assert {record["status"] for record in records} == {"failed"}
    assert "has no teacher of its own; drop 'single'" in records[0]["error"]


def test_the_suite_of_the_repository_can_be_planned_and_says_what_it_must():
    path = Path(__file__).parents[2] / "benchmarks" / "suites" / "meta_kd.yaml"
    suite = load_suite(path)
    tasks = {task.name: task for task in suite.tasks}
    assert all(len(tasks[name].seeds) >= 5 for name in ("books", "dvd", "electronics", "kitchen"))
    assert all(len(task.seeds) >= 3 for task in suite.tasks)
    rows = {"single", "mixed", "multi_task", "average", "meta", "meta_kd", "router", "policy", "policy_shuffle"}
    assert rows <= set(tasks["travel"].weightings)
    assert sorted(t.system.fraction for t in suite.tasks if t.system.fraction) == [0.02, 0.05, 0.1, 0.5]
    assert tasks["fiction-unseen"].system.leave_out
    ablated = [tasks["kitchen-ablated"].system.entries[name] for name in tasks["kitchen-ablated"].weightings]
    assert len({repr(arm) for arm in ablated}) == len(ablated)  # no two arms are the same
    plan = select(suite, smoke=True)
    check_suite(plan)
    assert {arm.distillation.feature_steps for task in plan.tasks for arm in task.system.entries.values()} == {10}


def test_a_policy_of_meta_kd_must_say_that_its_students_are_others():
    """Students of Meta-KD learn features first; those of the environment do not."""
    path = Path(__file__).parents[2] / "benchmarks" / "suites" / "meta_kd.yaml"
    suite = load_suite(path)
    check_suite(suite)
    plan = suite.tasks[0].policies["policy"]
    silent = replace(plan, settings={k: v for k, v in plan.settings.items() if k != "student"})
    task = replace(suite.tasks[0], policies={"policy": silent})
    with pytest.raises(ConfigError, match="students of Meta-KD learn features first"):
        check_suite(replace(suite, tasks=(task,)))
