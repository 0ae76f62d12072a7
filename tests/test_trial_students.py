"""The students that policies are trained with and chosen by are the students that are reported."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from rlkd_envs.course import half_labelled
from rlkd_envs.rewards import REWARDS
from rlkd_envs.teacher_weighting import TeacherWeightingEnv
from rlkd_envs.together import can_be_stacked, trial_losses_at_once
from rlkd_envs.vector import TeacherWeightingVectorEnv

from rlkd.agents.sb3_env import MaskedRolloutBuffer, MiniBatchVecEnv
from rlkd.agents.trials import TrialStudents
from rlkd.benchmark.policies import SuitePolicy, policy_kind, policy_kinds
from rlkd.data import load_task
from rlkd.data.planted import planted, planted_logits
from rlkd.data.subset import keep_labels
from rlkd.errors import ConfigError, WeightingError
from rlkd.features import ObservationConfig
from rlkd.logit_cache import LogitCache
from rlkd.losses import cross_entropy
from rlkd.settings import EpisodeSettings, StudentSettings
from rlkd.trainer import make_trainer
from rlkd.weighting import Policy, build_weighting

STEPS = 12


@pytest.fixture(scope="module")
def few_labels():
    """Of 600 rows 150 have a label."""
    task = planted(num_rows=600)
    cache = LogitCache(list(planted_logits(task).transpose(1, 0, 2)), ["a", "b", "c"])
    return keep_labels(task, 150, seed=0), cache


@pytest.mark.parametrize(
    ("weighting", "loss"),
    [
        ("uniform", {}),
        ("uniform", {"temperature": 4.0, "kd_ratio": 0.5}),
        ("uniform", {"divergence": "mse"}),
        ("entropy", {"divergence": "mse_centred", "kd_ratio": 0.5}),
        ("entropy", {"mix": "logit"}),
        ("calibrated_uniform", {}),  # teaches other logits than the teachers'
        ("mt_bert_raw", {}),  # scales the loss
        ("cross_entropy", {}),
    ],
)
def test_a_trial_student_is_the_student_that_the_trainer_distils(weighting, loss, few_labels, tmp_path, monkeypatch):
    """Initialisation, order, loss, schedule, optimiser, rows without a label; only what dropout draws is another."""
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, values: values)
    task, cache = few_labels
    chosen = build_weighting(weighting, task, cache)
    shared = {name: value for name, value in loss.items() if name != "mix"}
    settings = StudentSettings(student="rlkd/mlp", max_steps=STEPS, batch_size=32, learning_rate=0.01, **shared)
    trainer = make_trainer(task, cache, chosen, settings, tmp_path, seed=7, **loss)
    trainer.train()
    rows = task.labelled_ids("validation")
    expected = cross_entropy(
        torch.from_numpy(trainer.predict_rows(rows)), torch.from_numpy(task.table.labels[rows])
    ).numpy()

    env = TeacherWeightingVectorEnv(
        32, task=task, cache=cache, student="rlkd/mlp", horizon=STEPS, learning_rate=0.01, **loss
    )
    env.reset(seed=0)
    found = env.episode.trial_losses(chosen, 7, student=False).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    at_once = trial_losses_at_once(env.episode.setup, chosen, [8, 7], student=False, refined=False)
    np.testing.assert_allclose(at_once[1].numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("refined", [False, True])
def test_students_trained_at_once_are_those_trained_alone(refined, tmp_path, monkeypatch):
    """Texts of different lengths, drawn sets of teachers, a policy that observes the student, two tasks."""
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda values, *args, **kwargs: values)
    attention = torch.nn.functional.scaled_dot_product_attention
    still = {"dropout_p": 0.0}
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *args, **kwargs: attention(*args, **kwargs | still)
    )
    words = ["good", "bad", "film", "plot", "very"]
    rows = [{"text": " ".join(words[(n + k) % 5] for k in range(1 + n % 7)), "label": n % 3} for n in range(90)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks = [load_task(tmp_path / "data.jsonl"), planted(num_rows=200)]
    caches = [
        LogitCache([3 * rng.standard_normal((len(task.table), task.num_classes)) for _ in range(3)], ["a", "b", "c"])
        for task, rng in ((task, np.random.default_rng(0)) for task in tasks)
    ]
    env = TeacherWeightingVectorEnv(
        16,
        task=tasks,
        cache=caches,
        student=["rlkd/tiny", "rlkd/mlp"],
        horizon=6,
        learning_rate=0.01,
        teacher_copies=1,
        teacher_dropout=0.3,
        observation=ObservationConfig(student=True),
        max_length=24,
    )
    env.reset(seed=3)
    policy = Policy.create(ObservationConfig(student=True), training={}).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    trials = [0, 1, 2, 4, 5]
    at_once = env.trial_losses_at_once(policy, trials, refined=refined)
    for trial, found in zip(trials, at_once, strict=True):
        torch.testing.assert_close(found, env.trial_losses(policy, trial, refined=refined), rtol=2e-4, atol=1e-5)
    students = TrialStudents(pytest.fail, at_once=partial(env.trial_losses_at_once, refined=refined))
    known = students.losses("policy", policy, 3)
    assert all(torch.allclose(one, found) for one, found in zip(known, at_once, strict=False))
    assert students.losses("policy", policy, 2) == known[:2]
    assert all(can_be_stacked(one.setup) for one in env._episodes)
    recurrent = TeacherWeightingVectorEnv(16, task=tasks[0], cache=caches[0], student="rlkd/bilstm")
    assert not can_be_stacked(recurrent.episode.setup)
    assert not env.trials_at_once  # on the CPU


@pytest.mark.parametrize("row", [[1.0, 1.0, 2.0], [-0.5, 0.5, 1.0], [np.nan, 0.5, 0.5]])
def test_what_are_no_weights_is_not_stepped_with(row, few_labels):
    task, cache = few_labels
    env = TeacherWeightingVectorEnv(4, task=task, cache=cache, horizon=4)
    env.reset(seed=0)
    with pytest.raises(WeightingError, match="of the environment's actions"):
        env.episode.step(torch.tensor([row] * len(env.episode.ids)))


def test_the_first_layers_of_an_encoder_reach_the_environment(few_labels):
    assert EpisodeSettings(num_layers=2).record()["num_layers"] == 2
    assert "num_layers" not in EpisodeSettings().record()
    task, cache = few_labels
    with pytest.raises(ConfigError, match="num_layers would be ignored for a student that a function makes"):
        TeacherWeightingVectorEnv(32, task=task, cache=cache, student=lambda seed: None, num_layers=2)


def test_half_of_an_episode_can_be_rewarded_by_hand():
    rows = np.arange(10)
    assert half_labelled(rows, rows).tolist() == rows.tolist()
    assert half_labelled(rows, rows[:5]).tolist() == rows.tolist()
    assert half_labelled(rows, rows[:4]).tolist() == [*rows, *rows[:4]]  # 8 of 14
    assert half_labelled(rows, rows[:1]).tolist() == [*rows, *[0] * 8]  # 9 of 18


@pytest.mark.parametrize("reward", REWARDS)
def test_no_reward_is_learned_from_where_there_is_none(reward, few_labels):
    task, cache = few_labels
    env = TeacherWeightingVectorEnv(32, task=task, cache=cache, reward=reward, horizon=20)
    slots = MiniBatchVecEnv(env, seed=0)
    slots.reset()
    labelled = []
    buffer = MaskedRolloutBuffer(10, slots.observation_space, slots.action_space, n_envs=32, gamma=0.9)
    for _ in range(10):
        shown = env._observe()
        labels = np.full(32, -1)
        labels[: len(env.episode.ids)] = task.table.labels[env.episode.ids]
        padded = np.arange(32) >= len(env.episode.ids)
        _, rewards, _, _ = slots.step(np.zeros(env.action_space.shape, np.float32))
        measured = (labels >= 0) | (env.episode.reward.reads_labels is False) & ~padded
        assert np.array_equal(np.isfinite(rewards), measured)
        labelled.append(labels >= 0)
        values = torch.zeros(32)
        buffer.add(shown, np.zeros(env.action_space.shape), rewards, np.zeros(32), values, values)
    first_order = reward in ("logit_gain", "influence", "refined_influence")
    assert slots.mean_over_equal() == (pytest.approx(0, abs=1e-6) if first_order else None)  # weights were equal
    assert 0.4 < np.mean(labelled) < 0.8
    buffer.compute_returns_and_advantage(torch.zeros(32), np.zeros(32))
    learned_from = sum(len(batch.observations) for batch in buffer.get())
    assert learned_from == buffer.valid.sum()
    if env.episode.reward.reads_labels:
        assert learned_from == np.sum(labelled)


def test_what_has_no_label_gives_no_advantage_to_what_came_before():
    """A reward that is missing is not a reward of 0."""
    space = TeacherWeightingVectorEnv(2)
    buffer = MaskedRolloutBuffer(3, space.single_observation_space, space.single_action_space, n_envs=1, gamma=1.0)
    shown, none = np.ones((1, *space.single_observation_space.shape)), torch.zeros(1)
    for reward in (1.0, np.nan, 5.0):
        buffer.add(shown, np.zeros((1, *space.single_action_space.shape)), np.array([reward]), np.zeros(1), none, none)
    buffer.compute_returns_and_advantage(none, np.zeros(1))
    assert buffer.valid[:, 0].tolist() == [True, False, True]
    assert buffer.returns[[0, 2], 0].tolist() == [1.0, 5.0]


def test_the_plain_face_means_over_what_was_rewarded(few_labels):
    task, cache = few_labels
    vector = TeacherWeightingVectorEnv(32, task=task, cache=cache, horizon=20)
    vector.reset(seed=0)
    _, rewards, _, _, infos = vector.step(np.zeros(vector.action_space.shape, np.float32))
    plain = TeacherWeightingEnv(batch_size=32, task=task, cache=cache, horizon=20)
    plain._vector.reset(seed=0)
    _, reward, _, _, _ = plain.step(np.zeros(plain.action_space.shape, np.float32))
    rewarded = infos["rewarded"]
    assert 0 < rewarded.sum() < 32
    assert (rewards[~rewarded] == 0).all()
    assert reward == pytest.approx(rewards.sum() / rewarded.sum(), rel=1e-5)


# --- suites ------------------------------------------------------------------------------------------------------


def test_policies_of_a_suite_are_trained_with_the_students_that_it_reports():
    reported = StudentSettings(
        student="some/encoder", num_layers=2, divergence="mse", kd_ratio=0.5, batch_size=16, learning_rate=1e-4
    )
    for kind in policy_kinds():
        if kind in ("router", "auto"):  # no students are trained with
            continue
        own = SuitePolicy(name="p", kind=kind)
        episode = EpisodeSettings(**episode_of(own, reported))
        for name in ("num_layers", "divergence", "kd_ratio", "batch_size", "learning_rate", "temperature", "bf16"):
            assert getattr(episode, name) == getattr(reported, name), name
        # another student has no layers to keep the first of, and the same loss
        other = EpisodeSettings(
            **episode_of(SuitePolicy(name="p", kind=kind, settings={"student": "rlkd/tiny"}), reported)
        )
        assert (other.num_layers, other.divergence) == (None, "mse")
        stated = SuitePolicy(name="p", kind=kind, settings={"divergence": "kl", "num_layers": 1})
        assert EpisodeSettings(**episode_of(stated, reported)).record()["num_layers"] == 1
        assert EpisodeSettings(**episode_of(stated, reported)).divergence == "kl"


def episode_of(plan, student):
    return policy_kind(plan.kind).episode(plan, student)
