import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rlkd_envs.rewards import REWARDS, make_reward
from rlkd_envs.scene import MeasuredAcross
from rlkd_envs.vector import TeacherWeightingVectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from torch.nn import functional as F

from rlkd.agents.run import PolicyRun
from rlkd.data.planted import planted_logits
from rlkd.data.splitting import split_task
from rlkd.data.task import Table
from rlkd.errors import UnknownNameError
from rlkd.features import ObservationConfig
from rlkd.logit_cache import LogitCache
from rlkd.models import load_student
from rlkd.settings import PolicyTraining
from rlkd.weighting import Policy


def make_env(task, cache, reward="logit_gain", **settings):
    return TeacherWeightingVectorEnv(32, task=task, cache=cache, reward=reward, **{"horizon": 20, **settings})


def rewards_of(env, steps=6, seed=0, actions_seed=0):
    """Rewards (steps, B) under random actions; ``actions_seed=None`` weights equally."""
    generator = np.random.default_rng(actions_seed)
    env.reset(seed=seed)
    rewards = []
    for _ in range(steps):
        actions = generator.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        rewards.append(env.step(actions * (actions_seed is not None))[1])
    return np.stack(rewards)


# --- by hand -----------------------------------------------------------------------------------------------------


def scene(**given):
    """What a reward may look at, as plain values; ``probe`` holds logits and inputs of the last layer.

    With ``targets`` the student follows p - q, the gradient of the usual loss.
    """
    probe = given.pop("probe", None)
    batch = given.pop("batch", None)
    if "targets" in given:
        given["gradient"] = given["student_logits"].softmax(-1) - given.pop("targets")
    return SimpleNamespace(
        learning_rate=1.0, probe_logits=lambda: probe, batch_logits=lambda: batch, student_hidden=None, **given
    )


def test_logit_gain_by_hand():
    shown = scene(
        student_logits=torch.zeros(3, 2),  # p = (1/2, 1/2)
        targets=torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.5, 0.5]]),
        labels=torch.tensor([0, 1, 0]),
    )
    # (p - q) = (-0.3, 0.3); (p - y) = (-0.5, 0.5) where the mixture is right, (0.5, -0.5) where it is wrong
    assert torch.allclose(make_reward("logit_gain").after(shown), torch.tensor([0.3, -0.3, 0.0]))


def test_influence_by_hand():
    reward = make_reward("influence")
    shown = scene(
        student_logits=torch.zeros(2, 2),
        targets=torch.tensor([[0.8, 0.2], [0.4, 0.6]]),
        labels=torch.tensor([0, 0]),
        probe=(torch.zeros(1, 2), torch.tensor([[2.0]])),
        probe_labels=torch.tensor([0]),
    )
    shown.student_hidden = torch.tensor([[1.0], [1.0]])
    reward.before(shown)
    # G = (-1, 1); drops (-0.3, 0.3) . G = 0.6 and (0.1, -0.1) . G = -0.2, scaled by their mean size 0.4
    assert torch.allclose(reward.after(shown), torch.tensor([1.5, -0.5]))


