"""What a user's weighting may say: refused by name where a mixture is formed, whoever forms it."""

import dataclasses

import numpy as np
import pytest
import torch

from rlkd.benchmark.measuring import deployed_weights
from rlkd.errors import WeightingError
from rlkd.feature_losses import AttentionTerm, EncoderSizes, FeatureLosses
from rlkd.losses import distillation_loss
from rlkd.settings import StudentSettings
from rlkd.trainer import make_trainer
from rlkd.trainer.joint_teachers import JointWeighting
from rlkd.types import State
from rlkd.weighting import BaseWeighting, OnlineWeighting, adapted, build_weighting, mixture
from rlkd.weighting.checks import check_weights
from rlkd.weighting.fixed import Uniform
from rlkd.weighting.heuristic import MtBertRaw

ROWS, TEACHERS, CLASSES = 8, 3, 4
SETTINGS = StudentSettings(student="rlkd/mlp", max_steps=3, batch_size=32)


class Mine:
    """Whatever a function of the state gives."""

    requires = frozenset()

    def __init__(self, give):
        self.give = give

    def weights(self, state):
        return self.give(state)


class Scaled(Mine):
    """Equal weights, and whatever a function gives as factors of the loss."""

    def weights(self, state):
        return Uniform().weights(state)

    def loss_scale(self, state):
        return self.give(state)


class Adjusted(Scaled):
    """Equal weights, and whatever a function makes of the state."""

    loss_scale = None

    def adjust(self, state):
        return self.give(state)


def mine(give):
    return adapted(Mine(give))


def a_state(**fields):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(ROWS, TEACHERS, CLASSES, generator=generator)
    return State(teacher_logits=logits, labels=torch.arange(ROWS) % CLASSES, ids=100 + torch.arange(ROWS), **fields)


def equal(state):
    return Uniform().weights(state)


def in_one_row(value):
    """Equal weights but for one number of the third row."""

    def give(state):
        weights = equal(state)
        weights.flatten(0, -2)[2, 0] = value
        return weights

    return give


