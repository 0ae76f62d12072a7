"""The README says what the code does: commands, weightings, files, and no number that its record does not hold."""

import re
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rlkd.cli import app
from rlkd.records import file_hash
from rlkd.report.origins import records_hash
from rlkd.report.plots import interval_words
from rlkd.weighting import weighting_names

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDS = ROOT / "benchmarks" / "results"

sys.path.insert(0, str(ROOT / "benchmarks"))  # scripts, of no package

import make_results  # noqa: E402
import readme  # noqa: E402

RESULTS = readme.results_text()


def _commands() -> list[str]:
    return [command.name or command.callback.__name__ for command in app.registered_commands]


@pytest.mark.parametrize("command", _commands())
def test_every_command_is_explained(command):
    assert f"rlkd {command}" in README


@pytest.mark.parametrize("weighting", weighting_names())
def test_every_weighting_is_in_the_table(weighting):
    assert re.search(rf"^\| .*`{weighting}[`:]", README, re.MULTILINE)


def test_the_file_map_names_files_that_exist():
    block = README.split("## File map")[1].split("```")[1]
    paths = re.findall(r"(?:rlkd|envs)/[\w./]*", block)
    assert len(paths) >= 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_python_block_names_what_the_package_has():
    import rlkd

    block = README.split("```python")[1].split("```")[0]
    compile(block, "README.md", "exec")
    for name in set(re.findall(r"rlkd\.(\w+)", block)):
        assert hasattr(rlkd, name), name


# -- figures ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def suites() -> dict[str, list[dict[str, Any]]]:
    return make_results.read_records()


@pytest.fixture(scope="module")
def results() -> readme.Results:
    return readme.Results(RESULTS)


