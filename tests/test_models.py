import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from rlkd.data import load_task
from rlkd.data.batching import encode_inputs
from rlkd.data.subset import limit_rows
from rlkd.data.task import Table, Task
from rlkd.errors import (
    ConfigError,
    OutputDirectoryError,
    RlkdError,
    StudentError,
    TeacherError,
    UnknownNameError,
)
from rlkd.models import (
    STUDENTS,
    ArrayTeacher,
    CallableTeacher,
    HfTeacher,
    SklearnTeacher,
    align_labels,
    aligned_logits,
    last_linear,
    load_student,
    load_teachers,
    save_hf_teacher,
    save_sklearn_teacher,
    specialist_groups,
    train_teachers,
    train_tokenizer,
    training,
)
from rlkd.models.training import _TeacherTrainer
from rlkd.types import Wanted

LABELS = ("earth", "fire", "sea", "sky")
SIZES = {"train": 96, "probe": 16, "validation": 16, "test": 16}
ENCODER = Path(__file__).resolve().parents[2] / "shared" / "models" / "minilm-l6-h384"


def make_task(*, vectors: bool = False, pairs: bool = False, images: bool = False) -> Task:
    rng = np.random.default_rng(0)
    total = sum(SIZES.values())
    labels = np.arange(total, dtype=np.int64) % len(LABELS)
    ends = np.cumsum(list(SIZES.values()))
    splits = {name: np.arange(end - size, end) for (name, size), end in zip(SIZES.items(), ends, strict=True)}
    texts = tuple(
        " ".join([LABELS[label], *rng.choice(["warm", "cold", "vast"], 1 + row % 5)])
        for row, label in enumerate(labels)
    )
    features = np.eye(4, dtype=np.float32)[labels] + rng.normal(0, 0.1, (total, 4)).astype(np.float32)
    return Task(
        name="elements",
        label_names=LABELS,
        domain_names=("left", "right"),
        table=Table(
            labels=labels,
            domains=np.arange(total, dtype=np.int64) // 4 % 2,
            texts=None if vectors or images else texts,
            text_pairs=tuple(reversed(texts)) if pairs else None,
            vectors=features if vectors else None,
            images=rng.integers(0, 256, (total, 8, 6, 3), dtype=np.uint8) if images else None,
        ),
        splits=splits,
    )


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task()


def fitted(task: Task, classes: tuple[str, ...] = LABELS) -> object:
    names = np.array(LABELS)[task.labels("train")]
    rows = [row for row, name in enumerate(names) if name in classes]
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(C=20.0))
    assert task.table.texts is not None
    return model.fit([task.table.texts[row] for row in rows], names[rows])


def bert(task: Task, directory: Path, layers: int = 2, labels: tuple[str, ...] = LABELS) -> Path:
    tokenizer = train_tokenizer(task.table.texts or ())
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=16,
        id2label=dict(enumerate(labels)),
        label2id={name: index for index, name in enumerate(labels)},
    )
    return save_hf_teacher(BertForSequenceClassification(config).half(), tokenizer, directory, name=directory.name)


def all_logits(teacher: object, task: Task, ids: NDArray[np.int64] | None = None) -> torch.Tensor:
    rows = np.arange(len(task.table)) if ids is None else ids
    answer = teacher.logits(task, rows, batch_size=7, max_length=32)  # type: ignore[attr-defined]
    assert isinstance(answer, torch.Tensor)
    return answer


# --- students


@pytest.mark.parametrize(("name", "left"), [("rlkd/bilstm", False), ("rlkd/bilstm", True), ("rlkd/tiny", False)])
def test_padding_changes_nothing(task: Task, name: str, left: bool) -> None:
    model, tokenizer = load_student(name, task)
    model.eval()
    batch = encode_inputs(task, tokenizer, 32).batch(np.arange(6))
    pad = torch.zeros(6, 9, dtype=torch.int64)
    wide = {key: torch.cat([pad, value] if left else [value, pad], dim=1) for key, value in batch.items()}
    with torch.no_grad():
        short, long = model(**batch).logits, model(**wide).logits
        single = torch.cat([model(**encode_inputs(task, tokenizer, 32).batch(np.array([i]))).logits for i in range(6)])
    if name == "rlkd/bilstm":
        assert torch.equal(short, long)
    torch.testing.assert_close(short, long, rtol=0, atol=1e-6)
    torch.testing.assert_close(short, single, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(STUDENTS))
