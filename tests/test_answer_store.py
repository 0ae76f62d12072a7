"""Answers of teachers that are kept by row: files of several processes, killed writers, damage, and who is asked."""

import json
import os
import pickle
import shutil
import signal
import threading
import time

import datasets
import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from test_plain_trainer import (  # noqa: F401 (fixtures)
    arguments,
    data,
    distilled,
    parameters,
    plain_arguments,
    renumbered_tokens,
    student,
    teachers,
    tokenizer,
)
from transformers import (
    BertConfig,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    Trainer,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from rlkd.errors import CacheError, ConfigError, OutputDirectoryError, TeacherError
from rlkd.logit_cache import LogitCache
from rlkd.logit_cache.answers import ENTRY, AnswerStore, KeyIndex
from rlkd.models import CallableTeacher
from rlkd.trainer import DistillationMixin, DistillationTrainer, GivenLogits
from rlkd.trainer.asking_teachers import FunctionTeacher, NetworkTeacher
from rlkd.trainer.remembering import store_folder
from rlkd.trainer.row_keys import keys_of_fields, keys_of_texts

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


# --- the files


def keys_of(rows):
    return keys_of_texts([f"row {row}" for row in rows])


def answers_of(rows, classes=3):
    return np.sin(np.outer(list(rows), np.arange(1, 1 + classes))).astype(np.float32)


def add(store, rows):
    store.add(keys_of(rows), answers_of(rows), np.ones(len(rows), dtype=np.int64))


def assert_has(store, rows):
    places = store.find(keys_of(rows))
    assert (places >= 0).all()
    assert len(rows) == 0 or np.array_equal(store.answers(places), answers_of(rows))


def test_answers_are_read_as_they_were_given_by_who_comes_later(tmp_path, monkeypatch):
    monkeypatch.setattr(KeyIndex, "MOST_NEW", 8)  # sorted again and again
    store, other = AnswerStore(tmp_path / "t", "t"), AnswerStore(tmp_path / "t", "t")
    assert not (tmp_path / "t").exists()  # nothing is made before there is something to keep
    for first in range(0, 300, 7):
        add(store, range(first, first + 7))
    for reader in (store, other, AnswerStore(tmp_path / "t", "t"), pickle.loads(pickle.dumps(store))):
        assert len(reader) == 301 or reader is other
        assert_has(reader, [300, 5, *range(200), 5])
        assert (reader.find(keys_of([301, 400])) == -1).all()


@needs_fork
def test_processes_at_once_lose_nothing_and_keep_a_row_once(tmp_path):
    def write(seed):
        store = AnswerStore(tmp_path / "t", "t")
        order = np.random.default_rng(seed).permutation(300)
        for start in range(0, 300, 4):
            add(store, order[start : start + 4].tolist())
        assert_has(store, range(300))

    children = [child_of(lambda seed=seed: write(seed)) for seed in range(3)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    store = AnswerStore(tmp_path / "t", "t")
    assert_has(store, range(300))
    assert len(store) == 300


@needs_fork
def test_a_killed_writer_spoils_nothing(tmp_path):
    def write():
        store = AnswerStore(tmp_path / "t", "t")
        for start in range(0, 10**6, 2):
            add(store, range(start, start + 2))

    child = child_of(write)
    time.sleep(0.15)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    store = AnswerStore(tmp_path / "t", "t")
    rows = len(store)
    assert_has(store, range(rows))
    add(store, range(rows + 9))
    assert_has(AnswerStore(tmp_path / "t", "t"), range(rows + 9))


def test_wherever_a_writer_stops_what_was_listed_is_whole(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    add(AnswerStore(whole, "t"), range(3))
    answers, rows = (whole / "answers.bin").read_bytes(), (whole / "rows.bin").read_bytes()
    for cut in [*range(0, len(answers), 5), *range(len(answers), len(answers) + len(rows) + 1, 7)]:
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(whole, broken)
        (broken / "answers.bin").write_bytes(answers[:cut])
        (broken / "rows.bin").write_bytes(rows[: max(cut - len(answers), 0)])
        store = AnswerStore(broken, "t")
        assert len(store) == max(cut - len(answers), 0) // ENTRY.itemsize
        assert_has(store, range(len(store)))
        add(store, [8, 9, 0])
        assert_has(AnswerStore(broken, "t"), [0, 8, 9])


def changed(name, place, value):
    def change(folder):
        content = bytearray((folder / name).read_bytes())
        content[place] ^= value
        (folder / name).write_bytes(content)

    return change


def with_header(**values):
    def change(folder):
        header = json.loads((folder / "store.json").read_text())
        (folder / "store.json").write_text(json.dumps(header | values))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("answers.bin", 17, 1), "damaged, row 1 is not what was written; delete it, and teachers are asked"),
        (changed("rows.bin", 3, 128), "damaged, row 0 is not what was written"),
        (changed("rows.bin", 56, 255), "damaged, row 1 is not what was written"),
        (changed("rows.bin", 63, 255), "damaged, row 1 is not what was written"),
        (lambda folder: os.truncate(folder / "answers.bin", 20), "damaged, row 1 is not what was written"),
        (lambda folder: (folder / "answers.bin").unlink(), "damaged, files are gone or shorter"),
        (lambda folder: (folder / "store.json").unlink(), "without a store.json of format 1; name another folder"),
        (lambda folder: (folder / "store.json").write_bytes(pickle.dumps({})), "without a store.json of format 1"),
        (with_header(format_version=2), "without a store.json of format 1"),
        (with_header(classes=0), "damaged, store.json is not"),
        (with_header(classes=1), "damaged, row"),
        (with_header(teacher="other"), "answers of teacher t in .*, got those of 'other'; name another folder"),
    ],
)
def test_what_is_damaged_or_of_others_is_refused(change, message, tmp_path):
    add(AnswerStore(tmp_path / "t", "t"), range(3))
    change(tmp_path / "t")
    with pytest.raises(CacheError, match=message):
        AnswerStore(tmp_path / "t", "t")


