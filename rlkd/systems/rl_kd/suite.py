"""RL-KD in suites: a kind of policy."""

from rlkd.benchmark.policies import SystemPolicy
from rlkd.systems.rl_kd.training import rl_kd_settings, train_rl_kd

POLICY = SystemPolicy(weighting="rl_kd", training=train_rl_kd, settings=rl_kd_settings)
