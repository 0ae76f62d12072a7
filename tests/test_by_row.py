"""Weights that are a function of the row: the same to the last bit in any batch, asked once a row, kept and read."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from rlkd.errors import OutputDirectoryError, WeightingError
from rlkd.features import ObservationConfig
from rlkd.logit_cache import LogitCache, build_cache, load_cache, read_state
from rlkd.models import ArrayTeacher
from rlkd.models.architectures import BiLstmConfig, BiLstmForSequenceClassification
from rlkd.settings import StudentSettings
from rlkd.trainer import DistillationArguments, DistillationTrainer, looked_up_teachers, make_trainer, task_trainer
from rlkd.types import State
from rlkd.weighting import BaseWeighting, Evidence, Policy, by_row, mixture
from rlkd.weighting.by_row import RowWeights, is_by_row, once_a_row
from rlkd.weighting.controls import PolicyMean
from rlkd.weighting.heuristic import Agreement, Ebkd, Entropy, MaxProbability, MtBertRaw
from rlkd.weighting.router import Router

SETTINGS = StudentSettings(student="rlkd/mlp", max_steps=40, batch_size=20)
"""Two epochs of 390 train rows, whose last batch is not full."""


def policy_of(**observed):
    policy = Policy.create(ObservationConfig(**observed), training={}).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(3)  # an untrained one gives weights that hardly differ
    return policy


@pytest.fixture
def by_rows(task, cache):
    """One of every class that says it weighs by row."""
    policy = policy_of(affinity=True, reliability=True, labelled=True)
    mean = PolicyMean(policy_of(), Evidence(task=task, source=cache))
    return [policy, Router(policy), mean, Entropy(), Ebkd(), MaxProbability(0.3), Agreement()]


@pytest.fixture
def kept(task, tmp_path):
    """A cache on disk."""
    rows = np.random.default_rng(0).normal(size=(len(task.table), 3, task.num_classes)).astype(np.float32)
    return build_cache([ArrayTeacher(name, 3 * rows[:, k]) for k, name in enumerate("abc")], task, tmp_path / "cache")


def subclasses(cls):
    return {cls}.union(*map(subclasses, cls.__subclasses__()))


def test_weights_by_row_are_the_same_in_any_batch_to_the_last_bit(by_rows):
    declaring = {
        cls for cls in subclasses(BaseWeighting) if "by_row" in vars(cls) and cls.__module__.startswith("rlkd.")
    }
    assert declaring == {BaseWeighting, *map(type, by_rows)}
    generator = torch.Generator().manual_seed(0)
    rows = 67
    for teachers, classes in ((1, 2), (3, 20), (7, 5)):
        whole = State(
            teacher_logits=4 * torch.randn(rows, teachers, classes, generator=generator),
            affinity=torch.rand(rows, teachers, generator=generator) - 0.5,
            reliability=torch.randn(teachers, 2, generator=generator).expand(rows, -1, -1),
            labels=torch.randint(-1, classes, (rows,), generator=generator),
            ids=torch.arange(rows),
        )
        mask = torch.rand(rows, teachers, generator=generator) > 0.3
        mask[:, 0] = True
        for state in (whole, replace(whole, teacher_mask=mask)):
            for weighting in by_rows:
                if isinstance(weighting, PolicyMean):
                    weighting.mean = torch.rand(teachers, generator=generator)
                expected = weighting.weights(state)
                for size in (1, 3, 31, 33):
                    for some in torch.randperm(rows, generator=generator).split(size):
                        part = replace(state, **{n: getattr(state, n)[some] for n in state.available()})
                        assert torch.equal(weighting.weights(part), expected[some]), (weighting, teachers, size)


def asked_once(weighting, task, cache, ids):
    labels = torch.from_numpy(task.table.labels[ids])
    return once_a_row(weighting, cache, ids, partial(read_state, task, cache), labels)


def trained(task, cache, weighting, folder, **settings):
    trainer = make_trainer(task, cache, weighting, replace(SETTINGS, **settings), folder)
    trainer.train()
    return trainer


def test_a_policy_is_asked_once_a_row_and_teaches_the_same_student(task, kept, tmp_path, monkeypatch):
    policy, asked = policy_of(), []
    weights = Policy.weights
    monkeypatch.setattr(Policy, "weights", lambda self, state: asked.append(len(state.ids)) or weights(self, state))
    once = trained(task, kept, policy, tmp_path)
    rows = len(task.splits["train"])
    assert sum(asked) == rows == 390
    assert once.weighting is policy
    trained(task, load_cache(kept.folder, task), policy, tmp_path)
    assert sum(asked) == rows  # they lie with the cache
    trained(task, kept, policy, tmp_path, max_steps=3)
    assert sum(asked) == rows + 3 * 20  # a run that sees few rows asks about these
    monkeypatch.setattr(task_trainer, "once_a_row", lambda weighting, *others: weighting)
    live = trained(task, kept, policy, tmp_path)
    assert sum(asked) == rows + 3 * 20 + 2 * rows
    for name, value in live.model.state_dict().items():
        assert torch.equal(value, once.model.state_dict()[name]), name
    assert live.weight_record.state() == once.weight_record.state()


def plainly_trained(task, cache, folder, **settings):
    """A student of made-up words that reads its teachers from a cache by a column, two epochs unless told."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1, 30, (len(task.table), 5), generator=generator)
    rows = [
        {"input_ids": words[i], "attention_mask": torch.ones_like(words[i]), "labels": int(label), "id": i}
        for i, label in enumerate(task.table.labels)
    ]
    torch.manual_seed(1)
    size = {"vocab_size": 30, "embedding_size": 4, "hidden_size": 4, "num_labels": task.num_classes}
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, "max_length": 5}
    args = DistillationArguments(
        str(folder), per_device_train_batch_size=20, **quiet, **(settings or {"num_train_epochs": 2})
    )
    student = BiLstmForSequenceClassification(BiLstmConfig(**size))
    trainer = DistillationTrainer(student, args, train_dataset=rows, teachers=cache, weighting=policy_of())
    trainer.train()
    return trainer


