"""The observation: what a policy sees of an instance and its teachers, as bounded numbers.

The environment and the deployed policy call the same :func:`teacher_features`. Every feature is bounded, so no
running normaliser has to travel with a policy. No feature depends on the number of teachers, on the number or the
order of classes, or on the order of the teachers.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkd.errors import PolicyError
from rlkd.losses import teacher_cross_entropy
from rlkd.settings import ObservationSettings
from rlkd.settings.knobs import names_of
from rlkd.types import State

FEATURE_VERSION = 1
LARGEST_LOGIT = 1e6
"""Logits are clipped to this size before anything is computed from them."""

BASE = (
    "present",
    "max_probability",
    "log_odds",
    "margin",
    "entropy",
    "logit_spread",
    "agreement",
    "vote_share",
    "outlier_kl",
)
"""Per teacher, in [0, 1] but for ``log_odds``: is it there; largest probability; its log odds x as tanh(x / 8), in
[-1, 1], which still tells 0.99 from 0.9999; gap to the second largest; entropy / log C; standard deviation s of the
logits over classes as s / (s + 4); overlap of its distribution with the mean of the other teachers; share of the
others with the same top class; KL from it to the mean of the others, squashed by x / (1 + x)."""
STUDENT = ("student_kl", "student_vote", "student_entropy", "student_max_probability", "progress")
"""KL from the teacher to the student, squashed; the student's probability of the teacher's top class; the student's
entropy / log C and largest probability; share of the training budget spent. All in [0, 1]."""
AFFINITY = ("affinity",)
"""Cosine of the instance's embedding to the centroid of the teacher's training data, centred over teachers, halved:
in [-1, 1]. Source: the prototype scores of Meta-KD, arXiv:2012.01266."""
RELIABILITY = ("reliability", "overconfidence")
"""Log odds x of the teacher's accuracy on the labelled validation rows, less their mean over the present teachers, as
tanh(x / 2); its mean confidence there minus its accuracy. Both in [-1, 1]. They are the same for every instance: with
them, a policy can prefer a teacher as such."""
LABELLED = ("label_probability",)
"""The teacher's probability of the label, exp(-CE), in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class ObservationConfig(ObservationSettings):
    """Which groups of features a policy sees; the layout is versioned by ``FEATURE_VERSION``."""

    YOUNGER: ClassVar = frozenset({"reliability"})

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the F features, in order."""
        return (
            BASE
            + (STUDENT if self.student else ())
            + (AFFINITY if self.affinity else ())
            + (RELIABILITY if self.reliability else ())
            + (LABELLED if self.labelled else ())
        )

    @property
    def num_features(self) -> int:
        """Number of features F per teacher."""
        return len(self.feature_names)

    @property
    def requires(self) -> frozenset[str]:
        """Fields of a :class:`~rlkd.types.State` that the features read beside the teacher logits."""
        switches = {"student_logits": self.student, "affinity": self.affinity, "labels": self.labelled}
        switches |= {"reliability": self.reliability}
        return frozenset(name for name, on in switches.items() if on)

    def to_dict(self) -> dict[str, bool]:
        """Plain values, for ``config.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "ObservationConfig":
        """Read what :meth:`to_dict` wrote.

        Raises:
            PolicyError: If the keys or types are not those of this version.
        """
        expected = sorted(names_of(cls))
        if not isinstance(values, dict) or sorted({*values, *cls.YOUNGER}) != expected:
            raise PolicyError(f"an observation must have the keys {', '.join(expected)}, got {values!r}")
        if not all(isinstance(value, bool) for value in values.values()):
            raise PolicyError(f"an observation's switches must be true or false, got {values!r}")
        return cls(**values)


