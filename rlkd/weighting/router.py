"""The supervised router: the policy's network, trained with labels to name the right teachers, or what they gain."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlkd.devices import one_thread
from rlkd.errors import ConfigError, PolicyError, WeightingError, unknown_name
from rlkd.features import ObservationConfig, teacher_features
from rlkd.logit_cache import answered_ids, read_state
from rlkd.losses import teacher_cross_entropy
from rlkd.types import State
from rlkd.weighting.base import BaseWeighting, Evidence
from rlkd.weighting.gain import gain_actions, student_of_any_age, teacher_gains
from rlkd.weighting.heuristic import Oracle
from rlkd.weighting.learned import Policy, action_weights
from rlkd.weighting.simplex import normalised
from rlkd.weighting.teacher_sets import ROUTER_SETS, TeacherSets

ROUTER_STEPS = 3
"""Steps of a router's fit for every square root of its rows: few rows, learned by heart, mislead on others.

It is to be the strongest simple rival, not a straw man. With this many steps of Muon it is as good from 8,000 rows as
with twenty times as many of Adam, and better from 30."""
LEAST_STEPS = 60
SURE = 0.99
"""Probability of a label from which on a teacher is as right as can be. Teachers have seen the rows that routers learn
from; what they say of them beyond this is memory."""
ROUTER_DRAWS = 4
"""Sets of teachers that a router meets for every row, where they are drawn; they share the steps."""
STRENGTHS = tuple(step / 20 for step in range(1, 21))
"""How far a router may go, where that is fitted, see :func:`likeliest_strength`."""
Lesson = Literal["labels", "gain", "knows"]
LESSONS: tuple[str, ...] = get_args(Lesson)
"""What a router is taught: who is right by the labels (:func:`router_targets`), what each teacher gains a student
(:func:`~rlkd.weighting.gain.teacher_gains`), or what the oracle says, which is told what teachers were trained on."""
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From actions (B, K), targets (B, K) and present teachers (B, K), bool, to one loss an instance, shape (B,)."""
SETS: Mapping[str, TeacherSets] = {
    "drawn": ROUTER_SETS,
    "fixed": TeacherSets(),
    "copies": TeacherSets(copies=ROUTER_SETS.copies),
    "absent": TeacherSets(dropout=ROUTER_SETS.dropout),
    "sharpness": TeacherSets(sharpness=ROUTER_SETS.sharpness),
    "classes": TeacherSets(classes=ROUTER_SETS.classes),
}
"""Which sets of teachers a router meets: other ones beside its own, its own alone, or those that differ in one way."""


@dataclass(frozen=True, kw_only=True)
class RouterPlan:
    """How a router is fitted."""

    observation: ObservationConfig = field(default_factory=ObservationConfig)
    lesson: Lesson = "labels"
    sets: str = "drawn"
    """A key of ``SETS``."""
    rows: int | None = None
    """Labelled rows of a task at most; None: all. Range: >= 1."""
    fit_strength: bool = False
    """Go as far as what is taught gets likelier by it, not as far as the lesson says: for routers that travel."""

    def __post_init__(self) -> None:
        """Check names.

        Raises:
            UnknownNameError: There is no such lesson, or no such choice of sets.
            PolicyError: The observation has the student in it.
        """
        if self.lesson not in LESSONS:
            raise unknown_name("lesson of a router", self.lesson, LESSONS)
        if self.sets not in SETS:
            raise unknown_name("choice of a router's sets of teachers", self.sets, SETS)
        if self.lesson == "knows" and self.sets != "fixed":
            raise ConfigError(
                "what an oracle knows of drawn sets and merged classes is nowhere written, got sets "
                f"{self.sets!r}; set sets to 'fixed'"
            )
        if self.rows is not None and self.rows < 1:
            raise ConfigError(f"a router needs rows >= 1 to learn from, got {self.rows}; raise it, or leave it out")
        if self.observation.student:
            raise PolicyError(
                "a router needs a portable observation, got one with student features; leave observe_student off, or "
                "switch the warm start off"
            )

    def described(self) -> list[Any]:
        """Plain values that change with anything that changes the fit."""
        plan = [self.observation.to_dict(), self.lesson, asdict(SETS[self.sets]), self.rows]
        return [*plan, "fit_strength"] if self.fit_strength else plan


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """What a router learns from: N rows of a task, each with J places for teachers."""

    features: Tensor
    """Shape (N, J, F)."""
    targets: Tensor
    """Shape (N, J), see ``Lesson``."""
    said: Tensor
    """The probability that each teacher gives the label, 0 where there is none, shape (N, J)."""
    unseen: Tensor
    """Rows that no teacher was trained on, bool, shape (N,)."""

    @classmethod
    def together(cls, parts: Sequence[Self]) -> Self:
        """One after the other."""
        return cls(**{one.name: torch.cat([getattr(part, one.name) for part in parts]) for one in fields(cls)})

    def take(self, rows: Tensor, places: int) -> Self:
        """These rows, with this many places for teachers; those that are more are empty."""
        empty = places - self.targets.shape[1]
        return type(self)(
            features=F.pad(self.features[rows], (0, 0, 0, empty)),
            targets=F.pad(self.targets[rows], (0, empty)),
            said=F.pad(self.said[rows], (0, empty)),
            unseen=self.unseen[rows],
        )


