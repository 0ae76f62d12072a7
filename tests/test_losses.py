import math

import pytest
import torch
from torch.nn import functional as F

from rlkd.errors import ConfigError
from rlkd.losses import (
    cross_entropy,
    distillation_loss,
    multi_label_loss,
    refined_cross_entropy,
    regression_loss,
    soft_targets,
    teacher_cross_entropy,
)
from rlkd.settings import check_loss_settings

TEACHERS = torch.tensor([[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]]).log()  # (1, 2, 3)
WEIGHTS = torch.tensor([[0.75, 0.25]])
STUDENT = torch.zeros(1, 3)  # uniform
DIVERGENCE = 0.0268815  # sum q log q + log 3 with q = (0.4375, 0.3125, 0.25)


def test_the_mixture_by_hand():
    probability = soft_targets(TEACHERS, WEIGHTS)
    assert torch.allclose(probability, torch.tensor([[0.4375, 0.3125, 0.25]]))
    # 2 ** (-1.25, -1.75, -2), normalised
    assert torch.allclose(soft_targets(TEACHERS, WEIGHTS, mix="logit"), torch.tensor([[0.434459, 0.307210, 0.258331]]))
    # each teacher softened: (sqrt 2, 1, 1) / (2 + sqrt 2) and its mirror
    softened = soft_targets(TEACHERS, torch.tensor([[0.5, 0.5]]), temperature=2.0)
    assert torch.allclose(softened, torch.tensor([[0.3535534, 0.3535534, 0.2928932]]))


@pytest.mark.parametrize(
    ("kd_ratio", "label", "expected"),
    [
        (1.0, 0, DIVERGENCE),
        (0.25, 0, 0.75 * math.log(3) + 0.25 * DIVERGENCE),
        (0.25, -1, 0.25 * DIVERGENCE),  # an unlabelled row has no cross entropy
        (0.0, 2, math.log(3)),
    ],
)
def test_the_loss_by_hand(kd_ratio, label, expected):
    loss = distillation_loss(STUDENT, TEACHERS, WEIGHTS, torch.tensor([label]), kd_ratio=kd_ratio)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_temperature_softens_and_its_square_restores_the_size():
    plain = distillation_loss(
        STUDENT, TEACHERS, torch.tensor([[0.5, 0.5]]), temperature=2.0, scale_by_temperature=False
    )
    assert plain.item() == pytest.approx(0.0037613, abs=1e-6)
    scaled = distillation_loss(STUDENT, TEACHERS, torch.tensor([[0.5, 0.5]]), temperature=2.0)
    assert scaled.item() == pytest.approx(4 * plain.item(), rel=1e-6)


def test_one_teacher_is_the_divergence_of_the_textbooks():
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 5), torch.randn(8, 1, 5)
    loss = distillation_loss(student, teacher, torch.ones(8, 1), temperature=3.0)
    log_student, teacher = F.log_softmax(student / 3, -1), F.softmax(teacher[:, 0] / 3, -1)
    assert torch.allclose(loss, 9 * F.kl_div(log_student, teacher, reduction="none").sum(-1), atol=1e-6)


def test_the_gradient_of_the_mixture_is_that_of_the_weighted_sum_of_divergences():
    torch.manual_seed(0)
    teachers, weights = torch.randn(6, 3, 4).double(), torch.rand(6, 3).softmax(-1).double()
    student = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)

    def gradient(loss):
        return torch.autograd.grad(loss.sum(), student)[0]

    one_hot = torch.eye(3).unsqueeze(1).expand(3, 6, 3)
    single = sum(weights[:, k] * distillation_loss(student, teachers, one_hot[k], temperature=2.0) for k in range(3))
    mixture = gradient(distillation_loss(student, teachers, weights, temperature=2.0))
    assert torch.allclose(gradient(single), mixture, atol=1e-6)
    logit = gradient(distillation_loss(student, teachers, weights, temperature=2.0, mix="logit"))
    assert not torch.allclose(logit, mixture, atol=1e-2)


def test_neither_teachers_nor_weights_receive_a_gradient():
    teachers, weights = TEACHERS.clone().requires_grad_(), WEIGHTS.clone().requires_grad_()
    assert not soft_targets(teachers, weights).requires_grad


@pytest.mark.parametrize("mix", ["probability", "logit"])
def test_half_precision_logits(mix):
    torch.manual_seed(0)
    student, teachers = torch.randn(4, 5), torch.randn(4, 3, 5)
    weights = torch.full((4, 3), 1 / 3)
    labels = torch.tensor([0, 1, 2, -1])
    expected = distillation_loss(student, teachers, weights, labels, kd_ratio=0.5, mix=mix)
    half = distillation_loss(student.half(), teachers.half(), weights.half(), labels, kd_ratio=0.5, mix=mix)
    assert half.dtype == torch.float32
    assert torch.allclose(half, expected, atol=3e-3)
    extreme = torch.tensor([[1e4, -1e4, 0.0, 1e4, -1e4]]).half().requires_grad_()
    loss = distillation_loss(extreme, -extreme.detach().expand(1, 3, 5), weights[:1], labels[:1], kd_ratio=0.5, mix=mix)
    loss.backward()
    assert loss.isfinite()
    assert loss > 1e3
    assert extreme.grad is not None
    assert extreme.grad.isfinite().all()


