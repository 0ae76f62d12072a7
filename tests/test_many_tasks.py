"""A policy that is trained over several tasks: episodes draw one, trial students are of all."""

import json
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from rlkd_envs.actor_env import TeacherActingVectorEnv
from rlkd_envs.vector import TeacherWeightingVectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import rlkd.agents.prepared
from rlkd.agents import train_policy
from rlkd.agents.trials import Choice, harms, mean_loss
from rlkd.data.embedded import EMBEDDED
from rlkd.data.planted import planted, planted_logits
from rlkd.errors import ConfigError, PolicyError, TaskError
from rlkd.features import ObservationConfig
from rlkd.logit_cache import LogitCache, read_state
from rlkd.records import read_jsonl
from rlkd.settings import PolicyStudents, TasksSettings
from rlkd.weighting import Policy, build_weighting

ENV_ID = "rlkd_envs:rlkd/TeacherWeighting-v0"
EPISODE = {"batch_size": 16, "horizon": 6, "teacher_copies": 1}


def teachers(task, count, **settings):
    """Teacher k knows domain k."""
    logits = planted_logits(task, count, **settings)
    return LogitCache(list(logits.transpose(1, 0, 2)), [f"teacher-{k}" for k in range(count)])


def pair(rows=(300, 400), **settings):
    """Tasks of 6 and of 10 classes, with 3 and with 5 teachers."""
    small = planted(num_rows=rows[0])
    large = planted(seed=9, num_rows=rows[1], num_classes=10, num_domains=5, dim=12)
    return [small, large], [teachers(small, 3, **settings), teachers(large, 5, **settings)]


@pytest.fixture(scope="module")
def two():
    return pair()


def make_env(tasks, caches, **settings):
    return TeacherWeightingVectorEnv(task=tasks, cache=caches, **EPISODE | settings)


def actions_of(env, seed=0):
    generator = np.random.default_rng(seed)
    while True:
        yield generator.uniform(-1, 1, env.action_space.shape).astype(np.float32)


def of_task(env, tasks):
    return [task.num_classes for task in tasks].index(env.episode.setup.task.num_classes)


def test_a_list_of_one_task_is_the_task(two):
    (task, _), (cache, _) = two
    one, listed = make_env(task, cache, reward="influence"), make_env([task], [cache], reward="influence")
    assert np.array_equal(one.reset(seed=3)[0], listed.reset(seed=3)[0])
    for _, actions in zip(range(15), actions_of(one), strict=False):
        ours, theirs = one.step(actions), listed.step(actions)
        assert all(np.array_equal(a, b) for a, b in zip(ours[:4], theirs[:4], strict=True))
        assert np.array_equal(ours[4]["weights"], theirs[4]["weights"])
    uniform = build_weighting("uniform", task, cache)
    assert torch.equal(one.trial_losses(uniform, 1), listed.trial_losses(uniform, 1))


def test_teachers_that_a_task_does_not_have_are_absent(two):
    tasks, caches = two
    env = make_env(tasks, caches)
    assert env.single_action_space.shape == (6,)  # the larger set and a copy
    observation, _ = env.reset(seed=0)
    seen = set()
    for _, actions in zip(range(12), actions_of(env), strict=False):
        index = of_task(env, tasks)
        rows, own = len(env.episode.ids), len(caches[index].teacher_names)
        shown = observation.reshape(16, 6, -1)
        present = shown[..., 0] == 1
        assert present[:rows, :own].all()
        assert (shown[~present] == 0).all()
        assert not present[:, own + 1 :].any()
        observation, rewards, _, _, infos = env.step(actions)
        assert infos["weights"].shape == (16, 6)
        assert (infos["weights"][~present] == 0).all()
        assert np.allclose(infos["weights"][:rows].sum(1), 1)
        assert (rewards[:rows] != 0).all()
        seen.add(index)
    assert seen == {0, 1}


def test_every_task_comes_up_once_in_as_many_episodes_and_any_can_be_rebuilt(two):
    tasks, caches = two
    env, named = make_env(tasks, caches, horizon=2), make_env(tasks, caches, horizon=2)
    observation, _ = env.reset(seed=5)
    order = []
    for number in range(12):
        assert np.array_equal(named.reset(seed=5, options={"episode": number})[0], observation)
        order.append(of_task(env, tasks))
        for _, actions in zip(range(2), actions_of(env, number), strict=False):
            observation = env.step(actions)[0]
    turns = np.array(order).reshape(6, 2)
    assert (turns.sum(1) == 1).all()
    assert len({tuple(turn) for turn in turns.tolist()}) == 2  # the order is drawn


