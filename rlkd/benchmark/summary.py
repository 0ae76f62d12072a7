"""The table of a comparison: paired differences with intervals, and what they say in sentences."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkd.records import unpack_bits
from rlkd.stats import (
    Estimate,
    gap_share,
    mean_accuracy,
    paired_difference,
    paired_permutation_test,
    probability_of_improvement,
)

STATISTICS_SEED = 0


def summarise(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per weighting: means, 95% intervals, paired differences to uniform and shares of the gap.

    Intervals resample seeds and test instances together (:mod:`rlkd.stats`).

    Args:
        records: Of one task, student and set of teachers. Seeds that failed for any weighting are left out for all.

    Returns:
        Rows in the order in which the weightings first appear; a weighting without a finished run has no figures.
    """
    names = list(dict.fromkeys(str(record["weighting"]) for record in records))
    finished = {(r["weighting"], r["seed"]): r for r in records if r["status"] == "ok"}
    alive = [name for name in names if any((name, r["seed"]) in finished for r in records)]
    seeds = sorted({r["seed"] for r in records if all((name, r["seed"]) in finished for name in alive)})
    rows = []
    right = {name: np.stack([unpack_bits(finished[name, s]["correct"]) for s in seeds]) for name in alive if seeds}
    for name in names:
        failed = sum(r["weighting"] == name and r["status"] != "ok" for r in records)
        row: dict[str, Any] = {"weighting": name, "seeds": len(seeds), "failed": failed}
        if name in right:
            runs = [finished[name, seed] for seed in seeds]
            row |= _row(name, right) | {
                metric: float(np.mean([run[metric] for run in runs]))
                for metric in ("macro_f1", "nll", "ece", "seconds")
            }
            for part in ("early", "late"):
                masses = [run[f"knowing_mass_{part}"] for run in runs]
                row[f"knowing_mass_{part}"] = None if None in masses else float(np.mean(masses))
        rows.append(row)
    return rows


def failures(records: Sequence[Mapping[str, Any]], shown: int = 3) -> list[str]:
    """Say which runs failed and why; nothing where none did."""
    failed = [record for record in records if record["status"] != "ok"]
    if not failed:
        return []
    named = [f"{_what(record)}: {record['error']}" for record in failed[:shown]]
    rest = f"; and {len(failed) - shown} more, see the file of runs" if len(failed) > shown else ""
    return [f"{len(failed)} of {len(records)} runs failed. {'; '.join(named)}{rest}."]


def _what(record: Mapping[str, Any]) -> str:
    """A run, or what comes before runs, in a few words."""
    made = {"task": "teachers", "policy": f"policy {record.get('policy')}"}.get(str(record.get("kind")))
    what = made or f"{record['weighting']}, seed {record['seed']}"
    return f"{record['task']}, {what}" if record.get("suite") else what


def _row(name: str, right: Mapping[str, NDArray[np.bool_]]) -> dict[str, Any]:
    generator: Callable[[], np.random.Generator] = lambda: np.random.default_rng(STATISTICS_SEED)  # noqa: E731
    mine = right[name]
    row: dict[str, Any] = {**_spread("accuracy", mean_accuracy(mine, generator()))}
    if "uniform" in right and name != "uniform":
        row |= _spread("gain", paired_difference(mine, right["uniform"], generator()))
        per_seed = mine.mean(1) - right["uniform"].mean(1)
        row["p_value"] = paired_permutation_test(per_seed, generator())
        row["improves"] = probability_of_improvement(mine.mean(1), right["uniform"].mean(1))
    if "uniform" in right and "oracle" in right and name not in ("uniform", "oracle"):
        share = gap_share(mine, right["uniform"], right["oracle"], generator())
        row |= {"gap_share": None} if share is None else dict(_spread("gap_share", share))
    return row


def _spread(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in sentences what a table of :func:`summarise` shows about the learned policy."""
    by_name = {str(row["weighting"]): row for row in rows if "accuracy" in row}
    policy, sentences = by_name.get("policy"), []
    failed = [str(row["weighting"]) for row in rows if "accuracy" not in row]
    if failed:
        sentences.append(f"No finished run of {', '.join(failed)}: see the errors in the file of runs.")
    if policy is None or "gain" not in policy:
        return sentences
    low, high = policy["gain_low"], policy["gain_high"]
    span = f"{100 * policy['gain']:+.1f} points over equal weights (95% interval {100 * low:+.1f} to {100 * high:+.1f})"
    if low > 0:
        sentences.append(f"The learned policy pays here: {span}.")
    elif high < 0:
        sentences.append(f"The learned policy harms here: {span}.")
    else:
        sentences.append(f"The learned policy makes no difference that these seeds can show: {span}.")
    shuffle = by_name.get("policy_shuffle")
    if shuffle is not None:
        if shuffle["accuracy"] >= policy["accuracy_low"]:
            sentences.append("Instance weighting is not the cause: the shuffled policy does as well.")
        else:
            drop = 100 * (policy["accuracy"] - shuffle["accuracy"])
            sentences.append(
                f"The instances are the cause: shuffling the policy's weights over them costs {drop:.1f} points."
            )
    if policy.get("gap_share") is not None:
        sentences.append(f"It recovers {policy['gap_share']:.2f} of the gap between equal weights and the oracle.")
    return sentences
