"""MTKD-RL (Yang et al. 2025, arXiv:2502.18510): an agent beside two heuristics, as released and with a policy."""

from collections.abc import Mapping

REGISTERED: Mapping[str, Mapping[str, str]] = {
    "weightings": {"mtkd_rl": "rlkd.systems.mtkd_rl.weighting:MtkdRlAgent"},
    "policies": {"mtkd_rl": "rlkd.systems.mtkd_rl.suite:POLICY"},
}
