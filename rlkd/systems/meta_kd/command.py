"""Meta-KD: many domains, one meta-teacher, a student for each domain."""

from typing import Annotated, Any

import typer

from rlkd.cli.options import (
    BatchSize,
    Bf16,
    Config,
    Device,
    Json,
    KdRatio,
    MaxLength,
    MaxSteps,
    OutputDir,
    Overwrite,
    Quiet,
    Resume,
    Seed,
    Temperature,
    finite,
    grouped,
    task_options,
)
from rlkd.cli.output import show


def teacher_flags(
    *,
    encoder: Annotated[str, typer.Option(help="Pretrained encoder of the meta-teacher: a hub id or a path.")],
    teacher_epochs: Annotated[float, typer.Option(callback=finite, help="Passes of the meta-teacher.")] = 3,
    teacher_learning_rate: Annotated[float, typer.Option(callback=finite, help="Of the meta-teacher.")] = 5e-5,
    prototypes: Annotated[str, typer.Option(help="class: one a domain and class (paper); domain: one a domain.")] = (
        "class"
    ),
    centred: Annotated[bool, typer.Option("--centred", help="Subtract the mean embedding; t varies more.")] = False,
    weighted: Annotated[bool, typer.Option(help="Weight the meta-teacher's instances by t.")] = True,
    corruption_weight: Annotated[
        float, typer.Option(callback=finite, help="Of the domain-corruption loss, gamma 1.")
    ] = 0.5,
) -> dict[str, Any]:
    """How the meta-teacher learns."""
    return {
        "encoder": encoder,
        "epochs": teacher_epochs,
        "learning_rate": teacher_learning_rate,
        "prototypes": {"kind": prototypes, "centred": centred},
        "weighted": weighted,
        "corruption_weight": corruption_weight,
    }


def recipe_flags(
    *,
    schedule: Annotated[str, typer.Option(help="two_step: features, then logits; joint: all at once.")] = "two_step",
    feature_steps: Annotated[int, typer.Option(help="Steps on features.")] = 400,
    feature_learning_rate: Annotated[float, typer.Option(callback=finite, help="Of the steps on features.")] = 1e-3,
    embedding: Annotated[float, typer.Option(callback=finite, help="Weight of the embedding loss.")] = 1.0,
    hidden: Annotated[float, typer.Option(callback=finite, help="Of the hidden loss.")] = 1.0,
    attention: Annotated[float, typer.Option(callback=finite, help="Of the attention loss.")] = 1.0,
    transfer: Annotated[float, typer.Option(callback=finite, help="Of the transferable feature, gamma 2.")] = 0.5,
    expertise: Annotated[bool, typer.Option(help="Weight the student's instances by lambda.")] = True,
) -> dict[str, Any]:
    """How students learn from its features."""
    return {
        "schedule": schedule,
        "feature_steps": feature_steps,
        "feature_learning_rate": feature_learning_rate,
        "embedding": embedding,
        "hidden": hidden,
        "attention": attention,
        "transfer": transfer,
        "expertise": expertise,
    }


@grouped(task=task_options, teaching=teacher_flags, recipe=recipe_flags)
def meta_kd(
    *,
    task: Any,
    output_dir: OutputDir,
    teaching: Any,
    domain: Annotated[list[str] | None, typer.Option(help="Repeatable: make its student; by default all.")] = None,
    num_layers: Annotated[int, typer.Option(help="Of the students; must divide the encoder's.")] = 3,
    hidden_size: Annotated[int, typer.Option(help="Of the students; a multiple of the encoder's heads.")] = 96,
    recipe: Any,
    max_steps: MaxSteps = 200,
    batch_size: BatchSize = 32,
    learning_rate: Annotated[float, typer.Option(callback=finite, help="Of the students.")] = 5e-4,
    temperature: Temperature = 1.0,
    kd_ratio: KdRatio = 1.0,
    max_length: MaxLength = 128,
    bf16: Bf16 = False,
    device: Device = "auto",
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_file: Json = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Train one meta-teacher on all domains of a task, and distil a small student for each domain from it."""
    from rlkd.prototypes import PrototypeSettings
    from rlkd.settings import StudentSettings
    from rlkd.systems.meta_kd.distillation import DistillationSettings
    from rlkd.systems.meta_kd.run import run_meta_kd
    from rlkd.systems.meta_kd.teachers import MetaKdSettings

    own = {**teaching, "prototypes": PrototypeSettings(**teaching["prototypes"])}
    rows = run_meta_kd(
        task,
        output_dir,
        teaching=MetaKdSettings(**own, batch_size=batch_size, max_length=max_length, bf16=bf16, seed=seed),
        recipe=DistillationSettings(**recipe),
        settings=StudentSettings(
            max_steps=max_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            temperature=temperature,
            kd_ratio=kd_ratio,
            max_length=max_length,
            bf16=bf16,
            device=device,
        ),
        num_layers=num_layers,
        hidden_size=hidden_size,
        domains=domain or (),
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
    )
    show(rows, json_file)
    typer.echo(f"Report: {output_dir}/report.html; students: {output_dir}/students.")
