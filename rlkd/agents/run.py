"""One training run of a policy: its settings, its learning curve, and its exact state on disk."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tqdm.auto import tqdm

from rlkd.agents.actor_critic import TeacherSetPolicy
from rlkd.agents.checkpoints import RandomState, read_checkpoint, write_checkpoint
from rlkd.agents.protocols import WeightingEnvironment
from rlkd.agents.sb3_env import MaskedRolloutBuffer, MiniBatchVecEnv
from rlkd.losses import soft_targets
from rlkd.records import RunDirectory, newest_verified
from rlkd.settings import PolicyTraining, TrainPolicyCommand
from rlkd.types import State
from rlkd.weighting.base import Weighting
from rlkd.weighting.policy_files import SavedPolicy

log = logging.getLogger(__name__)

SMALLEST_PROBABILITY = 1e-6
"""Of a label in the validation score: one hopeless row must not decide."""

PolicyT = TypeVar("PolicyT", bound=SavedPolicy)

ALGORITHMS: dict[str, tuple[type[OnPolicyAlgorithm], dict[str, Any]]] = {
    "ppo": (PPO, {"n_epochs": 10, "clip_range": 0.2}),
    "a2c": (A2C, {"normalize_advantage": True, "use_rms_prop": False}),
}
"""Algorithm and its settings beside those that all share."""


def validation_score(policy: Weighting, state: State) -> float:
    """Geometric mean of the label's probability in what the policy would have a student taught, in [0, 1].

    Cheap, and told at every rollout. Policies are not chosen by it: a student averages over what it is taught of alike
    instances, so that a policy that hedges on each of them scores best here and teaches worse.
    """
    assert state.labels is not None
    mixture = soft_targets(state.teacher_logits, policy.weights(state), labels=state.labels)
    label = mixture.gather(-1, state.labels.unsqueeze(-1)).clamp_min(SMALLEST_PROBABILITY)
    return float(label.log().mean().exp())


class PolicyCallback(BaseCallback):
    """Tells a run when a rollout begins and when training ends, and shows progress."""

    def __init__(self, run: "PolicyRun[Any]", progress: bool) -> None:
        """Watch a run."""
        super().__init__()
        self._run = run
        self._bar = tqdm(total=run.training.total_timesteps, desc="policy", unit="instance", disable=not progress)

    def _on_training_start(self) -> None:
        self._run.restore_random_state()
        self._bar.update(self.num_timesteps)

    def _on_rollout_start(self) -> None:
        # before a rollout the policy is the one that the last update left behind
        self._run.note_policy()
        if self._run.directory is not None and self._run.at_episode_start:
            self._run.save(self._run.directory.path)

    def _on_rollout_end(self) -> None:
        self._run.note_rewards()

    def _on_step(self) -> bool:
        self._bar.update(self.training_env.num_envs)
        return True

    def _on_training_end(self) -> None:
        self._run.note_policy()
        self._bar.close()


class PolicyRun(Generic[PolicyT]):
    """One training run of a policy, with its exact state: saved at episode ends without a pickle."""

    def __init__(
        self,
        env: WeightingEnvironment,
        policy: PolicyT,
        training: PolicyTraining,
        directory: RunDirectory | None = None,
        *,
        tensorboard: bool = TrainPolicyCommand.tensorboard,
        make_agent: Callable[[MiniBatchVecEnv], OnPolicyAlgorithm] | None = None,
        keep_best: bool = True,
    ) -> None:
        """Build the agent around the policy.

        Args:
            env: The vector face of the environment.
            policy: The actor; it learns in place.
            training: Settings of the agent.
            directory: For metrics and checkpoints.
            tensorboard: Write TensorBoard logs into the directory.
            make_agent: Builds another agent than ``training`` names; of ``training`` it is left to say how long.
            keep_best: Keep what training started from, and leave it to trial students whether its end is better.
                False: keep the last, and look at it once an episode.
        """
        self.keep_best = keep_best
        self.env, self.policy, self.training, self.directory = env, policy, training, directory
        self.best = copy.deepcopy(policy)
        self.best_at = 0
        self.reward_mean: float | None = None
        self.over_equal: float | None = None
        self._noted_at = -1
        self._random_state: RandomState | None = None
        self.slots = MiniBatchVecEnv(env, seed=training.seed)
        self.agent = self._actor_critic(tensorboard) if make_agent is None else make_agent(self.slots)

    def _actor_critic(self, tensorboard: bool) -> OnPolicyAlgorithm:
        training, env, policy, directory = self.training, self.env, self.policy, self.directory
        cls, settings = ALGORITHMS[training.algorithm]
        if cls is PPO:
            steps = _steps_per_minibatch(training.n_steps, env.num_envs)
            settings = settings | {"batch_size": steps * env.num_envs}
        return cls(
            TeacherSetPolicy,
            self.slots,
            n_steps=training.n_steps,
            gamma=training.gamma,
            learning_rate=training.agent_learning_rate,
            rollout_buffer_class=MaskedRolloutBuffer,
            policy_kwargs={"make_actor": lambda: policy, "log_std_init": training.log_std},
            seed=training.seed,
            device="cpu",
            tensorboard_log=str(directory.path) if directory is not None and tensorboard else None,
            **settings,
        )

    @property
    def at_episode_start(self) -> bool:
        """Whether no step of the episode at hand was taken: the state can be rebuilt from its number."""
        return self.env.at_episode_start

    def note_rewards(self) -> None:
        """Remember the mean reward of the rollout that just ended, and its lead over equal weights."""
        buffer = self.agent.rollout_buffer
        assert isinstance(buffer, MaskedRolloutBuffer)
        self.reward_mean = float(buffer.rewards[buffer.valid].mean())
        self.over_equal = self.slots.mean_over_equal()

    def note_policy(self) -> None:
        """Log a point of the learning curve; where the last policy is kept, keep it."""
        step = self.agent.num_timesteps
        if step == self._noted_at or not (self.keep_best or self.at_episode_start):
            return
        self._noted_at = step
        states = [state for state in self.env.validation_states() if len(state.teacher_logits)]
        scores = [validation_score(self.policy, state) for state in states]
        values = {"validation/label_probability": float(np.mean(scores))} if scores else {}
        if self.over_equal is not None:
            values["rollout/reward_over_equal"] = self.over_equal
        if not self.keep_best:
            self.best_at = step
            self.best.load_state_dict(self.policy.state_dict())
        for name, value in values.items():
            self.agent.logger.record(name, value)
        if self.directory is not None:
            self.directory.log(step, **{"rollout/reward_mean": self.reward_mean, **values})

    def learn(self, *, progress: bool, callback: BaseCallback | None) -> None:
        """Train until ``total_timesteps``, counting what was done before an interruption."""
        remaining = self.training.total_timesteps - self.agent.num_timesteps
        if remaining > 0:
            own = PolicyCallback(self, progress)
            callbacks = own if callback is None else CallbackList([own, callback])
            self.agent.learn(remaining, callback=callbacks, reset_num_timesteps=False, tb_log_name="tensorboard")

    def resume(self) -> None:
        """Continue from the newest checkpoint that verifies; without one, start anew."""
        assert self.directory is not None
        newest = newest_verified(self.directory.path)
        if newest is not None:
            log.info("continuing from %s", newest)
            self.load(newest)
        # the point of the learning curve at the checkpoint is logged again when training starts
        self.directory.rewind(self.agent.num_timesteps - 1)

    def save(self, output_dir: Path) -> None:
        """Write a checkpoint, see :func:`~rlkd.agents.checkpoints.write_checkpoint`."""
        plain = {
            "episode": self.env.episode_number,
            "best_at": self.best_at,
            "reward_mean": self.reward_mean,
            "reward_over_equal": self.over_equal,
        }
        write_checkpoint(output_dir, self.agent, {f"best.{k}": v for k, v in self.best.state_dict().items()}, plain)

    def load(self, folder: Path) -> None:
        """Restore a checkpoint of a run with the same settings."""
        loaded = read_checkpoint(folder, self.agent)
        self.best.load_state_dict(loaded.under("best."))
        plain = loaded.plain
        self.slots.first_episode = plain["episode"]
        self.best_at, self.reward_mean = plain["best_at"], plain["reward_mean"]
        self.over_equal = plain.get("reward_over_equal")  # checkpoints of earlier versions know none
        self._random_state = loaded.random

    def restore_random_state(self) -> None:
        """Put the generators back where the checkpoint found them."""
        if self._random_state is not None:
            self._random_state.restore()


def _steps_per_minibatch(n_steps: int, num_envs: int) -> int:
    """The largest divisor of a rollout's steps whose minibatch has at most 512 slots."""
    return max(d for d in range(1, n_steps + 1) if n_steps % d == 0 and (d == 1 or d * num_envs <= 512))
