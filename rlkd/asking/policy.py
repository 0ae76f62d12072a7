"""The asking policy: a network that says whom to ask about an instance, or that enough was asked.

Torch only: it was trained with reinforcement learning, and is deployed without it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlkd.asking.bank import TeacherBank
from rlkd.asking.observation import (
    NUM_SHARED,
    NUM_TEACHER,
    OBSERVATION_VERSION,
    SHARED_FEATURES,
    TEACHER_FEATURES,
    Flags,
)
from rlkd.asking.pool import Pool
from rlkd.asking.walk import Walk, walking_order
from rlkd.errors import PolicyError
from rlkd.weighting.policy_files import AUTO, SavedModule, load_module

PLACES = 64
"""Instances that a deployed policy has at hand at once."""
SHIPPED = Path(__file__).with_name(AUTO)
"""Folder of the policy that is shipped with the package."""
FORBIDDEN = -1e8
"""Logit of an action that the mask forbids."""


class AskingPolicy(SavedModule):
    """Scores every teacher of an instance with one network that is shared over teachers, and scores to stop.

    To stop is scored by what is pooled over the set: so it runs at any number of teachers, and permuting teachers
    permutes its actions. The stochastic actor of the agent that trains it is this module.
    """

    def __init__(
        self,
        hidden_size: int = 48,
        observation_version: int = OBSERVATION_VERSION,
        teacher_features: Sequence[str] | None = None,
        shared_features: Sequence[str] | None = None,
        training: dict[str, Any] | None = None,
    ) -> None:
        """Build an untrained policy.

        Args:
            hidden_size: Width of the network.
            observation_version: Of the observation that the weights were trained for.
            teacher_features: Names of what is seen of a teacher, likewise.
            shared_features: Names of what is seen of an instance, likewise.
            training: What is remembered of the training.

        Raises:
            PolicyError: Version or names are not those of this release, or a value is out of range.
        """
        super().__init__()
        names = ((teacher_features, TEACHER_FEATURES), (shared_features, SHARED_FEATURES))
        if observation_version != OBSERVATION_VERSION or any(a is not None and tuple(a) != b for a, b in names):
            raise PolicyError(
                f"the asking policy was made for observation version {observation_version}, or for other features; "
                f"this rlkd has version {OBSERVATION_VERSION}; train it again or install the rlkd release that made it"
            )
        if not isinstance(hidden_size, int) or not 1 <= hidden_size <= 4096:
            raise PolicyError(f"hidden_size must be an integer in 1..4096, got {hidden_size!r}")
        self.training_record = dict(training or {})
        self.hidden_size = hidden_size
        self.encode = nn.Sequential(
            nn.Linear(NUM_TEACHER + NUM_SHARED, hidden_size),
            nn.Tanh(),
            nn.Linear(hidden_size, hidden_size),
            nn.Tanh(),
        )
        self.score = nn.Sequential(nn.Linear(3 * hidden_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, 1))
        self.stop = nn.Sequential(nn.Linear(2 * hidden_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, 1))

    @classmethod
    def create(cls, *, training: dict[str, Any], seed: int = 0, hidden_size: int = 48) -> "AskingPolicy":
        """An untrained policy whose ``config.json`` will be complete; the global random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(
                hidden_size=hidden_size,
                observation_version=OBSERVATION_VERSION,
                teacher_features=list(TEACHER_FEATURES),
                shared_features=list(SHARED_FEATURES),
                training=training,
            )

    def with_record(self, **figures: Any) -> "AskingPolicy":
        """The same policy with more in what is remembered of its training."""
        remade = AskingPolicy.create(training={**self.training_record, **figures}, hidden_size=self.hidden_size)
        remade.load_state_dict(self.state_dict())
        return remade.eval()

    def embed(self, teachers: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Encode each teacher and the set.

        Args:
            teachers: Shape (..., K, NUM_TEACHER); the first feature is 1 where the teacher is there.
            shared: Shape (..., NUM_SHARED).

        Returns:
            Codes of the teachers (..., K, H), and of the set (..., 2H): mean and largest over present teachers.
        """
        present = teachers[..., :1]
        wide = shared.unsqueeze(-2).expand(*teachers.shape[:-1], shared.shape[-1])
        codes = self.encode(torch.cat([teachers, wide], dim=-1))
        mean = (codes * present).sum(-2) / present.sum(-2).clamp_min(1)
        largest = torch.where(present > 0, codes, -1.0).amax(-2)
        return codes, torch.cat([mean, largest], dim=-1)

    def forward(self, teachers: Tensor, shared: Tensor) -> Tensor:
        """Logits of the actions, of which the first stops, shape (..., K + 1); arguments are those of :meth:`embed`."""
        codes, pooled = self.embed(teachers, shared)
        around = pooled.unsqueeze(-2).expand(*codes.shape[:-1], pooled.shape[-1])
        asking = self.score(torch.cat([codes, around], dim=-1)).squeeze(-1)
        return torch.cat([self.stop(pooled), asking], dim=-1)

    @torch.no_grad()
    def actions(
        self,
        observed: tuple[NDArray[np.float32], NDArray[np.float32]],
        mask: Flags,
        random: np.random.Generator | None = None,
    ) -> NDArray[np.int64]:
        """What to do.

        Args:
            observed: Of teachers (B, K, NUM_TEACHER) and instances (B, NUM_SHARED).
            mask: Bool, shape (B, K + 1), False where an action is forbidden.
            random: Draws actions; None: the likeliest.

        Returns:
            Shape (B,), in [0, K]; 0 stops, k + 1 asks teacher k.
        """
        logits = self(*map(torch.from_numpy, observed)).masked_fill(~torch.from_numpy(mask), FORBIDDEN)
        if random is None:
            return np.asarray(logits.argmax(-1).numpy())
        reached = logits.softmax(-1).double().cumsum(-1).numpy()
        drawn = random.random((len(reached), 1)) * reached[:, -1:]
        return np.asarray((reached > drawn).argmax(-1))


class AskByPolicy:
    """A strategy that follows an asking policy.

    Args:
        policy: The policy.
        greedy: Take its likeliest actions; otherwise draw them, as it was trained.
        places: Instances that are at hand at once.
    """

    def __init__(self, policy: AskingPolicy, *, greedy: bool = False, places: int = PLACES) -> None:
        self.policy, self.greedy, self.places = policy.eval(), greedy, places

    def run(self, pool: Pool, bank: TeacherBank, seed: int) -> None:
        """See :class:`~rlkd.asking.base.Strategy`."""
        walk, draws = self.begin(pool, bank, seed)
        self.follow(walk, draws)

    def begin(self, pool: Pool, bank: TeacherBank, seed: int) -> tuple[Walk, np.random.Generator]:
        """The walk at its beginning, and what actions are drawn with."""
        order, draws = (np.random.default_rng([seed, part]) for part in range(2))
        return Walk(pool, bank, walking_order(pool, order), self.places), draws

    def follow(self, walk: Walk, draws: np.random.Generator, until: Callable[[], bool] = bool) -> None:
        """Walk on to the end, or until something is the case."""
        while not walk.done and not until():
            walk.act(self.policy.actions(walk.observe(), walk.mask(), None if self.greedy else draws))


def load_asker(path: str | Path, **of_the_hub: Any) -> AskingPolicy:
    """Load an asking policy from a folder, from a Hugging Face hub id, or the one that is shipped, ``auto``.

    Args:
        path: The folder, or the id, such as ``user/repo``.
        **of_the_hub: ``revision``, ``token`` and the like, if it is to come from the hub.

    Raises:
        PolicyError: A file is missing or damaged, or made for another observation.
    """
    return load_module(AskingPolicy, SHIPPED if str(path) == AUTO else path, **of_the_hub)
