import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.seeding import np_random
from rlkd_envs.vector import TeacherWeightingVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from rlkd.agents.protocols import WeightingEnvironment
from rlkd.agents.run import PolicyRun
from rlkd.data.planted import planted
from rlkd.errors import ConfigError, NonFiniteLossError, PolicyError, StudentError, TaskError, UnknownNameError
from rlkd.features import ObservationConfig, teacher_features
from rlkd.logit_cache import LogitCache, read_state
from rlkd.models import load_student
from rlkd.settings import EpisodeSettings, PolicyTraining
from rlkd.types import State, pick_teachers
from rlkd.weighting import Policy

ENV_ID = "rlkd_envs:rlkd/TeacherWeighting-v0"
STUDENT_TOO = ObservationConfig(student=True)


def make_vector(task, cache, num_envs=64, **settings):
    return gymnasium.make_vec(
        ENV_ID,
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        task=task,
        cache=cache,
        **{"horizon": 20, **settings},
    ).unwrapped


def actions_of(env, seed=0):
    generator = np.random.default_rng(seed)
    while True:
        yield generator.uniform(-1, 1, env.action_space.shape).astype(np.float32)


@pytest.mark.parametrize("reward", ["logit_gain", "student_gain", "influence", "probe_gain"])
def test_both_checkers_are_content(reward):
    """Warnings are errors here; without a task the environment brings its own."""
    env = gymnasium.make(ENV_ID, reward=reward, horizon=5)
    check_env(env.unwrapped, skip_render_check=True)
    sb3_check_env(env.unwrapped)


def test_the_environment_is_registered_once():
    import importlib

    import rlkd_envs

    spec = gymnasium.spec("rlkd/TeacherWeighting-v0")
    importlib.reload(rlkd_envs)  # a second registration would warn
    assert gymnasium.spec("rlkd/TeacherWeighting-v0") is spec
    assert spec.entry_point == "rlkd_envs.teacher_weighting:TeacherWeightingEnv"


def test_the_environment_has_what_agents_ask_of_it(task, cache):
    """They get it by its id, so that no type checker can tell."""
    assert isinstance(make_vector(task, cache, 4), WeightingEnvironment)


def test_twins_stay_equal_over_episodes(task, cache):
    first, second = (make_vector(task, cache, observation=STUDENT_TOO, reward="influence") for _ in range(2))
    starts = [env.reset(seed=3)[0] for env in (first, second)]
    assert np.array_equal(*starts)
    ends = 0
    for step, actions in zip(range(50), actions_of(first), strict=False):
        torch.manual_seed(step)  # the global generator plays no part
        one, two = first.step(actions), second.step(actions)
        assert all(np.array_equal(a, b) for a, b in zip(one[:4], two[:4], strict=True))
        assert first.observation_space.contains(one[0])
        assert one[2].all() == one[2].any() == ((step + 1) % 20 == 0)
        assert not one[3].any()
        if one[2].any():
            ends += 1
            assert np.array_equal(one[4]["final_obs"], two[4]["final_obs"])
            assert not np.array_equal(one[4]["final_obs"], one[0])
    assert ends == 2
    assert not np.array_equal(first.reset(seed=4)[0], starts[0])


def test_an_environment_leaves_the_global_generators_alone(task, cache):
    env = make_vector(task, cache, 8)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    env.reset(seed=0)
    env.step(next(actions_of(env)))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


def test_dropout_is_drawn_anew_each_step_from_the_seed_of_the_episode(task, cache):
    def masks(seed):
        def student(_):
            model = load_student("rlkd/mlp", task)[0]
            model.hidden.bias.data.fill_(100.0)  # nothing is zero but what is dropped
            return model

        env = make_vector(task, cache, 32, student=student)
        env.reset(seed=seed)
        found = []
        for _ in range(2):
            env.step(np.zeros(env.action_space.shape, dtype=np.float32))
            found.append(env.episode.student_hidden == 0)
        return found

    first, second = masks(0)
    assert 0.05 < first.float().mean() < 0.15
    assert not torch.equal(first, second)
    assert torch.equal(masks(0)[1], second)
    assert not torch.equal(masks(1)[1], second)


def test_an_episode_can_be_reached_or_named(task, cache):
    walked, named = make_vector(task, cache, horizon=4), make_vector(task, cache, horizon=4)
    walked.reset(seed=7)
    for _, actions in zip(range(8), actions_of(walked), strict=False):
        observation = walked.step(actions)[0]
    assert walked.episode_number == 2
    assert np.array_equal(named.reset(seed=7, options={"episode": 2})[0], observation)
    actions = next(actions_of(walked, 1))
    for ours, theirs in zip(walked.step(actions)[:2], named.step(actions)[:2], strict=True):
        assert np.array_equal(ours, theirs)


