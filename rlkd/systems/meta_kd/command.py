"""Meta-KD: many domains, one meta-teacher, a student for each domain."""

import typer

from rlkd.cli.options import flags
from rlkd.cli.output import show
from rlkd.settings import TaskSettings
from rlkd.systems.meta_kd.settings import DistillationSettings, MetaKdCommand


@flags
def meta_kd(task: TaskSettings, run: MetaKdCommand, distillation: DistillationSettings) -> None:
    """Train one meta-teacher on all domains of a task, and distil a small student for each domain from it."""
    from rlkd.systems.meta_kd.run import run_meta_kd

    rows = run_meta_kd(
        task.options(),
        run.output_dir,
        teaching=run.teaching(),
        distillation=distillation,
        settings=run.student(),
        num_layers=run.num_layers,
        hidden_size=run.hidden_size,
        domains=run.domain,
        seed=run.seed,
        **run.handling(),
    )
    show(rows, run.json)
    typer.echo(f"Report: {run.output_dir}/report.html; students: {run.output_dir}/students.")
