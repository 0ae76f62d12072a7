"""What each teacher would gain a student, in closed form: all that a reward can say where every answer is known."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlkd.types import State
from rlkd.weighting.simplex import equal_weights

DECISIVE = 0.25
"""Lead in gain over the mean of the teachers from which on an action is as large as it can be."""


def teacher_gains(state: State, student: Tensor) -> Tensor:
    """What one step with each teacher alone would gain the student, up to what no weighting can change.

    A student p that is taught the mixture q_w = sum_k w_k q_k moves its logits against ``p - q_w``. Its cross entropy
    to the label y has the gradient ``p - y`` there, so to first order it falls by the reward ``logit_gain``::

        (p - q_w) . (p - y)  =  p . (p - y)  -  sum_k w_k  q_k . (p - y)
                             =  p . (p - y)  +  sum_k w_k (q_k[y] - q_k . p)

    The first term has no weight in it, and the second is linear in the weights: on the simplex it is largest at a
    corner. So the best action is one teacher, ``argmax_k q_k[y] - q_k . p``; and since the weights of an instance
    change no other instance's reward, the gains of all K teachers are known for every labelled instance whose answers
    are: a regression with full information. Reinforcement learning on this reward sees one noisy action a step of what
    is regressed here without noise, and can at best learn the same.

    Args:
        state: With labels, all of them given.
        student: Probabilities p of the student, shape (..., C).

    Returns:
        ``q_k[y] - q_k . p``, shape (..., K), float32, in [-1, 1]; 0 for absent teachers.
    """
    assert state.labels is not None
    q = F.softmax(state.teacher_logits.float(), dim=-1)
    labels = state.labels[..., None, None].expand(*q.shape[:-1], 1)
    gains = q.gather(-1, labels).squeeze(-1) - (q * student.unsqueeze(-2)).sum(-1)
    return torch.where(state.present, gains, 0.0)


def student_of_any_age(state: State, random: np.random.Generator) -> Tensor:
    """A student on its way from knowing nothing to what its teachers say on average, at a random point of it.

    What a portable policy does not see of the student, it has to be right about on average.

    Returns:
        ``(1 - t) / C + t * mean_k q_k`` over present teachers, t uniform in [0, 1], shape (..., C), float32.
    """
    q = F.softmax(state.teacher_logits.float(), dim=-1)
    taught = (equal_weights(state.present).unsqueeze(-1) * q).sum(-2)
    age = torch.from_numpy(random.random((*taught.shape[:-1], 1))).float()
    return (1 - age) / taught.shape[-1] + age * taught


def gain_actions(gains: Tensor, present: Tensor) -> Tensor:
    """What a network is regressed on: each teacher's lead over the mean of the present ones, as an action.

    Returns:
        Shape (..., K), in [-1, 1]; a lead of ``DECISIVE`` or more is 1.
    """
    mean = (equal_weights(present) * gains).sum(-1, keepdim=True)
    return torch.where(present, ((gains - mean) / DECISIVE).clamp(-1, 1), 0.0)