def test_the_plain_face_is_the_mean_of_the_vector_face(task, cache):
    plain = gymnasium.make(ENV_ID, task=task, cache=cache, batch_size=48, horizon=12).unwrapped
    vector = make_vector(task, cache, 48, horizon=12)
    observation, _ = plain.reset(seed=5)
    seed = int(np_random(5)[0].integers(2**31))  # the plain face draws the seed of its episode
    assert np.array_equal(observation, vector.reset(seed=seed)[0].ravel())
    sizes = set()
    for _, actions in zip(range(12), actions_of(vector), strict=False):
        rows = len(vector.episode.ids)
        sizes.add(rows)
        observation, reward, terminated, truncated, _ = plain.step(actions.ravel())
        theirs = vector.step(actions)
        assert reward == pytest.approx(theirs[1][:rows].mean(), abs=1e-6)
        assert terminated == theirs[2][0]
        assert not truncated
        shown = theirs[4]["final_obs"] if terminated else theirs[0]
        assert np.array_equal(observation, shown.ravel())
    assert terminated
    assert len(sizes) == 2  # a partial batch was among them


def test_an_observation_is_what_the_deployed_policy_computes(task, cache):
    env = make_vector(task, cache, 32)
    observation, _ = env.reset(seed=0)
    state = read_state(task, cache, torch.from_numpy(env.episode.ids))
    features = teacher_features(state, ObservationConfig())
    assert np.array_equal(observation.reshape(features.shape), features.numpy())
    policy = Policy.create(ObservationConfig(), training={})
    with torch.no_grad():
        actions = policy(torch.from_numpy(observation).view(features.shape)).numpy()
    assert np.allclose(env.step(actions)[4]["weights"], policy.weights(state).numpy(), atol=1e-6)


def test_dropped_teachers_are_not_seen_and_get_nothing(task, cache):
    twins = [make_vector(task, cache, 32, teacher_dropout=0.5) for _ in range(2)]
    observation, other = (env.reset(seed=0)[0] for env in twins)
    assert np.array_equal(observation, other)
    features = observation.reshape(32, 3, -1)
    present = features[..., 0] == 1
    assert present.any(1).all()
    assert 0.4 < present.mean() < 0.75
    assert (features[~present] == 0).all()
    weights = twins[0].step(next(actions_of(twins[0])))[4]["weights"]
    assert (weights[~present] == 0).all()
    assert np.allclose(weights.sum(1), 1)


def test_copies_hold_further_places_with_the_logits_of_teachers(task, cache):
    env = make_vector(task, cache, 32, teacher_copies=2)
    observation, _ = env.reset(seed=0)
    assert env.single_action_space.shape == (5,)
    present = observation.reshape(32, 5, -1)[..., 0] == 1
    assert present[:, :3].all()
    assert set(present.sum(1)) == {3, 4, 5}  # the real set is met beside larger ones
    assert (present[:, 3] >= present[:, 4]).all()
    real = read_state(task, cache, torch.from_numpy(env.episode.ids)).teacher_logits
    shown = env.episode.observed_state(student=False).teacher_logits
    assert torch.equal(shown[:, :3], real)
    held = (shown[:, 3:, None] == real[:, None]).all(-1)
    assert (held.sum(-1) == 1).all()
    assert held.float().mean((0, 1)).min() > 0.15  # every teacher is copied
    weights = env.step(next(actions_of(env)))[4]["weights"]
    assert weights.shape == (32, 5)
    assert (weights[~present] == 0).all()


def test_a_drawn_set_picks_everything_that_belongs_to_a_teacher():
    state = State(
        teacher_logits=torch.arange(12.0).view(2, 2, 3),
        teacher_mask=torch.tensor([[True, False], [True, True]]),
        affinity=torch.tensor([[0.1, 0.2], [0.3, 0.4]]),
        reliability=torch.tensor([[1.0, 0.1], [2.0, 0.2]]).expand(2, 2, 2),
        labels=torch.tensor([0, 1]),
    )
    picked = pick_teachers(state, torch.tensor([[1, 0, 1], [0, 0, 1]]))
    assert picked.teacher_logits[0].tolist() == [[3, 4, 5], [0, 1, 2], [3, 4, 5]]
    assert picked.teacher_mask.tolist() == [[False, True, False], [True, True, True]]
    assert torch.equal(picked.affinity, torch.tensor([[0.2, 0.1, 0.2], [0.3, 0.3, 0.4]]))
    assert torch.equal(picked.reliability[0], torch.tensor([[2.0, 0.2], [1.0, 0.1], [2.0, 0.2]]))
    assert picked.labels is state.labels


