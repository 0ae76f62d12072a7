"""Arrays of logits: of which rows, of which columns, and whether they are logits at all."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier

from rlkd.data import Task, load_task, planted, split_task
from rlkd.data.origin import FILES, Origin
from rlkd.data.subset import keep_rows, limit_rows
from rlkd.data.task import Table
from rlkd.errors import TeacherError
from rlkd.models import ArrayTeacher, CallableTeacher, FileArrayTeacher, SklearnTeacher, load_teachers
from rlkd.models.probabilities import are_probabilities, as_logits, check_logits

CLASSES = [str(number) for number in range(12)]
SIZES = {"train": 300, "validation": 60, "test": 60}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with the classes "0" to "11", as text."""
    folder = tmp_path_factory.mktemp("arrays") / "set"
    folder.mkdir()
    rng = np.random.default_rng(0)
    datasets.disable_progress_bars()
    for name, size in SIZES.items():
        labels = rng.integers(0, 12, size)
        lines = [json.dumps({"text": f"{name} {row}", "label": str(label)}) for row, label in enumerate(labels)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def truth(source: Path, name: str) -> np.ndarray:
    lines = (source / f"{name}.jsonl").read_text().splitlines()
    return np.array([int(json.loads(line)["label"]) for line in lines])


def right(source: Path, name: str) -> np.ndarray:
    """Logits in the order of the file and of the numbers."""
    return (6 * np.eye(12)[truth(source, name)]).astype(np.float32)


def folder_of(source: Path, place: Path, names: Any = tuple(SIZES), **more: np.ndarray) -> Path:
    place.mkdir(parents=True)
    for name in names:
        np.save(place / f"{name}.npy", right(source, name))
    for name, array in more.items():
        np.save(place / f"{name.replace('_', '.')}.npy", array)
    return place


def answers(teacher: Any, task: Task, ids: np.ndarray | None = None) -> np.ndarray:
    rows = np.arange(len(task.table)) if ids is None else ids
    return teacher.logits(task, rows, batch_size=64, max_length=8).numpy()


def test_arrays_in_the_order_of_the_files_are_right_on_every_split(source: Path, tmp_path: Path) -> None:
    folder = folder_of(source, tmp_path / "mine")
    for seed in range(3):
        task = load_task(str(source), seed=seed)
        assert task.label_names == tuple(CLASSES)
        (teacher,) = load_teachers([folder], task)
        assert (teacher.name, isinstance(teacher, FileArrayTeacher)) == ("mine", True)
        assert (answers(teacher, task).argmax(1) == task.table.labels).all()
        shuffled = np.random.default_rng(seed).permutation(len(task.table))[:50]
        assert (answers(teacher, task, shuffled) == answers(teacher, task)[shuffled]).all()
        for part in (task.training_view(), limit_rows(task, {"train": 20, "test": 5}, seed=seed)):
            assert (answers(teacher, part).argmax(1) == part.table.labels).all()


def test_one_array_of_all_files_is_refused_where_its_order_is_not_known(source: Path, tmp_path: Path) -> None:
    """It was matched to the rows of the task: right on validation and test, and by chance on train and probe."""
    task = load_task(str(source))
    joined = np.concatenate([right(source, name) for name in SIZES])
    np.save(tmp_path / "all.npy", joined)
    with pytest.raises(TeacherError, match=r"one array '.*all.npy', whose order is not known.*train.npy \(300 rows\)"):
        load_teachers([tmp_path / "all.npy"], task)
    as_read = answers(ArrayTeacher("all", joined), task).argmax(1) == task.table.labels
    assert as_read[task.splits["validation"]].all()
    assert as_read[task.splits["train"]].mean() < 0.3
    drawn = planted(num_rows=200)
    np.save(tmp_path / "drawn.npy", np.eye(6)[drawn.table.labels] * 4)
    (teacher,) = load_teachers([tmp_path / "drawn.npy"], drawn)
    assert (answers(teacher, drawn).argmax(1) == drawn.table.labels).all()
    with pytest.raises(TeacherError, match="the task has no files; save all rows as one"):
        load_teachers([FileArrayTeacher("f", {"train": np.zeros((200, 6))})], drawn)


def test_ids_beside_an_array_say_which_rows_it_has(source: Path, tmp_path: Path) -> None:
    task = load_task(str(source))
    order = np.random.default_rng(1).permutation(300)
    place = folder_of(
        source, tmp_path / "t", ("validation", "test"), train=right(source, "train")[order], train_ids=order
    )
    (teacher,) = load_teachers([place], task)
    assert (answers(teacher, task).argmax(1) == task.table.labels).all()
    (plain,) = load_teachers([folder_of(source, tmp_path / "p")], task)
    assert (answers(plain, task) == answers(teacher, task)).all()
    other = FileArrayTeacher("t", {"train": right(source, "train")[order]}, rows={"train": order[::-1].copy()})
    assert len({teacher.identity, plain.identity, other.identity}) == 3


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(40, 80), st.integers(0, 9), st.integers(0, 15), st.integers(0, 15)),
    st.integers(0, 99),
    st.booleans(),
)
def test_every_row_finds_its_own_logits(sizes: tuple[int, ...], seed: int, shuffled: bool) -> None:
    """Logits tell their file and row, texts too; whatever is carved, they meet again."""
    rng = np.random.default_rng(seed)
    named = {name: size for name, size in zip(FILES, sizes, strict=True) if size}
    told = [(FILES.index(name), row) for name, size in named.items() for row in range(size)]
    labels = np.array([-1 if file == 1 else row % 2 for file, row in told])
    texts = tuple(f"{file} {row}" for file, row in told)
    start, rows = 0, {}
    for split, size in (("train", sizes[0] + sizes[1]), ("validation", sizes[2]), ("test", sizes[3])):
        if size:
            rows[split] = np.arange(start, start + size)
        start += size
    table = Table(labels=labels, domains=np.zeros(len(labels), int), texts=texts, origin=Origin.of(named))
    task = split_task("t", table, "ab", given=rows, seed=seed)
    orders = {name: rng.permutation(size) if shuffled else np.arange(size) for name, size in named.items()}
    arrays = {name: np.stack([np.full(len(o), -1 - FILES.index(name)), -o - 1.0], 1) for name, o in orders.items()}
    teacher = FileArrayTeacher("t", arrays, rows=orders if shuffled else None)
    ids = rng.permutation(len(labels))
    expected = [[-1.0 - int(part) for part in task.table.texts[i].split()] for i in ids]
    assert answers(teacher, task, ids).tolist() == expected


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        (("train", "test"), {}, r"expected validation.npy from teacher 't', with the 60 rows of validation"),
        (tuple(SIZES), {"unlabelled": np.zeros((3, 12))}, r"got unlabelled.npy too; leave it out"),
        (tuple(SIZES), {"val": np.zeros((60, 12))}, r"got 'val.npy'"),
        (tuple(SIZES), {"dev": np.zeros((60, 12))}, r"got 'validation.npy' twice"),
        (("validation", "test"), {"train": np.zeros((270, 12))}, r"expected 300 rows .* in train.npy, .* got 270"),
        (("validation", "test"), {"train": np.zeros((330, 12))}, r"expected 300 rows .* in train.npy, .* got 330"),
        (("validation", "test"), {"train": np.zeros((300, 11))}, r"arrays of one width"),
        (
            ("validation", "test"),
            {"train": np.full((300, 12), np.nan)},
            r"NaN or infinity in 300 of 300 rows of train",
        ),
        (
            ("validation", "test"),
            {"train": np.full((300, 12), 1 / 12)},
            r"got probabilities for train and something",
        ),
        (tuple(SIZES), {"train_ids": np.arange(299)}, r"300 different row numbers from 0 for train"),
        (tuple(SIZES), {"train_ids": np.arange(300) // 2}, r"int64 of shape \(300,\) with repeats"),
        (tuple(SIZES), {"train_ids": np.arange(300) / 1}, r"row numbers .* got float64"),
        (tuple(SIZES), {"train_ids": np.arange(300) + 1}, r"expected 300 rows from teacher 't' in train.npy"),
        (("train",), {"train_ids": np.array([{}] * 300)}, r"cannot be read without pickle"),
    ],
)
def test_arrays_that_do_not_fit_the_files_are_refused(
    source: Path, tmp_path: Path, names: Any, more: Any, message: str
) -> None:
    place = folder_of(source, tmp_path / "t", names, **more)
    with pytest.raises(TeacherError, match=message):
        load_teachers([place], load_task(str(source)))


