"""Learning is demanded, not hoped for: on planted teachers the right weights are known."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from rlkd_envs.rewards import REWARDS, LogitGain
from rlkd_envs.vector import TeacherWeightingVectorEnv

from rlkd.agents import PolicyTraining, train_policy
from rlkd.agents.trials import STRENGTHS, TrialStudents, choose, harms
from rlkd.data.planted import planted, planted_logits
from rlkd.errors import ConfigError, NonFiniteLossError, PolicyError, UnknownNameError, WeightingError
from rlkd.features import ObservationConfig, teacher_features
from rlkd.logit_cache import LogitCache, read_state
from rlkd.settings import StudentSettings, proxy_of
from rlkd.trainer import make_trainer
from rlkd.types import Knowledge
from rlkd.weighting import build_weighting
from rlkd.weighting.base import Evidence
from rlkd.weighting.learned import Policy, load_policy
from rlkd.weighting.router import fit_router, train_router
from rlkd.weighting.router_targets import RouterSettings, router_rows

EPISODE = {"batch_size": 64, "horizon": 60, "teacher_copies": 0}
CLEAR = 8.0  # at this sharpness the surest teacher is the right one, on nearly every instance


def planted_teachers(task, count=3, **settings):
    """Teacher k knows domain k modulo the number of domains."""
    domains = len(task.domain_names)
    knows = np.arange(domains) == (np.arange(count) % domains)[:, None]
    return LogitCache(
        list(planted_logits(task, count, **settings).transpose(1, 0, 2)),
        [f"teacher-{k}" for k in range(count)],
        knowledge=Knowledge(by="domain", groups=task.domain_names, matrix=knows),
    )


def mass(weighting, task, cache):
    """Mean weight on the teachers that know the instance, over the test split."""
    state = read_state(task, cache, torch.from_numpy(task.splits["test"]))
    knows = torch.from_numpy(cache.knowledge.matrix).T[state.domains]
    return (weighting.weights(state) * knows).sum(-1).mean().item()


class ShuffledGain(LogitGain):
    """Pays every instance what another of its batch has earned."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def after(self, scene):
        gain = super().after(scene)
        return gain[torch.randperm(len(gain), generator=self.generator)]


def learned(task, cache, **settings):
    defaults = {"total_timesteps": 6000, "n_steps": 15, "trials": 1, "warm_start": False, "episode": EPISODE}
    return train_policy(task, cache, **(defaults | settings))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_ppo_finds_the_right_teacher_and_only_by_the_credit_of_each_instance(seed, monkeypatch):
    task = planted(seed=seed, num_rows=1200)
    cache = planted_teachers(task, seed=seed, sharpness=CLEAR)
    assert mass(learned(task, cache, seed=seed), task, cache) >= 0.95
    assert mass(build_weighting("entropy", task, cache), task, cache) < 0.75  # the formula alone does not
    monkeypatch.setitem(REWARDS, "shuffled_gain", ShuffledGain)
    assert mass(learned(task, cache, seed=seed, reward="shuffled_gain"), task, cache) < 0.6


def test_refined_trials_see_no_gain_in_a_student_that_is_only_surer():
    """Equal weights teach the same classes here, more softly: with a temperature of its own nothing is left to gain."""
    task = planted(num_rows=1200)
    cache = planted_teachers(task, sharpness=CLEAR)
    gains = []
    for refined in (False, True):
        policy = learned(task, cache, refined_trials=refined, trials=4)
        losses = policy.training_record["strength_losses"]
        gains.append(losses["0.0"] - losses["1.0"])
        assert policy.strength == 1  # no harm either way
    assert gains[0] > 0.3
    assert abs(gains[1]) < 0.1 * gains[0]


@pytest.fixture(scope="module")
def unclear():
    """Teachers whose sureness overlaps, where no policy without labels reaches 1."""
    task = planted(num_rows=1200)
    return task, planted_teachers(task)


@pytest.fixture(scope="module")
def policy(unclear):
    return learned(*unclear)


