"""What decides a teacher's logits: the row and nothing beside it; and what decides them is in its identity."""

import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import KINDS, LABELS, PAD, POSITIONS, network, saved, task_of_texts, tokenizer_for
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from tokenizers import normalizers, pre_tokenizers, processors
from transformers import BertForSequenceClassification

from rlkd.data.batching import encode_inputs
from rlkd.data.collection import TaskCollection
from rlkd.data.task import Task
from rlkd.errors import CacheError, ConfigError, RlkdError, StudentError, TeacherError
from rlkd.logit_cache import build_cache, load_cache
from rlkd.logit_cache.encoders import LiveEncoders
from rlkd.models import (
    CallableTeacher,
    HfTeacher,
    SklearnTeacher,
    load_multi_task,
    load_student,
    load_teachers,
    save_hf_teacher,
)
from rlkd.models.embedding import TextEmbedder
from rlkd.models.fitting import most_tokens
from rlkd.models.identity import BOOKKEEPING
from rlkd.models.networks import forward_inputs
from rlkd.models.students import check_student
from rlkd.types import ONCE

TASK = task_of_texts(rows=24)
ALL = np.arange(len(TASK.table))
WIDTH = 32
FAST = settings(max_examples=4, derandomize=True, deadline=None, database=None)
LONG = settings(max_examples=60, derandomize=True, deadline=None, database=None)
BATCHES = st.lists(st.sampled_from(ALL.tolist()), min_size=1, max_size=12)
SIDES, PADS = ("right", "left"), ("own", "another", "none")


def alone(model: Any, tokenizer: Any, task: Task = TASK) -> torch.Tensor:
    """What a network answers to each row alone, asked here and not by the package."""
    inputs = encode_inputs(task, tokenizer, WIDTH)
    with torch.no_grad():
        return torch.cat([model(**forward_inputs(model, inputs.batch(ids[None]))).logits for ids in ALL])


