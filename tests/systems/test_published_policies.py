"""RL-KD and MTKD-RL: shown for what they are on planted teachers, and deployed as weightings."""

import dataclasses
import json
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from rlkd_envs.rewards import BatchMean, make_reward
from safetensors.torch import load_file, save_file
from stable_baselines3.common.callbacks import BaseCallback
from torch.nn import functional as F

from rlkd.agents.actor_training import make_acting_env
from rlkd.agents.protocols import ActingEnvironment
from rlkd.data.planted import planted_logits
from rlkd.data.splitting import split_task
from rlkd.data.task import UNLABELLED, Table
from rlkd.errors import CacheError, ConfigError, OutputDirectoryError, PolicyError, UnknownNameError, WeightingError
from rlkd.logit_cache import LogitCache, build_cache, load_cache, read_state
from rlkd.losses import cost_of_mixture, cross_entropy, distillation_loss, soft_targets
from rlkd.models.arrays import ArrayTeacher
from rlkd.settings import StudentSettings
from rlkd.systems.mtkd_rl.training import MtkdRlSettings, make_mtkd_rl_agent, train_mtkd_rl
from rlkd.systems.mtkd_rl.weighting import confidence_weights, divergence_weights, softened_divergence
from rlkd.systems.rl_kd.training import PRESETS, RlKdSettings, make_selector, rl_kd_settings, train_rl_kd
from rlkd.systems.rl_kd.weighting import RlKdSelector
from rlkd.trainer import make_trainer
from rlkd.types import State
from rlkd.weighting import build_weighting

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, of no package

from published_algorithms import RL_KD_CASES, mtkd_rl_record, released_objective, rl_kd_record

EPISODE = {"batch_size": 32, "horizon": 12}
SHORT = {"episode": EPISODE, "pretraining_steps": 4, "episodes": 2}


# --- the published algorithms, shown for what they are -----------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    ["published", "published, all selected at first", "published, reward 2", "published, but credit of the instance"],
)
def test_published_rl_kd_stays_a_coin_flip(case):
    record = rl_kd_record(1, case=case, **RL_KD_CASES[case])
    assert record["probability_right"] == pytest.approx(0.5, abs=0.1)
    assert record["probability_wrong"] == pytest.approx(0.5, abs=0.1)
    assert record["mass_right"] == pytest.approx(1 / 3, abs=0.1)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("empty_set", ["argmax", "resample"])
def test_repaired_rl_kd_finds_the_right_teacher(seed, empty_set):
    record = rl_kd_record(seed, preset="repaired", empty_set=empty_set)
    assert record["mass_right"] >= 0.95
    assert record["probability_right"] > 0.9
    assert record["probability_wrong"] < 0.1


def test_the_joint_reading_learns_too():
    assert rl_kd_record(0, preset="repaired", joint=True)["mass_right"] >= 0.95


def test_the_objective_that_mtkd_rl_released_ends_at_uniform():
    start, end = released_objective()
    assert start["distance_to_uniform"] > 0.04
    assert end["distance_to_uniform"] < 1e-3
    assert end["weight_good_heuristics"] < 0.2  # together the heuristics had voted against the good teacher


def test_mtkd_rl_learns_by_a_policy_gradient_and_unlearns_as_released():
    learned, released = (mtkd_rl_record(0, agent_objective=o) for o in ("policy_gradient", "released"))
    assert learned["mass_right_network"] > 0.75
    assert released["mass_right_network"] < 1 / 3  # it cancels the heuristics
    assert learned["mass_right"] > released["mass_right"] + 0.15


# --- formulas by hand --------------------------------------------------------------------------------------------