@pytest.fixture(scope="module")
def routers(unclear):
    """The supervised router, and the one that is told what its teachers were trained on."""
    return build_weighting("router", *unclear), build_weighting("router:knows", *unclear)


def test_a_policy_comes_close_to_the_supervised_router(unclear, policy, routers):
    blind, knowing = (mass(router, *unclear) for router in routers)
    assert mass(policy, *unclear) > knowing - 0.05 > 0.8
    assert knowing > blind > 0.8


def test_a_router_of_gains_and_one_of_a_fixed_set_find_the_teachers_too(unclear, routers):
    gain, fixed = (mass(build_weighting(name, *unclear), *unclear) for name in ("router:gain", "router:fixed"))
    assert gain > 0.88  # odds do not say which teacher gains most: a wrong one may be as unsure as it is wrong
    assert 0.88 > min(fixed, mass(routers[0], *unclear)) > 0.8


def test_a_fitted_strength_makes_what_is_taught_likelier_on_other_rows(unclear):
    """One teacher alone is the best action, and too sure a mixture: of all that are as sure, one is wrong."""
    task, cache = unclear
    evidence = Evidence.of(task, cache)
    assert router_rows(evidence, RouterSettings(sets="fixed")).unseen.sum() == len(task.splits["probe"])
    bold, fitted = (train_router(evidence, RouterSettings(lesson="gain", fit_strength=fit)) for fit in (False, True))
    state = read_state(task, cache, torch.from_numpy(task.splits["test"]))
    said = state.teacher_logits.softmax(-1).gather(-1, state.labels[:, None, None].expand(-1, 3, 1)).squeeze(-1)
    likelihood = {policy.strength: (policy.weights(state) * said).sum(-1).log().mean() for policy in (bold, fitted)}
    assert bold.strength == 1 > fitted.strength
    assert likelihood[fitted.strength] > likelihood[1] + 0.01


def test_a_router_reads_labels_and_not_what_teachers_say_they_know(unclear, routers):
    """Knowledge that is wrong misleads only the router that asks for it, and the oracle."""
    task, cache = unclear
    wrong = dataclasses.replace(cache.knowledge, matrix=np.roll(cache.knowledge.matrix, 1, axis=0))
    arrays = list(planted_logits(task).transpose(1, 0, 2))
    misled = LogitCache(arrays, cache.teacher_names, knowledge=wrong)
    state = read_state(task, cache, torch.from_numpy(task.splits["test"]))
    blind, knowing = (
        [weighting.weights(state) for weighting in (router, build_weighting(name, task, misled))]
        for router, name in zip(routers, ("router", "router:knows"), strict=True)
    )
    assert torch.equal(*blind)
    assert not torch.allclose(*knowing, atol=0.2)
    with pytest.raises(WeightingError, match="router:knows needs teachers that all say what they were trained on"):
        build_weighting("router:knows", task, LogitCache(arrays, cache.teacher_names))


def test_with_its_reliability_a_router_and_a_policy_prefer_a_teacher_as_such(tmp_path):
    """Two teachers alike in everything that logits tell, but one is right everywhere and the other nowhere."""
    task = planted(num_rows=1200, num_domains=1)
    good = planted_logits(task, 1, sharpness=CLEAR)[:, 0]
    cache = LogitCache([good, np.roll(good, 1, axis=1)], ["good", "wrong"]).measured(task)
    state = read_state(task, cache, torch.from_numpy(task.splits["test"]))
    blind = build_weighting("router", task, cache).weights(state).mean(0)
    router = build_weighting("router:reliability", task, cache).weights(state).mean(0)
    policy = learned(task, cache, observation=ObservationConfig(reliability=True)).weights(state).mean(0)
    assert blind.tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    assert router[0] > 0.95
    assert policy[0] > 0.95


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"algorithm": "a2c", "n_steps": 5}, 0.8),
        ({"reward": "influence"}, 0.8),
        ({"reward": "student_gain"}, 0.65),  # noisier: the whole batch moves the student
    ],
)
def test_other_algorithms_and_rewards_learn_too(settings, least, unclear):
    assert mass(build_weighting("entropy", *unclear), *unclear) < 0.6
    assert mass(learned(*unclear, **settings), *unclear) > least


