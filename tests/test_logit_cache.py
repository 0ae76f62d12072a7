import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from rlkd.data.task import SPLITS, Table, Task
from rlkd.errors import CacheError, ConfigError, RlkdError, TeacherError
from rlkd.logit_cache import LiveTeachers, LogitCache, build_cache, compute_affinity, load_cache, read_state, stacks
from rlkd.logit_cache.checks import beyond_chance, tell_of_teachers
from rlkd.models import ArrayTeacher, CallableTeacher
from rlkd.records import file_hash
from rlkd.types import Knowledge

LABELS = ("fire", "sea")
SIZES = {"train": 4, "probe": 2, "validation": 2, "test": 2}
ROWS = sum(SIZES.values())


def make_task(*, vectors: bool = False, first: str = "row 0") -> Task:
    """Ten rows, classes in turn; the last two are the test split."""
    ends = np.cumsum(list(SIZES.values()))
    texts = (first, *(f"row {i}" for i in range(1, ROWS)))
    return Task(
        name="elements",
        label_names=LABELS,
        table=Table(
            labels=np.arange(ROWS, dtype=np.int64) % 2,
            domains=np.zeros(ROWS, dtype=np.int64),
            texts=None if vectors else texts,
            vectors=np.eye(ROWS, dtype=np.float32) if vectors else None,
        ),
        splits={name: np.arange(end - size, end) for (name, size), end in zip(SIZES.items(), ends, strict=True)},
    )


class Counted(CallableTeacher):
    """Gives row i the logits (i, k); writes down how often it is asked, fails where it is told to."""

    def __init__(self, k: int, *, fails: bool = False, log: Path | None = None, **kwargs: Any) -> None:
        super().__init__(f"teacher-{k}", self._answer, LABELS, identity=str(k), **kwargs)
        self.k, self.fails, self.log, self.asked = k, fails, log, 0

    def _answer(self, texts: Sequence[str]) -> Any:
        self.asked += 1
        if self.log is not None:
            time.sleep(0.1)
            with self.log.open("a") as file:
                file.write(f"{self.k}\n")
        if self.fails:
            raise KeyboardInterrupt
        return np.array([[int(text.split()[1]), self.k] for text in texts], dtype=np.float32)


def teachers(count: int = 3) -> list[Counted]:
    return [Counted(k) for k in range(count)]


@pytest.fixture
def text_task() -> Task:
    return make_task()


@pytest.fixture
def folder(text_task: Task, tmp_path: Path) -> Path:
    build_cache(teachers(), text_task, tmp_path / "cache")
    return tmp_path / "cache"