def test_mtkd_rl_heuristics_by_hand():
    present = torch.tensor([True, True, True])
    ce = torch.tensor([0.0, 5.0, 5.0])
    assert torch.allclose(confidence_weights(ce, present), torch.tensor([0.498, 0.251, 0.251]), atol=5e-4)
    assert torch.allclose(
        divergence_weights(torch.log(torch.tensor([1.0, 2.0, 1.0])), present), torch.tensor([0.25, 0.5, 0.25])
    )
    absent = torch.tensor([True, False, True])
    assert torch.allclose(confidence_weights(ce, absent), torch.tensor([0.993, 0.0, 0.007]), atol=5e-4)
    teacher, student = torch.tensor([[[2.0, -1.0]]]), torch.tensor([[0.5, 0.5]])
    expected = 16 * F.kl_div(F.log_softmax(student / 4, -1), F.softmax(teacher[:, 0] / 4, -1), reduction="sum")
    assert torch.allclose(softened_divergence(teacher, student, 4.0), expected.view(1, 1))


def test_rl_kd_state_and_score_by_hand(task, cache):
    selector = make_selector(task, cache, RlKdSettings(embeddings=False, initial_probability=0.7))
    state = read_state(task, cache, torch.arange(5))
    assert torch.allclose(selector.probabilities(state), torch.full((5, 3), 0.7))
    rows = selector.observe(state)
    assert rows.shape == (5, 3, 1 + task.num_classes + 1)
    ce = -F.log_softmax(state.teacher_logits, -1)[torch.arange(5), :, state.labels]
    assert torch.allclose(rows[..., -1], ((ce - selector.mean[:, -1]) / selector.scale[:, -1]).clamp(-5, 5), atol=1e-5)
    with torch.no_grad():
        selector.weight[1, 0, -1] = -2.0
    moved = torch.logit(selector.probabilities(state)) - torch.logit(torch.tensor(0.7))
    assert torch.allclose(moved[:, 1], -2 * rows[:, 1, -1], atol=1e-4)
    assert torch.allclose(moved[:, 0], torch.zeros(5), atol=1e-5)


@pytest.mark.parametrize(
    ("empty_set", "empty_row"),
    [("label_only", [0, 0, 0]), ("all", [1 / 3] * 3), ("argmax", [0, 1, 0]), ("resample", [0, 1, 0])],
)
def test_mean_of_the_selected_by_hand(empty_set, empty_row, task, cache):
    selector = make_selector(task, cache, RlKdSettings(empty_set=empty_set))
    with torch.no_grad():
        selector.weight[1, 0, 0] = 0.5  # the second teacher is the most probable
    rows = selector.observe(read_state(task, cache, torch.arange(3))) * torch.tensor(
        [1.0] + [0.0] * (selector.num_features - 1)
    )
    weights = selector.mix(torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 0]]), rows)
    assert torch.allclose(weights, torch.tensor([[0.5, 0, 0.5], [0, 1, 0], empty_row]))


def test_a_row_without_a_teacher_is_taught_by_its_label():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 4, generator=generator).requires_grad_()
    teachers, labels = torch.randn(3, 2, 4, generator=generator), torch.tensor([2, 0, 1])
    weights = torch.tensor([[0.5, 0.5], [0.0, 0.0], [1.0, 0.0]])
    for settings in ({}, {"kd_ratio": 0.3, "temperature": 3.0}, {"mix": "logit"}):
        losses = distillation_loss(student, teachers, weights, labels, **settings)
        equal = distillation_loss(student, teachers, torch.full((3, 2), 0.5), labels, **settings)
        assert torch.allclose(losses[1], cross_entropy(student, labels)[1])
        assert torch.equal(losses[0], equal[0])
    (gradient,) = torch.autograd.grad(distillation_loss(student, teachers, weights, labels)[1], student)
    assert torch.allclose(gradient[1], student.softmax(-1)[1] - F.one_hot(labels[1], 4), atol=1e-6)
    assert soft_targets(teachers, weights, labels=labels)[1].tolist() == [1, 0, 0, 0]
    with pytest.raises(ConfigError, match="zero weights"):
        distillation_loss(student, teachers, weights)