def test_what_changes_while_it_is_read_and_what_cannot_be_written_is_refused(tmp_path):
    store = AnswerStore(tmp_path / "t", "t")
    add(store, range(3))
    shutil.rmtree(tmp_path / "t")  # while it is read
    assert_has(store, range(3))
    for look in (lambda: store.find(keys_of([4])), lambda: add(store, [4])):
        with pytest.raises(CacheError, match="damaged, files are gone or shorter"):
            look()
    shutil.rmtree(tmp_path / "t")
    add(AnswerStore(tmp_path / "t", "t"), [7])
    with pytest.raises(CacheError, match="damaged, files are gone or shorter"):
        store.find(keys_of([4]))
    store = AnswerStore(tmp_path / "t", "t")
    add(store, range(3))
    with pytest.raises(CacheError, match="expected answers like those in"):
        store.add(keys_of([5]), answers_of([5], 4), np.ones(1, dtype=np.int64))
    (tmp_path / "file").touch()
    with pytest.raises(OutputDirectoryError, match="expected to write"):
        add(AnswerStore(tmp_path / "file" / "t", "t"), range(3))


# --- the keys


def test_a_row_has_one_key_whatever_it_is_padded_with_and_another_row_another():
    row = {"input_ids": [5, 6, 7], "token_type_ids": [0, 0, 1], "attention_mask": [1, 1, 1]}

    def padded(change=(), left=0, right=0, fill=0):
        fields = {**row, **dict(change)}
        return {
            name: torch.tensor([[fill * (name != "attention_mask")] * left + ids + [0] * right] * 2)
            for name, ids in fields.items()
        }

    key = keys_of_fields(padded())[0].tolist()
    for fields in (padded(right=4), padded(left=3, right=1, fill=9)):
        assert keys_of_fields(fields).tolist() == [key, key]
    pictures = torch.arange(6.0).reshape(2, 3)
    others = [
        keys_of_fields(padded({"input_ids": [5, 6, 8]})),
        keys_of_fields(padded({"token_type_ids": [0, 1, 1]})),
        keys_of_fields(padded({"attention_mask": [1, 1, 0]})),
        keys_of_fields({name: value for name, value in padded().items() if name != "token_type_ids"}),
        keys_of_fields({"input_ids": padded()["input_ids"]}),
        keys_of_fields({"input_ids": padded(right=1)["input_ids"]}),  # who knows no mask reads the padding
        keys_of_fields({"pixel_values": pictures}),
        keys_of_fields({"pixel_values": pictures.bfloat16()}),
        keys_of_texts(["a b", ("a", "b"), ("a ", "b"), "('a', 'b')", "\ud800", ""]),
    ]
    told = [tuple(one) for keys in others for one in keys.tolist()]
    assert tuple(key) not in told
    assert len(set(told)) == 6 + 4 + 6


