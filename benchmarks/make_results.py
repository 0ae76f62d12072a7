"""Generate the pages of results, the shipped policy's card and all README figures from ``benchmarks/results``."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import asker_card
import change_report
import numpy as np
import readme
import yaml
from asking_report import results_table
from model_card import write_card
from moving_report import results_table as moving_table

from rlkd.records import file_hash, read_jsonl, write_text_atomic
from rlkd.report.benchmark import write_benchmark_report
from rlkd.report.origins import SHORT, untraced
from rlkd.report.plots import as_file, forest_plot, plot_style
from rlkd.report.wording import points
from rlkd.stats import STATISTICS_SEED, Panel, TaskRuns, group_runs, mean_interval, rival_row, task_rows, verdict
from rlkd.workflow.bench import HEADROOM, read_suites

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CLAIMS = HERE / "claims.yaml"
PUBLISHED = RESULTS / "published-algorithms.json"
DRAWN = RESULTS / "drawn-sets.json"
AGENTS = RESULTS / "agents.json"
KINDS = RESULTS / "kinds.json"
TOKENS = RESULTS / "tokens.json"
ASKING = RESULTS / "asking.json"
MOVING = RESULTS / "moving.json"
CHANGE = RESULTS / "change.json"
PICTURE = HERE / "quickstart.svg"
PICTURED = ("uniform", "entropy", "policy", "policy_shuffle", "oracle")
"""The weightings of the README's picture: the baseline, a formula, ours, its control, and what is possible."""
CODE = ("commit", "source")
"""Keys of a row that say which code made it."""
CAME = {"pays": "yes", "same": "not sure", "costs": "the other way", None: "one seed"}
"""Words for the side of zero on which the interval of a claimed difference lies."""


def main() -> None:
    """Write the pages and the card, then the figures of the README files; what is left to do there is told."""
    suites = read_records()
    tables, notes = more_tables(suites)
    write_benchmark_report(suites, HERE, tables=tables, notes=notes)
    write_text_atomic(PICTURE, picture(suites["quickstart"]))
    write_card()
    asker_card.write_card()
    left = readme.update(suites)
    for problem in left:
        print(problem)
    sys.exit(1 if left else 0)


def read_records() -> dict[str, list[dict[str, Any]]]:
    """The runs of every suite, as the pages show them."""
    suites = read_suites(sorted(RESULTS.glob("*.jsonl")))
    for name, records in suites.items():
        kept = RESULTS / f"{name}-headroom.json"  # of suites that were run command by command
        if kept.exists():
            (room, *_) = json.loads(kept.read_text(encoding="utf-8"))
            suites[name] = [{**record, "headroom": {key: room[key] for key in HEADROOM}} for record in records]
    return suites