def test_rl_kd_rewards_by_hand():
    labels, taught = torch.tensor([0, 1]), torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]]]).log()
    scene = SimpleNamespace(
        labels=labels,
        cost_of_mixture=lambda logits: cost_of_mixture(logits, taught, torch.ones(2, 1), labels),
        batch_logits=lambda: torch.tensor([[np.log(3.0), 0.0], [np.log(3.0), 0.0]]),  # 3/4 and 1/4
        probe_logits=lambda: (torch.tensor([[1.0, 0.0], [1.0, 0.0]]), None),
        probe_labels=torch.tensor([0, 1]),
    )
    ce = torch.log(torch.tensor([4 / 3, 4.0]))
    kd = torch.tensor([np.log(4 / 3) / 2 + np.log(4.0) / 2, np.log(4 / 3)])
    one, two, three = (make_reward(f"rl_kd_{n}").after(scene) for n in (1, 2, 3))
    assert torch.allclose(one, -ce)
    assert torch.allclose(two, (-ce - kd).float())
    assert torch.allclose(three, 0.5 * (-ce - kd).float() + 0.5 * 0.5)
    assert torch.allclose(BatchMean(make_reward("rl_kd_1")).after(scene), -ce.mean().expand(2))


# --- the environment ---------------------------------------------------------------------------------------------


def test_the_environment_selects_subsets_after_pretraining(task, cache):
    selector = make_selector(task, cache, RlKdSettings())
    env = make_acting_env(task, cache, selector, reward="rl_kd_1", credit="batch", pretraining_steps=4, episode=EPISODE)
    assert isinstance(env, ActingEnvironment)
    assert env.single_action_space == spaces.MultiBinary(3)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert env.episode.step_index == 4
    assert env.at_episode_start
    actions = np.tile(np.array([[1, 1, 0]], dtype=np.int8), (32, 1))
    for step in range(8):
        observation, rewards, done, _, infos = env.step(actions)
        assert np.allclose(infos["weights"], [[0.5, 0.5, 0]])
        assert len(set(rewards.tolist())) == 1  # of the batch
        assert done.all() == (step == 7)
    assert env.episode.step_index == 4
    with pytest.raises(ConfigError, match="pretraining_steps < horizon 12, got 12"):
        make_acting_env(task, cache, selector, reward="rl_kd_1", credit="batch", pretraining_steps=12, episode=EPISODE)
    with pytest.raises(UnknownNameError, match="unknown credit 'bach'; did you mean 'batch'"):
        make_acting_env(task, cache, selector, reward="rl_kd_1", credit="bach", pretraining_steps=4, episode=EPISODE)


# --- deployed ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(task, cache, tmp_path_factory):
    """A trained policy of each system."""
    folder = tmp_path_factory.mktemp("systems")
    train_rl_kd(task, cache, preset="repaired", output_dir=folder / "repaired", **SHORT)
    train_rl_kd(task, cache, output_dir=folder / "published", selector_pretraining_steps=2, **SHORT)
    train_mtkd_rl(task, cache, agent_objective="policy_gradient", output_dir=folder / "mtkd", n_steps=4, **SHORT)
    return folder


SPECS = {"repaired": "rl_kd", "published": "rl_kd", "mtkd": "mtkd_rl"}


def spec_of(folders, name):
    return f"{SPECS[name]}:{folders / name / 'policy'}"


