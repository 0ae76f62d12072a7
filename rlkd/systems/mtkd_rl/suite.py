"""MTKD-RL in suites: a kind of policy."""

from rlkd.benchmark.policies import SystemPolicy
from rlkd.systems.mtkd_rl.training import mtkd_rl_settings, train_mtkd_rl

POLICY = SystemPolicy(weighting="mtkd_rl", training=train_mtkd_rl, settings=mtkd_rl_settings)
