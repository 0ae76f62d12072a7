"""Train a weighting policy with Stable-Baselines3; the only module that imports it."""

import copy
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn
from tqdm.auto import tqdm

from rlkd.data.task import Task
from rlkd.errors import ConfigError, PolicyError, unknown_name
from rlkd.features import ObservationConfig
from rlkd.losses import soft_targets
from rlkd.records import commit, newest_verified, write_json_atomic, write_manifest
from rlkd.types import LogitSource, State
from rlkd.weighting.base import Evidence
from rlkd.weighting.learned import Policy, train_router

ENV_ID = "rlkd_envs:rlkd/TeacherWeighting-v0"

log = logging.getLogger(__name__)


class SlotsVecEnv(VecEnv):
    """A Gymnasium vector environment with same-step autoreset, as Stable-Baselines3 wants it."""

    def __init__(self, env: Any, *, first_episode: int = 0, seed: int = 0) -> None:
        """Wrap ``env``, whose first reset starts episode ``first_episode`` of ``seed``."""
        self.env, self._first_episode, self._seed = env, first_episode, seed
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> NDArray[np.float32]:
        """Start the first episode."""
        observation, _ = self.env.reset(seed=self._seed, options={"episode": self._first_episode})
        return np.asarray(observation)

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Remember the actions."""
        self._actions = actions

    def step_wait(self) -> Any:
        """Take the step."""
        observation, rewards, terminated, truncated, infos = self.env.step(self._actions)
        done = terminated | truncated
        slots: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            slots = [{"terminal_observation": last} for last in infos["final_obs"]]
        return observation, rewards, done, slots

    def close(self) -> None:
        """Close the wrapped environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute, once for each slot asked for."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set the attribute of the one environment behind all slots."""
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Call the method once for each slot asked for."""
        return [getattr(self.env, method_name)(*args, **kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """False: nothing is wrapped."""
        return [False for _ in self._get_indices(indices)]


class MaskedRolloutBuffer(RolloutBuffer):
    """A rollout buffer that leaves padded slots out of every update.

    A padded slot's observation is all zeros, which no real one is: its ``present`` features are 1.
    """

    def get(self, batch_size: int | None = None) -> Iterator[RolloutBufferSamples]:  # type: ignore[override]
        """Yield minibatches of real slots in random order."""
        assert self.full
        if not self.generator_ready:
            for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
                self.__dict__[name] = self.swap_and_flatten(self.__dict__[name])
            self.generator_ready = True
        valid = np.flatnonzero(self.observations.any(axis=1))
        order = np.random.permutation(valid)  # noqa: NPY002 (the generator that the library seeds and we restore)
        size = batch_size or len(order)
        for start in range(0, len(order), size):
            chunk = order[start : start + size]
            if len(chunk) > 1:  # advantages of a single row cannot be normalised
                yield self._get_samples(chunk)


class SetExtractor(nn.Module):
    """Actor and critic over the set of teachers; the actor is the policy that is saved and deployed."""

    def __init__(self, actor: Policy, hidden_size: int = 64) -> None:
        """Hold the actor, and a critic of the same kind that pools over teachers."""
        super().__init__()
        self.actor = actor
        self.critic = Policy.create(actor.observation, training={})
        self.latent_dim_pi = 1  # of the layer that the actor's own output replaces
        self.latent_dim_vf = hidden_size
        self._width = actor.observation.num_features

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of actor (B, K) and critic (B, H)."""
        return self.forward_actor(observations), self.forward_critic(observations)

    def forward_actor(self, observations: Tensor) -> Tensor:
        """Mean actions, shape (B, K)."""
        return self.actor(observations.unflatten(-1, (-1, self._width)))  # type: ignore[no-any-return]

    def forward_critic(self, observations: Tensor) -> Tensor:
        """Pooled codes, shape (B, H)."""
        return self.critic.embed(observations.unflatten(-1, (-1, self._width)))[1].squeeze(-2)


class TeacherSetPolicy(ActorCriticPolicy):
    """Gaussian actor-critic whose mean is a :class:`~rlkd.weighting.learned.Policy`; runs at any number of teachers."""

    def __init__(self, *args: Any, make_actor: Callable[[], Policy], **kwargs: Any) -> None:
        """Build around the actor that ``make_actor`` gives (a module cannot be held before ``Module.__init__``)."""
        self._make_actor = make_actor
        kwargs["ortho_init"] = False  # the actor comes initialised, and maybe trained
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = SetExtractor(self._make_actor())  # type: ignore[assignment]

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()
        self.log_std = nn.Parameter(torch.full((1,), self.log_std_init))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1), eps=1e-5)