def assert_alike(answers: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(answers, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@functools.cache
def mismatched(kind: str, side: str, pad: str) -> HfTeacher:
    """A teacher whose configuration and tokenizer may disagree about padding."""
    tokenizer = tokenizer_for(kind, side)
    model = network(kind, tokenizer)
    if pad != "own" and not (pad == "none" and kind in ("bart", "t5")):  # these two cannot do without
        model.config.pad_token_id = 5 if pad == "another" else None
    return HfTeacher("t", model, tokenizer, device="cpu")


@functools.cache
def answers_alone(kind: str) -> torch.Tensor:
    tokenizer = tokenizer_for(kind)
    return alone(network(kind, tokenizer), tokenizer)


# --- a row's logits are the same alone and in any batch


def check_batches(kind: str, ids: list[int], batch_size: int) -> None:
    for side in SIDES:
        for pad in PADS:
            rows = np.array(ids)
            answers = mismatched(kind, side, pad).logits(TASK, rows, batch_size=batch_size, max_length=WIDTH)
            assert_alike(answers, answers_alone(kind)[rows])


@pytest.mark.parametrize("kind", KINDS)
@FAST
@given(BATCHES, st.integers(1, 12))
def test_a_teacher_answers_a_row_alone_as_in_any_batch(kind: str, ids: list[int], batch_size: int) -> None:
    check_batches(kind, ids, batch_size)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@LONG
@given(BATCHES, st.integers(1, 12))
def test_a_teacher_answers_a_row_alone_as_in_any_batch_at_length(kind: str, ids: list[int], batch_size: int) -> None:
    check_batches(kind, ids, batch_size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pretrained_student_answers_a_row_alone_as_in_any_batch(kind: str, tmp_path: Path) -> None:
    for side in SIDES:
        tokenizer = tokenizer_for(kind, side)
        model, expected = network(kind, tokenizer), answers_alone(kind)
        if kind not in ("roberta", "mpnet"):  # a file of these says what their positions begin with
            model.config.pad_token_id = 5
        path = save_hf_teacher(model, tokenizer, tmp_path / side, name="t")
        before = {file.name: file.read_bytes() for file in path.iterdir()}
        student, own = load_student(str(path), TASK)
        assert {file.name: file.read_bytes() for file in path.iterdir()} == before
        assert student.training
        inputs = encode_inputs(TASK, own, WIDTH)
        with torch.no_grad():
            assert_alike(student.eval()(**forward_inputs(student, inputs.batch(ALL))).logits, expected)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("name", ["rlkd/bilstm", "rlkd/tiny"])
@FAST
@given(BATCHES, st.sampled_from(SIDES))
def test_students_of_ours_answer_a_row_alone_as_in_any_batch(pairs: bool, name: str, ids: list[int], side: str) -> None:
    if name == "rlkd/tiny" and side == "left":
        return  # absolute positions, and its own tokenizer pads on the right
    task = task_of_texts(pairs=pairs)
    model, tokenizer, several, words = ours(name, pairs)
    tokenizer, words = copy.copy(tokenizer), copy.copy(words)
    tokenizer.padding_side = words.padding_side = side
    for network_, reader, extra in ((model, tokenizer, {}), (several, words, {"task": task.name})):
        inputs = encode_inputs(task, reader, WIDTH)
        with torch.no_grad():
            together = network_(**inputs.batch(np.array(ids)), **extra).logits
            singles = torch.cat([network_(**inputs.batch(np.array([i])), **extra).logits for i in ids])
        assert_alike(together, singles)


@functools.cache
def ours(name: str, pairs: bool) -> tuple[Any, Any, Any, Any]:
    task = task_of_texts(pairs=pairs)
    model, tokenizer = load_student(name, task)
    several, words = load_multi_task(name, TaskCollection((task,)))
    return model.eval(), tokenizer, several.eval(), words


def test_vectors_are_answered_alone_as_in_any_batch() -> None:
    vectors = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    model = load_student("rlkd/mlp", task_of_texts(vectors=True))[0].eval()
    together = model(input_values=torch.from_numpy(vectors)).logits
    assert_alike(together, torch.cat([model(input_values=torch.from_numpy(row[None])).logits for row in vectors]))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("side", SIDES)
def test_encoders_of_several_tasks_and_embedders_answer_alone_as_in_any_batch(
    kind: str, side: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_for(kind, side)
    path = saved(kind, tmp_path, tokenizer, pad_token_id=5)
    model, own = load_multi_task(str(path), TaskCollection((TASK,)))
    inputs = encode_inputs(TASK, own, WIDTH)
    with torch.no_grad():
        together = model.eval()(**inputs.batch(ALL)).logits
        assert_alike(together, torch.cat([model(**inputs.batch(row[None])).logits for row in ALL]))
    texts = list(TASK.table.texts or ())
    many, one = (TextEmbedder(str(path), batch_size=size, device="cpu")(texts) for size in (16, 1))
    assert_alike(torch.from_numpy(many), torch.from_numpy(one))


def test_a_decoder_padded_with_another_token_is_mended_in_memory(tmp_path: Path) -> None:
    tokenizer = tokenizer_for("gpt2")
    path = saved("gpt2", tmp_path, tokenizer, pad_token_id=12)
    before = (path / "config.json").read_bytes()
    (teacher,) = load_teachers([path], TASK, device="cpu")
    assert isinstance(teacher, HfTeacher)
    assert teacher.model.config.pad_token_id == PAD
    answers = [teacher.logits(TASK, ALL, batch_size=size, max_length=WIDTH) for size in (16, 1)]
    assert_alike(*answers)
    assert (path / "config.json").read_bytes() == before
    unmended = network("gpt2", tokenizer)
    unmended.config.pad_token_id = 12
    batch = encode_inputs(TASK, tokenizer, WIDTH).batch(ALL)
    with torch.no_grad():  # what would be answered without the mending
        assert (unmended(**batch).logits - answers[1]).abs().max() > 1
    bare = tokenizer_for("gpt2")
    bare.pad_token = None
    mended = HfTeacher("bare", network("gpt2", tokenizer, pad_token_id=None), bare, device="cpu")
    assert bare.pad_token is None, "a tokenizer may be that of others too"
    assert_alike(*(mended.logits(TASK, ALL, batch_size=size, max_length=WIDTH) for size in (16, 1)))


class Peeking(BertForSequenceClassification):
    """What a row gets depends on its neighbours, whatever the padding."""

    def forward(self, input_ids: Any, attention_mask: Any = None, **inputs: Any) -> Any:
        answer = super().forward(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        answer.logits = answer.logits - answer.logits.mean(0)
        return answer


def test_networks_that_cannot_be_mended_are_refused_by_name(tmp_path: Path) -> None:
    tokenizer = tokenizer_for("bert")
    model = network("bert", tokenizer)
    peeking = Peeking(model.config)
    with pytest.raises(TeacherError, match=r"expected teacher 'peeks' to answer a row alone.*its answers differ by"):
        HfTeacher("peeks", peeking, tokenizer, device="cpu")
    small = network("bert", tokenizer, vocab_size=4, pad_token_id=0)
    with pytest.raises(TeacherError, match=r"teacher 'small'.*it fails \(index out of range"):
        HfTeacher("small", small, tokenizer, device="cpu")
    with pytest.raises(TeacherError, match=r"pads with token 5.*got one that pads with 9"):
        HfTeacher("counts", network("roberta", tokenizer, pad_token_id=5), tokenizer, device="cpu")
    nothing = tokenizer_for("bert", pad_token=None, eos_token=None)
    with pytest.raises(TeacherError, match=r"teacher 'padless'.*set tokenizer\.pad_token"):
        HfTeacher("padless", model, nothing, device="cpu")


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_outputs_that_are_no_logits_of_one_label_are_refused(kind: str, tmp_path: Path) -> None:
    path = str(saved("bert", tmp_path, tokenizer_for("bert"), problem_type=kind))
    with pytest.raises(TeacherError, match=f"expected teacher 'bert' to choose.*problem_type '{kind}'"):
        load_teachers([path], TASK)
    with pytest.raises(StudentError, match=f"expected student .*problem_type '{kind}'"):
        load_student(path, TASK)
    one = str(saved("bert", tmp_path, tokenizer_for("bert"), problem_type="single_label_classification"))
    assert len(load_teachers([one], TASK)) == 1
    load_student(one, TASK)


# --- no row is longer than what its model reads

LONG_TEXTS = task_of_texts(rows=48, longest=48)
LONG_IDS = np.arange(48)
NEEDED = np.array([2 + len(text.split()) for text in LONG_TEXTS.table.texts or ()])


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_row_is_what_the_network_can_read(kind: str) -> None:
    tokenizer = tokenizer_for(kind)
    model = network(kind, tokenizer)
    most = most_tokens(model)
    expected = {"roberta": POSITIONS - PAD - 1, "mpnet": POSITIONS - 2, "xlnet": None, "t5": None}
    assert most == expected.get(kind, POSITIONS)
    ids = torch.full((1, most or 3 * POSITIONS), 4)
    ids[0, -1] = tokenizer.eos_token_id
    with torch.no_grad():
        assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all()
        if kind not in (
            "llama",
            "deberta-v2",
            "xlnet",
            "t5",
            "bart",
        ):  # these have positions without an end, or two more
            longer = torch.cat([ids[:, :1], ids], dim=1)
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=longer, attention_mask=torch.ones_like(longer))


@pytest.mark.parametrize("kind", KINDS)
def test_texts_longer_than_positions_are_cut_and_told(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(saved(kind, tmp_path, tokenizer_for(kind)))
    (teacher,) = load_teachers([path], LONG_TEXTS, device="cpu")
    assert isinstance(teacher, HfTeacher)
    limit = most_tokens(teacher.model) or 1024
    answers = teacher.logits(LONG_TEXTS, LONG_IDS, batch_size=16, max_length=1024)
    assert answers.isfinite().all()
    told = [record.getMessage() for record in caplog.records]
    cut = int((NEEDED > limit).sum())
    assert told == ([] if limit == 1024 else [told_of(cut, limit)])
    assert torch.equal(answers, teacher.logits(LONG_TEXTS, LONG_IDS, batch_size=16, max_length=min(limit, 1024)))
    model, tokenizer = load_student(path, LONG_TEXTS)
    check_student(path, LONG_TEXTS, max_length=1024)
    inputs = encode_inputs(LONG_TEXTS, tokenizer, 1024)
    assert inputs.lengths.tolist() == np.minimum(NEEDED, limit).tolist()
    assert model(**forward_inputs(model, inputs.batch(LONG_IDS))).logits.isfinite().all()


def told_of(cut: int, limit: int) -> str:
    return f"{cut} of 48 texts are cut to {limit} tokens, the most that their model reads; max_length is 1024"


def test_nothing_is_told_where_nothing_is_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (teacher,) = load_teachers([saved("bert", tmp_path, tokenizer_for("bert"))], TASK, device="cpu")
    full = task_of_texts(longest=POSITIONS - 2)
    assert isinstance(teacher, HfTeacher)
    assert teacher.inputs(full, 1024).lengths.max() == POSITIONS  # as long as it reads, and no longer
    teacher.inputs(LONG_TEXTS, 16)  # the user's own wish
    assert caplog.records == []


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_embedders_live_encoders_and_shared_encoders_cut_too(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(saved(kind, tmp_path, tokenizer_for(kind)))
    texts = list(LONG_TEXTS.table.texts or ())
    limit = POSITIONS - PAD - 1 if kind == "roberta" else POSITIONS
    embedder = TextEmbedder(path, max_length=1024, device="cpu")
    assert np.isfinite(embedder(texts)).all()
    assert [record.getMessage() for record in caplog.records] == [told_of(int((NEEDED > limit).sum()), limit)]
    (teacher,) = load_teachers([path], LONG_TEXTS, device="cpu")
    live = LiveEncoders([teacher], LONG_TEXTS, max_length=1024)  # type: ignore[list-item]
    assert live.rows(torch.from_numpy(LONG_IDS)).isfinite().all()
    assert live.tokens(LONG_IDS)[0]["input_ids"].shape[1] == limit
    _, tokenizer = load_multi_task(path, TaskCollection((LONG_TEXTS,)))
    assert encode_inputs(LONG_TEXTS, tokenizer, 1024).lengths.max() == limit
    assert tokenizer.model_max_length == limit


def test_a_shared_tokenizer_is_not_shortened_for_others() -> None:
    tokenizer = tokenizer_for("bert")
    long, short = (
        HfTeacher(str(n), network("bert", tokenizer, max_position_embeddings=n), tokenizer, device="cpu")
        for n in (45, 20)
    )
    assert [int(t.inputs(LONG_TEXTS, 1024).lengths.max()) for t in (long, short)] == [45, 20]
    assert tokenizer.model_max_length == 10**30
    with pytest.raises(ConfigError, match="must read at least 3 tokens"):
        encode_inputs(TASK, tokenizer_for("bert", model_max_length=2), 8)


# --- the identity changes whenever the logits do

WORDS_FOR = {
    "hidden_act": "relu",
    "activation": "relu",
    "activation_function": "relu",
    "ff_activation": "relu",
    "pooler_hidden_act": "relu",
    "summary_type": "first",
    "attn_type": "uni",
    "rope_type": "linear",
}


def flips(values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of a configuration with another value of its type, one at a time."""
    for key, value in values.items():
        others: list[Any] = []
        if isinstance(value, bool):
            others = [not value]
        elif isinstance(value, int):
            others = [value + 1, 2 * value, value // 2]
        elif isinstance(value, float):
            others = [value * 3 + 0.01]
        elif isinstance(value, str):
            others = [WORDS_FOR[key]] if key in WORDS_FOR else [value + "-other"]
        elif isinstance(value, dict) and key not in ("id2label", "label2id"):
            others = [inner for _, inner in flips(value)]
        elif isinstance(value, list) and value:
            others = [value[:-1], value[::-1]]
        elif value is None:
            others = [3, True, 0.5]
        for other in others:
            yield key, {**values, key: other}


def rebuilt(kind: str, values: dict[str, Any], base: HfTeacher) -> HfTeacher | None:
    """The same weights under another configuration; None: there is no such network."""
    try:
        config = KINDS[kind][0](**values)
        model = type(base.model)(config).eval()
        model.load_state_dict(base.model.state_dict())
        model.config = config
        return HfTeacher("t", model, base.tokenizer, device="cpu")
    except Exception:
        return None  # transformers refuses in many ways


def identities(kind: str) -> tuple[set[str], set[str]]:
    """Fields whose change moved the logits, and those of them under which the identity stayed."""
    tokenizer = tokenizer_for(kind)
    base = HfTeacher("t", network(kind, tokenizer), tokenizer, device="cpu")
    expected, values = answers_of(base), base.model.config.to_dict()
    moved, stale = set(), set()
    for key, changed in flips(values):
        other = rebuilt(kind, changed, base)
        if other is not None and not torch.equal(answers_of(other), expected):
            moved.add(key)
            stale |= {key} if other.identity == base.identity else set()
    return moved, stale


def answers_of(teacher: HfTeacher) -> torch.Tensor:
    teacher._encoded = None
    return teacher.logits(LONG_TEXTS, LONG_IDS[36:], batch_size=12, max_length=1024)


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("bert", {"num_attention_heads", "hidden_act", "layer_norm_eps"}),
        ("gpt2", {"n_head", "activation_function", "layer_norm_epsilon", "scale_attn_by_inverse_layer_idx"}),
        *(
            pytest.param(kind, known, marks=pytest.mark.slow)
            for kind, known in {
                "llama": {"hidden_act", "rms_norm_eps", "rope_parameters"},
                "distilbert": {"n_heads", "activation"},
                "deberta-v2": {"num_attention_heads", "hidden_act", "layer_norm_eps"},
                "xlnet": {"ff_activation", "layer_norm_eps", "summary_type"},
            }.items()
        ),
    ],
)
def test_the_identity_changes_with_every_field_that_moves_the_logits(kind: str, known: set[str]) -> None:
    moved, stale = identities(kind)
    assert known <= moved, "the test moves logits"
    assert stale == set()
    assert moved.isdisjoint(BOOKKEEPING)


def test_identities_are_the_same_after_saving(tmp_path: Path) -> None:
    for kind in KINDS:
        tokenizer = tokenizer_for(kind, "left", truncation_side="left")
        path = saved(kind, tmp_path, tokenizer)
        (loaded,) = load_teachers([path], TASK, device="cpu")
        assert loaded.identity == HfTeacher(kind, network(kind, tokenizer), tokenizer, device="cpu").identity, kind


def test_a_mended_padding_token_is_in_the_identity() -> None:
    tokenizer = tokenizer_for("gpt2")
    own, mended = (
        HfTeacher("t", network("gpt2", tokenizer_for("gpt2"), pad_token_id=pad), reader, device="cpu")
        for pad, reader in ((PAD, tokenizer), (6, tokenizer_for("gpt2", pad_token=tokenizer.convert_ids_to_tokens(6))))
    )
    assert own.identity != mended.identity


BACKENDS: dict[str, Any] = {
    "normalizer": lambda backend: setattr(backend, "normalizer", normalizers.Replace("a", "o")),
    "pre_tokenizer": lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.CharDelimiterSplit("a")),
    "post_processor": lambda backend: setattr(
        backend, "post_processor", processors.TemplateProcessing("$A [SEP]", special_tokens=[("[SEP]", 3)])
    ),
    "added token": lambda backend: backend.add_tokens(["warm cold"]),
}


def tokenizer_flips(tokenizer: Any) -> Iterator[tuple[str, Any]]:
    """Tokenizers with one other setting each."""
    told = {name: value for name, value in vars(tokenizer).items() if not name.startswith("__")}
    for name, value in {
        **told,
        **{name: getattr(tokenizer, name) for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES},
    }.items():
        others: list[Any] = []
        if isinstance(value, bool):
            others = [not value]
        elif isinstance(value, int):
            others = [max(0, value - 3), value + 1, 8]
        elif value in SIDES:
            others = [side for side in SIDES if side != value]
        elif isinstance(value, str):
            others = ["flat"]
        elif isinstance(value, list):
            others = [value[:-1], value[:1]]
        for other in others:
            changed = copy.deepcopy(tokenizer)
            try:
                setattr(changed, name, other)
            except Exception:
                continue
            yield name, changed
    for name, change in BACKENDS.items():
        changed = copy.deepcopy(tokenizer)
        change(changed.backend_tokenizer)
        yield name, changed


@pytest.mark.parametrize(
    "kind", ["bert", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt2", "llama", "xlnet"))]
)
def test_the_identity_changes_with_every_setting_of_the_tokenizer_that_moves_the_logits(kind: str) -> None:
    tokenizer = tokenizer_for(kind, model_max_length=12)
    model = network(kind, tokenizer)
    base = HfTeacher("t", model, tokenizer, device="cpu")
    expected, identity = answers_of(base), base.identity
    moved, stale = set(), set()
    for name, changed in tokenizer_flips(tokenizer):
        model.config.pad_token_id = PAD
        try:
            other = HfTeacher("t", model, changed, device="cpu")
            different = not torch.equal(answers_of(other), expected)
        except (RlkdError, IndexError, KeyError, TypeError, AttributeError):
            continue
        if different:
            moved.add(name)
            stale |= {name} if other.identity == identity else set()
    assert {"truncation_side", "model_max_length", "normalizer", "pre_tokenizer", "post_processor"} <= moved
    assert stale == set()


def test_a_cache_of_a_teacher_that_was_changed_is_refused_by_name(tmp_path: Path) -> None:
    tokenizer = tokenizer_for("bert")
    path = saved("bert", tmp_path, tokenizer)
    teachers = load_teachers([path], LONG_TEXTS, device="cpu")
    build_cache(teachers, LONG_TEXTS, tmp_path / "cache", max_length=16)
    assert len(build_cache(load_teachers([path], LONG_TEXTS), LONG_TEXTS, tmp_path / "cache", max_length=16)) == 48
    saved("bert", tmp_path, tokenizer_for("bert", truncation_side="left"))
    changed = load_teachers([path], LONG_TEXTS, device="cpu")
    message = r"made with another 'bert'.*got a change in 1 of 1 teachers.*build it again with --overwrite"
    with pytest.raises(CacheError, match=message):
        build_cache(changed, LONG_TEXTS, tmp_path / "cache", max_length=16)
    with pytest.raises(CacheError, match=message):
        load_cache(tmp_path / "cache", LONG_TEXTS, teachers=changed)


class Own(BertForSequenceClassification):
    """A user's own network, whose code is not in any library."""

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        answer = super().forward(input_ids, attention_mask)
        answer.logits = answer.logits * 2
        return answer


def test_the_code_of_a_users_own_network_is_in_its_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_for("bert")
    model = Own(network("bert", tokenizer).config)
    before = HfTeacher("t", model, tokenizer, device="cpu").identity
    assert HfTeacher("t", model, tokenizer, device="cpu").identity == before
    plain = BertForSequenceClassification.forward
    monkeypatch.setattr(Own, "forward", lambda self, input_ids, attention_mask: plain(self, input_ids, attention_mask))
    assert HfTeacher("t", model, tokenizer, device="cpu").identity != before


# --- functions: of scikit-learn models, and teachers themselves

SOURCES = {
    "body": "def f(text): return text[:{n}]",
    "default": "def f(text, n={n}): return text[:n]",
    "keyword default": "def f(text, *, n={n}): return text[:n]",
    "closure": "def make(n):\n    def f(text): return text[:n]\n    return f\nf = make({n})",
    "cell of a function": "def make(g):\n    return lambda text: g(text)\nf = make(lambda text: text[:{n}])",
    "global": "N = {n}\ndef f(text): return text[:N]",
    "global table": "TABLE = {{'n': [{n}]}}\ndef f(text): return text[:TABLE['n'][0]]",
    "helper": "def cut(text): return text[:{n}]\ndef f(text): return cut(text)",
    "helper's helper": "def n(): return {n}\ndef cut(text): return text[:n()]\ndef f(text): return cut(text)",
    "nested": "def f(text):\n    def cut(): return text[:{n}]\n    return cut()",
    "comprehension": "def f(text): return ''.join(c for i, c in enumerate(text) if i < {n})",
    "partial": "import functools\ndef cut(n, text): return text[:n]\nf = functools.partial(cut, {n})",
    "keyword of a partial": "import functools\ndef cut(text, n): return text[:n]\nf = functools.partial(cut, n={n})",
    "method": "class C:\n    def __init__(self, n): self.n = n\n"
    "    def f(self, text): return text[:self.n]\nf = C({n}).f",
    "call": "class C:\n    def __call__(self, text): return text[:{n}]\nf = C()",
    "class attribute": "class C:\n    n = {n}\n    def __call__(self, text): return text[:self.n]\nf = C()",
    "base class": "class B:\n    def cut(self, text): return text[:{n}]\nclass C(B):\n"
    "    def __call__(self, text): return self.cut(text)\nf = C()",
    "static method": "class C:\n    @staticmethod\n    def cut(text): return text[:{n}]\n"
    "def f(text): return C.cut(text)",
    "slots": "class C:\n    __slots__ = ('n',)\n    def __init__(self, n): self.n = n\n"
    "    def __call__(self, text): return text[:self.n]\nf = C({n})",
    "wrapped": "import functools\n@functools.wraps(str.strip)\ndef f(text): return text[:{n}]",
    "of a library's name": "import numpy as np, functools\n@functools.wraps(np.mean)\ndef f(text): return text[:{n}]",
    "attribute": "def f(text): return text[:f.n]\nf.n = {n}",
    "cached": "import functools\n@functools.lru_cache\ndef f(text): return text[:{n}]",
    "pattern": "import re, functools\nf = functools.partial(re.compile('^.{{{n}}}').sub, '')",
    "recursive": "def f(text): return text if len(text) <= {n} else f(text[:-1])",
    "getter": "import operator\nf = operator.itemgetter(slice(0, {n}))",
}


def made(source: str, n: int, lines: int = 0) -> Any:
    """The function of a user's file, in which ``n`` decides what it does; ``lines`` moves it down in the file."""
    space: dict[str, Any] = {"__name__": "users_file"}
    exec("\n" * lines + source.format(n=n), space)
    return space["f"]


def counting(preprocessor: Any) -> SklearnTeacher:
    texts, labels = [f"{word} {word}" for word in LABELS], list(LABELS)
    model = make_pipeline(CountVectorizer(preprocessor=preprocessor, token_pattern="."), LogisticRegression())
    return SklearnTeacher("t", model.fit(texts, labels))


@pytest.mark.parametrize("what", SOURCES)
@settings(max_examples=4, derandomize=True, deadline=None, database=None)
@given(st.integers(20, 10**6), st.integers(20, 10**6))
def test_a_functions_whole_content_is_in_the_identity(what: str, n: int, other: int) -> None:
    source = SOURCES[what]
    if what == "pattern":
        n, other = n % 60 + 20, other % 60 + 20
    # texts are shorter than n, so that the fitted state is the same
    identity = counting(made(source, n)).identity
    assert not identity.startswith(ONCE)
    assert identity == counting(made(source, n, lines=7)).identity, "the same function elsewhere in its file"
    assert (identity == counting(made(source, other)).identity) == (n == other)


def test_functions_of_other_estimators_are_in_the_identity() -> None:
    class Scale(TransformerMixin, BaseEstimator):  # type: ignore[misc]
        def fit(self, rows: Any, labels: Any = None) -> Any:
            return self

        def transform(self, rows: Any) -> Any:
            return np.asarray(rows) * 2

    rows, labels = np.random.default_rng(0).normal(size=(30, 3)), np.arange(30) % 2

    def identity(step: Any) -> str:
        return SklearnTeacher("t", make_pipeline(step, LogisticRegression()).fit(rows, labels)).identity

    double = identity(FunctionTransformer(made("def f(x): return x * 2.0", 0)))
    assert double == identity(FunctionTransformer(made("def f(x): return x * 2.0", 0)))
    assert double != identity(FunctionTransformer(made("def f(x): return x + x", 0)))
    assert identity(FunctionTransformer(np.tanh)) != identity(FunctionTransformer(np.exp))
    before = identity(Scale())
    assert before == identity(Scale())

    def scaled(transform: Any) -> Any:  # scikit-learn wraps transform when the class is made
        return type("Scaled", (Scale,), {"transform": transform, "__module__": __name__})()

    twice = identity(scaled(lambda self, rows: np.asarray(rows) * 2))
    assert twice != identity(scaled(lambda self, rows: np.asarray(rows) + np.asarray(rows)))
    Scale.transform = lambda self, rows: np.asarray(rows) + np.asarray(rows)  # type: ignore[method-assign]
    assert before != identity(Scale())
    assert counting(str.lower).identity != counting(str.strip).identity


def test_what_cannot_be_read_is_never_taken_for_the_same(tmp_path: Path) -> None:
    with open(__file__, encoding="utf-8") as file:
        opened = functools.partial(lambda handle, text: text, file)
        first, second = counting(opened), counting(opened)
        assert first.identity.startswith(ONCE)
        assert first.identity == first.identity != second.identity


def scores(shift: float) -> Any:
    return lambda texts: [[len(text) + shift, 0.0, 1.0] for text in texts]


def test_a_callable_without_an_identity_is_asked_anew(tmp_path: Path) -> None:
    teachers = [CallableTeacher("rule", scores(shift), LABELS) for shift in (0.0, 5.0)]
    cache = build_cache(teachers[:1], TASK, tmp_path / "cache")
    message = r"made with another 'rule'.*give 'rule' an identity \(a name and a version\), as"
    with pytest.raises(CacheError, match=message):
        build_cache(teachers[1:], TASK, tmp_path / "cache")
    again = build_cache(teachers[1:], TASK, tmp_path / "cache", overwrite=True)
    row = torch.tensor([3])
    assert (again.rows(row) - cache.rows(row)).squeeze().tolist() == [5.0, 0.0, 0.0]
    with pytest.raises(CacheError, match=message):
        load_cache(tmp_path / "cache", TASK, teachers=[CallableTeacher("rule", functools.partial(scores, 0), LABELS)])
    named = [CallableTeacher("rule", scores(0.0), LABELS, identity=f"length-{version}") for version in (1, 1, 2)]
    build_cache(named[:1], TASK, tmp_path / "named")
    build_cache(named[1:2], TASK, tmp_path / "named")
    with pytest.raises(CacheError, match="made with another 'rule'"):
        build_cache(named[2:], TASK, tmp_path / "named")


def test_an_embedder_that_was_changed_is_refused(tmp_path: Path) -> None:
    rule = [CallableTeacher("rule", scores(0.0), LABELS, identity="1")]

    def embedder(n: float) -> Any:
        return lambda texts: np.array([[len(text) + n, 1.0] for text in texts])

    build_cache(rule, TASK, tmp_path / "cache", embedder=embedder(1.0))
    build_cache(rule, TASK, tmp_path / "cache", embedder=embedder(1.0))
    with pytest.raises(CacheError, match="embedder_identity"):
        build_cache(rule, TASK, tmp_path / "cache", embedder=embedder(2.0))
    encoders = []
    for side in SIDES:
        path = saved("bert", tmp_path / side, tokenizer_for("bert", truncation_side=side))
        encoders.append(TextEmbedder(str(path), max_length=8, device="cpu"))
    assert encoders[0].identity != encoders[1].identity
    assert encoders[0].identity != TextEmbedder(encoders[0].name, max_length=9, device="cpu").identity
