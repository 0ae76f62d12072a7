"""The asking policy that is in the wheel: the file that was recorded, what it does, and where it is named."""

import json
from pathlib import Path

import numpy as np
import torch

from rlkd.asking.observation import NUM_SHARED, NUM_TEACHER, OBSERVATION_VERSION, SHARED_FEATURES, TEACHER_FEATURES
from rlkd.asking.policy import SHIPPED, load_asker
from rlkd.asking.strategies import build_strategy
from rlkd.asking.strategies.auto import Auto
from rlkd.records import file_hash
from rlkd.weighting.policy_files import SHIPPED as SHIPPED_WEIGHTING

RECORD = json.loads((Path(__file__).parents[1] / "benchmarks" / "asker.json").read_text(encoding="utf-8"))


def test_the_shipped_asker_is_the_one_that_was_recorded():
    """Made again it has the same bytes: `python benchmarks/make_asker.py`, which writes policy, card and record."""
    assert {name: file_hash(SHIPPED / name) for name in RECORD["files"]} == RECORD["files"]
    assert sum((SHIPPED / name).stat().st_size for name in RECORD["files"]) == RECORD["bytes"]
    both = [path for folder in (SHIPPED, SHIPPED_WEIGHTING) for path in folder.iterdir()]
    assert sum(path.stat().st_size for path in both) < 1_000_000
    config = json.loads((SHIPPED / "config.json").read_text(encoding="utf-8"))
    assert config["observation_version"] == OBSERVATION_VERSION
    assert tuple(config["teacher_features"]) == TEACHER_FEATURES
    assert tuple(config["shared_features"]) == SHARED_FEATURES
    assert config["training"]["commit"] is None  # bytes must not depend on it: the record has it
    assert RECORD["environment"]["commit"]
    assert len(RECORD["seen"]) == len(config["training"]["task"])


def test_the_shipped_asker_says_what_it_said():
    """A golden value: it changes with the file or the network alone."""
    teachers = torch.from_numpy(np.linspace(0, 1, 2 * NUM_TEACHER, dtype=np.float32).reshape(1, 2, -1))
    teachers[..., 0] = 1
    with torch.no_grad():
        said = load_asker("auto")(teachers, torch.from_numpy(np.linspace(1, 0, NUM_SHARED, dtype=np.float32)[None]))
    torch.testing.assert_close(said[0], torch.tensor(RECORD["golden"]), rtol=0, atol=1e-4)


def test_auto_is_the_shipped_asker():
    strategy = build_strategy("auto")
    assert isinstance(strategy, Auto)
    there, loaded = strategy.asker.policy.state_dict(), load_asker(SHIPPED).state_dict()
    assert all(torch.equal(there[name], loaded[name]) for name in loaded)
