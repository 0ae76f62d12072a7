"""The gain of a teacher: what a reward pays is linear in the weights, and a regression knows all of it."""

import numpy as np
import pytest
import torch

from rlkd.losses import logit_gain, loss_gradient
from rlkd.types import State
from rlkd.weighting.gain import gain_actions, student_of_any_age, teacher_gains
from rlkd.weighting.learned import SHARPNESS
from rlkd.weighting.router import STRENGTHS, likeliest_strength
from rlkd.weighting.router_targets import RouterRows
from rlkd.weighting.teacher_sets import ROUTER_SETS, TeacherSets, other_tasks


@pytest.fixture
def state():
    torch.manual_seed(0)
    present = torch.rand(40, 4) < 0.8
    present[:, 0] = True
    return State(teacher_logits=3 * torch.randn(40, 4, 5), teacher_mask=present, labels=torch.randint(5, (40,)))


def test_the_reward_of_any_weights_is_a_constant_plus_the_weighted_gains(state):
    """The derivation of `teacher_gains`: equal to the reward of the environment, so its best action is one teacher."""
    student, weights = torch.randn(40, 5), torch.rand(40, 4) * state.present
    weights = weights / weights.sum(-1, keepdim=True)
    p, y = student.softmax(-1).double(), torch.nn.functional.one_hot(state.labels, 5).double()
    reward = logit_gain(student, loss_gradient(student, state.teacher_logits, weights, state.labels), state.labels)
    gains = teacher_gains(state, student.softmax(-1))
    constant = (p * (p - y)).sum(-1)
    torch.testing.assert_close(reward.double(), constant + (weights * gains).sum(-1).double(), rtol=0, atol=1e-5)
    corners = torch.stack(
        [
            logit_gain(
                student,
                loss_gradient(student, state.teacher_logits, torch.eye(4)[k].expand(40, 4), state.labels),
                state.labels,
            )
            for k in range(4)
        ],
        dim=-1,
    ).masked_fill(~state.present, -torch.inf)
    assert torch.equal(corners.argmax(-1), gains.masked_fill(~state.present, -torch.inf).argmax(-1))
    assert (reward <= corners.amax(-1) + 1e-5).all()


def test_a_student_is_of_every_age_between_knowing_nothing_and_the_mean_of_its_teachers(state):
    p = student_of_any_age(state, np.random.default_rng(0))
    mean = (state.teacher_logits.softmax(-1) * state.present.unsqueeze(-1)).sum(1) / state.present.sum(1)[:, None]
    age = ((p - 0.2) * (mean - 0.2)).sum(-1) / (mean - 0.2).square().sum(-1)
    torch.testing.assert_close(p, 0.2 + age[:, None] * (mean - 0.2))
    assert age.min() < 0.1
    assert age.max() > 0.9


def test_actions_are_leads_over_the_mean_of_those_present():
    gains, present = torch.tensor([[0.3, 0.1, 0.9], [0.0, 1.0, 0.0]]), torch.tensor([[True, True, False], [True] * 3])
    expected = torch.tensor([[0.4, -0.4, 0.0], [-1.0, 1.0, -1.0]])
    torch.testing.assert_close(gain_actions(gains, present), expected)


def test_other_tasks_merge_classes_or_leave_some_out_and_change_no_probability():
    torch.manual_seed(1)
    state = State(teacher_logits=torch.randn(600, 3, 7), labels=torch.randint(7, (600,)), ids=torch.arange(600))
    whole, seen = state.teacher_logits.softmax(-1), set()
    for seed in range(4):
        for part in other_tasks(state, np.random.default_rng(seed)):
            rows, labels = part.ids, state.labels[part.ids]
            q, old = part.teacher_logits.softmax(-1), whole[rows]
            count = q.shape[-1]
            kept = len(labels.unique()) <= count < 7 and len(rows) < 100
            seen.add("same" if count == 7 else "fewer" if kept else "merged")
            names = {int(o): int(n) for o, n in zip(labels, part.labels, strict=True)}
            group = torch.tensor([names.get(c, -1) for c in range(7)])
            if kept:  # proportions of what is left stay
                one, other = (group >= 0).nonzero().squeeze(-1)[:2]
                torch.testing.assert_close(
                    q[..., group[one]] / q[..., group[other]], old[..., one] / old[..., other], rtol=1e-4, atol=1e-5
                )
            else:
                for new in range(count):
                    torch.testing.assert_close(q[..., new], old[..., group == new].sum(-1), rtol=1e-4, atol=1e-6)
    assert seen == {"same", "fewer", "merged"}


def test_a_drawn_teacher_is_sharper_or_softer_and_stays_in_its_bounds():
    state = State(teacher_logits=torch.ones(500, 2, 3), labels=torch.zeros(500, dtype=torch.long))
    drawn, _ = TeacherSets(sharpness=0.7).draw(state, np.random.default_rng(0))
    factors = drawn.teacher_logits[..., 0]
    assert 0.49 < factors.min() < 0.6
    assert 1.7 < factors.max() < 2.02
    assert ROUTER_SETS.vary


def router_rows(said: torch.Tensor, features: torch.Tensor, unseen: torch.Tensor) -> RouterRows:
    return RouterRows(features=features, targets=torch.zeros_like(said), said=said, unseen=unseen)


def test_a_router_goes_as_far_as_the_label_gets_likelier(state):
    """Where it is right, all the way; where it is wrong, hardly; else to the maximum of the likelihood."""
    actions = torch.where(state.present, 2 * torch.rand(40, 4) - 1, -torch.inf)
    features = torch.stack([state.present.float(), actions.clamp_min(-1)], dim=-1)

    def policy(features):
        return features[..., 1]

    best = torch.nn.functional.one_hot(actions.argmax(-1), 4).float()
    every, first = torch.ones(40, dtype=torch.bool), torch.arange(40) < 20
    assert likeliest_strength(policy, router_rows(best, features, every)) == 1
    assert likeliest_strength(policy, router_rows(0.9 - 0.8 * best, features, every)) == STRENGTHS[0]
    said = torch.where(first[:, None], 0.9 - 0.8 * best, best)
    assert likeliest_strength(policy, router_rows(said, features, ~first)) == 1  # teachers have seen the others
    assert likeliest_strength(policy, router_rows(best, features, ~every)) == 1  # and here all of them

    mixed = torch.where((torch.arange(40) < 16)[:, None], 0.99 - 0.98 * best, 0.01 + 0.98 * best)
    logits = SHARPNESS * actions.double().numpy()
    likelihood = []
    for strength in np.linspace(0.05, 1, 20):
        weights = np.exp(strength * logits)
        weights /= weights.sum(-1, keepdims=True)
        likelihood.append(np.log((weights * mixed.double().numpy()).sum(-1)).mean())
    assert 0 < np.argmax(likelihood) < 19
    found = likeliest_strength(policy, router_rows(mixed, features, every))
    assert found == pytest.approx(np.linspace(0.05, 1, 20)[np.argmax(likelihood)])
