"""The README files say what the code does: commands, weightings, files, and no number that its record does not hold."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.main import get_command

from rlkd.asking.policy import SHIPPED as ASKER
from rlkd.cli import app
from rlkd.records import file_hash, read_jsonl
from rlkd.report.origins import records_hash
from rlkd.report.plots import interval_words
from rlkd.weighting import weighting_names
from rlkd.weighting.policy_files import SHIPPED

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "results"

sys.path.insert(0, str(ROOT / "benchmarks"))  # scripts, of no package

import asker_card  # noqa: E402
import make_results  # noqa: E402
import model_card  # noqa: E402
import readme  # noqa: E402

RESULTS = readme.results_text()
PAGES = readme.read_pages()
README = PAGES["README.md"]
EVERYTHING = "\n".join(PAGES.values())


def _commands() -> list[str]:
    return [command.name or command.callback.__name__ for command in app.registered_commands]


@pytest.mark.parametrize("command", _commands())
def test_every_command_is_explained(command):
    assert f"rlkd {command}" in README


@pytest.mark.parametrize("weighting", weighting_names())
def test_every_weighting_is_in_the_table(weighting):
    assert re.search(rf"^\| .*`{weighting}[`:]", PAGES["rlkd/weighting/README.md"], re.MULTILINE)


def test_the_file_map_names_files_that_exist():
    block = README.split("## File map")[1].split("```")[1]
    paths = re.findall(r"(?:rlkd|envs)/[\w./]*", block)
    assert len(paths) >= 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_folder_of_the_house_is_on_the_map():
    block = README.split("## File map")[1].split("```")[1]
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "rlkd").glob("*/__init__.py")}
    systems = {path.parent.name for path in (ROOT / "rlkd" / "systems").glob("*/README.md")}
    assert [room for room in rooms if f"{room}/" not in block] == []
    assert [system for system in systems if f"{system}/" not in block] == []


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```python" in text])
def test_python_blocks_name_what_the_package_has(page):
    import rlkd

    for block in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL):
        compile(block, page, "exec")
        for name in set(re.findall(r"\brlkd\.(\w+)\(", block)):
            assert hasattr(rlkd, name), name
        for module, name in re.findall(r"^from (rlkd\S*) import (\w+)$", block, re.MULTILINE):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_every_flag_that_is_named_is_one():
    known = set(re.findall(r"--[a-z][\w-]+", " ".join(_flags(get_command(app)))))
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", re.sub(r"<!--.*?-->", "", EVERYTHING)))
    assert named - known - {"--dynamic", "--settings"} == set()  # of a paper's code, of benchmarks/readme.py


def _flags(command: Any) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for inner in getattr(command, "commands", {}).values():
        yield from _flags(inner)


def test_every_link_leads_somewhere():
    broken = []
    for page, text in PAGES.items():
        for link in re.findall(r"\]\((?!https?:)([^)]*)\)", text):
            path, _, section = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            if removed(target):
                continue
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if section else []
            if not target.exists() or (section and section not in map(_anchor, titles)):
                broken.append(f"{page}: {link}")
        paths = re.findall(r"`((?:rlkd|envs|benchmarks)/[\w/]+(?:\.\w+)?)`", text)
        broken += [f"{page}: {path}" for path in paths if path not in STUDENTS and not (ROOT / path).exists()]
    assert broken == []


STUDENTS = ("rlkd/bilstm", "rlkd/tiny", "rlkd/mlp", "rlkd/cnn")
"""Names that look like paths."""


def removed(page: Path) -> bool:
    """Whether it belongs to a system whose whole folder was deleted, see test_fence."""
    return page.parent.parent.name == "systems" and not page.parent.exists()


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


# -- figures ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def suites() -> dict[str, list[dict[str, Any]]]:
    return make_results.read_records()


@pytest.fixture(scope="module")
def results() -> readme.Results:
    return readme.Results(RESULTS)


@pytest.fixture(scope="module")
def transcripts(suites: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    return readme.read_transcripts(suites, README)


SETTINGS = readme.read_settings()


def problems(page: str, text: str, results: readme.Results, transcripts: dict[str, str]) -> list[str]:
    return readme.problems(text, results, transcripts, SETTINGS.get(page) or {})


def test_every_page_is_looked_at():
    assert {page for page in SETTINGS if not removed(ROOT / page)} == set(PAGES)
    systems = {path.parent.name for path in (ROOT / "rlkd" / "systems").glob("*/__init__.py")}
    assert {"README.md", "benchmarks/README.md"} | {f"rlkd/systems/{name}/README.md" for name in systems} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_of_a_page_is_what_its_record_says(page, results, transcripts):
    """What to do: python benchmarks/make_results.py after new runs, python benchmarks/readme.py after new words."""
    assert len(readme._keys(EVERYTHING)) > 70
    assert problems(page, PAGES[page], results, transcripts) == []


def test_the_picture_says_what_its_records_say(suites):
    """What to do: python benchmarks/make_results.py."""
    drawn = make_results.PICTURE.read_text(encoding="utf-8")
    for shown in (make_results.PICTURE, RECORDS / "headroom.svg"):
        assert f"]({shown.relative_to(ROOT).as_posix()})" in README
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    rows = make_results.pictured(suites["quickstart"])
    assert [text for text in texts if "[" in text] == [interval_words(row) for row in rows]
    assert [text for text in texts if text in weighting_names()] == [row["weighting"] for row in rows]


def test_the_card_of_the_shipped_policy_says_what_its_records_say():
    """What to do: python benchmarks/make_results.py."""
    seen = json.loads(model_card.RECORD.read_text(encoding="utf-8"))["seen"]
    text = model_card.card(seen, read_jsonl(model_card.TRAVEL))
    assert (SHIPPED / "README.md").read_text(encoding="utf-8") == text
    assert text.count("\n| banking77 | ") == 2


def test_the_card_of_the_shipped_asker_says_what_its_records_say():
    """What to do: python benchmarks/make_results.py."""
    seen = json.loads(asker_card.RECORD.read_text(encoding="utf-8"))["seen"]
    text = asker_card.card(seen, json.loads(asker_card.ASKING.read_text(encoding="utf-8")))
    assert (ASKER / "README.md").read_text(encoding="utf-8") == text
    assert text.count("\n| banking77 | ") == 2


def visible_numbers(text: str) -> Iterator[re.Match[str]]:
    hidden = [found.span() for found in re.finditer(r"<!--.*?-->", text, re.DOTALL)]
    for found in re.finditer(r"\d+(?:[.,]\d+)*", text):
        if not any(start <= found.start() < end for start, end in hidden):
            yield found


NUMBERS = {page: list(visible_numbers(text)) for page, text in PAGES.items()}


def test_there_are_figures_to_look_at():
    assert sum(map(len, NUMBERS.values())) > 500
    assert all(len(NUMBERS[page]) > 10 for page in PAGES if "\n## Results\n" in PAGES[page])


@pytest.mark.parametrize("page", [page for page, numbers in NUMBERS.items() if numbers])
def test_a_last_digit_that_is_changed_anywhere_on_a_page_is_refused(page, results, transcripts):
    text, accepted = PAGES[page], []
    for found in NUMBERS[page]:
        other = str((int(found[0][-1]) + 1) % 10)
        changed = text[: found.end() - 1] + other + text[found.end() :]
        if not problems(page, changed, results, transcripts):
            accepted.append(f"{text[found.start() - 30 : found.end() + 10]!r}")
    assert accepted == []


def test_the_pages_of_results_are_made_of_the_lines_that_are_there(suites, results):
    for suite, records in suites.items():
        found = re.search(r"Made of \d+ lines?, `([0-9a-f]{16})`", results.sections[suite])
        assert found is not None
        assert found[1] == records_hash(records), f"{suite}: run python benchmarks/make_results.py"
    for path in RECORDS.glob("*.json"):
        if not path.stem.endswith("-headroom"):  # those are in the hash of their suite
            assert f"From `{path.name}`, `{file_hash(path)}`" in RESULTS, f"{path}: python benchmarks/make_results.py"


def test_the_first_page_of_results_can_be_read_and_leads_to_all_others():
    first = readme.RESULTS.read_text(encoding="utf-8")
    assert first.count("\n") <= 250, "give what is long a page of its own"
    led = {Path(path) for path in re.findall(r"\]\((results/[^)]+\.md)\)", first)}
    there = {path.relative_to(RECORDS.parent) for path in RECORDS.glob("**/*.md")}
    assert led | {Path("results/asking.md"), Path("results/moving.md")} == there  # those are led to by their tables


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


def test_differences_that_the_pages_tell_follow_from_the_lines_alone(suites, results):
    claims = yaml.safe_load((ROOT / "benchmarks" / "claims.yaml").read_text(encoding="utf-8"))
    captions = {
        caption: (suite, block["groups"]) for suite, blocks in claims.items() for caption, block in blocks.items()
    }
    checked = 0
    for found in readme._FIGURE.finditer(EVERYTHING):
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
    assert checked > 30


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
    for silent in (behind.format("two"), "<!--two; policy; gain-->+1.0"):
        assert any("lines without a commit" in problem for problem in readme.problems(silent, page, {}, {}))


@pytest.mark.slow
def test_the_results_are_what_their_lines_give_today(tmp_path):
    suites = make_results.read_records()
    tables, notes = make_results.more_tables(suites)
    for path in make_results.write_benchmark_report(suites, tmp_path, tables=tables, notes=notes):
        assert path.read_bytes() == (ROOT / "benchmarks" / path.relative_to(tmp_path)).read_bytes()
