"""Meta-KD (Pan et al. 2021, arXiv:2012.01266): a meta-teacher of many domains, and a small student for each."""

from collections.abc import Mapping

REGISTERED: Mapping[str, Mapping[str, str]] = {
    "weightings": {"meta_kd": "rlkd.systems.meta_kd.weighting:MetaKd"},
    "suites": {"meta_kd": "rlkd.systems.meta_kd.suite:MetaKdSystem"},
    "commands": {"meta-kd": "rlkd.systems.meta_kd.command:meta_kd"},
}