def test_a_trainer_of_ones_own_data_asks_once_a_row_of_its_cache_too(task, kept, tmp_path, monkeypatch):
    asked, weights, rows = [], Policy.weights, len(task.table)
    monkeypatch.setattr(Policy, "weights", lambda self, state: asked.append(len(state.ids)) or weights(self, state))
    once = plainly_trained(task, kept, tmp_path)
    assert sum(asked) == rows
    assert type(once.weighting) is Policy
    plainly_trained(task, load_cache(kept.folder, task), tmp_path)
    assert sum(asked) == rows  # they lie with the cache
    plainly_trained(task, kept, tmp_path, max_steps=3)
    assert sum(asked) == rows + 3 * 20  # a run that sees few rows asks about these
    logits = kept.rows(torch.arange(rows)).numpy()
    mask = np.ones((rows, 3), dtype=bool)
    mask[5, 1] = False
    plainly_trained(task, LogitCache(list(logits.transpose(1, 0, 2)), list("abc"), mask=mask), tmp_path)
    assert sum(asked) == rows + 3 * 20 + 2 * rows  # where somebody is absent, the batch's labels have a say
    monkeypatch.setattr(looked_up_teachers, "once_a_row", lambda weighting, *others: weighting)
    live = plainly_trained(task, kept, tmp_path)
    assert sum(asked) == rows + 3 * 20 + 4 * rows
    for name, value in live.model.state_dict().items():
        assert torch.equal(value, once.model.state_dict()[name]), name
    assert live.weight_record.state() == once.weight_record.state()


