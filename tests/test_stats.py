"""Values worked by hand, determinism, and intervals that cover what they should."""

import time

import numpy as np
import pytest

from rlkd.errors import ConfigError
from rlkd.records import pack_bits
from rlkd.stats import (
    Draws,
    Estimate,
    Panel,
    bootstrap_interval,
    expected_calibration_error,
    group_runs,
    holm,
    iqm,
    over_tasks,
    paired_permutation_test,
    probability_of_improvement,
    rank_correlation,
    rival_rows,
    stratified_bootstrap,
    suite_rows,
    task_iqm,
    task_mean,
    task_rows,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def answers(shape: tuple[int, int], right: int) -> np.ndarray:
    """The first ``right`` instances of every seed are answered rightly."""
    return np.broadcast_to(np.arange(shape[1]) < right, shape).copy()


def panel(rng: np.random.Generator, *arms: np.ndarray, reps: int = 2000) -> Panel:
    """Arms ``a``, ``b``, ``c`` of bool answers (S seeds, N instances)."""
    return Panel({name: dict(enumerate(arm)) for name, arm in zip("abc", arms, strict=False)}, rng, reps)


def estimate(draws: Draws | None) -> Estimate:
    assert draws is not None
    found = draws.estimate()
    assert found is not None
    return found


def paired_difference(a: np.ndarray, b: np.ndarray, rng: np.random.Generator, reps: int = 2000) -> Estimate:
    return estimate(panel(rng, a, b, reps=reps).difference("a", "b"))


def test_iqm_drops_a_quarter_at_each_end() -> None:
    assert iqm([0, 1, 2, 3, 4, 5, 6, 700]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert iqm([[1.0, 2.0], [3.0, 100.0]]) == pytest.approx(2.5)
    assert iqm([1.0, 2.0, 6.0]) == pytest.approx(3.0)


def test_bootstrap_of_a_constant_is_that_constant(rng: np.random.Generator) -> None:
    assert bootstrap_interval([0.5] * 4, np.mean, rng, reps=50) == Estimate(0.5, 0.5, 0.5)


def test_bootstrap_of_two_values_has_three_means(rng: np.random.Generator) -> None:
    # Means of resamples of {0, 1} are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4.
    assert bootstrap_interval([0, 1], np.mean, rng) == Estimate(0.5, 0.0, 1.0)
    half = bootstrap_interval([0, 1], np.mean, rng, level=0.4)
    assert (half.low, half.high) == (0.5, 0.5)


def test_stratified_bootstrap_keeps_tasks_apart(rng: np.random.Generator) -> None:
    # Runs agree within each task, so resampling within tasks changes nothing.
    scores = np.tile([0.1, 0.5, 0.9], (4, 1))
    result = stratified_bootstrap(scores, np.mean, rng, reps=50)
    assert [result.low, result.high] == pytest.approx([0.5, 0.5])


def test_one_run_has_no_interval(rng: np.random.Generator) -> None:
    with pytest.raises(ConfigError, match="at least 2 runs, got 1"):
        bootstrap_interval([0.5], np.mean, rng)


@pytest.mark.parametrize(("values", "message"), [([0.1, np.nan], "1 others"), ([], "shape"), ([[0.1], [0.2]], "shape")])
def test_bad_scores_are_refused(values: list[float], message: str, rng: np.random.Generator) -> None:
    with pytest.raises(ConfigError, match=message):
        bootstrap_interval(values, np.mean, rng)


def test_probability_of_improvement_counts_ties_half() -> None:
    # Pairs: 2>1, 2=2, 3>1, 3>2: (1 + 0.5 + 1 + 1) / 4.
    assert probability_of_improvement([2, 3], [1, 2]) == 0.875
    assert probability_of_improvement([1, 1], [1, 1]) == 0.5


def test_permutation_test_is_exact_for_few_seeds(rng: np.random.Generator) -> None:
    # All of one sign: only the two extreme patterns of 2^5 reach the sum.
    assert paired_permutation_test([1, 2, 3, 4, 5], rng) == 2 / 32
    # |sum| of (+-1, +-3) is 2, 2, 4, 4; observed 2: every pattern is as extreme.
    assert paired_permutation_test([-1, 3], rng) == 1.0
    assert paired_permutation_test([0.1, 0.1, 0.1, 0.3], rng) == 2 / 16
    assert paired_permutation_test([0.0, 0.0], rng) == 1.0


def test_permutation_test_samples_for_many_seeds(rng: np.random.Generator) -> None:
    assert paired_permutation_test(np.ones(40), rng, reps=999) == pytest.approx(1 / 1000)
    assert paired_permutation_test(np.tile([1.0, -1.0], 20), rng, reps=999) == 1.0


def test_paired_difference_is_certain_where_arms_differ_everywhere(rng: np.random.Generator) -> None:
    right, wrong = np.ones((3, 50), bool), np.zeros((3, 50), bool)
    assert paired_difference(right, wrong, rng) == Estimate(1.0, 1.0, 1.0)
    assert paired_difference(right, right, rng) == Estimate(0.0, 0.0, 0.0)


def test_paired_difference_uses_the_pairing(rng: np.random.Generator) -> None:
    # 60 and 50 of 100 right, on the same 50: the difference varies as a share of 0.1 does,
    # standard error sqrt(0.1 * 0.9 / 100) = 0.03, against 0.07 for unpaired arms.
    result = paired_difference(answers((4, 100), 60), answers((4, 100), 50), rng)
    assert result.mean == pytest.approx(0.1)
    assert result.high - result.low == pytest.approx(2 * 1.96 * 0.03, rel=0.15)


def test_a_test_set_shared_by_seeds_is_not_counted_twice(rng: np.random.Generator) -> None:
    # The same answers under 9 seeds carry no more than under one.
    one = paired_difference(answers((1, 100), 60), answers((1, 100), 50), rng)
    nine = paired_difference(answers((9, 100), 60), answers((9, 100), 50), rng)
    assert nine.high - nine.low == pytest.approx(one.high - one.low, rel=0.15)


def test_seeds_vary_too(rng: np.random.Generator) -> None:
    # Two seeds, all right and all wrong: the mean of two drawn seeds is 0, 1/2 or 1.
    correct = np.array([[True] * 1000, [False] * 1000])
    assert estimate(panel(rng, correct).score("a")) == Estimate(0.5, 0.0, 1.0)


def test_the_same_generator_gives_the_same_interval() -> None:
    a = np.random.default_rng(1).random((3, 200)) < 0.7
    b = np.random.default_rng(2).random((3, 200)) < 0.6
    first, again, other = (paired_difference(a, b, np.random.default_rng(s)) for s in (5, 5, 6))
    assert first == again
    assert first != other


def test_blocks_of_resamples_cover_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlkd.stats.resampling._BLOCK", 7)
    result = estimate(panel(np.random.default_rng(0), answers((3, 100), 50), reps=500).score("a"))
    assert result.low == pytest.approx(0.4, abs=0.03)
    assert result.high == pytest.approx(0.6, abs=0.03)


def test_intervals_cover_the_truth() -> None:
    # Shared instance difficulty and varying seeds; the arms are equal, so the truth is 0.
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(100):
        logit = rng.normal(1, 1.5, 300) + rng.normal(0, 0.2, (2, 6, 1)) + rng.normal(0, 0.4, (2, 1, 300))
        a, b = rng.random((2, 6, 300)) < 1 / (1 + np.exp(-logit))
        result = paired_difference(a, b, rng, reps=300)
        covered += result.low <= 0 <= result.high
    assert covered >= 87


def test_two_levels_are_fast(rng: np.random.Generator) -> None:
    a, b = rng.random((2, 10, 3000)) < 0.9
    start = time.process_time()
    paired_difference(a, b, rng)
    assert time.process_time() - start < 1.0


def test_gap_share_by_hand(rng: np.random.Generator) -> None:
    # (0.65 - 0.5) / (0.7 - 0.5)
    shape = (3, 400)
    arms = panel(rng, answers(shape, 260), answers(shape, 200), answers(shape, 280))
    result = estimate(arms.gap_share("a", "b", "c"))
    assert result.mean == pytest.approx(0.75)
    assert 0.6 < result.low < 0.75 < result.high < 0.9


def test_oracle_recovers_all_and_uniform_nothing(rng: np.random.Generator) -> None:
    low, high = answers((3, 400), 200), answers((3, 400), 300)
    arms = panel(rng, low, high)
    assert estimate(arms.gap_share("b", "a", "b")) == Estimate(1.0, 1.0, 1.0)
    assert estimate(arms.gap_share("a", "a", "b")) == Estimate(0.0, 0.0, 0.0)


def test_gap_share_is_none_without_a_gap(rng: np.random.Generator) -> None:
    x, uniform = answers((3, 400), 260), answers((3, 400), 200)
    for right in (200, 201, 100):
        assert panel(rng, x, uniform, answers((3, 400), right)).gap_share("a", "b", "c") is None


def test_calibration_error_by_hand() -> None:
    # Bin (0.5, 0.6]: 0.6 sure, 1 of 2 right: |0.5 - 0.6| * 2/4.
    # Bin (0.8, 0.9]: 0.9 sure, both right: |1 - 0.9| * 2/4.
    probabilities = [[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.9, 0.1]]
    assert expected_calibration_error(probabilities, [0, 1, 1, 0], bins=10) == pytest.approx(0.1)
    # One bin: confidence 0.75, accuracy 0.75.
    assert expected_calibration_error(probabilities, [0, 1, 1, 0], bins=1) == pytest.approx(0.0)
    assert expected_calibration_error(np.eye(3), [0, 1, 2]) == 0.0


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([[0.5, 0.5]], [-1], "unlabelled"),
        ([[0.5, 0.5]], [2], "labels in"),
        ([[3.0, -1.0]], [0], "not logits"),
        ([[0.5, 0.5]], [0, 1], "one a row"),
    ],
)
def test_calibration_refuses(probabilities: list[list[float]], labels: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expected_calibration_error(probabilities, labels)


def test_holm_by_hand() -> None:
    # Sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1 which may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([0.2]).tolist() == [0.2]


def test_rank_correlation_by_hand(rng: np.random.Generator) -> None:
    # One swap of neighbours: 1 - 6 * 2 / (4 * 15); 8 of the 24 orders are as far from zero.
    found = rank_correlation([10, 20, 30, 40], [1, 3, 2, 900], rng)
    assert found is not None
    assert found[0] == pytest.approx(0.8)
    assert found[1] == pytest.approx(8 / 24)
    assert rank_correlation([1, 2, 3], [3, 2, 1], rng) == pytest.approx((-1.0, 2 / 6))
    assert rank_correlation([1, 2], [1, 2], rng) is None
    assert rank_correlation([1, 2, 3], [5, 5, 5], rng) is None


def test_shares_of_several_tasks_can_be_put_side_by_side(rng: np.random.Generator) -> None:
    arms = panel(rng, answers((3, 40), 21), answers((3, 40), 20), answers((3, 40), 25))
    share, gain = arms.gap_share("a", "b", "c"), arms.difference("a", "b")
    assert share is not None
    assert gain is not None
    assert share.value == pytest.approx(1 / 5)
    # some of the resamples have no gap: the others are repeated
    assert len(share.resampled) == len(gain.resampled) == 2000


def test_arms_are_compared_on_the_seeds_that_both_have(rng: np.random.Generator) -> None:
    right, wrong = np.ones(10, bool), np.zeros(10, bool)
    arms = Panel({"a": {0: right, 1: wrong, 2: right}, "b": {0: wrong, 2: wrong}, "c": {1: right}}, rng, reps=20)
    assert arms.common_seeds("a", "b") == (0, 2)
    difference, score = arms.difference("a", "b"), arms.score("a")
    assert difference is not None
    assert difference.estimate() == Estimate(1.0, 1.0, 1.0)
    assert score is not None
    assert score.value == pytest.approx(2 / 3)
    assert arms.difference("b", "c") is None
    assert arms.difference("a", "unknown") is None


def test_scores_without_answers_resample_seeds_alone(rng: np.random.Generator) -> None:
    arms = Panel({"a": {0: 0.5, 1: 0.7}, "b": {0: 0.4, 1: 0.4}, "one": {1: 0.9}}, rng)
    found = arms.difference("a", "b")
    assert found is not None
    # Means of two drawn from (0.1, 0.3): 0.1, 0.2 or 0.3.
    assert set(np.round(found.resampled, 6)) == {0.1, 0.2, 0.3}
    single = arms.difference("one", "b")
    assert single is not None
    assert single.value == pytest.approx(0.5)
    assert single.estimate() is None
    with pytest.raises(ConfigError, match=r"got \[2, 3\] of them"):
        Panel({"a": {0: np.ones(2, bool), 1: np.ones(3, bool)}}, rng)


def test_tasks_are_pooled_one_by_one() -> None:
    gains = [Draws(value, np.array([value, value + 1])) for value in (0.0, 1.0, 2.0, 3.0, 100.0)]
    pooled = over_tasks(gains, task_iqm)
    assert pooled.value == 2.0
    assert pooled.resampled.tolist() == [2.0, 3.0]
    assert over_tasks(gains, task_mean).value == pytest.approx(106 / 5)
    assert over_tasks([*gains, Draws(1.0, np.empty(0))], task_mean).estimate() is None


def record(task: str, weighting: str, seed: int, right: int, **more: object) -> dict[str, object]:
    correct = np.arange(100) < right
    return {
        "task": task, "student": "s", "weighting": weighting, "seed": seed, "status": "ok",
        "accuracy": right / 100, "correct": pack_bits(correct), "seconds": 10.0, **more,
    }  # fmt: skip


def test_rows_of_a_task_by_hand(rng: np.random.Generator) -> None:
    right = {"uniform": (40, 50), "policy": (55, 65), "oracle": (60, 70), "best_teacher": (30, 40)}
    records = [record("t", name, seed, n) for name, both in right.items() for seed, n in enumerate(both)]
    failed = {"task": "t", "student": "s", "weighting": "policy", "seed": 0, "status": "failed", "error": "out of luck"}
    (runs,) = group_runs([failed, *records, failed | {"weighting": "broken"}], rng)
    rows = {row["weighting"]: row for row in task_rows(runs, rng)}
    policy = rows["policy"]
    assert policy["failed"] == 0  # a later line finished it
    assert rows["broken"] == {"weighting": "broken", "seeds": 0, "failed": 1}
    assert [policy[key] for key in ("score", "gain", "over_best_teacher", "gap_share")] == pytest.approx(
        [0.6, 0.15, 0.25, 0.75]
    )
    assert policy["gain_low"] < 0.15 < policy["gain_high"]
    assert [policy[f"accuracy{end}"] for end in ("", "_low", "_high")] == [
        policy[f"score{end}"] for end in ("", "_low", "_high")
    ]
    # Both seeds of one sign: 2 of 4 patterns; three weightings are tested.
    assert (policy["p_value"], policy["p_holm"], policy["improves"]) == (0.5, 1.0, 1.0)
    assert [rows[name].get("verdict") for name in right] == [None, "pays", "pays", "costs"]
    assert "gain" not in rows["uniform"]
    assert rows["oracle"].get("gap_share") is None


def test_rows_of_a_suite_by_hand(rng: np.random.Generator) -> None:
    gains = {"a": 10, "b": 20, "c": 30, "d": -20, "e": 0}
    records = []
    for task, gain in gains.items():
        for seed in range(4):
            records += [record(task, "uniform", seed, 40), record(task, "oracle", seed, 80)]
            records.append(record(task, "policy", seed, 40 + gain, policy_seconds=30.0))
    tables = group_runs(records, rng)
    rows = {row["weighting"]: row for row in suite_rows(tables, rng)}
    policy = rows["policy"]
    assert list(rows) == ["oracle", "policy"]
    assert policy["gain"] == pytest.approx(0.08)
    assert policy["gain_iqm"] == pytest.approx(0.1)  # of 0, 0.1, 0.2
    assert policy["share_iqm"] == pytest.approx(0.25)
    assert (policy["pays"], policy["same"], policy["costs"], policy["share_tasks"]) == (3, 1, 1, 5)
    assert policy["improves"] == pytest.approx((3 + 0.5) / 5)
    assert policy["cost"] == pytest.approx(4.0)  # 10 + 30 seconds against 10
    assert rows["oracle"]["p_value"] < 0.001
    assert rows["oracle"]["p_holm"] == pytest.approx(2 * rows["oracle"]["p_value"])
    (against,) = [row for row in rival_rows(tables, "policy", rng) if row["rival"] == "oracle"]
    assert against["mean"] == pytest.approx(-0.32)
    assert against["by_task"]["d"]["gain"] == pytest.approx(-0.6)


def test_another_metric_and_planted_figures(rng: np.random.Generator) -> None:
    records = [
        record("cola", name, seed, 50, metric="matthews", matthews=0.1 * seed + bonus, regret=0.1 * seed)
        for name, bonus in (("uniform", 0.0), ("policy", 0.2))
        for seed in range(3)
    ]
    (runs,) = group_runs(records, rng)
    assert runs.metric == "matthews"
    row = task_rows(runs, rng)[1]
    assert (row["score"], row["gain"]) == pytest.approx((0.3, 0.2))
    assert row["regret"] == pytest.approx(0.1)
    assert row["regret_low"] < 0.1 < row["regret_high"]
    with pytest.raises(ConfigError, match="accuracy, matthews"):
        group_runs([*records, record("cola", "entropy", 0, 50)], rng)
    with pytest.raises(ConfigError, match="has no 'matthews'"):
        group_runs([record("cola", "entropy", 0, 50, metric="matthews")], rng)
