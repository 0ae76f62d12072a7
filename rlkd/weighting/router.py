"""The supervised router: the policy's network, trained with labels to name the right teachers."""

from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from rlkd.devices import one_thread
from rlkd.errors import PolicyError, WeightingError
from rlkd.features import ObservationConfig, teacher_features
from rlkd.logit_cache import read_state
from rlkd.losses import teacher_cross_entropy
from rlkd.types import State
from rlkd.weighting.base import BaseWeighting, Evidence, normalised
from rlkd.weighting.heuristic import Oracle
from rlkd.weighting.learned import Policy, action_weights
from rlkd.weighting.teacher_sets import TeacherSets

ROUTER_EPOCHS = 120
"""Passes of a router over its rows: it is to be the strongest simple rival, not a straw man."""
SURE = 0.99
"""Probability of a label from which on a teacher is as right as can be. Teachers have seen the rows that routers learn
from; what they say of them beyond this is memory."""
ROUTER_DRAWS = 4
"""Sets of teachers that a router meets for every row, where they are drawn; they share the passes."""


def router_targets(state: State) -> Tensor:
    """What a router learns to say, shape (..., K), from labels alone: who is right, and how surely.

    In proportion to the odds that a teacher gives the label, cut at those of ``SURE``: it is no better to be surer.
    """
    assert state.labels is not None
    probability = torch.exp(-teacher_cross_entropy(state.teacher_logits, state.labels)).clamp(1e-6, SURE)
    return normalised(probability / (1 - probability), state.present)


def fit_router(
    policy: Policy,
    features: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    batch_size: int = 256,
    seed: int = 0,
) -> Policy:
    """Train a policy network with labels to name the right teachers; in place.

    Args:
        policy: The network.
        features: Shape (N, K, F).
        targets: Rows on the simplex, shape (N, K).
        epochs: Passes over the rows; at least 600 steps are made.
        batch_size: Rows a step.
        seed: Of the order of rows.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    steps = max(600, epochs * len(features) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    present = features[..., 0] > 0
    with one_thread(), torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(features), (min(batch_size, len(features)),), generator=generator)
            log_weights = action_weights(policy(features[rows]), present[rows]).clamp_min(1e-8).log()
            loss = -(targets[rows] * log_weights).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return policy


class Router(BaseWeighting):
    """The supervised ceiling: the policy's own network and observation, trained with labels to name the right teachers.

    Label-free when deployed, like the policy. What it is taught is :func:`router_targets`; ``router:knows`` is taught
    what the oracle says instead, which takes teachers that say what they were trained on: a stranger's do not.
    """

    ARGUMENTS: ClassVar[tuple[str, ...]] = ("reliability", "knows")

    def __init__(self, policy: Policy) -> None:
        """Wrap a trained network."""
        self.policy = policy

    @property
    def requires(self) -> frozenset[str]:
        """What the network requires."""
        return self.policy.requires

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``router``, ``router:reliability`` or ``router:knows``: reads the labels of train and probe."""
        if argument is not None and argument not in cls.ARGUMENTS:
            raise WeightingError(
                f"'router' takes no argument but {' or '.join(cls.ARGUMENTS)}, got {argument!r}; leave it out"
            )
        if argument == "reliability" and evidence.source.reliability is None:
            raise WeightingError(
                "router:reliability needs the teachers' reliability, got teachers without; use a cache and a task with "
                "labelled validation rows"
            )
        if argument == "knows" and evidence.source.knowledge is None:
            raise WeightingError(
                "router:knows needs teachers that all say what they were trained on (teacher.json, 'knows'), got none "
                "that do; 'router' reads labels alone"
            )
        observation = ObservationConfig(reliability=argument == "reliability")
        return cls(train_router(evidence, observation, knows=argument == "knows"))

    def weights(self, state: State) -> Tensor:
        """Weights of a batch, shape (..., K)."""
        return self.policy.weights(state)


def train_router(
    evidence: Evidence,
    observation: ObservationConfig,
    *,
    max_rows: int | None = None,
    sets: TeacherSets | None = None,
    knows: bool = False,
) -> Policy:
    """Fit a router on the labelled rows of train and probe.

    Args:
        evidence: The training view and its teachers.
        observation: Must not observe the student: a router is fitted before there is one.
        max_rows: Use at most so many labelled rows.
        sets: Which sets of teachers it meets, drawn ``ROUTER_DRAWS`` times a row; None: the real one alone.
        knows: Imitate the oracle, which is told what every teacher was trained on, instead of reading who is right.

    Raises:
        PolicyError: The observation has the student in it.
        WeightingError: There is no labelled row, or ``knows`` is asked of teachers that do not say what they know.
    """
    if observation.student:
        raise PolicyError(
            "a router needs a portable observation, got one with student features; leave observe_student off, or "
            "switch the warm start off"
        )
    task, source = evidence.task, evidence.source
    ids = torch.from_numpy(np.concatenate([task.labelled_ids(split) for split in ("train", "probe")]))
    if len(ids) == 0:
        raise WeightingError("a router needs labelled train or probe rows, got none; label some, or leave 'router' out")
    rows = torch.randperm(len(ids), generator=torch.Generator().manual_seed(evidence.seed))[:max_rows]
    state = read_state(task, source, ids[rows])
    targets = Oracle.build(None, evidence).weights(state) if knows else router_targets(state)
    record = {"method": "router", "targets": "knows" if knows else "labels", "task": task.name}
    policy = Policy.create(observation, training=record, seed=evidence.seed)
    if sets is None or not sets.vary:
        features = teacher_features(state, observation)
        return fit_router(policy, features, targets, epochs=ROUTER_EPOCHS, seed=evidence.seed).eval()
    random = np.random.default_rng(evidence.seed)
    drawn = [sets.draw(state, random) for _ in range(ROUTER_DRAWS)]
    features = torch.cat([teacher_features(other, observation) for other, _ in drawn])
    shares = torch.cat([normalised(targets.gather(-1, chosen), other.present) for other, chosen in drawn])
    return fit_router(policy, features, shares, epochs=ROUTER_EPOCHS // ROUTER_DRAWS, seed=evidence.seed).eval()