def pictured(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy and interval of every weighting of the README's picture."""
    (runs,) = group_runs(records)
    rows = {row["weighting"]: row for row in task_rows(runs)}
    columns = {"accuracy": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
    return [{"weighting": name, **{key: rows[name][own] for key, own in columns.items()}} for name in PICTURED]


def picture(records: Sequence[dict[str, Any]]) -> str:
    """The README's picture: what students of the quick start reach."""
    with plot_style():
        return as_file(forest_plot(pictured(records)))


Made = Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]


def own_tables(suites: Mapping[str, Sequence[dict[str, Any]]]) -> Iterator[tuple[str, Path, Made, str]]:
    """Tables of files of their own: caption, file, what makes the table of its rows, and what is said of it."""
    yield "The published algorithms on planted teachers, shown for what they are", PUBLISHED, _published, ""
    yield "What each way of drawing sets of teachers adds, on tasks left out", DRAWN, _drawn_sets, ""
    yield "Agents of others on planted teachers, where the best action is known", AGENTS, _agents, ""
    for caption, kind in KINDS_OF_TASK.items():
        yield caption, KINDS, partial(_kinds, kind=kind), TOLD_OF_KINDS
    yield "Specialists by class on tokens, in the plain trainer", TOKENS, _tokens, TOLD_OF_TOKENS
    yield "Asking within a budget, without a label", ASKING, results_table, TOLD_OF_ASKING
    yield "Teachers that change while they are asked", MOVING, moving_table, TOLD_OF_MOVING
    changed = partial(change_report.change_table, suites=suites, kinds=_rows(KINDS))
    yield change_report.CAPTION, CHANGE, changed, change_report.TOLD


def more_tables(suites: Mapping[str, Sequence[dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Tables beside those of the suites by caption, and of each what it is made of."""
    files = {_caption(path): path for path in sorted(RESULTS.glob("*.json")) if _caption(path)}
    tables: dict[str, Any] = {caption: _without_code(_rows(path)) for caption, path in files.items()}
    told = {}
    for caption, path, made, words in own_tables(suites):
        if path.exists():
            files[caption], tables[caption], told[caption] = path, made(_rows(path)), words
    notes = {caption: f"{_file_note(path)} {told.get(caption, '')}".rstrip() for caption, path in files.items()}
    made_of: dict[str, str] = {}
    for suite, blocks in yaml.safe_load(CLAIMS.read_text(encoding="utf-8")).items():
        made_of |= dict.fromkeys(blocks, suite)
        tables |= _claims(suites.get(suite, []), blocks)
    asked = [record for record in read_jsonl(RESULTS / "mkd.jsonl") if record["kind"] == "task"]
    tables["MKD, accuracy of the teachers on validation"] = _teachers(asked)
    spread = "Meta-KD, how much t and lambda vary over the training rows"
    tables[spread], made_of[spread] = _spread(suites.get("meta_kd", [])), "meta_kd"
    said = {caption: untraced(suites.get(suite, [])) for caption, suite in made_of.items()}
    said["MKD, accuracy of the teachers on validation"] = untraced(asked)
    return tables, notes | {caption: " ".join(words) for caption, words in said.items() if words}


def _without_code(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what the note says of all of them."""
    return [{key: value for key, value in row.items() if key not in CODE} for row in rows]


def _file_note(path: Path) -> str:
    """Which file a table is made of, and which code made that."""
    rows = _rows(path)
    made = sorted({str(row["commit"])[:SHORT] for row in rows if row.get("commit")})
    silent = sum(not row.get("commit") for row in rows)
    code = f" by the code of `{'`, `'.join(made)}`" if made else ""
    told = f"From `{path.name}`, `{file_hash(path)}`,{code}".rstrip(",") + "."
    return told + (f" **{silent} of {len(rows)} lines carry no commit**." if silent else "")


def _caption(path: Path) -> str:
    kind, _, rest = path.stem.partition("-")
    return f"Performance, {rest}" if kind == "performance" else ""


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def _published(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where selections and weights end on planted teachers, means over seeds; a coin flip selects with 0.5."""
    cases: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        cases.setdefault((row["system"], row["case"]), []).append(row)
    figures = ("probability_right", "probability_wrong", "mass_right")
    return [
        {"system": system, "case": case, "seeds": len(rows)}
        | {name: _mean([row[name] for row in rows if row.get(name) is not None]) for name in figures}
        for (system, case), rows in cases.items()
    ]


def _drawn_sets(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over tasks, with the intervals of means over other such tasks."""
    by_sets: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_sets.setdefault(row["sets"], {})[row["task"]] = row
    real = by_sets["fixed"]
    return [
        {
            "sets": sets,
            "tasks": len(found),
            "label's probability, points over equal weights": _points(
                [row["probability"] - row["of_equal_weights"] for row in found.values()]
            ),
            "more than with the real sets": "-"
            if sets == "fixed"
            else _points([found[task]["probability"] - real[task]["probability"] for task in real]),
            "CPU seconds of a fit": f"{np.mean([row['cpu_seconds'] for row in found.values()]):.1f}",
        }
        for sets, found in by_sets.items()
    ]


def _agents(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where agents end, means over seeds; the optimum has a regret of 0."""
    cases: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        cases.setdefault((row["case"], row["agent"]), []).append(row)
    return [
        {
            "case": case,
            "agent": agent,
            "seeds": len(found),
            "regret": _mean([row["regret"] for row in found]),
            "most of a seed": f"{max(row['regret'] for row in found):.3f}",
            "of equal weights": _mean([row["regret_of_equal_weights"] for row in found]),
            "accuracy of students": _mean([row["student_accuracy"] for row in found]),
            "with equal weights": _mean([row["student_accuracy_of_equal_weights"] for row in found]),
            "CPU seconds": f"{np.mean([row['cpu_seconds'] for row in found]):.1f}",
        }
        for (case, agent), found in cases.items()
    ]


TOLD_OF_ASKING = (
    "Made by `python benchmarks/asking.py`, which says how; [all of it](../asking.md). Budgets are shares of what "
    "it costs to ask every teacher about every train row. `of the way` is from one teacher at random (0) to one that "
    "was trained on the instance's class (1) at the same budget, where that one is surely better. **What a stranger "
    "lacks**: `oracle` is told who was trained on what; the others are told nothing, but the weighting policy that is "
    "shipped, by which all arms mix answers, has seen these tasks (`unseen ...`: one that saw no task of the family). "
    "`policy`, the asking policy, has seen no task of the family."
)
TOLD_OF_MOVING = (
    "Made by `python benchmarks/moving.py`; [what the words mean, and all of it](../moving.md). Means over tasks. "
    "An arm is back on track when no more than 2 points are missing to the same arm in a run whose teachers were the "
    "changed ones from the first call on; one that learns nothing always is. **What a stranger lacks**: `oracle` is "
    "told who was trained on what, and of the change; `all, hedge` reads 100 labels."
)
KINDS_OF_TASK = {
    "Several labels at once, specialists": "multi-label classification",
    "Numbers, specialists": "regression",
}
"""Captions, and what their rows are of."""
TOLD_OF_KINDS = (
    "Made by `python benchmarks/kinds.py`, which says how. **What a stranger may lack**: `hedge`, `gate` and "
    "`cross_entropy` read the labels of the rows that a student learns from, `router` is fitted on labelled pairs, the "
    "oracle is told who knows what. `labels` has no teacher; gaps are those to the oracle, where it surely gains."
)


def _kinds(rows: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Arms by task: labels that are found in points, numbers by their squared error; more over uniform is better."""
    numbers = kind == "regression"
    score, gain = (
        ("squared error", "error less than equal weights") if numbers else ("labels found", "points over equal weights")
    )
    digits, scale, turned = (3, 1, -1) if numbers else (1, 100, 1)
    return [
        {
            "task": row["task"],
            "weighting": row["arm"],
            "seeds": row["seeds"],
            score: f"{turned * row['score']:.3f}",
            gain: "-"
            if row["arm"] == "uniform"
            else "{0:+.{3}f} [{1:+.{3}f}, {2:+.{3}f}]".format(
                *(scale * row[k] for k in ("gain", "low", "high")), digits
            ),
            "share of the gap": "-"
            if row["share"] is None or row["arm"] in ("uniform", "oracle")
            else f"{row['share']:.2f}",
        }
        for row in rows
        if row["kind"] == kind
    ]


TOLD_OF_TOKENS = (
    "Made by `python benchmarks/tokens.py`, which says how. `auto` is the policy that is shipped, unchanged: it reads "
    "no label, nor do `uniform` and `entropy`; `shuffle` gives a name what `auto` says of another. **What a stranger "
    "may lack**: `router`, `router:gain` and `policy` are fitted on 200 labelled windows, from which `labels` learns "
    "alone; `oracle` knows the class of every name, and which teacher was told it."
)
NEEDS = {"labels": "200 windows", "router": "200 windows", "router:gain": "200 windows", "policy": "200 windows"}
"""What weightings of tokens need beside the teachers."""


def _tokens(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy of students and of their teachers on names of files that none has seen; an interval's instance is one.

    What a file adds to the accuracy is its right names over the mean number of names of a file.
    """
    names = np.array(next(row["names"] for row in rows if "names" in row))
    found: dict[str, dict[int, Any]] = {}
    for row in rows:
        if "seed" in row:
            found.setdefault(row["arm"], {})[row["seed"]] = np.array(row["right"]) / names.mean()
    panel = Panel(found)
    made = [
        {"arm": arm, "labels": "every one" if arm == "oracle" else NEEDS.get(arm, "none"), "seeds": len(found[arm])}
        | {"accuracy": _estimated(panel.score(arm), 1, "")}
        | {f"over {other}, points": _lead(panel, arm, other) for other in ("uniform", "entropy", "auto", "router")}
        | {"share of the gap": "-" if arm == "oracle" else _estimated(panel.gap_share(arm, "uniform", "oracle"), 1, "")}
        | {"CPU s to fit": f"{np.mean([row['fit_cpu_seconds'] for row in rows if row['arm'] == arm]):.1f}"}
        for arm in found
    ]
    own = "{score:.3f}, of its own classes {score_of_own:.3f}"
    return made + [
        {"arm": row["arm"], "labels": "of its classes", "accuracy": own.format(**row)} for row in rows if "names" in row
    ]


def _lead(panel: Panel, arm: str, other: str) -> str:
    return "-" if arm == other else _estimated(panel.difference(arm, other), 100, "+")


def _estimated(figure: Any, scale: float, sign: str) -> str:
    estimate = None if figure is None else figure.estimate()
    if estimate is None:
        return "-" if figure is None else f"{scale * figure.value:{sign}.3g}"
    digits = 1 if scale > 1 else 3
    mean, low, high = (f"{scale * value:{sign}.{digits}f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"


def _points(values: Sequence[float]) -> str:
    mean = mean_interval(values)
    return f"{100 * mean.mean:+.1f} [{100 * mean.low:+.1f}, {100 * mean.high:+.1f}]"


def _claims(records: Sequence[dict[str, Any]], blocks: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Tables by caption, each of differences in points; none where nothing was run."""
    rng = np.random.default_rng(STATISTICS_SEED)
    runs = group_runs([record for record in records if record["kind"] == "run"])
    return {caption: _differences(runs, block, rng) for caption, block in blocks.items()}


def _differences(runs: Sequence[TaskRuns], block: Mapping[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Means over the tasks of each group, student by student."""
    rows = []
    for student in dict.fromkeys(table.student for table in runs):
        for claim in block["claims"]:
            row = {"student": student, "claim": claim["says"], "arms": f"{claim['left']} minus {claim['right']}"}
            for group, tasks in block["groups"].items():
                tables = [table for table in runs if table.student == student and table.task in tasks]
                found = rival_row(tables, claim["left"], claim["right"], rng)
                row[group] = None if found is None else f"{points(found, 'mean')}, {CAME[verdict(found, 'mean')]}"
            rows.append(row)
    return rows


def _spread(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Quantiles of the prototype score and the domain expertise, of every task and meta-teacher."""
    found = {
        (record["task"], *record["recipe"]["teachers"], *map(tuple, (record["prototype_score"], record["expertise"])))
        for record in records
        if record.get("prototype_score")
    }
    columns = ("t, 5%", "t, half", "t, 95%", "lambda, 5%", "lambda, half", "lambda, 95%")
    return [
        {"task": task, "meta-teacher": teacher}
        | {column: f"{value:.3f}" for column, value in zip(columns, (*scores, *expertise), strict=True)}
        for task, teacher, scores, expertise in sorted(found)
    ]


def _teachers(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy of the teachers on validation, task by task."""
    rows = [
        {"task": record["task"]}
        | {
            name: f"{accuracy:.3f}"
            for name, accuracy in zip(record["teachers"], record["teacher_accuracy"], strict=True)
        }
        for record in records
        if record["status"] == "ok"
    ]
    return sorted(rows, key=lambda row: row["task"])


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else "-"


if __name__ == "__main__":
    main()
