"""Asking as an environment: its faces, its rewards, and policies that learn in it what is known to be best."""

import json
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from rlkd_envs.asking import TeacherAskingVectorEnv
from safetensors.torch import load_file
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from rlkd.agents.asking import AskerRun, make_places, train_asker
from rlkd.agents.asking_rule import AskingRule, clone
from rlkd.asking import OneRun, Pool, RecordedTeachers
from rlkd.asking.linear_student import refined_losses
from rlkd.asking.observation import NUM_SHARED, NUM_TEACHER, SHARED_FEATURES, TEACHER_FEATURES
from rlkd.asking.policy import AskByPolicy, AskingPolicy, load_asker
from rlkd.asking.strategies import build_strategy
from rlkd.asking.walk import Walk, walking_order
from rlkd.cli import main
from rlkd.data.splitting import Fractions, split_task
from rlkd.data.task import Table
from rlkd.errors import ConfigError, OutputDirectoryError, PolicyError, TaskError
from rlkd.logit_cache import LogitCache
from rlkd.records import newest_verified, read_jsonl
from rlkd.settings import AskerTraining, AskingEpisode
from rlkd.workflow import run_cache, run_train_teachers

ENV_ID = "rlkd_envs:rlkd/TeacherAsking-v0"
SMALL = AskingEpisode(rows=96, places=16, least_teachers=3)


def halves(*, told=True, seen=False, rows=1200, seed=0, dim=6):
    """A task whose teachers 0 and 1 each know one half of the instances; their vectors tell the half, if ``told``."""
    random = np.random.default_rng(seed)
    labels, half = np.arange(rows, dtype=np.int64) % 4, random.integers(0, 2, rows)
    vectors = random.standard_normal((rows, dim))
    if told:
        vectors[:, 0] = 4.0 * (2 * half - 1)
    # unless the class is ``seen`` in the vectors, students learn nothing: teachers are all there is
    if seen:
        vectors[np.arange(rows), 1 + labels] += 6.0
    table = Table(labels=labels, domains=half.astype(np.int64), vectors=vectors.astype(np.float32))
    task = split_task(
        "halves", table, [f"class {c}" for c in range(4)], domain_names=["left", "right"],
        fractions=Fractions(probe=0.05, validation=0.1, test=0.1), seed=0,
    )  # fmt: skip
    labels, half = task.table.labels, task.table.domains
    logits = random.normal(0, 0.3, (len(labels), 2, 4))
    for teacher in range(2):
        knows = np.flatnonzero(half == teacher)
        logits[knows, teacher, labels[knows]] += 5.0
        others = np.flatnonzero(half != teacher)
        logits[others, teacher, (labels[others] + random.integers(1, 4, len(others))) % 4] += 1.0
    cache = LogitCache(list(logits.astype(np.float32).transpose(1, 0, 2)), ["left", "right"])
    return task, cache


@pytest.fixture(scope="module")
def task_and_cache():
    return halves()


@pytest.fixture
def env(task_and_cache):
    return make_places([task_and_cache[0]], [task_and_cache[1]], replace(SMALL, least_teachers=2))


def drawn(env, random):
    """Actions that mean something, at random."""
    return (env.action_masks() * random.random((env.num_envs, env.num_teachers + 1))).argmax(1)


def test_both_checkers_are_content():
    """Warnings are errors here; without a task the environment brings its own."""
    plain = gymnasium.make(ENV_ID, rows=40)
    check_env(plain.unwrapped, skip_render_check=True)
    sb3_check_env(plain.unwrapped)


def test_places_see_bounded_numbers_and_go_on_to_the_next_episode(env):
    assert env.single_observation_space.shape == (2 * NUM_TEACHER + NUM_SHARED,)
    assert env.single_action_space.n == 3
    observation, info = env.reset(seed=1)
    random, ends = np.random.default_rng(0), 0
    while ends < 3:
        assert env.observation_space.contains(observation)
        assert (info["action_mask"] == env.action_masks()).all()
        number = env.episode_number
        observation, rewards, terminated, truncated, info = env.step(drawn(env, random))
        assert rewards.shape == (16,)
        assert not truncated.any()
        assert terminated.all() == terminated.any() == (env.episode_number == number + 1)
        if terminated.any():
            assert info["final_obs"].shape == observation.shape
            assert env.walk.bank.spent == 0
            ends += 1


