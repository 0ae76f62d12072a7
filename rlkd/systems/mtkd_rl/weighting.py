"""MTKD-RL's agent, deployed: the mean of a network's softmax and two heuristics.

Trained in :mod:`rlkd.systems.mtkd_rl.training`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlkd.errors import PolicyError
from rlkd.features import finite_logits
from rlkd.losses import teacher_cross_entropy
from rlkd.types import State
from rlkd.weighting.fixed_teachers import TeacherBoundPolicy, fallen_back
from rlkd.weighting.simplex import masked_softmax, normalised

BOUND = 100.0
"""Numbers of the state are clipped to this size."""


class MtkdRlAgent(TeacherBoundPolicy):
    """Weights ``(softmax(scores) + (1 - softmax(CE)) / (K - 1) + softmax(KL)) / 3``.

    CE is the teacher's cross entropy to the label; KL its divergence from the student, softened: the first heuristic
    prefers teachers that are right, the second those that are far from the student. The scores come from one hidden
    layer over the states of all teachers, so the agent is tied to its teachers, their order and the classes, and
    needs labels and the student wherever it is used.

    Source:
        Yang et al. 2025, arXiv:2502.18510 (MTKD-RL), and the weights of its released code.
    Deviation:
        Logits only: no feature distillation, so the second head, the cosine of the features and its heuristic are
        left out. The state holds the instance's embedding, where there is one, in place of each teacher's own.
        Without the ``--dynamic`` mixing of the code.
    """

    system = "mtkd_rl"
    action_kind = "scores"
    action_bound = 10.0
    observation_bound = BOUND

    def __init__(
        self,
        teachers: Sequence[str],
        num_classes: int,
        embedding_size: int = 0,
        hidden_size: int = 128,
        temperature: float = 4.0,
        training: dict[str, Any] | None = None,
    ) -> None:
        """Build an untrained agent.

        Args:
            teachers: Names of the K teachers, in order.
            num_classes: C.
            embedding_size: D of the instance embeddings; 0 leaves them out.
            hidden_size: Width of the hidden layer.
            temperature: Of the divergence from the student, which is multiplied by its square.
            training: What is remembered of the training.

        Raises:
            PolicyError: If a value is out of range.
        """
        super().__init__(teachers, num_classes, embedding_size, training)
        self.check_size("hidden size", hidden_size, 1)
        if not 0 < temperature < float("inf"):
            raise PolicyError(f"temperature must be finite and > 0, got {temperature}; 4 is the paper's")
        self.temperature = temperature
        self.num_features = 4 + num_classes + embedding_size
        inputs = len(teachers) * (self.num_features - 2)
        self.hidden = nn.Linear(inputs, hidden_size, bias=False)
        self.head = nn.Linear(hidden_size, len(teachers))

    @property
    def requires(self) -> frozenset[str]:
        """Labels and student; embeddings where they are observed."""
        return super().requires | {"student_logits"}

    @property
    def reads_student(self) -> bool:
        """True: for the divergence."""
        return True

    def observe(self, state: State) -> Tensor:
        """Of every teacher: present, sum of the heuristics, CE, KL, logits, embedding; shape (..., K, F)."""
        self.check_state(state)
        assert state.labels is not None
        assert state.student_logits is not None
        logits, present = finite_logits(state.teacher_logits), state.present
        ce = teacher_cross_entropy(logits, state.labels)
        kl = softened_divergence(logits, finite_logits(state.student_logits), self.temperature)
        heuristics = confidence_weights(ce, present) + divergence_weights(kl, present)
        parts = torch.stack([present.float(), heuristics, ce, kl], dim=-1)
        rows = torch.cat([parts, logits, *self.embedding_rows(state)], dim=-1)
        return torch.where(present.unsqueeze(-1), rows.clamp(-BOUND, BOUND), 0.0)

    def forward(self, rows: Tensor) -> Tensor:
        """Scores of the teachers: observation (..., K, F) to (..., K)."""
        scores: Tensor = self.head(torch.relu(self.hidden(rows[..., 2:].flatten(-2))))
        return scores

    def mix(self, actions: Tensor, rows: Tensor) -> Tensor:
        """Weights of scores, rows on the simplex, shape (..., K).

        Args:
            actions: Scores, shape (..., K).
            rows: The observation, shape (..., K, F).
        """
        return (masked_softmax(actions, rows[..., 0] > 0) + rows[..., 1]) / 3

    @torch.no_grad()
    def weights(self, state: State) -> Tensor:
        """Weights of a batch, shape (..., K)."""
        self.following(state)
        rows = self.observe(state)
        return fallen_back(self.mix(self(rows), rows), state)


def softened_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """KL from every teacher (..., K, C) to the student (..., C), both softened, times temperature squared; (..., K)."""
    log_p = F.log_softmax(teacher_logits / temperature, dim=-1)
    log_s = F.log_softmax(student_logits / temperature, dim=-1).unsqueeze(-2)
    divergence: Tensor = (log_p.exp() * (log_p - log_s)).sum(-1).clamp_min(0) * temperature**2
    return divergence


def confidence_weights(ce: Tensor, present: Tensor) -> Tensor:
    """``(1 - softmax(CE)) / (K - 1)`` over the present teachers, shape (..., K)."""
    return normalised(1 - masked_softmax(ce, present), present)


def divergence_weights(kl: Tensor, present: Tensor) -> Tensor:
    """``softmax(KL)`` over the present teachers, shape (..., K): the farther from the student, the more."""
    return masked_softmax(kl, present)
