"""MKD: many tasks, one student."""

import re
from pathlib import Path
from typing import Any

import typer

from rlkd.cli.options import flags
from rlkd.cli.output import show
from rlkd.errors import ConfigError
from rlkd.settings import student_rate
from rlkd.systems.mkd.settings import MkdCommand


def task_list(run: MkdCommand) -> list[dict[str, Any]]:
    """Arguments of load_task for every task; the columns are those of all."""
    shared: dict[str, Any] = {"text_column": run.text_column, "label_column": run.label_column, "seed": run.split_seed}
    if run.text_pair_column is not None:
        shared["text_pair_column"] = run.text_pair_column
    found = []
    for given in run.task:
        named = None if Path(given).exists() else re.fullmatch(r"([\w.-]+)=(.+)", given)
        found.append({"source": given, **shared} if named is None else {"source": named[2], "name": named[1], **shared})
    return found


@flags
def mkd(run: MkdCommand) -> None:
    """Distil many tasks jointly into one student with a head for each, and refine it on every task."""
    if run.weighting != MkdCommand.weighting and run.teachers != "both":
        raise ConfigError(f"weighting {run.weighting!r} would be ignored with one teacher a task; pass --teachers both")
    from rlkd.devices import found_device
    from rlkd.settings import MultiTaskSettings
    from rlkd.systems.mkd.run import MkdSettings, run_mkd
    from rlkd.systems.mkd.training import refinement_settings
    from rlkd.trainer.multi_task_training import multi_task_teacher_settings

    alike: dict[str, Any] = {
        "batch_size": run.batch_size,
        "max_length": run.max_length,
        "bf16": run.bf16,
        "device": found_device(run.device),
    }
    rate: float | None = run.learning_rate
    distilling = MultiTaskSettings(
        epochs=run.epochs,
        learning_rate=student_rate(run.student) if rate is None else rate,
        divergence=run.divergence,
        kd_ratio=run.kd_ratio,
        **alike,
    )
    refining = None
    if run.refine_epochs:
        refining = refinement_settings(distilling, epochs=run.refine_epochs, kd_ratio=run.refine_kd_ratio)
    plan = MkdSettings(
        teacher=run.teacher,
        parts=("single", "multi") if run.teachers == "both" else (run.teachers,),
        weighting=run.weighting,
        student=run.student,
        num_layers=run.num_layers,
        teaching=multi_task_teacher_settings(
            run.teacher, epochs=run.teacher_epochs, learning_rate=run.teacher_learning_rate, **alike
        ),
        distilling=distilling,
        refining=refining,
        seed=run.seed,
        save_steps=run.save_steps,
    )
    rows = run_mkd(task_list(run), run.output_dir, plan, **run.handling())
    show(rows, run.json)
    typer.echo(f"Report: {run.output_dir}/report.html; the student: {run.output_dir}/student.")