def test_a_policy_works_unchanged_on_other_teachers_classes_and_counts(unclear, policy):
    task = planted(seed=9, num_rows=2000, num_classes=10, num_domains=5)
    five = planted_teachers(task, 5, seed=9)
    uniform = mass(build_weighting("uniform", task, five), task, five)
    assert mass(policy, task, five) > 0.7 > uniform == pytest.approx(0.2)


def test_a_policy_of_short_episodes_does_not_age_over_a_longer_run(unclear, policy, tmp_path):
    settings = StudentSettings(student="rlkd/mlp", max_steps=4 * EPISODE["horizon"], batch_size=64)
    trainer = make_trainer(*unclear, policy, settings, tmp_path)
    trainer.train()
    early, late = trainer.knowing_mass()
    assert early > 0.85
    assert late == pytest.approx(early, abs=0.03)


def trial_loss(policy, task, cache, **settings):
    """Mean validation loss of the students that policies of seed 0 are chosen by."""
    env = TeacherWeightingVectorEnv(task=task, cache=cache, **EPISODE, **settings)
    env.reset(seed=0)
    return np.mean([env.trial_losses(policy, trial).mean() for trial in range(PolicyTraining.trials)])


def test_the_policy_whose_students_lose_least_on_validation_is_kept(unclear, tmp_path):
    policy = learned(*unclear, output_dir=tmp_path, trials=PolicyTraining.trials)
    curve = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    kept, losses = policy.training_record["kept_at"], policy.training_record["trial_losses"]
    assert list(losses) == ["0", str(curve[-1]["step"])]  # the start and the end
    assert kept == curve[-1]["step"]
    assert losses[str(kept)] < losses["0"] - 0.05
    assert trial_loss(policy, *unclear) == pytest.approx(losses[str(kept)])
    lead = [point.get("rollout/reward_over_equal") for point in curve]
    assert lead[0] is None  # no rollout came before
    assert lead[1] + 0.1 < lead[-1]  # untrained, it weights nearly equally
    assert policy.origin == "learned"
    assert not policy.training


def test_a_trial_leaves_the_episode_and_the_global_random_state_alone(unclear):
    task, cache = unclear

    def rewards(tried):
        env = TeacherWeightingVectorEnv(task=task, cache=cache, **EPISODE)
        env.reset(seed=0)
        found = []
        for _ in range(3):
            if tried:
                before = torch.get_rng_state()
                env.trial_losses(build_weighting("uniform", task, cache), 0)
                assert torch.equal(torch.get_rng_state(), before)
            found.append(env.step(np.zeros(env.action_space.shape, np.float32))[1])
        return np.stack(found)

    np.testing.assert_array_equal(rewards(tried=False), rewards(tried=True))


EQUAL = np.zeros((4, 1))


@pytest.mark.parametrize(
    ("losses", "sure"),
    [
        ([1.0, 1.0, 1.0, 1.0], True),
        # mean 1, its standard error 0.5 and 0.25; t(3) is 3.18
        ([1 + 3**0.5 / 2, 1 - 3**0.5 / 2, 1 + 3**0.5 / 2, 1 - 3**0.5 / 2], False),
        ([1 + 3**0.5 / 4, 1 - 3**0.5 / 4, 1 + 3**0.5 / 4, 1 - 3**0.5 / 4], True),
        ([0.0, 0.0, 0.0, 9.0], False),  # one student decides nothing
        ([-1.0, -1.0, -1.0, -1.0], False),  # it helps
        ([0.0, 0.0, 0.0, 0.0], False),
    ],
)
def test_harm_is_sure_by_hand(losses, sure):
    assert harms(np.array(losses)[:, None], EQUAL) == sure