def test_what_is_kept_belongs_to_one_weighting_and_one_cache(task, kept, monkeypatch):
    ids, computed = task.splits["train"], []
    real = by_row._computed
    monkeypatch.setattr(by_row, "_computed", lambda *arguments: computed.append(arguments) or real(*arguments))

    def asks(weighting, cache=kept, rows=ids):
        before = len(computed)
        found = asked_once(weighting, task, cache, rows)
        for some in torch.from_numpy(rows).split(64):
            state = State(teacher_logits=cache.rows(some), ids=some, affinity=cache.affinity_rows(some))
            assert torch.equal(mixture(found, state).weights, weighting.weights(state))
        return len(computed) - before

    policy, place = policy_of(), kept.folder
    assert asks(policy) == 1
    assert asks(policy) == asks(policy_of()) == 0  # the same numbers, another object
    policy.strength = 0.5
    assert asks(policy) == 1
    with torch.no_grad():
        policy.score[2].bias.add_(1)
    assert asks(policy) == 1
    assert asks(policy, rows=ids[:100]) == 1
    affine = policy_of(affinity=True)
    for scale in (1, 2):
        affinity = np.random.default_rng(1).random((len(task.table), 3), dtype=np.float32) * scale
        assert asks(affine, kept.with_affinity(affinity)) == 1
    assert len(list(place.glob("weights-*"))) == 6
    assert asks(Entropy()) == 1
    assert asks(Mended()) == asks(Mended()) == 1
    assert len(list(place.glob("weights-*"))) == 6  # these have no name that tells what they do
    for path in place.glob("weights-*/weights.npy"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert asks(policy) == 1
    assert asks(policy) == 0
    build_cache(
        [ArrayTeacher(name, kept.rows(torch.arange(len(kept)))[:, k].numpy()) for k, name in enumerate("abc")],
        task,
        place,
        overwrite=True,
    )
    assert list(place.glob("weights-*")) == []


def test_where_nothing_can_be_written_weights_stay_in_memory(task, kept, monkeypatch):
    def refuse(*_, **__):
        raise OutputDirectoryError("expected to write, got 'Read-only file system'")

    monkeypatch.setattr(by_row, "once", refuse)
    assert isinstance(asked_once(policy_of(), task, kept, task.splits["train"]), RowWeights)
    assert list(kept.folder.glob("weights-*")) == []


class OwnPolicy(Policy):
    """Inherits what it does not keep."""

    def weights(self, state):
        return super().weights(state).mean(0).expand(len(state.ids), -1)


class Mended(OwnPolicy):
    """Says of itself that it goes by row, but not what it is."""

    by_row = True

    def weights(self, state):
        return Policy.weights(self, state).flip(-1)


class Claiming(MtBertRaw):
    """Says so, and scales the loss: that is asked batch by batch."""

    by_row = True


def test_who_is_not_asked_beforehand(task, cache):
    """Classes of one's own that do not say so, what adjusts what is taught, and who reads the student."""
    for weighting in (OwnPolicy(), Claiming(), policy_of(student=True)):
        assert not is_by_row(weighting)
        assert asked_once(weighting, task, cache, task.splits["train"]) is weighting
    assert is_by_row(policy_of())


def test_of_a_row_with_absent_teachers_the_weighting_is_asked_anew(task, cache):
    ids = task.splits["train"][:50]
    found, some = asked_once(policy_of(), task, cache, ids), torch.from_numpy(ids[:8])
    state = State(teacher_logits=cache.rows(some), ids=some)
    masked = replace(state, teacher_mask=torch.tensor([True, False, True]).expand(8, 3))
    assert (mixture(found, state).weights[:, 1] > 0).all()
    assert (mixture(found, masked).weights[:, 1] == 0).all()
    with pytest.raises(IndexError):
        found.weights(replace(state, ids=torch.from_numpy(task.splits["train"][50:58])))


class Wrong(BaseWeighting):
    """Not on the simplex, in one row."""

    by_row = True

    def weights(self, state):
        return torch.where(state.ids.unsqueeze(-1) == 7, 0.5, 1 / 3).expand(-1, 3)


def test_what_is_no_weight_is_refused_before_training(task, cache):
    with pytest.raises(WeightingError, match=r"for instance 7 \(1 of"):
        asked_once(Wrong(), task, cache, task.splits["train"])
