"""What new users tried and did not get: each with the right outcome."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import datasets
import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import CONFIG_MAPPING, AutoModel, BertConfig, BertForSequenceClassification, BertModel, pipeline

from rlkd.agents.trials import TrialStudents, choose, most_students
from rlkd.auto_classes import OURS
from rlkd.choosing import check_choice
from rlkd.data import load_task
from rlkd.data.task import Task
from rlkd.errors import RlkdError, TaskError
from rlkd.features import ObservationConfig
from rlkd.logit_cache import LogitCache, build_cache
from rlkd.models import load_student, load_teachers, save_hf_teacher, train_tokenizer
from rlkd.models.architectures import (
    BiLstmConfig,
    BiLstmForSequenceClassification,
    CnnConfig,
    CnnForImageClassification,
    MlpConfig,
    MlpForSequenceClassification,
)
from rlkd.models.multi_task import MultiTaskConfig, MultiTaskForSequenceClassification
from rlkd.models.pair_encoder import PairBiLstmConfig
from rlkd.report.usage import student_lines
from rlkd.weighting import WeightingSpec, build_weighting, load_weighting
from rlkd.weighting.learned import Policy

ROWS = [(f"a {'good' if i % 2 else 'bad'} film, number {i}", ("neg", "pos")[i % 2]) for i in range(60)]
TEXTS, LABELS = map(list, zip(*ROWS, strict=True))
FRAME = pd.DataFrame({"text": TEXTS, "label": LABELS})


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


def bag_of_words(labels: list[Any] = LABELS) -> Any:
    return make_pipeline(CountVectorizer(), LogisticRegression()).fit(TEXTS, labels)


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def cells(separator: str, header: tuple[str, ...] = ("text", "label"), rows: list[tuple[str, str]] = ROWS) -> str:
    return "\n".join(separator.join(row) for row in [header, *rows]) + "\n"


NAMED = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
TURNED = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])})


def rows(first: int, last: int, features: datasets.Features = NAMED) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"text": TEXTS[first:last], "label": [features["label"].str2int(label) for label in LABELS[first:last]]},
        features,
    )


WHOLE = {
    "a data frame": lambda: FRAME,
    "categories": lambda: FRAME.astype({"label": "category"}),
    "a data set": lambda: rows(0, 60),
    "one with a format": lambda: rows(0, 60).with_format("torch"),
    "a dict of one": lambda: datasets.DatasetDict(train=rows(0, 60)),
}
SPLIT = {
    "a dict of data sets": lambda: datasets.DatasetDict(train=rows(0, 40), validation=rows(40, 50), test=rows(50, 60)),
    "other names": lambda: {"train": rows(0, 40), "dev": FRAME[40:50], "test": FRAME[50:]},
    "classes in another order": lambda: {"train": rows(0, 40), "val": rows(40, 50, TURNED), "test": rows(50, 60)},
}


@pytest.mark.filterwarnings("ignore:.*writable")
@pytest.mark.parametrize("data", [*WHOLE, *SPLIT])
def test_loaded_data_are_the_task_that_their_files_are(data: str, tmp_path: Path) -> None:
    if data in WHOLE:
        FRAME.to_csv(tmp_path / "train.csv")
    else:
        for split, part in (("train", FRAME[:40]), ("validation", FRAME[40:50]), ("test", FRAME[50:])):
            part.to_csv(tmp_path / f"{split}.csv")
    loaded, read = load_task({**WHOLE, **SPLIT}[data]()), load_task(tmp_path)
    assert loaded.fingerprint == read.fingerprint
    assert loaded.label_names == ("neg", "pos")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(), r"stream; take some: datasets\.Dataset"),
        (
            {"text": TEXTS, "label": LABELS},
            r"got list for 'text'; make one, for example with datasets\.Dataset\.from_d",
        ),
        ({"test": FRAME}, "must have a train split, it has: test"),
        (7, "expected a name, a path, a Dataset"),
    ],
)
def test_data_that_are_no_table_are_refused_with_what_to_do(data: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(data)


READ = {
    "rows.csv": cells(";"),
    "rows.tsv": cells("\t"),
    "tabs.csv": cells("\t"),
    "quoted.csv": cells(";", ('"text"', '"label"')),
    "sentence.csv": cells(",", ("sentence", "Label"), [(f'"{text}"', label) for text, label in ROWS]),
    "review.tsv": cells("\t", ("review", "target")),
}


@pytest.mark.parametrize("name", READ)
def test_other_separators_and_usual_columns_are_recognised(name: str, tmp_path: Path) -> None:
    rows = [(text.replace(",", ""), label) for text, label in ROWS]
    text = READ[name] if "sentence" in name else READ[name].replace(", ", " ")
    task = load_task(written(tmp_path / name, text))
    assert (
        task.fingerprint
        == load_task(FRAME if "sentence" in name else pd.DataFrame(rows, columns=["text", "label"])).fingerprint
    )


def test_quotes_in_a_file_of_tabs_join_no_rows(tmp_path: Path) -> None:
    bare = [(f'"{text}' if i % 3 else text, label) for i, (text, label) in enumerate(ROWS)]
    task = load_task(written(tmp_path / "bare.tsv", cells("\t", rows=bare)))
    assert sorted(task.table.texts or ()) == sorted(text for text, _ in bare)
    FRAME.assign(text=FRAME.text + '\n"second" line').to_csv(tmp_path / "lines.tsv", sep="\t")
    assert all(text.endswith('\n"second" line') for text in load_task(tmp_path / "lines.tsv").table.texts or ())


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (("title", "label"), None),
        (("title", "body"), r"several that may be meant: title, body; name one with --text-column"),
        (("words", "label"), r"column 'text', it has: words, label; did you mean 'words'\? .* --text-column"),
        (("text", "verdict"), r"column 'label', it has: text, verdict; did you mean 'verdict'\? .* --label-column"),
    ],
)
def test_unclear_columns_are_suggested_with_their_flag(header: Any, message: str | None, tmp_path: Path) -> None:
    file = written(tmp_path / "rows.tsv", cells("\t", header))
    if message is None:
        load_task(file)
        return
    with pytest.raises(TaskError, match=message):
        load_task(file)


@pytest.mark.parametrize(("name", "encoding"), [("a.csv", "latin-1"), ("a.jsonl", "latin-1"), ("a.tsv", "utf-16")])
def test_the_encoding_is_named_where_it_is_the_cause(name: str, encoding: str, tmp_path: Path) -> None:
    file = written(tmp_path / name, '{"text": "caf\xe9", "label": "a"}\n', encoding)
    guess = "UTF-16" if encoding == "utf-16" else "Windows-1252 or Latin-1"
    with pytest.raises(TaskError, match=rf"must be UTF-8, line 1 has the byte .* {guess}; convert it: iconv -f"):
        load_task(file)


@pytest.mark.parametrize("spelled", ["{}", "policy:{}", "auto:{}"])
def test_the_folder_of_a_policys_training_stands_for_the_policy(
    spelled: str, task: Task, cache: LogitCache, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"command": "train-policy"}')  # of the run
    Policy.create(ObservationConfig(), training={}, seed=1).save_pretrained(tmp_path / "policy")
    spec, whole = (WeightingSpec.parse(spelled.format(place)) for place in (tmp_path, tmp_path / "policy"))
    assert spec.learned() == whole.learned() is not None
    if spec.name == "auto":
        check_choice(spec, 1)
    else:
        built = load_weighting(str(tmp_path)) if spelled == "{}" else build_weighting(spec, task, cache)
        assert isinstance(built, Policy)


@pytest.mark.parametrize("place", ["teacher.joblib", "teacher.pkl", "folder/any.pickle"])
def test_a_pickled_teacher_is_converted_by_the_line_that_refuses_it(place: str, task: Task, tmp_path: Path) -> None:
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    joblib.dump(bag_of_words(), file)
    with pytest.raises(RlkdError, match="without pickle") as refused:
        load_teachers([str(file if file.parent == tmp_path else file.parent)], task)
    told = re.search(r"name '(.*?)': (import joblib; .*)$", str(refused.value))
    assert told is not None
    exec(told[2], {})
    assert load_teachers([told[1]], load_task(FRAME))[0].label_names == ("neg", "pos")


TOKENIZER = train_tokenizer(TEXTS)
LAST = np.array([0.0, 9.0])


def bert(labels: tuple[str, ...] = ("pos", "neg"), kind: Any = BertForSequenceClassification) -> Any:
    """A network that always says the last of its own columns, whose order is not the task's."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}
    model = kind(BertConfig(vocab_size=len(TOKENIZER), **sizes, **names))
    if kind is BertForSequenceClassification:
        with torch.no_grad():
            model.classifier.weight.zero_()
            model.classifier.bias.copy_(torch.from_numpy(LAST))
    return model


