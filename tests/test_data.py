import json
import re
import subprocess
import sys
import time
from collections import Counter

import datasets
import huggingface_hub
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rlkd.data import embedded
from rlkd.data.batching import LengthBucketSampler, bucketed_order, encode_inputs
from rlkd.data.embedded import LIBRARIES, digits, docstrings
from rlkd.data.loading import load_task
from rlkd.data.planted import planted, planted_logits
from rlkd.data.splitting import split_task
from rlkd.data.task import SPLITS, UNLABELLED, Table
from rlkd.errors import ConfigError, PolicyError, RlkdError, StudentError, TaskError, TeacherError
from rlkd.models.embedding import TextEmbedder
from rlkd.models.students import load_student
from rlkd.weighting import load_weighting

ROWS = [{"text": f"text {i} \U0001f600", "label": "abc"[i % 3], "domain": "xy"[i % 2]} for i in range(60)]


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(rows) if isinstance(rows, dict) else datasets.Dataset.from_list(rows)
    if path.suffix == ".parquet":
        table.to_parquet(str(path))
    elif path.suffix == ".csv":
        table.to_csv(str(path))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


@pytest.fixture(autouse=True, scope="module")
def _no_bars():
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def test_formats_give_the_same_task(tmp_path):
    sources = [write(tmp_path / f"[1]* {kind}/rows.{kind}", ROWS) for kind in ("parquet", "csv", "jsonl", "json")]
    write(tmp_path / "folder/train.csv", ROWS)
    tasks = [load_task(source) for source in [*sources, str(tmp_path / "folder")]]
    assert len({task.fingerprint for task in tasks}) == 1
    assert [task.name for task in tasks] == ["rows"] * 4 + ["folder"]
    assert tasks[0].label_names == ("a", "b", "c")
    assert tasks[0].domain_names == ("x", "y")


def test_texts_that_look_like_missing_values_or_numbers_stay_texts(tmp_path):
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(["NA", "null", "007", "", "None"] * 8)]
    for kind in ("csv", "jsonl"):
        assert set(load_task(write(tmp_path / f"rows.{kind}", rows)).table.texts) == {
            "NA",
            "null",
            "007",
            "",
            "None",
        }


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ("text_a", "text_b", {}),
        ("premise", "hypothesis", {}),
        ("u", "v", {"text_column": "u", "text_pair_column": "v"}),
    ],
)
def test_pairs(tmp_path, first, second, named):
    rows = [{first: f"a{i}", second: f"b{i}", "label": i % 2} for i in range(40)]
    table = load_task(write(tmp_path / "rows.jsonl", rows), **named).table
    assert all(b == a.replace("a", "b") for a, b in zip(table.texts, table.text_pairs, strict=True))


@pytest.mark.parametrize("missing", [None, -1, float("nan")])
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_unlabelled_rows_stay_in_train(tmp_path, missing, kind):
    rows = [{"text": f"t{i}", "label": missing if i % 4 == 3 else i % 2} for i in range(80)]
    task = load_task(write(tmp_path / f"rows.{kind}", rows))
    assert task.label_names == ("0", "1")
    assert (task.labels("train") == UNLABELLED).sum() == 20
    assert all((task.labels(split) != UNLABELLED).all() for split in SPLITS[1:])


def test_splits_are_disjoint_stratified_seeded_and_keep_rows_together():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2], [600, 300, 100]))
    table = Table(labels=labels, domains=labels * 2, texts=tuple(f"{i} {y}" for i, y in enumerate(labels)))
    task = split_task("t", table, "abc", seed=1)
    assert {split: len(ids) for split, ids in task.splits.items()} == {
        "train": 650,
        "probe": 100,
        "validation": 100,
        "test": 150,
    }
    for split in SPLITS:
        np.testing.assert_allclose(
            np.bincount(task.labels(split)) / len(task.splits[split]), [0.6, 0.3, 0.1], atol=0.01
        )
    assert len(set(task.table.texts)) == 1000
    assert [int(text.split()[1]) for text in task.table.texts] == task.table.labels.tolist()
    assert split_task("t", table, "abc", seed=1).fingerprint == task.fingerprint
    assert split_task("t", table, "abc", seed=2).fingerprint != task.fingerprint
    view = task.training_view()
    assert "test" not in view.splits
    assert view.table.texts == task.table.texts[:850]


