"""Hedge: what it learns, its regret, and that a resumed run learns the same."""

import dataclasses
import json
import math

import pytest
import torch

from rlkd.data.task import UNLABELLED
from rlkd.errors import WeightingError
from rlkd.losses import distillation_loss, logit_gain
from rlkd.settings import StudentSettings
from rlkd.trainer import make_trainer
from rlkd.types import State
from rlkd.weighting import OnlineWeighting, Policy, build_weighting
from rlkd.weighting.fixed import Fixed, Uniform
from rlkd.weighting.online import Hedge

SETTINGS = StudentSettings(student="rlkd/mlp", max_steps=30, batch_size=32)


def one_row(label=0, mask=None):
    """The mixture predicts class 0; the first teacher says 0, the second 1; the student is even."""
    return State(
        teacher_logits=torch.tensor([[[0.8, 0.2], [0.4, 0.6]]]).log(),
        student_logits=torch.zeros(1, 2),
        labels=torch.tensor([label]),
        teacher_mask=None if mask is None else torch.tensor([mask]),
    )


def test_the_gain_and_the_update_by_hand():
    # p - y = (-.5, .5); p - q = (-.3, .3) and (.1, -.1): gains .3 and -.1
    hedge = Hedge(num_classes=2, num_teachers=2)
    assert hedge.weights(one_row()).tolist() == [[0.5, 0.5]]
    hedge.update(one_row())
    assert hedge.gains[0].tolist() == pytest.approx([0.3, -0.1])
    assert hedge.gains[1].tolist() == [0, 0]  # the class that the mixture did not predict
    eta = math.sqrt(8 * math.log(2) / 2) / 2
    assert hedge.weights(one_row())[0, 0].item() == pytest.approx(1 / (1 + math.exp(-0.4 * eta)))


def test_rows_without_a_label_teach_nothing_and_profit():
    hedge = Hedge(2, 2)
    hedge.update(one_row())
    learned = hedge.state_dict()
    hedge.update(one_row(label=UNLABELLED))
    assert hedge.state_dict() == learned
    assert torch.equal(hedge.weights(one_row(label=UNLABELLED)), hedge.weights(one_row()))


def test_an_absent_teacher_keeps_its_standing():
    hedge = Hedge(2, 2)
    hedge.update(one_row(mask=[True, False]))
    assert hedge.gains[0].tolist() == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize(
    "loss", [{"temperature": 4.0}, {"temperature": 0.5}, {"divergence": "mse"}, {"divergence": "mse_centred"}], ids=str
)
def test_a_teacher_is_credited_with_what_the_students_own_loss_would_have_gained(loss):
    """Of each teacher alone: the slope of the label's loss along that of its divergence, per unit of temperature."""
    rng = torch.Generator().manual_seed(3)
    logits, student = 3 * torch.randn(1, 3, 4, generator=rng), 3 * torch.randn(1, 4, generator=rng)
    labels = torch.tensor([2])
    hedge = Hedge(4, 3)
    hedge.update(State(teacher_logits=logits, student_logits=student, labels=labels, **loss))
    expected = []
    for k in range(3):
        z = student.clone().requires_grad_()
        (divergence,) = torch.autograd.grad(distillation_loss(z, logits, torch.eye(3)[k : k + 1], **loss).sum(), z)
        (label,) = torch.autograd.grad(torch.nn.functional.cross_entropy(z, labels), z)
        expected.append((divergence * label).sum().item() / loss.get("temperature", 1.0))
    spread = max(expected) - min(expected)
    found = hedge.gains[hedge.gains.abs().sum(-1) > 0].squeeze(0)
    assert found.tolist() == pytest.approx([gain * min(1, 2 / spread) for gain in expected], abs=1e-5)
    assert ("divergence" in loss) == (spread > 2)  # only squared errors have gains that must be scaled