def router_targets(state: State) -> Tensor:
    """What a router learns to say, shape (..., K), from labels alone: who is right, and how surely.

    In proportion to the odds that a teacher gives the label, cut at those of ``SURE``: it is no better to be surer.
    """
    assert state.labels is not None
    probability = torch.exp(-teacher_cross_entropy(state.teacher_logits, state.labels)).clamp(1e-6, SURE)
    return normalised(probability / (1 - probability), state.present)


def cost_of_shares(actions: Tensor, shares: Tensor, present: Tensor) -> Tensor:
    """Cross entropy of the weights of actions to shares on the simplex, in nats, shape (B,)."""
    return -(shares * action_weights(actions, present).clamp_min(1e-8).log()).sum(-1)


def squared_error(actions: Tensor, targets: Tensor, present: Tensor) -> Tensor:
    """Squared distance of actions to targets over the present teachers, both from their means, shape (B,).

    Weights are a softmax of actions: what all have in common says nothing.
    """
    count = present.sum(-1, keepdim=True)
    lead = torch.where(present, actions - (actions * present).sum(-1, keepdim=True) / count, 0.0)
    return (lead - targets).square().sum(-1)


def fit_router(
    policy: Policy,
    features: Tensor,
    targets: Tensor,
    *,
    batch_size: int = 512,
    seed: int = 0,
    loss: Loss = cost_of_shares,
) -> Policy:
    """Train a policy network with labels to name the right teachers; in place.

    Args:
        policy: The network.
        features: Shape (N, K, F).
        targets: Shape (N, K): rows on the simplex, or what else ``loss`` compares actions with.
        batch_size: Rows a step.
        seed: Of the order of rows.
        loss: By default targets are weights.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = max(LEAST_STEPS, round(ROUTER_STEPS * len(features) ** 0.5))
    optimizers = _optimizers(policy)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) for optimizer in optimizers]
    present = features[..., 0] > 0
    with one_thread(), torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(features), (min(batch_size, len(features)),), generator=generator)
            mean = loss(policy(features[rows]), targets[rows], present[rows]).mean()
            policy.zero_grad()
            mean.backward()
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
    return policy


def _optimizers(policy: Policy) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for matrices, Adam for what is none: biases, and the row that gives the score."""
    matrices = [weight for weight in policy.parameters() if weight.squeeze().ndim == 2]
    others = [weight for weight in policy.parameters() if weight.squeeze().ndim < 2]
    return (
        torch.optim.Muon(matrices, lr=2e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.Adam(others, lr=2e-2, betas=(0.9, 0.99), fused=True),
    )


class Router(BaseWeighting):
    """The supervised ceiling: the policy's own network and observation, trained with labels to name the right teachers.

    Label-free when deployed, like the policy, and fitted on drawn sets of teachers. What it is taught is
    :func:`router_targets`. ``router:gain`` is taught what each teacher gains a student: the control that settles what
    rewards add. ``router:knows`` is taught what the oracle says, which takes teachers that say what they were trained
    on: a stranger's do not. ``router:fixed`` meets the real set of teachers alone: what drawing adds.
    """

    by_row: ClassVar[bool] = True
    PLANS: ClassVar[Mapping[str | None, RouterPlan]] = {
        None: RouterPlan(),
        "reliability": RouterPlan(observation=ObservationConfig(reliability=True)),
        "gain": RouterPlan(lesson="gain"),
        "knows": RouterPlan(lesson="knows", sets="fixed"),
        "fixed": RouterPlan(sets="fixed"),
    }
    """Argument to what it stands for."""

    def __init__(self, policy: Policy) -> None:
        """Wrap a trained network."""
        self.policy = policy

    @property
    def requires(self) -> frozenset[str]:
        """What the network requires."""
        return self.policy.requires

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``router`` or ``router:ARGUMENT``: reads the labels of train and probe."""
        return cls(train_router(evidence, cls.plan(argument)))

    @classmethod
    def plan(cls, argument: str | None) -> RouterPlan:
        """What an argument stands for.

        Raises:
            WeightingError: Nothing.
        """
        if argument not in cls.PLANS:
            known = ", ".join(str(name) for name in cls.PLANS if name)
            raise WeightingError(f"'router' takes no argument but {known}, got {argument!r}; leave it out")
        return cls.PLANS[argument]

    def weights(self, state: State) -> Tensor:
        """Weights of a batch, shape (..., K)."""
        return self.policy.weights(state)


def train_router(evidence: Evidence | Sequence[Evidence], plan: RouterPlan | None = None) -> Policy:
    """Fit a router on the labelled rows of train and probe, of one task or of several.

    Args:
        evidence: The training view of a task and its teachers, or of several tasks, which count alike.
        plan: How it is fitted; None: as ``router`` is.

    Raises:
        WeightingError: A task has no labelled row, or its teachers lack what the plan asks for.
    """
    plan = plan or RouterPlan()
    tasks = [evidence] if isinstance(evidence, Evidence) else list(evidence)
    for one in tasks:
        check_teachers(one, plan)
    seed, names = tasks[0].seed, [one.task.name for one in tasks]
    lessons = _balanced([_lessons(one, plan) for one in tasks], seed)
    record = {"method": "router", "targets": plan.lesson, "task": names[0] if len(names) == 1 else names}
    policy = Policy.create(plan.observation, training=record, seed=seed)
    loss = squared_error if plan.lesson == "gain" else cost_of_shares
    fit_router(policy, lessons.features, lessons.targets, seed=seed, loss=loss).eval()
    return policy.with_record(strength=likeliest_strength(policy, lessons)) if plan.fit_strength else policy


def likeliest_strength(policy: Policy, lessons: Lessons) -> float:
    """The strength in ``STRENGTHS`` at which the teachers' mixture gives the label the highest likelihood.

    The best weights of a gain are one teacher, however small its lead and great the doubt (:func:`teacher_gains`);
    a mixture's likelihood weighs both. So where teachers are level, the weights stay nearer to equal ones.

    Args:
        policy: The network, of strength 1.
        lessons: Rows that no teacher was trained on count; where there are none, all.
    """
    rows = lessons.unseen if lessons.unseen.any() else torch.ones_like(lessons.unseen)
    features, said = lessons.features[rows], lessons.said[rows]
    present = features[..., 0] > 0
    with one_thread(), torch.no_grad():
        actions = policy(features)
        costs = {
            strength: -(action_weights(strength * actions, present) * said).sum(-1).clamp_min(1e-6).log().mean().item()
            for strength in STRENGTHS
        }
    return min(costs, key=costs.__getitem__)


def check_teachers(evidence: Evidence, plan: RouterPlan) -> None:
    """Refuse teachers that lack what a plan asks for, before any fit.

    Raises:
        WeightingError: Says what they lack.
    """
    if plan.observation.reliability and evidence.source.reliability is None:
        raise WeightingError(
            "router:reliability needs the teachers' reliability, got teachers without; use a cache and a task with "
            "labelled validation rows"
        )
    if plan.lesson == "knows" and evidence.source.knowledge is None:
        raise WeightingError(
            "router:knows needs teachers that all say what they were trained on (teacher.json, 'knows'), got none "
            "that do; 'router' reads labels alone"
        )


def _lessons(evidence: Evidence, plan: RouterPlan) -> Lessons:
    """The rows of a task with every set of teachers that they are met with."""
    task, sets = evidence.task, SETS[plan.sets]
    labelled = np.concatenate([task.labelled_ids(split) for split in ("train", "probe")])
    ids = torch.from_numpy(answered_ids(evidence.source, labelled))
    if len(ids) == 0:
        raise WeightingError(
            "a router needs labelled train or probe rows that teachers answered about, got none; label some, or leave "
            "'router' out"
        )
    rows = torch.randperm(len(ids), generator=torch.Generator().manual_seed(evidence.seed))[: plan.rows]
    state, random = read_state(task, evidence.source, ids[rows]), np.random.default_rng(evidence.seed)
    told = None
    if plan.lesson == "knows":
        told = Oracle.build(None, evidence).weights(state)
    met = []
    for other, chosen in sets.draws(state, random, ROUTER_DRAWS if sets.vary else 1):
        if told is not None:
            targets = normalised(told.gather(-1, chosen), other.present)
        elif plan.lesson == "gain":
            gains = teacher_gains(other, student_of_any_age(other, random))
            targets = gain_actions(gains, other.present)
        else:
            targets = router_targets(other)
        assert other.labels is not None
        assert other.ids is not None
        said = torch.exp(-teacher_cross_entropy(other.teacher_logits, other.labels)) * other.present
        met.append(
            Lessons(
                features=teacher_features(other, plan.observation),
                targets=targets,
                said=said,
                unseen=torch.isin(other.ids, torch.from_numpy(task.splits["probe"])),
            )
        )
    return Lessons.together(met)


def _balanced(tasks: Sequence[Lessons], seed: int) -> Lessons:
    """Lessons of all tasks in one, in equal shares: rows of small tasks repeated, places of small sets left empty."""
    if len(tasks) == 1:
        return tasks[0]
    generator = torch.Generator().manual_seed(seed)
    rows = round(sum(len(lessons.unseen) for lessons in tasks) / len(tasks))
    places = max(lessons.targets.shape[1] for lessons in tasks)
    parts = []
    for lessons in tasks:
        order = torch.randperm(len(lessons.unseen), generator=generator)
        parts.append(lessons.take(order.repeat(-(-rows // len(order)))[:rows], places))
    return Lessons.together(parts)
