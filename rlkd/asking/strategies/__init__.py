"""Strategies by name: which instances, and whom."""

from rlkd.asking.strategies.registry import STRATEGIES, build_strategy

__all__ = ["STRATEGIES", "build_strategy"]
