"""Policies: training one, and its learning curve."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd.agents import prepare_training
from rlkd.agents.training import own_rate
from rlkd.data import load_task
from rlkd.data.several import check_pairs, one_each, several
from rlkd.data.splitting import check_seed
from rlkd.devices import check_device, found_device
from rlkd.features import ObservationConfig
from rlkd.logit_cache import load_cache
from rlkd.models.students import smallest_student
from rlkd.records import check_output_dir, prepare_output_dir, read_jsonl, read_object
from rlkd.report import write_report
from rlkd.settings import PolicyStudents, PolicyTraining, ResumableCommand, TrainPolicyCommand
from rlkd.weighting.learned import Policy
from rlkd.workflow.opening import tell_if_alone
from rlkd.workflow.teachers import Rows


def run_train_policy(
    task_options: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    cache_dir: str | Sequence[str],
    output_dir: str,
    *,
    student: str | Sequence[str],
    proxy: str = PolicyStudents.proxy,
    reward: str = PolicyStudents.reward,
    training: PolicyTraining | None = None,
    observation: ObservationConfig | None = None,
    episode: Mapping[str, Any] | None = None,
    device: str = PolicyStudents.device,
    jobs: int | None = TrainPolicyCommand.jobs,
    tensorboard: bool = TrainPolicyCommand.tensorboard,
    resume: bool = ResumableCommand.resume,
    overwrite: bool = ResumableCommand.overwrite,
    progress: bool = False,
) -> Rows:
    """Train a policy into ``output_dir/policy`` with its learning curve and a report.

    Of several tasks, each has its options and its cache, in the same order. Students are one name for all or one a
    task; none at all: the smallest from scratch.
    """
    training, device = training or PolicyTraining(), found_device(device)
    options, folders = several(task_options), several(cache_dir)
    check_pairs([str(one.get("source")) for one in options], folders)
    names = one_each("student", student or None, len(options))
    own = {"teacher_copies": PolicyStudents.teacher_copies, **own_rate(names, episode)}
    check_output_dir(output_dir, resume=resume, overwrite=overwrite)
    check_device(device)
    check_seed(training.seed)
    tasks = [load_task(**one) for one in options]
    caches = [load_cache(folder, task) for folder, task in zip(folders, tasks, strict=True)]
    for cache in caches:
        tell_if_alone(cache)
    # what cannot run is refused before an earlier run is deleted
    prepared = prepare_training(
        tasks,
        caches,
        student=[name or smallest_student(task) for name, task in zip(names, tasks, strict=True)],
        proxy=proxy,
        reward=reward,
        training=training,
        observation=observation or ObservationConfig(),
        episode={**own, **(episode or {})},
        device=device,
    )
    folder = prepare_output_dir(output_dir, resume=resume, overwrite=overwrite)
    policy = prepared.run(folder, resume=resume, jobs=jobs, progress=progress, tensorboard=tensorboard)
    return [_write_report(folder, policy, ", ".join(task.name for task in tasks), reward, device)]


def _write_report(folder: Path, policy: Policy, task: str, reward: str, device: str) -> dict[str, Any]:
    """Write the page of a policy's training; its row of the table."""
    curve = learning_curve(folder)
    losses = policy.training_record["trial_losses"]
    kept_at = policy.training_record["kept_at"]
    before, kept = losses[min(losses, key=int)], losses[str(kept_at)]
    row = {
        "policy": str(folder / "policy"),
        "timesteps": curve["timesteps"][-1],
        "kept_at": kept_at,
        "loss_before": before,
        "loss": kept,
        "strength": policy.strength,
    }
    write_report(
        folder / "report.html",
        title=f"Policy trained on {task}",
        summary=[_verdict(curve)],
        details=[
            f"Reward {reward}; {row['timesteps']} instances weighted; students on {device}.",
            f"Trial students lose {before:.3f} nats on validation before reinforcement learning, "
            f"{kept:.3f} with the policy that was kept, that of timestep {kept_at}.",
            f"It acts at strength {policy.strength:g}; trial students lose on validation: "
            + ", ".join(f"{loss:.3f} at {at}" for at, loss in policy.training_record["strength_losses"].items())
            + " (0 is equal weights; less than full strength is taken only where students surely lose more than with "
            "those).",
        ],
        learning_curve=curve,
    )
    return row


def _verdict(curve: Mapping[str, Any]) -> str:
    """What trial students say of the policy that was kept; those that decided its strength."""
    kept, equal = curve["kept_loss"], curve["equal_loss"]
    if equal is None:
        return f"Students of the policy that was kept lose {kept:.3f} nats on validation; equal weights were not tried."
    than = "less than" if kept < equal else "as much as" if kept == equal else "more than"
    return (
        f"Students of the policy that was kept lose {kept:.3f} nats on validation, {than} those of equal weights with "
        f"{equal:.3f}; what it gains on test rows is for `rlkd compare` to tell."
    )


def learning_curve(folder: Path) -> dict[str, Any]:
    """What the report draws of a policy's training, from its run directory."""
    records = read_jsonl(folder / "metrics.jsonl")
    saved = read_object(folder / "policy" / "config.json")
    losses, compared = saved["training"].get("strength_losses", {}), saved["training"].get("trial_losses", {})
    return {
        "timesteps": [record["step"] for record in records],
        "reward": [record["rollout/reward_mean"] for record in records],
        "over_equal": [record.get("rollout/reward_over_equal") for record in records],
        "validation": [compared.get(str(record["step"]), record.get("validation/trial_loss")) for record in records],
        "equal_loss": losses.get("0.0"),
        "kept_loss": losses.get(str(float(saved.get("strength", 1)))),
    }
