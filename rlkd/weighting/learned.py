"""Learned weightings: the policy network, what is saved of it, the supervised router and the two controls.

Torch only: a policy that was trained with reinforcement learning is deployed without it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rlkd.errors import PolicyError, WeightingError, one_line
from rlkd.features import FEATURE_VERSION, ObservationConfig, teacher_features
from rlkd.logit_cache import read_state
from rlkd.losses import teacher_cross_entropy
from rlkd.records import parse_object
from rlkd.types import State
from rlkd.weighting.base import Evidence, masked_softmax, normalised, refuse_argument, require_argument
from rlkd.weighting.heuristic import Oracle
from rlkd.weighting.teacher_sets import TeacherSets

SHARPNESS = 6.0
"""Actions lie in [-1, 1]; weights are ``softmax(SHARPNESS * action)``: odds between two teachers up to e^12."""


ROUTER_EPOCHS = 120
"""Passes of a router over its rows: it is to be the strongest simple rival, not a straw man."""
ROUTER_DRAWS = 4
"""Sets of teachers that a router meets for every row, where they are drawn; they share the passes."""


def action_weights(actions: Tensor, present: Tensor) -> Tensor:
    """Turn actions into weights; the environment and the deployed policy share this.

    Args:
        actions: Shape (..., K), clipped to [-1, 1].
        present: Bool, shape (..., K).

    Returns:
        Rows on the simplex, shape (..., K), float32.
    """
    return masked_softmax(SHARPNESS * actions.clamp(-1, 1), present)


class Policy(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="rlkd",
    license="apache-2.0",
    tags=["knowledge-distillation", "reinforcement-learning", "multi-teacher"],
    model_card_template="""---
{{ card_data }}
---
# A teacher-weighting policy for knowledge distillation

Scores each teacher of an instance with one network shared over teachers; knows no teacher count, class count or
order. Trained with [rlkd]; `config.json` names the observation, the reward and the task it was trained on.

```python
weighting = rlkd.load_weighting("path/to/this/folder")
trainer = rlkd.DistillationTrainer(student, args, task=task, cache=cache, weighting=weighting)
```

No pickle is involved: weights are `model.safetensors`.
""",
):
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
    ) -> None:
        """Build an untrained policy.

        Args:
            observation: Switches of an :class:`~rlkd.features.ObservationConfig`.
            hidden_size: Width of the network.
            feature_version: Of the observation the weights were trained for.
            feature_names: Names of the F features the weights were trained for.
            training: What is remembered of the training: reward, task, number of teachers, commit.

        Raises:
            PolicyError: If version or names are not those of this release.
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
        self.observation = config
        self.requires = config.requires
        self.training_record = dict(training or {})
        self.encode = nn.Sequential(
            nn.Linear(config.num_features, hidden_size),
            nn.Tanh(),
            nn.Linear(hidden_size, hidden_size),
            nn.Tanh(),
        )
        self.score = nn.Sequential(nn.Linear(2 * hidden_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, 1))

    @classmethod
    def create(cls, observation: ObservationConfig, *, training: dict[str, Any], seed: int = 0) -> "Policy":
        """An untrained policy whose ``config.json`` will be complete; the global random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(
                observation=observation.to_dict(),
                feature_version=FEATURE_VERSION,
                feature_names=list(observation.feature_names),
                training=training,
            )

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

    @torch.no_grad()
    def weights(self, state: State) -> Tensor:
        """Weights of a batch, shape (..., K); the policy follows the state to its device."""
        features = teacher_features(state, self.observation)
        if self.score[-1].weight.device != features.device:
            self.to(features.device)
        return action_weights(self(features), state.present)

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> "Policy":
        """Build from ``policy:PATH``."""
        return load_policy(require_argument("policy", argument, "policy:runs/policy"))

    @classmethod
    def _load_as_pickle(cls, *args: Any, **kwargs: Any) -> Any:
        raise PolicyError("a policy must come as model.safetensors, got a pickled file; it is not loaded")


def load_policy(path: str | Path) -> Policy:
    """Load a policy from a folder, or from a Hugging Face hub id.

    Raises:
        PolicyError: If a file is missing or damaged, or made for another observation.
    """
    folder = Path(path)
    if folder.exists():
        policy = _read_policy(folder)
    else:
        policy = _download_policy(str(path))
    if not all(torch.isfinite(parameter).all() for parameter in policy.parameters()):
        raise PolicyError(f"the policy {path} holds NaN or infinite numbers; train it again")
    return policy.eval()


def _read_policy(folder: Path) -> Policy:
    config = _read_policy_config(folder)
    known = ("observation", "hidden_size", "feature_version", "feature_names", "training")
    try:
        policy = Policy(**{name: config[name] for name in known if name in config})
        policy.load_state_dict(load_file(folder / "model.safetensors"))
    except PolicyError:
        raise
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise PolicyError(
            f"the policy {folder} is damaged or not a policy: {one_line(error)}; save it again"
        ) from error
    return policy


def _download_policy(name: str) -> Policy:
    try:
        return Policy.from_pretrained(name, strict=True)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise PolicyError(
            f"expected a policy folder or a hub id, got {name!r}: no such folder, and the hub gave none "
            f"({one_line(error)}); check the path"
        ) from error


def _read_policy_config(folder: Path) -> dict[str, Any]:
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise PolicyError(
                f"expected a policy with config.json and model.safetensors, {folder} has no {name}; check the path"
            )
    path = folder / "config.json"
    if path.stat().st_size > 1_000_000:
        raise PolicyError(f"expected a few lines in {path}, it is over 1 MB; it is not loaded")
    config = parse_object(path.read_bytes())
    if config is None or "feature_version" not in config or "feature_names" not in config:
        raise PolicyError(f"expected a policy's JSON with feature_version and feature_names in {path}, got none")
    return config


def router_targets(state: State, oracle: Oracle | None) -> Tensor:
    """What a router learns to say, shape (..., K): which teachers know the instance.

    Those that were trained on its class or domain, where the teachers say so; else those that predict its label, or,
    where none does, all in proportion to the probability they give it.
    """
    if oracle is not None and oracle.requires <= state.available():
        return oracle.weights(state)
    assert state.labels is not None
    right = state.teacher_logits.argmax(-1) == state.labels.unsqueeze(-1)
    probability = torch.exp(-teacher_cross_entropy(state.teacher_logits, state.labels))
    shares = torch.where((right & state.present).any(-1, keepdim=True), right.float(), probability)
    return normalised(shares, state.present)


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
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(features), (min(batch_size, len(features)),), generator=generator)
            log_weights = action_weights(policy(features[rows]), present[rows]).clamp_min(1e-8).log()
            loss = -(targets[rows] * log_weights).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return policy


class Router:
    """The supervised ceiling: the policy's own network and observation, trained with labels to name the right teachers.

    Label-free when deployed, like the policy. What it is taught: :func:`router_targets`.
    """

    def __init__(self, policy: Policy) -> None:
        """Wrap a trained network."""
        self.policy = policy
        self.requires = policy.requires

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``router``: reads the labelled rows of train and probe."""
        refuse_argument("router", argument)
        return cls(train_router(evidence, ObservationConfig()))

    def weights(self, state: State) -> Tensor:
        """Weights of a batch, shape (..., K)."""
        return self.policy.weights(state)