def test_an_array_that_lacks_rows_is_refused_where_the_task_does_not_need_them(source: Path) -> None:
    """Which rows it lacks is not known: those before the others would shift them all."""
    task = load_task(str(source))
    ids, rows = task.table.origin.rows_of("train")
    few = keep_rows(task, np.setdiff1d(np.arange(len(task.table)), ids[(rows == 0) | (rows == 299)]))
    arrays = {name: right(source, name) for name in SIZES}
    arrays["train"] = arrays["train"][1:]
    with pytest.raises(TeacherError, match=r"expected 300 rows from teacher 't' in train.npy.* got 299"):
        load_teachers([FileArrayTeacher("t", arrays)], few)
    (teacher,) = load_teachers([FileArrayTeacher("t", arrays, rows={"train": np.arange(1, 300)})], few)
    assert (answers(teacher, few).argmax(1) == few.table.labels).all()


def test_columns_may_have_names(source: Path, tmp_path: Path) -> None:
    task, order = load_task(str(source)), np.random.default_rng(0).permutation(12)
    place = tmp_path / "t"
    place.mkdir()
    for name in SIZES:
        np.save(place / f"{name}.npy", right(source, name)[:, order])
    names = [CLASSES[column] for column in order]
    (place / "label_names.json").write_text(json.dumps(names))
    (teacher,) = load_teachers([place], task)
    assert (answers(teacher, task).argmax(1) == task.table.labels).all()
    (place / "teacher.json").write_text(json.dumps({"name": "named", "label_names": names}))
    (teacher,) = load_teachers([place], task)
    assert teacher.name == "named"
    (place / "teacher.json").write_text(json.dumps({"name": "named", "label_names": CLASSES}))
    with pytest.raises(TeacherError, match="others in label_names"):
        load_teachers([place], task)
    for content in ("{", '{"a": 1}', "[]", "[1]"):
        (place / "label_names.json").write_text(content)
        with pytest.raises(TeacherError, match="label_names"):
            load_teachers([place], task)