# --- who is asked


@pytest.fixture
def asked(monkeypatch):
    """How many rows each teacher was asked about."""
    counts = {}

    def counting(kind):
        own = kind.logits

        def logits(self, read):
            answer = own(self, read)
            counts[self.name] = counts.get(self.name, 0) + len(answer)
            return answer

        monkeypatch.setattr(kind, "logits", logits)

    counting(NetworkTeacher)
    counting(FunctionTeacher)
    return counts


def mixed(data, tokenizer, teachers):
    """One that reads the student's batch, one with tokens of its own, one of texts."""
    other, renumbered = renumbered_tokens(tokenizer, teachers[1])
    estimator = make_pipeline(CountVectorizer(), LogisticRegression()).fit(data["text"][:], data["label"][:])
    return {"a": teachers[0], "b": (renumbered, other), "c": estimator}


def test_each_teacher_is_asked_about_a_row_once_in_all_epochs_and_runs(data, tokenizer, teachers, tmp_path, asked):
    """52 rows, of which 4 are the same; two epochs, and more of another run, whose sureness is measured as well."""
    rows = datasets.concatenate_datasets([data.select(range(48)), data.select(range(4))])
    given, epochs = mixed(data, tokenizer, teachers), {"max_steps": -1, "num_train_epochs": 2}
    live = distilled(tmp_path / "live", rows, tokenizer, given, **epochs)
    assert set(asked.values()) == {2 * 52}
    asked.clear()
    kept = distilled(tmp_path / "kept", rows, tokenizer, given, **epochs, cache=str(tmp_path / "answers"))
    assert asked == dict.fromkeys("abc", len(set(rows["text"])))
    # answers are those of the first epoch's batches: elsewhere other padding is rounded otherwise
    torch.testing.assert_close(parameters(kept), parameters(live), rtol=0, atol=1e-6)
    asked.clear()
    again = distilled(tmp_path / "again", rows, tokenizer, given, **epochs, cache=str(tmp_path / "answers"), seed=4)
    answers = str(tmp_path / "answers")
    sure = distilled(tmp_path / "sure", rows, tokenizer, given, weighting="policy:auto", cache=answers)
    sure.evaluate(data)
    assert asked == {}
    assert again.weight_record.counts.sum() == 2 * 52
    assert len(list((tmp_path / "answers").iterdir())) == 3


def test_what_is_read_is_what_was_asked_to_the_last_bit(data, tokenizer, teachers, tmp_path, asked):
    """A run with the same batches, live and from the store that another run filled with these."""
    runs = [
        distilled(tmp_path / name, data, tokenizer, teachers, **values)
        for name, values in [("live", {}), ("fill", {"cache": str(tmp_path / "answers")})]
    ]
    asked.clear()
    runs.append(distilled(tmp_path / "read", data, tokenizer, teachers, cache=str(tmp_path / "answers")))
    assert asked == {}
    assert torch.equal(parameters(runs[0]), parameters(runs[1]))
    assert torch.equal(parameters(runs[0]), parameters(runs[2]))


