"""The door: one call per command. Everything heavy is imported inside the commands, so ``--help`` is instant.

Every command takes ``--config FILE.yaml``; its keys are the flags, with underscores, and flags win over it.
"""

import io
import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from rlkd.errors import ConfigError, RlkdError, nearest, one_line

app = typer.Typer(
    name="rlkd",
    help="Learn which teacher to trust on which instance while a student is distilled.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's keys the defaults of the command's flags."""
    if path is None:
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"expected a readable YAML file at {path}: {one_line(error)}; mend or name another"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"expected flags and values in {path}, got {type(content).__name__}; write 'flag: value'")
    named = ((_flag_name(parameter), parameter) for parameter in context.command.params)
    flags = {name: parameter for name, parameter in named if name not in ("config", "help")}
    defaults = {}
    for key, value in content.items():
        if key not in flags:
            raise ConfigError(
                f"{path} has the unknown key {key!r}; {nearest(str(key), flags)}known are: {', '.join(sorted(flags))}"
            )
        defaults[flags[key].name] = _config_value(path, key, value, many=getattr(flags[key], "multiple", False))
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _flag_name(parameter: Any) -> str:
    """``output_dir`` for ``--output-dir, -o``."""
    longest: str = max(parameter.opts, key=len)
    return longest.lstrip("-").replace("-", "_")


def _config_value(path: Path, key: str, value: Any, *, many: bool) -> Any:
    """A value as its flag takes it: one is a list of one where a flag is repeatable, a mapping is JSON."""
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list) and not many:
        raise ConfigError(f"{path} must give {key!r} one value, got a list; only repeatable flags take lists")
    return [value] if many and value is not None and not isinstance(value, list) else value


def _finite(parameter: typer.CallbackParam, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"{parameter.opts[0]} must be a finite number, got {value}; leave it out for its default")
    return value


def _writable(path: Path | None) -> Path | None:
    """Refuse a file that cannot be written before the work of which it is to hold the result."""
    if path is None:
        return None
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"--json expected a file that can be written, got {path}; name another")
    return path


