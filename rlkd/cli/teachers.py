"""Teachers: training them, asking them once, and what room they leave."""

from typing import Annotated, Any

import typer

from rlkd.cli.options import (
    BatchSize,
    Bf16,
    CacheDir,
    Config,
    Device,
    Json,
    MaxLength,
    OutputDir,
    Overwrite,
    Quiet,
    Resume,
    Seed,
    finite,
    grouped,
    task_options,
)
from rlkd.cli.output import show, write_json
from rlkd.cli.root import app
from rlkd.errors import ConfigError


@app.command("train-teachers")
@grouped(task=task_options)
def train_teachers(
    *,
    task: Any,
    output_dir: OutputDir,
    kind: Annotated[
        list[str], typer.Option(help="One teacher each: tfidf, rlkd/bilstm, rlkd/tiny, rlkd/mlp, a hub id or a path.")
    ],
    specialize: Annotated[str | None, typer.Option(help="class or domain: each teacher sees only some.")] = None,
    variant: Annotated[int, typer.Option(help="Another number deals other classes or domains.")] = 0,
    share: Annotated[float, typer.Option(help="Of the classes or domains that a specialist knows.")] = 0.5,
    epochs: Annotated[float, typer.Option(callback=finite, help="Passes over the data.")] = 3,
    learning_rate: Annotated[
        float | None, typer.Option(callback=finite, help="By default 2e-3 from scratch, 5e-5 pretrained.")
    ] = None,
    batch_size: BatchSize = 32,
    num_layers: Annotated[int | None, typer.Option(help="Keep only the first layers of pretrained teachers.")] = None,
    max_length: MaxLength = 128,
    bf16: Bf16 = False,
    seed: Seed = 0,
    device: Device = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_file: Json = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Train a set of teachers, each on all of the data or on its own classes or domains."""
    if specialize not in (None, "class", "domain"):
        raise ConfigError(f"specialize must be class or domain, got {specialize!r}; leave it out to train on all")
    from rlkd import workflow

    rows = workflow.run_train_teachers(
        task,
        kind,
        output_dir,
        specialize=specialize,
        variant=variant,
        share=share,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        num_layers=num_layers,
        max_length=max_length,
        bf16=bf16,
        seed=seed,
        device=None if device == "auto" else device,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
    )
    show(rows, json_file)


@app.command()
@grouped(task=task_options)
def cache(
    *,
    task: Any,
    teachers: Annotated[
        list[str],
        typer.Option(
            help="Folders of teachers, or one that holds them all. Logits: a folder of train.npy, validation.npy and "
            "test.npy, rows in the order of your files, columns in that of the classes or named in label_names.json."
        ),
    ],
    output_dir: OutputDir,
    batch_size: BatchSize = 64,
    max_length: MaxLength = 128,
    dtype: Annotated[str, typer.Option(help="float32 or float16, on disk.")] = "float32",
    embedder: Annotated[str | None, typer.Option(help="Encoder for the affinity feature: hub id or path.")] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    json_file: Json = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Ask every teacher about every instance once, and keep the logits; continues an interrupted build."""
    from rlkd import workflow

    rows = workflow.run_cache(
        task,
        teachers,
        output_dir,
        batch_size=batch_size,
        max_length=max_length,
        dtype=dtype,
        embedder=embedder,
        device=None if device == "auto" else device,
        overwrite=overwrite,
        progress=not quiet,
    )
    show(rows, json_file)


@app.command()
@grouped(task=task_options)
def headroom(
    *,
    task: Any,
    cache: CacheDir,
    split: Annotated[str, typer.Option(help="validation, or another split.")] = "validation",
    json_file: Json = None,
    config: Config = None,
) -> None:
    """How much could instance weighting gain here? From the cache alone, before anything is trained."""
    from rlkd import workflow

    rows, verdict = workflow.run_headroom(task, cache, split)
    show(rows[:1], None)
    show(rows[1:], None)
    typer.echo(verdict)
    write_json(json_file, rows)