def test_refined_influence_does_not_ask_how_sure_the_student_is():
    def earned(name, sureness):
        reward = make_reward(name)
        shown = scene(
            student_logits=torch.zeros(2, 2),
            targets=torch.tensor([[0.9, 0.1], [0.4, 0.6]]),
            labels=torch.tensor([0, 0]),
            probe=(sureness * torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0]]), torch.tensor([[1.0], [2], [3], [5]])),
            probe_labels=torch.tensor([0, 1, 0, 1]),
        )
        shown.student_hidden = torch.tensor([[1.0], [-1.0]])
        reward.before(shown)
        return reward._gradient, reward.after(shown)

    # right on three rows of four, as sure on each: p is (3/4, 1/4) or its mirror whatever the student's sureness;
    # G = (-1/4 * 1 + 1/4 * 2 - 1/4 * 3 + 3/4 * 5) / 4 = 13/16 and its opposite; drops -0.8 G and -0.2 G, scaled
    for sureness in (0.5, 4.0):
        gradient, rewards = earned("refined_influence", sureness)
        assert torch.allclose(gradient, torch.tensor([[13 / 16], [-13 / 16]]), atol=1e-4)
        assert torch.allclose(rewards, torch.tensor([-1.6, -0.4]), atol=1e-4)
    assert not torch.allclose(earned("influence", 0.5)[0], earned("influence", 4.0)[0], atol=0.1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("student_gain", [math.log(1.5), -math.log(2)]),  # -log 1/2 to -log 3/4, and to -log 1/4
        ("probe_gain", [(math.log(1.5) - math.log(2)) / 2] * 2),
    ],
)
def test_gains_by_hand(name, expected):
    labels, after = torch.tensor([0, 1]), torch.tensor([[math.log(3), 0.0]] * 2)
    reward = make_reward(name)
    zeros = torch.zeros(2, 2)
    reward.before(scene(labels=labels, probe_labels=labels, batch=zeros, probe=(zeros, zeros)))
    gain = reward.after(scene(labels=labels, probe_labels=labels, batch=after, probe=(after, zeros)))
    assert torch.allclose(gain, torch.tensor(expected))


def test_influence_is_the_drop_of_the_probe_loss_under_a_small_step_of_the_last_layer(task, cache):
    """Against finite differences: one step of the last layer on each instance alone."""
    student = load_student("rlkd/mlp", task, seed=1)[0].double().eval()
    vectors, labels = torch.from_numpy(task.table.vectors).double(), torch.from_numpy(task.table.labels)
    batch, probe, step = torch.arange(20), torch.arange(100, 160), 1e-4
    hidden = torch.relu(student.hidden(vectors)).detach()
    targets = cache.rows(batch).double().softmax(-1).mean(1)

    def probe_loss(weight):
        return F.cross_entropy(hidden[probe] @ weight.T + student.classifier.bias, labels[probe])

    weight = student.classifier.weight.detach()
    before, drops = probe_loss(weight), []
    for i in batch:
        moved = weight.clone().requires_grad_()
        log_p = F.log_softmax(hidden[i] @ moved.T + student.classifier.bias, -1)
        (gradient,) = torch.autograd.grad(-(targets[i] * log_p).sum(), moved)
        drops.append((before - probe_loss(weight - step * gradient)) / step)
    expected = torch.stack(drops).detach()

    logits = student(input_values=vectors).logits.detach()
    reward = make_reward("influence")
    shown = scene(
        student_logits=logits[batch],
        targets=targets,
        labels=labels[batch],
        probe=(logits[probe], hidden[probe]),
        probe_labels=labels[probe],
    )
    shown.student_hidden = hidden[batch]
    reward.before(shown)
    assert (expected > 0).any()
    assert (expected < 0).any()
    assert torch.allclose(reward.after(shown), expected / expected.abs().mean(), rtol=1e-2, atol=1e-3)


def test_the_nearest_reward_is_named():
    with pytest.raises(UnknownNameError, match="did you mean 'logit_gain'"):
        make_reward("logit_gian")


# --- the four properties that every reward must have -------------------------------------------------------------