def test_a_seed_names_its_episodes(env):
    def played(seed, **options):
        random, seen = np.random.default_rng(0), [env.reset(seed=seed, options=options or None)[0]]
        rewards = []
        for _ in range(30):
            observation, reward, *_ = env.step(drawn(env, random))
            seen.append(observation)
            rewards.append(reward)
        return np.stack(seen), np.stack(rewards)

    first, again, other = played(3), played(3), played(4)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not (first[0] == other[0]).all()
    second = env.reset(seed=3, options={"episode": 2})[0]
    assert not (second == first[0][0]).all()
    with pytest.raises(ConfigError, match="takes the option 'episode'"):
        env.reset(options={"task": 1})


def test_no_budget_is_exceeded_and_nothing_is_asked_twice():
    task, cache = halves(rows=400)
    pool, random = Pool.of(task, np.empty(0, dtype=np.int64)), np.random.default_rng(0)
    for seed in range(8):
        prices, share = random.uniform(0.5, 7, 2), random.uniform(0.02, 0.6)
        bank = RecordedTeachers(cache, prices, share * prices.sum() * len(pool.ids))
        walk = Walk(pool, bank, walking_order(pool, random), 16)
        while not walk.done:  # whatever the actions, forbidden ones too
            walk.act(random.integers(0, 3, 16))
        paid = (bank.answers.asked * prices).sum()
        assert bank.spent == pytest.approx(paid)
        assert paid <= bank.budget * (1 + 1e-9)
        assert seed < 4 or paid > 0.5 * bank.budget


def test_a_place_whose_ask_the_budget_cannot_pay_sees_that_nothing_has_changed():
    task, cache = halves(rows=400)
    pool = Pool.of(task, np.empty(0, dtype=np.int64))
    walk = Walk(pool, RecordedTeachers(cache, np.array([1.0, 4.0]), 11.0), pool.ids, 16)
    walk.act(np.full(16, 2))
    assert (walk.bank.answers.asked[walk.ids, 1] == (np.arange(16) < 2)).all()
    assert not walk.mask()[:, 2].any()
    teachers, shared = walk.observe()
    assert np.isfinite(teachers).all()
    assert np.isfinite(shared).all()
    assert (teachers[2:, :, TEACHER_FEATURES.index("answered")] == 0).all()


def test_a_row_of_a_known_label_comes_first(task_and_cache):
    task, _ = task_and_cache
    pool = Pool.of(task, task.labelled_ids("train")[40:60])
    order = walking_order(pool, np.random.default_rng(0))
    assert set(order[:20]) == set(pool.labelled)
    assert set(order) == set(pool.ids)


class Always:
    """A rule that does one thing where it may."""

    def __init__(self, action):
        self.action = action

    def actions(self, observations, mask):
        return np.where(mask[:, self.action], self.action, 0)


def episode_of(env, rule, seed=0):
    """Rewards of an episode, (steps, B), and what its end recovered."""
    observation, _ = env.reset(seed=seed)
    rewards = []
    while True:
        observation, reward, terminated, _, info = env.step(rule.actions(observation, env.action_masks()))
        rewards.append(reward)
        if terminated[0]:
            return np.stack(rewards), float(info["recovered"][0])


def test_who_asks_nobody_gets_exactly_nothing(env):
    rewards, recovered = episode_of(env, Always(0))
    assert (rewards == 0).all()
    assert recovered == 0


def test_identical_teachers_of_one_price_give_no_preference(task_and_cache):
    task, cache = task_and_cache
    one = LogitCache([cache.rows(torch.arange(len(cache)))[:, 0].numpy()] * 2, ["a", "b"])
    settings = replace(SMALL, least_teachers=2, dearest=1.0)
    env = make_places([task], [one], settings)
    first, second = (episode_of(env, Always(action)) for action in (1, 2))
    assert (first[0] == second[0]).all()
    assert first[1] == second[1] != 0


def test_rewards_read_labels_of_train_and_validation_and_never_of_test():
    task, cache = halves(seen=True)

    def rewarded(labels):
        changed = replace(task, table=replace(task.table, labels=labels))
        return episode_of(make_places([changed], [cache], replace(SMALL, labelled_share=0.0)), Always(1))[0]

    def moved(split):
        labels = task.table.labels.copy()
        labels[task.splits[split]] = (labels[task.splits[split]] + 1) % 4
        return labels

    before = rewarded(task.table.labels)
    assert (rewarded(moved("test")) == before).all()
    assert not (rewarded(moved("train")) == before).all()
    assert not (rewarded(moved("validation")) == before).all()
    few = make_places([task], [cache], SMALL).grounds[0]
    assert len(few.labels) == len(few.logits) == len(few.vectors) == len(task.table) - len(task.splits["test"])


