"""What the figures of a benchmark say, written out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlkd.report.weighting_names import CEILINGS, CONTROLS, ROUTER, control_of, is_policy, ordered, policies
from rlkd.stats import UNIFORM, TaskRuns, rank_correlation, spread, verdict

Record = Mapping[str, Any]
Figures = dict[str, Any]

NO_REGRET = 1e-6
"""Where uniform's regret is less, every choice is a best one."""


def points(row: Figures, name: str) -> str | None:
    """A difference with its interval in points; None where it is unknown."""
    return spread_text(row, name, "+.1f", 100)


def spread_text(row: Figures, name: str, form: str, unit: float = 1.0) -> str | None:
    """A figure with its interval, ``0.81 [0.80, 0.82]``; None where it is unknown."""
    if row.get(name) is None:
        return None
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    mean = _signed(unit * row[name], form)
    return (
        mean if low is None or high is None else f"{mean} [{_signed(unit * low, form)}, {_signed(unit * high, form)}]"
    )


def _signed(value: float, form: str) -> str:
    text = format(value, form)
    # A rounded zero has no sign.
    return text.replace("-", "+" if "+" in form else "", 1) if float(text) == 0 else text


def p_text(p_value: float) -> str:
    """``p = 0.06``, ``p = 0.047``, ``p < 0.001``: three digits below 0.1, so that none is rounded over a level."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.{3 if p_value < 0.1 else 2}f}"


def task_sentences(runs: TaskRuns, rows: Sequence[Figures]) -> list[str]:
    """What :func:`policy_sentences` says, then the other weightings at a glance and what failed."""
    by_name = {str(row["weighting"]): row for row in rows}
    return [*_choices(runs), *policy_sentences(runs, rows), *_others(by_name), *failures(runs.records)]


def _choices(runs: TaskRuns) -> list[str]:
    """What was chosen with the labels at hand, and why."""
    return list(dict.fromkeys(str(one["chosen"]) for one in runs.finished.values() if one.get("chosen")))


def policy_sentences(runs: TaskRuns, rows: Sequence[Figures]) -> list[str]:
    """Whether the policies pay on a task, and whether instances are the cause."""
    by_name = {str(row["weighting"]): row for row in rows}
    return [line for name in policies(by_name) for line in _policy_sentences(runs, by_name, name)]


def brief_sentences(runs: TaskRuns, rows: Sequence[Figures]) -> list[str]:
    """Whether the first policy pays on a task, or what does best without one, then what its controls and runs say."""
    by_name = {str(row["weighting"]): row for row in rows}
    known = [name for name in ordered(by_name) if by_name[name].get("gain") is not None and name not in CEILINGS]
    shown = policies(by_name) or sorted(known, key=lambda name: -by_name[name]["gain"])
    if not shown:
        return ["Nothing here can be compared with equal weights.", *failures(runs.records)]
    name = shown[0]
    beside = (
        [*_control_sentence(runs, by_name, name, "shuffle"), *_router_sentence(runs, name)] if is_policy(name) else []
    )
    return [gain_sentence(by_name[name]), *beside, *_choices(runs), *failures(runs.records)]


def _router_sentence(runs: TaskRuns, name: str) -> list[str]:
    """Did rewards add to the router?"""
    draws = None if runs.panel is None else runs.panel.difference(name, ROUTER)
    if draws is None:
        return []
    row = spread("gain", draws)
    said = {
        "pays": "Rewards added to the supervised router",
        "same": "Rewards added nothing sure to the supervised router",
        "costs": "The supervised router alone does better",
        None: "One run is too few to tell it from the router",
    }[verdict(row, "gain")]
    return [f"{said}: `{name}` minus `{ROUTER}` {points(row, 'gain')} points."]


def gain_sentence(row: Figures) -> str:
    """Whether a weighting pays on a task, with its interval."""
    name = row["weighting"]
    if row.get("gain") is None:
        return f"`{name}` has no run that can be paired with uniform."
    chance = "" if row.get("p_value") is None else f" ({p_text(row['p_value'])})"
    gain = f"{points(row, 'gain')} points over uniform"
    return {
        "pays": f"`{name}` **pays here**: {gain}{chance}.",
        "costs": f"`{name}` **costs accuracy here**: {gain}{chance}.",
        "same": f"`{name}` **makes no sure difference here**: {gain}{chance}.",
        None: f"`{name}`: {gain}; one run is too few to say more.",
    }[row.get("verdict")]


def _policy_sentences(runs: TaskRuns, by_name: dict[str, Figures], name: str) -> list[str]:
    row = by_name[name]
    said = gain_sentence(row)
    if row.get("gain") is None:
        return [said]
    share = spread_text(row, "gap_share", ".2f")
    if share is not None:
        said += f" It recovers {share} of the gap between uniform and the oracle."
    causes = [line for kind in CONTROLS for line in _control_sentence(runs, by_name, name, kind)]
    return [said, *_origin(runs, name), *causes]


def _origin(runs: TaskRuns, name: str) -> list[str]:
    """Says so where rewards taught a policy nothing, and where its students wanted less of it, or none."""
    found = [record.get("policy_origin") for (weighting, _), record in runs.finished.items() if weighting == name]
    started = {"router": "the router that it started from", "untrained": "the untrained network that it started from"}
    said = []
    for origin, what in started.items():
        if origin in found:
            said.append(
                f"**Reinforcement learning added nothing**: `{name}` is {what}{_in(found, origin)}; nothing that was "
                "made of it taught students better on validation."
            )
    own = [record for (weighting, _), record in runs.finished.items() if weighting == name]
    strengths = [record.get("policy_strength") for record in own]
    if 0 in strengths:
        said.append(
            f"**Equal weights taught trial students best**: `{name}` is at strength 0{_in(strengths, 0)}, which is "
            "uniform."
        )
    for strength in sorted({s for s in strengths if s is not None and 0 < s < 1}):
        learned = any(r.get("policy_origin") is not None for r in own if r.get("policy_strength") == strength)
        why = "as trial students learned best" if learned else "which made labels likeliest where it was fitted"
        said.append(f"`{name}` acts at strength {strength:g}{_in(strengths, strength)}, {why}.")
    return said


def _in(found: Sequence[Any], value: Any) -> str:
    """In how many runs, unless in all."""
    count = found.count(value)
    return "" if count == len(found) else f" in {count} of {len(found)} runs"


def _control_sentence(runs: TaskRuns, by_name: dict[str, Figures], name: str, kind: str) -> list[str]:
    """Is it the instances? Against the policy's own weights, shuffled or averaged; nothing without that control."""
    control = control_of(name, kind, list(by_name))
    draws = None if runs.panel is None or control is None else runs.panel.difference(name, control)
    if draws is None:
        return []
    what = "the shuffle" if kind == "shuffle" else "the policy's average weights, fixed,"
    drop = spread("drop", draws)
    side, size = verdict(drop, "drop"), f"`{name}` minus `{control}` {points(drop, 'drop')} points"
    if side is None:
        return [f"{size}; one run is too few to say more."]
    if side == "pays" and kind == "shuffle":
        return [f"The instances matter: shuffling the weights over them costs accuracy ({size})."]
    if side == "pays":
        return [f"Fixed weights would not do: {size}."]
    if kind == "shuffle":
        does = "does as well, as far as these runs tell" if side == "same" else "does better"
        return [f"**Instance weighting is not the cause** ({what} {does}): {size}."]
    are = "are as good, as far as these runs tell" if side == "same" else "are better"
    return [f"Fixed weights would do: {what} {are} ({size})."]