def test_harm_must_be_sure_on_other_rows_too():
    # by student 1 each; by row 1 everywhere, or 100 on one row of a hundred
    assert harms(np.ones((8, 100)), np.zeros((8, 100)))
    assert not harms(np.where(np.arange(100) == 0, 100.0, 0.0) * np.ones((8, 1)), np.zeros((8, 100)))


def test_a_student_is_distilled_once_and_more_only_while_it_looks_like_harm():
    """Candidates a and b by two students; b is the better, and loses more than equal weights by chance alone."""
    excess = {"a": [3.0, 3.0], "b": [1.0, 2.0, -3.0, 0.5], 0.0: [0.0] * 4}
    asked = []

    def losses(policy, trial):
        asked.append((policy, trial))
        return np.full(3, excess[policy][trial])

    candidates = {name: lambda strength, name=name: name if strength == 1 else strength for name in ("a", "b")}
    choice = choose(TrialStudents(losses), candidates, 2)
    assert (choice.name, choice.strength) == ("b", 1.0)
    assert choice.trial_losses == {"a": 3.0, "b": 1.5}
    assert choice.strength_losses == {"1.0": 0.125, "0.0": 0.0}  # of the same four
    # its standard error is the root of 14.1875 / 3 / 4; t(3) is 3.1824
    figure = {"value": -0.125, "low": -3.585, "high": 3.335, "students": 4}
    assert dict(choice.gain) == pytest.approx(figure, abs=1e-3)
    assert sorted(map(str, asked)) == sorted(str((name, n)) for name, rows in excess.items() for n in range(len(rows)))


def test_another_process_and_a_student_that_stands_in_change_no_policy(unclear):
    """Two processes give the policy of one; of the student that is stood in for nothing is even read."""
    short = {"total_timesteps": 64 * 15, "episode": {**EPISODE, "horizon": 15}}
    alone = learned(*unclear, student="rlkd/mlp", **short)
    episode = {**short["episode"], "num_layers": 2, "learning_rate": 5e-5}
    beside = learned(*unclear, student="no/encoder", proxy="rlkd/mlp", jobs=2, **{**short, "episode": episode})
    assert all(torch.equal(*pair) for pair in zip(alone.parameters(), beside.parameters(), strict=True))
    own, others = (dict(policy.training_record) for policy in (alone, beside))
    assert others.pop("proxy") == "rlkd/mlp"
    assert own == others


@pytest.mark.parametrize(
    ("student", "proxy", "expected"),
    [
        ("some/encoder", "auto", "rlkd/bilstm"),
        ("rlkd/tiny", "auto", None),
        (len, "auto", None),
        (None, "auto", None),
        ("some/encoder", "itself", None),
        ("rlkd/tiny", "rlkd/bilstm", "rlkd/bilstm"),
    ],
)
def test_pretrained_students_have_one_stand_in_for_them(student, proxy, expected):
    assert proxy_of(student, proxy) == expected


def test_a_policy_that_changes_nothing_is_weakened_by_chance_in_one_training_of_40():
    """Eight students and 200 rows that differ by chance alone, in students, rows and both."""
    rng = np.random.default_rng(0)
    found = [
        harms(rng.normal(0, 0.1, (8, 1)) + rng.normal(0, 1, 200) + rng.normal(0, 1, (8, 200)), np.zeros((8, 200)))
        for _ in range(2000)
    ]
    assert 0.01 < np.mean(found) < 0.04