def test_save_and_load_through_the_auto_class(task: Task, tmp_path: Path, name: str) -> None:
    task = make_task(vectors=name == "rlkd/mlp", images=name == "rlkd/cnn")
    model, tokenizer = load_student(name, task)
    ids = np.arange(5)
    inputs = encode_inputs(task, tokenizer, 16).batch(ids)
    expected = model.eval()(**inputs).logits
    model.save_pretrained(tmp_path)
    auto = AutoModelForImageClassification if name == "rlkd/cnn" else AutoModelForSequenceClassification
    again = auto.from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert again.config.id2label == dict(enumerate(LABELS))
    assert torch.equal(again(**inputs).logits, expected)
    if tokenizer is not None:
        tokenizer.save_pretrained(tmp_path)
    student, loaded_tokenizer = load_student(str(tmp_path), task)
    assert student.training
    reloaded = encode_inputs(task, loaded_tokenizer, 16).batch(ids)
    assert torch.equal(student.eval()(**reloaded).logits, expected)


def test_initialisation_is_a_function_of_the_seed(task: Task, tmp_path: Path) -> None:
    encoder = bert(task, tmp_path / "bert", labels=("other", "classes"))
    for name in ("rlkd/bilstm", "rlkd/tiny", str(encoder)):
        states = []
        for seed, disturbance in ((1, 5), (1, 6), (2, 5)):
            torch.manual_seed(disturbance)
            before = torch.get_rng_state()
            states.append(last_linear(load_student(name, task, seed=seed)[0], len(LABELS)).weight)
            assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])


def test_first_layers_in_float32(task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(bert(task, tmp_path / "bert", layers=3))
    whole, _ = load_student(path, task)
    short, _ = load_student(path, task, num_layers=1)
    assert short.config.num_hidden_layers == len(short.bert.encoder.layer) == 1
    assert short.dtype == torch.float32
    for key, tensor in short.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[key]), key
    assert not caplog.records
    with pytest.raises(StudentError, match="from 1 to 3"):
        load_student(path, task, num_layers=4)