def _others(by_name: dict[str, Figures]) -> list[str]:
    words = {"pays": "Above uniform", "costs": "Below uniform", "same": "No sure difference to uniform"}
    said = []
    rest = [name for name in ordered(by_name) if name not in policies(by_name)]
    for word, heading in words.items():
        names = [f"`{name}`" for name in rest if by_name[name].get("verdict") == word]
        if names:
            said.append(f"{heading}: {', '.join(names)}")
    unfinished = [f"`{name}`" for name in rest if by_name[name].get("score") is None]
    if unfinished:
        said.append(f"Without a finished run: {', '.join(unfinished)}")
    return [f"{'; '.join(said)}."] if said else []


def failures(records: Sequence[Record], shown: int = 3) -> list[str]:
    """Which runs failed and why; nothing where none did.

    Args:
        records: Runs, and what came before them (``kind`` other than ``run``), of one task or several.
        shown: Failures that are told one by one.
    """
    failed = [record for record in records if record["status"] != "ok"]
    if not failed:
        return []
    several = len({record["task"] for record in records}) > 1
    named = [f"{_what(record, several)}: {record.get('error', 'no reason given')}" for record in failed[:shown]]
    rest = f"; and {len(failed) - shown} more, see the file of runs" if len(failed) > shown else ""
    return [f"**{len(failed)} of {len(records)} runs failed**. {'; '.join(named)}{rest}."]