def state_of(task, cache, rows=40):
    state = read_state(task, cache, torch.arange(rows) * 7)
    student = torch.randn(rows, task.num_classes, generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(state, student_logits=student)


def picked(state, rows):
    tensors = {name: getattr(state, name) for name in state.available()}
    return dataclasses.replace(state, **{name: value[rows] for name, value in tensors.items()})


def assert_weights(weights, shape, zeros):
    assert weights.shape == shape
    assert weights.dtype == torch.float32
    assert not weights.requires_grad
    assert (weights >= 0).all()
    total = weights.sum(-1)
    assert (((total - 1).abs() < 1e-6) | (zeros & (total == 0))).all()


@pytest.mark.parametrize("name", SPECS)
class TestContract:
    """As in test_weighting.py, as far as it applies to policies that are tied to teachers, order and classes."""

    @pytest.fixture
    def weighting(self, name, folders, task, cache):
        return build_weighting(spec_of(folders, name), task, cache)

    def test_rows_are_weights_and_follow_the_instances(self, name, weighting, task, cache):
        state = state_of(task, cache)
        weights = weighting.weights(state)
        assert_weights(weights, (40, 3), name == "published")
        assert torch.equal(weighting.weights(state), weights)
        order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(weighting.weights(picked(state, order)), weights[order], atol=1e-6)
        tensors = {field: getattr(state, field) for field in state.available()}
        stacked = dataclasses.replace(state, **{field: t.unflatten(0, (8, 5)) for field, t in tensors.items()})
        assert torch.allclose(weighting.weights(stacked).flatten(0, 1), weights, atol=1e-6)

    def test_absent_teachers_get_nothing(self, name, weighting, task, cache):
        mask = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) < 0.5
        mask[torch.arange(40), torch.arange(40) % 3] = True
        weights = weighting.weights(dataclasses.replace(state_of(task, cache), teacher_mask=mask))
        assert_weights(weights, (40, 3), name == "published")
        assert (weights[~mask] == 0).all()

    def test_extreme_logits(self, name, weighting, task, cache):
        state = state_of(task, cache)
        signs = torch.where(state.teacher_logits > 0.5, 1e4, -1e4).half()
        signs[0], signs[1, 0] = torch.inf, torch.nan
        assert_weights(
            weighting.weights(dataclasses.replace(state, teacher_logits=signs)), (40, 3), name == "published"
        )

    def test_unlabelled_rows_get_equal_weights(self, name, weighting, task, cache):
        state = state_of(task, cache)
        labels = state.labels.clone()
        labels[:5] = UNLABELLED
        weights = weighting.weights(dataclasses.replace(state, labels=labels))
        assert torch.allclose(weights[:5], torch.full((5, 3), 1 / 3))

    def test_a_student_is_distilled(self, name, weighting, task, cache, tmp_path):
        trainer = make_trainer(task, cache, weighting, StudentSettings(student="rlkd/mlp", max_steps=5), tmp_path)
        trainer.train()
        assert trainer.weight_record.counts.sum() == 5 * 64

    def test_saved_without_a_pickle_and_complete(self, name, weighting, folders, task):
        folder = folders / name / "policy"
        assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
        config = json.loads((folder / "config.json").read_text())
        assert config["teachers"] == ["a", "b", "c"]
        assert config["training"]["embedding_size"] == weighting.embedding_size == task.table.vectors.shape[1]
        assert config["training"]["settings"]["episodes"] == 2

    def test_other_teachers_are_refused(self, name, weighting, folders, task, cache):
        logits = list(cache.rows(torch.arange(len(cache))).numpy().transpose(1, 0, 2))
        for names in (["b", "a", "c"], ["x", "y", "z"]):
            with pytest.raises(WeightingError, match="tied to the teachers a, b, c, in this order"):
                build_weighting(spec_of(folders, name), task, LogitCache(logits, names))
        with pytest.raises(PolicyError, match="3 teachers and 6 classes"):
            weighting.weights(dataclasses.replace(state_of(task, cache), teacher_logits=torch.zeros(40, 2, 6)))

    def test_hostile_folders_are_refused(self, name, weighting, folders, task, cache, tmp_path):
        source, spec = folders / name / "policy", f"{SPECS[name]}:{tmp_path / 'copy'}"
        weights = load_file(source / "model.safetensors")
        key = next(iter(weights))

        def check(message, damage):
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            shutil.copytree(source, tmp_path / "copy")
            damage(tmp_path / "copy")
            with pytest.raises(PolicyError, match=message):
                build_weighting(spec, task, cache)

        def pickled(folder):
            (folder / "model.safetensors").unlink()
            (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))

        check("has no model.safetensors", pickled)
        check("none; save it again", lambda folder: (folder / "config.json").write_text("[]"))
        check("over 1 MB", lambda folder: (folder / "config.json").write_text(" " * 2_000_000))
        check("config.json has no ", lambda folder: (folder / "config.json").write_text("{}"))
        check("damaged", lambda folder: (folder / "model.safetensors").write_bytes(b"no"))
        broken = weights | {key: torch.full_like(weights[key], torch.nan)}
        check("NaN", lambda folder: save_file(broken, folder / "model.safetensors"))