@pytest.mark.parametrize("reward", REWARDS)
class TestEveryReward:
    def test_a_step_that_moves_nothing_earns_nothing(self, reward, task, cache):
        if reward.startswith("rl_kd"):  # published as levels: they pay for what the student knows
            assert (rewards_of(make_env(task, cache, reward, learning_rate=0.0)) < -0.1).any()
            return
        assert (rewards_of(make_env(task, cache, reward, learning_rate=0.0)) == 0).all()
        assert (rewards_of(make_env(task, cache, reward)) != 0).all()

    def test_identical_teachers_give_no_preference(self, reward, task, cache):
        same = LogitCache(list(planted_logits(task, mode="identical").transpose(1, 0, 2)), ["a", "b", "c"])
        chosen, equal = (rewards_of(make_env(task, same, reward), actions_seed=seed) for seed in (0, None))
        assert np.allclose(chosen, equal, atol=1e-4)
        chosen, equal = (rewards_of(make_env(task, cache, reward), actions_seed=seed) for seed in (0, None))
        assert not np.allclose(chosen, equal, atol=1e-3)

    def test_the_test_split_is_out_of_reach(self, reward, task, cache):
        hidden = task.splits["test"]
        labels, domains, vectors = task.table.labels.copy(), task.table.domains.copy(), task.table.vectors.copy()
        labels[hidden], domains[hidden], vectors[hidden] = 0, 0, np.nan
        poisoned = dataclasses.replace(task, table=Table(labels=labels, domains=domains, vectors=vectors))
        logits = cache.rows(torch.arange(len(cache))).numpy()
        logits[hidden] = np.nan
        poisoned_cache = LogitCache(list(logits.transpose(1, 0, 2)), ["a", "b", "c"])
        env = make_env(poisoned, poisoned_cache, reward)
        # 20 steps of 32 rows: every training row is seen
        assert np.array_equal(rewards_of(env, 20), rewards_of(make_env(task, cache, reward), 20))
        assert len(env.episode.setup.task.table) == hidden[0]
        assert "test" not in env.episode.setup.task.splits
        with pytest.raises(IndexError):
            env.episode.setup.source.rows(torch.tensor([hidden[0]]))


def test_not_even_the_vocabulary_comes_from_the_test_split(task):
    rng = np.random.default_rng(0)
    words = np.array(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"])
    texts = [" ".join(rng.permutation(words)[: 2 + label % 3]) for label in task.table.labels]

    def run(test_word):
        table = Table(labels=task.table.labels % 3, domains=np.zeros_like(task.table.labels), texts=tuple(texts))
        built = split_task("words", table, ["a", "b", "c"], seed=0)
        shown = list(built.table.texts)
        for row in built.splits["test"]:
            shown[row] = test_word
        built = dataclasses.replace(built, table=dataclasses.replace(built.table, texts=tuple(shown)))
        cache = LogitCache(list(planted_logits(built).transpose(1, 0, 2)), ["a", "b", "c"])
        return rewards_of(make_env(built, cache, "student_gain", max_length=16), steps=3)

    assert np.array_equal(run("omega"), run("alpha beta"))


class Constant(MeasuredAcross):
    """The same reward whatever happens."""

    reads_labels = False

    def before(self, scene):
        pass

    def after(self, scene):
        return torch.ones(len(scene.labels))


class FirstUpdate(BaseCallback):
    """Reads the policy gradient of the first rollout: z-scores of its mean."""

    def _on_rollout_end(self):
        samples = next(iter(self.model.rollout_buffer.get()))
        advantages = (samples.advantages - samples.advantages.mean()) / samples.advantages.std()
        with torch.no_grad():
            distribution = self.model.policy.get_distribution(samples.observations).distribution
        gradients = advantages[:, None] * (samples.actions - distribution.mean) / distribution.stddev**2
        # along every action, and along the surest teacher of each instance
        features = samples.observations.unflatten(1, (3, -1))
        surest = features[..., ObservationConfig().feature_names.index("max_probability")]
        along = torch.cat([gradients, (gradients * (surest - surest.mean(1, keepdim=True))).sum(1, keepdim=True)], 1)
        self.z_scores = along.mean(0) / (along.std(0) / math.sqrt(len(along)))

    def _on_step(self):
        return True


def test_a_constant_reward_teaches_nothing(task, cache):
    def first_update(reward):
        env = make_env(task, cache, horizon=60)
        env.episode.reward = reward
        policy = Policy.create(ObservationConfig(), training={}, seed=0)
        run = PolicyRun(env, policy, PolicyTraining(total_timesteps=60 * 32, n_steps=60, warm_start=False))
        run.learn(progress=False, callback=(callback := FirstUpdate()))
        return callback.z_scores

    assert first_update(Constant()).abs().max() < 3.5
    assert first_update(make_reward("logit_gain"))[-1] > 7