def test_teachers_are_scored_by_the_label():
    scores = teacher_cross_entropy(TEACHERS.repeat(2, 1, 1), torch.tensor([1, -1]))
    assert torch.allclose(scores, torch.tensor([[math.log(4), math.log(2)], [0.0, 0.0]]))
    assert torch.allclose(cross_entropy(TEACHERS[0], torch.tensor([1, 1])), scores[0])


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"kd_ratio": 1.1},
        {"kd_ratio": -0.1},
        {"mix": "losses"},
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        check_loss_settings(**{"temperature": 1.0, "kd_ratio": 1.0, "mix": "logit", **settings})


def test_a_cross_entropy_term_needs_labels():
    with pytest.raises(ConfigError, match="kd_ratio"):
        distillation_loss(STUDENT, TEACHERS, WEIGHTS, kd_ratio=0.5)


BERNOULLI = 0.0315839  # q log 2q + (1 - q) log 2(1 - q) with q = 0.75 * 0.75 + 0.25 * 0.25 = 0.625


@pytest.mark.parametrize(
    ("kd_ratio", "targets", "expected"),
    [
        (1.0, [1.0, 0.0], BERNOULLI / 2),  # of the second label teachers say what the student says
        (0.25, [1.0, 0.0], 0.75 * math.log(2) + 0.25 * BERNOULLI / 2),
        (0.25, [1.0, math.nan], 0.75 * math.log(2) / 2 + 0.25 * BERNOULLI / 2),
    ],
)
def test_the_loss_of_several_labels_by_hand(kd_ratio, targets, expected):
    odds = math.log(3)  # of 0.75
    teachers, weights = torch.tensor([[[odds, 0.0], [-odds, 0.0]]]), WEIGHTS.expand(1, 2, 2)
    loss = multi_label_loss(torch.zeros(1, 2), teachers, weights, torch.tensor([targets]), kd_ratio=kd_ratio)
    assert loss.tolist() == pytest.approx([expected], abs=1e-6)


def test_labels_of_several_are_softened_and_weighted_one_by_one():
    generator = torch.Generator().manual_seed(0)
    student, teachers = torch.randn(5, 4, generator=generator), torch.randn(5, 3, 4, generator=generator)
    weights = torch.rand(5, 4, 3, generator=generator).softmax(-1)
    loss = multi_label_loss(student, teachers, weights, temperature=2.0)
    q = (weights * torch.sigmoid(teachers / 2).transpose(1, 2)).sum(-1).double()
    p = torch.sigmoid(student.double() / 2)
    kl = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    torch.testing.assert_close(loss, 4 * kl.mean(-1).float(), rtol=1e-4, atol=1e-6)
    squared = multi_label_loss(student, teachers, weights, divergence="mse")
    far = (student - (weights * teachers.transpose(1, 2)).sum(-1)).square().mean(-1)
    torch.testing.assert_close(squared, far)


@pytest.mark.parametrize(
    ("weights", "target", "expected"),
    [
        ([0.75, 0.25], -2.0, 0.75 * 4 + 0.25 * 2.25),  # the teachers' mean is 1.5
        ([0.75, 0.25], math.nan, 0.25 * 2.25),
        ([0.0, 0.0], -2.0, 4.0),  # nobody teaches but the label
    ],
)
def test_the_loss_of_a_regression_by_hand(weights, target, expected):
    numbers, given = torch.tensor([[[1.0], [3.0]]]), torch.tensor([[target]])
    loss = regression_loss(torch.zeros(1, 1), numbers, torch.tensor([weights]), given, kd_ratio=0.25)
    assert loss.tolist() == pytest.approx([expected])
    with pytest.raises(ConfigError, match=r"kd_ratio 0\.25 needs labels"):
        regression_loss(torch.zeros(1, 1), numbers, torch.tensor([weights]), kd_ratio=0.25)


@pytest.mark.parametrize("sureness", [0.3, 1.0, 8.0])
def test_the_refined_loss_does_not_ask_how_sure_a_classifier_is(sureness):
    # right on three rows of four and as sure on each: at the likeliest temperature the label has 3/4, or 1/4
    labels = torch.tensor([0, 1, 0, 1])
    logits = sureness * F.one_hot(torch.tensor([0, 1, 0, 0]), 2).float()
    right, wrong = -math.log(3 / 4), -math.log(1 / 4)
    assert refined_cross_entropy(logits, labels).tolist() == pytest.approx([right, right, right, wrong], abs=1e-5)
    assert cross_entropy(logits, labels).mean() >= refined_cross_entropy(logits, labels).mean() - 1e-6
