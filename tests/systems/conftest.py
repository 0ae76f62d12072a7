"""Tests of a system go with it: where its folder is not there, they are not looked at."""

from rlkd.plugins import systems

NEEDED = {
    "test_frozen.py": {"meta_kd", "mkd", "rl_kd", "mtkd_rl"},
    "test_meta_kd.py": {"meta_kd"},
    "test_mkd.py": {"mkd"},
    "test_published_policies.py": {"rl_kd", "mtkd_rl"},
    "test_reinforce.py": {"rl_kd", "mtkd_rl"},
}
collect_ignore = [name for name, needed in NEEDED.items() if not needed <= set(systems())]
