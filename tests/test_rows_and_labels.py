"""What is wrong in a user's rows or labels is refused or told, with cause and rows; what is right is not spoken of."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd.data import TaskCollection, keep_fraction, load_task, planted, split_task
from rlkd.data.columns import Source
from rlkd.data.embedded import digits
from rlkd.data.labels import _LIST, _class_names, clean_label
from rlkd.data.origin import FILES, Origin
from rlkd.data.subset import keep_rows, limit_rows
from rlkd.data.task import SPLITS, UNLABELLED, Table
from rlkd.errors import TaskError

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    datasets.disable_progress_bars()


def rows(count: int, label: Any, word: str = "row", **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"{word} {i}", "label": label(i), **{k: f(i) for k, f in more.items()}} for i in range(count)]


def write(folder: Path, **files: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, str):
            (folder / f"{name}.csv").write_text(content)
        else:
            (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in content))
    return str(folder)


def csv(count: int, line: Any, head: str = "text,label") -> str:
    return "\n".join([head, *(line(i) for i in range(count))])


def flip(i: int) -> int:
    return i % 2


CLEAN = {"train": rows(300, flip), "validation": rows(30, flip, "held"), "test": rows(30, flip, "last")}


def test_clean_data_are_not_spoken_of(tmp_path, caplog):
    task = load_task(write(tmp_path / "set", **CLEAN))
    assert caplog.text == ""
    assert (len(task.splits["test"]), task.untaught) == (30, ())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": rows(60, lambda i: [i % 2, 2])}, r"one class a row, got the list \[0, 2\] in row 0 of train"),
        (
            {"train": csv(60, lambda i: f't{i},"[{i % 2}, 2]"')},
            r"one class a row, got the list '\[0, 2\]' in row 0 of train",
        ),
        ({"train": csv(60, lambda i: f"t{i},['joy' 'fear']")}, r"one class a row, got the list .* in row 0 of train"),
        ({"train": rows(60, lambda i: 1 - 2 * (i % 2))}, r"from 0, got no 0 but 1, and 30 rows .* unlabelled .*-1"),
        ({"train": rows(60, lambda i: 1 + i % 3)}, r"from 0, got no 0 but 1, 2, 3; renumber them"),
        ({"train": rows(60, lambda i: 1)}, r"from 0, got no 0 but 1; renumber"),
        ({"train": rows(60, lambda i: i % 2 + 0.5)}, r"got float \(0.5 in row 0 of train\); convert"),
        ({"train": rows(60, lambda i: 0.5 if i == 7 else flip(i))}, r"float, int \(0.5 in row 7 of train; .*row 0"),
        ({"train": rows(60, flip), "test": rows(9, lambda i: i % 3, "t")}, r"row 2 of test is out of range: 2"),
        (
            {"train": rows(60, flip), "test": rows(9, lambda i: None if i == 4 else 0, "t")},
            r"row 4 has none \(1 in all",
        ),
        (
            {"train": rows(60, flip), "test": rows(20, flip)},
            r"test of task 'set' must hold other rows than train, got 20 rows",
        ),
        (
            {"train": rows(60, flip), "validation": rows(60, flip)},
            r"validation of task .* must hold other rows than train",
        ),
        ({"train": csv(60, lambda i: f",{flip(i)}")}, r"'set' must have texts, got only empty ones"),
        ({"train": [*rows(60, flip), {"text": None, "label": 1}]}, r"must hold texts, row 60 of train is None"),
        (
            {"train": csv(60, lambda i: f"t{i},{flip(i)},{'' if i == 9 else 'd'}", "text,label,domain")},
            r"must hold domain names, row 9 of train is ''",
        ),
        (
            {"train": rows(60, flip, domain=lambda i: None if i == 4 else "d")},
            r"must hold domain names, row 4 of train is None",
        ),
    ],
)
def test_what_is_surely_wrong_is_refused_with_its_row(tmp_path, files, message):
    with pytest.raises(TaskError, match=message):
        load_task(write(tmp_path / "set", **files))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            CLEAN | {"test": [*rows(2, flip), *rows(30, flip, "last")]},
            r"stand in an earlier split too.*: 2 of 32 rows of test \(rows 0, 1 of test; the first are rows 0, 1 of t",
        ),
        (
            CLEAN | {"validation": [*rows(30, flip, "held"), *rows(9, flip)]},
            r"9 of 39 rows of validation \(rows 30, 31, 32, 33, 34 of validation, ...; the first are rows 0, 1, 2",
        ),
        (
            CLEAN | {"test": [*rows(4, flip, "held"), *rows(30, flip, "last")]},
            r"4 of 34 rows of test \(rows 0, 1, 2, 3 of test; the first are rows 0, 1, 2, 3 of validation\)",
        ),
        (CLEAN | {"validation": rows(1, flip, "held")}, r"only 1 row in validation: one row there .* by 100 points"),
        (CLEAN | {"test": rows(1, flip, "last")}, r"only 1 row in test: one row there .* by 100 points"),
        (
            CLEAN | {"train": rows(300, lambda i: None if i in (3, 8) else flip(i))},
            r"2 of 300 train rows of 'set' have no label and are distilled on without one \(rows 3, 8\)",
        ),
        (
            CLEAN | {"train": csv(300, lambda i: f"t{i},{'nan' if i == 3 else flip(i)}")},
            r"1 of 300 train rows of 'set' have no label and are distilled on without one \(row 3\)",
        ),
        (
            {"train": rows(300, lambda i: i % 3 - 1)},
            r"100 of 300 train rows .* \(rows 0, 3, 6, 9, 12, ...\); of 100 the label is -1: if that is a class",
        ),
        (
            CLEAN | {"train": csv(300, lambda i: f"{'' if i == 5 else f't{i}'},{flip(i)}")},
            r"1 of 360 texts of task 'set' are empty \(row 5 of train\)",
        ),
        (
            CLEAN | {"train": csv(300, lambda i: f"{'nan' if i == 5 else f't{i}'},{flip(i)}")},
            r"1 of 360 texts of task 'set' look like missing values: 'nan' in row 5 of train",
        ),
        (
            CLEAN | {"train": [*rows(300, flip), {"text": "row 0", "label": 1}, {"text": "row 4", "label": 0}]},
            r"2 labelled rows of task 'set' have the text of another row and another label \(rows 0, 300 of train\)",
        ),
        (
            {"train": rows(300, lambda i: ("pos", "neg", "nan")[i % 3])},
            r"'set' has the class 'nan', which is how a missing label looks",
        ),
        (
            {"train": rows(300, lambda i: ("pos", "neg", "Pos ")[i % 3])},
            r"'set' has the classes 'Pos ', 'pos', which differ by case or blanks only",
        ),
        ({"train": rows(300, lambda i: 2 * flip(i))}, r"'set' counts 3 classes from 0 and has no row of '1'"),
    ],
)
def test_what_may_be_meant_is_told_with_its_rows(tmp_path, caplog, files, message):
    load_task(write(tmp_path / "set", **files))
    lines = [record.getMessage() for record in caplog.records]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert sum(bool(re.search(message, line)) for line in lines) == 1, lines


def test_a_class_that_ends_outside_train_is_named_with_its_row(tmp_path, caplog):
    """The only row of a class may be drawn for another split; over many draws each such end is told, and no other."""
    source = write(tmp_path / "set", train=[*rows(200, lambda i: "ab"[i % 2]), {"text": "alone", "label": "c"}])
    ends = set()
    for seed in range(12):
        caplog.clear()
        task = load_task(source, seed=seed)
        (place,) = [split for split in SPLITS if 2 in task.labels(split)]
        told = [line for line in caplog.messages if "no train row" in line]
        ends.add(place)
        assert len(told) == (place != "train")
        assert all(f"has the label 'c' ({place} has row 200 of train of them)" in line for line in told)
        assert task.untaught == (() if place == "train" else ("c",))
    assert len(ends) > 1


def test_few_labelled_train_rows_may_lack_a_class_whose_name_is_given(tmp_path, caplog):
    source = write(
        tmp_path / "set",
        train=rows(40, flip),
        validation=rows(30, lambda i: i % 3, "held"),
        test=rows(30, lambda i: i % 3, "last"),
    )
    with pytest.raises(TaskError, match="row 2 of validation is out of range: 2"):
        load_task(source)
    task = load_task(source, label_names=["x", "y", "z"])
    assert task.untaught == ("z",)
    assert (task.labels("validation") == 2).sum() == 10
    assert (
        "no train row of task 'set' has the label 'z' (validation has rows 2, 5, 8, 11, 14 of validation" in caplog.text
    )


def test_rows_with_the_same_pair_are_the_same_and_with_one_common_text_are_not(tmp_path, caplog):
    def pairs(word):
        return [{"text_a": "one premise", "text_b": f"{word} {i}", "label": i % 2} for i in range(200)]

    load_task(write(tmp_path / "set", train=pairs("a"), validation=pairs("b"), test=pairs("c")))
    assert caplog.text == ""
    load_task(write(tmp_path / "twice", train=pairs("a"), validation=pairs("b"), test=[*pairs("c"), *pairs("a")[:3]]))
    assert "3 of 203 rows of test" in caplog.text


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(-300, 300), min_size=2, max_size=30, unique=True), st.booleans())
def test_classes_that_are_numbers_are_in_the_order_of_their_values(numbers, fraction):
    """Column i of a teacher trained on numbers 0..C-1 as text is class i."""
    names = [f"{n}.5" if fraction else str(n) for n in numbers]
    found = _class_names(Source("t", {}), names, None)
    assert [float(name) for name in found] == sorted(float(name) for name in names)
    words = [f"w{name}" for name in names]
    assert _class_names(Source("t", {}), words, None) == sorted(words)
    if not fraction:
        counted = [str(n) for n in range(len(numbers))]
        assert _class_names(Source("t", {}), counted[::-1], None) == counted


@pytest.mark.parametrize("value", ["[LIB]", "[UNK] token", "(sic)", "list [1, 2] inside", "[a, b]", ""])
def test_names_in_brackets_are_names(value):
    assert _LIST.fullmatch(value) is None
    assert clean_label(value) == value


# --- tables of one's own


def table(**columns: Any) -> Table:
    base = Table(
        labels=np.arange(60) % 3, domains=np.zeros(60, dtype=np.int64), vectors=np.ones((60, 2), dtype=np.float32)
    )
    return replace(base, **columns)


def bad_vectors(value: float) -> np.ndarray:
    vectors = np.ones((60, 2), dtype=np.float32)
    vectors[[4, 9], 1] = value
    return vectors


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"vectors": bad_vectors(np.inf)}, r"finite, got NaN or infinity in rows 4, 9 \(2 in all\)"),
        ({"vectors": bad_vectors(np.nan)}, r"finite, got NaN or infinity in rows 4, 9 \(2 in all\)"),
        (
            {"vectors": np.ones((59, 2), dtype=np.float32)},
            r"vectors of task 't' must have one entry a row, got 59 for 60",
        ),
        ({"labels": np.arange(60) % 3 + 1}, r"labels of task 't' must lie between -1 and 2, got 3 in rows 2, 5"),
        ({"labels": np.arange(60) % 3 - 2}, r"between -1 and 2, got -2 in rows 0, 3"),
        ({"labels": np.arange(60) / 2}, r"labels of task 't' must be whole numbers, got float64"),
        ({"domains": np.full(60, -1)}, r"domains of task 't' must lie between 0 and 0 or more, got -1 in rows 0"),
        ({"domains": np.zeros(3, dtype=np.int64)}, r"domains of task 't' must have one entry a row, got 3 for 60"),
    ],
)
def test_tables_that_do_not_hold_together_are_refused(columns, message):
    with pytest.raises(TaskError, match=message):
        split_task("t", table(**columns), "abc")


# --- where rows come from


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.tuples(st.integers(40, 90), st.integers(0, 9), st.integers(0, 12), st.integers(0, 12)), st.integers(0, 99))
def test_every_row_knows_its_place_whatever_is_cut(sizes, seed):
    """Texts say where they stand, so that the place of every row is known without the splitting."""
    named = {name: size for name, size in zip(FILES, sizes, strict=True) if size}
    texts = tuple(f"{name} {row}" for name, size in named.items() for row in range(size))
    bare = np.array([text.startswith("unlabelled") for text in texts])
    start, given_rows = 0, {}
    for split, files in (("train", ("train", "unlabelled")), ("validation", ("validation",)), ("test", ("test",))):
        count = sum(named.get(file, 0) for file in files)
        if count:
            given_rows[split] = np.arange(start, start + count)
        start += count
    labels = np.where(bare, UNLABELLED, np.arange(len(texts)) % 2)
    rows_ = Table(labels=labels, domains=np.zeros(len(texts), int), texts=texts, origin=Origin.of(named))
    task = split_task("t", rows_, "ab", given=given_rows, seed=seed)
    some = np.sort(np.random.default_rng(seed).permutation(len(texts))[:30])
    cut = [task, task.training_view(), limit_rows(task, {"train": 9}), keep_fraction(task, 0.5), keep_rows(task, some)]
    for part in cut:
        origin, told = part.table.origin, part.table.texts
        assert [f"{file} {row}" for file, row in origin.locate(np.arange(len(told)))] == list(told)
        for file in FILES:
            ids, found = origin.rows_of(file)
            assert [told[i] for i in ids] == [f"{file} {row}" for row in found]
        assert sum(len(origin.rows_of(file)[0]) for file in FILES) == len(told)
        assert part.fingerprint == replace(part, table=replace(part.table, origin=None)).fingerprint
    assert TaskCollection((task,)).joint.table.origin is None


def test_loaded_rows_know_their_files_and_drawn_ones_have_none(tmp_path):
    files = CLEAN | {"unlabelled": [{"text": f"bare {i}"} for i in range(7)]}
    task = load_task(write(tmp_path / "set", **files), unlabelled=True)
    words = {"train": "row", "unlabelled": "bare", "validation": "held", "test": "last"}
    assert task.table.origin.sizes == {"train": 300, "unlabelled": 7, "validation": 30, "test": 30}
    located = task.table.origin.locate(np.arange(len(task.table)))
    assert [f"{words[file]} {row}" for file, row in located] == list(task.table.texts)
    assert not task.table.origin.in_order
    assert planted().table.origin is None
    assert digits().table.origin.sizes == {"train": 1797}


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the data sets are not beside the checkout")
@pytest.mark.parametrize("name", ["trec6", "sst5", "banking77", "rte"])
def test_published_sets_load_and_their_known_overlap_is_told(name, caplog):
    """Their makers counted texts in common, of a normal form that is a little wider than ours."""
    task = load_task(str(SHARED / name))
    assert task.untaught == ()
    known = json.loads((SHARED / "datasets.json").read_text())[name]["exact_text_overlap_after_normalising"]
    told = {
        split: int(count)
        for line in caplog.messages
        for count, split in re.findall(r"(\d+) of \d+ rows of (\w+)", line)
    }
    # ours counts rows, not texts, and of validation those in probe too
    assert bool(told.get("test")) == bool(known["train&test"] + known["validation&test"])
    assert told.get("test", 0) <= 1.1 * (known["train&test"] + known["validation&test"])


def test_case_and_blanks_do_not_hide_a_row_that_stands_in_two_splits(tmp_path, caplog):
    twin = [{"text": " ROW  7", "label": 1}, {"text": "row\t8", "label": 0}]
    load_task(write(tmp_path / "set", **CLEAN | {"test": [*rows(30, flip, "last"), *twin]}))
    assert "2 of 32 rows of test (rows 30, 31 of test; the first are rows 7, 8 of train)" in caplog.text
