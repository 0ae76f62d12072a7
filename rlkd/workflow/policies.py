"""Policies: training one, and its learning curve."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from rlkd.agents import ENV_ID, PolicyTraining, train_policy
from rlkd.data import Task, load_task
from rlkd.data.splitting import check_seed
from rlkd.errors import ConfigError, PolicyError
from rlkd.features import ObservationConfig
from rlkd.logit_cache import LogitCache, load_cache
from rlkd.models.networks import check_device
from rlkd.records import check_output_dir, prepare_output_dir, read_jsonl
from rlkd.report import write_report
from rlkd.workflow.teachers import Rows


def run_train_policy(
    task_options: Mapping[str, Any],
    cache_dir: str,
    output_dir: str,
    *,
    student: str,
    reward: str = "logit_gain",
    training: PolicyTraining | None = None,
    observation: ObservationConfig | None = None,
    episode: Mapping[str, Any] | None = None,
    device: str = "cpu",
    tensorboard: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Rows:
    """Train a policy into ``output_dir/policy`` with its learning curve and a report."""
    training, observation, episode = training or PolicyTraining(), observation or ObservationConfig(), episode or {}
    check_output_dir(output_dir, resume=resume, overwrite=overwrite)
    check_device(device)
    check_seed(training.seed)
    task = load_task(**task_options)
    cache = load_cache(cache_dir, task)
    _check_policy_run(task, cache, student, reward, training, observation, episode)
    folder = prepare_output_dir(output_dir, resume=resume, overwrite=overwrite)
    train_policy(
        task,
        cache,
        student=student,
        reward=reward,
        training=training,
        observation=observation,
        episode=dict(episode),
        device=device,
        output_dir=folder,
        resume=resume,
        tensorboard=tensorboard,
        progress=progress,
    )
    curve = learning_curve(folder)
    scores = curve["validation"]
    best = int(np.argmax(scores))
    row = {
        "policy": str(folder / "policy"),
        "timesteps": curve["timesteps"][-1],
        "best_at": curve["timesteps"][best],
        "validation_before": scores[0],
        "validation_best": scores[best],
    }
    write_report(
        folder / "report.html",
        title=f"Policy trained on {task.name}",
        summary=[
            f"Reward {reward}; {row['timesteps']} instances weighted.",
            f"Geometric mean of the label's probability in the mixture on validation: {scores[0]:.3f} before "
            f"reinforcement learning, {scores[best]:.3f} for the policy that was kept.",
        ],
        learning_curve=curve,
    )
    return [row]


def _check_policy_run(
    task: Task,
    cache: LogitCache,
    student: str,
    reward: str,
    training: PolicyTraining,
    observation: ObservationConfig,
    episode: Mapping[str, Any],
) -> None:
    """Make the environment once, so that what cannot run is refused before an earlier run is deleted."""
    if observation.affinity and not cache.has_affinity:
        raise PolicyError("the observation reads 'affinity', the cache has none; build it with rlkd cache --embedder")
    if training.warm_start and observation.student:
        raise PolicyError("a warm start clones a router, which sees no student; switch one of the two off")
    if training.warm_start_rows is not None and training.warm_start_rows < 1:
        raise ConfigError(f"warm_start_rows must be 1 or more, got {training.warm_start_rows}; raise it")
    settings: dict[str, Any] = {"num_envs" if key == "batch_size" else key: value for key, value in episode.items()}
    settings |= {"task": task, "cache": cache, "student": student, "reward": reward, "observation": observation}
    env: Any = gymnasium.make_vec(ENV_ID, vectorization_mode="vector_entry_point", **settings)
    horizon = env.unwrapped.episode.settings.horizon
    if horizon % training.n_steps:
        raise ConfigError(f"n_steps must divide the horizon {horizon}, got {training.n_steps}; choose another")


def learning_curve(folder: Path) -> dict[str, list[Any]]:
    """What the report draws of a policy's training, from the metrics in its run directory."""
    records = read_jsonl(folder / "metrics.jsonl")
    return {
        "timesteps": [record["step"] for record in records],
        "reward": [record["rollout/reward_mean"] for record in records],
        "validation": [record["validation/label_probability"] for record in records],
    }
