"""The README says what the code does: commands, weightings, files, and no number that the results lack."""

import re
from pathlib import Path

import pytest

from rlkd.cli import app
from rlkd.weighting import WEIGHTINGS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")


def _commands() -> list[str]:
    return [command.name or command.callback.__name__ for command in app.registered_commands]


@pytest.mark.parametrize("command", _commands())
def test_every_command_is_explained(command):
    assert f"rlkd {command}" in README


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weighting_is_in_the_table(weighting):
    assert re.search(rf"^\| .*`{weighting}[`:]", README, re.MULTILINE)


def test_the_file_map_names_files_that_exist():
    block = README.split("## File map")[1].split("```")[1]
    paths = re.findall(r"(?:rlkd|envs)/[\w./]*", block)
    assert len(paths) >= 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_measured_number_of_the_readme_stands_in_the_results():
    # the result line, the quick start's table and the results section; elsewhere numbers without a plus are settings
    measured = README.split("## Install")[0] + README.split("```text")[1].split("```")[0]
    measured += README.split("## Results")[1].split("## Limits")[0]
    measured += " ".join(re.findall(r"\+(\d+\.\d+)", README))
    numbers = set(re.findall(r"(?<![\w.:-])-?\d+\.\d+", measured))
    assert numbers
    assert sorted(number for number in numbers if number not in RESULTS) == []


def test_the_python_block_names_what_the_package_has():
    import rlkd

    block = README.split("```python")[1].split("```")[0]
    compile(block, "README.md", "exec")
    for name in set(re.findall(r"rlkd\.(\w+)", block)):
        assert hasattr(rlkd, name), name