def test_a_class_of_one_row_falls_back_to_unstratified_with_a_reason(caplog):
    labels = np.array([0] * 20 + [1] * 20 + [2])
    task = split_task("t", Table(labels=labels, domains=labels, texts=("x",) * 41), "abc")
    assert "without stratifying" in caplog.text
    assert len(task.table) == 41


def test_given_splits_are_kept_and_names_found(tmp_path):
    for split, size in {"train": 60, "dev": 9, "test": 12}.items():
        write(tmp_path / f"set/{split}.parquet", [{"text": f"{split} {i}", "label": i % 3} for i in range(size)])
    (tmp_path / "datasets.json").write_text(json.dumps({"set": {"labels": ["p", "q", "r"]}}))
    task = load_task(str(tmp_path / "set"))
    assert task.label_names == ("p", "q", "r")
    assert [len(task.splits[split]) for split in SPLITS] == [54, 6, 9, 12]
    for split, word in zip(SPLITS, ("train", "train", "dev", "test"), strict=True):
        assert all(task.table.texts[i].startswith(word) for i in task.splits[split])
    (tmp_path / "set/label_names.json").write_text('["k", "l", "m"]')
    assert load_task(str(tmp_path / "set")).label_names == ("k", "l", "m")
    assert load_task(str(tmp_path / "set"), label_names=["1", "2", "3"]).label_names == ("1", "2", "3")


def test_names_in_a_listing_are_those_of_the_usual_column_alone(tmp_path):
    rows = [{"text": f"t{i}", "label": i % 2, "topic": "abc"[i % 3]} for i in range(60)]
    write(tmp_path / "set/train.parquet", rows)
    (tmp_path / "datasets.json").write_text(json.dumps({"set": {"labels": ["no", "yes"]}}))
    assert load_task(str(tmp_path / "set")).label_names == ("no", "yes")
    assert load_task(str(tmp_path / "set"), label_column="topic").label_names == ("a", "b", "c")


def test_class_labels_give_their_names(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])})
    rows = {"text": [f"t{i}" for i in range(40)], "label": [i % 2 for i in range(40)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "rows.parquet"))
    assert load_task(str(tmp_path / "rows.parquet")).label_names == ("n", "p")


def test_hub_sets_are_loaded_by_id_and_config_and_hidden_test_labels_are_left_out(monkeypatch, caplog):
    def split(labels):
        return datasets.Dataset.from_list([{"sentence1": "s", "sentence2": "t", "label": y} for y in labels])

    asked = []

    def load_dataset(*names):
        asked.append(names)
        return {"train": split([0, 1] * 20), "validation": split([0, 1]), "test": split([-1] * 5)}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task("some-one/glue:rte")
    assert asked == [("some-one/glue", "rte")]
    assert task.name == "glue-rte"
    assert "test split" in caplog.text
    assert [len(task.splits[name]) for name in SPLITS] == [30, 4, 2, 6]


def unreachable(self, name, **others):
    raise OSError("no route")