def test_a_trial_student_is_of_the_task_of_its_number(two):
    tasks, caches = two
    env = make_env(tasks, caches)
    env.reset(seed=0)
    rows = [len(task.labelled_ids("validation")) for task in tasks]
    assert rows[0] != rows[1]
    losses = [env.trial_losses(build_weighting("uniform", tasks[n % 2], caches[n % 2]), n) for n in range(4)]
    assert [len(one) for one in losses] == rows * 2
    assert not torch.equal(losses[0], losses[2])
    assert [state.teacher_logits.shape[1:] for state in env.validation_states()] == [(3, 6), (5, 10)]


def test_both_checkers_are_content(two):
    tasks, caches = two
    env = gymnasium.make(ENV_ID, task=tasks, cache=caches, **EPISODE)
    check_env(env.unwrapped, skip_render_check=True)
    sb3_check_env(env.unwrapped)


# --- training


class Interrupt(BaseCallback):
    """Stops a training in the middle of an episode."""

    def _on_step(self):
        if self.num_timesteps >= 16 * 14:
            raise KeyboardInterrupt
        return True


def trained(two, folder=None, **settings):
    defaults = {"episode": EPISODE, "n_steps": 3, "total_timesteps": 16 * 6 * 3, "warm_start": False}
    return train_policy(*two, output_dir=folder, **defaults | settings)


def test_a_resumed_training_ends_like_an_uninterrupted_one(two, tmp_path):
    """With a student in the observation: those of tasks that are not at hand leave no trace."""
    run = {"observation": ObservationConfig(student=True)}
    whole = trained(two, tmp_path / "whole", **run)
    with pytest.raises(KeyboardInterrupt):
        trained(two, tmp_path / "broken", callback=Interrupt(), **run)
    resumed = trained(two, tmp_path / "broken", resume=True, **run)
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for file in ("metrics.jsonl", "policy/config.json"):
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    assert len(read_jsonl(tmp_path / "whole" / "metrics.jsonl")) == 7
    record = whole.training_record
    assert (record["task"], record["teachers_seen"]) == (["planted", "planted"], [3, 5])
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["data"] == [task.fingerprint for task in two[0]]
    assert [len(names) for names in config["teachers"]] == [3, 5]
    assert config["student"] == [None, None]


def mass(weighting, task, cache):
    """Mean weight on the teacher that knows the instance, over the test split."""
    state = read_state(task, cache, torch.from_numpy(task.splits["test"]))
    return weighting.weights(state).gather(1, state.domains.unsqueeze(1)).mean().item()


def test_a_warm_start_is_the_router_of_all_tasks(two, monkeypatch):
    """It sees the training views alone; its fit is the router's own affair."""
    seen = []

    def fitted(evidence, plan):
        seen.extend(evidence)
        return Policy.create(plan.observation, training={}, seed=7)

    monkeypatch.setattr(rlkd.agents.prepared, "train_router", fitted)
    monkeypatch.setattr(rlkd.agents.prepared, "choose", lambda *args, **others: Choice("0", 1.0, {}, {}, {}))
    policy = trained(two, warm_start=True, total_timesteps=16 * 6 * 2, agent_learning_rate=1e-12)
    assert [one.task.fingerprint for one in seen] == [task.training_view().fingerprint for task in two[0]]
    assert [len(one.source) for one in seen] == [len(one.task.table) for one in seen]
    for ours, theirs in zip(
        policy.parameters(), Policy.create(ObservationConfig(), training={}, seed=7).parameters(), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_one_policy_finds_the_right_teachers_of_both_tasks():
    two = pair((800, 800), sharpness=8.0)
    episode = {"batch_size": 64, "horizon": 30, "teacher_copies": 0}
    policy = trained(two, episode=episode, n_steps=15, total_timesteps=64 * 30 * 2, trials=1)
    for task, cache in zip(*two, strict=True):
        assert mass(policy, task, cache) > 0.9 > 0.75 > mass(build_weighting("entropy", task, cache), task, cache)


# --- sure harm, by hand


def test_losses_of_tasks_are_meant_over_tasks():
    losses = [np.array([1.0, 3.0]), np.array([5.0]), np.array([3.0, 5.0]), np.array([7.0])]
    assert mean_loss(losses, 2) == 4.5  # of 3 and 6; of all rows it would be 4


@pytest.mark.parametrize(
    ("one", "other", "sure"),
    [
        # the means of two tasks of three students each: 1, with a standard error of sqrt(2) / 2 times that of each;
        # with 4 degrees of freedom t is 2.78, with the 2 of a single task it would be 4.30
        (0.50, 0.50, True),
        (0.52, 0.52, False),
        # one task alone is in doubt: 2 degrees of freedom, and half its standard error
        (0.46, 0.0, True),
        (0.47, 0.0, False),
    ],
)
def test_harm_is_sure_on_the_mean_of_tasks(one, other, sure):
    spread = np.array([-1, 0, 1]) * 3**0.5  # its mean has the standard error 1
    losses = [np.full(1 + task, 1 + spread[n] * (one, other)[task]) for n in range(3) for task in (0, 1)]
    assert harms(losses, [np.zeros_like(found) for found in losses], 2) == sure


def test_one_student_of_each_task_shows_no_sure_harm():
    assert not harms([np.ones(5), np.ones(4)], [np.zeros(5), np.zeros(4)], 2)
    assert harms([np.ones(5), np.ones(4)] * 2, [np.zeros(5), np.zeros(4)] * 2, 2)


# --- what is refused, and what flags stand for


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"cache": 1}, ConfigError, r"got 2 of task \(planted, planted\) and 1 of cache \(teacher-0 \+ teacher-1"),
        ({"task": 0, "cache": 0}, TaskError, "got an empty list"),
        ({"student": ["rlkd/mlp"] * 3}, ConfigError, "one student for all tasks or one for each of 2, got 3"),
        ({"student": ["rlkd/mlp", "bert"]}, ConfigError, r"0\.002 for rlkd/mlp, 5e-05 for bert"),
        ({"total_timesteps": 100}, ConfigError, "total_timesteps >= 192, an episode of each of 2 tasks, got 100"),
        (
            {"observation": ObservationConfig(reliability=True)},
            PolicyError,
            "'reliability', the cache of task 'planted' has none",
        ),
    ],
)
def test_what_does_not_fit_all_tasks_is_refused(two, changed, error, message):
    tasks, caches = two
    caches = [caches[0].measured(tasks[0]), caches[1]]
    tasks, caches = tasks[: changed.pop("task", 2)], caches[: changed.pop("cache", 2)]
    with pytest.raises(error, match=message):
        trained((tasks, caches), **changed)


