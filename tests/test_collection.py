import dataclasses

import numpy as np
import pytest

from rlkd.data.collection import TaskCollection, keep_domains, keep_fraction, leave_domain_out
from rlkd.data.splitting import split_task
from rlkd.data.task import UNLABELLED, Table, Task
from rlkd.errors import ConfigError, TaskError, UnknownNameError


def text_task(name: str, rows: int = 60, classes: int = 2, pairs: bool = False) -> Task:
    """Two domains, labels in turn."""
    labels = np.arange(rows) % classes
    return split_task(
        name,
        Table(
            labels=labels,
            domains=np.arange(rows) // classes % 2,
            texts=tuple(f"{name} {i}" for i in range(rows)),
            text_pairs=tuple(f"pair {i}" for i in range(rows)) if pairs else None,
        ),
        [f"class {c}" for c in range(classes)],
        domain_names=["even", "odd"],
    )


@pytest.fixture(scope="module")
def collection() -> TaskCollection:
    return TaskCollection((text_task("a", 60), text_task("b", 90, 3, pairs=True)))


def test_a_joint_row_is_a_row_of_one_task(collection):
    joint = collection.joint
    assert joint.domain_names == ("a", "b")
    assert len(joint.table) == 150
    seen = {"a": [], "b": []}
    for split in ("train", "probe", "validation", "test"):
        for name in collection.names:
            ids = collection.joint_ids(name, split)
            task, rows = collection.locate(ids)
            assert task == name
            assert np.array_equal(rows, collection[name].splits[split])
            assert [joint.table.texts[i] for i in ids] == [collection[name].table.texts[i] for i in rows]
            assert np.array_equal(joint.table.labels[ids], collection[name].table.labels[rows])
            seen[name] += ids.tolist()
    assert sorted(seen["a"] + seen["b"]) == list(range(150))
    with pytest.raises(TaskError, match="one task, got a, b"):
        collection.locate(np.array([seen["a"][0], seen["b"][0]]))


def test_the_training_view_of_a_collection_is_the_head_of_its_joint_rows(collection):
    view = collection.training_view().joint
    assert view.table.texts == collection.joint.table.texts[: len(view.table)]
    assert "test" not in view.splits


def test_what_is_no_collection_is_refused(collection, task):
    for tasks, message in [
        ((), "got none"),
        ((collection["a"], collection["a"]), "a, a"),
        ((task,), "has vectors"),
        ((collection["a"], collection["b"].training_view()), "same splits"),
    ]:
        with pytest.raises(TaskError, match=message):
            TaskCollection(tasks)
    with pytest.raises(UnknownNameError, match="unknown task 'c'"):
        collection["c"]
    renamed = dataclasses.replace(collection["a"], name="c")
    assert TaskCollection((renamed,)).fingerprint != collection.only("a").fingerprint


def test_a_domain_is_left_out_of_every_split(collection):
    task = collection["b"]
    others, alone = leave_domain_out(task, "odd")
    assert set(others.table.domains) == {0}
    assert set(alone.table.domains) == {1}  # domains keep their ids
    assert sorted([*others.table.texts, *alone.table.texts]) == sorted(task.table.texts)
    for split, ids in task.splits.items():
        assert len(others.splits[split]) + len(alone.splits[split]) == len(ids)
    with pytest.raises(UnknownNameError, match="'seldom'"):
        keep_domains(task, ["seldom"])
    with pytest.raises(TaskError, match="no row of no domain"):
        keep_domains(task, [])


def test_a_fraction_keeps_the_shares_of_labels_and_domains():
    task = text_task("a", 1200, 3)
    train = task.splits["train"]
    half, tenth = keep_fraction(task, 0.5, seed=1), keep_fraction(task, 0.1, seed=1)
    for domain in (0, 1):
        for label in (0, 1, 2):
            rows, kept = (
                int(((t.table.domains[ids] == domain) & (t.table.labels[ids] == label)).sum())
                for t, ids in ((task, train), (tenth, tenth.splits["train"]))
            )
            assert kept == round(0.1 * rows)
    texts = [{t.table.texts[i] for i in t.splits["train"]} for t in (tenth, half, keep_fraction(task, 0.5, seed=2))]
    assert texts[0] < texts[1]
    assert texts[1] != texts[2]
    assert np.array_equal(half.labels("test"), task.labels("test"))
    assert keep_fraction(task, 1.0).fingerprint == task.fingerprint


def test_a_fraction_of_one_domain_leaves_the_others_whole_and_forgets_no_label():
    task = text_task("a", 300)
    labels = task.table.labels.copy()
    labels[:20] = UNLABELLED
    task = dataclasses.replace(task, table=dataclasses.replace(task.table, labels=labels))
    few = keep_fraction(task, 0.001, domains=["odd"])
    odd = few.table.domains[few.splits["train"]] == 1
    assert odd.sum() == 3  # one of each label, one without
    assert (~odd).sum() == (task.table.domains[task.splits["train"]] == 0).sum()
    for wrong in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="fraction"):
            keep_fraction(task, wrong)
