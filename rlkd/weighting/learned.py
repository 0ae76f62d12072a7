"""The policy network, and what is saved of it.

Torch only: a policy that was trained with reinforcement learning is deployed without it.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rlkd.errors import PolicyError
from rlkd.features import FEATURE_VERSION, ObservationConfig, teacher_features
from rlkd.records import digest
from rlkd.types import State, in_parts
from rlkd.weighting.arguments import require_argument
from rlkd.weighting.base import Evidence
from rlkd.weighting.card import CARD, card_parts
from rlkd.weighting.exporting import export_graph
from rlkd.weighting.plain_arrays import ArrayT, like, plain_state
from rlkd.weighting.policy_files import SavedPolicy, load_module, parameters_hash
from rlkd.weighting.simplex import masked_softmax

SHARPNESS = 6.0
"""Actions lie in [-1, 1]; weights are ``softmax(SHARPNESS * action)``: odds between two teachers up to e^12."""

TILE = 32
"""Instances that a deployed network is asked about at once are a multiple of this, if need be by rows of zeros."""


def action_weights(actions: Tensor, present: Tensor) -> Tensor:
    """Turn actions into weights; the environment and the deployed policy share this.

    Args:
        actions: Shape (..., K), clipped to [-1, 1].
        present: Bool, shape (..., K).

    Returns:
        Rows on the simplex, shape (..., K), float32.
    """
    return masked_softmax(SHARPNESS * actions.clamp(-1, 1), present)


AT_ONCE = 2**23
"""Logits, of all teachers, that are looked at at once: with a vocabulary for classes the features of a batch of tokens
would take five times the room of all logits together."""


class Policy(SavedPolicy, model_card_template=CARD):
    """A network that scores every teacher of an instance, shared over teachers, with pooling over the set.

    A :class:`~rlkd.weighting.base.Weighting`; the stochastic actor of the agent that trains it is this module.
    """

    def __init__(
        self,
        observation: dict[str, bool] | None = None,
        hidden_size: int = 64,
        feature_version: int = FEATURE_VERSION,
        feature_names: Sequence[str] | None = None,
        training: dict[str, Any] | None = None,
        strength: float = 1.0,
    ) -> None:
        """Build an untrained policy.

        Args:
            observation: Switches of an :class:`~rlkd.features.ObservationConfig`.
            hidden_size: Width of the network.
            feature_version: Of the observation the weights were trained for.
            feature_names: Names of the F features the weights were trained for.
            training: What is remembered of the training: reward, task, number of teachers, commit.
            strength: What actions are multiplied by; 0 gives equal weights. Range: [0, 1].

        Raises:
            PolicyError: If version or names are not those of this release, or a value is out of range.
        """
        super().__init__()
        config = ObservationConfig.from_dict(observation or ObservationConfig().to_dict())
        if feature_version != FEATURE_VERSION:
            raise PolicyError(
                f"the policy was made for observation version {feature_version}, this rlkd has version "
                f"{FEATURE_VERSION}; train it again or install the rlkd release that made it"
            )
        if feature_names is not None and tuple(feature_names) != config.feature_names:
            raise PolicyError(
                f"the policy's features are {list(feature_names)}, its observation has {list(config.feature_names)}; "
                "config.json was changed, use the original"
            )
        if not isinstance(hidden_size, int) or not 1 <= hidden_size <= 4096:
            raise PolicyError(f"hidden_size must be an integer in 1..4096, got {hidden_size!r}")
        if not isinstance(strength, (int, float)) or not 0 <= strength <= 1:
            raise PolicyError(
                f"strength must be a number in [0, 1], got {strength!r}; 1 is the policy as it was trained"
            )
        self.observation, self.strength = config, float(strength)
        self.training_record = dict(training or {})
        self.encode = nn.Sequential(
            nn.Linear(config.num_features, hidden_size), nn.Tanh(), nn.Linear(hidden_size, hidden_size), nn.Tanh()
        )
        self.score = nn.Sequential(nn.Linear(2 * hidden_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, 1))

    @classmethod
    def create(
        cls, observation: ObservationConfig, *, training: dict[str, Any], seed: int = 0, strength: float = 1.0
    ) -> "Policy":
        """An untrained policy whose ``config.json`` will be complete; the global random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(
                observation=observation.to_dict(),
                feature_version=FEATURE_VERSION,
                feature_names=list(observation.feature_names),
                training=training,
                strength=strength,
            )

    def with_record(self, *, strength: float | None = None, **figures: Any) -> "Policy":
        """The same policy, of another strength or with more in what is remembered of its training."""
        remade = Policy.create(
            self.observation,
            training={**self.training_record, **figures},
            strength=self.strength if strength is None else strength,
        )
        remade.load_state_dict(self.state_dict())
        return remade.eval()

    @property
    def requires(self) -> frozenset[str]:
        """What it observes."""
        return self.observation.requires

    @property
    def by_row(self) -> bool:
        """Whether it leaves the student, and how far that is, out of its observation."""
        return not self.observation.student

    @property
    def kept_as(self) -> str:
        """A hash of its weights and of what else decides what it says."""
        observed = [FEATURE_VERSION, self.observation.to_dict()]
        return digest([parameters_hash(self), observed, self.strength, SHARPNESS], 64, algorithm="sha256")

    @property
    def origin(self) -> str | None:
        """Where its weights are from: ``learned``, ``router`` or ``untrained``; None if no reward had a part in them.

        The last two are what training started from, with and without a warm start, and made nothing better of. Where
        trial students learned best from equal weights it is ``uniform``.
        """
        kept_at, training = self.training_record.get("kept_at"), self.training_record.get("training")
        if not isinstance(kept_at, int):  # the record is read from a file
            return None
        if self.strength == 0:
            return "uniform"
        warm = isinstance(training, dict) and bool(training.get("warm_start"))
        return "learned" if kept_at > 0 else "router" if warm else "untrained"

    def embed(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Encode each teacher and the set.

        Args:
            features: Shape (..., K, F).

        Returns:
            Codes of the teachers (..., K, H) and their mean over present teachers (..., 1, H).
        """
        present = features[..., :1]
        codes = self.encode(features)
        return codes, (codes * present).sum(-2, keepdim=True) / present.sum(-2, keepdim=True).clamp_min(1)

    def forward(self, features: Tensor) -> Tensor:
        """Actions, the mean of the agent's distribution: features (..., K, F) to (..., K) in (-1, 1)."""
        codes, pooled = self.embed(features)
        return torch.tanh(self.score(torch.cat([codes, pooled.expand_as(codes)], dim=-1)).squeeze(-1))

    @overload
    def weights(self, state: State) -> Tensor: ...
    @overload
    def weights(
        self, state: ArrayT, *, mask: ArrayT | None = None, sureness: Tensor | NDArray[Any] | None = None
    ) -> ArrayT: ...
    @torch.no_grad()
    def weights(self, state: Any, *, mask: Any = None, sureness: Any = None) -> Any:
        """Weights of a batch; the policy follows it to its device.

        Args:
            state: A state, or the teachers' logits alone, shape (..., K, C), as a tensor or a numpy array.
            mask: Beside logits: bool, shape (..., K) or (K,), False where a teacher is absent.
            sureness: Beside logits, see :func:`~rlkd.weighting.plain_arrays.plain_state`.

        Returns:
            Rows on the simplex, shape (..., K), float32; a numpy array for numpy logits.

        Raises:
            PolicyError: The policy observes what is not there, or an array is not what was expected.
        """
        if not isinstance(state, State):
            return like(self.weights(plain_state(state, self.observation, mask=mask, sureness=sureness)), state)
        if mask is not None or sureness is not None:
            raise PolicyError(
                "a State has its own teacher_mask and sureness, got them beside it; leave mask= and sureness= out"
            )
        policy, (*_, teachers, classes) = self.following(state), state.teacher_logits.shape
        most = max(TILE, AT_ONCE // max(1, teachers * classes))
        return torch.cat([policy._weighed(part, policy._actions) for part in in_parts(state, most)])

    def _weighed(self, state: State, actions: Callable[[Tensor], Tensor]) -> Tensor:
        """Weights of a batch of which actions, shape (..., K), follow from features (..., K, F)."""
        features = teacher_features(state, self.observation)
        return action_weights(self.strength * actions(features), state.present)

    def _actions(self, features: Tensor) -> Tensor:
        """Actions whose last bit does not depend on the batch that an instance is in.

        The rows that are left over when a matrix is cut into tiles go through another loop of the BLAS library, which
        rounds in another order.
        """
        *leading, teachers, size = features.shape
        rows = features.reshape(-1, teachers, size)
        left_over = len(rows) % TILE
        actions: Tensor = self(F.pad(rows, (0, 0, 0, 0, 0, TILE - left_over)) if left_over else rows)
        return actions[: len(rows)].view(*leading, teachers)

    def export(self, path: str | Path) -> Path:
        """Write it as a graph that runs without rlkd, see :func:`~rlkd.weighting.exporting.export_graph`."""
        here = copy.deepcopy(self).cpu().eval()
        return export_graph(here, lambda state: here._weighed(state, here), self.observation, Path(path))

    def described(self) -> Mapping[str, str]:
        """What its card says of it."""
        return card_parts(self.training_record, self.observation, self.strength)

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> "Policy":
        """Build from ``policy:PATH``."""
        return load_policy(require_argument("policy", argument, "policy:runs/policy"))


def load_policy(path: str | Path, **of_the_hub: Any) -> Policy:
    """Load a policy from a folder, from a Hugging Face hub id, or the one that is shipped, ``auto``.

    Args:
        path: The folder, or the id, such as ``user/repo``.
        **of_the_hub: ``revision``, ``token`` and the like, if it is to come from the hub.

    Raises:
        PolicyError: If a file is missing or damaged, or made for another observation.
    """
    return load_module(Policy, path, **of_the_hub)
