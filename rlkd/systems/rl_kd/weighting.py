"""RL-KD's selector, deployed: one logistic unit a teacher decides whether the teacher is used for an instance.

Torch only. It is trained in :mod:`rlkd.systems.rl_kd.training`, which tells the four places in which sources differ.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlkd.errors import PolicyError
from rlkd.features import finite_logits
from rlkd.losses import teacher_cross_entropy
from rlkd.types import State
from rlkd.weighting.fixed_teachers import TeacherBoundPolicy, fallen_back
from rlkd.weighting.subsets import EMPTY_SETS, draw_subsets, filled, keyed_uniforms, modal_subsets

DECISIONS = ("sample", "mode")
"""Deployed, a teacher is selected with its probability, or if that is above one half."""
BOUND = 5.0
"""Standardised features are clipped to this size."""
ABSENT_SCORE = -30.0
LARGEST_CROSS_ENTROPY = 20.0


class RlKdSelector(TeacherBoundPolicy):
    """Selects a subset of the teachers for every instance; its weights are the mean of the selected.

    The probability of teacher k for instance i is ``sigmoid(w_k . s_ik + b_k)``. The state ``s_ik`` is the instance's
    embedding, the teacher's probabilities and its cross entropy to the label, so it needs labels wherever it is used,
    and is tied to its teachers, their order and the classes.

    Source:
        Yuan et al. 2021, arXiv:2012.06048 (RL-KD), section "Teacher Selector".
    Deviation:
        Features are standardised on the training rows and clipped; the paper does not say. The paper trains one
        student together with the selector; deployed here, a trained selector selects for a further student.
    """

    system = "rl_kd"
    action_kind = "subset"
    action_bound = 1.0
    observation_bound = BOUND

    def __init__(
        self,
        teachers: Sequence[str],
        num_classes: int,
        embedding_size: int = 0,
        joint: bool = False,
        empty_set: str = "label_only",
        decision: str = "sample",
        initial_probability: float = 0.5,
        sampling_seed: int = 0,
        training: dict[str, Any] | None = None,
    ) -> None:
        """Build an untrained selector that selects everybody with ``initial_probability``.

        Args:
            teachers: Names of the K teachers, in order.
            num_classes: C.
            embedding_size: D of the instance embeddings; 0 leaves the embedding out of the state.
            joint: Every unit reads the states of all teachers (GLMKD's reading), not only its own.
            empty_set: One of ``EMPTY_SETS``.
            decision: One of ``DECISIONS``.
            initial_probability: In (0, 1).
            sampling_seed: Of the deployed draws.
            training: What is remembered of the training.

        Raises:
            PolicyError: If a value is out of range.
        """
        super().__init__(teachers, num_classes, embedding_size, training)
        if empty_set not in EMPTY_SETS or decision not in DECISIONS:
            raise PolicyError(
                f"a selector needs empty_set of {', '.join(EMPTY_SETS)} and decision of {', '.join(DECISIONS)}, got "
                f"{empty_set!r} and {decision!r}; choose one of these"
            )
        if not 0 < initial_probability < 1:
            raise PolicyError(f"initial_probability must lie in (0, 1), got {initial_probability}; 0.5 is usual")
        self.joint, self.empty_set, self.decision, self.sampling_seed = joint, empty_set, decision, sampling_seed
        self.num_features = 1 + embedding_size + num_classes + 1
        count = len(teachers)
        weight = torch.zeros(count, count if joint else 1, self.num_features)
        own = torch.arange(count)
        # the first feature is 1 for a teacher that is there: its coefficient is the unit's bias
        weight[own, own if joint else 0, 0] = torch.logit(torch.tensor(float(initial_probability)))
        self.weight = nn.Parameter(weight)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(count, self.num_features))
        self.register_buffer("scale", torch.ones(count, self.num_features))

    @property
    def requires(self) -> frozenset[str]:
        """Labels for the cross entropies, ids where draws are keyed by them, embeddings where they are observed."""
        return super().requires | ({"ids"} if self.decision == "sample" else set())

    @property
    def reads_student(self) -> bool:
        """False: the student appears nowhere in RL-KD's state."""
        return False

    def fit_scales(self, state: State) -> Self:
        """Standardise the features on these rows (N instances)."""
        rows = self._raw_rows(state)
        mean, scale = rows.mean(0), rows.std(0, correction=0)
        mean[:, 0], scale[:, 0] = 0.0, 1.0
        self.mean.copy_(mean)
        # a feature that does not vary carries nothing, however far off it is elsewhere
        self.scale.copy_(torch.where(scale > 1e-4, scale, 1e30))
        return self

    def observe(self, state: State) -> Tensor:
        """The state of every teacher: present, embedding, probabilities, cross entropy; shape (..., K, F).

        Standardised, in [-5, 5]; rows of absent teachers are zero.
        """
        rows = ((self._raw_rows(state) - self.mean) / self.scale).clamp(-BOUND, BOUND)
        return torch.where(state.present.unsqueeze(-1), rows, 0.0)

    def _raw_rows(self, state: State) -> Tensor:
        self.check_state(state)
        assert state.labels is not None
        logits = finite_logits(state.teacher_logits)
        ce = teacher_cross_entropy(logits, state.labels).clamp_max(LARGEST_CROSS_ENTROPY)
        present = state.present.float().unsqueeze(-1)
        parts = [present, *self.embedding_rows(state), F.softmax(logits, dim=-1), ce.unsqueeze(-1)]
        return torch.cat(parts, dim=-1)

    def forward(self, rows: Tensor) -> Tensor:
        """Log odds of every teacher: observation (..., K, F) to (..., K)."""
        if self.joint:
            scores = torch.einsum("...jf,kjf->...k", rows, self.weight)
        else:
            scores = (rows * self.weight[:, 0]).sum(-1)
        return scores.masked_fill(rows[..., 0] <= 0, ABSENT_SCORE)

    def mix(self, actions: Tensor, rows: Tensor) -> Tensor:
        """Weights of a selection, shape (..., K): the mean of the selected, zeros where the label alone is to teach.

        Args:
            actions: Subsets, 0 or 1, shape (..., K).
            rows: The observation, shape (..., K, F).
        """
        present = rows[..., 0] > 0
        chosen = (actions > 0.5) & present
        if self.empty_set == "all":
            chosen = chosen | (present & ~chosen.any(-1, keepdim=True))
        elif self.empty_set != "label_only":
            chosen = filled(chosen.float(), self(rows).masked_fill(~present, -torch.inf)) > 0.5
        return chosen.float() / chosen.sum(-1, keepdim=True).clamp_min(1)

    @torch.no_grad()
    def probabilities(self, state: State) -> Tensor:
        """Probability of every teacher to be selected, shape (..., K), before any rule for the empty set."""
        return torch.sigmoid(self.following(state)(self.observe(state)))

    @torch.no_grad()
    def weights(self, state: State) -> Tensor:
        """Weights of a batch, shape (..., K); rows of zeros under ``label_only`` mean: the label alone.

        Draws are a function of seed, progress and instance id, so runs resume exactly.
        """
        self.following(state)
        rows = self.observe(state)
        scores = self(rows)
        if self.decision == "mode":
            chosen = modal_subsets(scores, self.empty_set)
        else:
            assert state.ids is not None
            uniforms = keyed_uniforms(state.ids, len(self.teachers), (self.sampling_seed, state.progress or 0.0))
            chosen = draw_subsets(scores, uniforms, self.empty_set)
        return fallen_back(self.mix(chosen, rows), state)
