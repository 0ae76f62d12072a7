"""Policies: learning a weighting."""

from typing import Annotated, Any

import typer

from rlkd.cli.options import (
    BatchSize,
    Bf16,
    CacheDir,
    Config,
    Device,
    Divergence,
    Json,
    KdRatio,
    LearningRate,
    MaxLength,
    OutputDir,
    Overwrite,
    Quiet,
    Resume,
    Seed,
    StudentLayers,
    StudentName,
    Temperature,
    finite,
    grouped,
    task_options,
)
from rlkd.cli.output import show
from rlkd.cli.root import app
from rlkd.defaults import FROM_NOTHING, REFINING, TEACHER_COPIES, TOTAL_TIMESTEPS, WARM_START, student_rate


def by_start(name: str) -> str:
    """How a default goes with the warm start, for ``--help``."""
    return f"{REFINING[name]:g}, or {FROM_NOTHING[name]:g} without a warm start"


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
    total_timesteps: Annotated[int, typer.Option(help="Instances weighted over all episodes.")] = TOTAL_TIMESTEPS,
    horizon: Annotated[int, typer.Option(help="Steps of the student in an episode.")] = 120,
    n_steps: Annotated[int, typer.Option(help="Steps of a rollout; divides the horizon.")] = 30,
    gamma: Annotated[float, typer.Option(help="Discount.")] = 0.0,
    teacher_dropout: Annotated[float, typer.Option(help="Chance that a teacher is absent.")] = 0.0,
    teacher_copies: Annotated[
        int, typer.Option(help="At most so many further places in a set, held by copies: for policies that travel.")
    ] = TEACHER_COPIES,
    agent_learning_rate: Annotated[
        float | None,
        typer.Option(
            callback=finite, help=f"Of the policy and its critic; by default {by_start('agent_learning_rate')}."
        ),
    ] = None,
    log_std: Annotated[
        float | None,
        typer.Option(
            callback=finite,
            help=f"Initial log standard deviation of the actions; by default {by_start('log_std')}.",
        ),
    ] = None,
    warm_start: Annotated[
        bool, typer.Option("--warm-start/--no-warm-start", help="Clone the supervised router first.")
    ] = WARM_START,
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
    learning_rate: LearningRate = None,
    temperature: Temperature = 1.0,
    kd_ratio: KdRatio = 1.0,
    divergence: Divergence = "kl",
    mix: Annotated[str, typer.Option(help="How teachers are mixed: probability or logit.")] = "probability",
    num_layers: StudentLayers = None,
    max_length: MaxLength = 128,
    bf16: Bf16 = False,
    seed: Seed = 0,
    device: Device = "auto",
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
            agent_learning_rate=agent_learning_rate,  # type: ignore[arg-type]  # None: by warm_start
            log_std=log_std,  # type: ignore[arg-type]  # likewise
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
            "learning_rate": student_rate(student) if learning_rate is None else learning_rate,
            "temperature": temperature,
            "kd_ratio": kd_ratio,
            "divergence": divergence,
            "mix": mix,
            "num_layers": num_layers,
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
