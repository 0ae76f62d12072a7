"""Students: distilling one, and comparing weightings."""

import json
from typing import Any

import typer

from rlkd.cli.options import flags
from rlkd.cli.output import say, show, show_comparison, stop_if_failed, write_json
from rlkd.cli.root import app
from rlkd.errors import ConfigError
from rlkd.settings import CompareCommand, DistillCommand, StudentSettings, TaskSettings


@app.command()
@flags
def distill(task: TaskSettings, run: DistillCommand, settings: StudentSettings) -> None:
    """Distil one student with a weighting, with checkpoints and a report."""
    from rlkd import workflow
    from rlkd.report.usage import student_lines

    rows = workflow.run_distill(
        task.options(),
        run.cache,
        run.output_dir,
        weighting=run.weighting,
        settings=settings,
        seed=run.seed,
        save_steps=run.save_steps,
        trial_students=run.trial_students,
        arguments=_json_object(run.training_args),
        **run.handling(),
    )
    show(rows, run.json, [name for name in rows[0] if name != "why"])
    say([row["why"] for row in rows[:1] if "why" in row])
    typer.echo(f"Report: {run.output_dir}/report.html")
    typer.echo("\n".join(student_lines(f"{run.output_dir}/student", settings.max_length)))


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        content = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"training_args must be a JSON object, got {text!r} ({error}); quote it") from error
    if not isinstance(content, dict):
        raise ConfigError(f'training_args must be a JSON object, got {text!r}; write {{"name": value}}')
    return content


@app.command()
@flags
def compare(task: TaskSettings, run: CompareCommand, settings: StudentSettings) -> None:
    """Distil one student per weighting and seed, paired, and print the table with intervals."""
    if run.weighting and run.policy is not None:
        raise ConfigError("--policy is for the default weightings and would be ignored; name policy:PATH instead")
    if run.weighting and not run.labels:
        raise ConfigError("--no-labels is for the default weightings and would be ignored; leave it out")
    from rlkd import workflow

    found = workflow.run_compare(
        task.options(),
        run.cache,
        run.output_dir,
        settings=settings,
        weightings=run.weighting,
        policy=run.policy,
        labels=run.labels,
        seeds=run.seeds,
        jobs=run.jobs,
        trial_students=run.trial_students,
        **run.handling(),
    )
    show_comparison(found.rows, found.sentences, f"{run.output_dir}/report.html")
    typer.echo()
    show(found.teachers, None)
    say(found.advice)
    write_json(run.json, [*found.rows, *found.teachers])
    stop_if_failed(found.rows)
