"""A default is stated once, whichever door it is asked at, and what it stands for is on record."""

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer

import rlkd.cli
from rlkd import defaults, workflow
from rlkd.agents import PolicyTraining, train_policy
from rlkd.agents.settings import policy_settings
from rlkd.benchmark.suite_files import load_suite
from rlkd.errors import ConfigError
from rlkd.models.students import PREFIX, STUDENTS
from rlkd.settings import StudentSettings, found_device

SUITES = sorted((Path(__file__).parents[1] / "benchmarks" / "suites").glob("*.yaml"))


def flags(command):
    group = typer.main.get_command(rlkd.cli.app)
    return {parameter.name: parameter for parameter in group.commands[command].params}


def test_policies_are_trained_alike_from_every_door(monkeypatch):
    python = PolicyTraining()
    assert (python.warm_start, python.agent_learning_rate, python.log_std) == (True, 1e-3, -1.6)
    cold = PolicyTraining(warm_start=False)
    assert (cold.agent_learning_rate, cold.log_std) == (2e-3, -0.7)
    assert PolicyTraining(warm_start=False, log_std=-1.0, agent_learning_rate=0.5).log_std == -1.0
    train, quick = flags("train-policy"), flags("quickstart")
    assert train["total_timesteps"].default == quick["total_timesteps"].default == python.total_timesteps == 46_080
    assert inspect.signature(workflow.run_quickstart).parameters["total_timesteps"].default == python.total_timesteps
    given = {}
    monkeypatch.setattr(workflow, "run_train_policy", lambda *args, **kwargs: given.update(kwargs) or [])
    command = ["rlkd", "train-policy", "--task", "t", "--cache", "c", "-o", "o"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit):
        rlkd.cli.main()
    assert given["training"] == python
    assert given["episode"]["teacher_copies"] == defaults.TEACHER_COPIES == 2
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
        for settings in task.students.values():
            assert settings.device == "cpu"
            assert settings.student.startswith(PREFIX) or settings.learning_rate != defaults.FINE_TUNING_RATE


@pytest.mark.parametrize("student", [*STUDENTS, "prajjwal1/bert-tiny", "runs/encoder", "some/rlkd"])
def test_a_pretrained_student_learns_at_the_rate_of_fine_tuning(student):
    expected = 2e-3 if student in STUDENTS else 5e-5
    assert StudentSettings(student=student).learning_rate == expected
    assert StudentSettings(student=student).record()["learning_rate"] == expected  # what was done is on record
    assert StudentSettings(student=student, learning_rate=0.25).learning_rate == 0.25
    assert StudentSettings(student=student, learning_rate=0.0).learning_rate == 0.0


@pytest.mark.parametrize("command", ["distill", "compare", "train-policy", "mkd", "meta-kd", "train-teachers", "cache"])
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
    assert workflow.whole.QUICKSTART_STUDENT.device == "cpu"


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
    assert given["episode"] == {"teacher_copies": 2, "learning_rate": defaults.student_rate(student)}
    assert given["device"] == found_device("auto")
    train_policy(None, None, student=student, episode={"learning_rate": 0.25})
    assert given["episode"]["learning_rate"] == 0.25
    train_policy(None, None, student=lambda seed: None)
    assert "learning_rate" not in given["episode"]
