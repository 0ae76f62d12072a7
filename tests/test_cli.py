import contextlib
import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file

import rlkd.cli
from rlkd.data import load_task, planted_logits
from rlkd.features import ObservationConfig
from rlkd.logit_cache import load_cache
from rlkd.records import read_jsonl
from rlkd.weighting import Policy
from rlkd.workflow.comparing import default_weightings

WORDS = ("earth", "fire", "sea", "sky")
COMMANDS = {command.name or command.callback.__name__: command for command in rlkd.cli.app.registered_commands}
QUIET = {"train-teachers", "cache", "train-policy", "distill", "compare", "quickstart"}


@dataclass
class Result:
    code: int
    out: str
    err: str


def rlkd_command(*arguments: object) -> Result:
    """Call the door as the shell does, in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["rlkd", *map(str, arguments)]
    if arguments and arguments[0] in QUIET and "--help" not in arguments:
        argv.append("--quiet")
    code: Any = 0
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            rlkd.cli.main()
        except SystemExit as stop:
            code = stop.code or 0
    return Result(code, out.getvalue(), err.getvalue())


def succeeded(*arguments: object) -> Result:
    result = rlkd_command(*arguments)
    assert (result.code, result.err) == (0, "")
    return result


def write_csv(path: Path, rows: int = 240, labelled: int | None = None, columns: str = "text,label,domain") -> Path:
    """Texts whose first word mostly names the class."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns.split(","))
        for row in range(rows):
            word = WORDS[row % 4] if rng.random() < 0.8 else "stone"
            text = " ".join([word, *rng.choice(["warm", "cold", "vast"], 1 + row % 5), f"row {row}"])
            label = WORDS[row % 4] if labelled is None or row < labelled else ""
            writer.writerow([text, label, ("left", "right")[row // 4 % 2]])
    return path


SPECIALISTS = ("--kind", "tfidf", "--kind", "tfidf", "--kind", "rlkd/bilstm", "--specialize", "class", "--epochs", 1)
NAMES = ("tfidf-0", "tfidf-1", "bilstm-2")
STUDENT = ("--student", "rlkd/bilstm", "--batch-size", 16)
POLICY_RUN = (*STUDENT, "--horizon", 10, "--n-steps", 10, "--total-timesteps", 320)


@dataclass(frozen=True)
class Chain:
    """A tiny csv, and one finished run of every command on it."""

    folder: Path
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def task(self) -> Path:
        return self.folder / "tiny.csv"

    @property
    def data(self) -> tuple[object, ...]:
        return ("--task", self.task, "--cache", self.folder / "cache")

    def run(self, command: str, output: str, *arguments: object) -> None:
        records = ("--json", self.folder / "records" / f"{command}.json")
        target = () if command == "headroom" else ("--output-dir", self.folder / output)
        self.results[command] = succeeded(command, *target, *records, *arguments)

    def records(self, command: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads((self.folder / "records" / f"{command}.json").read_text())
        return rows


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    chain = Chain(tmp_path_factory.mktemp("chain"))
    write_csv(chain.task)
    chain.run("train-teachers", "teachers", "--task", chain.task, *SPECIALISTS)
    chain.run("cache", "cache", "--task", chain.task, "--teachers", chain.folder / "teachers")
    chain.run("headroom", "", *chain.data)
    chain.run("train-policy", "policy", *chain.data, *POLICY_RUN)
    policy = chain.folder / "policy" / "policy"
    steps = (*STUDENT, "--max-steps", 10)
    chain.run("distill", "distilled", *chain.data, *steps, "--weighting", f"policy:{policy}", "--save-steps", 5)
    arms = [argument for name in ("uniform", f"policy:{policy}", "oracle") for argument in ("--weighting", name)]
    chain.run("compare", "compared", *chain.data, *steps, *arms, "--seeds", 2)
    return chain


# --- the whole chain


def test_auto_says_what_it_chose_and_why_everywhere(chain: Chain, tmp_path: Path) -> None:
    """`distill` without a weighting; the sentence is printed, recorded, in the card and on the page."""
    run = ("distill", *chain.data, *STUDENT, "--max-steps", 4, "--trial-students", 2, "-o", tmp_path / "run")
    result = succeeded(*run, "--json", tmp_path / "rows.json")
    (sentence,) = {row["why"] for row in json.loads((tmp_path / "rows.json").read_text())}
    (chosen,) = (tmp_path / "run").glob("auto-*")
    assert re.match(r"`\w+` is used: .* labelled validation rows", sentence)
    assert sentence.replace("`", "") in result.out
    assert sentence in (chosen / "README.md").read_text()
    assert json.loads((chosen / "config.json").read_text())["training"]["chosen"]["why"] == sentence
    assert "labelled validation rows" in (tmp_path / "run" / "report.html").read_text()
    assert succeeded(*run, "--resume").out == result.out
    arms = ("--weighting", "uniform", "--weighting", "auto", "--trial-students", 0, "--seeds", 1, "--max-steps", 4)
    compared = succeeded("compare", *chain.data, *STUDENT, *arms, "-o", tmp_path / "compared")
    assert "auto is used: nothing else was tried." in compared.out


def test_every_command_writes_its_table_as_flat_records(chain: Chain) -> None:
    expected = {
        "train-teachers": (3, {"teacher", "knows", "validation_accuracy"}),
        "cache": (3, {"teacher", "split", "rows", "accuracy", "ece"}),
        "headroom": (7, {"what", "split", "rows"}),
        "train-policy": (1, {"policy", "timesteps", "kept_at", "loss_before", "loss", "strength"}),
        "distill": (2, {"weighting", "split", "accuracy", "nll"}),
        "compare": (3, {"weighting", "seeds", "accuracy", "accuracy_low", "accuracy_high", "failed"}),
    }
    assert [row["teacher"] for row in chain.records("compare")[3:]] == [*NAMES, "equal mixture"]
    for command, (count, keys) in expected.items():
        rows = chain.records(command)[: 3 if command == "compare" else None]
        assert len(rows) == count
        for row in rows:
            assert keys <= set(row)
            assert all(value is None or isinstance(value, str | int | float | bool) for value in row.values())


def test_every_command_prints_an_aligned_table(chain: Chain) -> None:
    for command, result in chain.results.items():
        header, rule, *rows = result.out.splitlines()
        assert set(rule) == {"─", " "}
        assert header.split()[0] == next(iter(chain.records(command)[0]))
        count = sum("teacher" not in row for row in chain.records(command)) or len(chain.records(command))
        assert all(len(line) <= 120 for line in [header, rule, *rows[: count - 1]])


def test_a_comparison_is_shown_with_intervals_and_stored_with_numbers(chain: Chain) -> None:
    header, _, uniform, policy, oracle = chain.results["compare"].out.splitlines()[:5]
    assert re.split(r"  +", header)[:4] == ["weighting", "seeds", "accuracy [95%]", "points over uniform"]
    stored = {row["weighting"]: row for row in chain.records("compare")[:3]}
    shown = {line.split()[0]: re.split(r"  +", line) for line in (uniform, policy, oracle)}
    assert list(shown) == ["uniform", "policy", "oracle"]
    for name, cells in shown.items():
        row = stored[name]
        assert cells[2] == f"{row['accuracy']:.3f} [{row['accuracy_low']:.3f}, {row['accuracy_high']:.3f}]"
    assert shown["uniform"][3] == "-"
    assert shown["oracle"][3].startswith(f"{100 * stored['oracle']['gain']:+.1f} [")


def test_what_a_comparison_advises_runs_as_it_is_printed(chain: Chain, tmp_path: Path) -> None:
    out = chain.results["compare"].out.splitlines()
    (place,) = [place for place, line in enumerate(out) if line.startswith("Deploy ")]
    command, python = out[place + 1 : place + 3]
    words = shlex.split(command[command.index("rlkd distill") :])
    words[words.index("-o") + 1] = str(tmp_path / "student")
    succeeded(*words[1:])
    distilled, compared = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "student", chain.folder / "compared")
    )
    assert distilled["weighting"] in compared["weightings"]
    for same in ("settings", "data", "logits"):
        assert distilled[same] == compared[same]
    assert python.startswith("In Python: weighting = rlkd.")


def test_one_teacher_is_told_before_anything_is_trained(chain: Chain, tmp_path: Path, caplog: Any) -> None:
    data = ("--task", chain.task, "--cache", tmp_path / "cache")
    succeeded("cache", "--task", chain.task, "--teachers", chain.folder / "teachers" / NAMES[0], "-o", data[-1])
    succeeded("headroom", *data)
    for command in ("compare", "distill", "train-policy"):
        refused = rlkd_command(command, *data, "--student", "rlkd/mlp", "-o", tmp_path / "out")
        assert_refused(refused, "rlkd/mlp")
    refused = rlkd_command("compare", *data, "--policy", chain.folder / "policy" / "policy", "-o", tmp_path / "out")
    assert_refused(refused, "has one teacher to weight")
    told = [record.getMessage() for record in caplog.records if "is alone (K = 1)" in record.getMessage()]
    assert len(told) == 5
    assert all("every weighting is the same" in line and "\n" not in line for line in told)
    cache = load_cache(data[-1], load_task(str(chain.task)))
    assert default_weightings(cache, None, chooses=True, labels=True) == ["uniform", "labels"]


def test_a_distilled_student_is_loaded_by_the_lines_that_are_printed(chain: Chain) -> None:
    told = chain.results["distill"].out.partition("To use it:\n")[2]
    assert "import rlkd  # makes rlkd-bilstm known to transformers" in told
    space: dict[str, Any] = {}
    exec(textwrap.dedent(told), space)
    assert space["student"]("earth and sea " * 200)[0]["label"] in WORDS


def test_headroom_agrees_with_its_own_teachers(chain: Chain) -> None:
    whole, equal, auto, router, *teachers = chain.records("headroom")
    assert whole["best_teacher"] == max(row["accuracy"] for row in teachers)
    assert whole["equal_mixture"] == equal["accuracy"]
    assert 0 <= whole["room"] <= 1
    assert [row["what"] for row in (equal, auto, router)] == ["uniform", "auto", "router"]
    last = chain.results["headroom"].out.splitlines()[-1]
    assert re.match("Use (auto|router|uniform)[,:] .* points over equal weights", last)


def test_headroom_without_labels_is_a_hint(chain: Chain, tmp_path: Path) -> None:
    bare = write_csv(tmp_path / "bare.csv", labelled=8)
    succeeded("cache", "--task", bare, "--teachers", chain.folder / "teachers", "-o", tmp_path / "cache")
    told = succeeded("headroom", "--task", bare, "--cache", tmp_path / "cache").out
    assert "this is a hint, not a measurement" in told.splitlines()[-1]


def test_run_directories_hold_what_made_them(chain: Chain) -> None:
    expected = {
        "teachers": {"tfidf-0", "tfidf-1", "bilstm-2"},
        "policy": {"metrics.jsonl", "policy", "report.html"},
        "distilled": {"metrics.jsonl", "student", "checkpoints", "results.json", "report.html", "done.json"},
        "compared": {"runs.jsonl", "weights", "table.json", "report.html"},
    }
    for name, files in expected.items():
        found = {path.name for path in (chain.folder / name).iterdir() if not path.name.startswith("checkpoint-")}
        assert found == files | {"config.json", "environment.json"}
        config = json.loads((chain.folder / name / "config.json").read_text())
        assert config["command"]
        assert config["data"] == load_task(str(chain.task)).fingerprint
    metrics = read_jsonl(chain.folder / "distilled" / "metrics.jsonl")
    assert [line["step"] for line in metrics if "student/loss" in line] == list(range(1, 11))
    assert {"weight/tfidf-0", "weight/bilstm-2"} <= set(metrics[0])
    assert {path.name for path in (chain.folder / "policy" / "policy").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }


def test_reports_stand_alone(chain: Chain) -> None:
    for name in ("policy", "distilled", "compared"):
        page = (chain.folder / name / "report.html").read_text(encoding="utf-8")
        assert "<svg" in page
        assert "<script" not in page
        assert not re.search(r"""(?:src|href|srcset)\s*=\s*(?!["']?#)|@import|url\((?!#)""", page)


def test_the_policy_that_was_trained_is_the_one_that_is_deployed(chain: Chain) -> None:
    (row,) = chain.records("train-policy")
    policy = rlkd.load_weighting(chain.folder / "policy" / "policy")
    losses = policy.training_record["trial_losses"]
    assert row["loss"] == losses[str(row["kept_at"])] == min(losses.values())
    assert row["loss_before"] == losses["0"]
    assert policy.training_record["kept_at"] == row["kept_at"]
    assert policy.strength == row["strength"]


def test_a_finished_run_is_left_as_it_is_and_resumed_in_no_time(chain: Chain, tmp_path: Path) -> None:
    for name, arguments in {
        "teachers": ("train-teachers", "--task", chain.task, *SPECIALISTS),
        "policy": ("train-policy", *chain.data, *POLICY_RUN),
    }.items():
        copy = tmp_path / name
        shutil.copytree(chain.folder / name, copy)
        before = {path: path.read_bytes() for path in copy.rglob("*.safetensors")}
        succeeded(*arguments, "--output-dir", copy, "--resume")
        assert {path: path.read_bytes() for path in copy.rglob("*.safetensors")} == before


def test_jsonl_parquet_and_a_folder_are_read_alike(chain: Chain, tmp_path: Path) -> None:
    with chain.task.open() as file:
        rows = list(csv.DictReader(file))
    (tmp_path / "tiny.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "tiny.parquet")
    (tmp_path / "tiny").mkdir()
    shutil.copy(chain.task, tmp_path / "tiny" / "train.csv")
    for name in ("tiny.jsonl", "tiny.parquet", "tiny"):  # the cache of the csv fits: the data are the same
        succeeded("headroom", "--task", tmp_path / name, "--cache", chain.folder / "cache")


# --- configs and flags


def run_yaml(path: Path, **content: Any) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_config_gives_flags_and_flags_win(chain: Chain, tmp_path: Path) -> None:
    config = run_yaml(
        tmp_path / "run.yaml",
        task=str(chain.task),
        cache=str(chain.folder / "cache"),
        split="test",
        json=str(tmp_path / "rows.json"),
    )
    succeeded("headroom", "--config", config)
    assert json.loads((tmp_path / "rows.json").read_text())[0]["split"] == "test"
    succeeded("headroom", "--config", config, "--split", "train")
    assert json.loads((tmp_path / "rows.json").read_text())[0]["split"] == "train"


@pytest.mark.parametrize("kind", ["tfidf", ["tfidf"], ["tfidf", "tfidf"]])
def test_a_repeatable_flag_takes_one_value_or_a_list(chain: Chain, tmp_path: Path, kind: str | list[str]) -> None:
    config = run_yaml(tmp_path / "run.yaml", task=str(chain.task), output_dir=str(tmp_path / "t"), kind=kind)
    succeeded("train-teachers", "--config", config)
    assert len(list((tmp_path / "t").glob("tfidf-*"))) == (1 if isinstance(kind, str) else len(kind))


def test_a_mapping_in_a_config_is_json(chain: Chain, tmp_path: Path) -> None:
    config = run_yaml(tmp_path / "run.yaml", training_args={"weight_decay": 0.25}, save_steps=5, learning_rate="1e-3")
    succeeded("distill", *chain.data, *STUDENT, "--max-steps", 10, "-o", tmp_path / "d", "--config", config)
    stored = json.loads((tmp_path / "d" / "config.json").read_text())
    assert stored["arguments"] == {"weight_decay": 0.25}
    assert (stored["save_steps"], stored["settings"]["learning_rate"]) == (5, 1e-3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("spilt: test\n", r"run.yaml has the unknown key 'spilt'; did you mean 'split'\? known are: cache, domain_col"),
        ("config: x\n", r"unknown key 'config'; "),
        ("1: 2\n", r"unknown key 1; "),
        ("- a\n", r"expected flags and values in .*, got list"),
        ("a: [\n", r"expected a readable YAML file at .*run.yaml: while parsing"),
        ("task: [a, b]\n", r"must give 'task' one value, got a list"),
        ("\x00", r"expected a readable YAML file at "),
    ],
)
def test_a_bad_config_is_told_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(content)
    assert_refused(rlkd_command("headroom", "--task", "x", "--cache", "y", "--config", tmp_path / "run.yaml"), message)


def test_a_missing_config_is_told(tmp_path: Path) -> None:
    result = rlkd_command("headroom", "--task", "x", "--cache", "y", "--config", tmp_path / "no.yaml")
    assert_refused(result, r"expected a readable YAML file at .*no.yaml: .*No such file")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_explained(name: str) -> None:
    group: Any = typer.main.get_command(rlkd.cli.app)
    with mock.patch.dict(os.environ, {"COLUMNS": "200", "TERMINAL_WIDTH": "200"}):
        shown = succeeded(name, "--help").out
    for parameter in group.commands[name].params:
        assert parameter.help, parameter.name
        assert max(parameter.opts, key=len) in shown


def test_help_comes_without_the_heavy_libraries() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import rlkd.cli; sys.argv = ['rlkd', 'distill', '--help']\n"
        "try: rlkd.cli.main()\nexcept SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'numpy', 'transformers', 'gymnasium', 'datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_a_terminal_without_the_characters_of_the_table_still_gets_it() -> None:
    poor = {**os.environ, "PYTHONIOENCODING": "ascii"}
    code = "import rlkd.cli; rlkd.cli.assembled = lambda: lambda: print('\u2500 caf\u00e9'); rlkd.cli.main()"
    argv = [sys.executable, "-X", "utf8=0", "-c", code]
    assert subprocess.run(argv, env=poor, check=True, capture_output=True, timeout=60).stdout == b"? caf?\n"


def test_doctor_names_versions_and_problems(tmp_path: Path) -> None:
    result = rlkd_command("doctor", "--json", tmp_path / "doctor.json")
    rows = {row["check"]: row for row in json.loads((tmp_path / "doctor.json").read_text())}
    assert rows["torch"]["value"] == torch.__version__
    assert {"python", "transformers", "device", "threads"} <= set(rows)
    assert result.code == int(any(row["problem"] for row in rows.values()))


# --- bad input


def assert_refused(result: Result, message: str) -> None:
    """Exit code 2, one line, and the line says what the pattern says."""
    assert result.code == 2, (result.out, result.err)
    (line,) = result.err.splitlines()
    assert line.startswith("rlkd: ")
    assert re.search(message, line), line
    assert "Traceback" not in result.err
    assert result.out == ""


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


TEACHERS = ("train-teachers", "--kind", "tfidf")
RL = ("train-policy", *POLICY_RUN)
DISTILL = ("distill", *STUDENT)
COMPARE = ("compare", *STUDENT, "--weighting", "uniform")

# {0} is the folder of the chain, {1} the folder of the test
BAD: list[tuple[tuple[object, ...], str]] = [
    # data
    ((*TEACHERS, "--task", "{1}/no.csv"), r"no file or folder '.*no.csv', and it is no hub id; "),
    ((*TEACHERS, "--task", "{0}/tinny.csv"), r"did you mean '.*tiny.csv'\?"),
    ((*TEACHERS, "--task", "docstring"), r"did you mean the embedded task 'docstrings'\?"),
    (
        (*TEACHERS, "--task", "{0}/tiny.csv", "--label-column", "lable"),
        r"must have the column 'lable', it has: text, l",
    ),
    ((*TEACHERS, "--task", "{0}/tiny.csv", "--text-column", "txt"), r"must have the column 'txt', it has: text, label"),
    ((*TEACHERS, "--task", "{0}/tiny.csv", "--domain-column", "d"), r"must have the column 'd', it has: text, label"),
    ((*TEACHERS, "--task", "{0}/tiny.csv", "--text-pair-column", "b"), r"must have the column 'b', it has: text, lab"),
    ((*TEACHERS, "--task", "digits", "--label-column", "lable"), r"embedded task 'digits' has fixed columns"),
    ((*TEACHERS, "--task", "{1}/header.csv"), r"must be a readable .csv file with rows, reading gave no rows"),
    ((*TEACHERS, "--task", "{1}/empty.csv"), r"must be a readable .csv file with rows, reading gave "),
    ((*TEACHERS, "--task", "{1}/splits"), r"splits/test.csv' must be a readable .csv file with rows, reading gave no"),
    ((*TEACHERS, "--task", "{1}/unlabelled.csv"), r"must have at least 2 classes"),
    ((*TEACHERS, "--task", "{1}/few.csv"), r"must have more than \d+ labelled rows to carve"),
    ((*TEACHERS, "--task", "{0}/tiny.csv", "--split-seed", -1), r"seed must lie between 0 and"),
    ((*TEACHERS, "--task", "{0}/tiny.csv", "--seed", -1), r"seed must lie between 0 and"),
    # teachers to train
    (("train-teachers", "--task", "{0}/tiny.csv", "--kind", "tfdif"), r"got 'tfdif'; did you mean 'tfidf'\?"),
    ((*TEACHERS, "--task", "{0}/tiny.csv", "--kind", "rlkd/bilsm"), r"did you mean 'rlkd/bilstm'\?"),
    ((*TEACHERS, "--task", "{0}/tiny.csv", "--kind", "rlkd/mlp"), r"reads vectors or images, but task 'tiny' has text"),
    (
        (*TEACHERS, "--task", "{0}/tiny.csv", "--specialize", "clas"),
        r"specialize must be one of class, domain, got 'clas'; did you mean 'class'\?",
    ),
    ((*TEACHERS, "--task", "digits", "--specialize", "domain"), r"needs a task with domains, task 'digits' has none"),
    ((*TEACHERS * 1, *("--kind", "tfidf") * 11, "--task", "{0}/tiny.csv", "--specialize", "class"), r"enough groups"),
    ((*TEACHERS, "--task", "{0}/tiny.csv", "--epochs", 0), r"epochs must be > 0, got 0.0; raise it"),
    ((*TEACHERS, "--task", "{0}/tiny.csv", "--batch-size", 0), r"batch_size must be >= 1"),
    ((*TEACHERS, "--task", "{0}/tiny.csv", "--learning-rate", -1), r"learning_rate must be > 0"),
    ((*TEACHERS, "--task", "{0}/tiny.csv", "--learning-rate", "nan"), r"--learning-rate must be a finite number"),
    ((*TEACHERS, "--task", "{0}/tiny.csv", "--num-layers", 2), r"num_layers 2 would be ignored"),
    ((*TEACHERS, "--task", "{0}/tiny.csv", "--kind", "rlkd/bilstm", "--max-length", 1), r"max_length must be at least"),
    ((*TEACHERS, "--task", "{0}/tiny.csv", "--device", "cuda:99"), r"device must be one that this machine has \(cpu"),
    # policies to train
    ((*RL, "--reward", "logit_gian"), r"unknown reward 'logit_gian'; did you mean 'logit_gain'\? choose one of: influ"),
    ((*RL, "--algorithm", "pppo"), r"algorithm must be one of ppo, a2c, got 'pppo'; did you mean 'ppo'\?"),
    (("train-policy", "--student", "rlkd/tny"), r"unknown student 'rlkd/tny'; did you mean 'rlkd/tiny'\?"),
    (
        (*RL, "--student", "rlkd/tiny"),
        r"one student for all tasks or one for each of 1, got 2 \(rlkd/bilstm, ",
    ),
    ((*RL, "--n-steps", 7), r"n_steps must divide the horizon 10, got 7"),
    ((*RL, "--n-steps", 1), r"n_steps must be >= 2"),
    ((*RL, "--horizon", 1), r"horizon must be >= 2"),
    ((*RL, "--gamma", 2), r"gamma must lie in \[0, 1\], got 2.0; lower it"),
    ((*RL, "--total-timesteps", 0), r"total_timesteps must be >= 1"),
    ((*RL, "--batch-size", 0), r"batch_size .*>= 1"),
    ((*RL, "--temperature", 0), r"temperature must be > 0, got 0.0"),
    ((*RL, "--kd-ratio", 1.5), r"kd_ratio must lie in \[0, 1\], got 1.5"),
    ((*RL, "--observe-affinity"), r"reads 'affinity', the cache has none; build it with rlkd cache --embedder"),
    ((*RL, "--observe-student"), r"switch one of the two off"),
    ((*RL, "--no-warm-start", "--warm-start-rows", 5), r"would be ignored without warm_start"),
    ((*RL, "--warm-start-rows", 0), r"warm_start_rows must be >= 1, got 0"),
    ((*RL, "--max-length", 1), r"max_length must be at least 3"),
    ((*RL, "--seed", -1), r"seed must lie between 0 and"),
    ((*RL, "--device", "potato"), r"device must be one that this machine has \(cpu.*\), got 'potato'"),
    # students
    (
        (*DISTILL, "--weighting", "unifrom"),
        r"unknown weighting 'unifrom'; did you mean 'uniform'\? choose one of: aekd",
    ),
    ((*DISTILL, "--weighting", "policy"), r"weighting 'policy' needs an argument, got none; write for example"),
    ((*DISTILL, "--weighting", "policy:{1}/no"), r"no such folder, and the hub gave none"),
    ((*DISTILL, "--weighting", "policy:{0}/teachers"), r"expected a policy with config.json and model.safetensors"),
    ((*DISTILL, "--weighting", "policy:{1}/later"), r"observation version 99, this rlkd has version 1"),
    ((*DISTILL, "--weighting", "policy:{1}/affine"), r"needs affinity \(build the cache with an embedder\)"),
    ((*DISTILL, "--weighting", "no.such.module:Name"), r"could not be imported: No module named 'no'"),
    ((*DISTILL, "--weighting", "polcy:runs/policy"), r"No module named .polcy.; did you mean .policy."),
    ((*DISTILL, "--weighting", "fixed:1,2"), r"one number for each of 3 teachers, got 2"),
    ((*DISTILL, "--student", "rlkd/blstm"), r"unknown student 'rlkd/blstm'; did you mean 'rlkd/bilstm'\?"),
    ((*DISTILL, "--student", "rlkd/mlp"), r"reads vectors or images, but task 'tiny' has text"),
    ((*DISTILL, "--student", "{1}"), r"hub id or a directory of a classifier or encoder"),
    ((*DISTILL, "--num-layers", 1), r"num_layers keeps the first layers of a pretrained encoder"),
    ((*DISTILL, "--max-steps", 0), r"max_steps must be >= 1, got 0"),
    ((*DISTILL, "--temperature", 0), r"temperature must be > 0, got 0.0"),
    ((*DISTILL, "--temperature", "inf"), r"--temperature must be a finite number, got inf"),
    ((*DISTILL, "--kd-ratio", -0.5), r"kd_ratio must lie in \[0, 1\], got -0.5"),
    ((*DISTILL, "--save-steps", 0), r"save_steps must be >= 1, got 0"),
    ((*DISTILL, "--seed", 2**32), r"seed must lie between 0 and"),
    ((*DISTILL, "--device", "cuda:99"), r"device must be one that this machine has"),
    ((*DISTILL, "--training-args", "{{"), r"training_args must be a JSON object, got '\{'"),
    ((*DISTILL, "--training-args", "[1]"), r"training_args must be a JSON object, got '\[1\]'"),
    ((*DISTILL, "--training-args", '{{"weight_decy": 1}}'), r"'weight_decy'; did you mean 'weight_decay'\?"),
    ((*DISTILL, "--training-args", '{{"max_steps": 1}}'), r"'max_steps' is set by 'max_steps'"),
    ((*DISTILL, "--training-args", '{{"mix": "logits"}}'), r"mix must be one of probability, logit, got 'logits'"),
    ((*DISTILL, "--training-args", '{{"lr_scheduler_type": "x"}}'), r"training_args do not fit: x is not a valid"),
    ((*DISTILL, "--json", "{0}"), r"--json expected a file that can be written, got"),
    # comparisons
    ((*COMPARE, "--seeds", 0), r"needs weightings and seeds, got 1 and 0"),
    ((*COMPARE, "--jobs", 0), r"needs jobs >= 1, got 0"),
    ((*COMPARE, "--weighting", "uniform"), r"every weighting may be named once"),
    ((*COMPARE, "--weighting", "entrop"), r"unknown weighting 'entrop'; did you mean 'entropy'\?"),
    ((*COMPARE, "--policy", "{0}/policy/policy"), r"--policy is for the default weightings and would be ignored"),
    ((*COMPARE, "--student", "rlkd/blstm"), r"unknown student"),
    ((*COMPARE, "--device", "cuda:99"), r"device must be one that this machine has"),
]
RUNS = {"train-teachers": "teachers", "train-policy": "policy", "distill": "distilled", "compare": "compared"}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    write_csv(folder / "header.csv", rows=0)
    (folder / "empty.csv").touch()
    write_csv(folder / "unlabelled.csv", labelled=0)
    write_csv(folder / "few.csv", labelled=3)
    (folder / "splits").mkdir()
    write_csv(folder / "splits" / "train.csv")
    write_csv(folder / "splits" / "test.csv", rows=0)
    Policy.create(ObservationConfig(affinity=True), training={}).save_pretrained(folder / "affine")
    Policy.create(ObservationConfig(), training={}).save_pretrained(folder / "later")
    config = folder / "later" / "config.json"
    config.write_text(config.read_text().replace('"feature_version": 1', '"feature_version": 99'))
    return folder


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_input_costs_a_line_and_touches_nothing(
    arguments: tuple[object, ...], message: str, chain: Chain, bad_files: Path, tmp_path: Path
) -> None:
    command, *rest = [str(argument).format(chain.folder, bad_files) for argument in arguments]
    data = () if command == "train-teachers" else chain.data
    old_run = chain.folder / RUNS[command]
    before = snapshot(old_run)
    started = time.perf_counter()
    for output in (("--output-dir", tmp_path / "new"), ("--output-dir", old_run, "--overwrite")):
        assert_refused(rlkd_command(command, *data, *output, *rest), message)
    assert time.perf_counter() - started < 10
    assert list(tmp_path.iterdir()) == []
    assert snapshot(old_run) == before


@pytest.mark.parametrize("command", RUNS)
def test_a_directory_in_use_is_refused_before_anything_is_read(command: str, chain: Chain) -> None:
    data = ("--task", "no.csv", "--cache", "no")[: 2 if command == "train-teachers" else 4]
    data += ("--kind", "tfidf") if command == "train-teachers" else ()
    output = ("--output-dir", chain.folder / RUNS[command])
    before = snapshot(chain.folder / RUNS[command])
    assert_refused(rlkd_command(command, *data, *output), r"expected an empty output directory, got .*; pass resume to")
    assert_refused(rlkd_command(command, *data, *output, "--resume", "--overwrite"), r"resume or overwrite, got both")
    assert_refused(rlkd_command(command, *data, "--output-dir", chain.task), r"expected a directory at .*, got a file")
    cache = ("--output-dir", chain.folder / "cache")
    for flag, words in (("--overwrite", "overwrite expected a run"), ("--resume", "resume expected a run directory")):
        assert_refused(rlkd_command(command, *data, *cache, flag), words)
    assert snapshot(chain.folder / RUNS[command]) == before


def test_a_run_is_resumed_with_its_own_settings_and_data_only(chain: Chain, tmp_path: Path) -> None:
    run = ("--output-dir", chain.folder / "distilled", "--resume")
    weighting = ("--weighting", f"policy:{chain.folder / 'policy' / 'policy'}", "--save-steps", 5)
    before = snapshot(chain.folder / "distilled")
    changed = rlkd_command(*DISTILL, *chain.data, *weighting, "--max-steps", 20, *run)
    assert_refused(changed, r"was started with settings.max_steps = 10, got 20; resume with the same")
    shutil.copytree(chain.folder / "policy" / "policy", tmp_path / "policy")
    assert snapshot(chain.folder / "distilled") == before


def test_a_replaced_policy_does_not_continue_the_run_of_the_old_one(chain: Chain, tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    Policy.create(ObservationConfig(), training={}, seed=0).save_pretrained(policy)
    arguments = (*DISTILL, *chain.data, "--weighting", f"policy:{policy}", "--max-steps", 10, "-o", tmp_path / "d")
    succeeded(*arguments)
    Policy.create(ObservationConfig(), training={}, seed=1).save_pretrained(policy)
    assert_refused(rlkd_command(*arguments, "--resume"), r"was started with policy = \"\w{64}\", got \"\w{64}\"")


def test_policies_that_need_labels_are_refused_on_unlabelled_rows(tmp_path: Path, caplog: Any) -> None:
    task = write_csv(tmp_path / "half.csv", labelled=120)
    for name, logits in (("a", 4 * np.eye(4)[np.arange(240) % 4]), ("b", np.ones((240, 4)))):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "train.npy", logits)
    teachers = ("--teachers", tmp_path / "a", "--teachers", tmp_path / "b")
    succeeded("cache", "--task", task, *teachers, "--output-dir", tmp_path / "cache")
    assert [line for line in caplog.messages if "120 of 240 train rows of 'half' have no label" in line]
    data = ("--task", task, "--cache", tmp_path / "cache", "--output-dir", tmp_path / "new")
    Policy.create(ObservationConfig(labelled=True), training={}).save_pretrained(tmp_path / "labelled")
    for command in (("distill", *data), ("compare", *data)):
        result = rlkd_command(*command, *STUDENT, "--weighting", f"policy:{tmp_path / 'labelled'}")
        assert_refused(result, r"needs labels \(120 of \d+ train rows have none\); choose a weighting that needs")
    assert_refused(
        rlkd_command("distill", *data, *STUDENT, "--weighting", "oracle"), r"teachers that all say what they"
    )
    assert not (tmp_path / "new").exists()
    succeeded("distill", *data, *STUDENT, "--weighting", "entropy", "--max-steps", 10)


def test_a_split_that_does_not_exist_is_told(chain: Chain) -> None:
    result = rlkd_command("headroom", *chain.data, "--split", "validaton")
    assert_refused(result, r"unknown split 'validaton'; did you mean 'validation'\? choose one of: probe, test, train")


# --- teachers and caches


def teacher_folder(chain: Chain, path: Path, **config: Any) -> Path:
    shutil.copytree(chain.folder / "teachers" / "bilstm-2", path)
    stored = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(stored | config))
    if config:
        (path / "teacher.json").unlink()
    return path


def labels(*names: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def make_teacher(kind: str, chain: Chain, path: Path) -> Path:
    rows = len(load_task(str(chain.task)).table)
    logits = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    if kind in ("nan", "inf"):
        logits[[3, 7, 8], 1] = float(kind)
    elif kind == "short":
        logits = logits[:10]
    elif kind == "wide":
        logits = np.hstack([logits, logits])
    elif kind == "other classes":
        return teacher_folder(chain, path, **labels("earth", "fire", "sea", "air"))
    elif kind == "generic classes":
        return teacher_folder(chain, path, **labels("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"))
    elif kind == "no tokenizer":
        for file in teacher_folder(chain, path).glob("tokenizer*"):
            file.unlink()
        return path
    elif kind == "no weights":
        (teacher_folder(chain, path) / "model.safetensors").unlink()
        return path
    elif kind == "missing":
        return path
    elif kind == "one array":
        np.save(path.with_suffix(".npy"), logits)
        return path.with_suffix(".npy")
    path.mkdir()
    np.save(path / "train.npy", logits)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "nan",
            r"finite logits from teacher 'teacher', got NaN or infinity in 3 of 240 rows of train.npy: \[3, 7, 8\]",
        ),
        (
            "inf",
            r"finite logits from teacher 'teacher', got NaN or infinity in 3 of 240 rows of train.npy: \[3, 7, 8\]",
        ),
        (
            "short",
            r"expected 240 rows from teacher 'teacher' in train.npy, one per row of train of task 'tiny' .*got 10",
        ),
        (
            "one array",
            r"expected an array for each file of task 'tiny' .* whose order is not known.*train.npy \(240 rows",
        ),
        ("wide", r"expected 4 columns from teacher 'teacher', got 8"),
        ("other classes", r"expected the classes 'earth', 'fire', 'sea', 'sky', but teacher 'teacher' also has 'air'"),
        ("generic classes", r"teacher 'teacher' has only the generic names 'LABEL_0'"),
        ("no tokenizer", r"expected teacher 'bilstm-2' with its own tokenizer, got '.*' without tokenizer files"),
        ("no weights", r"expected a classifier with safetensors weights in '.*teacher', got"),
        (
            "missing",
            r"a directory with config.json, .*, teacher.skops, endpoint.json or train.npy, a .npy file or a hub id",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_told_and_no_cache_is_begun(
    kind: str, message: str, chain: Chain, tmp_path: Path
) -> None:
    teacher = make_teacher(kind, chain, tmp_path / "teacher")
    teachers = ("--teachers", teacher, "--teachers", chain.folder / "teachers" / "tfidf-0")
    result = rlkd_command("cache", "--task", chain.task, *teachers, "--output-dir", tmp_path / "cache")
    assert_refused(result, message)
    assert not (tmp_path / "cache").exists()


def test_no_teacher_at_all_is_told(tmp_path: Path, chain: Chain) -> None:
    result = rlkd_command("cache", "--task", chain.task, "--output-dir", tmp_path / "cache")
    assert (result.code, list(tmp_path.iterdir())) == (2, [])
    assert "--teachers" in result.err  # typer's own words for a missing flag


def test_an_unfinished_set_of_teachers_is_not_taken_for_a_smaller_one(chain: Chain, tmp_path: Path) -> None:
    shutil.copytree(chain.folder / "teachers", tmp_path / "teachers")
    (tmp_path / "teachers" / "tfidf-1" / "teacher.json").unlink()
    arguments = ("cache", "--task", chain.task, "--teachers", tmp_path / "teachers", "--output-dir", tmp_path / "c")
    assert_refused(rlkd_command(*arguments), r"expected 3 finished teachers in .*, got 2: their training was interrupt")


def test_a_cache_is_not_taken_for_another(chain: Chain, tmp_path: Path) -> None:
    teachers = [chain.folder / "teachers" / name for name in ("tfidf-1", "tfidf-0", "bilstm-2")]
    order = [argument for path in teachers for argument in ("--teachers", path)]
    cache = ("cache", "--task", chain.task, "--output-dir", chain.folder / "cache")
    before = snapshot(chain.folder / "cache")
    assert_refused(rlkd_command(*cache, *order), r"the same teachers in another order: it has tfidf-0, tfidf-1, bilstm")
    assert_refused(
        rlkd_command(*cache, *order[:2]), r"made with other teachers: it has tfidf-0, .* asked for were tfid"
    )
    whole = ("--teachers", chain.folder / "teachers")
    assert_refused(rlkd_command(*cache, *whole, "--split-seed", 1), r"made for other data: .*'tiny'.* another folder")
    assert_refused(rlkd_command(*cache, *whole, "--dtype", "float16"), r"dtype 'float32', asked for was 'float16'")
    succeeded(*cache, *whole)
    assert snapshot(chain.folder / "cache") == before
    other = write_csv(tmp_path / "other.csv", rows=236)
    for command in (("headroom",), (*DISTILL, "-o", tmp_path / "x"), (*COMPARE, "-o", tmp_path / "x")):
        result = rlkd_command(*command, "--task", other, "--cache", chain.folder / "cache")
        assert_refused(result, r"was made for other data: expected the data of task 'other' .*, it has 'tiny'")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", [("headroom",), DISTILL, RL, COMPARE])
def test_no_cache_is_told(command: tuple[object, ...], chain: Chain, tmp_path: Path) -> None:
    output = () if command == ("headroom",) else ("--output-dir", tmp_path / "new")
    result = rlkd_command(*command, *output, "--task", chain.task, "--cache", tmp_path / "no")
    assert_refused(result, r"expected a logit cache in .*no, found none; build it with rlkd cache")
    assert list(tmp_path.iterdir()) == []


# --- runs that break or are broken off


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Flags for the planted task and the cache of three teachers."""
    folder = tmp_path_factory.mktemp("vectors")
    logits = planted_logits(load_task("planted"))
    for k in range(3):
        np.save(folder / f"t{k}.npy", logits[:, k])
    teachers = [argument for k in range(3) for argument in ("--teachers", folder / f"t{k}.npy")]
    succeeded("cache", "--task", "planted", *teachers, "--output-dir", folder / "cache")
    return ("--task", "planted", "--cache", folder / "cache", "--student", "rlkd/mlp", "--batch-size", 16)


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_instances(
    vectors: tuple[object, ...], tmp_path: Path
) -> None:
    result = rlkd_command("distill", *vectors, "--output-dir", tmp_path / "d", "--learning-rate", 1e30)
    assert_refused(
        result, r"loss must be finite, it became (nan|inf) at step \d+, instances \[\d+(, \d+)*\]; lower the"
    )
    assert not (tmp_path / "d" / "results.json").exists()


def test_a_student_that_diverged_is_told_and_marked(vectors: tuple[object, ...], tmp_path: Path, caplog: Any) -> None:
    steps = ("--max-steps", 40, "--output-dir", tmp_path / "d")
    succeeded("distill", *vectors, *steps, "--learning-rate", 30)
    rows = json.loads((tmp_path / "d" / "results.json").read_text())
    assert [row["diverged"] for row in rows] == [True, True]
    assert min(row["nll"] for row in rows) > 10 * np.log(6)
    assert any(line.startswith("the student on validation has a negative log likeli") for line in caplog.messages)
    assert "The student diverged: far worse than a uniform guess" in (tmp_path / "d" / "report.html").read_text()


OWN = """
import torch


class Raises:
    requires = frozenset()
    calls = 0

    @classmethod
    def build(cls, argument, evidence):
        return cls()

    def weights(self, state):
        self.calls += 1
        if self.calls == 5:
            raise RuntimeError("the fifth batch")
        return torch.full(state.teacher_logits.shape[:-1], 1 / 3)
"""


def test_a_failed_run_is_a_row_and_the_exit_code_is_1(
    vectors: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_raises.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)  # where a user's own module lies
    arms = ("--weighting", "uniform", "--weighting", "own_raises:Raises", "--seeds", 1, "--max-steps", 10)
    output = ("--output-dir", tmp_path / "c", "--json", tmp_path / "rows.json")
    result = rlkd_command("compare", *vectors, *arms, *output)
    assert (result.code, result.err) == (1, "")
    assert "1 of 2 runs failed. own_raises:Raises, seed 0: RuntimeError: the fifth batch (own_raises.py:" in result.out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [("accuracy" in row, row["failed"]) for row in rows[:2]] == [(True, 0), (False, 1)]
    assert (tmp_path / "c" / "report.html").exists()


SERVER = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
import rlkd.cli, rlkd.workflow
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        sys.stdin.close()
        os.dup2(os.open(job["output"], os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        sys.argv = job["argv"]
        rlkd.cli.main()
        sys.exit()  # what is registered for the exit of a program is part of what is tested
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Forks the command line, so that runs can be killed and the libraries are imported once."""


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SERVER], text=True, **pipes) as process:  # type: ignore[call-overload]
        yield process
        process.stdin.close()


