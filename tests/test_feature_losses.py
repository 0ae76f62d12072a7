"""Feature losses: layer maps and values by hand, weights of teachers, projections that learn, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from rlkd.data.task import Table, Task
from rlkd.errors import ConfigError, StudentError
from rlkd.feature_losses import (
    AttentionTerm,
    EncoderSizes,
    FeatureBatch,
    FeatureLosses,
    FeatureSettings,
    HiddenTerm,
    Projections,
    attention_layer_map,
    attention_loss,
    hidden_layer_map,
    hidden_loss,
    make_feature_losses,
)
from rlkd.logit_cache import LiveEncoders, LogitCache
from rlkd.models import HfTeacher, load_student, save_hf_teacher, train_tokenizer
from rlkd.models.inner_states import read_inner_states
from rlkd.settings import StudentSettings
from rlkd.trainer import FEATURES, make_trainer
from rlkd.types import InnerStates, State, Wanted
from rlkd.weighting import Mixture
from rlkd.weighting.fixed import Fixed, Uniform

WORDS = "red blue green warm cold deep bright calm".split()


def text_task(rows: int = 48) -> Task:
    """Two classes by their words; lengths from 2 to 7."""
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % 2
    texts = tuple(" ".join(rng.choice(WORDS[4 * y : 4 * y + 4], 2 + i % 6)) for i, y in enumerate(labels))
    bounds = np.cumsum([0, rows // 2, rows // 6, rows // 6, rows - 5 * (rows // 6)])
    splits = {
        name: np.arange(bounds[i], bounds[i + 1]) for i, name in enumerate(("train", "probe", "validation", "test"))
    }
    table = Table(labels=labels, domains=np.arange(rows) // 2 % 3, texts=texts)
    return Task(name="words", label_names=("warm", "cold"), table=table, splits=splits, domain_names=("a", "b", "c"))


def encoder(
    vocabulary: int, *, layers: int, width: int, heads: int = 2, seed: int = 0
) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=2 * width,
            max_position_embeddings=32,
            id2label={0: "warm", 1: "cold"},
            label2id={"warm": 0, "cold": 1},
        )
    )


@pytest.fixture(scope="module")
def task() -> Task:
    return text_task()


@pytest.fixture(scope="module")
def tokenizer(task):
    return train_tokenizer(task.table.texts)


@pytest.fixture(scope="module")
def teachers(tokenizer):
    names = ("one", "two")
    models = [encoder(len(tokenizer), layers=4, width=16, seed=seed) for seed in range(2)]
    return [HfTeacher(name, model, tokenizer, device="cpu") for name, model in zip(names, models, strict=True)]


@pytest.fixture(scope="module")
def student_folder(task, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("student")
    return str(save_hf_teacher(encoder(len(tokenizer), layers=2, width=8, seed=9), tokenizer, path, name="student"))


def test_layer_maps():
    assert hidden_layer_map(12, 4) == (0, 3, 6, 9, 12)
    assert attention_layer_map(12, 4) == (2, 5, 8, 11)
    assert hidden_layer_map(6, 3) == (0, 2, 4, 6)
    assert attention_layer_map(6, 3) == (1, 3, 5)
    with pytest.raises(StudentError, match="4 layers must divide 6"):
        hidden_layer_map(6, 4)


def test_losses_by_hand_do_not_see_padding():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    student, teacher = torch.zeros(2, 3, 2), torch.zeros(2, 3, 2)
    student[0, 0] = torch.tensor([1.0, 3.0])  # squares 1 and 9, mean 5, over two real tokens
    student[0, 2] = 100.0
    teacher[1, :, 0] = 2.0  # squares 4 and 0 on each of three tokens
    assert hidden_loss(student, teacher, mask).tolist() == [2.5, 2.0]
    scores = torch.zeros(2, 2, 3, 3)
    scores[0, 0, 0, 1] = 4.0  # 16 on one of two heads, over four pairs of real tokens
    scores[0, :, 2] = scores[0, :, :, 2] = 100.0
    scores[1] = 3.0
    assert attention_loss(scores, torch.zeros_like(scores), mask).tolist() == [2.0, 9.0]


def test_scores_are_what_the_softmax_gets_and_answers_stay(teachers, task):
    model = teachers[0].model
    batch = teachers[0].inputs(task, 16).batch(np.arange(6))
    plain = model(**batch).logits
    outputs, states = read_inner_states(model, batch, Wanted(hidden=(0, 4), attention=(1,)))
    assert torch.allclose(outputs.logits, plain, atol=1e-6)
    model.set_attn_implementation("eager")
    expected = model(**batch, output_attentions=True).attentions[1]
    masked = states.attention[1].masked_fill(~states.mask[:, None, None], -torch.inf)
    assert torch.allclose(masked.softmax(-1), expected, atol=1e-6)
    assert not torch.allclose(states.attention[1].sum(-1), torch.ones(()))
    assert states.hidden.keys() == {0, 4}


def states_of(values: float, layers=(0, 2, 4), width=16) -> InnerStates:
    return InnerStates(
        mask=torch.ones(2, 3, dtype=torch.bool),
        hidden={j: torch.full((2, 3, width), values) for j in layers},
        attention={j: torch.full((2, 2, 3, 3), values) for j in range(4)},
    )


SMALL, LARGE = EncoderSizes(layers=2, width=8, heads=2), EncoderSizes(layers=4, width=16, heads=2)


def test_teachers_are_weighted_for_each_instance_and_the_factor_counts_where_it_should():
    attends = AttentionTerm(SMALL, [LARGE, LARGE], weight=2.0)
    student = InnerStates(
        mask=torch.ones(2, 3, dtype=torch.bool), hidden={}, attention={j: torch.zeros(2, 2, 3, 3) for j in range(2)}
    )
    losses = FeatureLosses([attends], logits_weight=0)
    weights = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    state = State(teacher_logits=torch.zeros(2, 2, 2))
    taught = Mixture(teacher_logits=state.teacher_logits, weights=weights, scale=torch.tensor([1.0, 0.5]))
    both = (states_of(1.0), states_of(3.0))
    # two layers: teacher one costs 2 * 1, teacher two 2 * 9, the term counts twice
    assert losses.losses(student, both, state, taught).tolist() == [4.0, 2 * 0.5 * (0.25 * 2 + 0.75 * 18)]
    attends.scaled = False
    assert losses.losses(student, both, state, taught).tolist() == [4.0, 2 * (0.25 * 2 + 0.75 * 18)]
    own = FeatureLosses([attends], weighting=Fixed(torch.tensor([0.0, 1.0])))
    assert own.losses(student, both, state, taught).tolist() == [36.0, 36.0]


def test_hidden_terms_read_the_mapped_states():
    shared = Projections(SMALL, [LARGE])
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.zero_()
    student = states_of(0.0, layers=(0, 1, 2), width=8)
    teacher = replace(states_of(0.0), hidden={j: torch.full((2, 3, 16), float(j)) for j in (0, 2, 4)})
    batch = {"teachers": (teacher,), "state": State(teacher_logits=torch.zeros(2, 1, 2))}
    layers, embeddings = HiddenTerm(SMALL, [LARGE], shared), HiddenTerm(SMALL, [LARGE], shared, embeddings=True)
    assert layers.losses(FeatureBatch(student=student, **batch)).tolist() == [[20.0], [20.0]]
    assert embeddings.losses(FeatureBatch(student=student, **batch)).tolist() == [[0.0], [0.0]]
    assert layers.of_teachers == (Wanted(hidden=(2, 4)),)
    assert embeddings.of_student == Wanted(hidden=(0,))


def test_kept_states_are_those_of_a_fresh_pass_wherever_the_row_stands(teachers, task):
    wanted = [Wanted(hidden=(0, 4), attention=(3,)), Wanted(hidden=(2,))]
    kept, fresh = LiveEncoders(teachers, task, max_length=16), LiveEncoders(teachers, task, max_length=16, keep_bytes=0)
    kept.inner_states(torch.tensor([3, 9, 4]), wanted)
    ids = torch.tensor([10, 3, 5, 3])
    for mine, theirs in zip(kept.inner_states(ids, wanted), fresh.inner_states(ids, wanted), strict=True):
        assert torch.equal(mine.mask, theirs.mask)
        for found, expected in ((mine.hidden, theirs.hidden), (mine.attention, theirs.attention)):
            assert found.keys() == expected.keys()
            for key in found:
                assert torch.allclose(found[key], expected[key], atol=2e-3)
    assert torch.allclose(kept.rows(ids), fresh.rows(ids), atol=1e-5)


def trainer_of(task, source, teachers, folder, student, settings, **arguments):
    student_settings = StudentSettings(
        student=student, max_steps=arguments.pop("max_steps", 30), batch_size=8, learning_rate=5e-3, max_length=16
    )
    networks = [teacher.model for teacher in teachers]
    return make_trainer(
        task,
        source,
        Uniform(),
        student_settings,
        folder,
        features=lambda network: make_feature_losses(network, networks, settings),
        **arguments,
    )


EVERYTHING = FeatureSettings(embedding=1.0, hidden=1.0, attention=1.0, logits=0.0)


def test_a_student_learns_from_features_alone_and_is_saved_without_the_projections(
    task, teachers, student_folder, tmp_path
):
    source = LiveEncoders(teachers, task, max_length=16)
    trainer = trainer_of(
        task, source, teachers, tmp_path, student_folder, EVERYTHING, logging_strategy="steps", logging_steps=10
    )
    before = [parameter.detach().clone() for parameter in trainer.features.parameters()]
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1] < 0.8 * logged[0]
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.features.parameters(), strict=True))
    assert not hasattr(trainer.model, FEATURES)
    trainer.save_model(str(tmp_path / "student"))
    again, _ = load_student(str(tmp_path / "student"), task, tokenizer=trainer.processing_class)
    assert again.state_dict().keys() == trainer.model.state_dict().keys()
    assert again.config._attn_implementation == "sdpa"  # ours was borrowed for the training steps


def test_a_run_with_features_resumes_to_the_same_student(task, teachers, student_folder, tmp_path):
    settings = replace(EVERYTHING, logits=1.0)
    saving = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    source = LiveEncoders(teachers, task, max_length=16)
    whole = trainer_of(task, source, teachers, tmp_path / "whole", student_folder, settings, **saving)
    whole.train()
    resumed = trainer_of(task, source, teachers, tmp_path / "whole", student_folder, settings, **saving)
    (tmp_path / "whole" / "checkpoint-8" / "manifest.json").unlink()
    resumed.train(resume_from_checkpoint=True)
    assert np.allclose(resumed.predict_split("test"), whole.predict_split("test"), atol=1e-6)


def test_what_cannot_be_compared_is_refused_by_name(task, teachers, student_folder, tmp_path):
    cache = LogitCache([np.zeros((len(task.table), 2), dtype=np.float32)] * 2, ["one", "two"])
    with pytest.raises(ConfigError, match=r"hidden states, a LogitCache holds their logits only; pass LiveEncoders"):
        trainer_of(task, cache, teachers, tmp_path, student_folder, EVERYTHING)
    source = LiveEncoders(teachers, task, max_length=5)
    with pytest.raises(ConfigError, match="'one' reads other tokens than the student"):
        trainer_of(task, source, teachers, tmp_path, student_folder, EVERYTHING)
    with pytest.raises(StudentError, match="the student has 2, a teacher 4"):
        AttentionTerm(SMALL, [replace(LARGE, heads=4)])
    with pytest.raises(ConfigError, match="weight of the hidden loss must be >= 0, got -1"):
        FeatureSettings(hidden=-1)
    with pytest.raises(ConfigError, match="not 0, got none"):
        FeatureLosses([])
    source = LiveEncoders(teachers, task, max_length=16)
    some = FeatureLosses([AttentionTerm(SMALL, [LARGE, LARGE])])
    bilstm, _ = load_student("rlkd/bilstm", task, tokenizer=teachers[0].tokenizer)
    with pytest.raises(StudentError, match="BiLstmForSequenceClassification"):
        some.check(bilstm, source, teachers[0].inputs(task, 16), task.splits["train"])
    with pytest.raises(StudentError, match="BiLstmForSequenceClassification"):
        make_feature_losses(bilstm, [teacher.model for teacher in teachers], EVERYTHING)
