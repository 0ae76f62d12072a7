"""Published systems, composed from the parts: RL-KD and MTKD-RL, as published and repaired; MKD."""

from rlkd.systems.joint import MultiTaskTrainer
from rlkd.systems.mkd import Lessons, Phase, build_mkd_caches, train_mkd_teachers, train_model
from rlkd.systems.mtkd_rl import MtkdRlSettings, train_mtkd_rl
from rlkd.systems.rl_kd import PRESETS, RlKdSettings, train_rl_kd

__all__ = [
    "PRESETS",
    "Lessons",
    "MtkdRlSettings",
    "MultiTaskTrainer",
    "Phase",
    "RlKdSettings",
    "build_mkd_caches",
    "train_mkd_teachers",
    "train_model",
    "train_mtkd_rl",
    "train_rl_kd",
]
