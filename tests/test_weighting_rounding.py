"""Where rounding decided: differences of near-equal numbers, sums that all but vanish, and ties."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from rlkd.losses import divergence_gradients
from rlkd.types import State
from rlkd.weighting.controls import PolicyShuffle
from rlkd.weighting.fixed import Fixed
from rlkd.weighting.gradient import AekdBatchMean, AekdFlat, Govern
from rlkd.weighting.heuristic import Agreement, BestPerInstance, Ebkd, MaxProbability
from rlkd.weighting.learned import Policy
from rlkd.weighting.online import Hedge
from rlkd.weighting.simplex import normalised


def drawn(seed, *shape, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def softmax64(logits):
    values = logits.double().numpy()
    odds = np.exp(values - values.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


@pytest.mark.parametrize("sure", [(18.0, 22.0), (40.0, 40.0), (300.0, 310.0), (1e4, 1e4)])
def test_two_sure_teachers_that_disagree_agree_with_each_other_alike(sure):
    first, second = sure
    state = State(teacher_logits=torch.tensor([[[first, 0.0], [0.0, second]]]))
    assert Agreement().weights(state).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(("teachers", "classes"), [(2, 2), (3, 3), (4, 7)])
@pytest.mark.parametrize("scale", [1.0, 10.0, 60.0])
def test_agreement_to_its_last_digit(teachers, classes, scale):
    """Against float64 that adds up the others one by one."""
    logits = drawn(teachers, 20_000, teachers, classes, scale=scale)
    p = softmax64(logits)
    overlap = np.zeros(p.shape[:2])
    for k in range(teachers):
        others = sum(p[:, j] for j in range(teachers) if j != k) / (teachers - 1)
        overlap[:, k] = np.minimum(p[:, k], others).sum(-1)
    expected = overlap / overlap.sum(-1, keepdims=True)
    found = Agreement().weights(State(teacher_logits=logits)).numpy()
    assert np.abs(found - expected).max() < 1e-6


@pytest.mark.parametrize("margins", [(1.0, 2.0, 3.0), (14.0, 15.0, 16.0), (30.0, 31.0, 33.0), (90.0, 91.0, 95.0)])
def test_the_blame_of_sure_teachers_is_shared_by_their_entropies(margins):
    """Two classes: the entropy at margin m is ``log(1 + e^-m) + m / (1 + e^m)``, however small."""
    state = State(teacher_logits=torch.tensor([[[margin, 0.0] for margin in margins]]))
    entropies = [math.log1p(math.exp(-m)) + m / (1 + math.exp(m)) for m in margins]
    expected = [(1 - entropy / sum(entropies)) / 2 for entropy in entropies]
    assert Ebkd().weights(state)[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-300, 1e-37, 1e-20, 1e-13, 1.0, 1e20, 3e38])
def test_shares_of_any_size_are_normalised(size, dtype):
    shares = torch.tensor([[1.0, 0.5, 0.25, 1.0]], dtype=dtype) * size
    present = torch.tensor([[True, True, True, False]])
    lost = shares[0, 2] < torch.finfo(dtype).tiny
    expected = [1 / 3, 1 / 3, 1 / 3, 0] if lost else [4 / 7, 2 / 7, 1 / 7, 0]
    assert normalised(shares, present)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert normalised(0 * shares, present)[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert normalised(torch.full_like(shares, torch.nan), present).isnan().any()  # no silent equal weights


def test_fixed_shares_of_any_size():
    for size in (1e-35, 1.0, 2e38):
        assert Fixed(torch.tensor([1.0, 0.5, 0.5]) * size).shares.tolist() == pytest.approx([0.5, 0.25, 0.25])


@pytest.mark.parametrize(("teachers", "classes"), [(3, 3), (3, 6), (5, 10)])
@pytest.mark.parametrize("weighting", [Govern(), BestPerInstance(), AekdFlat(), AekdBatchMean(), Agreement()])
def test_one_added_to_a_teachers_logits_changes_no_row(weighting, teachers, classes):
    """In float32 it does change them by a rounding; that must not decide who is elected."""
    logits, student = drawn(0, 20_000, teachers, classes, scale=2.0), drawn(1, 20_000, classes)
    labels = torch.arange(20_000) % classes
    state = State(teacher_logits=logits, student_logits=student, labels=labels)
    moved = logits.clone()
    moved[:, 0] += 1
    weights = weighting.weights(dataclasses.replace(state, teacher_logits=moved))
    assert ((weights - weighting.weights(state)).abs().amax(-1) > 1e-4).sum() == 0


def govern_by_hand(logits, student):
    """In float64, with the one structural tie stated: all that rises or all that falls is exactly half the mass."""
    gradients = softmax64(student)[:, None] - softmax64(logits)
    majority = np.sign(np.sign(gradients).sum(1, keepdims=True))
    followed = (np.abs(gradients) * (np.sign(gradients) * majority > 0)).sum(-1)
    elected = followed > np.abs(gradients).sum(-1) * (0.5 + 1e-9)
    shares = np.where(elected.any(-1, keepdims=True), elected, 1.0)
    return shares / shares.sum(-1, keepdims=True)


@pytest.mark.parametrize(("teachers", "classes"), [(2, 4), (3, 3), (5, 8)])
def test_who_is_elected_in_float64(teachers, classes):
    logits, student = drawn(2, 20_000, teachers, classes, scale=2.0), drawn(3, 20_000, classes)
    found = Govern().weights(State(teacher_logits=logits, student_logits=student)).numpy()
    assert (np.abs(found - govern_by_hand(logits, student)).max(-1) > 1e-6).sum() == 0


@pytest.mark.parametrize("divergence", ["kl", "mse_centred"])
@pytest.mark.parametrize("weighting", [Govern(), AekdFlat(1.0), AekdBatchMean(1.0)])
def test_teachers_that_say_what_the_student_says_pull_nowhere(weighting, divergence):
    """But for what was added to their logits; rounding alone preferred one of them."""
    student = drawn(4, 64, 5, scale=3.0)
    shifts = torch.tensor([0.0, 1 / 3, -2.7]).view(1, 3, 1)
    state = State(teacher_logits=student.unsqueeze(1) + shifts, student_logits=student, divergence=divergence)
    assert torch.allclose(weighting.weights(state), torch.full((64, 3), 1 / 3), atol=1e-6)


@pytest.mark.parametrize("divergence", ["kl", "mse"])
def test_gradients_near_the_student_keep_the_digits_of_the_logits(divergence):
    student = drawn(5, 50, 4, scale=3.0).double()
    teachers = student.unsqueeze(1) + 1e-9 * drawn(6, 50, 3, 4).double()
    found = divergence_gradients(student, teachers, divergence=divergence)
    # to first order in the difference d: (diag(p) - p p') d, and 2 d
    step, p = (student.unsqueeze(1) - teachers).numpy(), softmax64(student)[:, None]
    expected = 2 * step if divergence == "mse" else p * (step - (p * step).sum(-1, keepdims=True))
    assert np.abs(found.numpy() - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("weighting", [BestPerInstance(), MaxProbability(1e-9)])
@pytest.mark.parametrize("scale", [1.0, 5.0, 10.0])
def test_copies_with_something_added_tie(weighting, scale):
    logits = drawn(7, 20_000, 1, 5, scale=scale) + torch.tensor([0.0, 1.0, -3.0]).view(1, 3, 1)
    state = State(teacher_logits=logits, labels=torch.arange(20_000) % 5)
    assert torch.allclose(weighting.weights(state), torch.full((20_000, 3), 1 / 3), atol=1e-6)


def test_the_better_by_more_than_rounding_still_wins():
    state = State(teacher_logits=torch.tensor([[[1e-4, 0.0], [0.0, 0.0]]]), labels=torch.tensor([0]))
    assert BestPerInstance().weights(state).tolist() == [[1, 0]]
    assert MaxProbability(1e-9).weights(state).tolist() == [[1, 0]]


def test_a_tie_of_the_mixture_is_the_first_class_whatever_the_order_of_the_teachers():
    hedge = Hedge(num_classes=6, num_teachers=5)
    orders = [torch.randperm(5, generator=torch.Generator().manual_seed(n)) for n in range(20)]
    p = torch.full((5, 6), 0.02)
    p[[0, 1, 2, 3], [1, 1, 3, 3]], p[4] = 0.9, 1 / 6  # two for class 1, two for class 3
    for order in orders:
        for shift in (0.0, 0.1, 7.3):
            assert hedge.context(State(teacher_logits=p[order].log().unsqueeze(0) + shift)).tolist() == [1]


def test_shuffled_rows_follow_their_instances_where_ids_are_large():
    """Their squares add up to more than a float holds exactly."""
    shuffle = PolicyShuffle(Policy())
    ids = 10**9 + torch.arange(64) ** 3
    state = State(teacher_logits=drawn(8, 64, 3, 4, scale=5.0), ids=ids)
    weights = shuffle.weights(state)
    for seed in range(10):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
        moved = State(teacher_logits=state.teacher_logits[order], ids=ids[order])
        assert torch.allclose(shuffle.weights(moved), weights[order], atol=1e-6)