def partial_batch(env):
    """Step until the batch at hand is partial; its size."""
    for actions in actions_of(env):
        if len(env.episode.ids) < env.num_envs:
            return len(env.episode.ids)
        observation = env.step(actions)[0]
        assert (observation[: len(env.episode.ids)] != 0).any(1).all()
    raise AssertionError


def test_padded_slots_are_silent(task, cache):
    env = make_vector(task, cache)
    env.reset(seed=0)
    rows = partial_batch(env)
    assert rows == len(task.splits["train"]) % 64
    assert (env._observe()[rows:] == 0).all()
    _, rewards, *_, infos = env.step(next(actions_of(env)))
    assert (rewards[rows:] == 0).all()
    assert (rewards[:rows] != 0).all()
    assert (infos["weights"][rows:] == 0).all()


class Poisoned(TeacherWeightingVectorEnv):
    """Pays padded slots absurdly."""

    poison = 1e6

    def step(self, actions):
        rows = len(self.episode.ids)
        observation, rewards, *rest = super().step(actions)
        rewards[rows:] = self.poison
        return observation, rewards, *rest


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_padded_slots_teach_nothing(task, cache, algorithm, gamma):
    def trained(poison):
        env = Poisoned(64, task=task, cache=cache, horizon=20)
        env.poison = poison
        policy = Policy.create(ObservationConfig(), training={}, seed=0)
        before = {name: value.clone() for name, value in policy.state_dict().items()}
        settings = PolicyTraining(
            total_timesteps=20 * 64, n_steps=20, warm_start=False, algorithm=algorithm, gamma=gamma
        )
        PolicyRun(env, policy, settings).learn(progress=False, callback=None)
        assert any(not torch.equal(value, before[name]) for name, value in policy.state_dict().items())
        return policy.state_dict()

    clean, poisoned = trained(0.0), trained(1e6)
    assert all(torch.equal(clean[name], poisoned[name]) for name in clean)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"horizon": 1}, ConfigError, "horizon"),
        ({"num_envs": 0}, ConfigError, "batch_size"),
        ({"learning_rate": -1.0}, ConfigError, "learning_rate"),
        ({"probe_size": 0}, ConfigError, "probe_size"),
        ({"temperature": 0.0}, ConfigError, "temperature"),
        ({"kd_ratio": 2.0}, ConfigError, "kd_ratio"),
        ({"teacher_dropout": 1.0}, ConfigError, "teacher_dropout"),
        ({"teacher_copies": -1}, ConfigError, "teacher_copies"),
        ({"cache": None}, TaskError, "task and cache"),
        ({"reward": "influense"}, UnknownNameError, "'influence'"),
        ({"student": "rlkd/tiny"}, StudentError, "rlkd/mlp"),
        ({"settings": EpisodeSettings(), "learning_rate": 1.0}, ConfigError, "learning_rate"),
        ({"observation": ObservationConfig(affinity=True)}, PolicyError, "affinity"),
        ({"observation": ObservationConfig(reliability=True)}, PolicyError, "reliability"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, error, message, task, cache):
    with pytest.raises(error, match=message):
        TeacherWeightingVectorEnv(**{"task": task, "cache": cache, **settings})


@pytest.mark.parametrize("options", [{"episode": -1}, {"epsiode": 2}])
def test_bad_reset_options_are_refused(options, task, cache):
    with pytest.raises(ConfigError, match="episode"):
        make_vector(task, cache, 8).reset(options=options)


def test_a_loss_that_is_not_finite_stops_the_run(task, cache):
    logits = cache.rows(torch.arange(len(cache))).numpy()
    logits[17, 1, 2] = np.inf
    env = make_vector(task, LogitCache(list(logits.transpose(1, 0, 2)), ["a", "b", "c"]))
    env.reset(seed=0)
    while 17 not in env.episode.ids:
        env.step(next(actions_of(env)))
    step = env.episode.step_index
    with pytest.raises(NonFiniteLossError, match=rf"nan at step {step}, instances \[17\]"):
        env.step(next(actions_of(env)))


def test_labelled_rows_are_needed_for_rewards():
    task = planted(num_rows=100)
    task.table.labels[task.splits["probe"]] = -1
    with pytest.raises(TaskError, match="labelled train and probe"):
        make_vector(task, LogitCache([np.zeros((100, 6), dtype=np.float32)] * 2, ["a", "b"]))
