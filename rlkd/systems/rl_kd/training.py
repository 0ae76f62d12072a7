"""RL-KD: reinforced multi-teacher selection, as published and repaired.

A student is pre-trained with equal weights. Then, batch after batch, a selector draws a subset of the teachers for
every instance, the student learns from the mean of the selected, and the selector is updated with a reward.

Source:
    Yuan, Shou, Pei, Lin, Gong, Fu, Jiang 2021, "Reinforced Multi-Teacher Selection for Knowledge Distillation",
    arXiv:2012.06048. Its code was never released; where the text is silent, the re-implementations differ.
Deviation:
    The paper trains one student together with its selector; here a selector is trained over one or several students
    and deployed as a weighting on a further one. Adam with its own learning rate, which the paper does not tell.
    Reward 3 reads probe rows, never those that models are chosen on. Instances are not re-visited at an epoch's end
    to update the selector: it is updated every ``n_steps`` batches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlkd.agents.actor_training import (
    make_acting_env,
    observed_embedding_size,
    train_actor,
    training_record,
    with_switches,
)
from rlkd.agents.protocols import ActingEnvironment
from rlkd.agents.reinforce import BASELINES, UPDATES, Reinforce
from rlkd.data.splitting import check_seed
from rlkd.data.task import Task
from rlkd.errors import ConfigError, unknown_name
from rlkd.logit_cache import read_state
from rlkd.models.students import StudentFactory
from rlkd.systems.rl_kd.weighting import DECISIONS, RlKdSelector
from rlkd.types import LogitSource
from rlkd.weighting.subsets import EMPTY_SETS

CREDITS = ("batch", "instance")
SCALE_ROWS = 4096
"""Training rows that the state is standardised on, at most."""


@dataclass(frozen=True, kw_only=True)
class RlKdSettings:
    """How an RL-KD selector is trained; the first four are where the sources differ."""

    update: str = "reinforce"
    """``grad_pi`` follows the gradient of the selection probabilities, as the paper prints it; ``reinforce`` that of
    their logarithm."""
    baseline: str = "leave_one_out"
    """Subtracted from the reward: ``none``, ``ema`` or ``leave_one_out``."""
    empty_set: str = "argmax"
    """An instance without a selected teacher: ``label_only``, ``all``, ``argmax`` or ``resample``."""
    credit: str = "instance"
    """Whose reward a selection gets: that of its ``instance``, or the mean of its ``batch``."""
    reward: str = "logit_gain"
    """Name of the reward, see ``rlkd_envs.rewards``; the paper's are ``rl_kd_1``, ``rl_kd_2``, ``rl_kd_3``."""
    decision: str = "mode"
    """Deployed, a teacher is selected by a draw (``sample``), or if that is more probable than not (``mode``)."""
    selector_pretraining_steps: int = 0
    """First steps in which everybody is selected while the selector is updated. Range: >= 0."""
    pretraining_steps: int = 20
    """Steps of every student with equal weights before the first selection. Range: >= 0, < horizon."""
    embeddings: bool | None = None
    """Observe the instance's embedding. None: if the cache or the task has one; the answer is recorded."""
    joint: bool = False
    """Every teacher's unit reads the states of all teachers."""
    initial_probability: float = 0.5
    """Of every selection before training, in (0, 1)."""
    learning_rate: float = 0.02
    """Of the selector. Range: > 0."""
    n_steps: int = 1
    """Steps of the student between two updates of the selector; must divide horizon - pretraining_steps."""
    episodes: int = 10
    """Students, one after the other. Range: >= 1."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        choices = {
            "update": UPDATES,
            "baseline": BASELINES,
            "empty_set": EMPTY_SETS,
            "credit": CREDITS,
            "decision": DECISIONS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise unknown_name(name, getattr(self, name), allowed)
        if self.selector_pretraining_steps < 0 or not self.learning_rate > 0 or self.episodes < 1:
            raise ConfigError(
                "RL-KD needs selector_pretraining_steps >= 0, learning_rate > 0 and episodes >= 1, got "
                f"{self.selector_pretraining_steps}, {self.learning_rate} and {self.episodes}; mend the wrong one"
            )
        if not 0 < self.initial_probability < 1:
            raise ConfigError(f"initial_probability must lie in (0, 1), got {self.initial_probability}; 0.5 is usual")


PRESETS: dict[str, dict[str, Any]] = {
    "published": {
        "update": "grad_pi",
        "baseline": "none",
        "empty_set": "label_only",
        "credit": "batch",
        "reward": "rl_kd_1",
        "decision": "sample",
        "selector_pretraining_steps": 20,
    },
    "repaired": {},
}
"""``published``: the text taken by the letter. The empty set is not in it; GLMKD's reading, no distillation, is taken
with a normalised loss. ``repaired``: the defaults of :class:`RlKdSettings`, the same selector with a gradient that can
learn: log probabilities, a baseline, credit for each instance, a reward that pays for the step and not for what
the student knew before it, and never an empty set, because no teacher is as good as the label itself. What each
repair is worth is measured by ``benchmarks/published_algorithms.py``: the reward counts most; ``grad_pi`` does little
harm where rewards have both signs."""


def rl_kd_settings(preset: str = "published", **switches: Any) -> RlKdSettings:
    """Settings of a preset with some switches set by hand.

    Raises:
        UnknownNameError: If there is no such preset or choice.
        ConfigError: If a switch is unknown or out of range.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    return with_switches(RlKdSettings, "RL-KD", {**PRESETS[preset], **switches})