def test_a_reward_is_what_an_answer_does_less_its_price(task_and_cache):
    task, cache = task_and_cache
    env = make_places([task], [cache], replace(SMALL, least_teachers=2, labelled_share=0.0, price_weight=0.5))
    env.reset(seed=2)
    scene, walk = env.scene, env.walk
    ids, said = walk.ids.copy(), np.full(16, 0.25)
    env.step(np.ones(16, dtype=np.int64))
    _, rewards, *_ = env.step(np.zeros(16, dtype=np.int64))
    taught = scene.bank.answers.logits[ids, 0]
    taught = np.exp(taught) / np.exp(taught).sum(1, keepdims=True)
    right = taught[np.arange(16), scene.truth[ids]].clip(0.025)
    expected = (np.log(right / said) / 3).clip(-1, 1) - 0.5 * scene.bank.prices[0] / (scene.bank.budget / 96)
    assert rewards == pytest.approx(expected, abs=1e-6)


def test_a_student_is_judged_at_its_best_temperature():
    def student(power):
        p = np.array([[0.7, 0.3], [0.4, 0.6]]) ** power
        return SimpleNamespace(probabilities=lambda vectors: p / p.sum(1, keepdims=True))

    labels = np.array([0, 0])
    assert refined_losses(student(1.0), np.zeros((2, 1)), labels).mean() == pytest.approx(
        refined_losses(student(0.5), np.zeros((2, 1)), labels).mean(), abs=2e-3
    )


class FirstUpdate(BaseCallback):
    """Reads the policy gradient of the first rollout: z-scores of its mean, along the logit of every action."""

    def _on_rollout_end(self):
        self.model.rollout_buffer.compute_returns_and_advantage(torch.zeros(16), np.ones(16))
        samples = next(iter(self.model.rollout_buffer.get()))
        advantages = (samples.advantages - samples.advantages.mean()) / samples.advantages.std()
        with torch.no_grad():
            chances = self.model.policy.get_distribution(samples.observations, samples.action_masks).distribution.probs
        chosen = torch.nn.functional.one_hot(samples.actions.flatten().long(), 3)
        gradients = advantages[:, None] * (chosen - chances)
        self.z_scores = gradients.mean(0) / (gradients.std(0) / len(gradients) ** 0.5)

    def _on_step(self):
        return True


def test_a_constant_reward_teaches_nothing(env):
    def first_update(pay):
        def paid(actions):
            observation, rewards, *rest = step(actions)
            return observation, pay(np.asarray(actions), rewards), *rest

        step, env.step = env.step, paid
        training = AskerTraining(total_timesteps=2048, n_steps=128, gamma=0.0)
        AskerRun(AskingPolicy.create(training={}, seed=0), env, training).learn([callback := FirstUpdate()])
        env.step = step
        return callback.z_scores

    assert first_update(lambda actions, rewards: np.ones_like(rewards)).abs().max() < 3.5
    assert first_update(lambda actions, rewards: (actions == 1).astype(float)).abs().max() > 7


def test_permuting_teachers_permutes_actions():
    policy, random = AskingPolicy.create(training={}, seed=3), np.random.default_rng(0)
    teachers = random.uniform(-1, 1, (50, 4, NUM_TEACHER)).astype(np.float32)
    teachers[..., 0] = 1
    shared = random.uniform(-1, 1, (50, NUM_SHARED)).astype(np.float32)
    order, mask = random.permutation(4), random.random((50, 5)) < 0.8
    mask[:, 0] = True
    permuted = np.concatenate([mask[:, :1], mask[:, 1:][:, order]], axis=1)
    here, there = policy.actions((teachers, shared), mask), policy.actions((teachers[:, order], shared), permuted)
    assert (np.where(there == 0, 0, order[there - 1] + 1) == here).all()
    assert len(set(here)) > 2
    assert mask[np.arange(50), here].all()
    fewer = policy.actions((teachers[:, :2], shared), mask[:, :3])
    wide = teachers.copy()
    wide[:, 2:] = 0
    assert (policy.actions((wide, shared), mask & (np.arange(5) < 3)) == fewer).all(), "absent teachers change nothing"