def loaded_again(folder: Path) -> Any:
    save_hf_teacher(bert(), TOKENIZER, folder, name="t")
    return BertForSequenceClassification.from_pretrained(folder)


TEACHERS: dict[str, Any] = {
    "a model and its tokenizer": lambda folder: (bert(), TOKENIZER),
    "a list of them": lambda folder: [(bert(), TOKENIZER), (bert(), TOKENIZER)],
    "a model from a folder with its tokenizer": loaded_again,
    "a pipeline of transformers": lambda folder: pipeline("text-classification", bert(), tokenizer=TOKENIZER),
    "a fitted classifier": lambda folder: bag_of_words(),
    "a function": lambda folder: lambda texts: np.tile(LAST[::-1], (len(texts), 1)),
    "by name": lambda folder: {"mine": (bert(), TOKENIZER), "yours": bag_of_words()},
    "a path": lambda folder: loaded_again(folder) and str(folder),
    "a mixture": lambda folder: [loaded_again(folder) and folder, bag_of_words(), (bert(), TOKENIZER)],
}
NAMES = {"a list of them": ("BertForSequenceClassification", "BertForSequenceClassification-2")}
NAMES |= {"by name": ("mine", "yours"), "a mixture": ("t", "LogisticRegression", "BertForSequenceClassification")}


