"""Tables to the character, a page that needs nothing, and hostile names that stay text."""

import html.parser
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from rlkd.errors import ConfigError, OutputDirectoryError
from rlkd.records import pack_bits
from rlkd.report import (
    GLOSSARY,
    MIXTURE,
    Use,
    brief_table,
    deploy_sentences,
    failures,
    format_table,
    markdown_table,
    plain,
    task_sentences,
    trust_sentences,
    write_benchmark_report,
    write_report,
)
from rlkd.report.plots import move_apart
from rlkd.report.weighting_names import control_of, ordered, policies
from rlkd.stats import group_runs, task_rows

ROWS: list[dict[str, object]] = [
    {"weighting": "policy", "accuracy": 0.9, "seeds": 5, "paired": True},
    {"weighting": "日本", "accuracy": None, "seeds": 12},
]
HOSTILE = "<script>alert(1)</script>"


def weights(groups: list[str], teachers: list[str], bins: int = 4) -> dict[str, Any]:
    mean = np.full((bins, len(groups), len(teachers)), 1 / len(teachers))
    return {
        "teachers": teachers,
        "groups": groups,
        "bins": np.linspace(0, 1, bins).tolist(),
        "mean": mean.tolist(),
    }


def page(path: Path, **parts: Any) -> str:
    write_report(path / "report.html", **{"title": "A title", "summary": ["A sentence."], **parts})
    return (path / "report.html").read_text(encoding="utf-8")


def test_terminal_table_to_the_character() -> None:
    assert format_table(ROWS, ["weighting", "accuracy", "seeds", "paired"]) == "\n".join(
        [
            "weighting  accuracy  seeds  paired",
            "─────────  ────────  ─────  ──────",
            "policy       0.9000      5  yes",
            "日本              -     12  -",
        ]
    )


def test_markdown_table_to_the_character() -> None:
    rows = [{"a": "x|y", "b": 1.0}, {"a": "<b>", "b": 1e-7}]
    assert markdown_table(rows, ["a", "b"]) == "\n".join(
        [
            "| a         |      b |",
            "| --------- | -----: |",
            "| x\\|y      | 1.0000 |",
            "| &lt;b&gt; |  1e-07 |",
        ]
    )


def test_tables_without_rows_have_a_header() -> None:
    assert format_table([], ["a"]) == "a\n─"
    assert markdown_table([], ["a"]) == "| a |\n| --- |"


def test_terminal_escapes_and_line_breaks_are_disarmed() -> None:
    text = format_table([{"a": "\x1b[31mred\nline\ud800"}], ["a"])
    assert text.splitlines()[2] == "\ufffd[31mred line\ufffd"


def test_labels_move_apart_evenly_and_keep_their_order() -> None:
    assert move_apart([0.5, 0.5], 0.2, 0, 1) == pytest.approx([0.4, 0.6])
    assert move_apart([0.9, 0.1], 0.2, 0, 1) == pytest.approx([0.9, 0.1])
    assert move_apart([1.0, 1.0], 0.2, 0, 1) == pytest.approx([0.8, 1.0], abs=1e-6)
    assert move_apart([], 0.2, 0, 1) == []


