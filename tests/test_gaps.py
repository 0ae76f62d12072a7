"""Caches with gaps: who was not asked is not read, whom nobody was asked about is taught by the label or left out."""

import copy
import dataclasses
import json
import logging
from functools import partial

import numpy as np
import pytest
import torch
from test_by_row import asked_once
from test_kinds import KINDS, rows_of, trainer_of

from rlkd.agents import train_policy
from rlkd.data.subset import keep_rows
from rlkd.data.task import UNLABELLED
from rlkd.errors import CacheError, TaskError, TeacherError, WeightingError
from rlkd.features import ObservationConfig
from rlkd.logit_cache import (
    LogitCache,
    answered_by_all,
    answered_ids,
    build_cache,
    load_cache,
    open_cache,
    read_state,
    refuse_gaps,
    taught_rows,
    write_gapped_cache,
)
from rlkd.logit_cache.held import HeldStates, read_all
from rlkd.models import ArrayTeacher
from rlkd.settings import StudentSettings
from rlkd.trainer import make_trainer
from rlkd.trainer.labelled import labelled_answers
from rlkd.weighting import Evidence, Policy, build_weighting, mixture, named_weighting, weighting_names
from rlkd.weighting.absent import learn
from rlkd.weighting.by_row import RowWeights
from rlkd.weighting.teacher_sets import TeacherSets
from rlkd.workflow.comparing import answerable

TIED = tuple(name for name in ("rl_kd", "mtkd_rl") if name in weighting_names())
SETTINGS = StudentSettings(student="rlkd/mlp", max_steps=30, batch_size=20)


def logits_of(cache):
    return cache.rows(torch.arange(len(cache))).numpy()


def some_answers(task, share=0.5, nobody=0.3, seed=0):
    """Who answered about what: about some rows nobody."""
    rng = np.random.default_rng(seed)
    answered = rng.random((len(task.table), 3)) < share
    answered[np.arange(len(answered)), rng.integers(3, size=len(answered))] = True
    answered[rng.random(len(answered)) < nobody] = False
    return answered


def with_gaps(cache, answered, garbage=None):
    """The same cache with gaps, in which something stands."""
    arrays = [cache.rows(torch.arange(len(cache)))[:, k].numpy().copy() for k in range(3)]
    if garbage is not None:
        for k, array in enumerate(arrays):
            array[~answered[:, k]] = garbage
    return LogitCache(arrays, cache.teacher_names, knowledge=cache.knowledge, mask=answered)


@pytest.fixture(scope="module")
def answered(task):
    return some_answers(task)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy")
    Policy.create(ObservationConfig(), training={}, seed=3).save_pretrained(path)
    return path


# --- every weighting


def made(name, task, cache, folder):
    """A weighting of the registry; those tied to their teachers untrained."""
    if name in TIED:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return named_weighting(name)(["a", "b", "c"], task.num_classes)
    arguments = {"fixed": "0.5,0.3,0.2", **dict.fromkeys(("policy", "policy_mean", "policy_shuffle"), folder)}
    return build_weighting(f"{name}:{arguments[name]}" if name in arguments else name, task, cache)


def seen(task, source, ids):
    state = read_state(task, source, torch.from_numpy(ids))
    student = torch.randn(len(ids), task.num_classes, generator=torch.Generator().manual_seed(1))
    return dataclasses.replace(state, student_logits=student, progress=0.5)


