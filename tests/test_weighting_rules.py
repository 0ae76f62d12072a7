"""The published rules by hand: golden values, closed forms against autograd, the quadratic program against scipy."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional as F

from rlkd.errors import WeightingError
from rlkd.logit_cache import LogitCache
from rlkd.losses import distillation_loss, divergence_gradients
from rlkd.types import State
from rlkd.weighting import WEIGHTINGS, build_weighting, mixture
from rlkd.weighting.fitted import CalibratedUniform, likeliest_temperatures, pool_coefficients
from rlkd.weighting.fixed import RandomTeacher
from rlkd.weighting.gradient import AekdBatchMean, AekdFlat, Govern, min_norm_weights
from rlkd.weighting.heuristic import Agreement, BestPerInstance, CaMkd, Ebkd, MaxProbability, MtBert, MtBertRaw


def with_cross_entropies(*costs):
    """One instance with label 0 whose teachers have these cross entropies."""
    right = torch.tensor(costs, dtype=torch.float64).neg().exp()
    logits = torch.stack([right, 1 - right], -1).clamp_min(1e-300).log()
    return State(teacher_logits=logits.unsqueeze(0).float(), labels=torch.tensor([0]))


def with_probabilities(teachers, student=None, **fields):
    """A batch whose teachers and student predict these probabilities."""
    logits = torch.tensor(teachers).clamp_min(1e-30).log()
    return State(
        teacher_logits=logits, student_logits=None if student is None else torch.tensor(student).log(), **fields
    )


def row(weighting, state):
    return weighting.weights(state)[0].tolist()


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ((0, 5, 5), (0.498, 0.251, 0.251)),  # softmax(-CE) would be (0.987, 0.007, 0.007)
        ((0, 0, 5), (0.497, 0.497, 0.007)),
        ((1, 1, 1), (1 / 3, 1 / 3, 1 / 3)),
        ((0, 2), (1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2)))),  # two teachers: softmax(-CE) indeed
    ],
)
def test_ca_mkd_by_hand(costs, expected):
    assert row(CaMkd(), with_cross_entropies(*costs)) == pytest.approx(expected, abs=6e-4)
    assert max(row(CaMkd(), with_cross_entropies(0, 90, 90, 90))) <= 1 / 3 + 1e-6


def test_ebkd_by_hand():
    # entropies log 2, 0 and log 2: shares 1/2, 0, 1/2 of all entropy
    state = with_probabilities([[[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]])
    assert row(Ebkd(), state) == pytest.approx([0.25, 0.5, 0.25])
    sure = with_probabilities([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    assert row(Ebkd(), sure) == pytest.approx([1 / 3] * 3)


def test_mt_bert_by_hand():
    state = with_cross_entropies(0, math.log(2), 5)
    raw = [1, 1 / (1 + math.log(2)), 1 / 6]
    assert row(MtBert(), state) == pytest.approx([share / sum(raw) for share in raw], abs=1e-5)
    assert row(MtBertRaw(), state) == pytest.approx(row(MtBert(), state))
    assert MtBertRaw().taught(state).scale.item() == pytest.approx(sum(raw), abs=1e-5)
    absent = dataclasses.replace(state, teacher_mask=torch.tensor([[True, False, True]]))
    assert MtBertRaw().taught(absent).scale.item() == pytest.approx(raw[0] + raw[2], abs=1e-5)
    assert MtBertRaw().taught(dataclasses.replace(state, labels=torch.tensor([-1]))).scale.item() == 1


def test_raw_mt_bert_gives_the_gradient_of_the_published_sum():
    torch.manual_seed(0)
    student = torch.randn(6, 4, requires_grad=True)
    state = State(teacher_logits=3 * torch.randn(6, 3, 4), labels=torch.arange(6) % 4)
    taught = mixture(MtBertRaw(), state)
    loss = distillation_loss(student, taught.teacher_logits, taught.weights, temperature=2.0, scale=taught.scale).sum()
    expected = 0
    for k in range(3):
        teacher = state.teacher_logits[:, k]
        weight = 1 / (1 + F.cross_entropy(teacher, state.labels, reduction="none"))
        log_student, targets = F.log_softmax(student / 2, -1), F.softmax(teacher / 2, -1)
        expected = expected + (weight * 4 * F.kl_div(log_student, targets, reduction="none").sum(-1)).sum()
    first, second = (torch.autograd.grad(value, student)[0] for value in (loss, expected))
    assert torch.allclose(first, second, atol=1e-5)


def test_the_label_oracle_shares_ties():
    assert row(BestPerInstance(), with_cross_entropies(3, 1, 1)) == [0, 0.5, 0.5]
    state = dataclasses.replace(with_cross_entropies(0, 2, 1), teacher_mask=torch.tensor([[False, True, True]]))
    assert row(BestPerInstance(), state) == [0, 0, 1]


def test_confidence_and_agreement_by_hand():
    state = with_probabilities([[[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]])
    odds = [math.exp(0.9), math.exp(0.9), math.exp(0.6)]
    assert row(MaxProbability(), state) == pytest.approx([share / sum(odds) for share in odds])
    assert row(MaxProbability(0.001), state) == pytest.approx([0.5, 0.5, 0])
    # overlaps with the mean of the others: min(.9, .65) + min(.1, .35) = .75, twice; min(.4, .9) + min(.6, .1) = .5
    assert row(Agreement(), state) == pytest.approx([0.375, 0.375, 0.25])


def test_the_vote_of_gradients_by_hand():
    # one score: two teachers pull the student from 0.5 up, one pulls it down
    state = with_probabilities([[[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]], [[0.5, 0.5]])
    assert row(Govern(), state) == [0.5, 0.5, 0]
    tie = with_probabilities([[[0.9, 0.1], [0.3, 0.7]]], [[0.5, 0.5]])
    assert row(Govern(), tie) == [0.5, 0.5]
    # the same teachers, one of the majority absent: now it is a tie
    absent = dataclasses.replace(state, teacher_mask=torch.tensor([[True, False, True]]))
    assert row(Govern(), absent) == [0.5, 0, 0.5]
    # three classes; votes + - -, + - -, - + -: the majority is + - -. The third follows it with 0.1 of 0.2 + 0.2
    three = with_probabilities([[[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.2, 0.6, 0.2]]], [[0.4, 0.3, 0.3]])
    assert row(Govern(), three) == [0.5, 0.5, 0]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradients_are_those_of_autograd(temperature):
    torch.manual_seed(1)
    student, teachers = torch.randn(5, 7, requires_grad=True), 3 * torch.randn(5, 3, 7)
    closed = divergence_gradients(student.detach(), teachers, temperature=temperature)
    for k, single in enumerate(torch.eye(3)):
        loss = distillation_loss(student, teachers, single.expand(5, 3), temperature=temperature)
        assert torch.allclose(closed[:, k], torch.autograd.grad(loss.sum(), student)[0], atol=1e-5)


@pytest.mark.parametrize("cap", [0.3, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_the_quadratic_program_is_solved(size, cap):
    rng = np.random.default_rng(size)
    for dimension in (size - 1, 2 * size):  # dependent vectors, and independent ones
        for centre in (0.0, 2.0):
            vectors = rng.standard_normal((size, dimension)) + centre
            gram = vectors @ vectors.T
            weights = min_norm_weights(gram, cap)
            bound = max(cap, 1 / size)
            assert weights.sum() == pytest.approx(1, abs=1e-9)
            assert weights.min() >= 0
            assert weights.max() <= bound + 1e-9
            reference = minimize(
                lambda w, gram=gram: w @ gram @ w,
                np.full(size, 1 / size),
                jac=lambda w, gram=gram: 2 * gram @ w,
                method="SLSQP",
                bounds=[(0, bound)] * size,
                constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
                options={"ftol": 1e-14, "maxiter": 500},
            )
            assert weights @ gram @ weights <= reference.fun + 1e-5 * np.trace(gram) / size


def test_the_quadratic_program_by_hand():
    """Two vectors: ``(g2 - g1) . g2 / |g1 - g2|^2``, then the cap; repeated vectors share; no vector, no preference."""
    vectors = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert min_norm_weights(vectors @ vectors.T) == pytest.approx([0.8, 0.2], abs=1e-5)
    assert min_norm_weights(vectors @ vectors.T, 0.6) == pytest.approx([0.6, 0.4])
    twice = vectors[[0, 0, 1]]
    assert min_norm_weights(twice @ twice.T) == pytest.approx([0.4, 0.4, 0.2], abs=1e-5)
    assert min_norm_weights(np.zeros((3, 3))).tolist() == pytest.approx([1 / 3] * 3)


def test_aekd_sees_the_batch_as_its_form_says():
    """Two teachers that are wrong in opposite ways on alternate rows: their batch means are the same, flat not."""
    rng = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(32, 3, 5, generator=rng)
    logits[:16, 1], logits[16:, 1] = logits[16:, 0].clone(), logits[:16, 0].clone()
    logits[:, 2] = 3 * logits[:, 0]
    student = torch.zeros(32, 5)
    state = State(teacher_logits=logits, student_logits=student)
    mean, flat = (cls(1.0).weights(state)[0] for cls in (AekdBatchMean, AekdFlat))
    assert mean[0].item() == pytest.approx(mean[1].item(), abs=1e-3)
    p = logits.softmax(-1).double() - 0.2
    gram = torch.einsum("nkc,njc->kj", p, p).numpy()
    assert flat.double().numpy() == pytest.approx(min_norm_weights(gram), abs=1e-5)
    assert flat[2] < 0.01 < flat[:2].min()  # the sharp one's gradients are long
    # a cap of 1 / K leaves equal weights, and the temperature of the loss enters
    assert AekdFlat(1 / 3).weights(state)[0].tolist() == pytest.approx([1 / 3] * 3)
    other = State(teacher_logits=2 * torch.randn(32, 3, 5, generator=rng), student_logits=student)
    soft = AekdFlat().weights(dataclasses.replace(other, temperature=4.0))
    assert not torch.allclose(soft, AekdFlat().weights(other), atol=1e-3)
    scaled = dataclasses.replace(other, teacher_logits=other.teacher_logits / 4)
    assert torch.allclose(AekdFlat().weights(scaled), soft, atol=1e-6)


def test_one_teacher_a_batch_drawn_anew():
    weighting = RandomTeacher("abc", seed=5)
    batches = torch.randperm(3000, generator=torch.Generator().manual_seed(0)).view(100, 30)
    logits = torch.zeros(30, 3, 2)
    drawn = [weighting.weights(State(teacher_logits=logits, ids=ids)) for ids in batches]
    assert all(torch.equal(weights, weights[:1].expand(30, 3)) for weights in drawn)
    counts = torch.stack([weights[0] for weights in drawn]).sum(0)
    assert counts.min() >= 20  # of 100; the expectation is 33
    other = RandomTeacher("abc", seed=6)
    assert any(
        not torch.equal(other.weights(State(teacher_logits=logits, ids=ids)), weights)
        for ids, weights in zip(batches, drawn, strict=True)
    )
    # where the one that was drawn is absent, the next one of the same ranking stands in
    ids = batches[0]
    first = drawn[0][0].argmax().item()
    mask = torch.ones(30, 3, dtype=torch.bool)
    mask[:10, first] = False
    weights = weighting.weights(State(teacher_logits=logits, ids=ids, teacher_mask=mask))
    assert torch.equal(weights[10:], drawn[0][10:])
    assert len(weights[:10].unique(dim=0)) == 1
    assert weights[:10, first].sum() == 0


def test_logistic_regression_finds_the_pool_that_drew_the_labels():
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 4, 5, generator=rng)
    pool = torch.tensor([0.6, 0.3, 0.1, 0.0])  # the last says nothing
    labels = torch.multinomial((logits * pool[:, None]).sum(1).softmax(-1), 1, generator=rng).squeeze(-1)
    assert pool_coefficients(logits, labels).tolist() == pytest.approx(pool.tolist(), abs=0.03)
    turned = logits * torch.tensor([1.0, -1.0, 1.0, 1.0])[:, None]  # the second now misleads
    assert pool_coefficients(turned, labels)[1] == 0
    assert pool_coefficients(-5 * logits[:, :1].abs() * F.one_hot(labels, 5).unsqueeze(1), labels).tolist() == [0]


def test_tuned_weights_read_their_own_rows(task, cache):
    """Teacher b never erred on train, teacher c never on validation."""
    logits = cache.rows(torch.arange(len(cache))).numpy().copy()
    for split, teacher in (("train", 1), ("probe", 1), ("validation", 2)):
        rows = task.splits[split]
        logits[rows, teacher, task.table.labels[rows]] += 20
    source = LogitCache(list(logits.transpose(1, 0, 2)), ["a", "b", "c"])
    train, dev = (build_weighting(name, task, source).shares for name in ("lr_train", "lr_dev"))
    assert train.argmax() == 1
    assert dev.argmax() == 2
    assert min(train.max(), dev.max()) > 0.6


def test_temperatures_undo_how_sharp_a_teacher_is(task, cache):
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 1, 4, generator=rng)
    labels = torch.multinomial(logits[:, 0].softmax(-1), 1, generator=rng).squeeze(-1)
    factors = torch.tensor([1.0, 4.0, 0.25])
    found = likeliest_temperatures(logits * factors[:, None], labels)
    assert (found / factors).tolist() == pytest.approx([1, 1, 1], abs=0.04)
    assert likeliest_temperatures(F.one_hot(labels, 4).unsqueeze(1), labels).item() == pytest.approx(0.05)
    weighting = build_weighting("calibrated_uniform", task, cache)
    rows = torch.arange(len(cache))
    state = State(teacher_logits=cache.rows(rows)[:30])
    taught = mixture(weighting, state)
    assert torch.equal(taught.teacher_logits, state.teacher_logits / weighting.temperatures[:, None])
    assert torch.equal(taught.weights, mixture(WEIGHTINGS["uniform"].build(None, None), state).weights)
    ids = torch.from_numpy(task.splits["validation"])
    labels = torch.from_numpy(task.labels("validation"))
    for k in range(3):  # no temperature near it makes the labels of validation likelier
        logits = cache.rows(ids)[:, k].double()
        temperature = weighting.temperatures[k].double()
        losses = [F.cross_entropy(logits / (temperature * f), labels).item() for f in (0.97, 1, 1.03)]
        assert losses[1] < min(losses[0], losses[2])


def test_calibration_reads_half_precision_without_overflow():
    state = State(teacher_logits=torch.tensor([[[6e4, -6e4], [1.0, 0.0]]]).half())
    adjusted = CalibratedUniform(torch.tensor([0.05, 1.0])).taught(state)
    assert torch.isfinite(adjusted.teacher_logits).all()


def test_caps_and_temperatures_out_of_range_are_refused():
    for wrong in (lambda: AekdFlat(1.5), lambda: AekdBatchMean(float("nan")), lambda: MaxProbability(0.0)):
        with pytest.raises(WeightingError, match="needs a"):
            wrong()
