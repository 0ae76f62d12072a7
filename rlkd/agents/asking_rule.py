"""The rule that an asking policy is warmed up with: everybody at first, then who was trusted, then others if unsure."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rlkd.agents.asking_slots import AskingEnvironment, unflattened
from rlkd.agents.protocols import Array, Flags
from rlkd.asking.observation import SHARED_FEATURES, TEACHER_FEATURES
from rlkd.asking.policy import FORBIDDEN, AskingPolicy


@dataclass(frozen=True)
class AskingRule:
    """Asks by what is observed alone, so that a policy can be taught to do the same.

    Attributes:
        lessons: Share of the instances about which everybody is asked, at first.
        most: Of the budget that is spent on them.
        sure: Of the best answer, how far it is trusted times how sure it is, when nobody else is asked, in [0, 1].
    """

    lessons: float = 0.06
    most: float = 0.25
    sure: float = 0.35

    def actions(self, observations: Array, mask: Flags) -> NDArray[np.int64]:
        """What to do at every place, shape (B,), of observations (B, W) and masks (B, K + 1)."""
        teachers, shared = (part.numpy() for part in unflattened(torch.from_numpy(observations)))
        seen, told = _columns(teachers, TEACHER_FEATURES), _columns(shared, SHARED_FEATURES)
        labels = np.where(told["labels"][:, None] > 0, seen["class_correct"], seen["class_trusted"])
        worth = (seen["class_trusted"] + seen["near_trusted"] + 0.5 * labels) / np.sqrt(0.1 + seen["price"])
        scores = np.where(mask[:, 1:], worth, -np.inf)
        lesson = (told["rows_left"] > 1 - self.lessons) & (told["budget_left"] > 1 - self.most)
        surest = (seen["named_trusted"] * seen["max_probability"] * seen["answered"]).max(1)
        begun = told["asked_count"] > 0
        best = scores.argmax(1)
        unsure = surest < self.sure
        ask = mask[:, 1:].any(1) & (lesson | ~begun | unsure)
        return np.where(ask, best + 1, 0)


def _columns(values: Array, names: tuple[str, ...]) -> dict[str, Array]:
    return {name: values[..., place] for place, name in enumerate(names)}


def clone(
    policy: AskingPolicy,
    env: AskingEnvironment,
    rule: AskingRule,
    *,
    episodes: int,
    seed: int,
    passes: int = 6,
    learning_rate: float = 2e-3,
) -> float:
    """Teach a policy to do as a rule does, where the rule leads; it learns in place.

    Args:
        policy: The policy.
        env: The environment.
        rule: The rule.
        episodes: Played by the rule.
        seed: Of the episodes and of the order of lessons.
        passes: Over all that was seen.
        learning_rate: Of Adam.

    Returns:
        Mean cross entropy of the last pass, in nats.
    """
    observations, masks, actions = _played(env, rule, episodes, seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=learning_rate)
    lost = 0.0
    for _ in range(passes):
        order, losses = torch.randperm(len(actions), generator=generator), []
        for chunk in order.split(512):
            logits = policy(*unflattened(observations[chunk])).masked_fill(~masks[chunk], FORBIDDEN)
            loss = torch.nn.functional.cross_entropy(logits, actions[chunk], label_smoothing=0.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        lost = float(np.mean(losses))
    return lost


def _played(
    env: AskingEnvironment, rule: AskingRule, episodes: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a rule saw and did, where it had a choice."""
    seen, allowed, did = [], [], []
    observation, _ = env.reset(seed=seed)
    while episodes:
        mask = env.action_masks()
        chosen = rule.actions(observation, mask)
        free = mask.sum(1) > 1
        seen.append(observation[free])
        allowed.append(mask[free])
        did.append(chosen[free])
        observation, _, terminated, _, _ = env.step(chosen)
        episodes -= bool(terminated[0])
    return tuple(torch.from_numpy(np.concatenate(part)) for part in (seen, allowed, did))  # type: ignore[return-value]