@pytest.mark.parametrize("name", [name for name in weighting_names() if name != "gate"])
def test_every_weighting_weighs_who_answered_alone(name, task, cache, answered, folder):
    """Fitted and asked on gaps: garbage there changes nothing, and rows that nobody answered change no other's."""
    ids = task.splits["train"][:90]
    found = []
    for garbage in (None, np.nan, 1e30):
        source = with_gaps(cache, answered, garbage)
        weighting, state = made(name, task, source, folder), seen(task, source, ids)
        taught = mixture(weighting, state)
        if hasattr(weighting, "update"):
            learn(weighting, state)
            taught = mixture(weighting, state)
        found.append((taught, weighting))
    (taught, weighting), *others = found
    somebody = torch.from_numpy(answered[ids].any(1))
    assert 0 < somebody.sum() < len(ids)
    assert taught.weights.isfinite().all()
    assert taught.teacher_logits.isfinite().all()
    assert (taught.weights[torch.from_numpy(~answered[ids])] == 0).all()
    alone = torch.ones(len(ids), dtype=torch.bool) & (torch.tensor(name == "labels") | torch.tensor(name == "rl_kd"))
    total = taught.weights.sum(-1)
    assert (((total - 1).abs() < 1e-5) | ~somebody | (alone & (total == 0))).all()
    for other, _ in others:
        assert torch.equal(other.weights, taught.weights)
        assert torch.equal(other.teacher_logits, taught.teacher_logits)
    fewer = mixture(weighting, seen(task, with_gaps(cache, answered), ids)).weights[somebody]
    state = seen(task, with_gaps(cache, answered), ids)
    cut = {n: getattr(state, n)[somebody] for n in state.available() if n != "progress"}
    assert torch.equal(mixture(weighting, dataclasses.replace(state, **cut)).weights, fewer)


def test_logits_of_absent_teachers_are_not_read_wherever_the_mask_is_from(task, cache):
    state = seen(task, cache, task.splits["train"][:40])
    mask = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[:5] = False
    found = []
    for garbage in (0.0, torch.nan):
        logits = torch.where(mask.unsqueeze(-1), state.teacher_logits, garbage)
        asked = dataclasses.replace(state, teacher_logits=logits, teacher_mask=mask)
        fields = {name: getattr(asked, name) for name in asked.available() - {"progress"}}
        asked = dataclasses.replace(asked, **{name: value.unflatten(0, (8, 5)) for name, value in fields.items()})
        found.append(mixture(build_weighting("policy:auto", task, cache), asked))
    assert found[0].weights.shape == (8, 5, 3)
    assert torch.equal(found[0].weights, found[1].weights)
    assert torch.equal(found[0].teacher_logits, found[1].teacher_logits)
    nobody = mixture(build_weighting("policy:auto", task, cache), dataclasses.replace(state, teacher_mask=mask & False))
    assert (nobody.weights == 0).all()


def test_a_row_that_nothing_teaches_is_refused_by_name(task, cache, answered):
    unlabelled = dataclasses.replace(task, table=dataclasses.replace(task.table, labels=task.table.labels * 0 - 1))
    source, ids = with_gaps(cache, answered), task.splits["train"][:50]
    row = ids[~answered[ids].any(1)][0]
    message = rf"neither for instance {row} \({(~answered[ids].any(1)).sum()} of 50 rows.*taught_rows"
    for make in (lambda w, s: mixture(w, s), lambda w, s: asked_once(w, unlabelled, source, ids)):
        with pytest.raises(TeacherError, match=message):
            make(build_weighting("entropy", task, cache), seen(unlabelled, source, ids))


def test_weights_by_row_are_asked_once_and_know_the_gaps(task, cache, answered, monkeypatch):
    source, ids = with_gaps(cache, answered, np.nan), task.splits["train"]
    weighting = build_weighting("policy:auto", task, source)
    kept = asked_once(weighting, task, source, ids)
    assert isinstance(kept, RowWeights)
    state = read_state(task, source, torch.from_numpy(ids[30:70]))
    expected = mixture(weighting, state).weights
    asked = []
    real = Policy.weights
    monkeypatch.setattr(Policy, "weights", lambda self, state: asked.append(1) or real(self, state))
    assert torch.equal(mixture(kept, state).weights, expected)
    assert not asked
    fewer = state.teacher_mask & (torch.arange(3) != 1)
    assert (mixture(kept, dataclasses.replace(state, teacher_mask=fewer)).weights[:, 1] == 0).all()
    assert asked


