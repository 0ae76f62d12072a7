"""Teachers that are asked about a row once: in this run, in a later one, after a kill, by two processes at once."""

import copy
import os
import signal
import subprocess
import sys
import time

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
    renumbered_tokens,
    student,
    teachers,
    tokenizer,
)

from rlkd.errors import CacheError, ConfigError, TeacherError
from rlkd.logit_cache import LogitCache
from rlkd.logit_cache.answers import AnswerStore, fingerprint
from rlkd.trainer import DistillationTrainer, GivenLogits


def remembered(folder, data, tokenizer, teachers, cache, **values):
    trainer = DistillationTrainer(
        student(tokenizer),
        arguments(folder, **values),
        train_dataset=data,
        processing_class=tokenizer,
        teachers=teachers,
        weighting="uniform",
        cache=cache,
    )
    trainer.train()
    return trainer


class Counted(torch.nn.Module):
    """Counts the rows that a model is asked about."""

    def __init__(self, model):
        super().__init__()
        self.model, self.asked = model, 0

    def forward(self, input_ids, attention_mask=None):
        self.asked += len(input_ids)
        return self.model(input_ids=input_ids, attention_mask=attention_mask)


def test_a_row_is_asked_about_once_whatever_run_meets_it(data, tokenizer, teachers, tmp_path):
    live = distilled(tmp_path, data, tokenizer, teachers, max_steps=14)  # two epochs of seven batches
    asked = []
    for run in range(2):
        counted = [copy.deepcopy(one) for one in teachers]
        count = {"rows": 0}
        for one in counted:
            one.register_forward_hook(lambda module, read, said, count=count: count.update(rows=count["rows"] + 1))
        kept = remembered(tmp_path / str(run), data, tokenizer, counted, tmp_path / "kept", max_steps=14)
        torch.testing.assert_close(parameters(kept), parameters(live), rtol=0, atol=1e-5)  # padding rounds
        asked.append(count["rows"])
    assert asked == [3 * 7, 0]


def test_every_teacher_is_told_apart_and_what_it_reads(data, tokenizer, teachers, tmp_path):
    """Estimators and functions of texts, another tokenizer, other weights: each has a store of its own."""
    estimator = make_pipeline(CountVectorizer(), LogisticRegression()).fit(data["text"][:], data["label"][:])
    other, renumbered = renumbered_tokens(tokenizer, teachers[0])
    asked = []

    def function(texts):
        asked.extend(texts)
        return torch.tensor([[float(len(text)), 0.0, 1.0] for text in texts])

    function.identity = "lengths 1"
    given = {"a": (renumbered, other), "b": estimator, "c": function, "d": teachers[1]}
    first = remembered(tmp_path / "1", data, tokenizer, given, tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 4
    rows = len(asked)
    again = remembered(tmp_path / "2", data, tokenizer, given, tmp_path / "kept")
    assert len(asked) == rows
    assert torch.equal(parameters(first), parameters(again))
    live = distilled(tmp_path / "3", data, tokenizer, given)
    torch.testing.assert_close(parameters(first), parameters(live), rtol=0, atol=1e-5)
    function.identity = "lengths 2"
    remembered(tmp_path / "4", data, tokenizer, given, tmp_path / "kept", max_steps=1)
    assert len(list((tmp_path / "kept").iterdir())) == 5


def test_a_stream_is_remembered_too(data, tokenizer, teachers, tmp_path):
    streamed = data.to_iterable_dataset()
    first = remembered(tmp_path / "1", streamed, tokenizer, teachers, tmp_path / "kept")
    counted = copy.deepcopy(teachers)
    for one in counted:
        one.forward = None  # nobody may be asked
    again = remembered(tmp_path / "2", streamed, tokenizer, counted, tmp_path / "kept")
    assert torch.equal(parameters(first), parameters(again))


def test_auto_is_one_folder_of_the_user(data, tokenizer, teachers, tmp_path, monkeypatch):
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path / "home"))
    remembered(tmp_path / "run", data, tokenizer, teachers, "auto", max_steps=1)
    assert len(list((tmp_path / "home" / "answers").glob("*/answers-*.bin"))) == 3
    args = arguments(tmp_path, cache="auto", max_steps=1)
    trainer = DistillationTrainer(
        student(tokenizer), args, train_dataset=data, processing_class=tokenizer, teachers=teachers
    )
    assert {len(store) for store in trainer.teachers._stores.values()} == {8}