def test_a_saved_policy_asks_the_same(tmp_path, task_and_cache):
    task, cache = task_and_cache
    policy = AskingPolicy.create(training={"task": ["halves"]}, seed=1)
    policy.save_pretrained(tmp_path / "asker")
    assert sum(path.stat().st_size for path in (tmp_path / "asker").iterdir()) < 100_000
    pool, asked = Pool.of(task, np.empty(0, dtype=np.int64)), []
    for one in (policy, load_asker(tmp_path / "asker"), AskingPolicy.from_pretrained(tmp_path / "asker")):
        bank = RecordedTeachers(cache, budget=300.0)
        AskByPolicy(one).run(pool, bank, 5)
        asked.append(bank.answers.asked)
        assert 250 < bank.spent <= 300
    assert (asked[0] == asked[1]).all()
    assert (asked[0] == asked[2]).all()
    config = (tmp_path / "asker" / "config.json").read_text(encoding="utf-8")
    (tmp_path / "asker" / "config.json").write_text(
        config.replace('"observation_version": 1', '"observation_version": 7')
    )
    with pytest.raises(PolicyError, match="version 7"):
        load_asker(tmp_path / "asker")


def test_what_an_interrupted_run_has_paid_is_not_paid_again(task_and_cache):
    task, cache = task_and_cache
    pool, policy = Pool.of(task, np.empty(0, dtype=np.int64)), AskingPolicy.create(training={}, seed=1)
    whole, broken = RecordedTeachers(cache, budget=300.0), RecordedTeachers(cache, budget=300.0)
    AskByPolicy(policy).run(pool, whole, 5)
    ask, calls = broken.ask, []

    def ask_until_killed(teacher, ids):
        calls.append(teacher)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return ask(teacher, ids)

    broken.ask = ask_until_killed
    with pytest.raises(KeyboardInterrupt):
        AskByPolicy(policy).run(pool, OneRun(broken), 5)
    assert 0 < broken.spent < whole.spent
    broken.ask = ask
    AskByPolicy(policy).run(pool, OneRun(broken), 5)
    assert (broken.answers.asked == whole.answers.asked).all()
    assert broken.spent == whole.spent


def test_a_task_without_labels_to_pay_by_is_refused(task_and_cache):
    task, cache = task_and_cache
    bare = replace(task, table=replace(task.table, labels=np.full(len(task.table), -1)))
    with pytest.raises(TaskError, match="rewarded by labels"):
        TeacherAskingVectorEnv(task=bare, cache=cache)
    with pytest.raises(ConfigError, match="least_budget must be at most"):
        AskingEpisode(least_budget=0.5, largest_budget=0.2)


