"""Train an asking policy: tasks with full caches in, a policy out that asks within a budget."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback
from tqdm.auto import tqdm

from rlkd.agents.asking_rule import AskingRule, clone
from rlkd.agents.asking_slots import AskingActorCritic, AskingEnvironment, AskingSlots, unflattened
from rlkd.agents.protocols import Array, Flags
from rlkd.asking.policy import AskingPolicy
from rlkd.data.several import check_pairs, several
from rlkd.data.task import Task
from rlkd.devices import one_thread
from rlkd.errors import ConfigError
from rlkd.records import RunDirectory, commit
from rlkd.settings import AskerTraining, AskingEpisode
from rlkd.types import LogitSource

ENV_ID = "rlkd_envs:rlkd/TeacherAsking-v0"
PASSES = 6
"""Over the decisions of a rollout."""
TRIALS_SEED = 1_000_003
"""Added to the seed of training: episodes by which policies are compared are none that they learned in."""


def train_asker(
    task: Task | Sequence[Task],
    cache: LogitSource | Sequence[LogitSource],
    *,
    training: AskerTraining | None = None,
    episode: AskingEpisode | None = None,
    output_dir: str | Path | None = None,
    progress: bool = False,
    callback: BaseCallback | None = None,
    **training_kwargs: Any,
) -> AskingPolicy:
    """Train a policy that decides which teacher to ask about which instance, and when to stop.

    Args:
        task: The task, or several, of which every episode draws one; test rows are cut off before anything sees them.
        cache: All answers of the teachers, or those of each task in the same order. Numbers of teachers and classes may
            differ.
        training: Settings of the agent; None: made of ``training_kwargs``.
        episode: What is drawn for an episode.
        output_dir: For config, metrics and ``policy/``; None writes nothing.
        progress: Show a progress bar.
        callback: A further Stable-Baselines3 callback.
        **training_kwargs: Fields of :class:`rlkd.settings.AskerTraining`, when ``training`` is None.

    Returns:
        What training started from or what it ended with, in eval mode: that which earned more in ``trial_episodes``
        that it did not learn in. Its ``training_record`` says what both earned there (``trials``, by timestep).
    """
    if training is not None and training_kwargs:
        raise ConfigError("pass training= or its fields, got both; the fields would be ignored")
    prepared = prepare_asker(
        several(task), several(cache), training=training or AskerTraining(**training_kwargs), episode=episode
    )
    return prepared.run(output_dir, progress=progress, callback=callback)


@dataclass(frozen=True, kw_only=True)
class PreparedAsker:
    """An asking policy's training that was found possible, before anything is written."""

    env: AskingEnvironment
    training: AskerTraining
    settings: Mapping[str, Any]
    """Everything the result depends on, for the run directory."""

    def run(
        self, output_dir: str | Path | None = None, *, progress: bool = False, callback: BaseCallback | None = None
    ) -> AskingPolicy:
        """Train; arguments and result are those of :func:`train_asker`."""
        settings = dict(self.settings)
        directory = None if output_dir is None else RunDirectory(output_dir, {"command": "train-asker", **settings})
        record = {name: settings[name] for name in ("task", "training", "episode")}
        policy = AskingPolicy.create(training={**record, "commit": commit()}, seed=self.training.seed)
        with one_thread():
            kept = self._trained(policy, AskerCallback(directory, self.training, progress=progress), callback)
        self.env.close()
        if directory is not None:
            kept.save_pretrained(directory.path / "policy")
        return kept

    def _trained(self, policy: AskingPolicy, own: "AskerCallback", callback: BaseCallback | None) -> AskingPolicy:
        """The better of what rewards begin with and what they lead to."""
        training = self.training
        if training.warm_start:
            clone(policy, self.env, AskingRule(), episodes=training.warm_start_episodes, seed=training.seed)
        begun = copy.deepcopy(policy)
        agent = learn(policy, self.env, training, callbacks=[own] if callback is None else [own, callback])
        ends = ((0, begun), (agent.num_timesteps, policy))
        trials = {step: trial(one, self.env, training) for step, one in ends}
        best = max(trials, key=lambda step: trials[step]["reward"])
        kept = begun if best == 0 else policy
        return kept.with_record(kept_at=best, trials={str(step): figures for step, figures in trials.items()})


