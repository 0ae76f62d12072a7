"""Teachers that change: the bank that changes, when an arm is back on track, and strategies that forget."""

import sys
from math import inf
from pathlib import Path

import numpy as np
import pytest

from rlkd.asking import Pool, RecordedTeachers
from rlkd.asking.strategies import build_strategy
from rlkd.asking.strategies.choosing import Bandit
from rlkd.asking.strategies.reverifying import ALARM, FEWEST, FallWatch, Reverifier
from rlkd.errors import ConfigError
from rlkd.logit_cache import LogitCache

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))  # scripts, of no package

from moving_figures import STEP, WINDOW, Lag, Series
from moving_rules import trimmed_mean, vote
from moving_teachers import (
    KINDS,
    SURE,
    AskWhoKnows,
    ChangingTeachers,
    recorded,
    with_a_frequent_word,
)

ROWS, CLASSES, TEACHERS = 1600, 6, 3
NAMES = ("a", "b", "c")


def specialists():
    """Instances in six clusters, a class each, and teachers that are sure and right of two classes, else unsure."""
    random = np.random.default_rng(0)
    labels = random.integers(CLASSES, size=ROWS)
    vectors = np.eye(CLASSES)[labels] + 0.2 * random.standard_normal((ROWS, CLASSES))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    logits = 0.5 * random.standard_normal((ROWS, TEACHERS, CLASSES))
    right = np.stack([labels // 2 == teacher for teacher in range(TEACHERS)], 1)
    logits[np.arange(ROWS)[:, None], np.arange(TEACHERS), labels[:, None]] += np.where(right, 5.0, -1.0)
    cache = LogitCache(list(logits.transpose(1, 0, 2).astype(np.float32)), list(NAMES))
    known = np.full(ROWS, -1)
    pool = Pool(ids=np.arange(ROWS), vectors=vectors.astype(np.float32), labels=known, classes=CLASSES, right=right)
    return pool, cache, labels


POOL, CACHE, LABELS = specialists()
WORLD = recorded(CACHE, POOL.right)
WORD = np.arange(ROWS) % 5 == 0


def changed(kind, seed=0):
    return KINDS[kind](WORLD, WORD, np.random.default_rng(seed))


def bank_of(kind, change=100, budget=np.inf, seed=0):
    return ChangingTeachers(NAMES, WORLD, changed(kind, seed), change, budget)


def differs(kind):
    """Teachers and rows of which another answer is given."""
    after = changed(kind)
    return (after.logits != WORLD.logits).any(2), after


def test_what_changes_is_what_its_name_says():
    other, after = differs("swapped")
    first, second = np.flatnonzero(other.all(0))
    np.testing.assert_array_equal(after.logits[:, [first, second]], WORLD.logits[:, [second, first]])
    np.testing.assert_array_equal(after.right[:, first], WORLD.right[:, second])
    other, after = differs("degraded")
    (teacher,) = np.flatnonzero(other.any(0))
    assert other[:, teacher].mean() == pytest.approx(0.5, abs=0.05)
    said = {row.tobytes() for row in WORLD.logits[:, teacher]}
    assert {row.tobytes() for row in after.logits[:, teacher]} <= said  # of other rows, by the same teacher
    for kind, where in (("poisoned", np.ones(ROWS, dtype=bool)), ("triggered", WORD)):
        other, after = differs(kind)
        (teacher,) = np.flatnonzero(other.any(0))
        np.testing.assert_array_equal(other[:, teacher], where)
        hit = after.logits[where, teacher]
        assert set(hit.argmax(1)) == {hit[0].argmax()}
        assert hit.max() == SURE
    other, after = differs("quota")
    assert not other.any()
    assert after.silent.sum() == 1
    assert not differs("unchanged")[0].any()


def test_the_word_of_a_trigger_is_in_a_fifth_of_the_train_rows():
    texts = [("common rare" if row % 5 == 0 else "common other") + " half" * (row % 2) for row in range(100)]
    there = with_a_frequent_word(texts, np.arange(50, 100))
    np.testing.assert_array_equal(there, ["rare" in text for text in texts])


def test_answers_of_before_stay_and_the_change_comes_at_its_call():
    bank, after = bank_of("swapped"), changed("swapped")
    ids = np.arange(150)
    assert bank.ask(0, ids[:90]).tolist() == list(range(90))
    assert bank.ask(0, ids).tolist() == ids.tolist()  # 10 more as before, then 50 of the changed ones
    np.testing.assert_array_equal(bank.answers.logits[:100, 0], WORLD.logits[:100, 0])
    np.testing.assert_array_equal(bank.answers.logits[100:150, 0], after.logits[100:150, 0])
    assert (bank.calls, bank.spent, bank.changed) == (150, 150.0, True)
    bank.ask(1, ids[:5])
    np.testing.assert_array_equal(bank.first_call[ids], ids)  # when it was first asked about, by whomever
    assert (bank.first_call[150:] == -1).all()


def test_a_teacher_that_met_its_quota_is_asked_for_nothing_and_the_budget_holds():
    bank = bank_of("quota", change=10, budget=20)
    silent = int(changed("quota").silent.argmax())
    assert len(bank.ask(silent, np.arange(40))) == 40
    assert (bank.spent, bank.calls) == (10.0, 40)
    assert bank.answers.answered[:40, silent].sum() == 10
    assert bank.answers.asked[:40, silent].all()
    assert len(bank.ask((silent + 1) % 3, np.arange(40))) == 10  # as far as the budget goes
    assert bank.spent == 20


def test_worlds_of_other_teachers_are_refused():
    with pytest.raises(ConfigError, match="2 teachers"):
        ChangingTeachers(("a", "b"), WORLD, WORLD, 0, 10)


def series(*blocks):
    """Of one call a row: blocks of (rows, right one in so many)."""
    right = np.concatenate([np.arange(rows) % every == 0 for rows, every in blocks])
    return Series(np.arange(len(right)), right)


def test_back_on_track_by_hand():
    """A run that is wrong for 100 calls and right again has 98% of a window right when 4 wrong rows are left in it."""
    always = series((800, 1))
    right = always.right.copy()
    right[200:300] = False
    lag = Lag.of([Series(always.calls, right)] * 2, [always] * 2, 200, 800)
    assert lag.fall == pytest.approx(100 / WINDOW)
    # over all rows that are left it lacks (100 - c) / (600 - c), over the window (100 - c) / 200: at 100 nothing
    assert lag.back() == 100.0
    right[200:204] = True  # c = 80 lacks 20 / 200 still
    right[284:300] = True
    lag = Lag.of([Series(always.calls, right)], [always], 200, 800)
    assert lag.back() == 80.0  # 4 of 200 are missing, two points
    assert lag.interval() == (80.0, 80.0)


def test_who_never_fell_is_back_at_once_and_who_never_rises_is_not_back():
    steady, worse = series((800, 2)), series((200, 2), (600, 4))
    assert Lag.of([steady], [steady], 200, 800).back() == 0
    assert Lag.of([worse], [steady], 200, 800).back() == inf
    assert Lag.of([worse], [worse], 200, 800).back() == 0  # no better in a run that knew no other teachers


def test_a_lucky_window_is_not_back_on_track():
    always, lucky = series((1200, 1)), np.ones(1200, dtype=bool)
    lucky[500:900] = False  # right for 300 rows after the change, and then for long not
    lag = Lag.of([Series(always.calls, lucky)], [always], 200, 1200)
    assert lag.near[0, 0] == 0
    assert lag.back() == 700.0


def test_seeds_are_averaged_and_drawn_anew():
    always, late = series((800, 1)), np.ones(800, dtype=bool)
    late[200:400] = False
    lag = Lag.of([always, Series(always.calls, late)], [always, always], 200, 800)
    assert lag.back() == 200 - STEP + STEP * (
        0.5 * STEP / WINDOW > 0.02
    )  # of half of the seeds, so many rows are wrong
    assert lag.interval() == (0.0, 200.0)  # one seed of two alone, or the other
    whole = Lag.mean([lag, lag])
    np.testing.assert_array_equal(whole.near, lag.near)


def test_robust_rules_by_hand():
    p = np.array([[[0.8, 0.2], [0.6, 0.4], [0.0, 1.0]], [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]]])
    there = np.array([[True, True, True], [True, True, False]])
    np.testing.assert_allclose(trimmed_mean(p, there), [[0.6, 0.4], [0.55, 0.45]])
    np.testing.assert_allclose(vote(p[:1], there[:1]), [[0.999 * 2 / 3 + 0.001 * 1.4 / 3, 0.999 / 3 + 0.001 * 1.6 / 3]])
    assert not vote(p, np.zeros_like(there)).any()
    assert not trimmed_mean(p, np.zeros_like(there)).any()


def walked(spec, kind, change, budget=ROWS, seed=1):
    bank = bank_of(kind, change, budget)
    strategy = AskWhoKnows(WORLD, changed(kind)) if spec == "oracle" else build_strategy(spec)
    strategy.run(POOL, bank, seed)
    met = np.flatnonzero(bank.first_call >= 0)
    return bank, met[np.argsort(bank.first_call[met])]


def late_share(spec, kind):
    """Share of the calls of the last quarter that go to one who knows."""
    bank, ids = walked(spec, kind, ROWS // 2)
    late = ids[bank.first_call[ids] >= ROWS * 3 // 4]
    asked = bank.answers.asked[late]
    return (asked & changed(kind).right[late]).sum() / asked.sum()


@pytest.mark.parametrize("bandit", ["bandit", "thompson"])
def test_a_bandit_with_a_window_is_back_after_a_swap_and_one_without_is_not(bandit):
    assert late_share(bandit, "unchanged") > 0.8
    assert late_share(f"{bandit}:300", "swapped") > 0.75
    assert late_share(bandit, "swapped") < 0.65


def test_a_window_remembers_the_latest_calls_alone():
    bank, ids = RecordedTeachers(CACHE), np.arange(140)
    remembers, knows = Bandit(POOL, bank, window=50), Bandit(POOL, bank)
    for start in range(0, 140, 20):
        bank.ask(start // 20 % 3, ids[start : start + 20])
    for start in range(0, 140, 20):
        remembers.learn(ids[start : start + 20])
    knows.learn(ids[90:])  # the last 50 begin in the middle of a batch
    np.testing.assert_allclose(remembers.scores(POOL.ids), knows.scores(POOL.ids), atol=1e-9)


def test_a_refusal_pays_a_bandit_nothing():
    bank = bank_of("quota", change=0)
    silent, bandit = int(changed("quota").silent.argmax()), Bandit(POOL, bank, width=0.0)
    ids = np.arange(200)
    for teacher in range(TEACHERS):
        bank.ask(teacher, ids)
    bandit.learn(ids)
    assert np.abs(bandit.scores(ids)[:, silent]).max() < 1e-12
    assert (np.delete(bandit.scores(ids), silent, axis=1) > 0.05).all()


@pytest.mark.parametrize("spec", ["bandit:0", "thompson:2.5", "bandit:many"])
def test_a_window_is_a_number_of_calls(spec):
    with pytest.raises(ConfigError, match="number of calls"):
        build_strategy(spec)


def test_a_watch_tells_a_fall_and_nothing_else():
    watch, random = FallWatch((2,)), np.random.default_rng(0)
    assert not watch.add((0,), random.random(2000) * 0.5 + 0.5)
    assert not watch.add((1,), np.zeros(500))  # always low is no fall
    assert not watch.add((0,), np.full(int(ALARM / 0.65) - 1, 0.0))
    assert watch.add((0,), np.zeros(2))
    watch.forget()
    assert not watch.add((0,), np.zeros(FEWEST))


def right_after(spec, kind, calls, budget=ROWS):
    """Share of right ones among rows of which one teacher was asked, so many calls after the change; who was asked."""
    bank, ids = walked(spec, kind, ROWS // 2, budget)
    late = ids[bank.first_call[ids] >= ROWS // 2 + calls]
    answers = bank.answers
    named = np.where(answers.answered[late], answers.logits[late].argmax(-1), -1)
    alone = answers.answered[late].sum(1) == 1
    return (named == LABELS[late, None]).any(1)[alone].mean(), answers.asked[late].mean(0)


def test_reverify_is_back_after_a_swap():
    right, asked = right_after("reverify", "swapped", 300)
    assert right > 0.95
    assert asked.sum() < 1.9  # calls a row, those about which everybody is asked among them
    assert right_after("verify", "swapped", 300)[1].sum() > 2


def test_reverify_leaves_alone_who_names_one_class_whatever_it_is_asked():
    poisoned = int(np.flatnonzero(differs("poisoned")[0].any(0))[0])
    assert right_after("reverify", "poisoned", 700, 2400)[1][poisoned] < 0.12
    assert right_after("verify", "poisoned", 700, 2400)[1][poisoned] > 0.3


def test_who_tells_nothing_is_who_tells_the_same_of_all():
    bank = ChangingTeachers(NAMES, WORLD, changed("poisoned"), 300, np.inf)
    verifier, ids = Reverifier(POOL, bank), np.arange(200)
    for some in (ids[:100], ids[100:]):
        for teacher in range(TEACHERS):
            bank.ask(teacher, some)
        if some[0] == 0:
            verifier.learn(some)
    told = verifier.tells(ids[100:])
    poisoned = int(np.flatnonzero(differs("poisoned")[0].any(0))[0])
    assert told[poisoned] == pytest.approx(0, abs=1e-9)
    assert (np.delete(told, poisoned) > 0.05).all()


def test_the_control_knows_of_the_change():
    for kind in ("swapped", "poisoned", "quota"):
        bank, ids = walked("oracle", kind, ROWS // 2)
        late = ids[bank.first_call[ids] >= ROWS // 2 + 64]
        knows = changed(kind).right[late]
        assert (bank.answers.asked[late] & knows).any(1)[knows.any(1)].mean() == 1