def train_rl_kd(
    task: Task,
    cache: LogitSource,
    *,
    preset: str = "published",
    student: str | StudentFactory | None = None,
    episode: Mapping[str, Any] | None = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = False,
    callback: Any = None,
    seed: int = 0,
    **switches: Any,
) -> RlKdSelector:
    """Train an RL-KD selector on students that distil from the cached teachers.

    Deployed as the weighting ``rl_kd:OUTPUT_DIR/policy``.

    Args:
        task: The task; its test rows are cut off before anything sees them.
        cache: The teachers' logits.
        preset: ``published`` or ``repaired``.
        student: Name or path of the student, or a function of a seed; None: the smallest from scratch.
        episode: Settings of the students' runs: fields of ``rlkd.settings.EpisodeSettings``; the paper's
            ``kd_ratio`` is 0.2, 0.5 or 0.7.
        output_dir: For config, metrics, checkpoints and ``policy/``; None writes nothing.
        resume: Continue from the newest checkpoint that verifies; the settings must be the same.
        device: Of the students; the selector stays on the CPU while it is trained.
        progress: Show a progress bar.
        callback: A further Stable-Baselines3 callback.
        seed: Of students, batches and draws.
        **switches: Fields of :class:`RlKdSettings`.

    Returns:
        The selector after its last update, in eval mode.
    """
    check_seed(seed)
    settings = rl_kd_settings(preset, **switches)
    selector = make_selector(task, cache, settings, preset=preset, seed=seed)
    env = selection_env(task, cache, selector, settings, student=student, episode=episode, device=device)
    return train_actor(
        env,
        selector,
        Reinforce,
        command="train-rl-kd",
        student=student,
        episodes=settings.episodes,
        seed=seed,
        output_dir=output_dir,
        resume=resume,
        progress=progress,
        callback=callback,
        **reinforce_settings(settings),
    )


def selection_env(
    task: Task,
    cache: LogitSource,
    selector: RlKdSelector,
    settings: RlKdSettings,
    *,
    student: str | StudentFactory | None,
    episode: Mapping[str, Any] | None,
    device: str,
) -> ActingEnvironment:
    """The environment that a selector is trained in; arguments are those of :func:`train_rl_kd`."""
    return make_acting_env(
        task,
        cache,
        selector,
        student=student,
        reward=settings.reward,
        credit=settings.credit,
        pretraining_steps=settings.pretraining_steps,
        episode=episode,
        device=device,
    )


def reinforce_settings(settings: RlKdSettings) -> dict[str, Any]:
    """What of the settings the algorithm is given."""
    return {
        "learning_rate": settings.learning_rate,
        "n_steps": settings.n_steps,
        "update": settings.update,
        "baseline": settings.baseline,
        "shared_reward": settings.credit == "batch",
        "all_selected_steps": settings.selector_pretraining_steps,
    }


def make_selector(
    task: Task, cache: LogitSource, settings: RlKdSettings, *, preset: str = "", seed: int = 0
) -> RlKdSelector:
    """An untrained selector, its state standardised on labelled training rows."""
    size = observed_embedding_size(task, cache, settings.embeddings)
    selector = RlKdSelector(
        teachers=list(cache.teacher_names),
        num_classes=task.num_classes,
        embedding_size=size,
        joint=settings.joint,
        empty_set=settings.empty_set,
        decision=settings.decision,
        initial_probability=settings.initial_probability,
        sampling_seed=seed,
        training=training_record("rl_kd", task, cache, settings, preset=preset, seed=seed, embedding_size=size),
    )
    ids = np.random.default_rng(seed).permutation(task.labelled_ids("train"))[:SCALE_ROWS]
    return selector.fit_scales(read_state(task, cache, torch.from_numpy(ids)))