ALGORITHMS: dict[str, tuple[type[OnPolicyAlgorithm], dict[str, Any]]] = {
    "ppo": (PPO, {"n_epochs": 6, "learning_rate": 2e-3, "clip_range": 0.2}),
    "a2c": (A2C, {"learning_rate": 2e-3, "normalize_advantage": True, "use_rms_prop": False}),
}
"""Algorithm and its settings beside those that all share."""


@dataclass(frozen=True, kw_only=True)
class PolicyTraining:
    """How a policy is trained."""

    total_timesteps: int = 100_000
    """Instances weighted over all episodes (slots times steps). Range: at least one rollout."""
    algorithm: str = "ppo"
    """``ppo`` or ``a2c``."""
    n_steps: int = 30
    """Student steps a rollout; must divide the horizon."""
    gamma: float = 0.0
    """Discount. 0: an instance's reward is its own; the next instance in its slot has nothing to do with it."""
    log_std: float = -0.7
    """Initial log standard deviation of the actions."""
    warm_start: bool = False
    """Clone the supervised router first, then learn from there."""
    warm_start_rows: int | None = None
    """Use at most so many labelled rows for the router."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if self.algorithm not in ALGORITHMS:
            raise unknown_name("algorithm", self.algorithm, ALGORITHMS)
        if self.total_timesteps < 1 or self.n_steps < 2 or not 0 <= self.gamma <= 1:
            raise ConfigError(
                "policy training needs total_timesteps >= 1, n_steps >= 2 and gamma in [0, 1], got "
                f"{self.total_timesteps}, {self.n_steps}, {self.gamma}"
            )
        if self.warm_start_rows is not None and not self.warm_start:
            raise ConfigError(
                "warm_start_rows would be ignored without warm_start; switch it on or leave the rows out"
            )


@dataclass
class LearningCurve:
    """What training looked like: one entry a rollout."""

    timesteps: list[int] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    """Mean reward of the rollout before; NaN for the first entry."""
    validation: list[float] = field(default_factory=list)
    """Mean probability of the label in the policy's mixture on validation rows, in [0, 1]."""


def validation_score(policy: Policy, state: State) -> float:
    """Mean probability of the label in the mixture that the policy gives, in [0, 1]; policies are chosen by it."""
    assert state.labels is not None
    mixture = soft_targets(state.teacher_logits, policy.weights(state))
    return float(mixture.gather(-1, state.labels.unsqueeze(-1)).mean())


class PolicyCallback(BaseCallback):
    """Keeps the best policy by validation, writes checkpoints at episode ends, and restores them."""

    def __init__(self, run: "PolicyRun", output_dir: Path | None, progress: bool) -> None:
        """Watch a run."""
        super().__init__()
        self.run_state, self.output_dir = run, output_dir
        self._bar = tqdm(
            total=run.training.total_timesteps, desc="policy", unit="instance", disable=not progress
        )

    def _on_training_start(self) -> None:
        self.run_state.restore_random_state()
        self._bar.update(self.num_timesteps)

    def _on_rollout_start(self) -> None:
        # before a rollout the policy is the one that the last update left behind
        self.run_state.note_policy()
        self.logger.record("validation/label_probability", self.run_state.curve.validation[-1])
        if self.output_dir is not None and self.run_state.at_episode_start:
            self.run_state.save(self.output_dir)

    def _on_step(self) -> bool:
        self._bar.update(self.training_env.num_envs)
        return True

    def _on_training_end(self) -> None:
        self.run_state.note_policy()
        self._bar.close()