@pytest.mark.parametrize("what", TEACHERS)
def test_a_teacher_is_what_people_have(what: str, tmp_path: Path) -> None:
    whole = load_task(FRAME)
    cache = build_cache(TEACHERS[what](tmp_path / "t"), whole, tmp_path / "cache")
    assert cache.teacher_names == NAMES.get(what, cache.teacher_names)
    answers = cache.rows(torch.arange(len(whole.table)))
    if "classifier" in what:
        assert (answers[:, 0].argmax(-1).numpy() == whole.table.labels).all()
    else:  # "neg" is the task's first class and the network's last column
        assert (answers[:, 0].argmax(-1) == 0).all()


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (bert(), r"the model alone, and it was loaded from nowhere; pass \(model, tokenizer\)"),
        ((bert(kind=BertModel), TOKENIZER), r"expected a \.\.\.ForSequenceClassification .* got BertModel"),
        ((bert(("LABEL_0", "LABEL_1")), TOKENIZER), r"generic names 'LABEL_0', 'LABEL_1'; set id2label"),
        ((bert(("good", "bad")), TOKENIZER), r"expected the classes 'neg', 'pos', but .* also has 'good', 'bad'"),
        ((bert(), "tokenizer"), "the model alone, and it was loaded from nowhere"),
        (
            bag_of_words([0, 1] * 30),
            r"generic names '0', '1'; .* SklearnTeacher\('LogisticRegression', model, label_nam",
        ),
        (LogisticRegression(), "expected a fitted classifier with predict_proba"),
        (LogisticRegression, "expected a fitted model, got the class 'LogisticRegression'"),
        (torch.nn.Linear(2, 2), "torch module 'Linear', .* pass a function from texts"),
        (lambda texts: np.zeros((len(texts), 3)), r"expected logits of shape \(60, 2\) from teacher 'callable'"),
        (lambda texts: [{"label": "pos"}] * len(texts), r"expected an array of logits \(B, C\) .* got list"),
        (7, "expected a teacher: a folder, .* got int"),
    ],
)
def test_what_a_teacher_lacks_is_told(teacher: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RlkdError, match=message):
        build_cache(teacher, load_task(FRAME), tmp_path / "cache")


@pytest.mark.parametrize("student", ["rlkd/tiny", "rlkd/mlp"])
def test_a_student_is_loaded_by_the_lines_that_say_how(student: str, tmp_path: Path, task: Task) -> None:
    whole = task if student == "rlkd/mlp" else load_task(FRAME)
    model, tokenizer = load_student(student, whole)
    save_hf_teacher(model, tokenizer, tmp_path / "s", name="s")
    first, *code = student_lines(tmp_path / "s", max_length=16)
    assert str(tmp_path / "s") in first
    assert ("import rlkd " in "".join(code)) == (student == "rlkd/mlp")
    space: dict[str, Any] = {}
    exec(textwrap.dedent("\n".join(code)), space)
    if student == "rlkd/mlp":
        values = torch.from_numpy(whole.table.vectors)
        assert torch.equal(space["student"](input_values=values).logits, model.eval()(input_values=values).logits)
    else:
        assert space["student"]("a good film " * 20)[0]["label"] in LABELS


