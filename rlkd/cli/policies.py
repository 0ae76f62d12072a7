"""Policies: learning a weighting."""

from dataclasses import asdict

from rlkd.cli.options import flags
from rlkd.cli.output import show
from rlkd.cli.root import app
from rlkd.settings import ObservationSettings, PolicyStudents, PolicyTraining, TasksSettings, TrainPolicyCommand


@app.command("train-policy")
@flags
def train_policy(
    tasks: TasksSettings,
    run: TrainPolicyCommand,
    students: PolicyStudents,
    training: PolicyTraining,
    observation: ObservationSettings,
) -> None:
    """Learn a weighting with reinforcement learning while students distil from the caches of one task or several."""
    from rlkd import workflow
    from rlkd.data import EMBEDDED
    from rlkd.features import ObservationConfig

    rows = workflow.run_train_policy(
        tasks.options(EMBEDDED),
        run.cache,
        run.output_dir,
        student=students.student,
        proxy=students.proxy,
        reward=students.reward,
        training=training,
        observation=ObservationConfig(**asdict(observation)),
        episode=students.episode(),
        device=students.device,
        jobs=run.jobs,
        tensorboard=run.tensorboard,
        **run.handling(),
    )
    show(rows, run.json)
