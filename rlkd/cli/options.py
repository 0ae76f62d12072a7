"""What commands share: flags, groups of flags that arrive as one object, and the file that gives their values."""

import functools
import inspect
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from rlkd.defaults import FINE_TUNING_RATE, FROM_SCRATCH_RATE
from rlkd.errors import ConfigError, nearest, one_line


def read_config(context: typer.Context, path: Path | None) -> Path | None:
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


def finite(parameter: typer.CallbackParam, value: float | None) -> float | None:
    """Refuse NaN and infinities."""
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"{parameter.opts[0]} must be a finite number, got {value}; leave it out for its default")
    return value


def writable(path: Path | None) -> Path | None:
    """Refuse a file that cannot be written before the work of which it is to hold the result."""
    if path is None:
        return None
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"--json expected a file that can be written, got {path}; name another")
    return path


Config = Annotated[
    Path | None,
    typer.Option("--config", callback=read_config, is_eager=True, help="YAML file; its keys are these flags."),
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
    Path | None, typer.Option("--json", callback=writable, help="Also write the table as a list of flat records.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
CacheDir = Annotated[str, typer.Option("--cache", help="Folder of a logit cache.")]
StudentName = Annotated[str, typer.Option("--student", help="rlkd/tiny, rlkd/bilstm, rlkd/mlp, a hub id or a path.")]
StudentLayers = Annotated[int | None, typer.Option(help="Keep only the first layers of a pretrained student.")]
MaxSteps = Annotated[int, typer.Option(help="Optimisation steps of the student.")]
BatchSize = Annotated[int, typer.Option(help="Instances a step.")]
LearningRate = Annotated[
    float | None,
    typer.Option(
        callback=finite,
        help=f"Of the student; by default {FROM_SCRATCH_RATE:g} from scratch, {FINE_TUNING_RATE:g} pretrained.",
    ),
]
Temperature = Annotated[float, typer.Option(callback=finite, help="Of the distillation loss.")]
Divergence = Annotated[str, typer.Option(help="Of the distillation term: kl, mse or mse_centred (on logits).")]
KdRatio = Annotated[float, typer.Option(callback=finite, help="loss = (1 - kd_ratio) * CE + kd_ratio * KD.")]
MaxLength = Annotated[int, typer.Option(help="Tokens a text is cut to.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Mixed precision: faster where the processor has bfloat16.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: the accelerator where there is one.")]
Seed = Annotated[int, typer.Option(help="Of the run.")]


def task_options(
    *,
    task: TaskName,
    text_column: TextColumn = "text",
    text_pair_column: TextPairColumn = None,
    label_column: LabelColumn = "label",
    domain_column: DomainColumn = "domain",
    split_seed: SplitSeed = 0,
) -> dict[str, Any]:
    """Arguments of load_task; columns at their defaults are left out, embedded tasks refuse them."""
    columns = {
        "text_column": (text_column, "text"),
        "label_column": (label_column, "label"),
        "domain_column": (domain_column, "domain"),
    }
    chosen = {name: value for name, (value, default) in columns.items() if value != default}
    if text_pair_column is not None:
        chosen["text_pair_column"] = text_pair_column
    return {"source": task, "seed": split_seed, **chosen}


def student_settings(
    *,
    student: StudentName = "rlkd/tiny",
    num_layers: StudentLayers = None,
    max_steps: MaxSteps = 400,
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = None,
    temperature: Temperature = 1.0,
    kd_ratio: KdRatio = 1.0,
    divergence: Divergence = "kl",
    max_length: MaxLength = 128,
    bf16: Bf16 = False,
    device: Device = "auto",
) -> Any:
    """A student and its budget, as :class:`rlkd.settings.StudentSettings`."""
    from rlkd.settings import StudentSettings

    return StudentSettings(
        student=student,
        num_layers=num_layers,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,  # type: ignore[arg-type]  # None: by kind of student
        temperature=temperature,
        kd_ratio=kd_ratio,
        divergence=divergence,  # type: ignore[arg-type]  # checked there
        max_length=max_length,
        bf16=bf16,
        device=device,
    )


def grouped(**groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of a group where it has a parameter: what the group returns arrives as that argument.

    Args:
        **groups: Parameter of the command to the function whose keyword arguments are flags.
    """

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        members = {name: inspect.signature(group, eval_str=True).parameters for name, group in groups.items()}
        flags: dict[str, inspect.Parameter] = {}
        for name, parameter in own.items():
            inside = members.get(name, {name: parameter})
            flags |= {flag: one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for flag, one in inside.items()}

        @functools.wraps(command)
        def call(**values: Any) -> None:
            packed = {
                name: group(**{flag: values.pop(flag) for flag in members[name]}) for name, group in groups.items()
            }
            command(**packed, **values)

        call.__signature__ = inspect.Signature(list(flags.values()))  # type: ignore[attr-defined]
        call.__annotations__ = {flag: parameter.annotation for flag, parameter in flags.items()}
        return call

    return wrap