def test_without_a_hub_only_local_copies_are_looked_at(monkeypatch):
    """A misspelt name is refused at once, not after the retries of the hub's client; and the setting is put back."""
    offline = []
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a: (offline.append(huggingface_hub.constants.HF_HUB_OFFLINE), load(*a))[1]
    )
    with pytest.raises(TaskError, match="'imbd' is not a file or folder, and the hub could not be reached"):
        load_task("imbd")
    assert offline == [True]
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("load", "error", "message"),
    [
        (load_weighting, PolicyError, "expected a policy folder or a hub id, got 'no-body/nothing'"),
        (lambda name: load_student(name, load_task("planted")), StudentError, "'no-body/nothing' could not be loaded"),
        (TextEmbedder, TeacherError, "expected an encoder with a tokenizer at 'no-body/nothing'"),
    ],
)
def test_without_a_hub_a_model_is_refused_at_once(load, error, message, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    started = time.monotonic()
    with pytest.raises(error, match=message):
        load("no-body/nothing")
    assert time.monotonic() - started < 5  # the client's retries take half a minute
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def numbered(labels):
    return [{"text": "t", "label": label} for label in labels]


def test_unlabelled_rows_beside_the_splits_join_train(tmp_path):
    labelled = {"text": [f"row {n}" for n in range(40)], "label": [n % 2 for n in range(40)], "domain": ["x"] * 40}
    write(tmp_path / "train.parquet", labelled)
    write(tmp_path / "unlabeled.parquet", {"domain": ["y", "x"], "text": ["bare", "naked"]})
    without, task = load_task(str(tmp_path)), load_task(str(tmp_path), unlabelled=True)
    train = task.splits["train"]
    assert len(without.table) == 40
    assert len(task.table) == 42
    assert len(train) - len(task.labelled_ids("train")) == 2
    bare = [task.table.texts[i] for i in train if task.table.labels[i] == UNLABELLED]
    assert bare == ["bare", "naked"]
    assert task.domain_names == ("x", "y")
    for source in ("docstrings", str(tmp_path / "train.parquet")):
        with pytest.raises(RlkdError, match="unlabelled rows"):
            load_task(source, unlabelled=True)
    (tmp_path / "unlabeled.parquet").unlink()
    with pytest.raises(RlkdError, match="one file of unlabelled rows"):
        load_task(str(tmp_path), unlabelled=True)


@pytest.mark.parametrize(
    ("files", "arguments", "came", "advice"),
    [
        ({"train.csv": ROWS}, {"source": "set/trian.csv"}, "trian.csv", "did you mean '.*train.csv'"),
        ({"train.csv": ROWS}, {"source": "sett/"}, "sett", "did you mean 'set'"),
        ({"other.csv": ROWS}, {}, "other.csv", "add that file"),
        ({"train.csv": ROWS, "train.jsonl": ROWS}, {}, "train.csv, train.jsonl", "keep one"),
        ({"train.csv": ROWS}, {"text_column": "body"}, "it has: text, label, domain", "name the column"),
        ({"train.csv": ROWS}, {"domain_column": "genre"}, "it has: text, label, domain", "name the column"),
        (
            {"train.csv": ROWS},
            {"label_names": ["a", "b"]},
            "out of range: 'c'",
            "fix the row or the label names",
        ),
        ({"train.csv": numbered([0, 1, 5] * 9)}, {"label_names": ["a", "b"]}, "out of range: 5", "fix"),
        ({"train.csv": numbered([0, 1, -2] * 9)}, {}, "out of range: -2", "fix"),
        ({"train.csv": numbered([0.5, 1.0] * 9)}, {}, "got float, int", "convert"),
        ({"train.csv": numbered([7, 10**9] * 9)}, {}, "got 1000000000", "renumber"),
        ({"train.csv": numbered(["a"] * 20)}, {}, "got ['a']", "check the label column"),
        ({"train.csv": numbered([0, 1])}, {}, "got 2", "add labelled rows"),
        (
            {"train.csv": ROWS, "test.csv": numbered(["a", "z"])},
            {},
            "has: text, label",
            "name",
        ),
        ({"train.csv": numbered("ab" * 9), "test.csv": numbered("az")}, {}, "'z'", "occur in train.*drop"),
        ({"train.csv": numbered([0, 2] * 9), "test.csv": numbered([0, 1])}, {}, "also has 1", "drop theirs"),
        (
            {"train.csv": numbered([0, 1] * 9), "test.csv": numbered([0, -1])},
            {},
            "row 1 has none",
            "carve it",
        ),
        (
            {"train.jsonl": [{"text": i, "label": i % 2} for i in range(9)]},
            {},
            "row 0 of train is 0",
            "fix the row",
        ),
        ({"train.jsonl": b""}, {}, "no rows", "repair"),
        ({"train.csv": b"text,label\n"}, {}, "no rows", "repair"),
        ({"train.parquet": {"text": [], "label": []}}, {}, "no rows", "repair"),
        ({"train.parquet": b"PAR"}, {}, "train.parquet", "repair"),
        ({"train.jsonl": b'{"text": "\\ud800", "label": 0}'}, {}, "train.jsonl", "repair"),
        ({"train.csv": ROWS, "label_names.json": b"{"}, {}, "label_names.json", "repair"),
        ({"train.txt": b"x"}, {"source": "set/train.txt"}, "train.txt", "convert"),
        ({}, {"source": "docstring"}, "no file or folder", "did you mean the embedded task 'docstrings'"),
        ({"train.csv": b"text,label\nx,1,2,3\ny,0\n"}, {}, "train.csv", "repair"),
        ({"train.csv": numbered(["", "p"] * 9)}, {"source": "set"}, "['p']", "check the label column"),
        ({"train.jsonl": numbered(["", "p"] * 9)}, {}, "['', 'p']", "check the label column"),
        ({}, {"source": "x" * 5000}, "too long", "check it"),
        ({}, {"source": "digits", "seed": -1}, "got -1", "choose another"),
        ({}, {"source": "planted", "seed": -1}, "got -1", "choose another"),
        ({}, {"source": ""}, "''", "name a file"),
        ({}, {"source": "a\0b"}, "x00", "name a file"),
        ({}, {"source": "\ud800"}, "ud800", "name a file"),
        ({}, {"source": "\U0001f600"}, "\U0001f600", "check the path"),
        ({}, {"source": "planted", "text_column": "body"}, "got others", "leave them out"),
        ({}, {"source": "planted", "test_fraction": 0.9}, "test=0.9", "lower"),
    ],
)
def test_bad_inputs_are_named(tmp_path, monkeypatch, files, arguments, came, advice):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    for name, rows in files.items():
        if isinstance(rows, bytes):
            (tmp_path / "set" / name).write_bytes(rows)
        else:
            write(tmp_path / "set" / name, rows)
    with pytest.raises(RlkdError) as error:
        load_task(**{"source": "set", **arguments})
    message = str(error.value)
    assert "\n" not in message
    assert came in message
    assert re.search(advice, message)


def text_task(texts, pairs=None):
    table = Table(
        labels=np.arange(len(texts)) % 2,
        domains=np.zeros(len(texts), dtype=np.int64),
        texts=tuple(texts),
        text_pairs=None if pairs is None else tuple(pairs),
    )
    task = split_task("t", table, ("n", "p"))
    return task, {text: i for i, text in enumerate(task.table.texts)}


def test_padding_is_to_the_longest_of_the_batch_and_equals_the_tokenizer(tokenizer):
    texts = [" ".join("abcdefgh"[: i % 8]) + f" x{i}" for i in range(40)]
    pairs = ["a b"] * 40
    for second in (None, pairs):
        task, _ = text_task(texts, second)
        inputs = encode_inputs(task, tokenizer, max_length=9)
        for ids in (np.array([3, 30, 7]), np.array([5]), np.arange(40)):
            ours = inputs.batch(ids)
            theirs = tokenizer(
                [task.table.texts[i] for i in ids],
                None if second is None else ["a b"] * len(ids),
                truncation=True,
                max_length=9,
                padding=True,
                return_tensors="pt",
            )
            assert set(ours) == set(theirs)
            assert all((ours[key] == theirs[key]).all() for key in theirs)
            assert ours["input_ids"].shape[1] == inputs.lengths[ids].max() <= 9


def test_odd_texts_are_encoded_and_left_padding_is_kept(tokenizer):
    texts = ["", "a\0b", "\U0001f600", "\ud800", *["a b"] * 36]
    task, index = text_task(texts)
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "[PAD]": 2}, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
    bare.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    batch = encode_inputs(task, bare, max_length=8).batch(np.array([index[""], index["a b"]]))
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"].tolist() == [[2, 0], [1, 0]]
    assert batch["attention_mask"].tolist() == [[0, 1], [1, 1]]


