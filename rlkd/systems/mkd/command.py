"""MKD: many tasks, one student."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from rlkd.cli.options import (
    BatchSize,
    Bf16,
    Config,
    Device,
    Json,
    LabelColumn,
    LearningRate,
    MaxLength,
    OutputDir,
    Overwrite,
    Quiet,
    Resume,
    Seed,
    SplitSeed,
    StudentLayers,
    TextColumn,
    TextPairColumn,
    finite,
    grouped,
)
from rlkd.cli.output import show
from rlkd.defaults import student_rate
from rlkd.errors import ConfigError


def task_list(
    *,
    task: Annotated[
        list[str],
        typer.Option(help="Repeatable: file, folder of splits, or hub id, or NAME=one of these; texts or pairs."),
    ],
    text_column: TextColumn = "text",
    text_pair_column: TextPairColumn = None,
    label_column: LabelColumn = "label",
    split_seed: SplitSeed = 0,
) -> list[dict[str, Any]]:
    """Arguments of load_task for every task; the columns are those of all."""
    shared: dict[str, Any] = {"text_column": text_column, "label_column": label_column, "seed": split_seed}
    if text_pair_column is not None:
        shared["text_pair_column"] = text_pair_column
    found = []
    for given in task:
        named = None if Path(given).exists() else re.fullmatch(r"([\w.-]+)=(.+)", given)
        found.append({"source": given, **shared} if named is None else {"source": named[2], "name": named[1], **shared})
    return found


@grouped(tasks=task_list)
def mkd(
    *,
    tasks: Any,
    output_dir: OutputDir,
    teacher: Annotated[str, typer.Option(help="Encoder of the teachers: rlkd/bilstm, rlkd/tiny, a hub id or a path.")],
    teachers: Annotated[str, typer.Option(help="multi: one of all tasks; single: one a task; or both.")] = "multi",
    weighting: Annotated[str, typer.Option(help="Of the teachers, with --teachers both: uniform, ...")] = "uniform",
    student: Annotated[str, typer.Option(help="Encoder of the student, likewise.")] = "rlkd/bilstm",
    num_layers: StudentLayers = None,
    epochs: Annotated[float, typer.Option(callback=finite, help="Passes of the joint student.")] = 10,
    learning_rate: LearningRate = None,
    divergence: Annotated[str, typer.Option(help="mse or mse_centred (on logits), or kl.")] = "mse",
    kd_ratio: Annotated[float, typer.Option(callback=finite, help="loss = (1 - kd_ratio) * CE + kd_ratio * KD.")] = 1.0,
    refine_epochs: Annotated[float, typer.Option(callback=finite, help="Passes on each task; 0: none.")] = 3,
    refine_kd_ratio: Annotated[float, typer.Option(callback=finite, help="Of the refinement; 0: labels alone.")] = 0.0,
    teacher_epochs: Annotated[float, typer.Option(callback=finite, help="Passes of the teachers.")] = 3,
    teacher_learning_rate: Annotated[
        float | None, typer.Option(callback=finite, help="By default 2e-3 from scratch, 5e-5 pretrained.")
    ] = None,
    batch_size: BatchSize = 32,
    max_length: MaxLength = 128,
    bf16: Bf16 = False,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    seed: Seed = 0,
    device: Device = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_file: Json = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Distil many tasks jointly into one student with a head for each, and refine it on every task."""
    if teachers not in ("multi", "single", "both"):
        raise ConfigError(f"teachers must be multi, single or both, got {teachers!r}; multi is MKD's own")
    if weighting != "uniform" and teachers != "both":
        raise ConfigError(f"weighting {weighting!r} would be ignored with one teacher a task; pass --teachers both")
    from rlkd.settings import found_device
    from rlkd.systems.mkd.run import run_mkd
    from rlkd.systems.mkd.training import refinement_phase
    from rlkd.trainer.multi_task_training import Phase, teacher_phase

    alike: dict[str, Any] = {
        "batch_size": batch_size,
        "max_length": max_length,
        "bf16": bf16,
        "device": found_device(device),
    }
    distilling = Phase(
        epochs=epochs,
        learning_rate=student_rate(student) if learning_rate is None else learning_rate,
        divergence=divergence,  # type: ignore[arg-type]  # checked there
        kd_ratio=kd_ratio,
        **alike,
    )
    refining = refinement_phase(distilling, epochs=refine_epochs, kd_ratio=refine_kd_ratio) if refine_epochs else None
    rows = run_mkd(
        tasks,
        output_dir,
        teacher=teacher,
        student=student,
        teaching=teacher_phase(teacher, epochs=teacher_epochs, learning_rate=teacher_learning_rate, **alike),
        distilling=distilling,
        refining=refining,
        parts=("single", "multi") if teachers == "both" else (teachers,),
        weighting=weighting,
        num_layers=num_layers,
        seed=seed,
        save_steps=save_steps,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
    )
    show(rows, json_file)
    typer.echo(f"Report: {output_dir}/report.html; the student: {output_dir}/student.")