def test_columns_are_those_of_the_tasks_that_are_not_embedded():
    def options(*tasks):
        return TasksSettings(task=tasks, label_column="y", split_seed=3).options(EMBEDDED)

    embedded, own = {"source": "digits", "seed": 3}, {"source": "a.csv", "seed": 3, "label_column": "y"}
    assert options("digits", "a.csv") == [embedded, own]
    assert options("digits") == [embedded | {"label_column": "y"}]  # for the loader to refuse


def test_the_command_takes_tasks_and_caches_in_pairs(tmp_path: Path):
    from test_cli import assert_refused, rlkd_command, run_yaml, succeeded

    rng = np.random.default_rng(0)
    for name, shape, files in (("digits", (1797, 10), ("a/train", "b/train")), ("planted", (3000, 6), "cde")):
        for file in files:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            np.save(tmp_path / file, rng.normal(size=shape).astype(np.float32))
        arrays = [tmp_path / (file[0] if "/" in file else f"{file}.npy") for file in files]
        succeeded(
            "cache",
            "--task",
            name,
            *(word for array in arrays for word in ("--teachers", array)),
            "-o",
            tmp_path / name,
        )
    caches = [str(tmp_path / name) for name in ("digits", "planted")]
    config = run_yaml(tmp_path / "run.yaml", task=["digits", "planted"], cache=caches)
    run = ("--no-warm-start", "--batch-size", 16, "--horizon", 10, "--n-steps", 10, "--total-timesteps", 320)
    succeeded("train-policy", "--config", config, *run, "-o", tmp_path / "policy")
    stored = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert (stored["task"], stored["student"]) == (["digits", "planted"], ["rlkd/mlp", "rlkd/mlp"])
    assert "Policy trained on digits, planted" in (tmp_path / "policy" / "report.html").read_text(encoding="utf-8")
    refused = rlkd_command("train-policy", "--config", config, "--task", "digits", *run, "-o", tmp_path / "new")
    assert_refused(refused, r"every task needs a cache, .* got 1 of task \(digits\) and 2 of cache \(.*digits, .*plant")


def test_the_default_student_learns_from_scratch():
    assert (PolicyStudents().student, PolicyStudents().learning_rate) == ((), 2e-3)
    assert PolicyStudents(student=("a/b",)).learning_rate == 5e-5


def test_actors_of_published_systems_have_one_task(two):
    tasks, caches = two
    actor = SimpleNamespace(reads_student=False)
    with pytest.raises(ConfigError, match="an actor of a published system is trained on one task, got 2"):
        TeacherActingVectorEnv(task=tasks, cache=caches, actor=actor, **EPISODE)
