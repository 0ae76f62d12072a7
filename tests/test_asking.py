"""Strategies: budgets hold, nothing is paid twice, and who can be known is asked."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd.agents.asking import train_asker
from rlkd.asking import OneRun, Pool, RecordedTeachers
from rlkd.asking.linear_student import LinearStudent, margin
from rlkd.asking.policy import AskByPolicy, AskingPolicy
from rlkd.asking.strategies import STRATEGIES, build_strategy
from rlkd.asking.strategies.auto import Auto
from rlkd.asking.strategies.choosing import Bandit, Router
from rlkd.asking.strategies.rows import CHUNK, by_margin, by_pairs, by_spread
from rlkd.asking.trust import confidence, trust
from rlkd.data.planted import planted, planted_logits
from rlkd.errors import CacheError, ConfigError, UnknownNameError
from rlkd.logit_cache import LogitCache

ROWS, CLASSES, TEACHERS = 400, 6, 3
SPECS = ["all", "random", "best", "only:b", "explore:0.2", "explore+threshold", "router", "router+threshold", "verify"]
SPECS += ["reverify", "bandit", "bandit:100", "thompson", "oracle", "none"]
SPECS += ["margin*all", "spread*random", "pairs*verify", "auto"]


def specialists(seed=0, rows=ROWS):
    """Instances in six clusters, a class each, and teachers that are sure and right of two classes, else unsure."""
    random = np.random.default_rng(seed)
    labels = random.integers(CLASSES, size=rows)
    vectors = np.eye(CLASSES)[labels] + 0.15 * random.standard_normal((rows, CLASSES))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    logits = 0.5 * random.standard_normal((rows, TEACHERS, CLASSES))
    right = np.stack([labels // 2 == teacher for teacher in range(TEACHERS)], 1)
    logits[np.arange(rows)[:, None], np.arange(TEACHERS), labels[:, None]] += np.where(right, 5.0, -1.0)
    cache = LogitCache(list(logits.transpose(1, 0, 2).astype(np.float32)), ["a", "b", "c"])
    known = np.full(rows, -1)
    pool = Pool(ids=np.arange(rows), vectors=vectors.astype(np.float32), labels=known, classes=CLASSES, right=right)
    return pool, cache, labels


def labelled(pool, labels, count=60):
    known = np.full(len(labels), -1)
    known[:count] = labels[:count]
    return Pool(ids=pool.ids, vectors=pool.vectors, labels=known, classes=pool.classes, right=pool.right)


def asked(spec, pool, cache, budget=np.inf, prices=None, seed=0):
    bank = RecordedTeachers(cache, prices, budget)
    build_strategy(spec).run(pool, bank, seed)
    return bank


def test_every_strategy_is_tried_here():
    assert {spec.rpartition("*")[2].partition(":")[0].partition("+")[0] for spec in SPECS} >= set(STRATEGIES)


POOL, CACHE, LABELS = specialists()
LABELLED = labelled(POOL, LABELS)


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=4, deadline=None)
@given(share=st.floats(0, 1.2), prices=st.lists(st.floats(0.01, 20), min_size=3, max_size=3), seed=st.integers(0, 9))
def test_a_budget_is_never_exceeded_and_nothing_is_paid_twice(spec, share, prices, seed):
    prices = np.array(prices)
    budget = share * prices.sum() * ROWS
    bank = asked(spec, LABELLED, CACHE, budget, prices, seed)
    assert bank.spent <= budget * (1 + 1e-9)
    assert bank.spent == pytest.approx((bank.answers.asked * prices).sum())
    assert (bank.answers.answered == bank.answers.asked).all()
    assert not bank.answers.logits[~bank.answers.answered].any()


class Killed(Exception):
    pass


class Mortal(RecordedTeachers):
    """Dies at a call."""

    lives = 10**9

    def ask(self, teacher, ids):
        self.lives -= 1
        if self.lives < 0:
            raise Killed
        return super().ask(teacher, ids)


@pytest.mark.parametrize("spec", SPECS)
def test_a_run_that_was_killed_goes_the_same_way_and_pays_nothing_twice(spec):
    whole = asked(spec, LABELLED, CACHE, 300.0, seed=3)
    bank = Mortal(CACHE, budget=300.0)
    for lives in (2, 7, 10**9):
        bank.lives = lives
        run = OneRun(bank)
        with contextlib.suppress(Killed):
            build_strategy(spec).run(LABELLED, run, 3)
    np.testing.assert_array_equal(run.answers.asked, whole.answers.asked)
    np.testing.assert_array_equal(bank.answers.asked, whole.answers.asked)
    assert bank.spent == whole.spent == run.spent


def test_what_is_known_already_is_free_but_counts_in_a_run():
    bank = asked("all", POOL, CACHE, 300.0)
    bank.budget = 370.0
    run = OneRun(bank, 60.0)
    build_strategy("random").run(POOL, run, 1)
    assert run.spent == 60 == run.answers.asked.sum()
    assert 300 < bank.spent == bank.answers.asked.sum() <= 370  # the bank's own budget holds for both


class ByToken(RecordedTeachers):
    """An answer costs 0.1; before one is asked for, all that is known is that it costs 10 at most."""

    def __init__(self, source, budget):
        super().__init__(source, np.full(TEACHERS, 10.0), budget)

    def ask(self, teacher, ids):
        self.prices = np.full(TEACHERS, 0.1) if len(ids) else self.prices
        return super().ask(teacher, ids)


@pytest.mark.parametrize(("spec", "least"), [("all", 1.0), ("explore+threshold", 0.99), ("verify", 0.99)])
def test_a_price_that_turns_out_lower_leaves_no_budget_unspent(spec, least):
    """Of a budget of 60, which pays for 600 answers, and at first for 6."""
    run = OneRun(ByToken(CACHE, 60.0))
    build_strategy(spec).run(LABELLED, run, 0)
    assert 60 * least - 0.2 <= run.spent <= 60 * (1 + 1e-9)


@pytest.mark.parametrize(("spec", "least"), [("oracle", 1.0), ("router", 0.9), ("explore:0.2", 0.9), ("verify", 0.9)])
def test_who_can_be_known_is_asked(spec, least):
    """At one call an instance: the share of calls beyond the instances that were looked at that go to who knows."""
    bank = asked(spec, LABELLED, CACHE, float(ROWS))
    single = bank.answers.asked.sum(1) == 1
    assert (bank.answers.asked & POOL.right)[single].sum() / single.sum() >= least


@pytest.mark.parametrize("thompson", [False, True])
def test_a_bandit_learns_whom_to_ask(thompson):
    bank = RecordedTeachers(CACHE)
    bandit = Bandit(POOL, bank, random=np.random.default_rng(0) if thompson else None)
    for start in range(0, ROWS, 25):
        ids = np.arange(start, start + 25)
        chosen = bandit.scores(ids).argmax(1)
        for teacher in range(TEACHERS):
            bank.ask(teacher, ids[chosen == teacher])
        bandit.learn(ids)
    late = np.arange(ROWS // 2, ROWS)
    assert (bank.answers.asked & POOL.right)[late].sum() / len(late) > 0.8


def test_a_router_learns_from_instances_that_everybody_answered_alone():
    bank, first = RecordedTeachers(CACHE), np.arange(100)
    router = Router(POOL, bank)
    bank.ask(0, first)
    router.learn(first)
    assert np.ptp(router.scores(first), axis=1).max() == 0  # one answer says nothing of who is better
    for teacher in (1, 2):
        bank.ask(teacher, first)
    router.learn(first)
    assert (router.scores(np.arange(100, ROWS)).argmax(1) == LABELS[100:] // 2).mean() > 0.95


def test_verify_asks_on_where_the_first_answer_is_doubtful():
    """Where instances tell nothing, it cannot be known whom to ask, but who was asked says when it was not he."""
    blind = Pool(ids=POOL.ids, vectors=np.ones((ROWS, 4), np.float32) / 2, labels=POOL.labels, classes=CLASSES)
    bank = asked("verify", blind, CACHE)
    cascade = bank.answers
    told = asked("verify", blind, CACHE, 0.65 * 3 * ROWS).answers
    single = told.asked.sum(1) == 1
    right = (told.asked & POOL.right).any(1)
    assert cascade.asked.all()  # without a budget everybody is asked in the end
    assert right[single].mean() > 0.9  # at random a third would be
    assert 0.2 < single.mean() < 0.6


class Follows(AskingPolicy):
    """Asks about every instance the teacher that a rule names, and stops."""

    def __init__(self, rule):
        super().__init__()
        self._rule = rule

    def actions(self, observed, mask, random=None):
        asked = ~mask[:, 1:].all(1)
        return np.where(asked, 0, self._rule(len(mask)))


def confidently_wrong():
    """The instances, whose teacher 0 is sure and wrong of all; the others are sure and right of all."""
    pool, _, labels = specialists()
    logits = np.zeros((ROWS, TEACHERS, CLASSES), np.float32)
    logits[np.arange(ROWS), 0, (labels + 1) % CLASSES] = 6.0
    for teacher in (1, 2):
        logits[np.arange(ROWS), teacher, labels] = 6.0
    return pool, LogitCache(list(logits.transpose(1, 0, 2)), ["a", "b", "c"]), labels


@pytest.mark.parametrize("named", [0, 1])
def test_auto_leaves_a_policy_that_surely_harms_and_no_other(named):
    """Of 60 labels; a policy that asks who is wrong is left after its tenth, one that asks who is right is not."""
    pool, cache, labels = confidently_wrong()
    known = labelled(pool, labels)
    bank = RecordedTeachers(cache)
    Auto(AskByPolicy(Follows(lambda places: np.full(places, named + 1)))).run(known, bank, 0)
    others = bank.answers.asked[60:]
    everybody = others.all(1).mean()
    assert others.any(1).all()
    if named == 0:
        assert 0.6 < everybody < 0.9  # all that the policy had not asked about by then
    else:
        assert everybody == pytest.approx(40 / 340)  # a tenth of what everybody about everything costs
    assert bank.spent == bank.answers.asked.sum()


def test_auto_is_its_policy_where_no_label_tells(tmp_path):
    AskingPolicy.create(training={}, seed=1).save_pretrained(tmp_path)
    for known in (POOL, labelled(POOL, LABELS, 19)):
        alone, auto = (asked(f"{name}:{tmp_path}", known, CACHE, 300.0) for name in ("policy", "auto"))
        np.testing.assert_array_equal(alone.answers.asked, auto.answers.asked)


def test_trust_is_the_label_where_it_is_known_and_the_shipped_policy_elsewhere():
    bank = RecordedTeachers(CACHE)
    ids = np.arange(100)
    for teacher in range(TEACHERS):
        bank.ask(teacher, ids)
    by_label, by_policy = trust(LABELLED, bank.answers, ids[:60]), trust(POOL, bank.answers, ids)
    rows = bank.answers.logits[:60].astype(np.float64)
    p = np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)
    p = p[np.arange(60)[:, None], np.arange(TEACHERS), LABELS[:60, None]]
    np.testing.assert_allclose(by_label, p / p.sum(1, keepdims=True), rtol=1e-6)
    assert (by_policy.argmax(1) == LABELS[:100] // 2).mean() > 0.95
    np.testing.assert_allclose(by_policy.sum(1), 1, rtol=1e-5)
    assert not trust(POOL, bank.answers, np.arange(100, 110)).any()
    assert not confidence(bank.answers, np.arange(100, 110)).any()


def test_a_linear_student_is_ridge_regression():
    random = np.random.default_rng(0)
    x, y = random.standard_normal((50, 4)), np.eye(3)[random.integers(3, size=50)]
    student = LinearStudent(4, 3, ridge=0.7)
    student.learn(x[:20], y[:20])
    student.learn(x[20:], y[20:])
    wide = np.concatenate([x, np.ones((50, 1))], 1)
    raw = wide @ np.linalg.lstsq(np.r_[wide, np.sqrt(0.7) * np.eye(5)], np.r_[y, np.zeros((5, 3))], rcond=None)[0]
    raw = raw.clip(1e-4)
    np.testing.assert_allclose(student.probabilities(x), raw / raw.sum(1, keepdims=True), rtol=1e-8)
    np.testing.assert_allclose(margin(np.array([[0.2, 0.7, 0.1], [0.4, 0.4, 0.2]])), [0.5, 0.0], atol=1e-12)


def test_rows_come_in_their_order():
    bank, random = RecordedTeachers(CACHE), np.random.default_rng(0)
    bank.ask(0, np.flatnonzero(LABELS < 2)[:60])  # a student that knows two classes is unsure of the others
    chosen = by_margin(POOL, bank, random)(POOL.ids)
    assert (LABELS[chosen] >= 2).mean() > 0.9
    bank.ask(0, np.flatnonzero(LABELS < 2)[60:])  # more of the same, so that a third of the rows is known well
    pairs = by_pairs(POOL, bank, random)(POOL.ids)
    unknown = (LABELS >= 2).mean()
    assert unknown + 0.2 < (LABELS[pairs] >= 2).mean() <= 1  # of twice as many at random, most of the unknown
    assert len(set(pairs)) == len(pairs) == CHUNK
    known = np.flatnonzero(LABELS < 2)
    assert set(by_pairs(POOL, bank, random)(known)) <= set(known)
    spread = by_spread(POOL, bank, random)(POOL.ids)
    assert len(set(LABELS[spread[:6]])) == CLASSES
    assert len(set(spread)) == len(spread)


def test_a_pool_knows_the_labels_it_is_given_alone():
    task = planted()
    pool = Pool.of(task, task.labelled_ids("train")[:7])
    assert len(pool.labelled) == 7
    assert (pool.labels >= 0).sum() == 7
    assert pool.vectors.shape == (len(task.table), min(128, task.table.vectors.shape[1] - 1))
    np.testing.assert_allclose(np.linalg.norm(pool.vectors, axis=1), 1, rtol=1e-5)
    logits = planted_logits(task)
    cache = LogitCache(list(logits.transpose(1, 0, 2)), [f"t{k}" for k in range(logits.shape[1])])
    bank = RecordedTeachers(cache, budget=50.0)
    build_strategy("all").run(pool, bank, 0)
    assert not bank.answers.asked[np.setdiff1d(np.arange(len(task.table)), task.splits["train"])].any()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("al", "did you mean 'all'"),
        ("margins*all", "did you mean 'margin'"),
        ("random+threshold", "leave it out"),
        ("random:3", "takes no argument"),
        ("explore:2", r"share in \(0, 1\]"),
        ("verify:many", r"share in \(0, 1\]"),
        ("only", "name of a teacher"),
        ("no.such:Thing", "check the name"),
        ("nosuch:Thing", "check the name"),
        ("policy", "needs a folder"),
        ("auto:", "needs a folder"),
    ],
)
def test_a_strategy_that_is_none_is_told_what_to_write(spec, says):
    with pytest.raises((ConfigError, UnknownNameError), match=says):
        build_strategy(spec)


def test_where_asking_is_only_counted_every_answer_is_there():
    mask = np.ones((ROWS, TEACHERS), dtype=bool)
    mask[7, 1] = False
    gaps = LogitCache(
        [CACHE.rows(torch.arange(ROWS))[:, k].numpy() for k in range(TEACHERS)], ["a", "b", "c"], mask=mask
    )
    with pytest.raises(CacheError, match="a cache with gaps; build one with rlkd cache"):
        RecordedTeachers(gaps)
    task = planted()
    logits = planted_logits(task).transpose(1, 0, 2)
    mask = np.ones((len(task.table), len(logits)), dtype=bool)
    mask[3, 0] = False
    with pytest.raises(CacheError, match="in which asking is learned needs every teacher's answer"):
        train_asker(task, LogitCache(list(logits), [f"t{k}" for k in range(len(logits))], mask=mask))


def test_what_a_strategy_needs_is_named():
    with pytest.raises(ConfigError, match="learns from labels"):
        asked("router", POOL, CACHE)
    with pytest.raises(UnknownNameError, match="did you mean"):
        asked("only:bb", POOL, CACHE)
    with pytest.raises(ConfigError, match="price above 0"):
        RecordedTeachers(CACHE, np.array([1.0, 0.0, 2.0]))
