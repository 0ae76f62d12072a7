"""The observation: what a policy sees of an instance and its teachers, as bounded numbers.

The environment and the deployed policy call the same :func:`teacher_features`. Every feature is bounded, so no
running normaliser has to travel with a policy. No feature depends on the number of teachers, on the number or the
order of classes, or on the order of the teachers.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
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
USUAL_LEAD = 2.0
"""Of the largest logit over the second, in nats, to which teachers are scaled where they are seen as relative."""
LEAST_SURENESS = 1e-3
"""In nats: a teacher that says the same of all classes is not blown up."""

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

    YOUNGER: ClassVar = frozenset({"reliability", "relative"})
    UNSAID: ClassVar = frozenset({"relative"})
    """Switches that are only written down where they are on: so that what was made without them keeps its name."""

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
        switches |= {"reliability": self.reliability, "sureness": self.relative}
        return frozenset(name for name, on in switches.items() if on)

    def to_dict(self) -> dict[str, bool]:
        """Plain values, for ``config.json``."""
        return {name: on for name, on in asdict(self).items() if on or name not in self.UNSAID}

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
    if config.relative:
        logits = relative_logits(logits, _field(state, "sureness"))
    log_p = F.log_softmax(logits, dim=-1)
    p = log_p.exp()
    groups = [_base_features(logits, p, log_p, state)]
    if config.student:
        groups.append(_student_features(p, log_p, state))
    if config.affinity:
        groups.append(_field(state, "affinity").float().unsqueeze(-1).clamp(-2, 2) / 2)
    if config.reliability:
        groups.append(_reliability_features(_field(state, "reliability").float(), state.present))
    if config.labelled:
        groups.append(torch.exp(-teacher_cross_entropy(logits, _field(state, "labels"))).unsqueeze(-1))
    # rounding can leave the ranges by an ulp, and an absent teacher's inputs may be NaN
    features = torch.cat(groups, dim=-1).clamp_(-1, 1)
    if state.teacher_mask is None:
        return features
    return torch.where(state.teacher_mask.unsqueeze(-1), features, 0.0)


def finite_logits(logits: Tensor) -> Tensor:
    """Logits whose log-softmax is finite too: 0 * log 0 would be NaN."""
    return torch.nan_to_num(logits.detach().float()).clamp_(-LARGEST_LOGIT, LARGEST_LOGIT)


def usual_sureness(logits: Tensor | NDArray[Any], mask: Tensor | None = None) -> Tensor:
    """How sure teachers usually are: the mean lead of the largest logit over the second.

    Args:
        logits: Of many instances, unnormalised, shape (N, K, C), N >= 1, C >= 2; no labels are needed.
        mask: Bool, shape (N, K), False where a teacher is absent. None: all are there.

    Returns:
        Shape (K,), float32, >= 0; 0 of a teacher that is never there.
    """
    first, second = finite_logits(torch.as_tensor(logits)).topk(2, dim=-1).values.double().unbind(-1)
    lead = first - second
    if mask is None:
        return lead.mean(0).float()
    return ((lead * mask).sum(0) / mask.sum(0).clamp_min(1)).float()


def relative_logits(logits: Tensor, sureness: Tensor) -> Tensor:
    """Logits (..., K, C) as they would be if all teachers were usually as sure as one another, ``USUAL_LEAD``.

    Scales of logits are conventions of how teachers were trained. A network that is a stranger to them would trust
    who sounds surest; so it sees how sure a teacher is for one that is usually ``sureness`` (..., K), in its logits.
    """
    scale = USUAL_LEAD / sureness.float().clamp_min(LEAST_SURENESS)
    below = logits - logits.amax(-1, keepdim=True)  # scaled logits that are large would lose their differences
    return (below * scale.unsqueeze(-1)).clamp_(-LARGEST_LOGIT, 0.0)


def _field(state: State, name: str) -> Tensor:
    value = getattr(state, name)
    if value is None:
        raise PolicyError(f"the observation reads {name!r}, the state has none; pass it or use a portable policy")
    return value  # type: ignore[no-any-return]


def _base_features(logits: Tensor, p: Tensor, log_p: Tensor, state: State) -> Tensor:
    """``BASE``; of what has C numbers a teacher, each is written once: with many classes, memory is what takes time."""
    top = p.topk(min(2, p.shape[-1]), dim=-1)
    largest, spread = top.values[..., 0], logit_spread(logits)
    others, vote_share = _of_the_others(p, top.indices[..., 0], state)
    spare = torch.minimum(p, others)
    overlap = spare.sum(-1)
    entropy = _normalised_entropy(torch.mul(p, log_p, out=spare).sum(-1), p.shape[-1])
    log_others = others.clamp_min_(1e-6).log_()
    outlier = torch.sub(log_p, log_others, out=spare).mul_(p).sum(-1).clamp_min(0)
    return torch.stack(
        [
            state.present.float(),
            largest,
            torch.tanh(torch.logit(largest, eps=1e-7) / 8),
            largest - top.values[..., -1],
            entropy,
            spread / (spread + 4),
            overlap,
            vote_share,
            outlier / (1 + outlier),
        ],
        dim=-1,
    )


def _of_the_others(p: Tensor, votes: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """Of the other present teachers: their mean (..., K, C), and the share with the same vote (..., K), int (..., K).

    A teacher that is alone has itself for the others.
    """
    same = votes.unsqueeze(-1) == votes.unsqueeze(-2)
    if state.teacher_mask is None and p.shape[-2] > 1:  # the usual case: nobody is absent, nobody alone
        count = p.shape[-2] - 1
        return (p.sum(-2, keepdim=True) - p).div_(count), (same.sum(-1) - 1) / count
    present = state.present
    company = present.sum(-1, keepdim=True) - 1
    shown, counts = p * present.unsqueeze(-1), company.clamp_min(1)
    others = (shown.sum(-2, keepdim=True) - shown).div_(counts.unsqueeze(-1))
    share = ((same & present.unsqueeze(-2)).sum(-1) - 1) / counts
    alone = company <= 0
    return torch.where(alone.unsqueeze(-1), p, others), torch.where(alone, 1.0, share)


def logit_spread(logits: Tensor) -> Tensor:
    """Standard deviation of the finite ``logits`` (..., C) over classes, shape (...), rounded once from float64.

    As :func:`torch.std`, to the last bit but for ties of that rounding, in a quarter of its time. Squares are taken
    of the distances from one of the classes: then the mean of squares is at most C times what is left of it.
    """
    distances = logits.double()
    distances -= distances[..., :1].clone()
    mean, norm = distances.mean(-1), torch.linalg.vector_norm(distances, dim=-1)
    spread: Tensor = (norm.square_() / logits.shape[-1] - mean.square_()).clamp_min_(0).sqrt_().float()
    return spread


def _reliability_features(known: Tensor, present: Tensor) -> Tensor:
    shown = present.float()
    centre = (known[..., 0] * shown).sum(-1, keepdim=True) / shown.sum(-1, keepdim=True).clamp_min(1)
    return torch.stack([torch.tanh((known[..., 0] - centre) / 2), known[..., 1]], dim=-1)


def _student_features(p: Tensor, log_p: Tensor, state: State) -> Tensor:
    log_s = F.log_softmax(finite_logits(_field(state, "student_logits")), dim=-1).unsqueeze(-2)
    s = log_s.exp()
    kl = (p * (log_p - log_s.clamp_min(-20))).sum(-1).clamp_min(0)
    vote = s.expand_as(p).gather(-1, p.argmax(-1, keepdim=True)).squeeze(-1)
    entropy = _normalised_entropy((s * log_s).sum(-1), s.shape[-1]).expand_as(kl)
    confidence = s.amax(-1).expand_as(kl)
    progress = torch.full_like(kl, 0.0 if state.progress is None else state.progress)
    return torch.stack([kl / (1 + kl), vote, entropy, confidence, progress], dim=-1)


def _normalised_entropy(mean_log_p: Tensor, classes: int) -> Tensor:
    # as a tensor, and torch's own logarithm: an exported policy is told the number of classes when it runs
    return (-mean_log_p / torch.scalar_tensor(max(classes, 2)).log()).clamp(0, 1)