def test_students_refused_by_name(task: Task, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'rlkd/bilstm'"):
        load_student("rlkd/bilstn", task)
    with pytest.raises(StudentError, match="num_layers"):
        load_student("rlkd/tiny", task, num_layers=1)
    with pytest.raises(StudentError, match=r"reads vectors.*has text"):
        load_student("rlkd/mlp", task)
    with pytest.raises(StudentError, match=r"reads text.*has vectors"):
        load_student("rlkd/bilstm", make_task(vectors=True))
    with pytest.raises(StudentError, match="could not be loaded"):
        load_student(str(tmp_path), task)
    with pytest.raises(StudentError, match="linear layer with 4 outputs"):
        last_linear(torch.nn.Linear(3, 3), 4)


def test_tokenizer_is_deterministic_and_frames_pairs(task: Task) -> None:
    texts = ["One fish, two FISH.", "\ud800 lone", ""]
    one, two = train_tokenizer(texts), train_tokenizer(iter(texts))
    assert one.get_vocab() == two.get_vocab()
    encoded = one("one unseen", "two")
    assert one.convert_ids_to_tokens(encoded["input_ids"]) == [
        *("[CLS]", "one", "[UNK]", "[SEP]"),
        *("two", "[SEP]"),
    ]
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    model, tokenizer = load_student("rlkd/tiny", task, tokenizer=one)
    assert tokenizer is one
    assert isinstance(model.config, BertConfig)
    assert model.config.vocab_size == len(two)


# --- labels


@pytest.mark.parametrize(
    ("teacher", "wanted", "columns"),
    [
        (["b", "a"], ["a", "b"], [1, 0]),
        (["POS", "neg"], ["neg", "pos"], [1, 0]),
        (["a", "A"], ["A", "a"], [1, 0]),
        (["LABEL_1", "LABEL_0"], ["0", "1"], [1, 0]),
        (["LABEL_0", "LABEL_1"], ["LABEL_1", "LABEL_0"], [1, 0]),
        (["b"], ["a", "b"], "lacks 'a'"),
        (["a", "b", "c"], ["a", "b"], "also has 'c'"),
        (["LABEL_0", "LABEL_1"], ["a", "b"], "generic names.*set id2label"),
        (["LABEL_0", "LABEL_1"], ["0", "1", "2"], "generic names"),
        (["a", "a"], ["a", "b"], "twice"),
        (["Yes", "YES"], ["yes", "no"], "one column for class 'yes'"),
        (["yes"], ["Yes", "YES"], "differ by case"),
    ],
)
def test_label_alignment(teacher: list[str], wanted: list[str], columns: list[int] | str) -> None:
    if isinstance(columns, str):
        with pytest.raises(TeacherError, match=columns) as caught:
            align_labels(teacher, wanted, teacher="t")
        assert "\n" not in str(caught.value)
    else:
        assert align_labels(teacher, wanted, teacher="t").tolist() == columns


def test_missing_classes_get_a_floor() -> None:
    columns = align_labels(["c", "A"], ["a", "b", "c"], teacher="t", may_lack="b")
    assert columns.tolist() == [1, -1, 0]
    answer = aligned_logits(torch.tensor([[1.0, 2.0], [5.0, -1.0]]), columns)
    assert answer.tolist() == [[2.0, -3.0, 1.0], [-1.0, -5.0, 5.0]]


# --- teachers


@pytest.mark.parametrize("vectors", [False, True])
def test_sklearn_teacher_round_trip(tmp_path: Path, vectors: bool) -> None:
    task = make_task(vectors=vectors)
    rows = task.splits["train"]
    if task.table.vectors is not None:
        model = LogisticRegression().fit(task.table.vectors[rows], np.array(LABELS)[task.labels("train")])
    else:
        model = fitted(task)
    save_sklearn_teacher(model, tmp_path, name="words", knows=["left"], knows_by="domain")
    (teacher,) = load_teachers([str(tmp_path)], task)
    assert (teacher.name, teacher.knows, teacher.knows_by) == ("words", frozenset({"left"}), "domain")
    logits = all_logits(teacher, task)
    assert logits.dtype == torch.float32
    assert (logits.argmax(1).numpy() == task.table.labels).all()
    original = SklearnTeacher("words", model)
    assert torch.equal(logits, all_logits(original, task))
    assert teacher.identity == original.identity


def test_specialists_classes_and_decision_functions(task: Task) -> None:
    teacher = SklearnTeacher("s", fitted(task, LABELS[:2]), knows=LABELS[:2], knows_by="class")
    logits = all_logits(teacher, task)
    assert logits.shape == (len(task.table), 4)
    assert torch.equal(logits[:, 2], logits[:, :2].amin(1) - 4.0)
    with pytest.raises(TeacherError, match="lacks 'sea', 'sky'"):
        load_teachers([SklearnTeacher("s", fitted(task, LABELS[:2]))], task)
    texts = list(task.table.texts or ())
    binary = make_pipeline(TfidfVectorizer(), LinearSVC()).fit(texts, task.table.labels > 1)
    two = SklearnTeacher("svc", binary, label_names=LABELS[:2], allow_missing=True)
    assert (all_logits(two, task)[:, :2].argmax(1).numpy() == (task.table.labels > 1)).all()


class Canary:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("canary"),))  # type: ignore[return-value]