def test_published_draws_change_over_the_run_and_repaired_choices_do_not(folders, task, cache):
    for name, same in (("published", False), ("repaired", True)):
        weighting = build_weighting(spec_of(folders, name), task, cache)
        early, late = (weighting.weights(dataclasses.replace(state_of(task, cache), progress=p)) for p in (0.1, 0.2))
        assert torch.equal(early, late) == same


# --- training runs -----------------------------------------------------------------------------------------------


class Interrupted(BaseCallback):
    def _on_step(self):
        return self.num_timesteps < 32 * 9  # the episode after the first


@pytest.mark.parametrize(
    ("train", "settings"),
    [
        (train_rl_kd, {"preset": "repaired", "baseline": "ema"}),
        (train_mtkd_rl, {"agent_objective": "policy_gradient", "n_steps": 2}),
    ],
)
def test_an_interrupted_run_is_continued_exactly(train, settings, task, cache, tmp_path):
    settings = SHORT | settings | {"episodes": 3, "seed": 5}
    whole = train(task, cache, output_dir=tmp_path / "whole", **settings)
    train(task, cache, output_dir=tmp_path / "broken", callback=Interrupted(), **settings)
    resumed = train(task, cache, output_dir=tmp_path / "broken", resume=True, **settings)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    metrics = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "broken")]
    assert metrics[0] == metrics[1]
    assert len(metrics[0].splitlines()) == 4
    with pytest.raises(OutputDirectoryError, match="seed = 5, got 6"):
        train(task, cache, output_dir=tmp_path / "broken", resume=True, **(settings | {"seed": 6}))


def test_training_leaves_nothing_to_the_global_generator(task, cache):
    policies = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        policies.append(train_mtkd_rl(task, cache, agent_objective="policy_gradient", n_steps=4, **SHORT))
    assert all(torch.equal(a, b) for a, b in zip(*(p.state_dict().values() for p in policies), strict=True))


@pytest.mark.parametrize(
    ("train", "settings", "error", "message"),
    [
        (train_rl_kd, {"preset": "repared"}, UnknownNameError, "'repaired'"),
        (train_rl_kd, {"basline": "ema"}, ConfigError, "'baseline'"),
        (train_rl_kd, {"baseline": "mean"}, UnknownNameError, "leave_one_out"),
        (train_rl_kd, {"empty_set": "none"}, UnknownNameError, "label_only"),
        (train_rl_kd, {"reward": "rl_kd_4"}, UnknownNameError, "rl_kd_3"),
        (train_rl_kd, {"initial_probability": 1.0}, ConfigError, "initial_probability"),
        (train_rl_kd, {"n_steps": 3}, ConfigError, "n_steps must divide the 8 steps"),
        (train_rl_kd, {"credit": "batch", "baseline": "leave_one_out"}, ConfigError, "n_steps >= 2"),
        (train_rl_kd, {"resume": True}, ConfigError, "output_dir"),
        (train_mtkd_rl, {"agent_objective": "reinforce"}, UnknownNameError, "policy_gradient"),
        (train_mtkd_rl, {"log_std": -1.0}, ConfigError, "log_std would be ignored"),
        (train_mtkd_rl, {"hiden_size": 3}, ConfigError, "'hidden_size'"),
    ],
)
def test_bad_settings_are_refused_by_name(train, settings, error, message, task, cache):
    with pytest.raises(error, match=message):
        train(task, cache, **(SHORT | settings))


def test_presets_are_the_switches_they_name():
    published = rl_kd_settings("published")
    assert (published.update, published.baseline, published.credit) == ("grad_pi", "none", "batch")
    assert rl_kd_settings("repaired") == RlKdSettings()
    assert rl_kd_settings("published", update="reinforce").update == "reinforce"
    assert set(PRESETS) == {"published", "repaired"}


# --- embeddings in the cache -------------------------------------------------------------------------------------