def all_ids() -> torch.Tensor:
    return torch.arange(ROWS)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_rows_are_looked_up_by_instance_id(text_task: Task, folder: Path, limit: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(stacks, "RAM_LIMIT", limit)
    cache = load_cache(folder, text_task)
    assert len(list(folder.glob(stacks.STACKS))) == (2 if limit == 0 else 0)
    rows = cache.rows(torch.tensor([7, 0, 7]))
    assert rows.dtype == torch.float32
    assert rows.tolist() == [[[7, k] for k in range(3)], [[0, k] for k in range(3)], [[7, k] for k in range(3)]]
    assert len(cache) == ROWS
    assert cache.teacher_names == ("teacher-0", "teacher-1", "teacher-2")
    assert not cache.has_affinity
    assert cache.affinity_rows(all_ids()) is None


@pytest.mark.parametrize("limit", [0, 2**30])
def test_the_head_for_training_holds_no_test_row(text_task: Task, folder: Path, limit: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(stacks, "RAM_LIMIT", limit)
    kept = len(text_task.training_view().table)
    head = load_cache(folder, text_task).head(kept)
    assert kept == len(head) == ROWS - SIZES["test"]
    assert torch.equal(head.rows(torch.arange(kept))[:, 0, 0], torch.arange(kept).float())
    for row in text_task.splits["test"]:
        with pytest.raises(IndexError):
            head.rows(torch.tensor([row]))


def test_live_teachers_give_the_same_rows(text_task: Task, folder: Path) -> None:
    live = LiveTeachers(teachers(), text_task)
    cached = load_cache(folder, text_task)
    assert torch.equal(live.rows(all_ids()), cached.rows(all_ids()))
    assert live.head(8).rows(torch.tensor([3])).shape == (1, 3, 2)


def test_half_precision_is_stored_rounded_and_read_as_float32(text_task: Task, tmp_path: Path) -> None:
    array = np.full((ROWS, 2), 1.0001, dtype=np.float32)
    cache = build_cache([ArrayTeacher("a", array)], text_task, tmp_path / "c", dtype="float16")
    assert cache.rows(all_ids()).dtype == torch.float32
    assert cache.rows(all_ids()).unique().tolist() == [1.0]
    (file,) = (tmp_path / "c").glob("logits-*.npy")
    assert np.load(file).dtype == np.float16
    array[3:5] = 1e5
    with pytest.raises(TeacherError, match=r"'a' must give finite logits, 2 of 10 rows .* too large for float16"):
        build_cache([ArrayTeacher("a", array)], text_task, tmp_path / "d", dtype="float16")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_name_teacher_and_rows(text_task: Task, tmp_path: Path, bad: float) -> None:
    array = np.zeros((ROWS, 2))
    array[[3, 7], 1] = bad
    with pytest.raises(TeacherError, match=r"'broken', got NaN or infinity in 2 of 10 rows, instances \[3, 7\]"):
        build_cache([ArrayTeacher("broken", array)], text_task, tmp_path / "new" / "cache")
    assert not (tmp_path / "new" / "cache").exists()


def test_arrays_must_hold_real_numbers() -> None:
    with pytest.raises(TeacherError, match="real numbers from teacher 'a', got complex128"):
        ArrayTeacher("a", np.zeros((ROWS, 2), dtype=complex))


# --- building: once, continued, replaced


def test_a_finished_cache_is_opened_not_built_again(text_task: Task, folder: Path) -> None:
    again = teachers()
    cache = build_cache(again, text_task, folder)
    assert [teacher.asked for teacher in again] == [0, 0, 0]
    assert cache.identity == load_cache(folder, text_task).identity != ""


def test_an_interrupted_build_continues_with_the_finished_teachers(text_task: Task, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_cache([Counted(0), Counted(1, fails=True), Counted(2)], text_task, tmp_path)
    with pytest.raises(CacheError, match="found an unfinished cache; build it with rlkd cache"):
        load_cache(tmp_path, text_task)
    again = teachers()
    cache = build_cache(again, text_task, tmp_path)
    assert [teacher.asked for teacher in again] == [0, 1, 1]
    assert cache.rows(all_ids())[:, :, 1].unique(dim=0).tolist() == [[0, 1, 2]]


def test_a_torn_array_of_an_interrupted_build_is_not_trusted(text_task: Task, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    torn = sorted(folder.glob("logits-*.npy"))[0]
    torn.write_bytes(torn.read_bytes()[:90])
    again = teachers()
    build_cache(again, text_task, folder)
    assert sorted(teacher.asked for teacher in again) == [0, 0, 1]


def test_two_names_for_the_same_weights_are_two_teachers(text_task: Task, tmp_path: Path) -> None:
    array = np.arange(2.0 * ROWS).reshape(ROWS, 2)
    cache = build_cache([ArrayTeacher("a", array), ArrayTeacher("b", array)], text_task, tmp_path)
    assert cache.teacher_names == ("a", "b")
    assert cache.rows(all_ids()).shape == (ROWS, 2, 2)


def test_overwrite_mends_a_damaged_array_and_asks_nobody_else(text_task: Task, folder: Path) -> None:
    before = load_cache(folder, text_task)
    flip(sorted(folder.glob("logits-*.npy"))[0])
    with pytest.raises(CacheError, match=r"damaged.*--overwrite"):
        build_cache(teachers(), text_task, folder)
    again = teachers()
    after = build_cache(again, text_task, folder, overwrite=True)
    assert sorted(teacher.asked for teacher in again) == [0, 0, 1]
    assert torch.equal(before.rows(all_ids()), after.rows(all_ids()))


def test_overwrite_replaces_the_cache_and_leaves_nothing_of_the_old_one(text_task: Task, folder: Path) -> None:
    cache = build_cache([Counted(5), Counted(1)], text_task, folder, overwrite=True)
    assert cache.teacher_names == ("teacher-5", "teacher-1")
    assert len(list(folder.glob("logits-*.npy"))) == 2


def test_a_failing_overwrite_leaves_the_old_cache(text_task: Task, folder: Path) -> None:
    before = load_cache(folder, text_task).identity
    with pytest.raises(TeacherError):
        build_cache([ArrayTeacher("nan", np.full((ROWS, 2), np.nan))], text_task, folder, overwrite=True)
    assert load_cache(folder, text_task).identity == before


def build_in_child(folder: Path, log: Path) -> None:
    build_cache([Counted(k, log=log) for k in range(2)], make_task(), folder)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("locks", [True, False])
def test_two_processes_build_one_valid_cache(tmp_path: Path, locks: bool, monkeypatch: Any) -> None:
    if not locks:  # correctness does not rest on the lock
        monkeypatch.setattr(FileLock, "acquire", no_lock)
    context = multiprocessing.get_context("fork")
    folder, log = tmp_path / "cache", tmp_path / "log"
    children = [context.Process(target=build_in_child, args=(folder, log)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert log.read_text().splitlines() == ["0", "1"] or not locks
    cache = load_cache(folder, make_task(), teachers=[Counted(0), Counted(1)])
    assert torch.equal(cache.rows(all_ids())[:, 0, 0], all_ids().float())


def no_lock(*args: Any, **kwargs: Any) -> None:
    raise NotImplementedError("no locks here")


def test_a_filesystem_without_locks_is_told_and_used(text_task: Task, tmp_path: Path, monkeypatch: Any, caplog: Any):
    monkeypatch.setattr(FileLock, "acquire", no_lock)
    assert len(build_cache(teachers(), text_task, tmp_path / "c")) == ROWS
    assert "without a lock: no locks here" in caplog.text


# --- refusals


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def manifest_with(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "manifest.json").read_text())
        change(content)
        (folder / "manifest.json").write_text(json.dumps(content))

    return damage


def first_array(folder: Path) -> Path:
    return sorted(folder.glob("logits-*.npy"))[0]


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda c: flip(first_array(c)), r"damaged: logits-\w+\.npy .* --overwrite"),
    "a truncated array": (lambda c: first_array(c).write_bytes(b"\x93NUMPY"), "damaged: logits-"),
    "a missing array": (lambda c: first_array(c).unlink(), r"partial: logits-\w+\.npy is missing"),
    "no manifest": (lambda c: (c / "manifest.json").unlink(), "found an unfinished cache"),
    "a torn manifest": (lambda c: (c / "manifest.json").write_text("{"), "damaged or no cache manifest"),
    "a binary manifest": (lambda c: (c / "manifest.json").write_bytes(b"\xff\xfe"), "damaged or no cache manifest"),
    "a list": (lambda c: (c / "manifest.json").write_text("[]"), "damaged or no cache manifest"),
    "deep nesting": (lambda c: (c / "manifest.json").write_text("[" * 10**5), "damaged or no cache manifest"),
    "a later format": (manifest_with(lambda m: m.update(format_version=9)), "has format 9, this rlkd reads 1"),
    "files outside": (manifest_with(lambda m: m["teachers"][0].update(file="../x.npy")), "files outside its folder"),
    "an absolute file": (manifest_with(lambda m: m["teachers"][0].update(file="/x.npy")), "files outside its folder"),
    "no teachers": (manifest_with(lambda m: m.update(teachers=[])), "names no teachers"),
    "teachers as text": (manifest_with(lambda m: m.update(teachers="abc")), "damaged or no cache manifest"),
    "files as a list": (manifest_with(lambda m: m.update(files=[])), "damaged or no cache manifest"),
    "no hashes": (manifest_with(lambda m: m.update(files={})), "damaged: logits-"),
    "half a knowledge": (manifest_with(lambda m: m["teachers"][0].update(knows_by="class")), "damaged or no cache"),
    "an odd knowledge": (
        manifest_with(lambda m: m["teachers"][0].update(knows_by=[], knows=[])),
        "damaged or no cache",
    ),
    "affinity that is not there": (
        manifest_with(lambda m: m.update(affinity=True)),
        "partial: affinity.npy is missing",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_cache_is_refused_by_name(case: str, text_task: Task, folder: Path) -> None:
    damage, message = DAMAGE[case]
    damage(folder)
    with pytest.raises(CacheError, match=message) as caught:
        load_cache(folder, text_task)
    assert str(folder) in str(caught.value)


def test_a_pickled_array_is_not_loaded(text_task: Task, folder: Path) -> None:
    array = first_array(folder)
    np.save(array, np.array([{}], dtype=object), allow_pickle=True)
    manifest_with(lambda m: m["files"].update({array.name: file_hash(array)}))(folder)
    with pytest.raises(CacheError, match="must be an array without pickle"):
        load_cache(folder, text_task)


def test_an_array_of_another_shape_is_refused(text_task: Task, folder: Path) -> None:
    array = first_array(folder)
    np.save(array, np.zeros((ROWS, 3), dtype=np.float32))
    manifest_with(lambda m: m["files"].update({array.name: file_hash(array)}))(folder)
    with pytest.raises(CacheError, match=r"must hold floats of shape \(10, 2\), it has float32 \(10, 3\)"):
        load_cache(folder, text_task)


def test_a_cache_of_other_data_is_refused(folder: Path) -> None:
    for other in (make_task(first="row -1"), replace(make_task(), label_names=("fire", "air"))):
        with pytest.raises(CacheError, match="made for other data"):
            load_cache(folder, other)
        with pytest.raises(CacheError, match=r"made for other data.*another folder"):
            build_cache(teachers(), other, folder)
    load_cache(folder, replace(make_task(), name="another name for the same rows"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            [2, 1, 0],
            "the same teachers in another order: it has teacher-0, teacher-1, teacher-2, asked for were teacher-2",
        ),
        ([0, 1], "other teachers"),
        ([0, 1, 5], "other teachers"),
    ],
)
def test_other_teachers_or_another_order_are_refused(
    text_task: Task, folder: Path, asked: list[int], message: str
) -> None:
    for use in (lambda t: load_cache(folder, text_task, teachers=t), lambda t: build_cache(t, text_task, folder)):
        with pytest.raises(CacheError, match=message):
            use([Counted(k) for k in asked])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 5}, "max_length 128, asked for was 5"),
        ({"dtype": "float16"}, "dtype 'float32', asked for was 'float16'"),
        ({"embedder": lambda texts: np.ones((len(texts), 2))}, "embedder None, asked for was 'function'"),
    ],
)
def test_a_cache_with_other_settings_is_refused(
    text_task: Task, folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CacheError, match=message):
        build_cache(teachers(), text_task, folder, **options)


