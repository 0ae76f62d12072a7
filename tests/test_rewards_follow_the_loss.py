"""Rewards follow the loss that the student is trained with, against finite differences of a loss written out here."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rlkd_envs.rewards import make_reward
from rlkd_envs.vector import TeacherWeightingVectorEnv
from scipy.optimize import minimize_scalar

from rlkd.errors import ConfigError
from rlkd.losses import (
    cost_of_mixture,
    cross_entropy,
    distillation_loss,
    likeliest_temperatures,
    logit_gain,
    loss_gradient,
)
from rlkd.weighting.simplex import equal_weights

LOSSES = [
    {"temperature": temperature, "kd_ratio": ratio, "mix": mix}
    for temperature, ratio, mix in itertools.product((1.0, 0.5, 4.0), (1.0, 0.3, 0.0), ("probability", "logit"))
] + [{"kd_ratio": ratio, "divergence": divergence} for ratio in (1.0, 0.3) for divergence in ("mse", "mse_centred")]
FEW = [loss for loss in LOSSES if loss.get("temperature") != 0.5 and loss.get("kd_ratio") != 0.0]
"""Those that are gone through one by one; the others are drawn."""
STEP = 1e-4


def softmax(values):
    shifted = np.exp(values - values.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def label_loss(z, labels):
    """Cross entropy in float64; nothing is lost on a row without a label."""
    return np.where(labels >= 0, -np.log(softmax(z))[np.arange(len(z)), labels], 0.0)


def reference_loss(z, teachers, weights, labels, *, temperature=1.0, kd_ratio=1.0, mix="probability", divergence="kl"):
    """Hinton's loss, or squared error, in float64: (B, C), (B, K, C), (B, K), (B,) to (B,)."""
    w = weights[..., None]
    if divergence == "kl":
        q = (
            (w * softmax(teachers / temperature)).sum(1)
            if mix == "probability"
            else softmax((w * teachers).sum(1) / temperature)
        )
        kd = temperature**2 * (q * (np.log(np.maximum(q, 1e-300)) - np.log(softmax(z / temperature)))).sum(-1)
    else:
        error = z - (w * teachers).sum(1)
        kd = ((error - error.mean(-1, keepdims=True) * (divergence == "mse_centred")) ** 2).sum(-1)
    ce = label_loss(z, labels)
    return np.where(weights.sum(-1) > 0, (1 - kd_ratio) * ce + kd_ratio * kd, ce)


def slopes(loss, z):
    """Central differences of a loss of each row, (B,), at its logits z (B, C)."""
    found = np.zeros_like(z)
    for c in range(z.shape[1]):
        step = STEP * (np.arange(z.shape[1]) == c)
        found[:, c] = (loss(z + step) - loss(z - step)) / (2 * STEP)
    return found


def drawn(seed, rows=6, teachers=3, classes=5, spread=3.0):
    """A batch with a row that has no label, and one that has no teacher."""
    rng = np.random.default_rng(seed)
    z, logits = rng.normal(0, spread, (rows, classes)), rng.normal(0, spread, (rows, teachers, classes))
    weights, labels = rng.dirichlet(np.ones(teachers), rows), rng.integers(classes, size=rows)
    weights[0], labels[1] = 0.0, -1
    return z, logits, weights, labels


def tensors(*arrays):
    return tuple(torch.from_numpy(array) for array in arrays)


def check_gradient_and_gain(seed, loss, spread=3.0):
    z, teachers, weights, labels = batch = drawn(seed, spread=spread)
    gradient = loss_gradient(*tensors(*batch), **loss)
    expected = slopes(lambda at: reference_loss(at, teachers, weights, labels, **loss), z)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=2e-3, atol=2e-4 * spread)
    # the drop of the cross entropy along the step, a step of a size that float64 resolves
    eta = 1e-6
    drop = (label_loss(z, labels) - label_loss(z - eta * expected, labels)) / eta
    gains = logit_gain(torch.from_numpy(z), gradient, torch.from_numpy(labels)).numpy()
    np.testing.assert_allclose(gains, drop, rtol=5e-3, atol=1e-3 * spread)


@pytest.mark.parametrize("loss", FEW, ids=str)
def test_gradient_and_gain_are_those_of_the_loss(loss):
    check_gradient_and_gain(0, loss)


SPREADS = st.floats(0.1, 8.0)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), loss=st.sampled_from(LOSSES), spread=SPREADS)
def test_gradient_and_gain_are_those_of_the_loss_on_any_batch(seed, loss, spread):
    check_gradient_and_gain(seed, loss, spread)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(seed=st.integers(0, 2**31), loss=st.sampled_from(LOSSES), spread=SPREADS)
def test_gradient_and_gain_are_those_of_the_loss_on_very_many_batches(seed, loss, spread):
    check_gradient_and_gain(seed, loss, spread)


