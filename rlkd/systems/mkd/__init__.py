"""MKD (Liu et al. 2019, arXiv:1911.03588): many tasks distilled jointly into one student of any architecture."""

from collections.abc import Mapping

REGISTERED: Mapping[str, Mapping[str, str]] = {
    "suites": {"mkd": "rlkd.systems.mkd.suite:MkdSystem"},
    "commands": {"mkd": "rlkd.systems.mkd.command:mkd"},
}