# --- students


def student_of(task, cache, name, folder, **changed):
    weighting = made(name, task, cache, folder)
    trainer = make_trainer(task, cache, weighting, dataclasses.replace(SETTINGS, **changed), folder)
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", ["uniform", "policy", "hedge", "aekd_flat", "policy_shuffle"])
def test_a_student_of_gaps_is_that_of_the_rows_that_have_answers(name, task, cache, folder, caplog):
    """One teacher or nobody was asked about train rows: what the rows without an answer hold does not matter."""
    answered = np.repeat(some_answers(task, share=0)[:, :1], 3, 1)
    labels = np.where(answered.any(1), task.table.labels, UNLABELLED)
    bare = dataclasses.replace(task, table=dataclasses.replace(task.table, labels=labels))
    with caplog.at_level(logging.WARNING):
        cut, source = taught_rows(bare, with_gaps(cache, answered, np.nan).measured(bare))
    train = task.splits["train"]
    left = train[answered[train].any(1)]
    assert f"of {len(train)} train rows {len(left)} have answers" in caplog.text
    assert "without a label are left out" in caplog.text
    ids = np.concatenate([left, np.arange(len(train), len(task.table))])
    full = LogitCache(list(logits_of(cache)[ids].transpose(1, 0, 2)), cache.teacher_names, knowledge=cache.knowledge)
    mine = student_of(cut, source, name, folder)
    theirs = student_of(keep_rows(bare, ids), full.measured(keep_rows(bare, ids)), name, folder)
    for key, value in theirs.model.state_dict().items():
        assert torch.equal(mine.model.state_dict()[key], value), key


def test_a_label_alone_teaches_where_nobody_answered(task, cache, folder):
    """As the loss does it of rows without a teacher: the same student as with weights of zeros there."""
    answered = some_answers(task)
    mine = student_of(*taught_rows(task, with_gaps(cache, answered, np.nan)), "uniform", folder)
    labels = student_of(task, with_gaps(cache, answered & False), "uniform", folder)
    alone = student_of(task, cache, "labels", folder)
    everybody = student_of(task, cache, "uniform", folder)
    states = [one.model.state_dict() for one in (mine, labels, alone, everybody)]
    for key in states[0]:
        assert torch.equal(states[1][key], states[2][key])
    assert any(not torch.equal(states[0][key], states[j][key]) for key in states[0] for j in (1, 3))
    assert mine.weight_record.sums.sum() < everybody.weight_record.sums.sum()


def test_states_that_are_held_on_a_device_know_the_gaps(task, cache, answered):
    source, ids = with_gaps(cache, answered), torch.tensor([5, 0, 77])
    states = read_all(lambda some: read_state(task, source, some), len(task.table), torch.device("cpu"))
    assert torch.equal(HeldStates(states).of(ids).teacher_mask, torch.from_numpy(answered)[ids])


def test_a_policy_is_trained_on_rows_that_have_answers(task, cache, answered):
    training = {"total_timesteps": 160, "n_steps": 2, "warm_start": True, "trials": 1, "strength_students": 0}
    source = with_gaps(cache, answered, np.nan)
    policy = train_policy(
        task, source, student="rlkd/mlp", episode={"batch_size": 16, "horizon": 4, "teacher_dropout": 0.5}, **training
    )
    assert all(value.isfinite().all() for value in policy.state_dict().values())


def test_somebody_is_left_of_those_who_answered_where_sets_of_teachers_are_drawn(task, cache, answered):
    ids = np.flatnonzero(answered.any(1))
    state = read_state(task, with_gaps(cache, answered), torch.from_numpy(ids))
    drawn, chosen = TeacherSets(copies=2, dropout=0.8).draw(state, np.random.default_rng(0))
    assert drawn.present.any(-1).all()
    assert not (drawn.present & ~state.present.gather(1, chosen)).any()


