import dataclasses

import numpy as np
import pytest
import torch

from rlkd.data.batching import VectorInputs
from rlkd.data.task import UNLABELLED
from rlkd.errors import ConfigError, NonFiniteLossError, StudentError, WeightingError
from rlkd.logit_cache import LogitCache
from rlkd.metrics import classification_metrics, told_if_diverged
from rlkd.settings import StudentSettings
from rlkd.trainer import DistillationArguments, make_trainer
from rlkd.weighting import build_weighting
from rlkd.weighting.fixed import Fixed, Uniform
from rlkd.weighting.heuristic import CrossEntropy

SETTINGS = StudentSettings(student="rlkd/mlp", max_steps=40, batch_size=32)


class Watching(Uniform):
    """Equal weights, and a list of the ids that were weighted."""

    def __init__(self):
        self.seen = []

    def weights(self, state):
        self.seen.append(state.ids.clone())
        return super().weights(state)


def trained(task, cache, folder, weighting=None, max_steps=40, **arguments):
    settings = dataclasses.replace(SETTINGS, max_steps=max_steps)
    trainer = make_trainer(task, cache, weighting or Uniform(), settings, folder, **arguments)
    trainer.train()
    return trainer


def test_every_epoch_sees_every_row_once_in_another_order(task, cache, tmp_path):
    rows = len(task.splits["train"])
    steps = -(-rows // 32)
    weighting = Watching()
    trained(task, cache, tmp_path, weighting, max_steps=2 * steps)
    first, second = torch.cat(weighting.seen[:steps]), torch.cat(weighting.seen[steps:])
    for epoch in (first, second):
        assert torch.equal(epoch.sort().values, torch.arange(rows))
    assert not torch.equal(first, second)
    again = Watching()  # another weighting of the same seed gets the same batches
    trained(task, cache, tmp_path, again, max_steps=2 * steps)
    assert torch.equal(torch.cat(again.seen), torch.cat(weighting.seen))


def test_predictions_come_in_the_order_of_the_split(task, cache, tmp_path):
    inputs = VectorInputs(task.table.vectors)
    inputs.lengths = np.random.default_rng(0).integers(1, 30, len(task.table))  # batches are made by length
    trainer = trained(task, cache, tmp_path, shared={"inputs": inputs, "tokenizer": None})
    logits = trainer.predict_split("test")
    with torch.no_grad():
        expected = trainer.model.eval()(input_values=torch.from_numpy(task.table.vectors[task.splits["test"]])).logits
    assert np.allclose(logits, expected.numpy(), atol=1e-6)
    scores = classification_metrics(logits, task.labels("test"))
    assert scores["accuracy"] > 0.6
    evaluated = trainer.evaluate()
    validation = classification_metrics(trainer.predict_split("validation"), task.labels("validation"))
    assert evaluated["eval_accuracy"] == pytest.approx(validation["accuracy"])
    assert evaluated["eval_loss"] == pytest.approx(validation["nll"], abs=1e-5)


def test_weights_are_recorded_by_what_the_teachers_know(task, cache, tmp_path):
    trainer = trained(
        task, cache, tmp_path, build_weighting("oracle", task, cache), logging_strategy="steps", logging_steps=20
    )
    assert trainer.knowing_mass() == (1.0, 1.0)
    seen = trainer.weight_record.counts.sum(1) > 0
    means = trainer.weight_record.means()[seen].mean(0)
    assert np.allclose(means, np.eye(3), atol=1e-6)  # domain k is known by teacher k
    logged = [entry for entry in trainer.state.log_history if "weight/a" in entry]
    assert len(logged) == 2
    assert sum(logged[-1][f"weight/{name}"] for name in "abc") == pytest.approx(1)
    shares = trained(task, cache, tmp_path, Fixed(torch.tensor([0.6, 0.3, 0.1])))
    assert shares.knowing_mass() == pytest.approx((1 / 3, 1 / 3), abs=0.05)


def test_a_run_without_a_last_fifth_has_no_late_mass(task, cache, tmp_path):
    assert trained(task, cache, tmp_path, max_steps=3).knowing_mass() is None
    unknown = LogitCache([cache.rows(torch.arange(len(cache)))[:, k].numpy() for k in range(3)], ["a", "b", "c"])
    assert trained(task, unknown, tmp_path).knowing_mass() is None


def test_a_loss_that_is_not_finite_stops_the_run_by_name(task, cache, tmp_path):
    logits = cache.rows(torch.arange(len(cache))).numpy()
    logits[17, 1, 2] = np.inf
    broken = LogitCache(list(logits.transpose(1, 0, 2)), ["a", "b", "c"])
    weighting = Watching()
    with pytest.raises(NonFiniteLossError) as caught:
        trained(task, broken, tmp_path, weighting)
    assert 17 in weighting.seen[-1]
    assert f"became nan at step {len(weighting.seen) - 1}, instances [17]" in str(caught.value)


def test_what_a_run_lacks_is_named_at_its_start(task, cache, tmp_path):
    labels = task.table.labels.copy()
    labels[task.splits["train"]] = UNLABELLED
    bare = dataclasses.replace(task, table=dataclasses.replace(task.table, labels=labels))
    with pytest.raises(WeightingError, match=r"CrossEntropy.*labels"):
        make_trainer(bare, cache, CrossEntropy(), SETTINGS, tmp_path)
    with pytest.raises(StudentError, match=r"kd_ratio 0\.5 needs labelled"):
        make_trainer(bare, cache, Uniform(), dataclasses.replace(SETTINGS, kd_ratio=0.5), tmp_path)
    assert trained(bare, cache, tmp_path, max_steps=5).state.global_step == 5  # distillation alone needs none


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"kd_ratio": 1.5}, {"mix": "mean"}])
def test_arguments_out_of_range_are_refused_by_name(settings, tmp_path):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        DistillationArguments(output_dir=str(tmp_path), **settings)


def test_a_student_needs_a_budget():
    with pytest.raises(ConfigError, match="max_steps"):
        StudentSettings(max_steps=0)


@pytest.mark.parametrize("classes", [2, 6, 77])
def test_a_loss_far_above_a_uniform_guess_is_told(classes, caplog):
    guess = np.log(classes)
    for nll in (0.0, guess, 3 * guess, 9.9 * guess):
        assert told_if_diverged("s", nll, classes) == {}
    assert caplog.text == ""
    for nll in (10.1 * guess, 4823.0, float("inf"), float("nan")):
        assert told_if_diverged("s", nll, classes) == {"diverged": True}
    assert len(caplog.messages) == 4
    assert "s has a negative log likelihood of 4823 nats" in caplog.text
