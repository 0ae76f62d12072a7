"""Settings of asking policies: the episodes that they are trained in, and how."""

from dataclasses import asdict, dataclass
from typing import Any

from rlkd.errors import ConfigError
from rlkd.settings.commands import CacheReader, ResumableCommand
from rlkd.settings.knobs import SHARE, Range, Settings, above, at_least, knob, like, names_of
from rlkd.settings.policies import PolicyTraining


@dataclass(frozen=True, kw_only=True)
class AskingEpisode(Settings):
    """What is drawn for an episode in which teachers are asked."""

    rows: int = knob(1600, "Instances of an episode at most, drawn from the train rows.", at_least(2))
    places: int = knob(32, "Instances that are at hand at once.", at_least(1))
    least_teachers: int = knob(
        2, "Teachers of an episode at least: their number and order are drawn, up to all of a task.", at_least(1)
    )
    dearest: float = knob(
        10.0,
        "Price of the dearest teacher at most, for one of the cheapest: in half of the episodes prices are drawn.",
        at_least(1),
    )
    least_budget: float = knob(
        0.08,
        "Smallest budget, as a share of what it costs to ask everybody about everything.",
        Range(0, 1, open_low=True),
    )
    largest_budget: float = knob(0.7, "Largest budget, likewise.", Range(0, 1, open_low=True))
    labelled_share: float = knob(0.4, "Share of episodes in which some labels are known.", SHARE)
    most_labels: int = knob(100, "Rows with a known label at most, where there are any.", at_least(1))
    price_weight: float = knob(
        0.05,
        "What is taken off for a price, for each time that it is what the budget holds for an instance.",
        at_least(0),
    )
    final_weight: float = knob(
        1.0, "What the end pays, where the student lost as much less as if everybody had been asked.", at_least(0)
    )

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.least_budget > self.largest_budget:
            raise ConfigError(
                f"least_budget must be at most largest_budget, got {self.least_budget} and {self.largest_budget}; "
                "swap them"
            )


@dataclass(frozen=True, kw_only=True)
class AskerTraining(Settings):
    """How an asking policy is trained."""

    total_timesteps: int = knob(300_000, "Decisions of the policy while it is trained, over all episodes.", at_least(1))
    n_steps: int = knob(64, "Steps of a rollout.", at_least(2))
    gamma: float = knob(0.95, "Discount of later rewards: what is asked now tells whom to ask later.", SHARE)
    agent_learning_rate: float = knob(3e-4, "Learning rate of the policy and its critic.", above(0))
    entropy_weight: float = knob(0.003, "Weight of the entropy of its actions.", at_least(0))
    warm_start: bool = knob(True, "Clone a rule first, and learn from there.")
    warm_start_episodes: int = knob(12, "Episodes in which the rule is cloned.", at_least(1))
    trial_episodes: int = knob(
        16,
        "Episodes by which the policy that training started from is compared with the one it ended with.",
        at_least(1),
    )
    seed: int = like(PolicyTraining, "seed")


@dataclass(frozen=True, kw_only=True)
class TrainAskerCommand(ResumableCommand, AskingEpisode):
    """``rlkd train-asker``, beside the tasks and the training."""

    cache: tuple[str, ...] = like(
        CacheReader, "cache", help="Folder of the logit cache of a task, repeatable: one a task, in the same order."
    )

    def episode(self) -> AskingEpisode:
        """The fields of :class:`AskingEpisode` among them."""
        values: dict[str, Any] = asdict(self)
        return AskingEpisode(**{name: values[name] for name in names_of(AskingEpisode)})