def train_router(
    evidence: Evidence,
    observation: ObservationConfig,
    *,
    max_rows: int | None = None,
    sets: TeacherSets | None = None,
) -> Policy:
    """Fit a router on the labelled rows of train and probe.

    Args:
        evidence: The training view and its teachers.
        observation: Must not observe the student: a router is fitted before there is one.
        max_rows: Use at most so many labelled rows.
        sets: Which sets of teachers it meets, drawn ``ROUTER_DRAWS`` times a row; None: the real one alone.
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
    targets = router_targets(state, Oracle(source.knowledge) if source.knowledge is not None else None)
    policy = Policy.create(observation, training={"method": "router", "task": task.name}, seed=evidence.seed)
    if sets is None or not sets.vary:
        features = teacher_features(state, observation)
        return fit_router(policy, features, targets, epochs=ROUTER_EPOCHS, seed=evidence.seed).eval()
    random = np.random.default_rng(evidence.seed)
    drawn = [sets.draw(state, random) for _ in range(ROUTER_DRAWS)]
    features = torch.cat([teacher_features(other, observation) for other, _ in drawn])
    shares = torch.cat([normalised(targets.gather(-1, chosen), other.present) for other, chosen in drawn])
    return fit_router(policy, features, shares, epochs=ROUTER_EPOCHS // ROUTER_DRAWS, seed=evidence.seed).eval()


class PolicyMean:
    """Control: the policy's average weights over the training split, the same for every instance."""

    def __init__(self, policy: Policy, evidence: Evidence) -> None:
        """Average the policy's weights over the training rows."""
        if policy.observation.student:
            raise PolicyError(
                "policy_mean needs a policy without student features: its average is taken before there is a student; "
                "train the policy with a portable observation"
            )
        self.requires: frozenset[str] = frozenset()
        rows = torch.from_numpy(evidence.task.splits["train"])
        self.mean = policy.weights(read_state(evidence.task, evidence.source, rows)).mean(0)

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``policy_mean:PATH``."""
        return cls(load_policy(require_argument("policy_mean", argument, "policy_mean:runs/policy")), evidence)

    def weights(self, state: State) -> Tensor:
        """The average weights over the present teachers, shape (..., K)."""
        return normalised(self.mean.to(state.teacher_logits.device).expand(state.present.shape), state.present)


class PolicyShuffle:
    """Control: the policy's weights, permuted over the instances of the batch.

    If a student distilled with it is as good as with the policy, choosing per instance did nothing. The permutation
    is a function of the set of instance ids, so runs resume exactly and reordering a batch reorders the weights.
    """

    def __init__(self, policy: Policy) -> None:
        """Wrap a policy."""
        self.policy = policy
        self.requires = policy.requires | {"ids"}

    @classmethod
    def build(cls, argument: str | None, evidence: Evidence) -> Self:
        """Build from ``policy_shuffle:PATH``."""
        return cls(load_policy(require_argument("policy_shuffle", argument, "policy_shuffle:runs/policy")))

    def weights(self, state: State) -> Tensor:
        """The policy's weights with rows permuted, over the teachers present in each, shape (..., K)."""
        assert state.ids is not None
        weights = self.policy.weights(state)
        rows, ids = weights.flatten(0, -2), state.ids.flatten()
        by_id = ids.argsort()
        seed = int((ids.double() ** 2).sum().item()) % 2**31
        shift = torch.randperm(len(by_id), generator=torch.Generator().manual_seed(seed)).to(by_id.device)
        shuffled = torch.empty_like(rows)
        shuffled[by_id] = rows[by_id[shift]]
        return normalised(shuffled.view_as(weights), state.present)
