"""What new users tried and did not get: each with the right outcome."""

import re
from pathlib import Path
from typing import Any

import datasets
import joblib
import pandas as pd
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from rlkd.choosing import check_choice
from rlkd.data import load_task
from rlkd.data.task import Task
from rlkd.errors import RlkdError, TaskError
from rlkd.features import ObservationConfig
from rlkd.logit_cache import LogitCache
from rlkd.models import load_teachers
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
