"""RL-KD (Yuan et al. 2021, arXiv:2012.06048): reinforced multi-teacher selection, as published and repaired."""

from collections.abc import Mapping

REGISTERED: Mapping[str, Mapping[str, str]] = {
    "weightings": {"rl_kd": "rlkd.systems.rl_kd.weighting:RlKdSelector"},
    "policies": {"rl_kd": "rlkd.systems.rl_kd.suite:POLICY"},
}
