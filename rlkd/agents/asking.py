"""Train an asking policy: tasks with full caches in, a policy out that asks within a budget."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
from rlkd.agents.checkpoints import RandomState, read_checkpoint, write_checkpoint
from rlkd.agents.protocols import Array, Flags
from rlkd.asking.policy import AskingPolicy, load_asker
from rlkd.data.several import check_pairs, several
from rlkd.data.task import Task
from rlkd.devices import one_thread
from rlkd.errors import ConfigError, PolicyError
from rlkd.records import RunDirectory, commit, finished, newest_verified
from rlkd.settings import AskerTraining, AskingEpisode, ResumableCommand
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
    resume: bool = ResumableCommand.resume,
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
        output_dir: For config, metrics, checkpoints and ``policy/``; None writes nothing.
        resume: Continue from the newest checkpoint that verifies; the settings must be the same.
        progress: Show a progress bar.
        callback: A further Stable-Baselines3 callback.
        **training_kwargs: Fields of :class:`rlkd.settings.AskerTraining`, when ``training`` is None.

    Returns:
        What training started from or what it ended with, in eval mode: that which earned more in ``trial_episodes``
        that it did not learn in. Its ``training_record`` says what both earned there (``trials``, by timestep).
    """
    if training is not None and training_kwargs:
        raise ConfigError("pass training= or its fields, got both; the fields would be ignored")
    if output_dir is None and resume:
        raise ConfigError("resume needs an output_dir, got none; pass one")
    prepared = prepare_asker(
        several(task), several(cache), training=training or AskerTraining(**training_kwargs), episode=episode
    )
    return prepared.run(output_dir, resume=resume, progress=progress, callback=callback)


@dataclass(frozen=True, kw_only=True)
class PreparedAsker:
    """An asking policy's training that was found possible, before anything is written."""

    env: AskingEnvironment
    training: AskerTraining
    settings: Mapping[str, Any]
    """Everything the result depends on, for the run directory."""

    def run(
        self,
        output_dir: str | Path | None = None,
        *,
        resume: bool = ResumableCommand.resume,
        progress: bool = False,
        callback: BaseCallback | None = None,
    ) -> AskingPolicy:
        """Train; arguments and result are those of :func:`train_asker`."""
        settings = dict(self.settings)
        directory = None if output_dir is None else RunDirectory(output_dir, {"command": "train-asker", **settings})
        if directory is not None and resume and finished(directory.path / "policy") is not None:
            with suppress(PolicyError):  # damaged since: it is made again
                return load_asker(directory.path / "policy")
        record = {name: settings[name] for name in ("task", "training", "episode")}
        policy = AskingPolicy.create(training={**record, "commit": commit()}, seed=self.training.seed)
        with one_thread():
            kept = self._trained(policy, directory, resume=resume, progress=progress, callback=callback)
        self.env.close()
        if directory is not None:
            kept.save_pretrained(directory.path / "policy")
        return kept

    def _trained(
        self,
        policy: AskingPolicy,
        directory: RunDirectory | None,
        *,
        resume: bool,
        progress: bool,
        callback: BaseCallback | None,
    ) -> AskingPolicy:
        """The better of what rewards begin with and what they lead to."""
        training = self.training
        newest = newest_verified(directory.path) if directory is not None and resume else None
        if training.warm_start and newest is None:
            clone(policy, self.env, AskingRule(), episodes=training.warm_start_episodes, seed=training.seed)
        run = AskerRun(policy, self.env, training, directory)
        if newest is not None:
            run.load(newest)
        if directory is not None:
            directory.rewind(run.agent.num_timesteps)
        run.learn([AskerCallback(run, progress=progress), *([] if callback is None else [callback])])
        ends = ((0, run.begun), (run.agent.num_timesteps, policy))
        trials = {step: trial(one, self.env, training) for step, one in ends}
        best = max(trials, key=lambda step: trials[step]["reward"])
        kept = run.begun if best == 0 else policy
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


class AskerRun:
    """One training run of an asking policy, with its exact state: saved before every rollout, without a pickle."""

    def __init__(
        self,
        policy: AskingPolicy,
        env: AskingEnvironment,
        training: AskerTraining,
        directory: RunDirectory | None = None,
    ) -> None:
        """Build the agent around the policy.

        Args:
            policy: The actor; it learns in place.
            env: Where it acts.
            training: How.
            directory: For metrics and checkpoints.

        Source:
            Schulman et al. 2017, arXiv:1707.06347 (PPO); Huang, Ontañón 2020, arXiv:2006.14171 (masked actions).
        """
        self.training, self.directory = training, directory
        self.begun = copy.deepcopy(policy)
        """What rewards began with."""
        self.slots = AskingSlots(env, seed=training.seed)
        self._random: RandomState | None = None
        self.agent = MaskablePPO(
            AskingActorCritic,
            self.slots,
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

    def learn(self, callbacks: Sequence[BaseCallback] = ()) -> None:
        """Let the policy learn from rewards until ``total_timesteps``, counting what was done before."""
        remaining = self.training.total_timesteps - self.agent.num_timesteps
        if remaining > 0:
            self.agent.learn(remaining, callback=list(callbacks), reset_num_timesteps=False)

    def save(self) -> None:
        """Write a checkpoint, if there is a directory: the episode at hand is the actions that were taken in it."""
        if self.directory is None:
            return
        tensors = {f"begun.{name}": value for name, value in self.begun.state_dict().items()}
        if self.slots.taken:
            tensors["taken"] = torch.from_numpy(np.stack(self.slots.taken))
        plain = {"episode": self.slots.env.episode_number}
        write_checkpoint(self.directory.path, self.agent, tensors, plain)

    def load(self, folder: Path) -> None:
        """Restore a checkpoint of a run with the same settings."""
        loaded = read_checkpoint(folder, self.agent)
        self.begun.load_state_dict(loaded.under("begun."))
        self.slots.first_episode = loaded.plain["episode"]
        self.slots.taken = list(loaded.tensors["taken"].numpy()) if "taken" in loaded.tensors else []
        self._random = loaded.random

    def restore_random_state(self) -> None:
        """Put the generators back where the checkpoint found them."""
        if self._random is not None:
            self._random.restore()


class AskerCallback(BaseCallback):
    """Saves a run before every rollout, writes down what rollouts earned, and shows progress."""

    def __init__(self, run: AskerRun, *, progress: bool) -> None:
        """Watch a run."""
        super().__init__()
        self._run = run
        total = run.training.total_timesteps
        self._bar = tqdm(total=total, desc="asking policy", unit="decision", disable=not progress)

    def _on_training_start(self) -> None:
        self._run.restore_random_state()
        self._bar.update(self.num_timesteps)

    def _on_rollout_start(self) -> None:
        self._run.save()

    def _on_step(self) -> bool:
        self._bar.update(self.training_env.num_envs)
        return True

    def _on_rollout_end(self) -> None:
        slots, buffer = self._run.slots, cast(MaskablePPO, self.model).rollout_buffer
        values: dict[str, float] = {"rollout/reward_mean": float(buffer.rewards.mean())}
        if slots.recovered:
            values["rollout/recovered"] = float(np.mean(slots.recovered))
            slots.recovered = []
        if self._run.directory is not None:
            self._run.directory.log(self.num_timesteps, **values)

    def _on_training_end(self) -> None:
        self._bar.close()


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