def embed(texts):
    return np.array([[len(text), text.count("a"), 1.0] for text in texts], dtype=np.float32)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    words = np.array(["alpha", "beta", "gamma", "delta"])
    table = Table(
        labels=np.arange(120) % 2,
        domains=np.zeros(120, dtype=np.int64),
        texts=tuple(f"{i} " + " ".join(rng.choice(words, 4)) for i in range(120)),
    )
    return split_task("words", table, ["a", "b"], seed=0)


def teachers_of(texts):
    logits = planted_logits(texts, 2)
    return [ArrayTeacher(f"t{k}", logits[:, k]) for k in range(2)]


def test_a_cache_keeps_embeddings_where_asked(texts, tmp_path):
    teachers = teachers_of(texts)
    plain = build_cache(teachers, texts, tmp_path / "plain", embedder=embed)
    assert plain.embedding_size == 0
    assert read_state(texts, plain, torch.arange(3)).embeddings is None
    built = build_cache(teachers, texts, tmp_path / "kept", embedder=embed, keep_embeddings=True)
    cache = load_cache(tmp_path / "kept", texts)
    assert isinstance(np.load(tmp_path / "kept" / "embeddings.npy", mmap_mode="r"), np.memmap)
    expected = torch.from_numpy(embed([texts.table.texts[i] for i in (5, 2)]))
    for source in (built, cache, cache.head(50)):
        assert torch.equal(read_state(texts, source, torch.tensor([5, 2])).embeddings, expected)
    with pytest.raises(CacheError, match="embeddings None, asked for was True"):
        build_cache(teachers, texts, tmp_path / "plain", embedder=embed, keep_embeddings=True)
    with pytest.raises(ConfigError, match="keep_embeddings needs an embedder"):
        build_cache(teachers, texts, tmp_path / "new", keep_embeddings=True)
    np.save(tmp_path / "kept" / "embeddings.npy", np.zeros((120, 3), dtype=np.float32))
    with pytest.raises(CacheError, match="damaged: embeddings"):
        load_cache(tmp_path / "kept", texts)


def test_a_state_leaves_the_embedding_out_where_there_is_none(texts, tmp_path):
    teachers = teachers_of(texts)
    plain = build_cache(teachers, texts, tmp_path / "plain")
    kept = build_cache(teachers, texts, tmp_path / "kept", embedder=embed, keep_embeddings=True)
    assert make_selector(texts, plain, RlKdSettings()).embedding_size == 0
    assert make_selector(texts, kept, RlKdSettings(embeddings=False)).embedding_size == 0
    selector = make_selector(texts, kept, RlKdSettings())
    assert selector.embedding_size == 3
    assert selector.training_record["embedding_size"] == 3
    assert make_mtkd_rl_agent(texts, kept, MtkdRlSettings()).embedding_size == 3
    with pytest.raises(WeightingError, match="keep_embeddings"):
        make_selector(texts, plain, RlKdSettings(embeddings=True))
    selector.save_pretrained(tmp_path / "policy")
    build_weighting(f"rl_kd:{tmp_path / 'policy'}", texts, kept)
    with pytest.raises(WeightingError, match="needs embeddings"):
        build_weighting(f"rl_kd:{tmp_path / 'policy'}", texts, plain)


@pytest.mark.parametrize("empty_set", ["argmax", "resample"])
@pytest.mark.parametrize("decision", ["sample", "mode"])
def test_a_selector_that_rejects_everybody_never_takes_an_absent_teacher(empty_set, decision):
    selector = RlKdSelector("abc", 4, empty_set=empty_set, decision=decision)
    torch.nn.init.zeros_(selector.weight)
    selector.weight.data[:, 0, 0] = -60.0  # below what an absent teacher is given
    state = State(
        teacher_logits=torch.randn((50, 3, 4), generator=torch.Generator().manual_seed(9)),
        teacher_mask=torch.tensor([[False, True, True]]).expand(50, 3),
        labels=torch.zeros(50, dtype=torch.long),
        ids=torch.arange(50),
    )
    weights = selector.weights(state)
    assert (weights[:, 0] == 0).all()
    assert torch.allclose(weights.sum(-1), torch.ones(50))
    assert F.one_hot(weights.argmax(-1), 3).equal(weights.long())