# --- what is measured


def test_teachers_are_measured_on_what_they_answered(task, cache, answered):
    source, full = with_gaps(cache, answered, 1e4).measured(task), cache.measured(task)
    ids, train = task.labelled_ids("validation"), task.splits["train"]
    for k in range(3):
        mine, own = ids[answered[ids, k]], train[answered[train, k]]
        alone = LogitCache([logits_of(cache)[:, k]], ["alone"])
        right = (alone.rows(torch.from_numpy(mine))[:, 0].argmax(-1).numpy() == task.table.labels[mine]).sum()
        assert source.reliability[k, 0] == pytest.approx(np.log((right + 1) / (len(mine) - right + 1)), rel=1e-6)
        assert source.sureness[k] == pytest.approx(float(alone._sureness_on(own)[0]), rel=1e-6)
    whole = with_gaps(cache, answered | True).measured(task)
    assert torch.equal(whole.reliability, full.reliability)
    assert torch.allclose(whole.sureness, full.sureness, rtol=1e-6)
    nothing = answered.copy()
    nothing[ids] = False
    assert with_gaps(cache, nothing).measured(task).reliability is None
    assert (with_gaps(cache, answered & False).measured(task).sureness == 0).all()
    for name in ("best_teacher", "lr_dev", "calibrated_uniform"):
        with pytest.raises(WeightingError, match=rf"{name}.*validation rows that teachers answered about, got none"):
            build_weighting(name, task, with_gaps(cache, nothing))


def test_gaps_are_kept_by_whatever_is_cut_out(task, cache, answered):
    source, ids = with_gaps(cache, answered), np.array([3, 599, 7])
    for cut, expected in (
        (source.take(ids), answered[ids]),
        (source.head(50), answered[:50]),
        (source.pick(["c", "a"]), answered[:, [2, 0]]),
        (source.measured(task), answered),
        (source.with_affinity(np.zeros((600, 3), dtype=np.float32)), answered),
        (copy.copy(source), answered),
    ):
        assert cut.has_gaps
        assert np.array_equal(cut.mask_rows(torch.arange(len(cut))).numpy(), expected)
    evidence = Evidence.of(task, source)
    assert set(evidence.labelled_state("train").ids.tolist()) == set(np.flatnonzero(answered.any(1))) & set(
        task.splits["train"]
    )
    assert np.array_equal(answered_ids(cache, ids), ids)
    every, of_all = answered_by_all(task, source)
    assert len(every.table) == len(of_all) == answered.all(1).sum()
    assert answered_by_all(task, cache) == (task, cache)
    assert taught_rows(task, cache) == (task, cache)
    with pytest.raises(
        CacheError, match="a control needs every teacher's answer about every row, got a cache with gaps"
    ):
        refuse_gaps(source, "a control")
    with pytest.raises(CacheError, match=r"bool \(600, 3\).*got bool \(600, 2\)"):
        with_gaps(cache, answered[:, :2])


def test_what_is_fitted_on_rows_that_nobody_answered_is_no_default(task, cache, answered, caplog):
    names = ["uniform", "best_teacher", "auto", "router", "router:gain", "oracle"]
    assert answerable(names, task, cache) == answerable(names, task, with_gaps(cache, answered)) == names
    train = np.zeros_like(answered)
    train[task.splits["train"]] = answered[task.splits["train"]]
    assert answerable(names, task, with_gaps(cache, train)) == ["uniform", "auto", "router", "router:gain", "oracle"]
    assert answerable(names, task, with_gaps(cache, answered & False)) == ["uniform", "auto", "oracle"]
    assert "best_teacher, router, router:gain left out: no teacher answered about" in caplog.text


# --- on disk


@pytest.fixture
def teachers(cache):
    return [ArrayTeacher(name, logits_of(cache)[:, k]) for k, name in enumerate("abc")]


