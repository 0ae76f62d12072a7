"""Agents that are not ours learn on the environment, and the trainer takes what they learned."""

import sys
from pathlib import Path

import pytest

import rlkd
from rlkd.weighting.fixed import Uniform

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "agents"))  # scripts, of no package

import cleanrl_ppo
from measure_agents import planted_teachers, regret, student_accuracy

pytestmark = pytest.mark.slow
UPDATE = 30 * 64
"""Instances that are weighted between two updates."""


@pytest.fixture(scope="module")
def teachers():
    return planted_teachers("class-3", seed=0)


def by_hand(teachers, updates, folder):
    args = cleanrl_ppo.Args(total_timesteps=updates * UPDATE)
    cleanrl_ppo.train(*teachers, args).save_pretrained(folder)
    return rlkd.load_weighting(folder)


def by_skrl(teachers, updates, folder):
    pytest.importorskip("skrl", reason="the example needs skrl, which rlkd does not")
    import skrl_ppo

    return skrl_ppo.train(*teachers, total_timesteps=updates * UPDATE)


@pytest.mark.parametrize("train", [by_hand, by_skrl])
def test_an_agent_of_ones_own_finds_the_right_teachers(train, teachers, tmp_path):
    equal = regret(Uniform(), *teachers)
    barely, well = (regret(train(teachers, updates, tmp_path / str(updates)), *teachers) for updates in (2, 12))
    assert well < 0.05 * equal < barely < equal


@pytest.mark.parametrize("train", [by_hand, by_skrl])
def test_a_trainer_takes_what_it_learned(train, teachers, tmp_path):
    assert student_accuracy(train(teachers, 2, tmp_path), *teachers, seed=0) > 0.8