@pytest.mark.parametrize("teachers", [2, 5])
def test_the_regret_stays_below_its_bound(teachers):
    """Against gains that change sides: in each context the best fixed teacher is not ahead by more than the bound."""
    rng = torch.Generator().manual_seed(teachers)
    hedge = Hedge(3, teachers)
    earned = torch.zeros(3, dtype=torch.float64)
    for step in range(600):
        logits = 3 * torch.randn(1, teachers, 3, generator=rng)
        logits[:, step // 200 % teachers, 0] += 6  # for a while one teacher knows
        student, labels = torch.randn(1, 3, generator=rng), torch.tensor([step % 3 if step % 2 else 0])
        state = State(teacher_logits=logits, student_logits=student, labels=labels)
        targets = (hedge.weights(state).unsqueeze(-1) * logits.softmax(-1)).sum(-2)
        earned[hedge.context(state)] += logit_gain(student, student.softmax(-1) - targets, labels).double()
        hedge.update(state)
    regret = hedge.gains.max(-1).values - earned
    bound = 2 * ((2 * hedge.counts * math.log(teachers)).sqrt() + math.sqrt(math.log(teachers) / 8))
    assert (regret <= bound).all()
    assert hedge.counts.sum() == 600


def trained(task, cache, folder, weighting=None, resume=False, stop_at=None, **arguments):
    settings = dataclasses.replace(SETTINGS, **({} if stop_at is None else {"max_steps": stop_at}))
    weighting = weighting or build_weighting("hedge", task, cache)
    trainer = make_trainer(task, cache, weighting, settings, folder, lr_scheduler_type="constant", **arguments)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_it_finds_who_knows_while_the_student_trains(task, cache, tmp_path):
    weighting = build_weighting("hedge", task, cache)
    trainer = trained(task, cache, tmp_path, weighting)
    early, late = trainer.knowing_mass()
    assert early < late
    assert late > 0.6
    assert weighting.counts.sum() == 0  # the trainer worked on a copy: the next student starts anew
    assert (
        trainer.weighting.counts.sum() == 30 * 32 - (32 * 14 - 420 % (32 * 14)) or trainer.weighting.counts.sum() > 800
    )


def test_it_learns_on_the_labelled_part_of_a_task(task, cache, tmp_path):
    labels = task.table.labels.copy()
    labels[task.splits["train"][::3]] = UNLABELLED
    partly = dataclasses.replace(task, table=dataclasses.replace(task.table, labels=labels))
    rows = len(task.splits["train"])
    steps = -(-rows // SETTINGS.batch_size)  # one epoch
    trainer = trained(partly, cache, tmp_path, stop_at=steps)
    assert trainer.weight_record.counts.sum() == rows
    assert trainer.weighting.counts.sum() == len(partly.labelled_ids("train")) < rows


def test_a_resumed_run_learns_what_an_uninterrupted_one_learns(task, cache, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 10}
    whole = trained(task, cache, tmp_path / "whole", **saving)
    trained(task, cache, tmp_path / "broken", stop_at=20, **saving)
    resumed = trained(task, cache, tmp_path / "broken", resume=True, **saving)
    assert resumed.state.global_step == 30
    assert resumed.weighting.state_dict() == whole.weighting.state_dict()
    for first, second in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(first, second)
    saved = json.loads((tmp_path / "whole" / "checkpoint-30" / "weighting.json").read_text())
    assert saved == whole.weighting.state_dict()
    trained(task, cache, tmp_path / "uniform", Uniform(), **saving)
    with pytest.raises(WeightingError, match=r"had learned in .*weighting\.json"):
        trained(task, cache, tmp_path / "uniform", resume=True, **saving)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"gains": [[0.0] * 3] * 6},
        {"gains": [[0.0] * 4] * 6, "counts": [0.0] * 6},
        {"gains": [[0.0] * 3] * 6, "counts": [-1.0] * 6},
        {"gains": "none", "counts": None},
        {"gains": [[0.0], [0.0, 1.0]], "counts": [0.0] * 6},
    ],
)
def test_what_is_not_its_state_is_refused(values):
    with pytest.raises(WeightingError, match="hedge"):
        Hedge(6, 3).load_state_dict(values)


def test_who_is_online():
    assert isinstance(Hedge(2, 2), OnlineWeighting)
    for other in (Uniform(), Fixed(torch.ones(2)), Policy()):  # a policy has a state_dict, but does not learn here
        assert not isinstance(other, OnlineWeighting)