def test_tokenizers_that_do_not_fit_are_named(tokenizer):
    task, _ = text_task(["a"] * 40)
    with pytest.raises(ConfigError, match=r"at least 3.*got 2; raise"):
        encode_inputs(task, tokenizer, max_length=2)
    with pytest.raises(TaskError, match="needs a tokenizer, got None; give one"):
        encode_inputs(task, None, max_length=2)


@pytest.mark.parametrize(("rows", "batch_size"), [(0, 4), (3, 4), (64, 4), (1003, 16), (7, 1)])
def test_bucketed_order(rows, batch_size):
    lengths = np.random.default_rng(0).integers(1, 200, rows)
    order = bucketed_order(lengths, batch_size, seed=3, epoch=0)
    assert sorted(order) == list(range(rows))
    assert (order == bucketed_order(lengths, batch_size, seed=3, epoch=0)).all()
    if rows == 1003:
        full = lengths[order[:992]].reshape(-1, batch_size)
        assert np.ptp(full, axis=1).mean() < 0.2 * np.ptp(lengths)
        # Neither chunks nor epochs come sorted.
        assert (np.diff(full.mean(1)) < 0).any()
        assert (order != bucketed_order(lengths, batch_size, seed=3, epoch=1)).any()
        assert (order != bucketed_order(lengths, batch_size, seed=4, epoch=0)).any()


