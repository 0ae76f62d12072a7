"""Students: distilling one, and comparing weightings."""

import json
from typing import Annotated, Any

import typer

from rlkd.cli.options import (
    CacheDir,
    Config,
    Json,
    OutputDir,
    Overwrite,
    Quiet,
    Resume,
    Seed,
    grouped,
    student_settings,
    task_options,
)
from rlkd.cli.output import show, show_comparison
from rlkd.cli.root import app
from rlkd.errors import ConfigError


@app.command()
@grouped(task=task_options, settings=student_settings)
def distill(
    *,
    task: Any,
    cache: CacheDir,
    output_dir: OutputDir,
    weighting: Annotated[
        str, typer.Option(help="uniform, entropy, router, policy:PATH, ... or package.module:Name.")
    ] = "uniform",
    settings: Any,
    seed: Seed = 0,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    training_args: Annotated[
        str | None, typer.Option(help='Further TrainingArguments as JSON, such as {"weight_decay": 0.01}.')
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_file: Json = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Distil one student with a weighting, with checkpoints and a report."""
    from rlkd import workflow

    rows = workflow.run_distill(
        task,
        cache,
        output_dir,
        weighting=weighting,
        settings=settings,
        seed=seed,
        save_steps=save_steps,
        arguments=_json_object(training_args),
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
    )
    show(rows, json_file)
    typer.echo(f"Report: {output_dir}/report.html")


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        content = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"training_args must be a JSON object, got {text!r} ({error}); quote it") from error
    if not isinstance(content, dict):
        raise ConfigError(f'training_args must be a JSON object, got {text!r}; write {{"name": value}}')
    return content


@app.command()
@grouped(task=task_options, settings=student_settings)
def compare(
    *,
    task: Any,
    cache: CacheDir,
    output_dir: OutputDir,
    weighting: Annotated[
        list[str] | None, typer.Option(help="Repeatable; by default the baselines, the policy and its controls.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Folder of a policy, for the default weightings.")] = None,
    seeds: Annotated[int, typer.Option(help="Paired seeds; three are a look, five a claim.")] = 3,
    jobs: Annotated[int, typer.Option(help="Processes; each run has one thread.")] = 1,
    settings: Any,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_file: Json = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Distil one student per weighting and seed, paired, and print the table with intervals."""
    if weighting and policy is not None:
        raise ConfigError("--policy is for the default weightings and would be ignored; name policy:PATH instead")
    from rlkd import workflow

    rows, sentences = workflow.run_compare(
        task,
        cache,
        output_dir,
        settings=settings,
        weightings=weighting or (),
        policy=policy,
        seeds=seeds,
        jobs=jobs,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
    )
    show_comparison(rows, sentences, json_file, f"{output_dir}/report.html")