def test_a_policy_that_harms_students_is_weakened_to_equal_weights_and_one_that_helps_is_not(unclear, policy):
    task, cache = unclear
    state = read_state(task, cache, torch.from_numpy(task.splits["train"]))
    wrong = 1 - torch.from_numpy(cache.knowledge.matrix).T[state.domains].float()
    harmful = Policy.create(ObservationConfig(), training={})
    fit_router(harmful, teacher_features(state, harmful.observation), wrong / wrong.sum(-1, keepdim=True))
    env = TeacherWeightingVectorEnv(task=task, cache=cache, **EPISODE)
    env.reset(seed=0)
    asked = []

    def losses(weighting, trial):
        asked.append((weighting, trial))
        return env.trial_losses(weighting, trial).numpy()

    def chosen(network):
        def at(strength):
            policy = Policy.create(ObservationConfig(), training={}, strength=strength)
            policy.load_state_dict(network.state_dict())
            return policy

        asked.clear()
        choice = choose(TrialStudents(losses), {"0": at}, PolicyTraining.trials)
        tried = {"0.0", *(str(s) for s in STRENGTHS if s >= choice.strength)}
        assert set(choice.strength_losses) == tried
        assert len(asked) == (PolicyTraining.trials if choice.strength else 8) * len(tried)  # none for nothing
        return choice.strength

    assert chosen(harmful) == 0
    assert policy.strength == chosen(policy) == 1


def test_a_policy_at_strength_0_gives_equal_weights_saved_and_loaded(unclear, policy, tmp_path):
    weak = Policy.create(policy.observation, training=policy.training_record, strength=0)
    weak.load_state_dict(policy.state_dict())
    weak.save_pretrained(tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.origin == "uniform"
    assert mass(loaded, *unclear) == pytest.approx(1 / 3)
    assert mass(policy, *unclear) > 0.8
    for strength in (1.5, -0.1, "1", float("nan")):
        with pytest.raises(PolicyError, match=r"strength must be a number in \[0, 1\]"):
            Policy.create(ObservationConfig(), training={}, strength=strength)


@pytest.mark.parametrize(
    ("record", "origin"),
    [
        ({}, None),
        ({"kept_at": "soon", "training": []}, None),
        ({"kept_at": 0, "training": []}, "untrained"),
        ({"kept_at": 0, "training": {"warm_start": True}}, "router"),
        ({"kept_at": 64, "training": {"warm_start": True}}, "learned"),
    ],
)
def test_a_policy_says_where_it_is_from(record, origin):
    assert Policy.create(ObservationConfig(), training=record).origin == origin


def test_a_trial_whose_student_breaks_says_so(unclear):
    with pytest.raises(NonFiniteLossError, match="at step 1, instances"):
        trial_loss(build_weighting("uniform", *unclear), *unclear, learning_rate=1e30)


def test_a_warm_start_is_the_router(unclear, routers):
    """Before the first update the policy is the router; it can only be replaced by one that teaches better."""
    router = routers[0].policy
    warm = learned(*unclear, warm_start=True, total_timesteps=64 * 15, trials=PolicyTraining.trials)
    cold = learned(*unclear, total_timesteps=64 * 15)
    assert trial_loss(warm, *unclear) <= trial_loss(router, *unclear) < trial_loss(cold, *unclear) - 0.02
    assert router.origin is None
    assert warm.origin in ("router", "learned")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"n_steps": 7}, ConfigError, "n_steps must divide the horizon 60, got 7"),
        ({"training": PolicyTraining(), "seed": 1}, ConfigError, "got both"),
        ({"resume": True}, ConfigError, "output_dir"),
        ({"jobs": 0}, ConfigError, "needs jobs >= 1, got 0"),
        ({"algorithm": "pp0"}, ConfigError, "'ppo'"),
        ({"gamma": 2.0}, ConfigError, "gamma"),
        ({"total_timesteps": 0}, ConfigError, "total_timesteps"),
        ({"warm_start": False, "warm_start_rows": 10}, ConfigError, "warm_start"),
        ({"warm_start": True, "observation": ObservationConfig(student=True)}, PolicyError, "portable"),
        ({"observation": ObservationConfig(affinity=True)}, PolicyError, "affinity"),
        ({"reward": "logit_gian"}, UnknownNameError, "'logit_gain'"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, error, message, unclear):
    defaults = {} if "training" in settings else {"n_steps": 15, "warm_start": False}
    with pytest.raises(error, match=message):
        train_policy(*unclear, **{"episode": EPISODE, **defaults, **settings})