Config = Annotated[
    Path | None,
    typer.Option("--config", callback=_read_config, is_eager=True, help="YAML file; its keys are these flags."),
]
TaskName = Annotated[
    str, typer.Option("--task", help="Embedded task (docstrings, digits, planted), file, folder of splits, or hub id.")
]
TextColumn = Annotated[str, typer.Option(help="Column of the texts.")]
TextPairColumn = Annotated[str | None, typer.Option(help="Column of the second texts of pairs.")]
LabelColumn = Annotated[str, typer.Option(help="Column of the labels.")]
DomainColumn = Annotated[str, typer.Option(help="Column of the domains, if there is one.")]
SplitSeed = Annotated[int, typer.Option(help="Of splits that are not given.")]
OutputDir = Annotated[str, typer.Option("--output-dir", "-o", help="Where everything is written.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run with the same settings.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete an earlier run in the output directory.")]
Json = Annotated[
    Path | None, typer.Option("--json", callback=_writable, help="Also write the table as a list of flat records.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
CacheDir = Annotated[str, typer.Option("--cache", help="Folder of a logit cache.")]
StudentName = Annotated[str, typer.Option("--student", help="rlkd/tiny, rlkd/bilstm, rlkd/mlp, a hub id or a path.")]
StudentLayers = Annotated[int | None, typer.Option(help="Keep only the first layers of a pretrained student.")]
MaxSteps = Annotated[int, typer.Option(help="Optimisation steps of the student.")]
BatchSize = Annotated[int, typer.Option(help="Instances a step.")]
LearningRate = Annotated[float, typer.Option(callback=_finite, help="Of the student.")]
Temperature = Annotated[float, typer.Option(callback=_finite, help="Of the distillation loss.")]
KdRatio = Annotated[float, typer.Option(callback=_finite, help="loss = (1 - kd_ratio) * CE + kd_ratio * KD.")]
MaxLength = Annotated[int, typer.Option(help="Tokens a text is cut to.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Seed = Annotated[int, typer.Option(help="Of the run.")]


def _task_options(task: str, text: str, pair: str | None, label: str, domain: str, seed: int) -> dict[str, Any]:
    """Arguments of load_task; columns at their defaults are left out, embedded tasks refuse them."""
    columns = {"text_column": (text, "text"), "label_column": (label, "label"), "domain_column": (domain, "domain")}
    chosen = {name: value for name, (value, default) in columns.items() if value != default}
    if pair is not None:
        chosen["text_pair_column"] = pair
    return {"source": task, "seed": seed, **chosen}


def _show(rows: Sequence[dict[str, Any]], json_path: Path | None, columns: Sequence[str] | None = None) -> None:
    from rlkd.report import format_table

    names = columns or list(dict.fromkeys(key for row in rows for key in row))
    typer.echo(format_table(rows, names))
    _write_json(json_path, rows)


def _write_json(path: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    from rlkd.records import write_json_atomic

    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, list(rows))


def _show_comparison(
    rows: Sequence[dict[str, Any]], sentences: Sequence[str], json_path: Path | None, report: str
) -> None:
    from rlkd.report import brief_comparison

    _show(brief_comparison(rows), None)
    for sentence in sentences:
        typer.echo(sentence)
    typer.echo(f"Report: {report}")
    _write_json(json_path, rows)
    if any(row["failed"] for row in rows):
        raise typer.Exit(1)


@app.command()
def quickstart(
    output_dir: OutputDir = "runs/quickstart",
    seeds: Annotated[int, typer.Option(help="Paired seeds.")] = 3,
    jobs: Annotated[int | None, typer.Option(help="Processes; by default one a core.")] = None,
    total_timesteps: Annotated[int, typer.Option(help="Of policy training.")] = 92_160,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_file: Json = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Real text, three specialist teachers, a policy, paired students and a table: the whole job in minutes."""
    from rlkd import workflow

    rows, sentences = workflow.run_quickstart(
        output_dir,
        seeds=seeds,
        jobs=jobs,
        total_timesteps=total_timesteps,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
    )
    _show_comparison(rows, sentences, json_file, f"{output_dir}/report.html")


@app.command("train-teachers")
def train_teachers(
    task: TaskName,
    output_dir: OutputDir,
    kind: Annotated[
        list[str], typer.Option(help="One teacher each: tfidf, rlkd/bilstm, rlkd/tiny, rlkd/mlp, a hub id or a path.")
    ],
    specialize: Annotated[str | None, typer.Option(help="class or domain: each teacher sees only some.")] = None,
    variant: Annotated[int, typer.Option(help="Another number deals other classes or domains.")] = 0,
    share: Annotated[float, typer.Option(help="Of the classes or domains that a specialist knows.")] = 0.5,
    epochs: Annotated[float, typer.Option(callback=_finite, help="Passes over the data.")] = 3,
    learning_rate: Annotated[
        float | None, typer.Option(callback=_finite, help="By default 2e-3 from scratch, 5e-5 pretrained.")
    ] = None,
    batch_size: BatchSize = 32,
    num_layers: Annotated[int | None, typer.Option(help="Keep only the first layers of pretrained teachers.")] = None,
    max_length: MaxLength = 128,
    seed: Seed = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default what there is.")] = None,
    text_column: TextColumn = "text",
    text_pair_column: TextPairColumn = None,
    label_column: LabelColumn = "label",
    domain_column: DomainColumn = "domain",
    split_seed: SplitSeed = 0,
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
        _task_options(task, text_column, text_pair_column, label_column, domain_column, split_seed),
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
        seed=seed,
        device=device,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
    )
    _show(rows, json_file)


@app.command()
def cache(
    task: TaskName,
    teachers: Annotated[list[str], typer.Option(help="Folders of teachers, or one that holds them all.")],
    output_dir: OutputDir,
    batch_size: BatchSize = 64,
    max_length: MaxLength = 128,
    dtype: Annotated[str, typer.Option(help="float32 or float16, on disk.")] = "float32",
    embedder: Annotated[str | None, typer.Option(help="Encoder for the affinity feature: hub id or path.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default what there is.")] = None,
    text_column: TextColumn = "text",
    text_pair_column: TextPairColumn = None,
    label_column: LabelColumn = "label",
    domain_column: DomainColumn = "domain",
    split_seed: SplitSeed = 0,
    overwrite: Overwrite = False,
    json_file: Json = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Ask every teacher about every instance once, and keep the logits; continues an interrupted build."""
    from rlkd import workflow

    rows = workflow.run_cache(
        _task_options(task, text_column, text_pair_column, label_column, domain_column, split_seed),
        teachers,
        output_dir,
        batch_size=batch_size,
        max_length=max_length,
        dtype=dtype,
        embedder=embedder,
        device=device,
        overwrite=overwrite,
        progress=not quiet,
    )
    _show(rows, json_file)


@app.command()
def headroom(
    task: TaskName,
    cache: CacheDir,
    split: Annotated[str, typer.Option(help="validation, or another split.")] = "validation",
    text_column: TextColumn = "text",
    text_pair_column: TextPairColumn = None,
    label_column: LabelColumn = "label",
    domain_column: DomainColumn = "domain",
    split_seed: SplitSeed = 0,
    json_file: Json = None,
    config: Config = None,
) -> None:
    """How much could instance weighting gain here? From the cache alone, before anything is trained."""
    from rlkd import workflow

    rows, verdict = workflow.run_headroom(
        _task_options(task, text_column, text_pair_column, label_column, domain_column, split_seed), cache, split
    )
    _show(rows[:1], None)
    _show(rows[1:], None)
    typer.echo(verdict)
    _write_json(json_file, rows)


@app.command("train-policy")
def train_policy(
    task: TaskName,
    cache: CacheDir,
    output_dir: OutputDir,
    student: StudentName = "rlkd/tiny",
    reward: Annotated[str, typer.Option(help="logit_gain, student_gain, influence or probe_gain.")] = "logit_gain",
    algorithm: Annotated[str, typer.Option(help="ppo or a2c.")] = "ppo",
    total_timesteps: Annotated[int, typer.Option(help="Instances weighted over all episodes.")] = 92_160,
    horizon: Annotated[int, typer.Option(help="Steps of the student in an episode.")] = 120,
    n_steps: Annotated[int, typer.Option(help="Steps of a rollout; divides the horizon.")] = 30,
    gamma: Annotated[float, typer.Option(help="Discount.")] = 0.0,
    teacher_dropout: Annotated[float, typer.Option(help="Chance that a teacher is absent.")] = 0.0,
    warm_start: Annotated[bool, typer.Option("--warm-start", help="Clone the supervised router first.")] = False,
    warm_start_rows: Annotated[int | None, typer.Option(help="Labelled rows for the warm start.")] = None,
    observe_student: Annotated[bool, typer.Option("--observe-student", help="Student features and progress.")] = False,
    observe_affinity: Annotated[
        bool, typer.Option("--observe-affinity", help="Needs a cache with embeddings.")
    ] = False,
    observe_labels: Annotated[bool, typer.Option("--observe-labels", help="Then deployment needs labels.")] = False,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 2e-3,
    temperature: Temperature = 1.0,
    kd_ratio: KdRatio = 1.0,
    max_length: MaxLength = 128,
    seed: Seed = 0,
    device: Device = "cpu",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard logs.")] = False,
    text_column: TextColumn = "text",
    text_pair_column: TextPairColumn = None,
    label_column: LabelColumn = "label",
    domain_column: DomainColumn = "domain",
    split_seed: SplitSeed = 0,
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
        _task_options(task, text_column, text_pair_column, label_column, domain_column, split_seed),
        cache,
        output_dir,
        student=student,
        reward=reward,
        training=PolicyTraining(
            total_timesteps=total_timesteps,
            algorithm=algorithm,
            n_steps=n_steps,
            gamma=gamma,
            warm_start=warm_start,
            warm_start_rows=warm_start_rows,
            seed=seed,
        ),
        observation=ObservationConfig(student=observe_student, affinity=observe_affinity, labelled=observe_labels),
        episode={
            "batch_size": batch_size,
            "horizon": horizon,
            "teacher_dropout": teacher_dropout,
            "learning_rate": learning_rate,
            "temperature": temperature,
            "kd_ratio": kd_ratio,
            "max_length": max_length,
        },
        device=device,
        tensorboard=tensorboard,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
    )
    _show(rows, json_file)


@app.command()
def distill(
    task: TaskName,
    cache: CacheDir,
    output_dir: OutputDir,
    weighting: Annotated[
        str, typer.Option(help="uniform, entropy, router, policy:PATH, ... or package.module:Name.")
    ] = "uniform",
    student: StudentName = "rlkd/tiny",
    num_layers: StudentLayers = None,
    max_steps: MaxSteps = 400,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 2e-3,
    temperature: Temperature = 1.0,
    kd_ratio: KdRatio = 1.0,
    max_length: MaxLength = 128,
    seed: Seed = 0,
    device: Device = "cpu",
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    training_args: Annotated[
        str | None, typer.Option(help='Further TrainingArguments as JSON, such as {"weight_decay": 0.01}.')
    ] = None,
    text_column: TextColumn = "text",
    text_pair_column: TextPairColumn = None,
    label_column: LabelColumn = "label",
    domain_column: DomainColumn = "domain",
    split_seed: SplitSeed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_file: Json = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Distil one student with a weighting, with checkpoints and a report."""
    from rlkd import workflow
    from rlkd.settings import StudentSettings

    rows = workflow.run_distill(
        _task_options(task, text_column, text_pair_column, label_column, domain_column, split_seed),
        cache,
        output_dir,
        weighting=weighting,
        settings=StudentSettings(
            student=student,
            num_layers=num_layers,
            max_steps=max_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            temperature=temperature,
            kd_ratio=kd_ratio,
            max_length=max_length,
            device=device,
        ),
        seed=seed,
        save_steps=save_steps,
        arguments=_json_object(training_args),
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
    )
    _show(rows, json_file)
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
def compare(
    task: TaskName,
    cache: CacheDir,
    output_dir: OutputDir,
    weighting: Annotated[
        list[str] | None, typer.Option(help="Repeatable; by default the baselines, the policy and its controls.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Folder of a policy, for the default weightings.")] = None,
    seeds: Annotated[int, typer.Option(help="Paired seeds; three are a look, five a claim.")] = 3,
    jobs: Annotated[int, typer.Option(help="Processes; each run has one thread.")] = 1,
    student: StudentName = "rlkd/tiny",
    num_layers: StudentLayers = None,
    max_steps: MaxSteps = 400,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 2e-3,
    temperature: Temperature = 1.0,
    kd_ratio: KdRatio = 1.0,
    max_length: MaxLength = 128,
    device: Device = "cpu",
    text_column: TextColumn = "text",
    text_pair_column: TextPairColumn = None,
    label_column: LabelColumn = "label",
    domain_column: DomainColumn = "domain",
    split_seed: SplitSeed = 0,
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
    from rlkd.settings import StudentSettings

    rows, sentences = workflow.run_compare(
        _task_options(task, text_column, text_pair_column, label_column, domain_column, split_seed),
        cache,
        output_dir,
        settings=StudentSettings(
            student=student,
            num_layers=num_layers,
            max_steps=max_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            temperature=temperature,
            kd_ratio=kd_ratio,
            max_length=max_length,
            device=device,
        ),
        weightings=weighting or (),
        policy=policy,
        seeds=seeds,
        jobs=jobs,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
    )
    _show_comparison(rows, sentences, json_file, f"{output_dir}/report.html")


@app.command()
def doctor(json_file: Json = None) -> None:
    """Versions, device, threads, and combinations that are known not to work."""
    from rlkd.doctor import run_doctor

    rows = run_doctor()
    _show(rows, json_file)
    if any(row["problem"] for row in rows):
        raise typer.Exit(1)


INTERRUPTED = 130


def main() -> None:
    """Run the command line: exit code 2 and one line for bad input, 130 for an interrupt."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # Read when transformers is imported, which sets its own level then.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for a user's own weighting; last, so that it shadows no library
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character must not cost the table
            stream.reconfigure(errors="replace")
    try:
        app()
    except RlkdError as error:
        if os.environ.get("RLKD_TRACEBACK"):
            raise
        typer.echo(f"rlkd: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer turns Ctrl-C into it
            typer.echo(
                "\nrlkd: interrupted; the same command continues, with --resume where it has that flag", err=True
            )
        raise


if __name__ == "__main__":
    main()
