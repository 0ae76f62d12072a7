"""Tokens: what a policy says of each in the plain trainer, and weightings that are fitted on those with a label."""

import ast
import importlib
import tokenize
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from networks import WORDS, network, tokenizer_for
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForTokenClassification, GPT2Config, GPT2LMHeadModel

import rlkd
from rlkd.errors import TaskError
from rlkd.trainer.labelled import NEIGHBOURS
from rlkd.types import State
from rlkd.weighting import learned, load_weighting
from rlkd.weighting.router import Router

QUIET = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": 3, "max_steps": 1}
WORDS_IN_ALL = 30


def causal_model(seed):
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 24, "initializer_range": 0.8}
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS_IN_ALL, **sizes, **still))


def tagger(seed):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    sizes["initializer_range"] = 0.8
    torch.manual_seed(seed)
    return BertForTokenClassification(BertConfig(vocab_size=WORDS_IN_ALL, num_labels=4, **sizes))


def some_tokens(count=16, classes=WORDS_IN_ALL):
    rng = np.random.default_rng(0)
    rows = []
    for row in range(count):
        size = 4 + row % 6
        ids = rng.integers(1, WORDS_IN_ALL, size)
        labels = np.where(rng.random(size) < 0.3, -100, ids % classes)
        rows.append({"input_ids": ids.tolist(), "attention_mask": [1] * size, "labels": labels.tolist()})
    return rows


def padded_to(length):
    def collate(batch):
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {n: torch.tensor([r[n] + [fill[n]] * (length - len(r[n])) for r in batch]) for n in fill}

    return collate


def trainer_of(folder, learner, teachers, rows, weighting="uniform", length=9, **values):
    args = rlkd.DistillationArguments(str(folder), **{**QUIET, "per_device_train_batch_size": len(rows), **values})
    return rlkd.DistillationTrainer(
        learner,
        args,
        train_dataset=rows,
        data_collator=padded_to(length),
        teachers=teachers,
        weighting=weighting,
    )


def test_tokens_of_a_causal_model_have_the_weights_that_the_policy_gives_their_logits(tmp_path):
    """Each token is an instance (K, C) of one flat batch; padding, however much, is no part of it."""
    rows, teachers = some_tokens(), [causal_model(seed).eval() for seed in range(3)]
    found = {}
    for length in (9, 20):
        trainer = trainer_of(tmp_path, causal_model(9), teachers, rows, "auto", length, logging_steps=1)
        trainer.train()
        found[length] = trainer.state.log_history[0]["loss"], trainer.weight_record
    told, said, student = [], [], causal_model(9).eval()
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            logits = torch.stack([one(ids).logits[0, :-1] for one in (*teachers, student)], 1)
            taught = torch.tensor(row["labels"][1:]) >= 0
            said.append(logits[taught][:, :3])
            told.append(logits[taught][:, 3])
    flat, usual = torch.cat(said), trainer.usual_sureness()
    torch.testing.assert_close(usual, rlkd.usual_sureness(flat))
    weights = load_weighting("auto").weights(State(teacher_logits=flat, sureness=usual))
    assert weights.std(0).min() > 0.02
    soft = (weights.unsqueeze(-1) * flat.softmax(-1)).sum(1)
    loss = F.kl_div(F.log_softmax(torch.cat(told), -1), soft, reduction="batchmean").item()
    for mean, record in found.values():
        assert mean == pytest.approx(loss, rel=1e-4)
        assert record.counts.sum() == len(flat)
        np.testing.assert_allclose(record.sums.sum((0, 1)), weights.sum(0).numpy(), rtol=1e-4)