def test_gaps_lie_on_disk(task, cache, answered, teachers, tmp_path):
    garbage = np.where(answered[..., None], logits_of(cache), np.nan)
    cached = write_gapped_cache(garbage, answered, task, teachers, tmp_path / "cache", max_length=64)
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert manifest["format_version"] == 2
    assert manifest["answered"] in manifest["files"]
    for opened in (cached, load_cache(tmp_path / "cache", task, teachers=teachers), open_cache(tmp_path / "cache")):
        rows = torch.arange(600)
        assert np.array_equal(opened.mask_rows(rows).numpy(), answered)
        assert torch.equal(opened.rows(rows), with_gaps(cache, answered).rows(rows))
        assert opened.answers == answered.sum()
        assert opened.identity == cached.identity
    more = answered | some_answers(task, seed=1)
    (tmp_path / "cache" / "ledger").mkdir()
    again = write_gapped_cache(logits_of(cache), more, task, teachers, tmp_path / "cache", max_length=64)
    assert again.answers == more.sum() > cached.answers
    assert again.identity != cached.identity
    assert len(list((tmp_path / "cache").glob("*-asked-*.npy"))) == 4
    assert (tmp_path / "cache" / "ledger").is_dir()


def test_what_is_killed_while_it_is_written_leaves_the_answers_before(
    task, cache, answered, teachers, tmp_path, monkeypatch
):
    before = write_gapped_cache(logits_of(cache), answered, task, teachers, tmp_path, max_length=64)

    def killed(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr("rlkd.logit_cache.writing.write_json_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        write_gapped_cache(logits_of(cache), answered | True, task, teachers, tmp_path, max_length=64)
    assert load_cache(tmp_path, task).identity == before.identity


def test_what_killed_writers_have_left_is_deleted(task, cache, answered, teachers, tmp_path):
    others = {".making.tmp", "ledger"}
    for name in (".logits-asked-0.npy.1-0.tmp", ".answered-asked-0.npy.1-0.tmp", ".manifest.json.1-0.tmp", *others):
        (tmp_path / name).touch()
    write_gapped_cache(logits_of(cache), answered, task, teachers, tmp_path, max_length=64)
    assert {path.name for path in tmp_path.iterdir() if path.suffix in ("", ".tmp")} == {".lock", *others}


class Asked(list):
    """Teachers who answer about more while a cache of theirs is opened."""

    def __iter__(self):
        for meanwhile in self.meanwhile:
            meanwhile()
        return super().__iter__()


def test_a_cache_that_is_replaced_while_it_is_opened_is_opened_as_it_is_then(task, cache, answered, teachers, tmp_path):
    more = answered | some_answers(task, seed=1)
    write_gapped_cache(logits_of(cache), answered, task, teachers, tmp_path, max_length=64)
    asked = Asked(teachers)
    replace = partial(write_gapped_cache, logits_of(cache), more, task, teachers, tmp_path, max_length=64)
    asked.meanwhile = [replace]
    assert load_cache(tmp_path, task, teachers=asked).answers == more.sum() > answered.sum()
    asked.meanwhile = [next(tmp_path.glob("answered-*")).unlink]
    with pytest.raises(CacheError, match="is missing"):
        load_cache(tmp_path, task, teachers=asked)


def test_caches_in_the_wrong_place_are_refused(task, cache, answered, teachers, tmp_path):
    whole = logits_of(cache)

    def write(where, teachers=teachers, logits=whole, answered=answered):
        return write_gapped_cache(logits, answered, task, teachers, tmp_path / where, max_length=64)

    build_cache(teachers, task, tmp_path / "full")
    assert "answered" not in json.loads((tmp_path / "full" / "manifest.json").read_text())
    with pytest.raises(CacheError, match="answered about everything: nothing is left to ask"):
        write("full")
    write("gaps")
    with pytest.raises(CacheError, match="holds a cache with gaps, asked for was one in which everybody answers"):
        build_cache(teachers, task, tmp_path / "gaps")
    with pytest.raises(CacheError, match=r"holds answers of a, b, c about task 'planted', asked for were b, a, c"):
        write("gaps", teachers=[teachers[1], teachers[0], teachers[2]])
    with pytest.raises(CacheError, match=r"expected logits \(600, 3, 6\).*got \(600, 3, 6\) and int64"):
        write("other", answered=answered.astype(int))
    bad = logits_of(cache).copy()
    bad[np.flatnonzero(answered[:, 1])[:2], 1] = np.inf
    with pytest.raises(TeacherError, match=r"finite logits from teacher 'b', got NaN.*in 2 of 600 rows"):
        write("other", logits=bad)
    (mask,) = (tmp_path / "gaps").glob("answered-*.npy")
    mask.write_bytes(mask.read_bytes()[:-1] + b"\x02")
    with pytest.raises(CacheError, match=r"damaged: answered-.*the same rlkd ask writes it again from its ledger"):
        load_cache(tmp_path / "gaps", task)
    full = build_cache(teachers, task, tmp_path / "gaps", overwrite=True)
    assert not full.has_gaps
    assert not list((tmp_path / "gaps").glob("*asked*"))


def test_nothing_to_learn_from_is_said(task, cache, answered):
    bare = dataclasses.replace(task, table=dataclasses.replace(task.table, labels=task.table.labels * 0 - 1))
    with pytest.raises(CacheError, match="answers about train rows of task 'planted', or labels, got none of either"):
        taught_rows(bare, with_gaps(cache, answered & False))
    with pytest.raises((TaskError, WeightingError), match=r"with answers of teachers|answered about"):
        train_policy(task, with_gaps(cache, answered & False), student="rlkd/mlp", total_timesteps=100)


# --- the trainer of one's own batches


@pytest.mark.parametrize(
    ("kind", "weighting"),
    [
        *((kind, "uniform") for kind in KINDS if "token" not in kind),
        ("multi-label classification", "cross_entropy"),
        ("regression", "gate"),
        ("single-label classification", "policy:auto"),
    ],
)
def test_a_plain_trainer_reads_a_cache_with_gaps(kind, weighting, tmp_path):
    outputs = KINDS[kind][1]
    rng = np.random.default_rng(0)
    said = rng.normal(size=(24, 3, outputs)).astype(np.float32)
    mask = rng.random((24, 3)) < 0.4
    assert 0 < mask.any(1).sum() < 24
    found = []
    for garbage in (np.nan, 5.0, None):
        kept = mask if garbage is not None else np.ones_like(mask)
        arrays = np.where(kept[..., None], said, np.float32(garbage or 0))
        teachers = cache_of(arrays, kept)
        trainer = trainer_of(kind, weighting, tmp_path, teachers=teachers, max_steps=4, per_device_train_batch_size=8)
        trainer.train()
        found.append(trainer.model.layer.weight.detach())
        assert found[-1].isfinite().all()
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    bare = [{name: value for name, value in row.items() if name != "labels"} for row in rows_of(kind)]
    with pytest.raises(TeacherError, match=r"expected an answer of a teacher or a label, got neither for instance"):
        trainer_of(kind, "uniform", tmp_path, rows=bare, teachers=cache_of(said, mask), max_steps=4).train()


def cache_of(said, mask):
    return LogitCache(list(said.transpose(1, 0, 2)), ["a", "b", "c"], mask=mask)


def test_what_a_trainer_is_fitted_on_knows_the_gaps(tmp_path):
    kind, rng = "single-label classification", np.random.default_rng(0)
    mask = rng.random((24, 3)) < 0.4
    trainer = trainer_of(
        kind, "uniform", tmp_path, teachers=cache_of(rng.normal(size=(24, 3, 3)).astype(np.float32), mask)
    )
    task, cache = labelled_answers(trainer, rows_of(kind))
    assert cache.answers == mask.sum()
    assert build_weighting("router", task, cache).by_row
