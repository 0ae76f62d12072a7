"""``auto``: the policy that is shipped, where it would change what students are taught, and equal weights elsewhere.

Students gain from a policy by what it changes. Where it hardly changes anything they gain nothing surely, and may lose:
there some teacher is loud, and wrong. How much it would change is known beforehand, without a label.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkd.data.task import Task
from rlkd.errors import WeightingError
from rlkd.features import ObservationConfig
from rlkd.logit_cache import answered_ids, read_state
from rlkd.losses import soft_targets
from rlkd.types import LogitSource, State
from rlkd.weighting.absent import without_absent
from rlkd.weighting.base import BaseWeighting, Evidence, mixture
from rlkd.weighting.learned import Policy, load_policy
from rlkd.weighting.policy_files import AUTO
from rlkd.weighting.simplex import equal_weights

LEAST_CHANGE = 0.2
"""Mean change of what is taught below which equal weights are taken: no set of teachers of our suites lies near it.

Students of none of those below surely gained anything, students of all but one of those above gained. It was chosen
with all of them in sight: ``benchmarks/change.py`` lists them.
"""
ROWS = 2000
"""Rows of train that are looked at, evenly spaced."""


def change(weighting: BaseWeighting, state: State) -> Tensor:
    """How far what a weighting would have students taught is from what equal weights would: total variation.

    Args:
        weighting: Asked about the state.
        state: Of N instances, or tokens.

    Returns:
        Shape (N,), in [0, 1].
    """
    taught, there = mixture(weighting, state), without_absent(state)
    own = soft_targets(taught.teacher_logits, taught.weights)
    equal = soft_targets(there.teacher_logits, equal_weights(there.present))
    return (own - equal).abs().sum(-1) / 2


def mean_of(changes: Tensor) -> float:
    """Of instances (N,); 0 where there are none."""
    return float(changes.double().mean()) if len(changes) else 0.0


def evenly(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most :data:`ROWS` of some instances (N,), evenly spaced."""
    return ids[np.unique(np.linspace(0, len(ids) - 1, min(ROWS, len(ids))).astype(np.int64))]


def mean_change(weighting: BaseWeighting, task: Task, source: LogitSource) -> float:
    """The mean of :func:`change` over rows of train, whose labels are not read; 0 where nobody answered about any."""
    ids = evenly(answered_ids(source, task.splits["train"]))
    return mean_of(change(weighting, replace(read_state(task, source, torch.from_numpy(ids)), labels=None)))


def equal_weights_policy(*, why: str | None = None) -> Policy:
    """Equal weights as a policy, of no strength; ``why`` they were chosen is what its card says."""
    chosen = {} if why is None else {"chosen": {"name": "uniform", "why": why}}
    return Policy.create(ObservationConfig(), training={"method": "uniform", **chosen}, strength=0.0)


def too_little(name: str, changes: float) -> str:
    """Why a policy is not used that would change so much of what is taught, in words that end a sentence."""
    return (
        f"`{name}` would change {changes:.0%} of what students are taught, and where it is less than "
        f"{LEAST_CHANGE:.0%} they gain nothing surely"
    )


def restrained(policy: Policy, changes: float) -> Policy:
    """A policy that would change so much of what is taught, or equal weights where that is too little."""
    if changes >= LEAST_CHANGE:
        return policy
    return equal_weights_policy(why=f"`uniform` is used: {too_little(AUTO, changes)}.")


class Auto:
    """The policy that is shipped with the package: it helps before anybody has trained anything, and reads no label.

    It was learned on many tasks and many teachers, see its card, ``weighting/auto/README.md``. Where it would change
    too little of what is taught (:data:`LEAST_CHANGE`) equal weights are used; ``policy:auto`` is the policy itself,
    everywhere. Commands that are asked for ``auto`` and have labels try it against what can be learned from them, see
    :mod:`rlkd.choosing`; asked for ``auto:PATH``, against the policy of that folder too.
    """

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Policy:
        """Build from ``auto``.

        Raises:
            WeightingError: ``auto:PATH`` is to be chosen by students, which a weighting alone does not have.
        """
        if argument not in (None, AUTO):
            raise WeightingError(
                f"auto:{argument} tries that policy by trial students, which `distill` and `compare` do; take "
                f"policy:{argument}, or auto for the one that is shipped"
            )
        policy = load_policy(AUTO)
        return restrained(policy, mean_change(policy, evidence.task, evidence.source))
