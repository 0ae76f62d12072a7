"""Policies: learning a weighting."""

from typing import Annotated, Any

import typer

from rlkd.cli.options import (
    BatchSize,
    Bf16,
    CacheDir,
    Config,
    Device,
    Json,
    KdRatio,
    LearningRate,
    MaxLength,
    OutputDir,
    Overwrite,
    Quiet,
    Resume,
    Seed,
    StudentName,
    Temperature,
    grouped,
    task_options,
)
from rlkd.cli.output import show
from rlkd.cli.root import app


@app.command("train-policy")
@grouped(task=task_options)
def train_policy(
    *,
    task: Any,
    cache: CacheDir,
    output_dir: OutputDir,
    student: StudentName = "rlkd/tiny",
    reward: Annotated[
        str, typer.Option(help="logit_gain, student_gain, influence, refined_influence or probe_gain.")
    ] = "logit_gain",
    algorithm: Annotated[str, typer.Option(help="ppo or a2c.")] = "ppo",
    total_timesteps: Annotated[int, typer.Option(help="Instances weighted over all episodes.")] = 92_160,
    horizon: Annotated[int, typer.Option(help="Steps of the student in an episode.")] = 120,
    n_steps: Annotated[int, typer.Option(help="Steps of a rollout; divides the horizon.")] = 30,
    gamma: Annotated[float, typer.Option(help="Discount.")] = 0.0,
    teacher_dropout: Annotated[float, typer.Option(help="Chance that a teacher is absent.")] = 0.0,
    teacher_copies: Annotated[
        int, typer.Option(help="At most so many further places in a set, held by copies: for policies that travel.")
    ] = 0,
    agent_learning_rate: Annotated[float, typer.Option(help="Of the policy and its critic.")] = 2e-3,
    log_std: Annotated[float, typer.Option(help="Initial log standard deviation of the actions.")] = -0.7,
    warm_start: Annotated[bool, typer.Option("--warm-start", help="Clone the supervised router first.")] = False,
    warm_start_rows: Annotated[int | None, typer.Option(help="Labelled rows for the warm start.")] = None,
    trials: Annotated[int, typer.Option(help="Students an episode by whose validation loss a policy is kept.")] = 2,
    refined_trials: Annotated[
        bool, typer.Option("--refined-trials", help="Refit their temperature first: for accuracy, not for sureness.")
    ] = False,
    observe_student: Annotated[bool, typer.Option("--observe-student", help="Student features and progress.")] = False,
    observe_affinity: Annotated[
        bool, typer.Option("--observe-affinity", help="Needs a cache with embeddings.")
    ] = False,
    observe_reliability: Annotated[
        bool, typer.Option("--observe-reliability", help="How good each teacher is on labelled validation rows.")
    ] = False,
    observe_labels: Annotated[bool, typer.Option("--observe-labels", help="Then deployment needs labels.")] = False,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 2e-3,
    temperature: Temperature = 1.0,
    kd_ratio: KdRatio = 1.0,
    max_length: MaxLength = 128,
    bf16: Bf16 = False,
    seed: Seed = 0,
    device: Device = "cpu",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard logs.")] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_file: Json = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Learn a weighting with reinforcement learning while students distil from the cache."""
    from rlkd import workflow
    from rlkd.agents import PolicyTraining
    from rlkd.features import ObservationConfig

    rows = workflow.run_train_policy(
        task,
        cache,
        output_dir,
        student=student,
        reward=reward,
        training=PolicyTraining(
            total_timesteps=total_timesteps,
            algorithm=algorithm,
            n_steps=n_steps,
            gamma=gamma,
            agent_learning_rate=agent_learning_rate,
            log_std=log_std,
            warm_start=warm_start,
            warm_start_rows=warm_start_rows,
            trials=trials,
            refined_trials=refined_trials,
            seed=seed,
        ),
        observation=ObservationConfig(
            student=observe_student,
            affinity=observe_affinity,
            reliability=observe_reliability,
            labelled=observe_labels,
        ),
        episode={
            "batch_size": batch_size,
            "horizon": horizon,
            "teacher_dropout": teacher_dropout,
            "teacher_copies": teacher_copies,
            "learning_rate": learning_rate,
            "temperature": temperature,
            "kd_ratio": kd_ratio,
            "max_length": max_length,
            "bf16": bf16,
        },
        device=device,
        tensorboard=tensorboard,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
    )
    show(rows, json_file)