WRONG = {
    "too much": (
        lambda s: 4 * equal(s),
        r"rows that sum to 1, .* got \[1.33333, .* sum 4, .*divide each row by its sum",
    ),
    "too little": (lambda s: 1e-5 * equal(s), "sum 1e-05"),
    "not a sum of one": (in_one_row(0.3), r"sum 0.966667, for \w+ 102 .*1 of \d+ rows are wrong"),
    "negative": (lambda s: -0.5 * torch.ones_like(equal(s)), r"weights >= 0, got \[-0.5"),
    "negative with sum one": (lambda s: torch.tensor([1.5, -0.5, 0.0]).expand(equal(s).shape), "weights >= 0"),
    "one NaN": (in_one_row(torch.nan), "finite weights"),
    "infinite": (in_one_row(torch.inf), "finite weights"),
    "infinite below": (in_one_row(-torch.inf), "finite weights"),
    "a row for all": (lambda s: torch.ones(TEACHERS) / TEACHERS, r"of shape \(\d+, 3\), got \(3,\)"),
    "too few teachers": (lambda s: equal(s)[..., :2], r"got \(\d+, 2\)"),
    "turned": (lambda s: equal(s).mT, r"got \(3, \d+\)"),
    "an array": (lambda s: equal(s).numpy(), "as a tensor, got ndarray"),
    "nothing": (lambda s: None, "as a tensor, got NoneType"),
    "complex": (lambda s: equal(s) + 0j, "real numbers"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_are_no_weights_is_refused_by_name(wrong):
    give, message = WRONG[wrong]
    with pytest.raises(
        WeightingError, match=f"weighting '.*test_weighting_checks:Mine' must give .*{message}"
    ) as caught:
        mixture(mine(give), a_state())
    assert "\n" not in str(caught.value)


def test_absent_teachers_must_have_no_weight():
    mask = torch.ones(ROWS, TEACHERS, dtype=torch.bool)
    mask[5, 1] = False
    state = a_state(teacher_mask=mask)
    with pytest.raises(WeightingError, match=r"weight 0 to absent teachers, got .* instance 105 \(1 of 8 rows"):
        mixture(mine(lambda s: torch.ones(ROWS, TEACHERS) / TEACHERS), state)
    assert torch.equal(mixture(mine(equal), state).weights, equal(state))


def test_a_row_of_zeros_is_for_a_label_to_teach_alone():
    give = in_one_row(0.0)

    def zeros(state):
        weights = give(state)
        weights[2] = 0
        return weights

    state = a_state()
    assert (mixture(mine(zeros), state).weights[2] == 0).all()
    unlabelled = torch.where(torch.arange(ROWS) == 2, -1, state.labels)
    for other in (dataclasses.replace(state, labels=unlabelled), dataclasses.replace(state, labels=None)):
        with pytest.raises(WeightingError, match=r"sum to 1, .*got \[0, 0, 0\], sum 0, for instance 102"):
            mixture(mine(zeros), other)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]
)
def test_weights_of_any_real_type_teach_as_what_they_are(dtype):
    """The gradient is that of the same numbers in float32, and none goes into the weighting."""
    state = a_state()
    if dtype.is_floating_point:
        given = torch.softmax(2 * torch.randn(ROWS, TEACHERS), -1).to(dtype).requires_grad_()
    else:
        given = torch.eye(TEACHERS)[torch.arange(ROWS) % TEACHERS].to(dtype)
    student = torch.randn(ROWS, CLASSES, requires_grad=True)
    gradients = []
    taught = mixture(mine(lambda s: given), state)
    for weights in (taught.weights, given.detach().float()):
        loss = distillation_loss(student, state.teacher_logits, weights, state.labels).sum()
        gradients.append(torch.autograd.grad(loss, student)[0])
    assert torch.equal(*gradients)
    assert taught.weights.dtype == torch.float32
    assert not taught.weights.requires_grad
    p = student.detach().double().softmax(-1)
    q = (given.detach().double().unsqueeze(-1) * state.teacher_logits.double().softmax(-1)).sum(1)
    total = given.detach().double().sum(-1, keepdim=True)  # half precision sums to 1 but nearly
    assert torch.allclose(gradients[0].double(), p * total - q, atol=1e-6)


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda s: torch.ones(ROWS, 1), r"loss scales, one an instance, of shape \(8,\), got \(8, 1\)"),
        (lambda s: 1.0, "as a tensor, got float"),
        (lambda s: -torch.ones(ROWS), r"finite and >= 0, got \[-1\] for instance 100 \(8 of 8"),
        (lambda s: torch.full((ROWS,), torch.nan), r"finite and >= 0, got \[nan\]"),
        (lambda s: torch.full((ROWS,), torch.inf), r"finite and >= 0, got \[inf\]"),
    ],
)
def test_factors_of_the_loss_are_held_to_the_same(give, message):
    with pytest.raises(WeightingError, match=f"Scaled' must give .*{message}"):
        mixture(adapted(Scaled(give)), a_state())


def test_factors_that_are_right_pass_and_carry_no_gradient():
    scale = torch.linspace(0, 3, ROWS, requires_grad=True)
    taught = mixture(adapted(Scaled(lambda s: scale)), a_state())
    assert torch.equal(taught.scale, scale.detach())
    assert not taught.scale.requires_grad
    assert (mixture(MtBertRaw(), a_state()).scale > 0).all()


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda s: None, "got NoneType"),
        (lambda s: dataclasses.replace(s, teacher_logits=s.teacher_logits[..., :2]), r"got \(8, 3, 2\)"),
        (lambda s: dataclasses.replace(s, teacher_logits=s.teacher_logits * torch.nan), "got NaN"),
    ],
)
def test_an_adjusted_state_has_the_same_teachers_and_classes(give, message):
    with pytest.raises(WeightingError, match=f"Adjusted' must adjust a state .*{message}"):
        mixture(adapted(Adjusted(give)), a_state())


@pytest.mark.parametrize("wrong", ["too much", "negative", "one NaN", "a row for all"])
def test_trainer_benchmark_feature_losses_and_joint_training_refuse_alike(wrong, task, cache, tmp_path):
    give, message = WRONG[wrong]
    weighting = Mine(give)
    trainer = make_trainer(task, cache, weighting, SETTINGS, tmp_path)
    with pytest.raises(WeightingError, match=f"Mine' must give .*{message}"):
        trainer.train()
    assert trainer.state.global_step == 0
    ids = task.splits["validation"][:10]
    with pytest.raises(WeightingError, match="Mine' must give"):
        deployed_weights(adapted(weighting), task, cache, ids, np.zeros((10, task.num_classes)), 32)
    attends = AttentionTerm(EncoderSizes(layers=2, width=8, heads=2), [EncoderSizes(layers=2, width=8, heads=2)] * 3)
    with pytest.raises(WeightingError, match="Mine' must give"):
        FeatureLosses([attends], weighting=weighting).losses(None, (), a_state(), None)

    class OneTask(JointWeighting):
        def __init__(self):
            pass

        def own(self, state):
            return adapted(weighting), state

    with pytest.raises(WeightingError, match="Mine' must give"):  # the task's own, not the joint one
        mixture(OneTask(), a_state())


