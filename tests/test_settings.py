"""A knob is stated once, whichever door it is asked at, and what it stands for is on record."""

import ast
import inspect
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from transformers import HfArgumentParser

import rlkd.cli
from rlkd import plugins, settings, workflow
from rlkd.agents import ALGORITHMS, train_policy
from rlkd.agents.settings import policy_settings
from rlkd.benchmark.suite_files import load_suite
from rlkd.devices import found_device
from rlkd.errors import ConfigError
from rlkd.logit_cache.reading import DTYPES
from rlkd.models.students import PREFIX, STUDENTS
from rlkd.settings import PolicyStudents, PolicyTraining, StudentSettings
from rlkd.settings.knobs import SHARE, Range, above, at_least, field_of
from rlkd.trainer import DistillationArguments

ROOT = Path(__file__).parents[1]
SUITES = sorted((ROOT / "benchmarks" / "suites").glob("*.yaml"))
SYSTEMS = [import_module(f"rlkd.systems.{name}") for name in plugins.systems()]
"""Those with a command keep their knobs beside it."""


def groups():
    """Every dataclass of settings that flags are made of."""
    own = [import_module(f"{one.__name__}.settings") for one in SYSTEMS if "commands" in one.REGISTERED]
    for module in (settings, *own):
        yield from (thing for thing in vars(module).values() if inspect.isclass(thing) and is_dataclass(thing))


