"""Agents that learn a weighting; the only package that imports Stable-Baselines3."""

from rlkd.agents.prepared import ENV_ID, prepare_training
from rlkd.agents.run import ALGORITHMS
from rlkd.agents.training import train_policy
from rlkd.settings import PolicyTraining

__all__ = ["ALGORITHMS", "ENV_ID", "PolicyTraining", "prepare_training", "train_policy"]