def test_a_class_given_by_its_name_is_refused_by_it(task, cache, tmp_path, monkeypatch):
    (tmp_path / "mine_for_checks.py").write_text(
        "class Fourfold:\n"
        "    requires = frozenset()\n"
        "    @classmethod\n"
        "    def build(cls, argument, evidence):\n"
        "        return cls()\n"
        "    def weights(self, state):\n"
        "        return 4 * state.present / state.present.sum(-1, keepdim=True)\n"
        "class Misspelt(Fourfold):\n"
        "    requires = frozenset({'student_logit'})\n"
        "class Silent(Fourfold):\n"
        "    requires = None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    weighting = build_weighting("mine_for_checks:Fourfold", task, cache)
    with pytest.raises(WeightingError, match=r"weighting 'mine_for_checks:Fourfold' must give rows .* sum 4"):
        make_trainer(task, cache, weighting, SETTINGS, tmp_path / "run").train()
    for name in ("Misspelt", "Silent"):
        with pytest.raises(WeightingError, match=f"'mine_for_checks:{name}' must have requires, .*student_logits"):
            build_weighting(f"mine_for_checks:{name}", task, cache)


def test_a_batch_without_rows_or_with_leading_axes_is_checked_too():
    state = State(teacher_logits=torch.zeros(0, 3, 2))
    check_weights(torch.zeros(0, 3), state, "mine")
    stacked = State(teacher_logits=torch.zeros(2, 5, 3, 2))
    check_weights(equal(stacked), stacked, "mine")
    with pytest.raises(WeightingError, match=r"row 2 \(1 of 10 rows"):
        check_weights(in_one_row(0.0)(stacked), stacked, "mine")
    single = State(teacher_logits=torch.zeros(3, 2))
    check_weights(equal(single), single, "mine")
    with pytest.raises(WeightingError, match=r"sum 2, for row 0 \(1 of 1"):
        check_weights(2 * equal(single), single, "mine")


class Learning(Scaled):
    """A user's own that learns while the student does, with everything that a class may have."""

    requires = frozenset({"labels"})
    falls_back = "nothing new"
    seen = 0

    def adjust(self, state):
        return dataclasses.replace(state, teacher_logits=state.teacher_logits / 2)

    def update(self, state):
        self.seen += len(state.labels)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, values):
        self.seen = values["seen"]


def test_what_a_class_of_ones_own_may_have_counts_wherever_it_enters(task, cache, tmp_path):
    state, own = a_state(), Learning(lambda s: s.labels + 1.0)
    taught, weighting = mixture(adapted(own), state), adapted(own)
    assert torch.equal(taught.teacher_logits, state.teacher_logits / 2)
    assert torch.equal(taught.scale, state.labels + 1.0)
    assert (weighting.requires, weighting.falls_back) == ({"labels"}, "nothing new")
    assert adapted(weighting) is weighting
    assert isinstance(weighting, OnlineWeighting)
    assert not isinstance(mine(equal), OnlineWeighting)
    trainer = make_trainer(task, cache, own, SETTINGS, tmp_path)
    trainer.train()
    assert (trainer.weighting.state_dict(), own.seen) == ({"seen": 3 * 32}, 0)  # a copy learned
    trainer.weighting.load_state_dict({"seen": 5})
    assert trainer.weighting.own.seen == 5


def test_a_subclass_says_what_differs_from_the_defaults():
    class Doubled(BaseWeighting):
        def weights(self, state):
            return equal(state)

        def taught(self, state):
            return dataclasses.replace(super().taught(state), scale=torch.full((ROWS,), 2.0))

    weighting, state = Doubled.build(None, None), a_state()
    assert adapted(weighting) is weighting
    assert (weighting.requires, weighting.falls_back) == (frozenset(), "")
    taught = mixture(weighting, state)
    assert taught.teacher_logits is state.teacher_logits
    assert torch.equal(taught.weights, equal(state))
    assert (taught.scale == 2).all()
    with pytest.raises(WeightingError, match="takes no argument"):
        Doubled.build("3", None)