def test_at_another_temperature_the_usual_formula_has_the_wrong_sign():
    z, teacher, labels = torch.tensor([[0.3, -5.4, 2.0]]), torch.tensor([[[-3.8, 6.6, 5.0]]]), torch.tensor([0])
    one = torch.ones(1, 1)
    usual = logit_gain(z, loss_gradient(z, teacher, one, labels), labels)
    assert usual.item() == pytest.approx(0.441, abs=1e-3)
    # by hand: p_T = (.3610, .0868, .5522), q_T = (.0426, .5732, .3842), p - y = (-.8457, .0005, .8452); times T = 4
    assert logit_gain(z, loss_gradient(z, teacher, one, labels, temperature=4.0), labels).item() == pytest.approx(
        -0.510, abs=1e-3
    )


@pytest.mark.parametrize("loss", FEW, ids=str)
@pytest.mark.parametrize("refined", [False, True])
def test_influence_is_the_drop_of_the_probe_loss_whatever_the_loss(loss, refined):
    """One step of the last layer on each instance alone, in float64."""
    z, teachers, weights, labels = drawn(1)
    rng = np.random.default_rng(2)
    hidden, probe_hidden = rng.normal(size=(len(z), 4)), rng.normal(size=(12, 4))
    w = np.linalg.lstsq(hidden, z, rcond=None)[0].T  # the layer that gives such logits, as nearly as it can
    z, probe_labels = hidden @ w.T, (probe_hidden @ w.T).argmax(-1)
    probe_labels[:3] = 0  # and three are wrong, so that some temperature is best
    reward = make_reward("refined_influence" if refined else "influence")
    probe_logits = torch.from_numpy(probe_hidden @ w.T)
    shown = SimpleNamespace(
        learning_rate=1.0,
        student_logits=torch.from_numpy(z),
        student_hidden=torch.from_numpy(hidden).float(),
        gradient=loss_gradient(*tensors(z, teachers, weights, labels), **loss),
        probe_logits=lambda: (probe_logits.float(), torch.from_numpy(probe_hidden).float()),
        probe_labels=torch.from_numpy(probe_labels),
    )
    reward.before(shown)
    sharpness = 1.0
    if refined:  # the temperature is held while the layer moves
        fitted = minimize_scalar(
            lambda b: label_loss(probe_logits.numpy() * np.exp(b), probe_labels).mean(), bounds=(-2.99, 2.99)
        )
        sharpness = np.exp(fitted.x)
        assert 0.06 < sharpness < 15

    def probe_loss(layer):
        return label_loss(probe_hidden @ layer.T * sharpness, probe_labels).mean()

    slope = slopes(lambda at: reference_loss(at, teachers, weights, labels, **loss), z)
    eta = 1e-6
    drops = [(probe_loss(w) - probe_loss(w - eta * np.outer(slope[i], hidden[i]))) / eta for i in range(len(z))]
    scaled = np.array(drops) / np.abs(drops).mean()
    np.testing.assert_allclose(reward.after(shown).numpy(), scaled, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("loss", FEW, ids=str)
def test_rl_kd_pays_by_the_loss_of_the_student_itself(loss):
    batch = z, teachers, weights, labels = drawn(3)
    shape = {name: value for name, value in loss.items() if name != "kd_ratio"}
    cost = cost_of_mixture(*tensors(*batch), **shape).numpy()
    distance = reference_loss(z, teachers, weights, labels, **shape)
    if "divergence" in loss:
        expected = distance
    else:  # the entropy of the mixture is left in
        t = loss["temperature"]
        w = weights[..., None]
        q = (w * softmax(teachers / t)).sum(1) if loss["mix"] == "probability" else softmax((w * teachers).sum(1) / t)
        entropy = -(t**2) * (q * np.log(np.maximum(q, 1e-300))).sum(-1)
        expected = distance + np.where(weights.sum(-1) > 0, entropy, 0)
    np.testing.assert_allclose(cost, expected, rtol=1e-4)
    shown = SimpleNamespace(
        batch_logits=lambda: torch.from_numpy(z),
        labels=torch.from_numpy(labels),
        cost_of_mixture=lambda logits: cost_of_mixture(logits, *tensors(teachers, weights, labels), **shape),
    )
    reward = make_reward("rl_kd_2")
    np.testing.assert_allclose(reward.after(shown).numpy(), -label_loss(z, labels) - expected, rtol=1e-4)


@pytest.mark.parametrize("loss", FEW, ids=str)
def test_a_student_in_the_environment_learns_by_the_loss_that_its_rewards_follow(loss, task, cache):
    """The gradient that rewards read is that of the loss that was stepped, to the student's own parameters."""
    env = TeacherWeightingVectorEnv(32, task=task, cache=cache, horizon=20, student="rlkd/mlp", **loss)
    env.reset(seed=0)
    episode, seen = env.episode, {}
    update = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        seen["bias"] = episode.student.classifier.bias.grad.clone()
        return update(self, *args, **kwargs)

    episode._optimizer.step = watched.__get__(episode._optimizer)
    weights = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(3), 32)).float()
    state = episode.observed_state(student=False)
    episode.reward = SimpleNamespace(
        reads_labels=True,
        before=lambda scene: None,
        after=lambda scene: seen.setdefault("gradient", scene.gradient)[:, 0],
        of_equal_weights=lambda scene: None,
    )
    _, mean_loss = episode.step(weights)
    # the gradient of the last bias is the mean of the instances' gradients at the logits, before it was clipped
    expected = seen["gradient"].mean(0)
    np.testing.assert_allclose(seen["bias"] / seen["bias"].norm(), expected / expected.norm(), atol=1e-5)
    losses = distillation_loss(episode.student_logits, state.teacher_logits, weights, state.labels, **loss)
    assert mean_loss == pytest.approx(losses.mean().item(), rel=1e-5)