def test_a_policy_can_be_taught_a_rule_and_both_ends_of_training_are_compared(task_and_cache, env):
    task, cache = task_and_cache
    policy = AskingPolicy.create(training={}, seed=0)
    untaught = clone(policy, env, AskingRule(), episodes=2, seed=0, passes=1, learning_rate=1e-9)
    taught = clone(policy, env, AskingRule(), episodes=2, seed=0, passes=60)
    assert taught < 0.6 * untaught
    training = AskerTraining(
        total_timesteps=512, n_steps=16, warm_start_episodes=1, trial_episodes=1, seed=3
    )  # fmt: skip
    first, again = (train_asker(task, cache, training=training, episode=SMALL) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    trials = first.training_record["trials"]
    assert set(trials) == {"0", "512"}
    assert first.training_record["kept_at"] == int(max(trials, key=lambda step: trials[step]["reward"]))


class Interrupted(BaseCallback):
    """Ctrl-C, in the midst of a rollout."""

    def __init__(self, decisions):
        super().__init__()
        self._decisions = decisions

    def _on_step(self):
        if self.num_timesteps >= self._decisions:
            raise KeyboardInterrupt
        return True


def test_a_training_that_was_interrupted_goes_on_as_if_it_had_not_been(task_and_cache, tmp_path):
    task, cache = task_and_cache
    training = AskerTraining(total_timesteps=640, n_steps=4, warm_start_episodes=1, trial_episodes=1, seed=3)
    settings = {"training": training, "episode": SMALL}
    whole = train_asker(task, cache, **settings, output_dir=tmp_path / "whole")
    episodes = set()
    for decisions in (100, 330, 600):
        with pytest.raises(KeyboardInterrupt):
            train_asker(
                task, cache, **settings, output_dir=tmp_path / "broken", resume=True, callback=Interrupted(decisions)
            )
        newest = newest_verified(tmp_path / "broken")
        assert int(newest.name.removeprefix("checkpoint-")) == decisions // 64 * 64
        plain, tensors = json.loads((newest / "state.json").read_text()), load_file(newest / "state.safetensors")
        episodes.add(plain["episode"])
        assert ("taken" in tensors) == (len(tensors.get("taken", ())) > 0)
    assert len(episodes) > 1, "an episode ended between"
    assert "taken" in tensors, "and the last was in its midst"
    (newest / "state.safetensors").write_bytes(b"half")  # the one before is taken
    resumed = train_asker(task, cache, **settings, output_dir=tmp_path / "broken", resume=True)
    again = train_asker(task, cache, **settings, output_dir=tmp_path / "broken", resume=True, callback=Interrupted(0))
    for other in (resumed, again):  # which is finished, and only read
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))
        assert other.training_record == whole.training_record
    for name in ("metrics.jsonl", "policy/model.safetensors", "policy/config.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    with pytest.raises(OutputDirectoryError, match="was started with"):
        train_asker(task, cache, training=replace(training, seed=4), episode=SMALL, output_dir=tmp_path / "broken")
    with pytest.raises(ConfigError, match="resume needs an output_dir"):
        train_asker(task, cache, resume=True)


LEARNING = AskingEpisode(
    rows=320, places=32, least_teachers=2, dearest=1.0, least_budget=1.0, largest_budget=1.0,
    labelled_share=0.0, price_weight=0.2, final_weight=0.0,
)  # fmt: skip
"""Two teachers of one price, a budget that does not bind, and no shown labels: what is best follows from the price."""


def learned(task, cache, episode, steps=40_000):
    """Who is asked by a policy that learned from nothing, of an episode's rows, bool, shape (M, 2)."""
    training = AskerTraining(
        total_timesteps=steps, n_steps=64, warm_start=False, agent_learning_rate=2e-3, gamma=0.9, entropy_weight=0.003,
        trial_episodes=2,
    )  # fmt: skip
    policy = train_asker(task, cache, training=training, episode=episode)
    pool = Pool.of(task, np.empty(0, dtype=np.int64))
    bank = RecordedTeachers(cache)
    AskByPolicy(policy, greedy=True, places=32).run(pool, bank, 11)
    return pool, bank.answers.asked[pool.ids]


@pytest.mark.slow
def test_it_learns_whom_to_ask(task_and_cache):
    """The instance tells which teacher is right; one of the two at random is barely worth its price."""
    task, cache = task_and_cache
    pool, asked = learned(task, cache, replace(LEARNING, price_weight=0.2), steps=60_000)
    right = task.table.domains[pool.ids]
    assert asked[np.arange(len(asked)), right].mean() > 0.9
    assert asked.sum() < 1.15 * len(asked)


@pytest.mark.slow
def test_it_learns_to_ask_nobody_where_that_costs_more_than_it_brings(task_and_cache):
    _, asked = learned(*task_and_cache, replace(LEARNING, price_weight=3.0), steps=20_000)
    assert asked.mean() < 0.02


@pytest.mark.slow
def test_it_learns_to_ask_a_second_where_the_first_does_not_know():
    """Which half an instance is of cannot be seen: the answer tells, and a second one is worth its price."""
    task, cache = halves(told=False)
    pool, asked = learned(task, cache, replace(LEARNING, price_weight=0.1))
    right = asked[np.arange(len(asked)), task.table.domains[pool.ids]]
    assert right.mean() > 0.9
    once = asked.sum(1) == 1
    assert 0.3 < once.mean() < 0.7, "where the first knows, nobody else is asked"
    assert right[once].mean() > 0.9


def test_what_is_seen_has_names():
    assert len(set(TEACHER_FEATURES)) == NUM_TEACHER
    assert len(set(SHARED_FEATURES)) == NUM_SHARED


def test_a_command_trains_a_policy_that_asks(tmp_path, monkeypatch, capsys):
    def rlkd(*words):
        monkeypatch.setattr("sys.argv", ["rlkd", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    run_train_teachers({"source": "planted"}, ["tfidf", "tfidf"], str(tmp_path / "teachers"))
    run_cache({"source": "planted"}, [str(tmp_path / "teachers")], str(tmp_path / "cache"))
    out, few = str(tmp_path / "asker"), ("--rows", "64", "--places", "8", "--n-steps", "16", "--trial-episodes", "2")
    shown = rlkd(
        *("train-asker", "--task", "planted", "--cache", str(tmp_path / "cache"), "-o", out, "--quiet"),
        *("--total-timesteps", "256", "--warm-start-episodes", "2", *few),
    )  # fmt: skip
    assert "recovered" in shown
    assert read_jsonl(tmp_path / "asker" / "metrics.jsonl")[-1]["step"] == 256
    policy = load_asker(out)
    assert policy.training_record["task"] == ["planted"]
    assert build_strategy(f"policy:{out}/policy").policy.training_record == policy.training_record