def killed(
    server: subprocess.Popen[str], sent: signal.Signals, when: Callable[[int], bool], output: Path, *arguments: object
) -> tuple[int, str]:
    """Run a command, send it a signal when the function of its process says so: its exit code and what it printed."""
    assert server.stdin is not None
    assert server.stdout is not None
    argv = ["rlkd", *map(str, arguments), "--quiet"]
    server.stdin.write(json.dumps({"argv": argv, "output": str(output)}) + "\n")
    server.stdin.flush()
    child = int(server.stdout.readline())
    deadline = time.monotonic() + 60
    while not when(child):
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.002)
    os.kill(child, sent)
    return int(server.stdout.readline()), output.read_text()


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


SIGNALS = [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]


def assert_broken_off(sent: signal.Signals, code: int, expected: int, printed: str) -> None:
    assert code == expected
    if sent == signal.SIGINT:
        assert printed.strip() == "rlkd: interrupted; the same command continues, with --resume where it has that flag"


@pytest.fixture(scope="module")
def whole_distillation(vectors: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    succeeded("distill", *vectors, *DISTILLATION, "--output-dir", output)
    return output


DISTILLATION = ("--max-steps", 120, "--save-steps", 10, "--weighting", "entropy")


@pytest.mark.parametrize(("sent", "expected"), SIGNALS)
def test_a_distillation_that_was_broken_off_resumes_to_the_same_student(
    sent: signal.Signals,
    expected: int,
    server: subprocess.Popen[str],
    vectors: tuple[object, ...],
    whole_distillation: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    arguments = ("distill", *vectors, *DISTILLATION, "--output-dir", run)
    sealed = run / "checkpoints" / "checkpoint-20" / "manifest.json"
    code, printed = killed(server, sent, lambda _: sealed.exists(), tmp_path / "printed", *arguments)
    assert_broken_off(sent, code, expected, printed)
    assert not (run / "results.json").exists()
    succeeded(*arguments, "--resume")
    student, whole = (load_file(path / "student" / "model.safetensors") for path in (run, whole_distillation))
    assert student.keys() == whole.keys()
    assert all(torch.equal(student[name], whole[name]) for name in whole)
    assert (run / "results.json").read_bytes() == (whole_distillation / "results.json").read_bytes()
    assert (run / "metrics.jsonl").read_bytes() == (whole_distillation / "metrics.jsonl").read_bytes()


def test_a_policy_training_that_was_broken_off_resumes_to_the_same_policy(
    server: subprocess.Popen[str], vectors: tuple[object, ...], tmp_path: Path
) -> None:
    arguments = ("train-policy", *vectors, "--horizon", 10, "--n-steps", 10, "--total-timesteps", 160 * 8)
    run, whole = tmp_path / "run", tmp_path / "whole"
    printed_to, begun = tmp_path / "printed", run / "metrics.jsonl"
    code, printed = killed(
        server, signal.SIGINT, lambda _: lines(begun) >= 4, printed_to, *arguments, "--output-dir", run
    )
    assert_broken_off(signal.SIGINT, code, 130, printed)
    assert not (run / "policy").exists()
    succeeded(*arguments, "--output-dir", run, "--resume")
    succeeded(*arguments, "--output-dir", whole)
    for name in ("policy/model.safetensors", "metrics.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_a_resumed_comparison_may_have_more_seeds_and_weightings(vectors: tuple[object, ...], tmp_path: Path) -> None:
    run = ("compare", *vectors, "--max-steps", 5, "--output-dir", tmp_path / "c")
    succeeded(*run, "--weighting", "uniform", "--seeds", 1)
    before = read_jsonl(tmp_path / "c" / "runs.jsonl")
    succeeded(*run, "--resume", "--weighting", "entropy", "--seeds", 2)
    after = read_jsonl(tmp_path / "c" / "runs.jsonl")
    assert after[:1] == before
    assert {(r["weighting"], r["seed"]) for r in after} == {(w, s) for w in ("uniform", "entropy") for s in (0, 1)}
    assert len(after) == 4
    shown = succeeded(*run, "--resume", "--seeds", 1).out  # fewer seeds take none away
    assert [line.split()[:2] for line in shown.splitlines()[2:4]] == [["uniform", "2"], ["entropy", "2"]]
    assert len(read_jsonl(tmp_path / "c" / "runs.jsonl")) == 4
    refused = rlkd_command(*run, "--resume", "--learning-rate", 1)
    assert_refused(refused, r"was started with settings.learning_rate = 0.002, got 1.0; resume with the same")


COMPARISON = ("--weighting", "uniform", "--weighting", "entropy", "--seeds", 3, "--max-steps", 40)


@pytest.fixture(scope="module")
def whole_comparison(vectors: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    succeeded("compare", *vectors, *COMPARISON, "--output-dir", output)
    return output


@pytest.mark.parametrize(("sent", "expected"), SIGNALS)
def test_a_comparison_that_was_broken_off_repeats_no_finished_run(
    sent: signal.Signals,
    expected: int,
    server: subprocess.Popen[str],
    vectors: tuple[object, ...],
    whole_comparison: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    arguments = ("compare", *vectors, *COMPARISON, "--output-dir", run)
    code, printed = killed(server, sent, lambda _: lines(run / "runs.jsonl") >= 2, tmp_path / "printed", *arguments)
    assert_broken_off(sent, code, expected, printed)
    before = read_jsonl(run / "runs.jsonl")
    assert 2 <= len(before) < 6
    succeeded(*arguments, "--resume")
    after = read_jsonl(run / "runs.jsonl")
    assert after[: len(before)] == before
    assert len(after) == len({record["key"] for record in after}) == 6
    whole = {record["key"]: record["correct"] for record in read_jsonl(whole_comparison / "runs.jsonl")}
    assert {record["key"]: record["correct"] for record in after} == whole


def alive(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="counts processes in /proc")
# the first or the second worker is being started; one tracks resources
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("sent", "expected"), [SIGNALS[0], pytest.param(*SIGNALS[1], marks=pytest.mark.slow)])
def test_a_comparison_that_was_broken_off_leaves_no_processes_behind(
    sent: signal.Signals,
    expected: int,
    count: int,
    server: subprocess.Popen[str],
    vectors: tuple[object, ...],
    tmp_path: Path,
) -> None:
    children: list[int] = []

    def all_started(process: int) -> bool:
        children[:] = map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
        return len(children) >= count

    arguments = (
        "compare",
        *vectors,
        *COMPARISON,
        "--max-steps",
        100_000,
        "--jobs",
        2,
        "--output-dir",
        tmp_path / "run",
    )
    code, printed = killed(server, sent, all_started, tmp_path / "printed", *arguments)
    assert_broken_off(sent, code, expected, printed)
    deadline = time.monotonic() + 60  # a worker must have imported its libraries to notice that nobody waits for it
    while any(map(alive, children)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
