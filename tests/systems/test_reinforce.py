"""REINFORCE: draws and their probabilities, baselines, and what every agent learns from a reward that never changes."""

import itertools
import math

import numpy as np
import pytest
import torch
from rlkd_envs.scene import MeasuredAcross
from rlkd_envs.vector import TeacherWeightingVectorEnv
from stable_baselines3.common.callbacks import BaseCallback

from rlkd.agents.actor_training import make_acting_env, make_agent
from rlkd.agents.reinforce import Reinforce, others_mean
from rlkd.agents.run import PolicyRun
from rlkd.agents.sb3_env import MiniBatchVecEnv
from rlkd.errors import ConfigError
from rlkd.features import ObservationConfig
from rlkd.settings import PolicyTraining
from rlkd.systems.mtkd_rl.released import released_loss
from rlkd.systems.mtkd_rl.training import MtkdRlSettings, agent_algorithm, make_mtkd_rl_agent
from rlkd.systems.rl_kd.training import RlKdSettings, make_selector, reinforce_settings
from rlkd.weighting import Policy
from rlkd.weighting.subsets import EMPTY_SETS, draw_subsets, keyed_uniforms, subset_log_probability

SUBSETS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
SCORES = torch.tensor([-1.0, 0.4, -2.5])
SLOTS, STEPS = 32, 5


# --- draws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty_set", EMPTY_SETS)
def test_subsets_are_drawn_with_the_probability_that_the_update_uses(empty_set):
    probability = subset_log_probability(SCORES.expand(8, 3), SUBSETS, empty_set).exp()
    if empty_set in ("argmax", "resample"):
        probability[0] = 0  # the empty set cannot be drawn
    assert probability.sum().item() == pytest.approx(1, abs=1e-6)
    uniforms = torch.rand(40_000, 3, generator=torch.Generator().manual_seed(0))
    drawn = draw_subsets(SCORES.expand_as(uniforms), uniforms, empty_set)
    frequency = (drawn[:, None] == SUBSETS).all(-1).float().mean(0)
    assert torch.allclose(frequency, probability, atol=4 * 0.5 / math.sqrt(len(uniforms)))


def test_subset_probabilities_by_hand():
    odds = torch.log(torch.tensor([1.0, 0.25]))  # selected with 1/2 and 1/5
    both, first = torch.ones(2), torch.tensor([1.0, 0.0])
    assert subset_log_probability(odds, both, "label_only").exp().item() == pytest.approx(0.1)
    assert subset_log_probability(odds, both, "resample").exp().item() == pytest.approx(0.1 / 0.6)
    assert subset_log_probability(odds, first, "label_only").exp().item() == pytest.approx(0.4)
    assert subset_log_probability(odds, first, "argmax").exp().item() == pytest.approx(0.8)  # 0.4 and the empty 0.4


def test_nobody_is_drawn_from_hopeless_odds_without_a_teacher():
    scores = torch.full((5, 3), -80.0)
    for empty_set in ("argmax", "resample"):
        drawn = draw_subsets(scores, torch.full((5, 3), 0.999), empty_set)
        assert drawn.sum(-1).tolist() == [1] * 5
        assert torch.isfinite(subset_log_probability(scores, drawn, empty_set)).all()