def test_a_teacher_may_lack_a_class_of_which_no_train_row_has_the_label() -> None:
    """It is one that nobody could have taught it; of the others all must be there."""
    labels = np.array([0, 1] * 30 + [0, 1, 2] * 10)
    table = Table(labels=labels, domains=np.zeros(90, int), vectors=np.eye(90, dtype=np.float32))
    task = split_task("t", table, "abc", given={"train": np.arange(60), "test": np.arange(60, 90)})
    assert task.untaught == ("c",)
    rows = task.splits["train"]
    model = LogisticRegression().fit(task.table.vectors[rows], np.array(["a", "b"])[task.table.labels[rows]])
    (teacher,) = load_teachers([SklearnTeacher("s", model)], task)
    given_logits = answers(teacher, task)
    assert (given_logits[:, 2] == given_logits[:, :2].min(1) - 4).all()
    with pytest.raises(TeacherError, match="lacks 'b'"):
        load_teachers([ArrayTeacher("x", np.zeros((90, 1)), label_names=["a"])], task)


# --- probabilities


def drawn(rows: int, classes: int, seed: int, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, classes)) * scale


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(4, 60),
    st.integers(2, 20),
    st.sampled_from(["float64", "float32", "float16", "three decimals"]),
    st.floats(0, 40),
    st.integers(0, 999),
)
def test_probabilities_of_any_precision_teach_what_they_say(rows, classes, kind, scale, seed) -> None:
    logits = drawn(rows, classes, seed, scale)
    exact = np.exp(logits - logits.max(1, keepdims=True))
    exact /= exact.sum(1, keepdims=True)
    stored = exact.round(3) if kind == "three decimals" else exact.astype(kind)
    assert are_probabilities(stored.astype(np.float32))
    task = planted_like(rows, classes)
    taught = torch.from_numpy(answers(ArrayTeacher("p", stored), task)).double().softmax(-1).numpy()
    assert np.abs(taught - exact).max() < (2e-2 if kind == "three decimals" else 2e-3)
    assert not are_probabilities(logits + 100)