OF_OUR_TYPES: dict[str, Any] = {
    "rlkd-bilstm": lambda: BiLstmForSequenceClassification(BiLstmConfig(vocab_size=9, embedding_size=4, hidden_size=4)),
    "rlkd-mlp": lambda: MlpForSequenceClassification(MlpConfig(input_size=3, hidden_size=4)),
    "rlkd-cnn": lambda: CnnForImageClassification(CnnConfig(filters=(2, 2), grid=1, hidden_size=4)),
    "rlkd-multi-task": lambda: MultiTaskForSequenceClassification(MultiTaskConfig({"a": LABELS[:2]}, small_encoder())),
    "rlkd-pair-bilstm": lambda: AutoModel.from_config(small_encoder()),
}


def small_encoder() -> PairBiLstmConfig:
    return PairBiLstmConfig(vocab_size=9, embedding_size=4, hidden_size=4)


LOADED = """
import sys
from pathlib import Path
{first}
before = set(sys.modules)
{second}
brought = {{"torch", "transformers.modeling_utils", "rlkd.models"}} & (set(sys.modules) - before)
assert not (brought and {second!r} == "import rlkd"), brought
from transformers import AutoConfig
assert "rlkd.models" not in sys.modules
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification
for folder in sorted(Path(sys.argv[1]).iterdir()):
    config = AutoConfig.from_pretrained(folder)
    name = config.architectures[0]
    kinds = AutoModelForSequenceClassification, AutoModelForImageClassification
    auto = next((kind for kind in kinds if name.endswith(kind.__name__.removeprefix("AutoModel"))), AutoModel)
    model = auto.from_pretrained(folder)
    assert (type(model).__name__, type(config).model_type) == (name, folder.name), (name, folder)
    assert type(AutoConfig.for_model(folder.name)) is type(config)
    print(folder.name, float(sum(parameter.detach().double().sum() for parameter in model.parameters())))
"""
ORDERS = {
    "before transformers": ("import rlkd", "import transformers"),
    "after the Auto classes": ("from transformers import AutoModelForSequenceClassification", "import rlkd"),
    "after transformers": ("import transformers", "import rlkd"),
}


@pytest.mark.parametrize("order", [*list(ORDERS)[:2], pytest.param("after transformers", marks=pytest.mark.slow)])
def test_transformers_loads_our_networks_where_rlkd_was_imported(order: str, tmp_path: Path) -> None:
    expected = {}
    for name, made in OF_OUR_TYPES.items():
        model = made()
        model.save_pretrained(tmp_path / name)
        expected[name] = float(sum(parameter.detach().double().sum() for parameter in model.parameters()))
    first, second = ORDERS[order]
    command = [sys.executable, "-W", "error", "-c", LOADED.format(first=first, second=second), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = {name: float(total) for name, total in (line.split() for line in run.stdout.splitlines())}
    assert found == pytest.approx(expected)


def test_all_our_model_types_are_known() -> None:
    ours = {name for name in CONFIG_MAPPING.keys() if name.startswith("rlkd-")}
    assert ours == set(OURS) == set(OF_OUR_TYPES)
    for name, path in OURS.items():
        assert f"{CONFIG_MAPPING[name].__module__}.{CONFIG_MAPPING[name].__name__}" == path


def test_import_rlkd_is_light() -> None:
    code = "import rlkd, sys; sys.exit(str({'torch', 'transformers', 'datasets', 'pandas'} & sys.modules.keys() or ''))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""


@pytest.mark.parametrize(("strength_students", "asked"), [(0, 4), (2, 10), (8, 34)])
def test_what_a_strength_costs_has_a_flag(strength_students: int, asked: int) -> None:
    distilled: list[tuple[str, int]] = []

    def losses(weighting: Any, trial: int) -> Any:
        distilled.append((weighting, trial))
        return np.random.default_rng(trial).random(50) + (0.1 if weighting else 0)  # harm at any strength but 0

    choice = choose(TrialStudents(losses), {"0": bool, "9": bool}, 2, strength_students=strength_students)
    assert len(distilled) == most_students(2, strength_students) == asked
    assert choice.strength == (0 if strength_students else 1)
    assert ("0.0" in choice.strength_losses) == bool(strength_students)
