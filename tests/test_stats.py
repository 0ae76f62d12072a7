"""Values worked by hand, determinism, and intervals that cover what they should."""

import time
from itertools import product

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from rlkd.errors import ConfigError
from rlkd.records import pack_bits, pack_classes, unpack_classes
from rlkd.stats import (
    Contrast,
    Estimate,
    Panel,
    Share,
    expected_calibration_error,
    group_runs,
    holm,
    instance_values,
    iqm,
    mean_interval,
    probability_of_improvement,
    rank_correlation,
    rival_rows,
    suite_rows,
    task_rows,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def answers(shape: tuple[int, int], right: int) -> np.ndarray:
    """The first ``right`` instances of every seed are answered rightly."""
    return np.broadcast_to(np.arange(shape[1]) < right, shape).copy()


def panel(*arms: np.ndarray) -> Panel:
    """Arms ``a``, ``b``, ``c`` of bool answers (S seeds, N instances)."""
    return Panel({name: dict(enumerate(arm)) for name, arm in zip("abc", arms, strict=False)})


def estimate(figure: Contrast | Share | None) -> Estimate:
    assert figure is not None
    found = figure.estimate()
    assert found is not None
    return found


def paired_difference(a: np.ndarray, b: np.ndarray) -> Estimate:
    return estimate(panel(a, b).difference("a", "b"))


def test_iqm_drops_a_quarter_at_each_end() -> None:
    assert iqm([0, 1, 2, 3, 4, 5, 6, 700]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert iqm([[1.0, 2.0], [3.0, 100.0]]) == pytest.approx(2.5)
    assert iqm([1.0, 2.0, 6.0]) == pytest.approx(3.0)


def test_the_mean_over_runs_has_students_interval() -> None:
    # mean 2, standard error 1 / sqrt(3), t(2) = 4.3027
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.low, found.high) == pytest.approx(
        (2.0, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4
    )
    assert mean_interval([0.5] * 4) == Estimate(0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match="level in"):
        mean_interval([1.0, 2.0], level=95)


def test_one_run_has_no_interval() -> None:
    with pytest.raises(ConfigError, match="at least 2 runs, got 1"):
        mean_interval([0.5])


@pytest.mark.parametrize(("values", "message"), [([0.1, np.nan], "1 others"), ([], "shape"), ([[0.1], [0.2]], "shape")])
def test_bad_scores_are_refused(values: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mean_interval(values)


def test_probability_of_improvement_counts_ties_half() -> None:
    # Pairs: 2>1, 2=2, 3>1, 3>2: (1 + 0.5 + 1 + 1) / 4.
    assert probability_of_improvement([2, 3], [1, 2]) == 0.875
    assert probability_of_improvement([1, 1], [1, 1]) == 0.5


def test_paired_difference_is_certain_where_arms_differ_everywhere() -> None:
    right, wrong = np.ones((3, 50), bool), np.zeros((3, 50), bool)
    assert paired_difference(right, wrong) == Estimate(1.0, 1.0, 1.0)
    assert paired_difference(right, right) == Estimate(0.0, 0.0, 0.0)


def test_paired_difference_uses_the_pairing() -> None:
    # 60 and 50 of 100 right, on the same 50: the difference varies as a share of 0.1 does,
    # standard error sqrt(0.1 * 0.9 / 100) = 0.03, against 0.07 for unpaired arms; few differ, so that t(24) counts.
    result = paired_difference(answers((4, 100), 60), answers((4, 100), 50))
    assert result.mean == pytest.approx(0.1)
    assert result.high - result.low == pytest.approx(2 * 2.064 * 0.03, rel=0.01)


def test_a_test_set_shared_by_seeds_is_not_counted_twice() -> None:
    # The same answers under 9 seeds carry no more than under two.
    one = paired_difference(answers((2, 100), 60), answers((2, 100), 50))
    nine = paired_difference(answers((9, 100), 60), answers((9, 100), 50))
    assert nine.high - nine.low == pytest.approx(one.high - one.low, rel=1e-6)


def test_two_levels_are_fast(rng: np.random.Generator) -> None:
    a, b = rng.random((2, 10, 3000)) < 0.9
    start = time.process_time()
    paired_difference(a, b)
    assert time.process_time() - start < 1.0


def test_gap_share_by_hand() -> None:
    # (0.65 - 0.5) / (0.7 - 0.5)
    shape = (3, 400)
    arms = panel(answers(shape, 260), answers(shape, 200), answers(shape, 280))
    result = estimate(arms.gap_share("a", "b", "c"))
    assert result.mean == pytest.approx(0.75)
    assert 0.6 < result.low < 0.75 < result.high < 0.9


def test_oracle_recovers_all_and_uniform_nothing() -> None:
    low, high = answers((3, 400), 200), answers((3, 400), 300)
    arms = panel(low, high)
    assert estimate(arms.gap_share("b", "a", "b")) == Estimate(1.0, 1.0, 1.0)
    assert estimate(arms.gap_share("a", "a", "b")) == Estimate(0.0, 0.0, 0.0)


def test_gap_share_is_none_without_a_gap() -> None:
    x, uniform = answers((3, 400), 260), answers((3, 400), 200)
    for right in (200, 201, 100):
        assert panel(x, uniform, answers((3, 400), right)).gap_share("a", "b", "c") is None


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


def test_arms_are_compared_on_the_seeds_that_both_have() -> None:
    right, wrong = np.ones(10, bool), np.zeros(10, bool)
    arms = Panel({"a": {0: right, 1: wrong, 2: right}, "b": {0: wrong, 2: wrong}, "c": {1: right}})
    assert arms.common_seeds("a", "b") == (0, 2)
    difference, score = arms.difference("a", "b"), arms.score("a")
    assert difference is not None
    assert difference.estimate() == Estimate(1.0, 1.0, 1.0)
    assert score is not None
    assert score.value == pytest.approx(2 / 3)
    assert arms.difference("b", "c") is None
    assert arms.difference("a", "unknown") is None


def record(task: str, weighting: str, seed: int, right: int, **more: object) -> dict[str, object]:
    correct = np.arange(100) < right
    return {
        "task": task, "student": "s", "weighting": weighting, "seed": seed, "status": "ok",
        "accuracy": right / 100, "correct": pack_bits(correct), "seconds": 10.0, **more,
    }  # fmt: skip


def test_rows_of_a_task_by_hand() -> None:
    right = {"uniform": (40, 50), "policy": (55, 65), "oracle": (60, 70), "best_teacher": (30, 40)}
    records = [record("t", name, seed, n) for name, both in right.items() for seed, n in enumerate(both)]
    failed = {"task": "t", "student": "s", "weighting": "policy", "seed": 0, "status": "failed", "error": "out of luck"}
    (runs,) = group_runs([failed, *records, failed | {"weighting": "broken"}])
    rows = {row["weighting"]: row for row in task_rows(runs)}
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
    assert policy["p_value"] < 0.05
    assert policy["p_holm"] == pytest.approx(3 * policy["p_value"])  # three weightings are tested, this one the surest
    assert policy["improves"] == 1.0
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
    tables = group_runs(records)
    rows = {row["weighting"]: row for row in suite_rows(tables, rng)}
    policy = rows["policy"]
    assert list(rows) == ["oracle", "policy"]
    assert policy["gain"] == pytest.approx(0.08)
    assert policy["gain_iqm"] == pytest.approx(0.1)  # of 0, 0.1, 0.2
    assert policy["share_iqm"] == pytest.approx(0.25)
    assert (policy["pays"], policy["same"], policy["costs"], policy["share_tasks"]) == (3, 1, 1, 5)
    assert policy["improves"] == pytest.approx((3 + 0.5) / 5)
    # 10 + 30 seconds against 10, by the clock alone
    assert (policy["cost"], policy["wall_cost"]) == (None, pytest.approx(4.0))
    assert rows["oracle"]["p_value"] < 0.001
    assert rows["oracle"]["p_holm"] == pytest.approx(2 * rows["oracle"]["p_value"])
    (against,) = [row for row in rival_rows(tables, "policy", rng) if row["rival"] == "oracle"]
    assert against["mean"] == pytest.approx(-0.32)
    assert against["by_task"]["d"]["gain"] == pytest.approx(-0.6)


def test_another_metric_and_planted_figures() -> None:
    records = [
        record("cola", name, seed, 50, metric="matthews", matthews=0.1 * seed + bonus, regret=0.1 * seed)
        for name, bonus in (("uniform", 0.0), ("policy", 0.2))
        for seed in range(3)
    ]
    (runs,) = group_runs(records)
    assert runs.metric == "matthews"
    row = task_rows(runs)[1]
    assert (row["score"], row["gain"]) == pytest.approx((0.3, 0.2))
    assert row["regret"] == pytest.approx(0.1)
    assert row["regret_low"] < 0.1 < row["regret_high"]
    with pytest.raises(ConfigError, match="accuracy, matthews"):
        group_runs([*records, record("cola", "entropy", 0, 50)])
    with pytest.raises(ConfigError, match="has no 'matthews'"):
        group_runs([record("cola", "entropy", 0, 50, metric="matthews")])


def test_a_verdict_and_its_p_value_agree(rng: np.random.Generator) -> None:
    said = set()
    for _ in range(60):
        records = [
            record("t", name, seed, int(rng.normal(50 + bonus, 3)))
            for name, bonus in (("uniform", 0), ("policy", int(rng.integers(-12, 13))))
            for seed in range(3)
        ]
        (runs,) = group_runs(records)
        row = task_rows(runs)[1]
        assert (row["p_value"] < 0.05) == (row["verdict"] != "same")
        said.add(row["verdict"])
    assert said == {"pays", "costs", "same"}


def test_one_seed_says_nothing() -> None:
    records = [record("t", name, 0, right) for name, right in {"uniform": 20, "policy": 90, "oracle": 95}.items()]
    (runs,) = group_runs(records)
    row = task_rows(runs)[1]
    assert row["gain"] == pytest.approx(0.7)
    assert [row[key] for key in ("gain_low", "gain_high", "p_value", "verdict", "gap_share")] == [None] * 5
    (pooled, _) = suite_rows([runs], np.random.default_rng(0))
    assert (pooled["gain"], pooled["gain_low"], pooled["p_value"]) == (pytest.approx(0.7), None, None)


def test_no_score_has_an_interval_beyond_what_it_can_be() -> None:
    (runs,) = group_runs([record("t", "uniform", seed, right, regret=0.0) for seed, right in enumerate((99, 80, 100))])
    (row,) = task_rows(runs)
    assert (row["score_high"], row["accuracy_high"], row["regret_low"]) == (1.0, 1.0, 0.0)


def test_scores_of_instances_are_the_scores_and_their_jackknife(rng: np.random.Generator) -> None:
    known = {
        "matthews": matthews_corrcoef,
        "macro_f1": lambda labels, said: f1_score(labels, said, average="macro", zero_division=0.0),
    }
    for classes, (metric, score) in product((2, 3, 12), known.items()):
        labels = rng.integers(classes, size=40)
        predictions = np.where(rng.random(40) < 0.6, labels, rng.integers(classes, size=40))
        values = instance_values(metric, labels, predictions)
        without = np.array([score(np.delete(labels, i), np.delete(predictions, i)) for i in range(40)])
        assert values.mean() == pytest.approx(score(labels, predictions))
        assert values - values.mean() == pytest.approx(-39 * (without - without.mean()))
    alone = np.zeros(5, dtype=np.int64)
    assert instance_values("matthews", alone, alone).tolist() == [0.0] * 5
    assert instance_values("macro_f1", alone, alone).tolist() == [1.0] * 5
    with pytest.raises(ConfigError, match="got 'accuracy'"):
        instance_values("accuracy", labels, predictions)
    with pytest.raises(ConfigError, match="39 predictions"):
        instance_values("matthews", labels, predictions[1:])


def test_a_metric_that_is_no_mean_is_resampled_over_instances_where_answers_are_kept(rng: np.random.Generator) -> None:
    labels = rng.integers(3, size=100)
    runs_of = {}
    for name, seed in product(("uniform", "policy"), range(3)):
        predictions = np.where(rng.random(100) < (0.5 if name == "uniform" else 0.8), labels, rng.integers(3, size=100))
        kept = {"labels": pack_classes(labels), "predictions": pack_classes(predictions)}
        score = matthews_corrcoef(labels, predictions)
        runs_of[name, seed] = record("t", name, seed, 50, metric="matthews", matthews=score, **kept)
    records = list(runs_of.values())
    (runs,) = group_runs(records)
    assert runs.panel is not None
    assert runs.panel.instances == 100
    assert task_rows(runs)[1]["score"] == pytest.approx(np.mean([runs_of["policy", s]["matthews"] for s in range(3)]))
    # a record of before, without them: one score a run, and the interval is about seeds
    (older,) = group_runs([{key: v for key, v in records[0].items() if key != "predictions"}, *records[1:]])
    assert older.panel is not None
    assert older.panel.instances == 1
    assert task_rows(older)[1]["gain"] == pytest.approx(task_rows(runs)[1]["gain"])
    with pytest.raises(ConfigError, match="the same test labels"):
        group_runs([records[0] | {"labels": pack_classes(np.roll(labels, 1))}, *records[1:]])


@pytest.mark.parametrize("classes", [1, 2, 3, 77, 150, 1025])
def test_classes_are_packed_and_unpacked(classes: int, rng: np.random.Generator) -> None:
    for count in (0, 1, 7, 500):
        found = rng.integers(classes, size=count)
        packed = pack_classes(found)
        assert np.array_equal(unpack_classes(packed), found)
        assert len(packed) <= count * max(1, (classes - 1).bit_length()) / 4 + 16