class LargestTensor(TorchDispatchMode):
    """How many numbers the largest tensor has that is made meanwhile."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            self.most = max(self.most, one.numel() if isinstance(one, torch.Tensor) else 0)
        return made


def test_a_vocabulary_for_classes_is_looked_at_some_tokens_at_once(monkeypatch):
    """The weights are those of all at once, to the last bit; what is held meanwhile does not grow with the tokens."""
    generator = torch.Generator().manual_seed(0)
    state = State(teacher_logits=torch.randn(300, 3, 5000, generator=generator), sureness=torch.tensor([1.0, 2.0, 3.0]))
    policy, weights, most = load_weighting("auto"), {}, {}
    for at_once in (2**40, 2**19):
        monkeypatch.setattr(learned, "AT_ONCE", at_once)
        with LargestTensor() as seen:
            weights[at_once] = policy.weights(state)
        most[at_once] = seen.most
    assert torch.equal(*weights.values())
    assert most[2**40] == state.teacher_logits.numel()
    assert most[2**19] <= 2**19


@pytest.mark.parametrize("causal", [False, True])
def test_a_router_is_fitted_on_labelled_tokens_and_teaches_others(causal, tmp_path):
    make, classes = (causal_model, WORDS_IN_ALL) if causal else (tagger, 4)
    rows, teachers = some_tokens(40, classes), [make(seed).eval() for seed in range(3)]
    trainer = trainer_of(tmp_path, make(9), teachers, rows)
    task, cache = rlkd.labelled_answers(trainer, rows)
    assert {split: len(ids) > 0 for split, ids in task.splits.items()} == dict.fromkeys(
        ("train", "probe", "validation"), True
    )
    expected, embeddings = [], trainer.model.get_input_embeddings().weight.detach()
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            said = torch.stack([one(ids).logits[0] for one in teachers], 1)
        for place in range(causal, len(row["labels"])):
            if row["labels"][place] >= 0:
                at, label = place - causal, torch.tensor([float(row["labels"][place])])
                expected.append(torch.cat([label, embeddings[ids[0, at]] / embeddings.std(), said[at].flatten()]))
    middle, table = 2 * NEIGHBOURS if causal else NEIGHBOURS, task.table
    stands = torch.from_numpy(table.vectors).view(len(table), 8, -1)[..., middle]
    found = [torch.from_numpy(table.labels).unsqueeze(1), stands, cache.rows(torch.arange(len(table))).flatten(1)]
    apart = torch.cdist(torch.cat(found, 1), torch.stack(expected), compute_mode="donot_use_mm_for_euclid_dist")
    assert apart.shape == (len(cache), len(table))
    assert max(apart.amin(0).max(), apart.amin(1).max()) < 1e-4
    router = rlkd.build_weighting("router", task, cache)
    assert isinstance(router, Router)
    taught = trainer_of(tmp_path, make(9), teachers, rows, router)
    taught.train()
    assert taught.weight_record.means()[0].std() > 0.001
    few, _ = rlkd.labelled_answers(trainer, rows, rows=80, seed=1)
    assert 60 <= len(few.table) <= 80


def test_a_policy_is_trained_on_labelled_rows_of_texts_too(tmp_path):
    rng, tokenizer = np.random.default_rng(0), tokenizer_for("bert", model_max_length=40)
    texts = [" ".join(rng.choice(WORDS, 1 + row % 9)) for row in range(60)]
    data = datasets.Dataset.from_dict({"text": texts, "label": [row % 3 - (row % 4 == 0) * 9 for row in range(60)]})
    data = data.map(lambda row: {**tokenizer(row["text"]), "label": max(row["label"], -100)})
    torch.manual_seed(0)
    teachers, learner = [network("bert", tokenizer) for _ in range(2)], network("bert", tokenizer)
    trainer = rlkd.DistillationTrainer(
        learner,
        rlkd.DistillationArguments(str(tmp_path), **QUIET),
        train_dataset=data,
        processing_class=tokenizer,
        teachers=teachers,
        weighting="uniform",
    )
    before = torch.get_rng_state()
    task, cache = rlkd.labelled_answers(trainer, data)
    assert torch.equal(torch.get_rng_state(), before)  # a student that is trained next is the same
    assert len(task.table) == sum(label >= 0 for label in data["label"])
    assert task.label_names == tuple(learner.config.id2label.values())
    episode = {"horizon": 4, "batch_size": 8}
    settings = {"total_timesteps": 32, "n_steps": 2, "trials": 1, "strength_students": 0}
    policy = rlkd.train_policy(task, cache, episode=episode, jobs=1, **settings)
    trainer = rlkd.DistillationTrainer(
        learner, trainer.args, train_dataset=data, processing_class=tokenizer, teachers=teachers, weighting=policy
    )
    trainer.train()
    bare = data.remove_columns("label")
    with pytest.raises(TaskError, match="labels that are classes, one of an instance or of a token, got none"):
        rlkd.labelled_answers(trainer, bare)


PROGRAM = """\
def shown(name, width=2):
    line = f"a{name!r:>{width}}{f'{width.real}'}b" + 'c'
    return line.strip(f"{name}" f"")
"""
TOLD = [
    *(("NEWLINE", ""), ("def", ""), ("shown", "function"), ("(", ""), ("name", "parameter"), (",", "")),
    *(("width", "parameter"), ("=", ""), ("NUMBER", ""), (")", ""), (":", ""), ("NEWLINE", ""), ("INDENT", "")),
    *(("line", "set"), ("=", ""), ("STRING", ""), ("+", ""), ("STRING", ""), ("NEWLINE", "")),
    *(("return", ""), ("line", "object"), (".", ""), ("strip", "method"), ("(", ""), ("STRING", ""), ("STRING", "")),
    *((")", ""), ("NEWLINE", ""), ("DEDENT", "")),
]
START, MIDDLE, END = 1001, 1002, 1003
FROM_3_12 = [
    *((tokenize.NAME, "line"), (tokenize.OP, "=")),
    *((START, 'f"'), (MIDDLE, "a"), (tokenize.OP, "{"), (tokenize.NAME, "name"), (tokenize.OP, "!")),
    *((tokenize.NAME, "r"), (tokenize.OP, ":"), (MIDDLE, ">"), (tokenize.OP, "{"), (tokenize.NAME, "width")),
    *((tokenize.OP, "}"), (tokenize.OP, "}"), (tokenize.OP, "{"), (START, "f'"), (tokenize.OP, "{")),
    *((tokenize.NAME, "width"), (tokenize.OP, "."), (tokenize.NAME, "real"), (tokenize.OP, "}"), (END, "'")),
    *((tokenize.OP, "}"), (MIDDLE, "b"), (END, '"'), (tokenize.OP, "+"), (tokenize.STRING, "'c'")),
]
"""What ``tokenize`` of Python 3.12 and later makes of the second line, with other numbers for the new types."""


def test_strings_with_names_inside_are_one_word_in_every_python(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    names = importlib.import_module("python_names")
    told = names.classes_by_place(ast.parse(PROGRAM))
    assert set(told.values()) == {"parameter", "set", "object", "method"}
    found = [(word, names.CLASSES[kind] if kind >= 0 else "") for word, kind in names.words_of(PROGRAM, told)]
    assert found == TOLD
    recorded = [tokenize.TokenInfo(kind, text, (2, n), (2, n), "") for n, (kind, text) in enumerate(FROM_3_12)]
    whole = [(one.type, one.start[1]) for one in names.whole_strings(recorded, {START}, {END})]
    expected = [tokenize.NAME, tokenize.OP, tokenize.STRING, tokenize.OP, tokenize.STRING]
    assert whole == list(zip(expected, (0, 1, 2, len(recorded) - 2, len(recorded) - 1), strict=True))