def test_padding_and_labels_are_no_part_of_a_row_and_everything_else_is():
    row = {"input_ids": [1, 2], "attention_mask": [1, 1], "label": 0}
    same = {"attention_mask": np.array([True, True]), "input_ids": torch.tensor([1, 2]), "labels": 2}
    assert fingerprint(row) == fingerprint(same)
    others = [
        {**row, "input_ids": [2, 1]},
        {**row, "more": [1]},
        {"input_ids": [1, 2]},
        {**row, "input_ids": [1.0, 2.0]},
    ]
    texts = ["ab", ("a", "b"), ("ab", ""), ("", "ab"), "ab ", "ab\x01"]
    found = [fingerprint(one) for one in (row, *others, *texts)]
    assert len(set(found)) == len(found)


WRITER = """
import sys, numpy as np, torch
from pathlib import Path
from rlkd.logit_cache.answers import AnswerStore, fingerprint
folder, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = AnswerStore(Path(folder), "teacher")
print("begun", flush=True)
for start in range(first, last, 4):
    keys = np.array([fingerprint(str(n)) for n in range(start, min(start + 4, last))])
    keys = keys[~store.known(keys)]
    if len(keys):
        store.add(keys, torch.arange(start, start + len(keys))[:, None].float().repeat(1, 3))
print("done", flush=True)
"""


def writer(folder, first, last):
    command = [sys.executable, "-c", WRITER, str(folder), str(first), str(last)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_processes_share_a_store_and_a_killed_one_loses_nothing_that_it_kept(tmp_path):
    both = [writer(tmp_path, 0, 400), writer(tmp_path, 200, 600)]
    killed = writer(tmp_path, 600, 10**7)
    assert killed.stdout.readline() == "begun\n"
    while not (found := len(AnswerStore(tmp_path, "teacher"))) > 600:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    for process in both:
        assert process.communicate()[0] == "begun\ndone\n"
    store = AnswerStore(tmp_path, "teacher")
    assert len(store) >= found
    keys = np.array([fingerprint(str(n)) for n in range(600)])
    assert store.known(keys).all()
    assert store.get(keys)[:, 1].tolist() == [float(n) for n in range(600)]


def test_a_torn_tail_is_left_out_and_damage_is_told(tmp_path):
    store = AnswerStore(tmp_path, "teacher")
    keys = np.array([fingerprint(str(n)) for n in range(5)])
    store.add(keys, torch.arange(15.0).view(5, 3))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    torn = AnswerStore(tmp_path, "teacher")
    assert torn.known(keys).tolist() == [True] * 4 + [False]
    assert torch.equal(torn.get(keys[:4]), torch.arange(12.0).view(4, 3))
    torn.add(keys[4:], torch.tensor([[12.0, 13.0, 14.0]]))
    assert torch.equal(AnswerStore(tmp_path, "teacher").get(keys), torch.arange(15.0).view(5, 3))
    path.write_bytes(whole[:60] + b"x" + whole[61:])
    with pytest.raises(CacheError, match="is damaged: its checksums differ; remove it"):
        AnswerStore(tmp_path, "teacher")
    path.write_bytes(whole)
    with pytest.raises(CacheError, match="holds answers of another teacher"):
        AnswerStore(tmp_path, "another")
    path.write_bytes(b"PK" + whole)
    with pytest.raises(CacheError, match=r"expected answers of a teacher in .*, got another file"):
        AnswerStore(tmp_path, "teacher")
    path.write_bytes(whole[:5])  # of a process that was killed at once
    assert len(AnswerStore(tmp_path, "teacher")) == 1


def test_what_cannot_be_kept_is_refused(data, tokenizer, teachers, tmp_path):
    class Opaque:
        __slots__ = ("handle",)

        def __init__(self):
            self.handle = open(os.devnull)

        def __call__(self, texts):
            return torch.zeros(len(texts), 3)

    opaque = Opaque()
    with pytest.raises(TeacherError, match="that cannot be told; give the function an attribute identity"):
        remembered(tmp_path, data, tokenizer, [opaque], tmp_path / "kept")
    opaque.handle.close()
    arrays = [np.zeros((52, 3), dtype=np.float32)]
    with pytest.raises(ConfigError, match="cache would be ignored, got 'auto': these teachers are not asked"):
        remembered(tmp_path, data, tokenizer, LogitCache(arrays, ["a"]), "auto")
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"expected to keep answers in .*; name another folder with cache="):
        remembered(tmp_path, data, tokenizer, teachers, tmp_path / "file")


def test_logits_in_a_column_teach(data, tokenizer, teachers, tmp_path):
    fields = tokenizer(data["text"][:], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = torch.stack([one(**fields).logits for one in teachers], 1)
    column = data.add_column("teacher_logits", logits.tolist())
    given = distilled(tmp_path, column, tokenizer, GivenLogits("teacher_logits", ["a", "b", "c"], 3))
    torch.testing.assert_close(
        parameters(given), parameters(distilled(tmp_path, data, tokenizer, teachers)), rtol=0, atol=1e-5
    )
