import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rlkd.data.planted import planted_logits
from rlkd.data.task import UNLABELLED
from rlkd.errors import PolicyError, UnknownNameError, WeightingError
from rlkd.features import FEATURE_VERSION, ObservationConfig
from rlkd.logit_cache import LogitCache, read_state
from rlkd.settings import StudentSettings
from rlkd.trainer import make_trainer
from rlkd.types import Knowledge
from rlkd.weighting import Policy, build_weighting, load_weighting, weighting_names

ARGUMENTS = {"fixed": "0.5,0.3,0.2", "policy": "{folder}", "policy_mean": "{folder}", "policy_shuffle": "{folder}"}
TOLD = ("fixed", "oracle", "random_teacher")
"""Weightings that are told, or draw, whom to prefer: identical teachers do not make them equal."""
POSITIONAL = ("fixed", "random_teacher", "best_teacher", "lr_train", "lr_dev", "oracle", "policy_mean")
"""Weightings that remember which teacher is which: they are built anew for teachers in another order."""
TIED = ("rl_kd", "mtkd_rl")
"""Tied to their teachers and classes: tests of the systems hold them to the contract, as far as it applies to them."""
UNTIED = [name for name in weighting_names() if name not in (*TIED, "labels", "gate")]
"""All but those, the one that weights no teacher where there is a label, and the one that reads no classes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("policy")
    Policy.create(ObservationConfig(), training={"reward": "none", "task": "planted"}, seed=3).save_pretrained(path)
    return path


def spec_of(name, folder, argument=None):
    argument = argument or ARGUMENTS.get(name)
    return name if argument is None else f"{name}:{argument.format(folder=folder)}"


class Built(dict):
    """Weightings by name, built when they are asked for."""

    def __init__(self, build):
        self.build = build

    def __missing__(self, name):
        return self.setdefault(name, self.build(name))


@pytest.fixture(scope="module")
def built(task, cache, folder):
    return Built(lambda name: build_weighting(spec_of(name, folder), task, cache))


def with_student(state):
    """The state with the logits of some student."""
    logits = torch.randn(len(state.ids), state.teacher_logits.shape[-1], generator=torch.Generator().manual_seed(7))
    return dataclasses.replace(state, student_logits=logits)


def state_of(task, cache, rows=40):
    return with_student(read_state(task, cache, torch.arange(rows) * 7))


def picked(state, rows):
    tensors = {name: getattr(state, name) for name in state.available()}
    return dataclasses.replace(state, **{name: value[rows] for name, value in tensors.items()})


def with_teachers(cache, order, knowledge=True):
    matrix = cache.knowledge.matrix[order]
    arrays = [cache.rows(torch.arange(len(cache)))[:, k].numpy() for k in order]
    known = dataclasses.replace(cache.knowledge, matrix=matrix) if knowledge else None
    return LogitCache(arrays, [cache.teacher_names[k] for k in order], knowledge=known)


def assert_simplex(weights, shape):
    assert weights.shape == shape
    assert weights.dtype == torch.float32
    assert not weights.requires_grad
    assert (weights >= 0).all()
    assert torch.allclose(weights.sum(-1), torch.ones(shape[:-1]), atol=1e-6)


@pytest.mark.parametrize("name", UNTIED)
class TestContract:
    def test_rows_are_weights(self, name, built, task, cache):
        state = state_of(task, cache)
        followed = dataclasses.replace(state, teacher_logits=state.teacher_logits.clone().requires_grad_())
        assert_simplex(built[name].weights(followed), (40, 3))

    def test_absent_teachers_get_nothing(self, name, built, task, cache):
        state = state_of(task, cache)
        mask = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) < 0.5
        mask[torch.arange(40), torch.arange(40) % 3] = True
        weights = built[name].weights(dataclasses.replace(state, teacher_mask=mask))
        assert_simplex(weights, (40, 3))
        assert (weights[~mask] == 0).all()

    def test_instances_in_another_order_give_rows_in_that_order(self, name, built, task, cache):
        state = state_of(task, cache)
        order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
        weights = built[name].weights(state)
        assert torch.allclose(built[name].weights(picked(state, order)), weights[order], atol=1e-6)

    def test_teachers_in_another_order_give_columns_in_that_order(self, name, built, task, cache, folder):
        order = [2, 0, 1]
        moved = with_teachers(cache, order)
        weighting = built[name]
        if name in POSITIONAL:
            weighting = build_weighting(spec_of(name, folder, "0.2,0.5,0.3" if name == "fixed" else None), task, moved)
        weights = built[name].weights(state_of(task, cache))
        assert torch.allclose(weighting.weights(state_of(task, moved)), weights[:, order], atol=1e-6)

    def test_leading_axes_are_free(self, name, built, task, cache):
        state = state_of(task, cache)
        tensors = {field: getattr(state, field) for field in state.available()}
        stacked = dataclasses.replace(state, **{field: t.unflatten(0, (8, 5)) for field, t in tensors.items()})
        assert torch.allclose(built[name].weights(stacked).flatten(0, 1), built[name].weights(state), atol=1e-6)

    def test_a_single_teacher_gets_everything(self, name, task, cache, folder):
        alone = with_teachers(cache, [1])
        weighting = build_weighting(spec_of(name, folder, "0.4" if name == "fixed" else None), task, alone)
        assert torch.equal(weighting.weights(state_of(task, alone)), torch.ones(40, 1))

    def test_a_student_is_distilled_with_it(self, name, built, task, cache, tmp_path):
        settings = StudentSettings(student="rlkd/mlp", max_steps=2, batch_size=32)
        trainer = make_trainer(task, cache, built[name], settings, tmp_path)
        trainer.train()
        assert trainer.state.global_step == 2
        assert trainer.weight_record.sums.sum() == pytest.approx(64, rel=1e-5)

    def test_extreme_half_precision_logits(self, name, built, task, cache):
        state = state_of(task, cache)
        signs = torch.where(state.teacher_logits > 0.5, 1e4, -1e4).half()
        signs[0], signs[1, 0], signs[2, :, :2] = torch.inf, -torch.inf, torch.tensor([torch.inf, -torch.inf])
        assert_simplex(built[name].weights(dataclasses.replace(state, teacher_logits=signs)), (40, 3))


@pytest.mark.parametrize("name", sorted(set(UNTIED) - set(TOLD)))
def test_identical_teachers_get_equal_weights(name, task, folder):
    same = LogitCache(list(planted_logits(task, mode="identical").transpose(1, 0, 2)), ["a", "b", "c"])
    weights = build_weighting(spec_of(name, folder), task, same).weights(state_of(task, same))
    assert torch.allclose(weights, torch.full((40, 3), 1 / 3), atol=1e-6)


def test_labels_alone_are_taught_where_there_are_some(task, cache, tmp_path):
    state = state_of(task, cache)
    some = dataclasses.replace(state, labels=torch.where(torch.arange(40) % 2 == 0, state.labels, UNLABELLED))
    weights = build_weighting("labels", task, cache).weights(some)
    assert torch.equal(weights, torch.tensor([[0.0] * 3, [1 / 3] * 3]).repeat(20, 1))
    settings = StudentSettings(student="rlkd/mlp", max_steps=3, batch_size=32)
    trainer = make_trainer(task, cache, build_weighting("labels", task, cache), settings, tmp_path)
    trainer.train()
    assert np.isfinite(trainer.predict_split("test")).all()


def test_what_each_weighting_prefers(built, task, cache):
    """Teacher k knows domain k: mass on the knowing teacher, per weighting, in the order one expects."""
    state = with_student(read_state(task, cache, torch.from_numpy(task.splits["test"])))
    mass = Built(lambda name: built[name].weights(state).gather(1, state.domains[:, None]).mean().item())
    assert mass["oracle"] == 1
    assert mass["uniform"] == pytest.approx(1 / 3)
    knowing = build_weighting("router:knows", task, cache).weights(state)
    assert knowing.gather(1, state.domains[:, None]).mean() > 0.9 > mass["router"] > 0.78
    assert mass["router"] > mass["cross_entropy"] > mass["entropy"] > 0.45
    assert mass["best_per_instance"] > mass["cross_entropy"] > mass["mt_bert"] > mass["ca_mkd"] > 0.4
    assert mass["entropy"] > mass["max_probability"] > mass["ebkd"] > 0.4  # ebkd can exclude, not select
    right = (
        cache.rows(torch.from_numpy(task.splits["validation"])).argmax(-1).numpy() == task.labels("validation")[:, None]
    ).mean(0)
    assert built["best_teacher"].weights(state)[0].argmax() == right.argmax()


def test_shuffling_keeps_the_weights_and_moves_them(built, task, cache):
    state = state_of(task, cache)
    policy, shuffled = (built[name].weights(state) for name in ("policy", "policy_shuffle"))
    assert not torch.allclose(policy, shuffled, atol=1e-3)
    rows = [sorted(map(tuple, weights.tolist())) for weights in (policy, shuffled)]
    assert np.allclose(*rows)
    everywhere = read_state(task, cache, torch.from_numpy(task.splits["train"]))
    assert torch.allclose(
        built["policy_mean"].weights(state)[0], built["policy"].weights(everywhere).mean(0), atol=1e-6
    )


def without_labels(task, *splits):
    labels = task.table.labels.copy()
    for split in splits:
        labels[task.splits[split]] = UNLABELLED
    return dataclasses.replace(task, table=dataclasses.replace(task.table, labels=labels))


@pytest.mark.parametrize(
    ("name", "splits", "missing"),
    [
        ("cross_entropy", ["train"], "labels"),
        ("best_teacher", ["validation"], "validation"),
        ("router", ["train", "probe"], "labelled"),
        ("lr_train", ["train", "probe"], "train or probe"),
        ("lr_dev", ["validation"], "validation"),
        ("calibrated_uniform", ["validation"], "validation"),
    ],
)
def test_missing_labels_are_named(name, splits, missing, task, cache):
    with pytest.raises(WeightingError, match=f"{name}.*{missing}"):
        build_weighting(name, without_labels(task, *splits), cache)


OF_SYSTEMS = tuple(name for name in ("meta_kd",) if name in weighting_names())
FORMULAS_WITH_LABELS = ("cross_entropy", "ca_mkd", "mt_bert", "mt_bert_raw", "best_per_instance", *OF_SYSTEMS)


@pytest.mark.parametrize("name", [*FORMULAS_WITH_LABELS, "hedge"])
def test_rows_without_labels_are_weighted_as_documented(name, built, task, cache):
    state = state_of(task, cache)
    labels = state.labels.clone()
    labels[::2] = UNLABELLED
    mask = torch.ones(40, 3, dtype=torch.bool)
    mask[:4, 1] = False
    weights = built[name].weights(dataclasses.replace(state, labels=labels, teacher_mask=mask))
    assert torch.allclose(weights[::2], mask[::2] / mask[::2].sum(-1, keepdim=True))
    assert torch.allclose(weights[5::2], built[name].weights(state)[5::2])


def test_partly_labelled_data_need_a_weighting_that_says_what_it_does(task, cache, tmp_path, caplog):
    """One warning line for those that do; the others are refused, as all are where no row has a label."""
    some = without_labels(task, "probe")
    some.table.labels[task.splits["train"][:50]] = UNLABELLED
    for name in (*FORMULAS_WITH_LABELS, "hedge"):
        caplog.clear()
        for _ in range(2):
            build_weighting(name, some, cache)
        rows = len(task.splits["train"])
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert f"50 of {rows} train rows have none; there it falls back to" in caplog.text
    Policy.create(ObservationConfig(labelled=True), training={}).save_pretrained(tmp_path)
    with pytest.raises(WeightingError, match=rf"labels \(50 of {rows} train rows have none\)"):
        build_weighting(f"policy:{tmp_path}", some, cache)


def test_label_free_weightings_need_no_labels(task, cache, folder, built):
    bare = without_labels(task, "train", "probe", "validation", "test")
    formulas = ("entropy", "ebkd", "max_probability", "agreement", "aekd_batch_mean", "aekd_flat", "govern")
    for name in ("policy", "policy_mean", "policy_shuffle", "random_teacher", *formulas):
        weighting = build_weighting(spec_of(name, folder), bare, cache)
        expected = built[name].weights(state_of(task, cache))
        assert torch.equal(weighting.weights(state_of(bare, cache)), expected)


def test_missing_domains_affinity_and_knowledge_are_named(task, cache, tmp_path):
    without_domains = dataclasses.replace(task, domain_names=())
    with pytest.raises(WeightingError, match=r"'oracle'.*domains"):
        build_weighting("oracle", without_domains, cache)
    Policy.create(ObservationConfig(affinity=True), training={}).save_pretrained(tmp_path / "policy")
    with pytest.raises(WeightingError, match="affinity"):
        build_weighting(f"policy:{tmp_path / 'policy'}", task, cache)
    with pytest.raises(WeightingError, match="router:reliability needs the teachers' reliability"):
        build_weighting("router:reliability", task, cache)
    with pytest.raises(WeightingError, match="'router' takes no argument but reliability, gain, knows, fixed"):
        build_weighting("router:best", task, cache)
    with pytest.raises(WeightingError, match=r"'oracle'.*trained on"):
        build_weighting("oracle", task, with_teachers(cache, [0, 1, 2], knowledge=False))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("entropi", UnknownNameError, "did you mean 'entropy'"),
        ("polcy:somewhere", WeightingError, "polcy"),
        ("uniform:3", WeightingError, "takes no argument"),
        ("fixed", WeightingError, "fixed:0.5,0.3,0.2"),
        ("fixed:1,2", WeightingError, "3 teachers, got 2"),
        ("fixed:1,x,2", WeightingError, "1,x,2"),
        ("fixed:1,-1,2", WeightingError, ">= 0"),
        ("fixed:0,0,0", WeightingError, "not all zero"),
        ("aekd_flat:0", WeightingError, r"aekd_flat needs a cap in \(0, 1\], got 0"),
        ("aekd_batch_mean:big", WeightingError, "takes a number, got 'big'"),
        ("max_probability:-1", WeightingError, "temperature > 0"),
        ("hedge:3", WeightingError, "takes no argument"),
        ("policy", WeightingError, "policy:runs/policy"),
        ("policy:no/such/folder", PolicyError, "no/such/folder"),
        ("json:loads", WeightingError, "build and weights"),
        ("json:Nothing", WeightingError, "Nothing"),
    ],
)
def test_bad_specifications(spec, error, message, task, cache):
    with pytest.raises(error, match=message):
        build_weighting(spec, task, cache)


def test_a_weighting_of_ones_own(task, cache, tmp_path, monkeypatch):
    (tmp_path / "mine_for_rlkd.py").write_text(
        "import torch\n"
        "class Last:\n"
        "    requires = frozenset()\n"
        "    @classmethod\n"
        "    def build(cls, argument, evidence):\n"
        "        assert 'test' not in evidence.task.splits\n"
        "        return cls()\n"
        "    def weights(self, state):\n"
        "        return torch.eye(3)[2].expand(state.present.shape)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    weighting = build_weighting("mine_for_rlkd:Last", task, cache)
    assert weighting.weights(state_of(task, cache))[:, 2].min() == 1


def test_the_policy_survives_saving(task, cache, tmp_path):
    observation = ObservationConfig(student=True, labelled=True)
    policy = Policy.create(observation, training={"reward": "logit_gain", "task": "planted"}, seed=5)
    policy.save_pretrained(tmp_path)
    loaded = load_weighting(tmp_path)
    state = dataclasses.replace(state_of(task, cache), student_logits=torch.randn(40, task.num_classes), progress=0.5)
    assert torch.equal(loaded.weights(state), policy.weights(state))
    assert loaded.requires == {"student_logits", "labels"}
    assert loaded.training_record == {"reward": "logit_gain", "task": "planted"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["feature_version"] == FEATURE_VERSION
    assert config["feature_names"] == list(observation.feature_names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def edit_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def edit_weights(folder, change):
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


DAMAGE = {
    "no config": lambda f: (f / "config.json").unlink(),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "a pickle beside no weights": lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
    "cut weights": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
    "a pickle by the right name": lambda f: (f / "model.safetensors").write_bytes(pickle.dumps(Bomb(f / "fired"))),
    "a torch file by the right name": lambda f: torch.save({"x": Bomb(f / "fired")}, f / "model.safetensors"),
    "another feature version": lambda f: edit_config(f, feature_version=FEATURE_VERSION + 1),
    "changed feature names": lambda f: edit_config(f, feature_names=["present", "max_probability"]),
    "feature names of another type": lambda f: edit_config(f, feature_names=5),
    "no feature version": lambda f: (f / "config.json").write_text("{}"),
    "an unknown observation": lambda f: edit_config(f, observation={"everything": True}),
    "an impossible width": lambda f: edit_config(f, hidden_size=10**9),
    "a width that the weights have not": lambda f: edit_config(f, hidden_size=32),
    "a missing tensor": lambda f: edit_weights(f, lambda w: dict(list(w.items())[1:])),
    "a tensor of another shape": lambda f: edit_weights(f, lambda w: {**w, "score.2.bias": torch.zeros(2)}),
    "NaN weights": lambda f: edit_weights(f, lambda w: {**w, "score.2.bias": torch.tensor([torch.nan])}),
    "deep JSON": lambda f: (f / "config.json").write_text("[" * 100_000 + "]" * 100_000),
    "a huge config": lambda f: (f / "config.json").write_text('{"feature_version": 1' + " " * 2_000_000 + "}"),
    "no text": lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_or_hostile_policies_are_refused(damage, folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "policy")
    DAMAGE[damage](copied)
    with pytest.raises(PolicyError) as caught:
        load_weighting(copied)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not (copied / "fired").exists()


def test_a_file_or_an_absent_name_is_no_policy(folder):
    for name in (folder / "config.json", "no-such-owner/no-such-policy", "../../etc/passwd", "a\0b"):
        with pytest.raises(PolicyError):
            load_weighting(name)


DEPLOYED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2:]:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import rlkd, torch
weights = rlkd.load_weighting(sys.argv[1]).weights(rlkd.State(teacher_logits=torch.eye(4).expand(2, 4, 4) * 3))
assert weights.shape == (2, 4) and torch.allclose(weights.sum(-1), torch.ones(2))
print("deployed")
"""


NOT_NEEDED = ("stable_baselines3", "gymnasium", "rlkd_envs", "transformers", "datasets", "sklearn", "pandas", "scipy")


def test_a_policy_is_deployed_with_torch_and_little_else(folder):
    command = [sys.executable, "-c", DEPLOYED, str(folder), *NOT_NEEDED]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.stdout == "deployed\n", run.stderr


def test_knowledge_of_classes(task, cache):
    """An oracle by class reads labels, and weights all knowing teachers alike."""
    matrix = np.zeros((3, task.num_classes), dtype=bool)
    matrix[0, :4], matrix[1, 2:], matrix[2, 5] = True, True, True
    arrays = [cache.rows(torch.arange(len(cache)))[:, k].numpy() for k in range(3)]
    known = LogitCache(arrays, ["a", "b", "c"], knowledge=Knowledge(by="class", groups=task.label_names, matrix=matrix))
    oracle = build_weighting("oracle", task, known)
    assert oracle.requires == {"labels"}
    weights = oracle.weights(dataclasses.replace(state_of(task, known, 3), labels=torch.tensor([0, 3, -1])))
    assert torch.allclose(weights, torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]]))