@pytest.mark.parametrize("loss", FEW[::3], ids=str)
@pytest.mark.parametrize("reward", ["logit_gain", "influence", "refined_influence"])
def test_the_lead_over_equal_weights_is_the_difference_of_two_rewards(reward, loss, task, cache):
    """Each is worked out on its own in float64 from the student's logits of the step; teachers are missing here and
    there."""

    def stepped(weights_of):
        env = TeacherWeightingVectorEnv(
            32, task=task, cache=cache, horizon=20, student="rlkd/mlp", reward=reward, teacher_dropout=0.3, **loss
        )
        env.reset(seed=0)
        episode = env.episode
        state, probe = episode.observed_state(student=False), (*episode.probe_logits(), episode.probe_labels)
        earned, _ = episode.step(weights_of(state.present))
        return episode, state, probe, earned.numpy()

    chances = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(3), 32)).float()
    episode, state, probe, earned = stepped(lambda present: chances * present / (chances * present).sum(-1, True))
    present, labels, teachers = state.present.numpy(), state.labels.numpy(), state.teacher_logits.double().numpy()
    z = episode.student_logits.double().numpy()
    along = softmax(z) - np.eye(z.shape[1])[labels]
    if reward != "logit_gain":
        logits, inputs, answers = (values.numpy().astype(np.float64) for values in probe)
        if reward == "refined_influence":
            logits = logits / likeliest_temperatures(probe[0].unsqueeze(1), probe[2]).item()
        slope = (softmax(logits) - np.eye(z.shape[1])[answers.astype(int)]).T @ inputs / len(logits)
        along = episode.student_hidden.double().numpy() @ slope.T

    def worked_out(weights):
        return (slopes(lambda z: reference_loss(z, teachers, weights, labels, **loss), z) * along).sum(-1)

    chosen = chances.double().numpy() * present
    weighted = worked_out(chosen / chosen.sum(-1, keepdims=True))
    equal = worked_out(present / present.sum(-1, keepdims=True))
    unit = 1 if reward == "logit_gain" else np.abs(weighted).mean()
    np.testing.assert_allclose(earned, weighted / unit, atol=1e-4)
    np.testing.assert_allclose(episode.over_equal, (weighted - equal) / unit, atol=1e-4)
    assert episode.over_equal.abs().max() > 0.01
    assert (stepped(equal_weights)[0].over_equal == 0).all()


def test_what_cannot_be_is_refused(task, cache):
    for settings_, message in (
        ({"mix": "logits"}, "mix must be one of"),
        ({"divergence": "mse", "temperature": 2.0}, "has no temperature"),
        ({"divergence": "js"}, "divergence must be one of"),
    ):
        with pytest.raises(ConfigError, match=message):
            TeacherWeightingVectorEnv(32, task=task, cache=cache, **settings_)


def test_student_gain_is_the_drop_of_the_cross_entropy_across_the_step(task, cache):
    for loss in ({"temperature": 4.0, "kd_ratio": 0.3}, {"divergence": "mse_centred"}, {"mix": "logit"}):
        env = TeacherWeightingVectorEnv(32, task=task, cache=cache, horizon=20, reward="student_gain", **loss)
        env.reset(seed=0)
        ids, episode = env.episode.ids, env.episode
        labels = torch.from_numpy(task.table.labels[ids])
        before = cross_entropy(episode._logits_of(ids), labels)
        rewards, _ = episode.step(torch.full((32, 3), 1 / 3))
        after = cross_entropy(episode._logits_of(ids), labels)
        np.testing.assert_allclose(rewards, before - after, atol=1e-5)
