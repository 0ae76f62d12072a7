"""Defaults that several doors share, command line and Python alike; light, because ``--help`` shows them."""

FROM_SCRATCH_RATE = 2e-3
"""Learning rate of a network that begins at random weights."""
FINE_TUNING_RATE = 5e-5
"""Of one that was pretrained: from the range in which encoders are fine-tuned (2e-5 to 5e-5 in Devlin et al. 2019,
arXiv:1810.04805, appendix A.3); at forty times that, what it had learned is lost in the first steps."""
SCRATCH_PREFIX = "rlkd/"
"""Names of students that begin at random weights start so."""

TOTAL_TIMESTEPS = 46_080
"""Instances that a policy weights while it is trained: six episodes of 120 steps of 64."""
WARM_START = True
"""A policy begins as a clone of the supervised router."""
TEACHER_COPIES = 2
"""Further places in a policy's sets of teachers: it is to serve on other teachers too."""
REFINING = {"agent_learning_rate": 1e-3, "log_std": -1.6}
"""A warm start is refined, not explored away: smaller steps and less noise than from nothing."""
FROM_NOTHING = {"agent_learning_rate": 2e-3, "log_std": -0.7}
"""Of a policy that has everything to find out."""


def student_rate(student: str) -> float:
    """Learning rate of a student that is given none, by its kind."""
    return FROM_SCRATCH_RATE if student.startswith(SCRATCH_PREFIX) else FINE_TUNING_RATE