def test_teachers_that_now_know_something_else_are_refused(text_task: Task, folder: Path) -> None:
    changed = [Counted(k, knows=["sea"], knows_by="class") for k in range(3)]
    with pytest.raises(CacheError, match="that know other things"):
        build_cache(changed, text_task, folder)
    assert build_cache(changed, text_task, folder, overwrite=True).knowledge is not None
    assert [teacher.asked for teacher in changed] == [0, 0, 0]


def test_the_order_of_the_teachers_is_part_of_the_identity(text_task: Task, tmp_path: Path) -> None:
    there = build_cache(teachers(), text_task, tmp_path / "a")
    back = build_cache(teachers()[::-1], text_task, tmp_path / "b")
    assert there.identity != back.identity


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"teachers": []}, TeacherError, r"at least one teacher, got none \(K = 0\)"),
        ({"dtype": "float8"}, ConfigError, "must be one of float32, float16, got 'float8'"),
        ({"batch_size": 0}, ConfigError, "batch_size must be >= 1, got 0"),
        ({"max_length": 0}, ConfigError, "max_length must be >= 1, got 0"),
    ],
)
def test_bad_settings_leave_nothing_behind(
    text_task: Task, tmp_path: Path, options: dict[str, Any], error: type[RlkdError], message: str
) -> None:
    with pytest.raises(error, match=message):
        build_cache(**{"teachers": teachers(), "task": text_task, "directory": tmp_path / "cache", **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
def test_a_folder_of_something_else_is_left_alone(text_task: Task, tmp_path: Path, name: str, overwrite: bool) -> None:
    (tmp_path / name).write_text("mine")
    (tmp_path / "manifest.json").write_text('{"format_version": 1, "files": {}}')  # of a checkpoint
    with pytest.raises(CacheError, match=f"expected an empty folder or a logit cache in .*, found {name}"):
        build_cache(teachers(), text_task, tmp_path, overwrite=overwrite)
    assert {path.name for path in tmp_path.iterdir()} == {name, "manifest.json"}


def test_a_file_in_the_place_of_the_folder_is_refused(text_task: Task, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(CacheError, match=r"expected to make the folder .*cache, got 'File exists'"):
        build_cache(teachers(), text_task, tmp_path / "cache")


# --- affinity


def test_affinity_by_hand() -> None:
    # teacher 0 knows fire (even rows), teacher 1 knows sea (odd rows); the centroids are the axes
    task = make_task()
    knowledge = Knowledge(by="class", groups=LABELS, matrix=np.eye(2, dtype=bool))
    embeddings = np.zeros((ROWS, 2))
    embeddings[0::2, 0] = 2.0
    embeddings[1::2, 1] = 5.0
    embeddings[8:] = [[3, 4], [0, 0]]
    affinity = compute_affinity(embeddings, task, knowledge, 2)
    assert affinity.dtype == np.float32
    np.testing.assert_allclose(affinity[[0, 1, 8, 9]], [[0.5, -0.5], [-0.5, 0.5], [-0.1, 0.1], [0, 0]], atol=1e-7)
    np.testing.assert_allclose(compute_affinity(embeddings, task, None, 2), 0, atol=1e-7)


def test_a_teacher_without_training_rows_has_no_direction() -> None:
    knowledge = Knowledge(by="class", groups=LABELS, matrix=np.array([[True, False], [False, False]]))
    affinity = compute_affinity(np.tile([1.0, 0.0], (ROWS, 1)), make_task(), knowledge, 2)
    np.testing.assert_allclose(affinity, np.tile([0.5, -0.5], (ROWS, 1)))


class AxisEmbedder:
    """Even rows lie on the first axis, odd ones on the second."""

    name = "axes"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.eye(2)[[int(text.split()[1]) % 2 for text in texts]]


def test_affinity_is_cached_and_cut_with_the_head(text_task: Task, tmp_path: Path) -> None:
    experts = [Counted(k, knows=[name], knows_by="class") for k, name in enumerate(LABELS)]
    cache = build_cache(experts, text_task, tmp_path, embedder=AxisEmbedder())
    assert cache.has_affinity
    assert cache.affinity_rows(torch.tensor([9, 0])).tolist() == [[-0.5, 0.5], [0.5, -0.5]]
    assert json.loads((tmp_path / "manifest.json").read_text())["embedder"] == "axes"
    with pytest.raises(IndexError):
        cache.head(8).affinity_rows(torch.tensor([8]))


def test_reliability_is_measured_on_labelled_validation_rows_by_hand() -> None:
    table = Table(labels=np.array([0, 0, 1, 0, 1, 1]), domains=np.zeros(6, dtype=np.int64), texts=("x",) * 6)
    splits = {"train": np.arange(1), "probe": np.arange(1, 2), "validation": np.arange(2, 6)}
    task = Task(name="t", label_names=("a", "b"), table=table, splits=splits)
    sure = np.log(np.array([[0.9, 0.1]] * 6))  # says a: right on one validation row of four
    right = np.log(np.array([[0.5, 0.5], [0.5, 0.5], [0.4, 0.6], [0.6, 0.4], [0.4, 0.6], [0.4, 0.6]]))
    cache = LogitCache([sure, right], ["sure", "right"])
    assert cache.reliability is None
    known = cache.measured(task).reliability
    assert known.flatten().tolist() == pytest.approx([np.log(2 / 4), 0.9 - 0.25, np.log(5 / 1), 0.6 - 1.0])
    measured = cache.measured(task)
    assert torch.equal(measured.head(3).reliability, known)
    assert torch.equal(measured.take(np.arange(3)).reliability, known)
    assert torch.equal(measured.pick(["right"]).reliability, known[1:])
    state = read_state(task, measured, torch.tensor([0, 5, 1]))
    assert torch.equal(state.reliability, known.expand(3, 2, 2))
    usual = torch.tensor([np.log(0.9 / 0.1), 0.0]).float()  # of the one train row
    for cache in (measured, measured.head(3), measured.take(np.arange(3))):
        assert torch.allclose(cache.sureness, usual)
    assert torch.allclose(measured.pick(["right"]).sureness, usual[1:])
    unmeasured = LogitCache([sure, right], ["sure", "right"]).sureness  # of all rows: nobody said which are of train
    assert unmeasured.tolist() == pytest.approx([np.log(9), 4 * np.log(1.5) / 6])
    assert torch.allclose(state.sureness, usual.expand(3, 2))
    hidden = replace(task, table=replace(table, labels=np.array([0, 0, -1, 0, -1, -1])))
    assert measured.measured(hidden).reliability[0].tolist() == pytest.approx([np.log(2 / 1), 0.9 - 1.0])
    unlabelled = replace(task, table=replace(table, labels=np.full(6, -1)))
    assert measured.measured(unlabelled).reliability is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_must_be_finite(text_task: Task, tmp_path: Path, bad: float) -> None:
    with pytest.raises(CacheError, match="embeddings must be finite"):
        build_cache(teachers(), text_task, tmp_path, embedder=lambda texts: np.full((len(texts), 2), bad))


def test_vectors_cannot_be_embedded_and_nobody_is_asked(tmp_path: Path) -> None:
    asked = teachers()
    with pytest.raises(CacheError, match="affinity embeds texts, task 'elements' has none"):
        build_cache(asked, make_task(vectors=True), tmp_path / "cache", embedder=AxisEmbedder())
    assert [teacher.asked for teacher in asked] == [0, 0, 0]
    assert not (tmp_path / "cache").exists()


def test_a_cache_of_arrays_in_memory_needs_no_files() -> None:
    cache = LogitCache([np.zeros((4, 2)), np.ones((4, 2))], ["a", "b"])
    assert cache.rows(torch.tensor([3])).tolist() == [[[0, 0], [1, 1]]]


# --- what answers say of how they were made


def labelled_task(classes: int, sizes: Sequence[int] = (400, 60, 100, 100), seed: int = 0) -> Task:
    ends = np.cumsum(sizes)
    return Task(
        name="long",
        label_names=tuple(f"class {c}" for c in range(classes)),
        table=Table(
            labels=np.random.default_rng(seed).integers(0, classes, ends[-1]),
            domains=np.zeros(ends[-1], dtype=np.int64),
            vectors=np.zeros((ends[-1], 1), dtype=np.float32),
        ),
        splits={name: np.arange(end - size, end) for name, size, end in zip(SPLITS, sizes, ends.tolist(), strict=True)},
    )


def teacher_logits(task: Task, accuracy: float, seed: int = 0) -> NDArray[np.float64]:
    """Right on a share of the rows, at random on the others."""
    rng = np.random.default_rng(seed)
    said = np.where(rng.random(len(task.table)) < accuracy, task.table.labels, rng.integers(0, task.num_classes))
    return 4 * np.eye(task.num_classes)[said] + rng.normal(size=(len(task.table), task.num_classes)) / 4


def told(arrays: Sequence[NDArray[np.float64]], task: Task, caplog: Any) -> list[str]:
    caplog.clear()
    cache = LogitCache(arrays, [f"t{k}" for k in range(len(arrays))])
    tell_of_teachers(cache, task)
    return list(caplog.messages)


@pytest.mark.parametrize("classes", [2, 6, 40])
def test_a_teacher_at_chance_on_one_split_alone_is_told(classes: int, caplog: Any) -> None:
    """Rows of train and probe in another order, as an array in the order of the files had them; each split in turn."""
    task = labelled_task(classes)
    right = teacher_logits(task, 0.9)
    assert told([right], task, caplog) == []
    for wrong in (("train", "probe"), ("validation",), ("test",)):
        mixed = right.copy()
        ids = np.concatenate([task.splits[name] for name in wrong])
        mixed[ids] = right[np.random.default_rng(1).permutation(ids)]
        (line,) = told([mixed], task, caplog)
        assert line.startswith(f"teacher 't0' is near chance on {' and '.join(wrong)} and not on ")


@pytest.mark.parametrize("classes", [2, 6, 40])
def test_a_teacher_whose_columns_are_in_another_order_is_told(classes: int, caplog: Any) -> None:
    task = labelled_task(classes, (1200, 60, 300, 100))
    right = teacher_logits(task, 0.9)
    (line,) = told([np.roll(right, 1, axis=1)], task, caplog)
    assert "in another order; name its columns" in line


def test_honest_teachers_are_not_spoken_of(caplog: Any) -> None:
    """Weak ones, ones that know some classes, ones that know their train rows by heart: two hundred of them."""
    for seed in range(50):
        classes = (2, 3, 6, 20)[seed % 4]
        task = labelled_task(classes, seed=seed)
        by_heart = teacher_logits(task, 0.5, seed)
        by_heart[task.splits["train"]] = 4 * np.eye(classes)[task.labels("train")]
        some = teacher_logits(task, 0.9, seed)
        some[task.table.labels >= max(1, classes // 2)] = np.random.default_rng(seed).normal(size=classes)
        arrays = [by_heart, some, teacher_logits(task, 0.3, seed), teacher_logits(task, 0.0, seed + 1)]
        assert told(arrays, task, caplog) == []


def test_twins_under_two_names_are_told_and_others_are_not(tmp_path: Path, caplog: Any) -> None:
    task = labelled_task(4)
    one, other = teacher_logits(task, 0.8), teacher_logits(task, 0.8, 1)
    shifted = one + np.arange(len(one))[:, None] % 7  # the same answers: a softmax does not see what is added to all
    build_cache([ArrayTeacher(name, a) for name, a in (("a", one), ("b", other), ("c", shifted))], task, tmp_path)
    assert [line for line in caplog.messages if "twice" in line] == [
        "teachers 'a' and 'c' give the same answers to all 660 rows: such a teacher counts twice; leave one out"
    ]
    one[659] += np.array([1.0, 0.0, 0.0, 0.0])
    assert told([one, shifted], task, caplog) == []


def test_agreement_beyond_chance_is_that_of_another_library() -> None:
    rng = np.random.default_rng(0)
    for classes in (2, 5, 30):
        labels, answers = rng.integers(0, classes, 500), rng.integers(0, classes, 500)
        answers = np.where(rng.random(500) < 0.4, labels, answers)
        assert beyond_chance(answers, labels)[0] == pytest.approx(cohen_kappa_score(labels, answers), abs=1e-12)
    draws = [beyond_chance(rng.permutation(answers), labels)[0] for _ in range(2000)]
    assert np.std(draws) == pytest.approx(beyond_chance(answers, labels)[1], rel=0.1)