def test_missing_parts_are_left_out(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "<svg" not in text
    assert "<section" not in text
    assert "A sentence." in text


def test_page_has_every_part_and_no_reference_out(tmp_path: Path) -> None:
    text = page(
        tmp_path,
        accuracy=[
            {"weighting": "uniform", "accuracy": 0.81, "low": 0.8, "high": 0.82},
            {"weighting": "policy", "accuracy": 0.9, "low": 0.88, "high": 0.92},
            {"weighting": "alone", "accuracy": 0.5},
        ],
        learning_curve={"timesteps": [0, 10, 20], "reward": [0.0, 0.1, 0.2], "validation": [0.5, None, 0.75]},
        weights=weights(["books", "music"], ["a", "b", "c"]),
        tables=[("Costs", ROWS)],
    )
    # Forest plot, two curves, two groups.
    assert text.count("<svg") == text.count("</svg>") == 5
    assert "policy 90.0 [88.0, 92.0]; uniform 81.0 [80.0, 82.0]; alone 50.0." in text
    assert "Validation loss of trial students, nats over environment steps, from 0.500 to 0.750." in text
    assert "Mean teacher weight on music over training: a from 0.33 to 0.33" in text
    assert '<td class="n">12</td>' in text
    assert "<script" not in text
    outside = set(re.findall(r'(?:src|href)="([^#"][^"]*)"|url\((?!#)([^)]*)\)|@import', text))
    assert not outside
    ids = re.findall(r' id="([^"]+)"', text)
    assert not [name for name in ids if re.fullmatch(r"\w+_\d+", name)]


def test_a_page_opens_on_its_summary_and_one_picture(tmp_path: Path) -> None:
    """What is found, what shows it, what is beside it; the rest is folded."""
    text = page(
        tmp_path,
        summary=["It pays.", "Instances matter."],
        details=["All of it."],
        accuracy=[{"weighting": "uniform", "accuracy": 0.5}],
        weights=weights(["g"], ["a", "b"]),
        tables=[("Costs", ROWS)],
    )
    opening, *folded = text.split('<details class="part">')
    assert [text.count("<svg") for text in (opening, *folded)] == [1, 0, 1, 0]
    assert opening.index("It pays.") < opening.index("<svg") < opening.index("Instances matter.")
    assert ["All of it." in part for part in folded] == [True, False, False]
    assert [part.count("<table>") for part in folded] == [0, 0, 1]
    assert "<table>" in page(tmp_path, tables=[("Costs", ROWS)]).split("<details")[0]  # all there is to see


def test_a_learning_curve_is_the_lead_over_equal_weights_where_that_is_known(tmp_path: Path) -> None:
    curve = {"timesteps": [0, 10], "reward": [None, -0.5], "validation": [0.75, 0.5], "over_equal": [None, 0.25]}
    known = page(tmp_path, learning_curve={**curve, "equal_loss": 0.625, "kept_loss": 0.5})
    assert "Reward less that of equal weights at the same step over environment steps, from 0.250 to 0.250." in known
    assert known.count(">equal weights</text>") == 2
    assert "equal weights, 0.625 nats, measured on trial students; there the policy that was kept loses" in known
    before = page(tmp_path, learning_curve={**curve, "over_equal": [None, None]})
    assert "Reward over environment steps, from -0.500 to -0.500." in before
    assert "What equal weights would have earned at the same step was not recorded" in before
    assert ">equal weights</text>" not in before


class Tags(html.parser.HTMLParser):
    """Collects the elements and handlers that a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.handlers: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.handlers |= {name for name, _ in attrs if name.startswith("on")}


@pytest.mark.parametrize(
    "name",
    [HOSTILE, '"><img src=x onerror=alert(1)>', "--><script>", "$\\frac", "\x00\ud800\x1b", "日本語", ""],
)
def test_hostile_names_stay_text(tmp_path: Path, name: str) -> None:
    text = page(
        tmp_path,
        title=name,
        summary=[name],
        accuracy=[{"weighting": name, "accuracy": 0.5, "low": 0.4, "high": 0.6}],
        weights=weights([name] * 17, [name, name + "2"]),
        tables=[(name, [{name: name}])],
    )
    tags = Tags()
    tags.feed(text)
    assert not tags.tags & {"script", "img", "iframe", "foreignobject"}
    assert not tags.handlers
    assert "\x00" not in text


def test_groups_past_sixteen_are_told_in_words(tmp_path: Path) -> None:
    many = weights([f"group{g}" for g in range(18)], ["a", "b"])
    many["mean"][-1][17] = [0.25, 0.75]
    text = page(tmp_path, weights=many)
    assert text.count("<svg") == 16
    assert "Not drawn: group16: a leads with 0.50; group17: b leads with 0.75." in text


def test_names_of_teachers_are_not_cut_and_words_are_explained(tmp_path: Path) -> None:
    names = ["distilbert-base-uncased-finetuned-sst-2", "distilbert-base-uncased-finetuned-mrpc"]
    text = page(tmp_path, weights=weights(["a"], names), glossary=GLOSSARY)
    assert "…" not in text
    assert all(f"</span>{name}</li>" in text for name in names)
    assert not any(f"{name}</text>" in text for name in names)  # it would run out of its plot
    assert "tfidf-0</text>" in page(tmp_path, weights=weights(["a"], ["tfidf-0", "tfidf-1"]))
    assert all(f"<strong>{word}" in text for word in ("gap", "oracle", "shuffle", "mean", "mass early, late", "share"))


def test_many_teachers_and_unseen_groups_are_drawn(tmp_path: Path) -> None:
    many = weights(["seen", "unseen"], [f"t{k}" for k in range(9)])
    for row in many["mean"]:
        row[1] = [None] * 9
    text = page(tmp_path, weights=many)
    assert text.count("<svg") == 2
    assert "Mean teacher weight on unseen over training: never seen." in text


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    parts = {"accuracy": [{"weighting": "a", "accuracy": 0.5}], "weights": weights(["g"], ["a", "b"])}
    assert page(tmp_path, **parts) == page(tmp_path, **parts)


def test_plotting_settings_are_put_back(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    page(tmp_path, accuracy=[{"weighting": "a", "accuracy": 0.5}])
    assert dict(mpl.rcParams) == before


def test_neither_pyplot_nor_torch_is_imported() -> None:
    code = "import sys, rlkd.report, rlkd.stats\nsys.exit(bool({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="finite 'accuracy'"):
        page(tmp_path, accuracy=[{"weighting": "a", "accuracy": None}])
    with pytest.raises(ConfigError, match="one reward for each of 2"):
        page(tmp_path, learning_curve={"timesteps": [0, 1], "reward": [1.0]})
    with pytest.raises(ConfigError, match=r"shape \(4, 1, 2\), got \(4, 1, 3\)"):
        page(tmp_path, weights={**weights(["g"], ["a", "b", "c"]), "teachers": ["a", "b"]})


# -- benchmarks ------------------------------------------------------------------------------------


def run(weighting: str, seed: int, right: int, task: str = "t", **more: Any) -> dict[str, Any]:
    # A cyclic shift: the same number right, on other instances for another seed.
    correct = np.roll(np.arange(200) < right, 7 * seed)
    return {
        "task": task, "student": "s", "weighting": weighting, "seed": seed, "status": "ok", "accuracy": right / 200,
        "nll": 0.5, "ece": 0.1, "seconds": 10.0, "correct": pack_bits(correct), **more,
    }  # fmt: skip


def suite(right: dict[str, int], task: str = "t", **more: Any) -> list[dict[str, Any]]:
    return [run(name, seed, n, task, **more) for name, n in right.items() for seed in range(5)]


def benchmark(path: Path, suites: dict[str, list[dict[str, Any]]], **more: Any) -> tuple[str, str]:
    """All text, the suites' pages behind the first, and the HTML page."""
    first, page, *pages = write_benchmark_report(suites, path, **more)
    text = "\n".join(each.read_text(encoding="utf-8") for each in (first, *pages))
    return text, page.read_text(encoding="utf-8")


PAYS = {"uniform": 100, "policy": 150, "policy_shuffle": 90, "policy_mean": 100, "router": 150, "oracle": 160}
NO_DIFFERENCE = {"uniform": 100, "policy": 100, "policy_shuffle": 100, "policy_mean": 100}


def test_a_benchmark_says_where_the_policy_pays(tmp_path: Path) -> None:
    failed = run("entropy", 0, 0) | {"status": "failed", "error": "ValueError: bad luck"}
    text, page = benchmark(tmp_path, {"one": [*suite(PAYS), failed], "two": suite(NO_DIFFERENCE)})
    for said in (
        "`policy` **pays here**: +25.0 [",
        "0.001). It recovers 0.83 [",
        "The instances matter: shuffling the weights over them costs accuracy (`policy` minus `policy_shuffle` +30.0 [",
        "`policy` **makes no sure difference here**: +0.0 [",
        "**Instance weighting is not the cause** (the shuffle does as well, as far as these runs tell): `policy` "
        "minus `policy_shuffle` +0.0 [",
        "Above uniform: `router`, `oracle`; Below uniform: `policy_shuffle`; No sure difference",
        "**1 of 31 runs failed**. `entropy`, seed 0: ValueError: bad luck.",
        "The primary metric is accuracy on the test split.",
        "is wrong in at most 5% of cases",
    ):
        assert said in text
    row = next(line for line in text.splitlines() if line.startswith("| policy "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["policy", "5"]
    assert cells[3].startswith("0.750 [")
    assert cells[4].startswith("+25.0 [")
    assert cells[5].startswith("0.83 [")  # 25 of 30 points
    assert cells[6:9] == ["&lt;0.001", "&lt;0.001", "1.00"]
    assert "<strong>pays here</strong>" in page
    assert "<script" not in page


USES = {
    name: Use(command=f"rlkd distill --weighting {spec}", python="", lies_in=spec.partition(":")[2] or None)
    for name, spec in (
        *(("uniform", "uniform"), ("entropy", "entropy"), ("labels", "labels"), ("router", "policy:c/router-1")),
        ("policy_shuffle", "policy_shuffle:p"),
    )
}


@pytest.mark.parametrize(
    ("right", "seeds", "answer", "also"),
    [
        ({"uniform": 100, "entropy": 130, "router": 150}, 5, "**Deploy `router`**", "--weighting policy:c/router-1`"),
        ({"uniform": 100, "router": 150}, 5, "**Deploy `router`**", "(it lies in `c/router-1`)"),
        ({"uniform": 100, "entropy": 100}, 5, "**Deploy `uniform`**: nothing", "--weighting uniform`"),
        ({"uniform": 100, "entropy": 50, "policy_shuffle": 190}, 5, "**Deploy `uniform`**: nothing", ""),
        ({"uniform": 100, "oracle": 190}, 5, "**Deploy `uniform`**: nothing else", ""),
        ({"uniform": 100, "router": 150}, 1, "**Deploy `uniform`** for now: one seed", "--seeds 3"),
        ({"entropy": 100}, 5, "What to deploy cannot be said", "--weighting uniform"),
        ({"uniform": 100, "router": 150, "labels": 110}, 5, "**Deploy `router`**", "Labels alone are surely worse"),
        ({"uniform": 100, "router": 150, "labels": 190}, 5, "**Labels alone are surely better**", "Deploy `router`"),
        ({"uniform": 100, "router": 150, "labels": 150}, 5, "**Labels alone are surely as good", "Deploy `router`"),
        ({"uniform": 100, "labels": 100}, 1, "**Deploy `uniform`**", "one run is too few"),
    ],
)
def test_a_comparison_says_what_to_deploy(right: dict[str, int], seeds: int, answer: str, also: str) -> None:
    (runs,) = group_runs([run(name, seed, n) for name, n in right.items() for seed in range(seeds)])
    said = deploy_sentences(runs, USES)
    assert said[0].startswith(answer)
    assert also in " ".join(said)


def test_the_best_of_many_that_are_alike_is_not_deployed() -> None:
    """One of them alone would be sure; of twenty, one is by chance."""
    rng = np.random.default_rng(0)
    names = ["uniform", *(f"my{k}:W" for k in range(20))]
    noise = {name: rng.random((3, 200)) < (0.5 if name == "uniform" else 0.55) for name in names}
    records = [
        run(name, seed, 0) | {"accuracy": bits.mean(), "correct": pack_bits(bits)}
        for name, runs in noise.items()
        for seed, bits in enumerate(runs)
    ]
    (runs,) = group_runs(records)
    assert any(row.get("verdict") == "pays" for row in task_rows(runs))
    assert deploy_sentences(runs, dict.fromkeys(names, USES["uniform"]))[0].startswith("**Deploy `uniform`**")


def test_labels_alone_that_lose_less_than_half_a_point_are_as_good() -> None:
    right = {"uniform": 3000, "router": 4000, "labels": 3999}
    records = [
        run(name, seed, 0) | {"accuracy": n / 5000, "correct": pack_bits(np.roll(np.arange(5000) < n, 7 * seed))}
        for name, n in right.items()
        for seed in range(5)
    ]
    (runs,) = group_runs(records)
    assert deploy_sentences(runs, USES)[0].startswith(
        "**Labels alone are surely as good, to 0.5 points**: `labels` minus"
    )


@pytest.mark.parametrize(("right", "warned"), [(80, True), (130, False)])
def test_students_that_have_plainly_not_learned_are_told(right: int, warned: bool) -> None:
    (runs,) = group_runs(suite({"uniform": right}))
    said = trust_sentences(runs, [{"teacher": "a", "accuracy": 0.9}, {"teacher": MIXTURE, "accuracy": 0.7}], 0.2)
    assert ["undertrained" in line for line in said] == [True] * warned


@pytest.mark.parametrize(
    ("origins", "said"),
    [
        (["learned"] * 5, None),
        ([None] * 5, None),
        (["router"] * 5, "`policy` is the router that it started from; nothing"),
        (
            ["untrained", "learned", "learned", "untrained", "learned"],
            "the untrained network that it started from in 2 of",
        ),
    ],
)
def test_a_policy_that_rewards_taught_nothing_is_named(origins: list[str | None], said: str | None) -> None:
    policies = [run("policy", seed, 150, policy_origin=origin) for seed, origin in enumerate(origins)]
    (runs,) = group_runs([*suite({"uniform": 100}), *policies])
    text = " ".join(task_sentences(runs, task_rows(runs)))
    assert ("Reinforcement learning added nothing" in text) == (said is not None)
    assert said is None or said in text


def test_a_policy_that_its_trial_students_wanted_less_of_is_named() -> None:
    for strengths, said in {
        (1.0,) * 5: [],
        (0.0,) * 5: ["`policy` is at strength 0, which is uniform"],
        (0.5, 0.0, 1.0, 0.5, 1.0): ["at strength 0 in 1 of 5 runs", "acts at strength 0.5 in 2 of 5 runs"],
    }.items():
        policies = [run("policy", seed, 100, policy_strength=strength) for seed, strength in enumerate(strengths)]
        (runs,) = group_runs([*suite({"uniform": 100}), *policies])
        text = " ".join(task_sentences(runs, task_rows(runs)))
        assert text.count("strength") == len(said)
        assert all(part in text for part in said)


@pytest.mark.parametrize(("origin", "why"), [("learned", "trial students"), (None, "made labels likeliest")])
def test_why_a_policy_goes_less_far_depends_on_who_made_it(origin: str | None, why: str) -> None:
    policies = [run("policy", seed, 100, policy_strength=0.35, policy_origin=origin) for seed in range(5)]
    (runs,) = group_runs([*suite({"uniform": 100}), *policies])
    (line,) = [line for line in task_sentences(runs, task_rows(runs)) if "strength 0.35" in line]
    assert why in line


def test_what_few_seeds_leave_open_is_not_called_a_difference() -> None:
    # all three seeds gain, as 2^(1 - 3) would let chance have it in one of four, but unevenly
    right = {"uniform": (100, 100, 100), "policy": (102, 118, 160)}
    (runs,) = group_runs([run(name, s, n) for name, many in right.items() for s, n in enumerate(many)])
    (said, *_) = task_sentences(runs, task_rows(runs))
    assert re.fullmatch(
        r"policy makes no sure difference here: \+13\.3 \[-\d+\.\d, \+\d+\.\d\] points over uniform \(p = 0\.\d\d\)\.",
        plain(said),
    )


@pytest.mark.parametrize(
    ("shuffle", "said"),
    [
        (90, "The instances matter: shuffling the weights over them costs accuracy"),
        (150, "Instance weighting is not the cause (the shuffle does as well, as far as these runs tell)"),
        (195, "Instance weighting is not the cause (the shuffle does better)"),
    ],
)
def test_the_shuffle_says_no_more_than_its_interval(shuffle: int, said: str) -> None:
    (runs,) = group_runs(suite({"uniform": 100, "policy": 150, "policy_shuffle": shuffle}))
    (_, cause, *_) = task_sentences(runs, task_rows(runs))
    assert plain(cause).startswith(said)


def test_the_page_of_a_benchmark_opens_on_whether_the_policy_pays(tmp_path: Path) -> None:
    def opening(suites: dict[str, list[dict[str, Any]]]) -> str:
        _, page = benchmark(tmp_path, suites)
        return re.sub("</?(?:strong|code)>", "", page.split('<details class="part">')[0])

    many = opening({"one": suite(PAYS), "two": [*suite(NO_DIFFERENCE), *suite(PAYS, "u")], "three": suite({"a": 5})})
    assert "The learned policy pays on 2 of 3 tasks and costs accuracy on 0; means of suites go from +12.5 [" in many
    assert "] (two) to +25.0 [" in many
    assert "Instances matter in 2 of 2 suites: shuffling" in many
    assert "Rewards added to the supervised router in 0 of 2 suites" in many
    assert many.count("<svg") == 1
    assert many.count("<li>") == 2
    of_tasks = opening({"two": [*suite(NO_DIFFERENCE), *suite(PAYS, "u")]})
    assert "policy pays on 1 of 2 tasks and costs accuracy on 0: +12.5 [" in of_tasks
    assert "Points of the policy over equal weights: t +0.0; u +25.0." in of_tasks
    of_one = opening({"one": suite(PAYS)})
    assert "policy pays here: +25.0 [" in of_one
    assert "Rewards added nothing sure to the supervised router: policy minus router +0.0 [" in of_one
    assert "oracle +30.0." in of_one
    assert "entropy pays here" in opening({"one": suite({"uniform": 100, "entropy": 150, "oracle": 160})})


def test_what_intervals_are_about_is_said(tmp_path: Path) -> None:
    scores = [r | {"metric": "matthews", "matthews": r["seed"] / 10} for r in suite(PAYS, "cola")]
    text, _ = benchmark(tmp_path, {"suite": [*scores, *suite(PAYS, "other")]})
    assert "about other students and other test instances (other students alone, on the same instances, for" in text
    assert re.search(r"on the same instances, for `cola`\)", text)
    both, _ = benchmark(tmp_path, {"suite": suite(PAYS, "other")})
    assert "other students alone" not in both


def test_what_harms_and_what_never_finished_is_said() -> None:
    failed = run("entropy", 0, 0) | {"status": "failed", "error": "ValueError: bad luck"}
    (runs,) = group_runs([*suite({"uniform": 100, "policy": 60}), failed])
    costs, unfinished, _ = task_sentences(runs, task_rows(runs))
    assert plain(costs).startswith("policy costs accuracy here: -20.0 [")
    assert unfinished == "Without a finished run: `entropy`."
    other = failed | {"task": "u", "kind": "policy", "policy": "p"}
    assert failures([failed, other, *suite(PAYS)], shown=1) == [
        "**2 of 32 runs failed**. t, `entropy`, seed 0: ValueError: bad luck; and 1 more, see the file of runs."
    ]
    assert failures([other]) == ["**1 of 1 runs failed**. policy `p`: ValueError: bad luck."]


def test_the_table_of_a_terminal_leaves_out_what_nobody_has() -> None:
    (runs,) = group_runs(suite({"uniform": 100, "policy": 150}, knowing_mass_early=0.5, knowing_mass_late=None))
    uniform, policy = brief_table(task_rows(runs))
    assert list(uniform) == ["weighting", "seeds", "accuracy [95%]", "points over uniform"]
    assert uniform["points over uniform"] is None
    assert str(policy["points over uniform"]).startswith("+25.0 [")


def test_tasks_are_put_together(tmp_path: Path) -> None:
    records = []
    for index, task in enumerate(("a", "b", "c")):
        headroom = {"best_teacher": 0.5, "equal_mixture": 0.5, "best_per_instance": 0.6 + 0.1 * index}
        records += suite({**PAYS, "policy": 110 + 10 * index}, task, headroom=headroom)
    text, page = benchmark(
        tmp_path, {"suite": records}, weights={"a": weights(["g"], ["x", "y"])}, tables={"Speed": ROWS}
    )
    assert "`policy` over 3 tasks: pays on " in text
    assert "mean +10.0 [" in text
    assert "`policy`: Spearman's rho of headroom and gain +1.00 (n = 3, p = 0.33)." in text
    assert "`router`: no rank correlation (n = 3; it takes 3 tasks that differ)." in text
    assert "On the mean over tasks, in points, `policy` is better than `uniform` (+10.0 [" in text
    assert "do not say what its training took" in text
    assert "# Speed" in text
    # The opening's, forest, cost, headroom, and one group of weights.
    assert page.count("<svg") == page.count("</svg>") == 5
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(set(ids)) == len(ids)
    assert {f"#{name}" for name in ids} >= set(re.findall(r'href="([^"]+)"', page))
    assert not re.findall(r'src="|url\((?!#)|@import', page)


CODE = {"commit": "0123456789abcdef" * 2 + "01234567", "source": "f" * 64, "dirty": False}


@pytest.mark.parametrize(
    ("environments", "said"),
    [
        ([{"commit": None, "dirty": None}] * 5, "**5 of 5 lines carry no commit**; which code made them is not known."),
        ([{}] * 5, "**5 of 5 lines carry no commit**; which code made them is not known."),
        ([CODE, CODE, {}, {}, CODE], "**2 of 5 lines carry no commit**; which code made them is not known."),
        ([CODE | {"commit": None}] * 5, "**5 of 5 lines carry no commit**, only the hash of their source files."),
        ([CODE] * 4 + [CODE | {"dirty": True}], "**1 of 5 lines were made with changes that their commit lacks.**"),
        ([CODE] * 5, None),
    ],
)
def test_lines_of_unknown_code_are_not_shown_without_saying_so(
    tmp_path: Path, environments: list[dict[str, Any]], said: str | None
) -> None:
    records = [r | {"environment": e} for r, e in zip(suite({"uniform": 100}), environments, strict=True)]
    text, page = benchmark(tmp_path, {"suite": records})
    if said is None:
        assert "by the code of `01234567`." in text
        assert "carry no commit" not in text
        return
    plain_words = said.replace("**", "")
    assert said in text
    assert plain_words in re.sub("<[^>]+>", "", page)
    if "no commit" in said:
        assert text.count(said) == 3  # with the suite here and there, and above the task's own table


def test_policies_of_other_code_than_their_runs_are_told(tmp_path: Path) -> None:
    def lines(**more: Any) -> list[dict[str, Any]]:
        records = suite(PAYS, environment=CODE)
        return [r | {"policy": "h", **more} if r["weighting"] == "policy" else r for r in records]

    text, _ = benchmark(tmp_path, {"suite": lines(policy_environment={"commit": "9" * 40}, policy_strength=1.0)})
    assert "Their policies were trained by the code of `99999999`." in text
    assert "know no strength" not in text
    text, _ = benchmark(tmp_path, {"suite": lines()})
    assert "Their policies were trained by the code of an unknown commit." in text
    assert "**5 of 5 lines of policies know no strength**: today's code would choose one." in text


def test_tables_of_no_suite_have_pages_of_their_own_that_the_first_leads_to(tmp_path: Path) -> None:
    captions = ("Speed, of one", "Costs, in \N{EURO SIGN}", "Speed, of two", "Speed, of none")
    tables = {caption: [{"what": caption, "value": 1}] if "none" not in caption else [] for caption in captions}
    written = write_benchmark_report({"suite": suite(PAYS)}, tmp_path, tables=tables, notes={captions[1]: "A *note*."})
    first = (tmp_path / "RESULTS.md").read_text(encoding="utf-8").split("\n## More tables\n")[1]
    led = re.findall(r"\[(.*)\]\((.*)\)", first)
    assert [words for words, _ in led] == ["Speed: of one; of two", "Costs, in \N{EURO SIGN}"]
    assert [tmp_path / path for _, path in led] == [*written[-2:]]
    speed, costs = (path.read_text(encoding="utf-8") for path in written[-2:])
    assert re.findall("^#+ .*", speed, re.MULTILINE) == ["# Speed", "## Speed, of one", "## Speed, of two"]
    assert costs.startswith("# Costs, in \N{EURO SIGN}\n\nA *note*.\n\n| what ")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all((caption in page) == bool(rows) for caption, rows in tables.items())


def test_other_lines_have_another_hash(tmp_path: Path) -> None:
    records = suite(PAYS)
    told = [benchmark(tmp_path, {"suite": lines})[0] for lines in (records, records[:-1], [*records[1:], records[0]])]
    hashes = [re.search(r"lines, `([0-9a-f]{16})`", text) for text in told]
    assert len({found and found[1] for found in hashes}) == 3


def test_a_task_without_uniform_stands_in_the_summary_with_its_scores(tmp_path: Path) -> None:
    few = suite({"single": 120, "meta": 150}, "few")
    text, _ = benchmark(tmp_path, {"one": [*suite(PAYS), *few], "two": few})
    left_out = "In no difference to equal weights, without runs of `uniform`: `few` (`single`, `meta`)"
    _, one, two = (tmp_path / "RESULTS.md").read_text().split("\n## ")[:3]
    assert f"- {left_out}" in one
    assert f"- {left_out}" in two
    assert "- `policy` over 1 task" in one
    assert re.search(r"\| few +\| meta +\|\s+5 \| accuracy +\| 0.750 \[", text)


def test_cost_is_of_the_work_and_not_of_the_neighbours(tmp_path: Path) -> None:
    """By the clock hedge looks cheaper than uniform and the policy 26 times as dear; neither is."""
    wall = {"uniform": 10.0, "hedge": 6.0, "policy": 260.0}
    clock = [r | {"seconds": wall[r["weighting"]]} for t in "ab" for r in suite(dict.fromkeys(wall, 100), t)]
    work = [r | {"cpu_seconds": 8.0, "steps": 400, "policy_cpu_seconds": 0.0, "policy_steps": 0} for r in clock]

    def cost(records: list[dict[str, Any]]) -> tuple[list[str], str]:
        text, _ = benchmark(tmp_path, {"suite": records})
        row = next(line for line in text.splitlines() if line.startswith("| hedge "))
        return re.findall(r"cost, \w+", text), row.strip("|").split("|")[-1].strip()

    assert cost(clock) == (["cost, wall"], "\N{MULTIPLICATION SIGN}0.60")
    assert cost(work) == (["cost, CPU"], "\N{MULTIPLICATION SIGN}1.00")
    text, page = benchmark(tmp_path, {"suite": work})
    assert "CPU seconds | wall seconds | steps" in re.sub(" +", " ", text)
    assert "The clock counts" not in page
    assert "The clock counts" in benchmark(tmp_path, {"suite": clock})[1]


def test_choices_and_labels_are_told(tmp_path: Path) -> None:
    known = {"uniform": (0.6, [0.5, 0.5]), "policy": (0.03, [0.25, 0.75]), "ca_mkd": (0.3, [0.4, 0.6])}
    more = {"policy": {"falls_back": None}, "ca_mkd": {"falls_back": "equal weights"}}
    records = [
        run(name, seed, 100, teachers=["x", "y"], regret=regret, mean_weights=shares, **more.get(name, {}))
        for name, (regret, shares) in known.items()
        for seed in range(2)
    ]
    text, _ = benchmark(tmp_path, {"suite": records})
    assert "`policy` keeps at most 0.05 of uniform's regret (on t), of 1 task with something to choose." in text
    assert re.search(r"\| ca_mkd .*\| equal weights +\|\n", text)
    assert re.search(r"\| policy +\| 0.25 +\| 0.75 +\|\n", text)


def test_the_number_of_labels_is_a_curve_and_every_policy_stands_against_the_router(tmp_path: Path) -> None:
    records = []
    for count, gain in {500: 40, 30: 0, 120: 20}.items():
        arms = {"uniform": 100, "router": 100 + gain, "policy": 110 + gain, "policy_influence": 90 + gain}
        records += suite(arms, f"t-{count}", logits="the same", labelled_rows=count)
    records += suite(PAYS, "other", logits="others", labelled_rows=30)
    text, page = benchmark(tmp_path, {"suite": records})
    assert "t-30, t-120, t-500, with the same teachers." in text
    header = next(line for line in text.splitlines() if re.match(r"\| labels ", line))
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["labels", "router", "policy", "policy_influence"]
    assert re.search(r"\|\s+30 \| \+0.0 \[\+0.0, \+0.0\] +\| \+5.0 \[", text)
    assert "Each policy minus the supervised router" in text
    assert re.search(r"\| policy_influence +\| -5.0 \[", text)
    assert page.count("<svg") == 4  # the opening's, forest, cost, and the curve
    alone, _ = benchmark(tmp_path, {"suite": suite(PAYS, labelled_rows=30, logits="x")})
    assert "number of labels" not in alone
    assert "Each policy minus" not in alone


def test_the_order_of_weightings_is_constant() -> None:
    names = ["zeta:Own", "policy_mean", "oracle", "policy_shuffle", "aekd:flat", "policy", "aekd", "router", "uniform"]
    expected = [
        "uniform",
        "aekd",
        "aekd:flat",
        "zeta:Own",
        "router",
        "policy",
        "policy_shuffle",
        "policy_mean",
        "oracle",
    ]
    assert ordered(names) == ordered(reversed(names)) == expected


def test_every_policy_has_its_own_controls() -> None:
    names = ["policy", "policy_influence", "policy_shuffle", "policy_influence_shuffle", "policy_mean:x"]
    assert policies(names) == ["policy", "policy_influence"]
    assert control_of("policy", "shuffle", names) == "policy_shuffle"
    assert control_of("policy_influence", "shuffle", names) == "policy_influence_shuffle"
    assert control_of("policy", "mean", names) is None  # two policies: whose mean is it?
    assert control_of("policy", "mean", ["policy", "policy_mean:x"]) == "policy_mean:x"


@pytest.mark.parametrize(
    "records",
    [
        [],
        [run("policy", 0, 10) | {"status": "failed", "error": "no"}],
        [run("policy", 0, 10), run("uniform", 0, 10)],
        suite({"policy": 10, "entropy": 20}),
        [{k: v for k, v in r.items() if k not in ("correct", "seconds", "student", "nll")} for r in suite(PAYS)],
    ],
    ids=["nothing", "only failures", "one seed", "no uniform", "few keys"],
)
def test_what_is_missing_is_left_out(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    text, page = benchmark(tmp_path, {"suite": records})
    assert "nan" not in text
    assert "nan" not in page.replace("tabular-nums", "")


def test_hostile_benchmarks_stay_text(tmp_path: Path) -> None:
    records = suite(
        {"uniform": 100, "policy": 120, HOSTILE: 90}, HOSTILE, description=f"**{HOSTILE}**", teachers=[HOSTILE]
    )
    text, page = benchmark(tmp_path, {HOSTILE: records}, tables={HOSTILE: [{HOSTILE: HOSTILE}]})
    assert "<script" not in text
    tags = Tags()
    tags.feed(page)
    assert not tags.tags & {"script", "img", "iframe", "foreignobject"}


def test_runs_that_differ_in_settings_are_named(tmp_path: Path) -> None:
    records = [r | {"settings": {"max_steps": 10 if r["weighting"] == "policy" else 20}} for r in suite(PAYS)]
    text, _ = benchmark(tmp_path, {"suite": records})
    assert "**Not paired as they should be**: the runs of this table differ in max_steps." in text


def test_the_same_records_give_the_same_report(tmp_path: Path) -> None:
    records = suite(PAYS)
    assert benchmark(tmp_path, {"suite": records}) == benchmark(tmp_path, {"suite": list(records)})


def test_pages_of_suites_lie_in_their_folder_and_are_linked(tmp_path: Path) -> None:
    headroom = {"best_teacher": 0.5, "equal_mixture": 0.5, "best_per_instance": 0.6}
    suites = {name: suite(PAYS, headroom=headroom) for name in ("plain", "../../evil", "a](b) <c>")}
    (tmp_path / "out").mkdir()
    first, _, *pages = write_benchmark_report(suites, tmp_path / "out")
    assert len({page.resolve() for page in pages}) == 3
    assert {page.resolve().parent for page in pages} == {tmp_path / "out" / "results"}
    linked = re.findall(r"\]\((.+)\)$", first.read_text(), re.MULTILINE)
    assert linked.pop() == "results/headroom.svg"
    assert [first.parent / target for target in linked] == pages
    assert (tmp_path / "out" / "results" / "headroom.svg").read_text().startswith("<svg")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def reached(task: str, right: int, gain: float | None) -> list[dict[str, Any]]:
    """Runs of a task whose policy says what was reachable; None: made before policies did."""
    found = {"rows": 100, "by_student": {"one": {"gain": gain, "hint": gain, "gain_error": 0.0, "hint_error": 0.0}}}
    records = suite({"uniform": 100, "policy": right}, task)
    return [r | ({"reachable": found} if gain is not None and r["weighting"] == "policy" else {}) for r in records]


def test_predicted_gains_are_held_against_those_of_students(tmp_path: Path) -> None:
    new = [line for i, name in enumerate("abcd") for line in reached(name, 100 + 10 * i, 0.05 * i)]
    old = [r | {"headroom": {"equal_mixture": 0.5, "best_per_instance": 0.6}} for r in reached("e", 130, None)]
    text, _ = benchmark(tmp_path, {"new": new, "old": old})
    assert "Over 4 students of 4 tasks Spearman's rho of predicted and measured gain is +1.00 (" in text
    assert "is right for 100%" in text
    assert "![Measured against predicted points over equal weights" in text
    assert (tmp_path / "results" / "headroom.svg").read_text().startswith("<svg")


def test_a_file_where_the_pages_should_lie_is_told(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("mine")
    with pytest.raises(OutputDirectoryError, match="results"):
        write_benchmark_report({"one": suite(PAYS)}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