def planted_like(rows: int, classes: int) -> Task:
    table = Table(
        labels=np.arange(rows) % classes, domains=np.zeros(rows, int), vectors=np.ones((rows, 1), dtype=np.float32)
    )
    return Task(
        name="t",
        label_names=tuple(f"c{i}" for i in range(classes)),
        table=table,
        splits={"train": np.arange(rows), "test": np.arange(rows, rows)},
    )


def test_a_row_of_probabilities_is_taken_as_such_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """0.95 and five times 0.01, taken for logits, taught 0.339; zeros are no infinities."""
    task = planted_like(8, 6)
    taught = torch.from_numpy(answers(ArrayTeacher("p", np.tile([0.95, *[0.01] * 5], (8, 1))), task)).softmax(-1)
    assert abs(float(taught[0, 0]) - 0.95) < 1e-6
    assert "array of teacher 'p' holds probabilities" in caplog.text
    caplog.clear()
    sure = torch.from_numpy(answers(ArrayTeacher("q", np.eye(6)[np.arange(8) % 6]), task)).softmax(-1)
    assert sure.isfinite().all()
    assert float(sure.max(-1).values.min()) > 0.9999
    logs = np.log(np.tile([0.95, *[0.01] * 5], (8, 1)))
    caplog.clear()
    assert (as_logits("logs", logs.astype(np.float32)) == logs.astype(np.float32)).all()
    assert caplog.text == ""
    as_logits("shares", np.tile([0.9, 0.8, 0.1], (8, 1)).astype(np.float32))
    assert "all numbers of teacher 'shares' lie between 0 and 1" in caplog.text
    with pytest.raises(TeacherError, match="sum to 100; divide percentages"):
        ArrayTeacher("percent", np.tile([95.0, *[1.0] * 5], (8, 1)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(2, 6), st.floats(0.01, 30), st.booleans(), st.integers(0, 9999))
def test_logits_are_never_taken_for_probabilities(rows, classes, scale, positive, seed) -> None:
    logits = drawn(rows, classes, seed, scale)
    logits = (np.abs(logits) if positive else logits).astype(np.float32)
    check_logits("t", logits)
    assert as_logits("t", logits) is logits


@pytest.mark.slow
def test_logits_are_hardly_ever_taken_for_probabilities_at_length() -> None:
    """The worst case: four rows of two positive logits near one half."""
    rng = np.random.default_rng(0)
    assert not any(are_probabilities(np.abs(rng.normal(0.5, 0.2, size=(4, 2)))) for _ in range(200_000))


def test_callables_and_estimators_that_give_probabilities_are_told_or_read_rightly() -> None:
    task = planted_like(60, 3)
    shares = np.full((60, 3), 1 / 3)
    with pytest.raises(TeacherError, match=r"expected logits from teacher 'f', got probabilities .*numpy.log"):
        answers(CallableTeacher("f", lambda rows: shares[: len(rows)], ["c0", "c1", "c2"]), task)
    vectors = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    task = Task(
        name="t",
        label_names=("c0", "c1", "c2"),
        table=Table(labels=task.table.labels, domains=task.table.domains, vectors=vectors),
        splits=task.splits,
    )
    names = np.array(task.label_names)[task.table.labels]
    model = LogisticRegression().fit(vectors, names)
    taught = torch.from_numpy(answers(SklearnTeacher("s", model), task)).double().softmax(-1).numpy()
    assert np.abs(taught - model.predict_proba(vectors)).max() < 1e-6
    several = np.stack([task.table.labels == 0, task.table.labels < 2, task.table.labels > 0], 1).astype(int)
    for many in (OneVsRestClassifier(LogisticRegression()), MultiOutputClassifier(LogisticRegression())):
        many.fit(vectors, several)
        with pytest.raises(TeacherError, match="a classifier of several labels a row cannot teach"):
            answers(SklearnTeacher("m", many, label_names=task.label_names), task)
