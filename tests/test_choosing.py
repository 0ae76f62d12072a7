"""What `auto` does with labels: the prior stays unless something is surely better, or it surely harms."""

import json
from pathlib import Path

import pytest
import torch

from rlkd.choosing import EQUAL, PRIOR, check_choice, choose, chosen_policy, reason_of, trial_settings
from rlkd.data.planted import PlantedSettings, planted_case
from rlkd.data.subset import keep_labels
from rlkd.errors import WeightingError
from rlkd.features import FEATURE_VERSION, USUAL_LEAD, ObservationConfig
from rlkd.logit_cache import LogitCache
from rlkd.records import file_hash
from rlkd.settings import StudentSettings
from rlkd.types import State
from rlkd.weighting import WeightingSpec, build_weighting, load_policy
from rlkd.weighting.policy_files import SHIPPED

ROOT = Path(__file__).parents[1]
SETTINGS = StudentSettings(student="rlkd/mlp", max_steps=90, batch_size=64, device="cpu")


@pytest.fixture(scope="module")
def specialists():
    case = planted_case(PlantedSettings(num_rows=1600, sharpness=6))
    return case.task, LogitCache(list(case.logits.transpose(1, 0, 2)), ["a", "b", "c"], identity="planted")


@pytest.fixture(scope="module")
def router(specialists):
    return build_weighting("router", *specialists).policy


def backwards(policy):
    """Trusts most whom the policy trusts least: it harms."""
    wrong = policy.with_record()
    with torch.no_grad():
        wrong.score[-1].weight.neg_()
        wrong.score[-1].bias.neg_()
    return wrong


def test_the_prior_is_left_for_what_is_surely_better(specialists, router):
    choice = choose(*specialists, {PRIOR: backwards(router), "router": router}, SETTINGS)
    assert choice.name == "router"
    assert choice.losses["router"] < choice.losses[PRIOR]
    assert "`router` is used" in choice.why
    assert "which is sure" in choice.why


def test_a_prior_that_surely_harms_gives_way_to_equal_weights(specialists, router):
    choice = choose(*specialists, {PRIOR: backwards(router)}, SETTINGS)
    assert choice.name == EQUAL
    assert choice.policy.strength == 0


def test_few_labels_cannot_tell_and_the_prior_stays(specialists, router):
    task, cache = specialists
    few = keep_labels(task, 30, seed=0)
    harmful = backwards(router)
    none = choose(few, cache, {PRIOR: harmful}, SETTINGS)  # few rows of validation
    assert (none.name, none.students) == (PRIOR, 0)
    assert "6 labelled validation rows cannot tell" in none.why
    assert choose(task, cache, {PRIOR: router}, SETTINGS, students=0).students == 0
    alike = choose(task, cache, {PRIOR: router, "again": router.with_record()}, SETTINGS, students=2)
    assert alike.name == PRIOR


def test_what_was_chosen_is_made_once_and_says_why(specialists, tmp_path):
    task, cache = specialists
    place = chosen_policy(tmp_path, task, cache, SETTINGS, students=2)
    stamp = (place / "config.json").stat().st_mtime_ns
    policy = load_policy(place)
    assert reason_of(policy) == policy.training_record["chosen"]["why"]
    assert set(policy.training_record["chosen"]["losses"]) == {PRIOR, "router", EQUAL}
    assert chosen_policy(tmp_path, task, cache, SETTINGS, students=2) == place
    assert (place / "config.json").stat().st_mtime_ns == stamp
    assert json.loads((place / "config.json").read_text())["training"]["chosen"]["students"] >= 6


def test_a_policy_that_was_trained_here_is_tried_too(specialists, router, tmp_path):
    task, cache = specialists
    router.save_pretrained(tmp_path / "trained")
    place = chosen_policy(tmp_path, task, cache, SETTINGS, trained=str(tmp_path / "trained"), students=2)
    assert set(load_policy(place).training_record["chosen"]["losses"]) == {PRIOR, "router", "policy", EQUAL}
    assert chosen_policy(tmp_path, task, cache, SETTINGS, students=2) != place
    named = WeightingSpec.parse(f"auto:{tmp_path / 'trained'}")
    assert named.short_name([named]) == "auto"
    with pytest.raises(WeightingError, match="would be ignored without trial students; ask for some"):
        check_choice(named, 0)
    with pytest.raises(WeightingError, match="by trial students, which `distill` and `compare` do; take policy:"):
        build_weighting(named, task, cache)


def test_a_pretrained_student_is_stood_in_for_by_a_small_one(specialists):
    task, _ = specialists
    asked = StudentSettings(student="some/encoder", num_layers=2, max_steps=1000, batch_size=8, device="cpu")
    small = trial_settings(asked, task)
    assert (small.student, small.max_steps, small.batch_size, small.num_layers) == ("rlkd/mlp", 120, 8, None)
    assert small.learning_rate != asked.learning_rate
    assert trial_settings(SETTINGS, task) == SETTINGS


def test_the_shipped_policy_is_the_one_that_was_recorded():
    """Made again it has the same bytes: `python benchmarks/make_policy.py`, which writes policy, card and record."""
    record = json.loads((ROOT / "benchmarks" / "policy.json").read_text(encoding="utf-8"))
    assert {name: file_hash(SHIPPED / name) for name in record["files"]} == record["files"]
    assert sum((SHIPPED / name).stat().st_size for name in record["files"]) == record["bytes"]
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 1_000_000
    config = json.loads((SHIPPED / "config.json").read_text(encoding="utf-8"))
    assert config["feature_version"] == FEATURE_VERSION
    assert tuple(config["feature_names"]) == ObservationConfig(relative=True).feature_names
    assert config["training"]["task"] == [task["task"] for task in record["seen"]]
    assert record["environment"]["commit"]


def test_the_shipped_policy_trusts_who_is_sure_where_others_are_not():
    """A golden value: it changes with the file, the observation or the network alone."""
    logits = torch.tensor([[[6.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0]], [[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]])
    weights = load_policy("auto").weights(State(teacher_logits=logits, sureness=torch.full((2,), USUAL_LEAD)))
    record = json.loads((ROOT / "benchmarks" / "policy.json").read_text(encoding="utf-8"))
    torch.testing.assert_close(weights, torch.tensor(record["golden"]), rtol=0, atol=1e-4)
    assert weights[0, 0] > 0.9
    torch.testing.assert_close(weights[1], torch.tensor([0.5, 0.5]))