class PolicyRun:
    """One training run of a policy, with its exact state: saved at episode ends without a pickle."""

    def __init__(
        self, env: Any, policy: Policy, training: PolicyTraining, *, tensorboard_log: str | None
    ) -> None:
        """Build the agent around the policy."""
        self.env, self.policy, self.training = env, policy, training
        self.curve = LearningCurve()
        self.best = copy.deepcopy(policy)
        self._random_state: dict[str, Any] | None = None
        self.slots = SlotsVecEnv(env, seed=training.seed)
        cls, settings = ALGORITHMS[training.algorithm]
        if cls is PPO:
            settings = settings | {
                "batch_size": env.num_envs * _steps_per_minibatch(training.n_steps, env.num_envs)
            }
        self.agent = cls(
            TeacherSetPolicy,
            self.slots,
            n_steps=training.n_steps,
            gamma=training.gamma,
            rollout_buffer_class=MaskedRolloutBuffer,
            policy_kwargs={"make_actor": lambda: policy, "log_std_init": training.log_std},
            seed=training.seed,
            device="cpu",
            tensorboard_log=tensorboard_log,
            **settings,
        )

    @property
    def at_episode_start(self) -> bool:
        """Whether no step of the episode at hand was taken: the state can be rebuilt from its number."""
        return bool(self.env.episode.step_index == 0)

    def note_policy(self) -> None:
        """Add to the learning curve, and keep the policy if it is the best so far."""
        buffer = self.agent.rollout_buffer
        if self.curve.timesteps and self.curve.timesteps[-1] == self.agent.num_timesteps:
            return
        score = validation_score(self.policy, self.env.validation_state())
        if not self.curve.validation or score > max(self.curve.validation):
            self.best.load_state_dict(self.policy.state_dict())
        self.curve.timesteps.append(self.agent.num_timesteps)
        self.curve.reward.append(float(buffer.rewards.mean()) if buffer.full else float("nan"))
        self.curve.validation.append(score)

    def learn(self, output_dir: Path | None, *, progress: bool, callback: BaseCallback | None) -> None:
        """Train until ``total_timesteps``, counting what was done before an interruption."""
        remaining = self.training.total_timesteps - self.agent.num_timesteps
        if remaining > 0:
            own = PolicyCallback(self, output_dir, progress)
            callbacks = own if callback is None else CallbackList([own, callback])
            self.agent.learn(remaining, callback=callbacks, reset_num_timesteps=False, tb_log_name="policy")

    def save(self, output_dir: Path) -> None:
        """Write a checkpoint: tensors as safetensors, the rest as JSON, the manifest last."""
        step = self.agent.num_timesteps
        folder = output_dir / f"checkpoint-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").unlink(missing_ok=True)
        optimizer = self.agent.policy.optimizer.state_dict()
        numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 (the library's generator)
        tensors = {f"policy.{k}": v for k, v in self.agent.policy.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.state_dict().items()}
        for index, slot in optimizer["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in slot.items()}
        tensors["random.torch"] = torch.get_rng_state()
        tensors["random.numpy"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
        save_file(
            {name: tensor.contiguous().clone() for name, tensor in tensors.items()},
            folder / "state.safetensors",
        )
        plain = {
            "num_timesteps": step,
            "n_updates": self.agent._n_updates,
            "episode": self.env.episode_number,
            "numpy_position": int(numpy_state["state"]["pos"]),
            "training": dataclasses.asdict(self.training),
            "curve": {
                k: [None if x != x else x for x in v] for k, v in dataclasses.asdict(self.curve).items()
            },
        }
        write_json_atomic(folder / "state.json", plain)
        write_manifest(folder)

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            ConfigError: If it was made with other settings.
        """
        plain = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        wanted = dataclasses.asdict(self.training)
        differing = [k for k in wanted if wanted[k] != plain["training"].get(k) and k != "total_timesteps"]
        if differing:
            raise ConfigError(
                f"{folder} was trained with other settings: {', '.join(differing)} differ; use the same, or --overwrite"
            )
        tensors = load_file(folder / "state.safetensors")
        self.agent.policy.load_state_dict(_under("policy.", tensors))
        self.best.load_state_dict(_under("best.", tensors))
        optimizer = self.agent.policy.optimizer.state_dict()
        optimizer["state"] = {}
        for name, value in _under("optimizer.", tensors).items():
            index, _, key = name.partition(".")
            optimizer["state"].setdefault(int(index), {})[key] = value
        self.agent.policy.optimizer.load_state_dict(optimizer)
        self.agent.num_timesteps = plain["num_timesteps"]
        self.agent._n_updates = plain["n_updates"]
        self.slots._first_episode = plain["episode"]
        curve = plain["curve"]
        self.curve = LearningCurve(
            curve["timesteps"],
            [float("nan") if x is None else x for x in curve["reward"]],
            curve["validation"],
        )
        self._random_state = {
            "torch": tensors["random.torch"],
            "numpy": (tensors["random.numpy"].numpy().astype(np.uint32), plain["numpy_position"]),
        }

    def restore_random_state(self) -> None:
        """Put the generators back where the checkpoint found them."""
        if self._random_state is None:
            return
        key, position = self._random_state["numpy"]
        torch.set_rng_state(self._random_state["torch"])
        np.random.set_state(("MT19937", key, position, 0, 0.0))  # noqa: NPY002 (the library's generator)


def _steps_per_minibatch(n_steps: int, num_envs: int) -> int:
    """The largest divisor of a rollout's steps whose minibatch has at most 512 slots."""
    return max(d for d in range(1, n_steps + 1) if n_steps % d == 0 and (d == 1 or d * num_envs <= 512))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def train_policy(
    task: Task,
    cache: LogitSource,
    *,
    student: Any = None,
    reward: str = "logit_gain",
    training: PolicyTraining | None = None,
    observation: ObservationConfig | None = None,
    episode: dict[str, Any] | None = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = False,
    tensorboard: bool = False,
    callback: BaseCallback | None = None,
    **training_kwargs: Any,
) -> Policy:
    """Train a weighting policy on students that distil from the cached teachers.

    Args:
        task: The task; its test rows are cut off before anything sees them.
        cache: The teachers' logits.
        student: Name or path of the student, or a function of a seed; None: the smallest from scratch.
        reward: Name of the reward, see :mod:`rlkd_envs.rewards`.
        training: Settings of the agent; None: made of ``training_kwargs``.
        observation: Feature groups; default label-free, without the student.
        episode: Settings of the students' runs: fields of ``rlkd_envs.episode.EpisodeSettings``.
        output_dir: For checkpoints, ``learning_curve.json`` and TensorBoard; None writes nothing.
        resume: Continue from the newest checkpoint that verifies.
        device: Of the students; the agent stays on the CPU.
        progress: Show a progress bar.
        tensorboard: Write TensorBoard logs to ``output_dir``.
        callback: A further Stable-Baselines3 callback.
        **training_kwargs: Fields of :class:`PolicyTraining`, when ``training`` is None.

    Returns:
        The policy that was best on validation, in eval mode; its ``curve`` attribute is the learning curve.
    """
    if training is not None and training_kwargs:
        raise ConfigError("pass training= or its fields, got both; the fields would be ignored")
    training = training or PolicyTraining(**training_kwargs)
    observation = observation or ObservationConfig()
    if observation.affinity and not cache.has_affinity:
        raise PolicyError("the observation reads 'affinity', the cache has none; build it with an embedder")
    folder = None if output_dir is None else Path(output_dir)
    if folder is None and (resume or tensorboard):
        raise ConfigError("resume and tensorboard need an output_dir, got none; pass one")
    env: Any = gymnasium.make_vec(
        ENV_ID,
        vectorization_mode="vector_entry_point",
        num_envs=(episode or {}).get("batch_size", 64),
        task=task,
        cache=cache,
        student=student,
        reward=reward,
        observation=observation,
        device=device,
        **{key: value for key, value in (episode or {}).items() if key != "batch_size"},
    ).unwrapped
    horizon = env.episode.settings.horizon
    if horizon % training.n_steps:
        raise ConfigError(
            f"n_steps must divide the horizon {horizon}, got {training.n_steps}; checkpoints need it"
        )
    record = {
        "task": task.name,
        "reward": reward,
        "teachers_seen": len(cache.teacher_names),
        "training": dataclasses.asdict(training),
        "commit": commit(),
    }
    policy = _initial_policy(task, cache, observation, training, record)
    logs = str(folder) if tensorboard else None
    run = PolicyRun(env, policy, training, tensorboard_log=logs)
    if resume and folder is not None and (newest := newest_verified(folder)) is not None:
        log.info("continuing from %s", newest)
        run.load(newest)
    run.learn(folder, progress=progress, callback=callback)
    env.close()
    best = run.best.eval()
    best.curve = run.curve  # type: ignore[assignment]
    return best


def _initial_policy(
    task: Task,
    cache: LogitSource,
    observation: ObservationConfig,
    training: PolicyTraining,
    record: dict[str, Any],
) -> Policy:
    policy = Policy.create(observation, training=record, seed=training.seed)
    if training.warm_start:
        view = task.training_view()
        evidence = Evidence(task=view, source=cache.head(len(view.table)), seed=training.seed)
        router = train_router(evidence, observation, max_rows=training.warm_start_rows)
        policy.load_state_dict(router.state_dict())
    return policy