def test_sampler_follows_its_epoch():
    sampler = LengthBucketSampler(np.arange(50), batch_size=8, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    assert len(sampler) == 50
    sampler.set_epoch(1)
    assert list(sampler) == bucketed_order(np.arange(50), 8, 1, 1).tolist() != first


def test_digits_are_vectors():
    task = digits()
    assert task.table.vectors.shape == (1797, 64)
    assert task.table.vectors.max() == 1
    assert task.num_classes == 10
    batch = encode_inputs(task, None, 8).batch(np.array([4, 2]))
    assert (batch["input_values"].numpy() == task.table.vectors[[4, 2]]).all()


def test_planted_specialists_can_be_told_apart_without_labels():
    task = load_task("planted", seed=1, name="mine")
    assert task.name == "mine"
    logits = planted_logits(task, num_teachers=3)
    assert logits.shape == (3000, 3, 6)
    assert logits.dtype == np.float32
    known = task.table.domains[:, None] == np.arange(3)
    right = logits.argmax(-1) == task.table.labels[:, None]
    assert right[known].mean() > 0.95
    assert right[~known].mean() < 0.2
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    most = shares.max(-1)
    assert most[known].mean() > most[~known].mean() + 0.3
    assert (most.argmax(1) == task.table.domains).mean() > 0.8
    assert (most[known].min() < np.quantile(most[~known], 0.9)).all()
    view = task.training_view()
    assert (planted_logits(view) == logits[: len(view.table)]).all()
    same = planted_logits(task, num_teachers=4, mode="identical")
    assert (same == same[:, :1]).all()


@pytest.mark.parametrize("arguments", [{"num_domains": 7}, {"num_rows": 9}, {"num_classes": 1}])
def test_planted_settings_out_of_range_are_named(arguments):
    with pytest.raises(ConfigError, match=r"needs .* got .* change"):
        planted(**arguments)


def test_docstring_cache_is_written_read_and_rebuilt_when_damaged(tmp_path, monkeypatch, caplog):
    calls = []

    def build(names):
        calls.append(names)
        return {name: [f"{name} text {i}" for i in range(60)] for name in ("numpy", "scipy")}

    monkeypatch.setenv("RLKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_build_corpus", build)
    first = docstrings()
    assert docstrings().fingerprint == first.fingerprint
    assert len(calls) == 1
    (file,) = (tmp_path / "cache").iterdir()
    for damage in (
        "",
        "[]",
        '{"key": 1}',
        file.read_text()[:-9],
        file.read_text().replace('"numpy text 3"', "3"),
    ):
        file.write_text(damage)
        assert docstrings().fingerprint == first.fingerprint
    assert len(calls) == 6
    assert "built again" in caplog.text
    (tmp_path / "file").touch()
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path / "file"))
    assert docstrings().fingerprint == first.fingerprint
    assert "not cached" in caplog.text


def test_one_library_is_read_and_masked_without_being_imported():
    code = (
        "import sys; from rlkd.data import embedded as e; texts = e._library_texts('gymnasium'); "
        "assert len(texts) > 200; assert not {'gymnasium', 'torch', 'datasets'} & set(sys.modules); "
        "assert not any('gymnasium' in t.lower() for t in texts); assert any(e.MASK in t for t in texts)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_docstrings(tmp_path, monkeypatch):
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path))
    task = docstrings()
    assert task.label_names == tuple(sorted(LIBRARIES))
    counts = Counter(task.table.labels.tolist())
    assert 200 <= min(counts.values())
    assert max(counts.values()) <= embedded.MAX_ROWS_PER_CLASS
    assert len({text.casefold() for text in task.table.texts}) == len(task.table)
    names = re.compile(r"torch|numpy|scipy|sklearn|scikit.learn|pandas|sympy|networkx|gymnasium|matplotlib", re.I)
    assert not [text for text in task.table.texts if names.search(text)]
    assert all(30 <= len(text) <= 300 for text in task.table.texts)
