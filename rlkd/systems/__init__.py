"""Published systems, composed from the parts: RL-KD and MTKD-RL, as published and repaired."""

from rlkd.systems.mtkd_rl import MtkdRlSettings, train_mtkd_rl
from rlkd.systems.rl_kd import PRESETS, RlKdSettings, train_rl_kd

__all__ = ["PRESETS", "MtkdRlSettings", "RlKdSettings", "train_mtkd_rl", "train_rl_kd"]
