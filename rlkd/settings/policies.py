"""A policy's training: its agent, what it observes, and the students that it weights teachers for."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from rlkd.errors import ConfigError
from rlkd.settings.knobs import SHARE, Range, Settings, above, at_least, knob, like, names_of
from rlkd.settings.students import (
    BY_KIND,
    LossSettings,
    Mix,
    StepSettings,
    StudentSettings,
    check_loss_settings,
    common_rate,
    is_pretrained,
)

PROXY, PROXY_AUTO, PROXY_NONE = "rlkd/bilstm", "auto", "itself"
REFINING = {"total_timesteps": 23_040, "agent_learning_rate": 1e-3, "log_std": -1.6}
"""A warm start is refined, not explored away: three episodes of 120 steps of 64, in smaller steps and with less noise
than from nothing."""
FROM_NOTHING = {"total_timesteps": 46_080, "agent_learning_rate": 2e-3, "log_std": -0.7}
"""Of a policy that has everything to find out: six episodes."""


def _by_start(name: str) -> str:
    return f"by default {REFINING[name]:,}, or {FROM_NOTHING[name]:,} without a warm start"


def proxy_of(student: Any, proxy: str) -> str | None:
    """Name of the student that stands in for another in a policy's training; None: it stands for itself.

    Args:
        student: Name or path of the other one, or something without a name.
        proxy: ``auto``, ``itself``, or a name.
    """
    if proxy == PROXY_AUTO:
        return PROXY if isinstance(student, str) and is_pretrained(student) else None
    return None if proxy in (PROXY_NONE, student) else proxy


@dataclass(frozen=True, kw_only=True)
class PolicyTraining(Settings):
    """How a policy is trained."""

    YOUNGER: ClassVar = frozenset({"strength_students"})

    total_timesteps: int = knob(
        None,  # a number once the settings are made
        f"Instances that the policy weights while it is trained, over all episodes; {_by_start('total_timesteps')}.",
        at_least(1),
    )
    algorithm: str = knob("ppo", "Learning algorithm of the policy: ppo or a2c.", choices=("ppo", "a2c"))
    n_steps: int = knob(30, "Student steps of a rollout; they must divide the horizon.", at_least(2))
    gamma: float = knob(
        0.0, "Discount of later rewards. 0: an instance's reward is its own, the next has nothing to do with it.", SHARE
    )
    agent_learning_rate: float = knob(  # likewise
        None, f"Learning rate of the policy and its critic; {_by_start('agent_learning_rate')}.", above(0)
    )
    log_std: float = knob(  # likewise
        None, f"Initial log standard deviation of the actions; {_by_start('log_std')}."
    )
    warm_start: bool = knob(True, "Clone the supervised router first, and learn from there.")
    warm_start_rows: int | None = knob(
        None, "Labelled rows that the warm start uses at most; by default all.", at_least(1)
    )
    trials: int = knob(
        2,
        "Students, at least so many and as many of every task, by whose validation loss it is decided whether the "
        "policy is kept that training started from or the one that it ended with, beside as many with equal weights. "
        "Each takes the steps of an episode: by default these are 6, and the training itself has 3 episodes.",
        at_least(1),
    )
    strength_students: int = knob(
        8,
        "Students at most, of equal weights and of each strength that is tried (1, 0.5, 0.25), by which a policy is "
        "weakened that harms: more than those of trials only where students learn less from it. 0: it acts at full "
        "strength, is not compared with equal weights, and a third of the trial students is saved.",
        at_least(0),
    )
    refined_trials: bool = knob(
        False,
        "Refit the temperature of trial students before they are compared: by how well they tell classes apart, not by "
        "how sure they are.",
    )
    seed: int = knob(0, "Seed of everything random in the run.")

    def __post_init__(self) -> None:
        """Put in what is left to us, and check names and ranges."""
        for name, value in (REFINING if self.warm_start else FROM_NOTHING).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        super().__post_init__()
        if self.warm_start_rows is not None and not self.warm_start:
            raise ConfigError("warm_start_rows would be ignored without warm_start; switch it on or leave the rows out")


@dataclass(frozen=True, kw_only=True)
class ObservationSettings(Settings):
    """Which groups of features a policy observes, see :class:`rlkd.features.ObservationConfig`."""

    student: bool = knob(
        False,
        "Observe the student and the progress; without them a policy is portable between runs, students and ages.",
        flag="observe_student",
    )
    affinity: bool = knob(
        False,
        "Observe the affinity of instance and teacher; the cache must have been built with an embedder.",
        flag="observe_affinity",
    )
    reliability: bool = knob(
        False,
        "Observe how good and how overconfident each teacher is on the labelled validation rows.",
        flag="observe_reliability",
    )
    relative: bool = knob(
        False,
        "Observe how sure each teacher is for one that is usually as sure as it is, so that scales of logits do not "
        "matter; needs a cache.",
        flag="observe_relative",
    )
    labelled: bool = knob(
        False, "Observe the teacher's probability of the label; deployment needs labels then.", flag="observe_labels"
    )


@dataclass(frozen=True, kw_only=True)
class EpisodeSettings(StepSettings):
    """How the student of an episode is trained; ``batch_size`` is the number of slots of the vector face."""

    YOUNGER: ClassVar = frozenset({"divergence", "mix", "num_layers"})

    horizon: int = knob(120, "Steps of the student in an episode.", at_least(2))
    teacher_dropout: float = knob(
        0.0,
        "Chance that a teacher is absent for an instance, so that policies meet sets of every size.",
        Range(0, 1, open_high=True),
    )
    teacher_copies: int = knob(
        0,
        "Further places at most in an instance's set of teachers, held by copies of some: for policies that travel.",
        at_least(0),
    )
    probe_size: int = knob(64, "Probe rows drawn each step, for the rewards that read them.", at_least(1), hidden=True)
    mix: Mix = like(LossSettings, "mix")
    num_layers: int | None = like(StudentSettings, "num_layers")

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        check_loss_settings(self.temperature, self.kd_ratio, self.mix, self.divergence)


@dataclass(frozen=True, kw_only=True)
class PolicyStudents(EpisodeSettings):
    """The students of a policy's training as the command line and :func:`rlkd.agents.train_policy` have them.

    They learn at the rate of their own kind, and with copies of teachers: the policy is to serve on other sets too.
    """

    student: tuple[str, ...] = like(
        StudentSettings,
        "student",
        default=(),
        help="Student, repeatable, one for all tasks or one a task in the same order: rlkd/tiny, rlkd/bilstm, "
        "rlkd/mlp, a hub id or a path; by default rlkd/tiny for texts, rlkd/mlp for vectors, rlkd/cnn for images.",
    )
    learning_rate: float = knob(  # a number once the settings are made
        None, f"Learning rate of the student; {BY_KIND}.", at_least(0)
    )
    teacher_copies: int = like(EpisodeSettings, "teacher_copies", default=2)
    device: str = like(StudentSettings, "device")
    proxy: str = knob(
        PROXY_AUTO,
        "Student that stands in for it while a policy is trained and chosen, at its own learning rate and with all of "
        f"its layers: {PROXY_AUTO} is {PROXY} for a pretrained one and none for one from scratch; {PROXY_NONE} is the "
        "student itself.",
    )
    reward: str = knob(
        "logit_gain", "Reward of the policy: logit_gain, student_gain, influence, refined_influence or probe_gain."
    )

    def __post_init__(self) -> None:
        """Put in what is left to us, and check ranges."""
        rate: Any = self.learning_rate
        if rate is None:
            object.__setattr__(self, "learning_rate", common_rate(self.student))
        super().__post_init__()

    def episode(self) -> dict[str, Any]:
        """The fields of :class:`EpisodeSettings` among them."""
        return {name: value for name, value in asdict(self).items() if name in names_of(EpisodeSettings)}
