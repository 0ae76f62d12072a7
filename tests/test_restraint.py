"""``auto`` abstains: equal weights where the policy that is shipped would change too little of what is taught."""

import logging
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from networks import WORDS, network, tokenizer_for

from rlkd.choosing import EQUAL, PRIOR, choose, reason_of
from rlkd.data.planted import PlantedSettings, planted_case
from rlkd.data.task import UNLABELLED
from rlkd.logit_cache import LogitCache
from rlkd.settings import StudentSettings
from rlkd.trainer import DistillationArguments, DistillationTrainer
from rlkd.types import State
from rlkd.weighting import build_weighting, load_policy
from rlkd.weighting.base import BaseWeighting
from rlkd.weighting.shipped import LEAST_CHANGE, change, mean_change

SETTINGS = StudentSettings(student="rlkd/mlp", max_steps=90, batch_size=64, device="cpu")
HELPS = ({"slices": "class"}, {"slices": "region", "num_teachers": 5}, {"slices": "class", "extra": "harmful"})
DOES_NOT = (
    {"teachers": "identical"},
    {"teachers": "good"},
    {"slices": "region", "num_teachers": 2, "teachers": "good", "extra": "harmful"},
)


def planted(**settings):
    case = planted_case(PlantedSettings(num_rows=1600, **settings))
    arrays = list(case.logits.transpose(1, 0, 2))
    return case.task, LogitCache(arrays, [f"t{k}" for k in range(len(arrays))], identity=str(settings))


class First(BaseWeighting):
    """All weight to the first teacher."""

    def weights(self, state):
        return torch.nn.functional.one_hot(torch.zeros(len(state.teacher_logits), dtype=torch.int64), 2).float()


def test_the_change_of_what_is_taught_by_hand():
    """Taught is (.9, .1) in place of the mean of (.9, .1) and (.3, .7), which is (.6, .4): .3 of it is elsewhere."""
    said = torch.tensor([[[0.9, 0.1], [0.3, 0.7]], [[0.9, 0.1], [0.9, 0.1]]]).log()
    torch.testing.assert_close(change(First(), State(teacher_logits=said)), torch.tensor([0.3, 0.0]))
    mask = torch.tensor([[True, False], [True, True]])
    gone = State(teacher_logits=said.masked_fill(~mask.unsqueeze(-1), torch.nan), teacher_mask=mask)
    torch.testing.assert_close(change(First(), gone), torch.zeros(2))


@pytest.mark.parametrize("settings", HELPS)
def test_where_it_changes_much_auto_is_the_policy_that_is_shipped(settings):
    task, cache = planted(**settings)
    asked = build_weighting("auto", task, cache)
    assert asked.state_dict().keys() == load_policy("auto").state_dict().keys()
    assert asked.strength == load_policy("auto").strength > 0
    assert reason_of(asked) is None


@pytest.mark.parametrize("settings", DOES_NOT)
def test_where_it_changes_little_auto_is_equal_weights_and_says_why(settings):
    task, cache = planted(**settings)
    state = State(teacher_logits=cache.rows(torch.arange(50)), sureness=cache.sureness_rows(torch.arange(50)))
    asked = build_weighting("auto", task, cache)
    equal = build_weighting("uniform", task, cache)
    assert torch.equal(asked.weights(state), equal.weights(state))
    assert "`uniform` is used: `auto` would change" in reason_of(asked)
    assert build_weighting("policy:auto", task, cache).strength == load_policy("auto").strength


def test_no_label_is_read_and_no_row_but_those_of_train():
    task, cache = planted(slices="class")
    labels = np.full_like(task.table.labels, UNLABELLED)
    blind = replace(task, table=replace(task.table, labels=labels))
    policy = load_policy("auto")
    assert mean_change(policy, blind, cache) == mean_change(policy, task, cache) > LEAST_CHANGE
    logits = np.stack([cache.rows(torch.tensor([row])).numpy()[0] for row in range(len(task.table))])
    others = np.setdiff1d(np.arange(len(logits)), task.splits["train"])
    logits[others] = 0
    blank = LogitCache(list(logits.transpose(1, 0, 2)), cache.teacher_names, sureness=cache.sureness)
    assert mean_change(policy, task, blank) == mean_change(policy, task, cache)


def test_with_labels_equal_weights_are_left_only_for_what_is_surely_better():
    task, cache = planted(slices="class", num_teachers=8, sharpness=6)
    hardly = load_policy("auto").with_record(strength=0.03)
    with torch.no_grad():
        hardly.score[-1].weight.neg_()  # and that little is wrong
    alone = choose(task, cache, {PRIOR: hardly}, SETTINGS, students=0)
    assert (alone.name, alone.policy.strength) == (EQUAL, 0)
    assert "nothing else was tried; `auto` would change" in alone.why
    assert 0 < alone.change < LEAST_CHANGE
    router = build_weighting("router", task, cache).policy
    chosen = choose(task, cache, {PRIOR: hardly, "router": router}, SETTINGS)
    assert chosen.name == "router"
    assert "which is sure" in chosen.why
    assert chosen.why.endswith("gain nothing surely.")


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_for("bert", model_max_length=40)


@pytest.fixture(scope="module")
def rows(tokenizer):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 1 + row % 9)) for row in range(40)]
    data = datasets.Dataset.from_dict({"text": texts, "label": [0, 1, 2, 0] * 10, "id": list(range(40))})
    return data.map(lambda row: tokenizer(row["text"], truncation=True))


def specialists(logits: float) -> np.ndarray:
    """Of 40 rows by turns one of three teachers is sure, by so many logits, and the others of another class, less."""
    said = np.zeros((3, 40, 3), dtype=np.float32)
    for row in range(40):
        for teacher in range(3):
            said[teacher, row, (row + teacher) % 3] = logits if row % 3 == teacher else logits / 4
    return said


def trained(folder, rows, tokenizer, teachers, weighting):
    arguments = DistillationArguments(
        str(folder), max_steps=6, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True
    )
    student = network("bert", tokenizer, hidden_size=8, num_hidden_layers=1)
    trainer = DistillationTrainer(
        student,
        arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        teachers=teachers,
        weighting=weighting,
    )
    trainer.train()
    return torch.cat([value.detach().flatten() for value in trainer.model.parameters()]), trainer


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize(("logits", "same"), [(6.0, "policy:auto"), (0.4, "uniform")])
def test_a_trainer_asks_before_it_believes(live, logits, same, rows, tokenizer, tmp_path, caplog):
    """Of live teachers as of a cache the student is that of the policy or of equal weights, to the last bit."""
    said = specialists(logits)
    teachers = LogitCache(list(said), ["a", "b", "c"])
    if live:
        place = {text: row for row, text in enumerate(rows["text"])}
        teachers = {
            name: (lambda texts, own=own: own[[place[text] for text in texts]])
            for name, own in zip("abc", said, strict=True)
        }
    with caplog.at_level(logging.WARNING):
        parameters, trainer = trained(tmp_path, rows, tokenizer, teachers, "auto")
    expected, _ = trained(tmp_path, rows, tokenizer, teachers, same)
    assert torch.equal(parameters, expected)
    told = [record.message for record in caplog.records if "'policy:auto' insists" in record.message]
    assert len(told) == (same == "uniform")
    assert trainer.weighting.strength == load_policy("auto").strength  # what was passed is what is there after a run