def prepare_asker(
    tasks: Sequence[Task],
    caches: Sequence[LogitSource],
    *,
    training: AskerTraining,
    episode: AskingEpisode | None = None,
) -> PreparedAsker:
    """Make the environment; arguments are those of :func:`train_asker`.

    Raises:
        ConfigError: Settings do not fit together.
        TaskError: A task has no labels to reward asking by.
    """
    episode = episode or AskingEpisode()
    check_pairs([one.name for one in tasks], [" + ".join(one.teacher_names) for one in caches])
    if len(tasks) > training.trial_episodes:
        raise ConfigError(
            f"expected trial_episodes >= {len(tasks)}, one of each task, got {training.trial_episodes}; raise it, or "
            "leave tasks out"
        )
    settings = {
        "task": [one.name for one in tasks],
        "data": [one.fingerprint for one in tasks],
        "teachers": [list(one.teacher_names) for one in caches],
        "training": training.record(),
        "episode": episode.record(),
    }
    return PreparedAsker(env=make_places(tasks, caches, episode), training=training, settings=settings)


def make_places(tasks: Sequence[Task], caches: Sequence[LogitSource], episode: AskingEpisode) -> AskingEnvironment:
    """Make the vector face of the environment."""
    made = gymnasium.make_vec(
        ENV_ID,
        num_envs=episode.places,
        vectorization_mode="vector_entry_point",
        task=list(tasks),
        cache=list(caches),
        settings=episode,
    )
    return cast(AskingEnvironment, made.unwrapped)


class AskerCallback(BaseCallback):
    """Writes down what rollouts earned, and shows progress."""

    def __init__(self, directory: RunDirectory | None, training: AskerTraining, *, progress: bool) -> None:
        """Watch a training.

        Args:
            directory: For metrics.
            training: That is watched.
            progress: Show a progress bar.
        """
        super().__init__()
        self._directory = directory
        self._bar = tqdm(total=training.total_timesteps, desc="asking policy", unit="decision", disable=not progress)

    def _on_step(self) -> bool:
        self._bar.update(self.training_env.num_envs)
        return True

    def _on_rollout_end(self) -> None:
        slots, buffer = self.training_env, cast(MaskablePPO, self.model).rollout_buffer
        assert isinstance(slots, AskingSlots)
        values: dict[str, float] = {"rollout/reward_mean": float(buffer.rewards.mean())}
        if slots.recovered:
            values["rollout/recovered"] = float(np.mean(slots.recovered))
            slots.recovered = []
        if self._directory is not None:
            self._directory.log(self.num_timesteps, **values)

    def _on_training_end(self) -> None:
        self._bar.close()


def learn(
    policy: AskingPolicy, env: AskingEnvironment, training: AskerTraining, *, callbacks: Sequence[BaseCallback] = ()
) -> MaskablePPO:
    """Let a policy learn from rewards, in place.

    Args:
        policy: The actor.
        env: Where it acts.
        training: How.
        callbacks: Of Stable-Baselines3.

    Returns:
        The agent.

    Source:
        Schulman et al. 2017, arXiv:1707.06347 (PPO); Huang, Ontañón 2020, arXiv:2006.14171 (masked actions).
    """
    agent = MaskablePPO(
        AskingActorCritic,
        AskingSlots(env, seed=training.seed),
        n_steps=training.n_steps,
        batch_size=_minibatch(training.n_steps * env.num_envs),
        n_epochs=PASSES,
        gamma=training.gamma,
        learning_rate=training.agent_learning_rate,
        ent_coef=training.entropy_weight,
        policy_kwargs={"make_actor": lambda: policy},
        seed=training.seed,
        device="cpu",
    )
    agent.learn(training.total_timesteps, callback=list(callbacks))
    return agent


def _minibatch(decisions: int) -> int:
    """The largest divisor of a rollout's decisions that is at most 512."""
    return max(size for size in range(1, min(decisions, 512) + 1) if decisions % size == 0)


def trial(policy: AskingPolicy, env: AskingEnvironment, training: AskerTraining) -> dict[str, float]:
    """What a policy earns in episodes that it did not learn in: ``reward`` a place and episode, and ``recovered``."""
    draws = np.random.default_rng(training.seed)
    observation, _ = env.reset(seed=training.seed + TRIALS_SEED)
    earned, recovered = 0.0, list[float]()
    while len(recovered) < training.trial_episodes:
        chosen = flat_actions(policy, observation, env.action_masks(), draws)
        observation, rewards, terminated, _, infos = env.step(chosen)
        earned += float(rewards.mean())
        if terminated[0]:
            recovered.append(float(infos["recovered"][0]))
    return {"reward": round(earned / len(recovered), 6), "recovered": round(float(np.mean(recovered)), 6)}


def flat_actions(policy: AskingPolicy, observations: Array, mask: Flags, random: np.random.Generator | None) -> Any:
    """Actions of a policy at observations (B, W) of an environment, see :meth:`AskingPolicy.actions`."""
    teachers, shared = unflattened(torch.from_numpy(observations))
    return policy.actions((teachers.numpy(), shared.numpy()), mask, random)