def commands(group=None, path=()):
    """Every command of the door, those of sub-commands too, by its words."""
    for name, command in (group or typer.main.get_command(rlkd.cli.app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands())
KNOBS = {knob.metadata.get("flag") or knob.name for group in groups() for knob in fields(group)}


def flags(command):
    return {parameter.name: parameter for parameter in COMMANDS[command].params}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_a_knob_with_its_default_and_help(name):
    knobs, there = COMMANDS[name].callback.knobs, flags(name)
    homes = {id(knob) for group in groups() for knob in fields(group)}
    assert set(knobs) == set(there) != set()
    for flag, knob in knobs.items():
        assert id(knob) in homes, f"{flag} is no field of settings"
        parameter, default = there[flag], None if knob.default in (MISSING, ()) else knob.default
        assert parameter.help == knob.metadata["help"]
        assert parameter.default == default
        assert parameter.required == (knob.default is MISSING)
        assert len(parameter.help.split()) > 2, f"{flag}: {parameter.help}"
        assert not parameter.help.startswith(("Of ", "By default", "Likewise")), f"{flag} cannot be read alone"


def literal(node):
    """A value that stands in the code; None says that none is given."""
    return isinstance(node, ast.UnaryOp) or (isinstance(node, ast.Constant) and node.value is not None)


def stated(path):
    """Defaults that a file states itself: of arguments, and in flags."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            given = [*node.args.posonlyargs, *node.args.args][::-1], node.args.defaults[::-1]
            pairs = [*zip(*given, strict=False), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
            yield from ((arg.arg, arg.lineno) for arg, value in pairs if literal(value))
        if isinstance(node, ast.Attribute) and node.attr in ("Option", "Argument") and path.name != "options.py":
            yield "typer." + node.attr, node.lineno


DOORS = ("cli/*", "workflow/*", "systems/*/run", "systems/*/command")
INSIDE = ("agents/*", "benchmark/*", "logit_cache/*", "losses", "models/t*", "models/[ems]*", "trainer/*", "../envs/*")
OTHER = {"seed", "device", "batch_size", "learning_rate", "hidden_size", "n_steps", "centred"}
"""Names that inside the house stand for other things too."""


def test_no_default_is_stated_a_second_time():
    """At the door and where arguments become objects: they are read from settings."""
    found = [
        f"{path.relative_to(ROOT)}:{line} states {name}"
        for rooms, names in ((DOORS, KNOBS), (INSIDE, KNOBS - OTHER))
        for room in rooms
        for path in (ROOT / "rlkd").glob(f"{room}.py")
        for name, line in stated(path)
        if (name in names or name.startswith("typer")) and (path.stem, name) != ("tokenizer", "max_length")
    ]
    assert found == []


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (at_least(1), (1, 2.5), (0, float("nan"), float("inf"), None, "2"), "be >= 1"),
        (above(0), (1e-9, 3), (0, -1), "be > 0"),
        (SHARE, (0, 0.5, 1), (-0.1, 1.1, float("nan")), "lie in [0, 1]"),
        (Range(0, 1, open_high=True), (0, 0.9), (1,), "lie in [0, 1)"),
        (Range(0, 1, open_low=True), (0.1, 1), (0,), "lie in (0, 1]"),
    ],
)
def test_a_range_says_what_is_in_it(allowed, inside, outside, words):
    assert str(allowed) == words
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in outside)


@pytest.mark.parametrize("group", [group for group in groups() if issubclass(group, settings.knobs.Settings)])
def test_every_knob_with_a_range_or_choices_is_checked(group):
    needed = {knob.name: knob_value(knob) for knob in fields(group) if knob.default is MISSING}
    group(**{name: value for name, value in needed.items() if value is not MISSING})
    for knob in fields(group):
        if knob.metadata.get("range") or knob.metadata.get("choices"):
            wrong = -7.5 if knob.metadata["range"] else "none of them"
            with pytest.raises(ConfigError, match=rf"^{knob.name} must .*, got {wrong!r}; "):
                group(**needed | {knob.name: wrong})


def knob_value(knob):
    """Something that a knob without a default may be; a factory makes its own."""
    return 1 if knob.metadata.get("range") else "x" if knob.default_factory is MISSING else MISSING


def test_choices_are_those_of_what_is_chosen_from():
    assert set(field_of(PolicyTraining, "algorithm").metadata["choices"]) == set(ALGORITHMS)
    assert set(field_of(settings.CacheSettings, "dtype").metadata["choices"]) == set(DTYPES)


def test_transformers_reads_our_arguments_from_a_command_line(tmp_path):
    (read,) = HfArgumentParser(DistillationArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--kd_ratio", "0.5", "--use_cpu"]
    )
    assert (read.kd_ratio, read.temperature, read.divergence) == (0.5, 1.0, "kl")


def test_policies_are_trained_alike_from_every_door(monkeypatch):
    python = PolicyTraining()
    assert (python.warm_start, python.total_timesteps) == (True, 23_040)
    assert (python.agent_learning_rate, python.log_std) == (1e-3, -1.6)
    cold = PolicyTraining(warm_start=False)
    assert (cold.total_timesteps, cold.agent_learning_rate, cold.log_std) == (46_080, 2e-3, -0.7)
    assert PolicyTraining(warm_start=False, log_std=-1.0, agent_learning_rate=0.5).log_std == -1.0
    train, quick = flags("train-policy"), flags("quickstart")
    assert train["total_timesteps"].default == quick["total_timesteps"].default
    quick_start = inspect.signature(workflow.run_quickstart).parameters
    assert quick_start["total_timesteps"].default == PolicyTraining.total_timesteps
    given = {}
    monkeypatch.setattr(workflow, "run_train_policy", lambda *args, **kwargs: given.update(kwargs) or [])
    command = ["rlkd", "train-policy", "--task", "t", "--cache", "c", "-o", "o"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit):
        rlkd.cli.main()
    assert given["training"] == python
    assert given["episode"]["teacher_copies"] == PolicyStudents.teacher_copies == 2
    monkeypatch.setattr(
        "sys.argv", ["rlkd", "train-policy", "--task", "t", "--cache", "c", "-o", "o", "--no-warm-start"]
    )
    with pytest.raises(SystemExit):
        rlkd.cli.main()
    assert given["training"] == cold


def test_policies_of_suites_are_what_they_were():
    """Suites state what they want; what they leave out stays as it was when their results were made."""
    plan = policy_settings({"total_timesteps": 15360}, episode={}, student="rlkd/mlp")
    training = plan.training
    assert policy_settings({}, episode={}, student="rlkd/mlp").training.total_timesteps == 46_080
    assert (training.warm_start, training.agent_learning_rate, training.log_std) == (False, 2e-3, -0.7)
    warm = policy_settings({"warm_start": True}, episode={}, student="rlkd/mlp").training
    assert (warm.agent_learning_rate, warm.log_std) == (2e-3, -0.7)
    assert plan.episode["teacher_copies"] == 0
    assert policy_settings({"teacher_copies": 2}, episode={}, student="rlkd/mlp").episode["teacher_copies"] == 2


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_suite_states_the_rates_of_its_pretrained_students(path, monkeypatch):
    """So that their runs keep their keys, and on a machine with an accelerator too."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    for task in load_suite(path).tasks:
        for student in task.students.values():
            assert student.device == "cpu"
            assert student.student.startswith(PREFIX) or student.learning_rate != settings.FINE_TUNING_RATE


@pytest.mark.parametrize("student", [*STUDENTS, "prajjwal1/bert-tiny", "runs/encoder", "some/rlkd"])
def test_a_pretrained_student_learns_at_the_rate_of_fine_tuning(student):
    expected = 2e-3 if student in STUDENTS else 5e-5
    assert StudentSettings(student=student).learning_rate == expected
    assert StudentSettings(student=student).record()["learning_rate"] == expected  # what was done is on record
    assert StudentSettings(student=student, learning_rate=0.25).learning_rate == 0.25
    assert StudentSettings(student=student, learning_rate=0.0).learning_rate == 0.0


@pytest.mark.parametrize(
    "command", ["distill", "compare", "train-policy", "train-teachers", "cache", *plugins.registered("commands")]
)
def test_the_accelerator_is_used_where_there_is_one(command, monkeypatch):
    assert flags(command)["device"].default == "auto"


def test_auto_is_the_accelerator_where_there_is_one_and_what_was_found_is_on_record(monkeypatch):
    def settings():
        return StudentSettings(student="rlkd/mlp", learning_rate=2e-3)

    if not torch.accelerator.is_available():
        assert settings() == StudentSettings(student="rlkd/mlp", learning_rate=2e-3, device="cpu")  # keys stay
        assert settings().record()["device"] == found_device("auto") == "cpu"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert settings().record()["device"] == found_device("auto") == "cuda"
    assert [found_device(name) for name in ("cpu", "cuda:0", "mps")] == ["cpu", "cuda:0", "mps"]
    assert workflow.quickstart.QUICKSTART_STUDENT.device == "cpu"


def test_a_run_that_was_begun_elsewhere_says_so(tmp_path, monkeypatch):
    options = {"source": "planted"}
    workflow.run_train_teachers(options, ["tfidf", "tfidf"], str(tmp_path / "teachers"))
    workflow.run_cache(options, [str(tmp_path / "teachers")], str(tmp_path / "cache"))

    def distil(**values):
        settings = StudentSettings(student="rlkd/mlp", max_steps=4, device="cpu")
        given = {"weighting": "uniform", "settings": settings, "resume": True}
        return workflow.run_distill(options, str(tmp_path / "cache"), str(tmp_path / "run"), **(given | values))

    distil()
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "4 steps at a learning rate of 0.002, on cpu." in page
    for name in ("bf16", "num_train_epochs"):
        with pytest.raises(ConfigError, match=f"the training argument '{name}' is set by"):
            distil(arguments={name: 1})
    with pytest.raises(ConfigError, match=r"^label_smoothing_factor would be ignored, got 0\.1"):
        distil(arguments={"label_smoothing_factor": 0.1})


@pytest.mark.parametrize("student", ["rlkd/tiny", "some/encoder"])
def test_policies_are_trained_on_students_at_their_own_rate_in_python_too(student, monkeypatch):
    given = {}
    prepared = SimpleNamespace(run=lambda *args, **kwargs: None)
    monkeypatch.setattr(rlkd.agents.training, "prepare_training", lambda *args, **kw: given.update(kw) or prepared)
    train_policy(None, None, student=student)
    assert given["episode"] == {"teacher_copies": 2, "learning_rate": settings.student_rate(student)}
    assert given["device"] == found_device("auto")
    train_policy(None, None, student=student, episode={"learning_rate": 0.25})
    assert given["episode"]["learning_rate"] == 0.25
    train_policy(None, None, student=lambda seed: None)
    assert "learning_rate" not in given["episode"]