def teacher_features(state: State, config: ObservationConfig) -> Tensor:
    """Compute the observation of a batch.

    Args:
        state: With every field that ``config.requires`` names.
        config: Which groups of features.

    Returns:
        Shape (..., K, F), float32, every value in [-1, 1]; rows of absent teachers are zero.
    """
    logits = finite_logits(state.teacher_logits)
    present = state.present
    log_p = F.log_softmax(logits, dim=-1)
    groups = [_base_features(logits, log_p, present)]
    if config.student:
        groups.append(_student_features(log_p, state))
    if config.affinity:
        groups.append(_field(state, "affinity").float().unsqueeze(-1).clamp(-2, 2) / 2)
    if config.reliability:
        groups.append(_reliability_features(_field(state, "reliability").float(), present))
    if config.labelled:
        groups.append(torch.exp(-teacher_cross_entropy(logits, _field(state, "labels"))).unsqueeze(-1))
    # rounding can leave the ranges by an ulp, and an absent teacher's inputs may be NaN
    features = torch.cat(groups, dim=-1).clamp(-1, 1)
    return torch.where(present.unsqueeze(-1), features, 0.0)


def finite_logits(logits: Tensor) -> Tensor:
    """Logits whose log-softmax is finite too: 0 * log 0 would be NaN."""
    return torch.nan_to_num(logits.detach().float()).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)


def _field(state: State, name: str) -> Tensor:
    value = getattr(state, name)
    if value is None:
        raise PolicyError(f"the observation reads {name!r}, the state has none; pass it or use a portable policy")
    return value  # type: ignore[no-any-return]


def _base_features(logits: Tensor, log_p: Tensor, present: Tensor) -> Tensor:
    p = log_p.exp()
    shown = present.unsqueeze(-1).float()
    others_count = (present.sum(-1, keepdim=True) - 1).clamp_min(1).unsqueeze(-1)
    others = ((p * shown).sum(-2, keepdim=True) - p * shown) / others_count
    alone = (present.sum(-1) <= 1)[..., None, None]
    others = torch.where(alone, p, others)
    top = p.topk(min(2, p.shape[-1]), dim=-1)
    one_hot = F.one_hot(top.indices[..., 0], p.shape[-1]).float() * shown
    same_votes = (one_hot * (one_hot.sum(-2, keepdim=True) - one_hot)).sum(-1) / others_count.squeeze(-1)
    spread = logits.std(-1, correction=0)
    outlier = (p * (log_p - others.clamp_min(1e-6).log())).sum(-1).clamp_min(0)
    return torch.stack(
        [
            present.float(),
            top.values[..., 0],
            torch.tanh(torch.logit(top.values[..., 0], eps=1e-7) / 8),
            top.values[..., 0] - top.values[..., -1],
            _normalised_entropy(p, log_p),
            spread / (spread + 4),
            torch.minimum(p, others).sum(-1),
            torch.where(alone.squeeze(-1), torch.ones_like(same_votes), same_votes),
            outlier / (1 + outlier),
        ],
        dim=-1,
    )


def _reliability_features(known: Tensor, present: Tensor) -> Tensor:
    shown = present.float()
    centre = (known[..., 0] * shown).sum(-1, keepdim=True) / shown.sum(-1, keepdim=True).clamp_min(1)
    return torch.stack([torch.tanh((known[..., 0] - centre) / 2), known[..., 1]], dim=-1)


def _student_features(log_p: Tensor, state: State) -> Tensor:
    log_s = F.log_softmax(finite_logits(_field(state, "student_logits")), dim=-1).unsqueeze(-2)
    p, s = log_p.exp(), log_s.exp()
    kl = (p * (log_p - log_s.clamp_min(-20))).sum(-1).clamp_min(0)
    vote = s.expand_as(p).gather(-1, p.argmax(-1, keepdim=True)).squeeze(-1)
    entropy = _normalised_entropy(s, log_s).expand_as(kl)
    confidence = s.amax(-1).expand_as(kl)
    progress = torch.full_like(kl, 0.0 if state.progress is None else state.progress)
    return torch.stack([kl / (1 + kl), vote, entropy, confidence, progress], dim=-1)


def _normalised_entropy(p: Tensor, log_p: Tensor) -> Tensor:
    entropy = -(p * log_p).sum(-1) / torch.log(torch.tensor(float(max(p.shape[-1], 2))))
    return entropy.clamp(0, 1)