@pytest.fixture(scope="module")
def transcripts(suites: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    return {"quickstart": readme.transcript(suites["quickstart"])}


def problems(text: str, results: readme.Results, transcripts: dict[str, str]) -> list[str]:
    return readme.problems(text, results, transcripts, readme.read_settings())


def test_every_figure_of_the_readme_is_what_its_record_says(results, transcripts):
    """What to do: python benchmarks/make_results.py after new runs, python benchmarks/readme.py after new words."""
    assert len(readme._keys(README)) > 30
    assert problems(README, results, transcripts) == []


def test_the_picture_says_what_its_records_say(suites):
    """What to do: python benchmarks/make_results.py."""
    drawn = make_results.PICTURE.read_text(encoding="utf-8")
    assert f"]({make_results.PICTURE.relative_to(ROOT).as_posix()})" in README
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    rows = make_results.pictured(suites["quickstart"])
    assert [text for text in texts if "[" in text] == [interval_words(row) for row in rows]
    assert [text for text in texts if text in weighting_names()] == [row["weighting"] for row in rows]


def visible_numbers() -> Iterator[re.Match[str]]:
    hidden = [found.span() for found in re.finditer(r"<!--.*?-->", README, re.DOTALL)]
    for found in re.finditer(r"\d+(?:[.,]\d+)*", README):
        if not any(start <= found.start() < end for start, end in hidden):
            yield found


def test_a_last_digit_that_is_changed_anywhere_in_the_readme_is_refused(results, transcripts):
    numbers = list(visible_numbers())
    assert len(numbers) > 300
    accepted = []
    for found in numbers:
        other = str((int(found[0][-1]) + 1) % 10)
        changed = README[: found.end() - 1] + other + README[found.end() :]
        if not problems(changed, results, transcripts):
            accepted.append(f"{README[found.start() - 30 : found.end() + 10]!r}")
    assert accepted == []


def test_the_pages_of_results_are_made_of_the_lines_that_are_there(suites, results):
    for suite, records in suites.items():
        found = re.search(r"Made of \d+ lines?, `([0-9a-f]{16})`", results.sections[suite])
        assert found is not None
        assert found[1] == records_hash(records), f"{suite}: run python benchmarks/make_results.py"
    for path in RECORDS.glob("*.json"):
        if not path.stem.endswith("-headroom"):  # those are in the hash of their suite
            assert f"From `{path.name}`, `{file_hash(path)}`" in RESULTS, f"{path}: python benchmarks/make_results.py"


def difference(records: list[dict[str, Any]], tasks: list[str], left: str, right: str) -> float:
    """Mean over tasks of left minus right over their common seeds, in points, from the lines alone."""
    means = []
    for task in tasks:
        scores: dict[str, dict[int, float]] = {left: {}, right: {}}
        for line in records:
            if line["task"] == task and line["status"] == "ok" and line["weighting"] in scores:
                scores[line["weighting"]][line["seed"]] = line[line["metric"]]
        common = scores[left].keys() & scores[right].keys()
        if common:
            means.append(100 * np.mean([scores[left][seed] - scores[right][seed] for seed in common]))
    return float(np.mean(means))


def test_differences_that_the_readme_tells_follow_from_the_lines_alone(suites, results):
    claims = yaml.safe_load((ROOT / "benchmarks" / "claims.yaml").read_text(encoding="utf-8"))
    captions = {
        caption: (suite, block["groups"]) for suite, blocks in claims.items() for caption, block in blocks.items()
    }
    checked = 0
    for found in readme._FIGURE.finditer(README):
        cell = results.find(found["key"])
        section, *inner = cell.headings
        if cell.column in readme.COLUMNS["gain"]:
            lines, arms = suites[section], (cell.row[0], "uniform")
            tasks = inner or list(dict.fromkeys(line["task"] for line in lines))
        elif section in captions:
            suite, groups = captions[section]
            lines = [line for line in suites[suite] if line["student"] == cell.row[0]]
            arms, tasks = tuple(cell.row[2].split(" minus ")), groups[cell.column]
        else:
            continue
        number = Decimal(re.match(r"[+-]?[\d.]+", found["figure"])[0])
        sign = -1 if "negated" in found["key"] else 1
        assert sign * float(number) == pytest.approx(difference(lines, tasks, *arms), abs=0.0501), found["key"]
        checked += 1
    assert checked > 15


PAGE = """# Results

## one

| weighting | pays / same / costs | mean points over uniform | rows  |
| --------- | ------------------- | ------------------------ | ----: |
| policy    | 4 / 2 / 0           | +1.25 [-0.04, +12.35]    | 1,234 |
| a\\|b      | 0 / 0 / 6           | -2.0 [-3.0, -1.0], costs |     - |

### inner

| weighting | points over uniform | value |
| --------- | ------------------- | ----: |
| policy    | +9.0 [+8.0, +10.0]  |   1.0 |

## two

| weighting | points over uniform | value |
| --------- | ------------------- | ----: |
| policy    | -7.0 [-8.0, -6.0]   |   2.0 |
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<!--one; policy; gain-->+1.3 [+0.0, +2.0]", "+1.2 [+0.0, +12.4]"),
        ("<!--one; policy; gain-->+1.30", "+1.25"),
        ("<!--gain; policy; one; negated-->7.0 [4.4, 9.8]", "-1.2 [-12.4, 0.0]"),
        ("<!--one; a|b; gain; negated-->1.8", "2.0"),
        ("<!--one; a|b; gain-->**-9** [-9, -9]", "-2** [-3, -1]"),
        ("<!--one; inner; gain-->+1.0", "+9.0"),
        ("<!--two; policy; gain-->+1.0 [+0.0, +1.0]", "-7.0 [-8.0, -6.0]"),
        ("<!--one; policy; pays-->9 tasks, <!--one; policy; costs-->9", "0"),
        ("<!--one; policy; rows-->1.0", "1234.0"),
    ],
)
def test_a_figure_is_rewritten_in_its_own_form(before, after):
    page = readme.Results(PAGE)
    new = readme.rewritten(before, page, {})
    assert new.endswith(after)
    assert readme.rewritten(new, page, {}) == new
    assert any("RESULTS.md says" in problem for problem in readme.problems(before, page, {}, {}))
    assert not any("RESULTS.md says" in problem for problem in readme.problems(new, page, {}, {}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!--one; entropy; gain-->+1.0", "names no cell"),
        ("<!--policy; gain-->1.0", "names 2 cells"),
        ("<!--one; a|b; rows-->1.0", "is '-' now"),
        ("<!--one; inner; value-->1.0 [0.0, 2.0]", "is '1.0' now"),
        ("<!--one; policy; gain-->no number", "no number behind the comment"),
        ("a gain of +1.2 points", "bound to no cell"),
        ("## Results\n\nan accuracy of 0.61", "bound to no cell"),
        ("13 classes", "13 is new"),
        ("it gains\n  <!--one; policy; gain-->+1.25", "begins a line"),
    ],
)
def test_a_number_that_stands_on_nothing_is_refused(text, said):
    assert any(said in problem for problem in readme.problems(text, readme.Results(PAGE), {}, {}))


def test_lines_without_a_commit_are_named_in_the_readme():
    page = readme.Results(PAGE.replace("## two\n", "## two\n\n**3 of 4 lines carry no commit**.\n"))
    behind = "<!--{}; policy; gain-->+1.0\n<!--untraced-->\n<!--/untraced-->"
    assert "`two` carry no commit" in readme.rewritten(behind.format("two"), page, {})
    assert readme.rewritten(behind.format("one"), page, {}).endswith("<!--untraced-->\n<!--/untraced-->")
    assert any(
        "without a commit should be" in problem for problem in readme.problems(behind.format("two"), page, {}, {})
    )


@pytest.mark.slow
def test_the_results_are_what_their_lines_give_today(tmp_path):
    suites = make_results.read_records()
    tables, notes = make_results.more_tables(suites)
    for path in make_results.write_benchmark_report(suites, tmp_path, tables=tables, notes=notes):
        assert path.read_bytes() == (ROOT / "benchmarks" / path.relative_to(tmp_path)).read_bytes()