def test_keyed_uniforms_are_uniform_and_follow_the_instance():
    ids = torch.arange(20_000)
    drawn = keyed_uniforms(ids, 3, (0, 0.5))
    assert drawn.shape == (20_000, 3)
    assert ((drawn >= 0) & (drawn < 1)).all()
    histogram = np.histogram(drawn.numpy().ravel(), bins=20, range=(0, 1))[0]
    assert ((histogram - 3000) ** 2 / 3000).sum() < 45  # chi squared with 19 degrees of freedom
    assert abs(np.corrcoef(drawn.numpy().T)[np.triu_indices(3, 1)]).max() < 0.03
    order = torch.randperm(20_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(keyed_uniforms(ids[order], 3, (0, 0.5)), drawn[order])
    assert not torch.equal(keyed_uniforms(ids, 3, (0, 0.6)), drawn)
    assert not torch.equal(keyed_uniforms(ids, 3, (1, 0.5)), drawn)


# --- baselines ---------------------------------------------------------------------------------------------------


def test_others_mean_by_hand():
    rewards = torch.tensor([[1.0, 3.0, 100.0], [5.0, 100.0, 100.0]])
    valid = torch.tensor([[True, True, False], [True, False, False]])
    assert others_mean(rewards, valid, dim=1)[valid].tolist() == [3, 1, 5]  # alone: its own baseline
    assert others_mean(torch.tensor([1.0, 2.0, 6.0]), torch.ones(3, dtype=torch.bool), dim=0).tolist() == [4, 3.5, 1.5]


def test_leave_one_out_needs_others(task, cache):
    settings = RlKdSettings(credit="batch")
    selector = make_selector(task, cache, settings)
    env = make_acting_env(task, cache, selector, reward="logit_gain", credit="batch", episode={"horizon": 20})
    with pytest.raises(ConfigError, match="n_steps >= 2, got 1"):
        make_agent(Reinforce, selector, MiniBatchVecEnv(env), seed=0, **reinforce_settings(settings))


# --- a reward that never changes ---------------------------------------------------------------------------------


class Constant(MeasuredAcross):
    """The same reward whatever happens."""

    reads_labels = False

    def before(self, scene):
        pass

    def after(self, scene):
        return torch.full((len(scene.labels),), -1.5)


class Stop(BaseCallback):
    def _on_step(self):
        return True


def rl_kd_agent(task, cache, **switches):
    # at 0.3 a third of the draws are empty: the rules for them count
    settings = RlKdSettings(pretraining_steps=0, n_steps=STEPS, **{"initial_probability": 0.3, **switches})
    selector = make_selector(task, cache, settings)
    env = make_acting_env(task, cache, selector, reward="logit_gain", credit=settings.credit, episode=EPISODE)
    env.episode.reward = Constant()
    slots = MiniBatchVecEnv(env)
    return make_agent(Reinforce, selector, slots, seed=0, **reinforce_settings(settings)), selector


def mtkd_agent(task, cache):
    settings = MtkdRlSettings(agent_objective="policy_gradient", pretraining_steps=0, n_steps=STEPS, hidden_size=4)
    actor = make_mtkd_rl_agent(task, cache, settings)
    env = make_acting_env(task, cache, actor, reward="logit_gain", episode=EPISODE)
    env.episode.reward = Constant()
    algorithm, chosen = agent_algorithm(settings)
    return make_agent(algorithm, actor, MiniBatchVecEnv(env), seed=0, **(chosen | {"baseline": "none"})), actor


def actor_critic(task, cache, algorithm):
    env = TeacherWeightingVectorEnv(SLOTS, task=task, cache=cache, horizon=40)
    env.episode.reward = Constant()
    actor = Policy.create(ObservationConfig(), training={}, seed=0)
    run = PolicyRun(env, actor, PolicyTraining(algorithm=algorithm, n_steps=STEPS, warm_start=False))
    run.agent.max_grad_norm = float("inf")
    return run.agent, actor


AGENTS = {
    "ppo": lambda t, c: actor_critic(t, c, "ppo"),
    "a2c": lambda t, c: actor_critic(t, c, "a2c"),
    "mtkd_rl policy_gradient": mtkd_agent,
    **{
        f"reinforce {baseline} {empty_set}": lambda t, c, b=baseline, e=empty_set: rl_kd_agent(
            t, c, baseline=b, empty_set=e
        )
        for baseline, empty_set in [
            ("none", "label_only"),
            ("none", "all"),
            ("none", "argmax"),
            ("none", "resample"),
            ("ema", "label_only"),
            ("leave_one_out", "label_only"),
        ]
    },
    "reinforce batch": lambda t, c: rl_kd_agent(t, c, baseline="none", credit="batch"),
    "reinforce batch leave_one_out": lambda t, c: rl_kd_agent(t, c, baseline="leave_one_out", credit="batch"),
}
EPISODE = {"batch_size": SLOTS, "horizon": 40}


def updates(agent, actor, rollouts):
    """The update of each of many rollouts of one and the same policy, shape (rollouts, parameters)."""
    found = []

    def record():
        gradient = [parameter.grad.flatten() for parameter in actor.parameters() if parameter.grad is not None]
        found.append(torch.cat(gradient).clone())

    agent.policy.optimizer.step = record  # the policy stays what it is
    if hasattr(agent, "n_epochs"):
        agent.n_epochs, agent.batch_size = 1, SLOTS * STEPS
    agent.learn(rollouts * SLOTS * STEPS, callback=Stop())
    assert len(found) == rollouts
    return torch.stack(found)


def z_score(gradients):
    """Mean update in its standard errors, the largest over parameters."""
    mean, error = gradients.mean(0), gradients.std(0) / math.sqrt(len(gradients))
    return (mean.abs() / error.clamp_min(1e-9)).max().item()


@pytest.mark.parametrize("name", AGENTS)
def test_under_a_constant_reward_the_expected_update_is_zero(name, task, cache):
    agent, actor = AGENTS[name](task, cache)
    gradients = updates(agent, actor, 60)
    assert gradients.shape[1] > 3
    assert z_score(gradients) < 4.5
    if "none" in name or name == "reinforce batch":
        assert (gradients != 0).any()  # it is zero on average, not in every rollout


def test_the_published_update_is_not_zero_under_a_constant_reward(task, cache):
    """Gradients of probabilities pull to one half where rewards are negative: E = r s (1 - s) (2 s - 1) a decision."""
    agent, selector = rl_kd_agent(task, cache, update="grad_pi", baseline="none", initial_probability=0.8)
    gradients = updates(agent, selector, 60)
    assert z_score(gradients) > 20
    biases = gradients.view(60, *selector.weight.shape)[:, :, 0, 0].mean(0)
    expected = 1.5 * 0.8 * 0.2 * (2 * 0.8 - 1)  # of the loss, which is minus the objective: down to one half
    assert torch.allclose(biases, torch.full((3,), expected), atol=0.01)


# --- MTKD-RL's released objective --------------------------------------------------------------------------------


def test_released_loss_by_hand():
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]])
    # standardised rewards are +-1/sqrt(2); the negative one is cut to 0
    expected = -math.log(0.5 * 0.25 * 0.25) / math.sqrt(2) / 6
    assert released_loss(weights, torch.tensor([1.0, -1.0])).item() == pytest.approx(expected)
    assert released_loss(weights, torch.zeros(2)).item() == 0