def test_hostile_files_are_refused(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "teacher.skops").write_bytes(pickle.dumps(Canary()))
    with pytest.raises(TeacherError, match="cannot be read"):
        load_teachers([str(evil)], task)
    schema = (
        '{"__class__": "system", "__module__": "os", "__loader__": "FunctionNode", "__id__": 1, '
        '"content": "os.system", "protocol": 2, "_skops_version": "0.13"}'
    )
    with zipfile.ZipFile(evil / "teacher.skops", "w") as archive:
        archive.writestr("schema.json", schema)
    with pytest.raises(TeacherError, match=r"got os\.system|cannot be read"):
        load_teachers([str(evil)], task)
    np.save(tmp_path / "evil.npy", np.array([Canary()], dtype=object), allow_pickle=True)
    with pytest.raises(TeacherError, match="without pickle"):
        load_teachers([str(tmp_path / "evil.npy")], task)
    bert(task, tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").unlink()
    (tmp_path / "bert" / "pytorch_model.bin").write_bytes(pickle.dumps(Canary()))
    with pytest.raises(TeacherError, match="safetensors"):
        load_teachers([str(tmp_path / "bert")], task)
    model, _ = load_student("rlkd/tiny", task)
    model.save_pretrained(tmp_path / "coded")
    (tmp_path / "coded" / "tokenizer.json").write_text("{}")
    (tmp_path / "coded" / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M"}}'
    )
    (tmp_path / "coded" / "own.py").write_text("from pathlib import Path\nPath('canary').touch()\n")
    with pytest.raises(TeacherError, match="cannot be loaded"):
        load_teachers([str(tmp_path / "coded")], task)
    with pytest.raises(StudentError, match="could not be loaded"):
        load_student(str(tmp_path / "coded"), task)
    assert not (tmp_path / "canary").exists()


def test_hf_teacher_is_frozen_ordered_and_its_own(task: Task, tmp_path: Path) -> None:
    path = bert(task, tmp_path / "bert", labels=LABELS[::-1])
    (teacher,) = load_teachers([str(path)], task, device="cpu")
    assert isinstance(teacher, HfTeacher)
    teacher.model.train()
    logits = all_logits(teacher, task)
    assert not teacher.model.training
    assert not logits.requires_grad
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert teacher.model.dtype == torch.float32
    ids = np.array([11, 3, 3, 90])
    torch.testing.assert_close(all_logits(teacher, task, ids), logits[ids], rtol=0, atol=1e-5)
    inputs = encode_inputs(task, teacher.tokenizer, 32).batch(np.array([5]))
    torch.testing.assert_close(teacher.model(**inputs).logits.flip(1), logits[5:6], rtol=0, atol=1e-5)
    (again,) = load_teachers([str(path)], task)
    assert again.identity == teacher.identity
    with torch.no_grad():
        next(teacher.model.parameters()).add_(1e-3)
    assert HfTeacher("bert", teacher.model, teacher.tokenizer).identity != again.identity
    assert all_logits(teacher, task, np.zeros(0, np.int64)).shape == (0, 4)


def test_a_teacher_asked_in_bfloat16_says_nearly_the_same_and_is_another(task: Task, tmp_path: Path) -> None:
    path = str(bert(task, tmp_path / "bert"))
    (exact,) = load_teachers([path], task, device="cpu")
    (rough,) = load_teachers([path], task, device="cpu", bf16=True)
    difference = (all_logits(exact, task).softmax(-1) - all_logits(rough, task).softmax(-1)).abs().max()
    assert 0 < difference < 0.02
    assert rough.identity == f"{exact.identity}:bf16"  # their caches are not taken for each other
    states = rough.inner_states(task, np.arange(3), Wanted(hidden=(0, 1), attention=(0,)), max_length=32)[1]
    assert {value.isfinite().all().item() for value in (*states.hidden.values(), *states.attention.values())} == {True}


def test_a_teacher_that_trained_in_bfloat16_answers_as_it_will_when_it_is_loaded(task, tmp_path, monkeypatch):
    """The library that trains leaves a network that goes on computing in bfloat16."""
    kept = []
    monkeypatch.setattr(
        training, "HfTeacher", lambda *args, **kwargs: kept.append(HfTeacher(*args, **kwargs)) or kept[0]
    )
    (path,) = train_teachers(task, tmp_path, kinds=["rlkd/bilstm"], epochs=1, bf16=True, device="cpu")
    (loaded,) = load_teachers([path], task, device="cpu")
    trained, again = (
        teacher.logits(task, np.arange(40), batch_size=40, max_length=16) for teacher in (kept[0], loaded)
    )
    assert torch.equal(trained, again)


def test_teachers_that_do_not_fit_are_refused_at_load(task: Task, tmp_path: Path) -> None:
    path = bert(task, tmp_path / "bert")
    array = np.zeros((len(task.table), 4), dtype=np.float32)
    with pytest.raises(TeacherError, match="at least one teacher"):
        load_teachers([], task)
    with pytest.raises(TeacherError, match="which is missing"):
        load_teachers([str(tmp_path / "nothing")], task)
    with pytest.raises(TeacherError, match="'bert' 2 times"):
        load_teachers([str(path), str(path)], task)
    with pytest.raises(TeacherError, match="expected 144 rows"):
        load_teachers([ArrayTeacher("a", array[:-1])], task)
    with pytest.raises(TeacherError, match="expected 4 columns"):
        load_teachers([ArrayTeacher("a", array[:, :2])], task)
    with pytest.raises(TeacherError, match="has vectors"):
        load_teachers([str(path)], make_task(vectors=True))
    headless = shutil.copytree(path, tmp_path / "headless")
    AutoModelForSequenceClassification.from_pretrained(path).bert.save_pretrained(headless)
    (headless / "teacher.json").unlink()
    with pytest.raises(TeacherError, match=r"'headless', but 'classifier\.bias' is missing"):
        load_teachers([str(headless)], task)
    for file in path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(TeacherError, match="without tokenizer"):
        load_teachers([str(path)], task)


@pytest.mark.parametrize(
    "content",
    ["[]", "{", "{}", '{"name": 3}', '{"name": "a", "run": "os.system"}', '{"name": "a", "knows": ["x"]}'],
)
def test_teacher_json_is_validated(task: Task, tmp_path: Path, content: str) -> None:
    save_sklearn_teacher(fitted(task), tmp_path, name="a")
    (tmp_path / "teacher.json").write_text(content)
    with pytest.raises(TeacherError, match=r"teacher\.json"):
        load_teachers([str(tmp_path)], task)


def test_callables_and_arrays(task: Task, tmp_path: Path) -> None:
    table = 4 * np.eye(4, dtype=np.float64)[task.table.labels]
    np.save(tmp_path / "given.npy", table)
    by_word = CallableTeacher("rule", lambda texts: [[4.0 * (n in t) for n in LABELS] for t in texts], LABELS)
    given, rule = load_teachers([tmp_path / "given.npy", by_word], task)
    assert given.name == "given"
    assert torch.equal(all_logits(given, task), all_logits(rule, task))
    assert given.logits(task.training_view(), np.arange(3), batch_size=2, max_length=8).shape == (3, 4)
    pairs = make_task(pairs=True)
    seen = CallableTeacher("pairs", lambda rows: [[len(a), len(b), 0, 0] for a, b in rows], LABELS)
    assert all_logits(seen, pairs, np.arange(2)).shape == (2, 4)
    infinite = CallableTeacher("bad", lambda texts: np.full((len(texts), 4), -np.inf), LABELS)
    with pytest.raises(TeacherError, match="finite logits"):
        all_logits(infinite, task)
    with pytest.raises(TeacherError, match="expected logits of shape"):
        all_logits(CallableTeacher("bad", lambda texts: np.zeros((len(texts), 3)), LABELS), task)


# --- training


@pytest.mark.parametrize("num_teachers", range(1, 7))
def test_specialist_groups(num_teachers: int) -> None:
    for num_groups in range(3, 21):
        for variant in (0, 1):
            groups = specialist_groups(num_groups, num_teachers, variant=variant)
            assert len(groups) == num_teachers == len({tuple(known) for known in groups})
            assert {group for known in groups for group in known} == set(range(num_groups))
            if num_teachers > 1 and num_groups >= 2 * num_teachers:
                share = [len(known) / num_groups for known in groups]
                assert min(share) > 0.3
                assert max(share) < 0.7
    assert specialist_groups(40, 5, variant=1) != specialist_groups(40, 5, variant=2)


def test_specialist_groups_published_rule_and_limits() -> None:
    assert specialist_groups(6, 3) == [[0, 3, 5], [1, 3, 4], [1, 2, 5]]
    assert min(map(len, specialist_groups(3, 3, minimum=2))) == 2
    with pytest.raises(ConfigError, match="train fewer teachers"):
        specialist_groups(2, 2, minimum=2)


def test_train_specialists_and_resume(task: Task, tmp_path: Path) -> None:
    def train(seed: int = 0) -> list[Path]:
        return train_teachers(
            task,
            tmp_path,
            kinds=["tfidf", "rlkd/bilstm"],
            specialize="class",
            epochs=4,
            learning_rate=1e-2,
            batch_size=16,
            seed=seed,
            device="cpu",
        )

    paths = train()
    assert [path.name for path in paths] == ["tfidf-0", "bilstm-1"]
    first = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    words, network = load_teachers(list(paths), task, device="cpu")
    assert words.knows == frozenset({"earth", "sea"})
    assert network.knows == frozenset({"fire", "sky"})
    for teacher in (words, network):
        known = [LABELS.index(name) for name in sorted(teacher.knows or ())]
        ids = np.flatnonzero(np.isin(task.table.labels, known))
        assert (all_logits(teacher, task, ids).argmax(1).numpy() == task.table.labels[ids]).mean() > 0.9
    assert train() == paths
    assert first == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(OutputDirectoryError, match="other settings"):
        train(seed=1)
    before = network.identity
    for name in ("done.json", "teacher.json"):
        (paths[1] / name).unlink()
    (again,) = load_teachers(train()[1:], task, device="cpu")
    assert again.identity == before


def test_a_linear_teacher_is_the_same_on_any_number_of_threads(tmp_path: Path) -> None:
    """Caches, students and the README's table hang on its last bits."""
    task = limit_rows(load_task("docstrings"), {"train": 400})
    fitted = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            (teacher,) = load_teachers(list(train_teachers(task, tmp_path / str(threads), kinds=["tfidf"])), task)
            fitted.append(teacher.model[-1].coef_)
    assert np.array_equal(*fitted)


def test_train_on_vectors_and_by_domain(tmp_path: Path) -> None:
    task = make_task(vectors=True)
    paths = train_teachers(
        task, tmp_path, kinds=["tfidf", "rlkd/mlp"], specialize="domain", epochs=1, device="cpu", variant=3
    )
    teachers = load_teachers(list(paths), task)
    assert {name for teacher in teachers for name in teacher.knows or ()} == {"left", "right"}
    assert {teacher.knows_by for teacher in teachers} == {"domain"}
    with pytest.raises(RlkdError, match="at least one kind"):
        train_teachers(task, tmp_path, kinds=[])


@pytest.mark.parametrize("damaged", [False, True])
def test_an_interrupted_teacher_ends_the_same(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    def train(name: str) -> str:
        paths = train_teachers(task, tmp_path / name, kinds=["rlkd/bilstm"], epochs=3, device="cpu")
        return load_teachers(list(paths), task, device="cpu")[0].identity

    whole = train("whole")
    save, load = _TeacherTrainer._save_checkpoint, _TeacherTrainer._load_from_checkpoint

    def save_and_die(self: _TeacherTrainer, *args: object) -> None:
        save(self, *args)
        if self.state.global_step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_TeacherTrainer, "_save_checkpoint", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train("killed")
    (newest,) = (tmp_path / "killed").glob("*/training-*/checkpoint-6")
    if damaged:
        (newest / "optimizer.pt").write_bytes(b"x")
    loaded = []

    def load_and_note(self: _TeacherTrainer, path: str, *args: object) -> None:
        loaded.append(Path(path).name)
        load(self, path, *args)

    monkeypatch.setattr(_TeacherTrainer, "_load_from_checkpoint", load_and_note)
    assert train("killed") == whole
    assert loaded == ["checkpoint-3" if damaged else "checkpoint-6"]
    assert not list((tmp_path / "killed").glob("*/training-*"))


@pytest.mark.shared
@pytest.mark.skipif(not ENCODER.exists(), reason="the encoder is not beside the checkout")
def test_first_layers_of_a_real_encoder(task: Task) -> None:
    model, tokenizer = load_student(str(ENCODER), task, num_layers=2)
    assert model.dtype == torch.float32
    assert model.config.num_hidden_layers == 2
    inputs = encode_inputs(task, tokenizer, 32).batch(np.arange(4))
    assert model.eval()(**inputs).logits.shape == (4, 4)