def _what(record: Record, several: bool) -> str:
    """A run, or what comes before runs, in a few words; with its task where there are several."""
    made = {"task": "teachers", "policy": f"policy `{record.get('policy')}`"}.get(str(record.get("kind")))
    what = made or f"`{record['weighting']}`, seed {record['seed']}"
    return f"{record['task']}, {what}" if several else what


def suite_sentences(rows: Sequence[Figures]) -> list[str]:
    """Whether the policies pay over the tasks of a suite."""
    by_name = {str(row["weighting"]): row for row in rows}
    sentences = []
    for name in policies(by_name):
        row = by_name[name]
        if not row["tasks"]:
            continue
        chance = "" if row["p_value"] is None else f" ({p_text(row['p_value'])}, of the mean)"
        sentence = (
            f"`{name}` over {_tasks(row['tasks'])}: pays on {row['pays']}, makes no sure difference on {row['same']}, "
            f"costs accuracy on {row['costs']}; mean {points(row, 'gain')}, IQM {points(row, 'gain_iqm')} points over "
            f"uniform{chance}"
        )
        share = spread_text(row, "share_iqm", ".2f")
        if share is not None:
            sentence += f"; IQM of the gap's share {share} on the {row['share_tasks']} with a gap"
        sentences.append(sentence + ".")
    return sentences


def regret_sentences(rows: Mapping[str, Sequence[Figures]]) -> list[str]:
    """How much of uniform's regret the policies keep at the most, over planted tasks (task to its rows)."""
    shares: dict[str, dict[str, float]] = {}
    for task, figures in rows.items():
        by_name = {str(row["weighting"]): row for row in figures}
        equal = by_name.get(UNIFORM, {}).get("regret") or 0.0
        for name in policies(by_name):
            if equal > NO_REGRET and by_name[name].get("regret") is not None:
                shares.setdefault(name, {})[task] = by_name[name]["regret"] / equal
    return [
        f"`{name}` keeps at most {max(found.values()):.2f} of uniform's regret (on "
        f"{max(found, key=found.__getitem__)}), of {_tasks(len(found))} with something to choose."
        for name, found in shares.items()
    ]


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def rival_sentences(policy: str, rows: Sequence[Figures]) -> list[str]:
    """Which weightings a policy beats on the mean over tasks, and which beat it."""
    sides: dict[str, list[str]] = {"pays": [], "same": [], "costs": []}
    for row in rows:
        side = verdict(row, "mean")
        if side is not None:
            sides[side].append(f"`{row['rival']}` ({points(row, 'mean')})")
    words = {"pays": "better than", "same": "not distinguishable from", "costs": "worse than"}
    said = [f"{words[side]} {', '.join(names)}" for side, names in sides.items() if names]
    return [f"On the mean over tasks, in points, `{policy}` is {'; '.join(said)}."] if said else []


def settings_sentences(runs: TaskRuns) -> list[str]:
    """Say so where runs of one table were not made alike; nothing where they were."""
    found: dict[str, set[str]] = {}
    for record in runs.finished.values():
        for key, value in {**(record.get("settings") or {}), "teachers": record.get("teachers")}.items():
            found.setdefault(key, set()).add(repr(value))
    differing = sorted(key for key, values in found.items() if len(values) > 1)
    if not differing:
        return []
    return [f"**Not paired as they should be**: the runs of this table differ in {', '.join(differing)}."]


def correlation_sentence(name: str, rooms: Sequence[float], gains: Sequence[float], rng: np.random.Generator) -> str:
    """Spearman's rho of headroom and gain over tasks, or why there is none."""
    found = rank_correlation(rooms, gains, rng) if len(rooms) else None
    if found is None:
        return f"`{name}`: no rank correlation (n = {len(rooms)}; it takes 3 tasks that differ)."
    rho, chance = found
    return f"`{name}`: Spearman's rho of headroom and gain {rho:+.2f} (n = {len(rooms)}, {p_text(chance)})."