def test_other_teachers_and_other_tokens_are_asked_themselves(data, tokenizer, teachers, tmp_path, asked):
    kept = {"cache": str(tmp_path), "max_steps": 7}
    distilled(tmp_path, data, tokenizer, teachers[:1], **kept)
    distilled(tmp_path, data, tokenizer, {"renamed": teachers[0]}, **kept)
    assert set(asked) == {"BertForSequenceClassification"}
    asked.clear()
    distilled(tmp_path, data, tokenizer, {"other": teachers[1]}, **kept)
    cut = data.map(lambda row: {"input_ids": [*row["input_ids"][:-1], 5]})
    distilled(tmp_path, cut, tokenizer, {"cut": teachers[0]}, **kept)
    assert asked == {"other": DISTINCT, "cut": DISTINCT}
    other, renumbered = renumbered_tokens(tokenizer, teachers[1])
    for longest, rows in ((40, DISTINCT), (40, 0), (3, DISTINCT)):  # texts that are cut elsewhere are others
        asked.clear()
        distilled(tmp_path, data, tokenizer, {"own": (renumbered, other)}, **kept, max_length=longest)
        assert asked.get("own", 0) == rows


DISTINCT = 50
"""Of the 52 rows."""


@needs_fork
def test_a_killed_run_goes_on_with_what_it_had(data, tokenizer, teachers, tmp_path, asked, monkeypatch):
    own = NetworkTeacher.logits

    def killed(self, read):
        if asked.get("b", 0) >= 24:
            os.kill(os.getpid(), signal.SIGKILL)
        return own(self, read)

    given = dict(zip("ab", teachers, strict=False))
    run = {"cache": str(tmp_path / "answers"), "max_steps": 7}
    with monkeypatch.context() as patch:
        patch.setattr(NetworkTeacher, "logits", killed)
        child = child_of(lambda: distilled(tmp_path / "killed", data, tokenizer, given, **run))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    had = (tmp_path / "answers").glob("*/rows.bin")
    (rows,) = {path.stat().st_size // ENTRY.itemsize for path in had}
    assert 24 <= rows < 40
    distilled(tmp_path / "again", data, tokenizer, given, **run)
    assert asked == dict.fromkeys("ab", DISTINCT - rows)


def test_workers_streams_and_trainers_of_ones_own_read_it_too(data, tokenizer, teachers, tmp_path, asked, monkeypatch):
    class Mine(DistillationMixin, Trainer):
        pass

    monkeypatch.setenv("RLKD_CACHE", str(tmp_path))
    given = mixed(data, tokenizer, teachers)
    kept = {"cache": "auto", "max_steps": 7}
    distilled(tmp_path / "workers", data, tokenizer, given, **kept, dataloader_num_workers=2)
    assert asked == dict.fromkeys("abc", DISTINCT)
    asked.clear()
    distilled(tmp_path / "stream", data.to_iterable_dataset(), tokenizer, given, **kept | {"max_steps": 14})
    mine = Mine(
        model=student(tokenizer),
        args=plain_arguments(tmp_path / "mine"),
        train_dataset=data,
        processing_class=tokenizer,
        teachers=given,
        weighting="uniform",
        cache="auto",
    )
    mine.train()
    assert asked == {}
    assert {path.name for path in tmp_path.iterdir()} == {"workers", "stream", "mine", "answers"}
    monkeypatch.delenv("RLKD_CACHE")
    assert store_folder("auto").parts[-3:] == (".cache", "rlkd", "answers")


def test_rows_that_are_others_in_every_epoch_are_told_once(data, tokenizer, teachers, tmp_path, caplog):
    generator = np.random.default_rng(0)

    def collate(rows):
        batch = tokenizer.pad([{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows])
        changed = [[5, *generator.integers(3, 12, 7)] for _ in rows] if augmented else batch["input_ids"]
        mask = np.ones((len(rows), 8), dtype=np.int64) if augmented else batch["attention_mask"]
        labels = torch.tensor([row["label"] for row in rows])
        return {"input_ids": torch.tensor(np.array(changed)), "attention_mask": torch.tensor(mask), "labels": labels}

    for augmented in (False, True):
        caplog.clear()
        DistillationTrainer(
            student(tokenizer),
            arguments(tmp_path, max_steps=-1, num_train_epochs=4),
            train_dataset=data,
            data_collator=collate,
            teachers=teachers[:1],
            weighting="uniform",
            cache=tmp_path / "answers",
        ).train()
        told = [one.getMessage() for one in caplog.records if "augmented at random" in one.getMessage()]
        assert len(told) == augmented
    assert told[0].startswith("teachers were asked about 52 of the 52 rows of an epoch that was not the first")


def test_tokens_are_kept_row_by_row(tmp_path, asked):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

    def made():
        torch.manual_seed(len(asked))
        return BertForTokenClassification(BertConfig(vocab_size=11, num_labels=4, **sizes, **quiet))

    rows = []
    for i in range(12):
        ids = [1 + (i * j) % 9 for j in range(3 + i % 5)]
        labels = [-100 if (i + j) % 3 == 0 else j % 4 for j in range(len(ids))]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})

    def collate(batch):
        longest, fill = max(len(row["labels"]) for row in batch), {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {n: torch.tensor([r[n] + [v] * (longest - len(r[n])) for r in batch]) for n, v in fill.items()}

    runs = []
    teacher = made()
    for kept in (None, tmp_path / "answers", tmp_path / "answers"):
        torch.manual_seed(7)
        trainer = DistillationTrainer(
            made(),
            arguments(tmp_path, max_steps=9, per_device_train_batch_size=4),
            train_dataset=rows,
            data_collator=collate,
            teachers={"t": teacher},
            weighting="uniform",
            cache=kept,
        )
        asked.clear()
        trainer.train()
        runs.append((parameters(trainer), asked.get("t", 0)))
        asked.clear()
    distinct = len({tuple(row["input_ids"]) for row in rows})
    assert [count for _, count in runs] == [36, distinct, 0]
    for kept, _ in runs[1:]:
        torch.testing.assert_close(kept, runs[0][0], rtol=0, atol=1e-6)


def test_what_cannot_be_kept_is_refused_by_name(data, tokenizer, teachers, tmp_path):
    lock = threading.Lock()

    def unreadable(texts):
        return lock

    arrays = [np.zeros((52, 3), dtype=np.float32)]
    given = {"cache": str(tmp_path / "answers"), "max_steps": 1}
    with pytest.raises(TeacherError, match="'unreadable' that cannot be told; give the function an attribute"):
        distilled(tmp_path, data, tokenizer, [unreadable], **given)
    with pytest.raises(ConfigError, match="these teachers are not asked"):
        distilled(tmp_path, data, tokenizer, LogitCache(arrays, ["a"]), **given)
    with pytest.raises(TeacherError, match="expected finite logits of 8 rows from teacher 'sick'"):
        distilled(tmp_path, data, tokenizer, {"sick": lambda texts: torch.full((len(texts), 3), torch.nan)}, **given)
    assert not (tmp_path / "answers").exists()
    causal = GPT2LMHeadModel(GPT2Config(vocab_size=1000, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(ConfigError, match="all 1000 logits of every token of causal teachers, 1 MB for a"):
        DistillationTrainer(causal, arguments(tmp_path, cache="auto"), train_dataset=data, teachers=[causal])


class Scaled(torch.nn.Module):
    """What a module answers is not told by its weights alone."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits * self.factor


def test_teachers_are_told_apart_by_what_decides_their_answers(data, tokenizer, teachers, tmp_path, asked):
    """Estimators behind one function of ours, modules of one's own, functions by content or by what they are called."""
    texts, labels = data["text"][:], np.array(data["label"][:])
    lines = iter(range(1000))

    def counting(texts):
        return torch.tensor([[0.0, next(lines), 1.0] for _ in texts])

    def length(factor):
        return lambda texts: torch.tensor([[factor * len(text), 0.0, 0.0] for text in texts])

    def estimator(turn):
        return make_pipeline(CountVectorizer(), LogisticRegression()).fit(texts, (labels + turn) % 3)

    made = [
        lambda version: {"estimator": estimator(version)},
        lambda version: {"module": Scaled(teachers[0], 1.0 + version)},
        lambda version: {"function": length(1.0 + version)},
        lambda version: [CallableTeacher("named", counting, ("earth", "fire", "sea"), identity=f"counting {version}")],
    ]
    for make in made:
        for version, rows in ((0, DISTINCT), (0, 0), (1, DISTINCT)):
            asked.clear()
            distilled(tmp_path, data, tokenizer, make(version), cache=str(tmp_path / "answers"), max_steps=7)
            assert sum(asked.values()) == rows
    counting.identity = "counting 1"  # as a function may say itself
    asked.clear()
    distilled(tmp_path, data, tokenizer, [counting], cache=str(tmp_path / "answers"), max_steps=7)
    assert asked == {}


def test_rows_are_what_a_collator_makes_of_them(data, tokenizer, teachers, tmp_path, asked):
    """Where the collator reads the texts, rows of the data have nothing that a network reads."""

    def collate(rows):
        batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["label"] for row in rows])}

    trainer = DistillationTrainer(
        student(tokenizer),
        arguments(tmp_path, max_steps=7, remove_unused_columns=False),
        train_dataset=data.select_columns(["text", "label"]).to_list(),
        data_collator=collate,
        teachers={"t": teachers[0]},
        weighting="uniform",
        cache=str(tmp_path / "answers"),
    )
    trainer.train()
    assert asked == {"t": DISTINCT}
    live = distilled(tmp_path, data, tokenizer, teachers[:1], max_steps=7)
    torch.testing.assert_close(parameters(trainer), parameters(live), rtol=0, atol=1e-6)


