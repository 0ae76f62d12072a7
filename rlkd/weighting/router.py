"""The supervised router: the policy's network, trained with labels to name the right teachers, or what they gain."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from rlkd.devices import one_thread
from rlkd.errors import WeightingError
from rlkd.features import ObservationConfig
from rlkd.types import State
from rlkd.weighting.base import BaseWeighting, Evidence
from rlkd.weighting.learned import Policy, action_weights
from rlkd.weighting.router_targets import RouterRows, RouterSettings, check_teachers, in_equal_shares, router_rows

ROUTER_STEPS = 3
"""Steps of a router's fit for every square root of its rows: few rows, learned by heart, mislead on others.

It is to be the strongest simple rival, not a straw man. With this many steps of Muon it is as good from 8,000 rows as
with twenty times as many of Adam, and better from 30."""
LEAST_STEPS = 60
STRENGTHS = tuple(step / 20 for step in range(1, 21))
"""How far a router may go, where that is fitted, see :func:`likeliest_strength`."""
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From actions (B, K), targets (B, K) and present teachers (B, K), bool, to one loss an instance, shape (B,)."""


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
    :func:`~rlkd.weighting.router_targets.router_targets`. ``router:gain`` is taught what each teacher gains a student:
    the control that settles what rewards add. ``router:knows`` is taught what the oracle says, which takes teachers
    that say what they were trained on: a stranger's do not. ``router:fixed`` meets the real set of teachers alone:
    what drawing adds.
    """

    by_row: ClassVar[bool] = True
    VARIANTS: ClassVar[Mapping[str | None, RouterSettings]] = {
        None: RouterSettings(),
        "reliability": RouterSettings(observation=ObservationConfig(reliability=True)),
        "gain": RouterSettings(lesson="gain"),
        "knows": RouterSettings(lesson="knows", sets="fixed"),
        "fixed": RouterSettings(sets="fixed"),
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
        return cls(train_router(evidence, cls.variant(argument)))

    @classmethod
    def variant(cls, argument: str | None) -> RouterSettings:
        """What an argument stands for.

        Raises:
            WeightingError: Nothing.
        """
        if argument not in cls.VARIANTS:
            known = ", ".join(str(name) for name in cls.VARIANTS if name)
            raise WeightingError(f"'router' takes no argument but {known}, got {argument!r}; leave it out")
        return cls.VARIANTS[argument]

    def weights(self, state: State) -> Tensor:
        """Weights of a batch, shape (..., K)."""
        return self.policy.weights(state)


def train_router(evidence: Evidence | Sequence[Evidence], settings: RouterSettings | None = None) -> Policy:
    """Fit a router on the labelled rows of train and probe, of one task or of several.

    Args:
        evidence: The training view of a task and its teachers, or of several tasks, which count alike.
        settings: How it is fitted; None: as ``router`` is.

    Raises:
        WeightingError: A task has no labelled row, or its teachers lack what the settings ask for.
    """
    settings = settings or RouterSettings()
    tasks = [evidence] if isinstance(evidence, Evidence) else list(evidence)
    for one in tasks:
        check_teachers(one, settings)
    seed, names = tasks[0].seed, [one.task.name for one in tasks]
    rows = in_equal_shares([router_rows(one, settings) for one in tasks], seed)
    record = {"method": "router", "targets": settings.lesson, "task": names[0] if len(names) == 1 else names}
    policy = Policy.create(settings.observation, training=record, seed=seed)
    loss = squared_error if settings.lesson == "gain" else cost_of_shares
    fit_router(policy, rows.features, rows.targets, seed=seed, loss=loss).eval()
    return policy.with_record(strength=likeliest_strength(policy, rows)) if settings.fit_strength else policy


def likeliest_strength(policy: Policy, taught: RouterRows) -> float:
    """The strength in ``STRENGTHS`` at which the teachers' mixture gives the label the highest likelihood.

    The best weights of a gain are one teacher, however small its lead and great the doubt (:func:`teacher_gains`);
    a mixture's likelihood weighs both. So where teachers are level, the weights stay nearer to equal ones.

    Args:
        policy: The network, of strength 1.
        taught: Rows that no teacher was trained on count; where there are none, all.
    """
    rows = taught.unseen if taught.unseen.any() else torch.ones_like(taught.unseen)
    features, said = taught.features[rows], taught.said[rows]
    present = features[..., 0] > 0
    with one_thread(), torch.no_grad():
        actions = policy(features)
        costs = {
            strength: -(action_weights(strength * actions, present) * said).sum(-1).clamp_min(1e-6).log().mean().item()
            for strength in STRENGTHS
        }
    return min(costs, key=costs.__getitem__)