# --- teachers that are not asked


def test_logits_in_a_column_are_taken_as_they_are(data, tokenizer, teachers, tmp_path):
    live = distilled(tmp_path, data, tokenizer, teachers)
    fields = tokenizer(data["text"][:], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = torch.stack([one(**fields).logits for one in teachers], 1)
    rows = data.add_column("teacher_logits", logits.tolist())
    given = distilled(tmp_path, rows, tokenizer, GivenLogits("teacher_logits", ["a", "b", "c"], 3))
    assert given.teachers.names == ("a", "b", "c")
    torch.testing.assert_close(parameters(given), parameters(live), rtol=0, atol=1e-5)
    with pytest.raises(TeacherError, match="teachers read the column 'logits', the training data has"):
        distilled(tmp_path, rows, tokenizer, GivenLogits("logits", ["a", "b", "c"], 3))
    with pytest.raises(TeacherError, match="expected 2 teachers by 3 classes in column 'teacher_logits', got"):
        distilled(tmp_path, rows, tokenizer, GivenLogits("teacher_logits", ["a", "b"], 3))


def test_rows_without_labels_are_predicted_by_a_student_that_reads_nothing_else(tmp_path):
    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = PreTrainedConfig(num_labels=3)
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, x):
            return SequenceClassifierOutput(logits=self.layer(x))

    rows = [{"x": np.full(4, row, dtype=np.float32)} for row in range(9)]
    given = {"train_dataset": rows, "teachers": [Linear()], "weighting": "uniform", "cache": tmp_path / "answers"}
    trainer = DistillationTrainer(Linear(), arguments(tmp_path, max_steps=1), **given)
    trainer.train()
    assert trainer.predict(rows).predictions.shape == (9, 3)


def child_of(work):
    """A process that does some work, by its number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child
