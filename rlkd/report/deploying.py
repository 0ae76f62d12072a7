"""What a comparison advises: which weighting to deploy, how, and whether its students can be believed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlkd.report.tables import Row
from rlkd.report.weighting_names import CEILINGS, is_control, ordered
from rlkd.report.wording import p_text, points
from rlkd.stats import UNIFORM, Contrast, Panel, TaskRuns, holm, spread, verdict
from rlkd.stats.prediction import WORTH

Figures = Mapping[str, Any]

LABELS = "labels"
MIXTURE = "equal mixture"
"""What tables of teachers call the mean of their probabilities."""
LEVEL = 0.05
"""Two-sided."""
LEARNED_WELL = 0.75
"""Share of the way from guessing to their equal mixture below which students of equal weights are called undertrained.
On the quick start's teachers such students have gone 0.27 of it after 100 steps, 0.72 after 200, and gain ten points
more from twice as many, which is 0.96."""
ROOM = 0.05
"""Of accuracy between guessing and the mixture: where there is less, that share is noise."""
GLOSSARY = (
    "**weighting**: how much each teacher counts for an instance; `uniform`: all the same.",
    "**points**: hundredths of the test score, here differences to `uniform` with the same seeds.",
    "**[low, high]**: 95% interval about other students and other test instances; a difference is sure where it leaves "
    "zero out.",
    "**oracle**: equal weights over the teachers that were trained on the instance's class or domain: a ceiling that "
    "reads what nobody knows in use.",
    "**gap**: from `uniform` to the oracle. **share of the gap**: how much of it is recovered; 1 is the oracle.",
    "**shuffle**: the policy's own weights on the wrong instances; if it does as well, instances do not matter.",
    "**mean**: the policy's average weights for all instances; if it does as well, fixed weights would do.",
    "**mass early, late**: mean weight on teachers that know the instance, in the first and the last part of training.",
    "**labels**: a student of the labels alone, without a teacher.",
    "**equal mixture**: the mean of the teachers' probabilities: what `uniform` teaches.",
)
"""Words of the report of a comparison, a line each."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """How a weighting that was compared is used again."""

    command: str
    """That distils a student with it."""
    python: str
    """Makes the weighting."""
    lies_in: str | None = None
    """The folder of a learned one."""


def can_be_deployed(name: str) -> bool:
    """Whether a weighting may be advised, by its name: neither a ceiling nor a control, and with teachers."""
    return name not in (*CEILINGS, LABELS) and not is_control(name)


def deploy_sentences(runs: TaskRuns, uses: Mapping[str, Use], *, unlabelled: int = 0) -> list[str]:
    """Which weighting to deploy, how, and what labels alone would do. The answer comes first.

    Args:
        runs: A comparison on one task.
        uses: Weighting to how it is used: those that read no label, and ``labels`` if it was run.
        unlabelled: Train rows without a label, from which ``labels`` did not learn.
    """
    panel = runs.panel
    if panel is None or UNIFORM not in panel.names:
        return ["What to deploy cannot be said without students of equal weights: add `--weighting uniform`."]
    found = {
        name: lead
        for name in ordered(uses)
        if name != UNIFORM and can_be_deployed(name) and (lead := panel.difference(name, UNIFORM)) is not None
    }
    best, said = _best(found)
    rivals = [name for name in found if name != best and best in found and _as_good(panel, best, name)]
    lines = [
        said + (f" Not surely worse: {', '.join(f'`{name}`' for name in rivals)}." if rivals else ""),
        *(_how(best, uses[best]) if best in uses else []),
    ]
    alone, wins = _labels_alone(runs, best, uses.get(LABELS), unlabelled)
    return [*alone, *lines] if wins else [*lines, *alone]


def _best(found: Mapping[str, Contrast]) -> tuple[str, str]:
    """The weighting that gains most of those that are surely better than equal weights, else ``uniform``; why."""
    chances = {name: p for name, lead in found.items() if (p := lead.p_value()) is not None}
    corrected = dict(zip(chances, holm(list(chances.values())), strict=True)) if chances else {}
    sure = [name for name, p in corrected.items() if p < LEVEL and found[name].value > 0]
    if not found:
        return UNIFORM, f"**Deploy `{UNIFORM}`**: nothing else was compared that needs no label at deployment."
    if not chances:
        why = "one seed cannot tell whether anything is better than equal weights; take three at least"
        return UNIFORM, f"**Deploy `{UNIFORM}`** for now: {why} (`--seeds 3`)."
    over = f"p corrected for the {len(found)} that were tried" if len(found) > 1 else "the only one that was tried"
    if not sure:
        return UNIFORM, (
            f"**Deploy `{UNIFORM}`**: nothing that needs no label at deployment is surely better than equal weights "
            f"here ({over})."
        )
    best = max(sure, key=lambda name: found[name].value)
    gain, level = points(spread("gain", found[best]), "gain"), p_text(float(corrected[best]))
    return best, (
        f"**Deploy `{best}`**: of what needs no label at deployment it gains most, {gain} points over equal weights "
        f"({level}; {over})."
    )


def _as_good(panel: Panel, best: str, name: str) -> bool:
    """Whether another is not surely worse than the best."""
    return verdict(spread("lead", panel.difference(best, name)), "lead") != "pays"


def _how(name: str, use: Use) -> list[str]:
    lies = "" if use.lies_in is None else f" (it lies in `{use.lies_in}`)"
    return [f"To use `{name}`{lies}: `{use.command}`", f"In Python: `{use.python}`"]


def _labels_alone(runs: TaskRuns, best: str, use: Use | None, unlabelled: int) -> tuple[list[str], bool]:
    """What a student of the labels alone does against the best; whether that is the answer."""
    lead = None if runs.panel is None else runs.panel.difference(LABELS, best)
    if lead is None:
        return [], False
    row = spread("gain", lead)
    size, low = f"`{LABELS}` minus `{best}` {points(row, 'gain')} points", row["gain_low"]
    if low is None:
        return [f"Against labels alone: {size}; one run is too few to say more."], False
    if low < -WORTH / 100:
        sure = "surely worse" if verdict(row, "gain") == "costs" else "not surely as good, nor surely worse"
        return [f"Labels alone are {sure}: {size}."], False
    are = "better" if low > 0 else f"as good, to {WORTH:g} points"
    what = f"where rows have labels, leave the teachers out ({unlabelled:,} train rows have none and were not used)"
    if not unlabelled:
        what = "where every row has its label, teachers add nothing"
    how = "" if use is None or unlabelled else f" To use them: `{use.command}`"
    return [f"**Labels alone are surely {are}**: {size}; {what}.{how}"], True


def trust_sentences(runs: TaskRuns, teachers: Sequence[Row], guess: float) -> list[str]:
    """A warning where students of equal weights have plainly not learned what they were taught.

    Runs record no loss over training, so the end is judged: these students are taught the equal mixture, and one that
    has learned it is about as often right.

    Args:
        runs: A comparison on one task, scored by accuracy.
        teachers: Rows with ``teacher`` and ``accuracy`` on the same rows, the equal mixture among them.
        guess: Accuracy of always naming the most frequent class.
    """
    told = (row["accuracy"] for row in teachers if row["teacher"] == MIXTURE and "accuracy" in row)
    mixture = next((float(str(accuracy)) for accuracy in told), guess)
    score = None if runs.panel is None or UNIFORM not in runs.panel.names else runs.panel.score(UNIFORM)
    if score is None or mixture - guess < ROOM or score.value - guess >= LEARNED_WELL * (mixture - guess):
        return []
    return [
        f"**The students look undertrained, or too small**: with equal weights they are right on {score.value:.3f} of "
        f"test, less than {LEARNED_WELL:g} of the way from a guess ({guess:.3f}) to the teachers' equal mixture, which "
        f"they are taught ({mixture:.3f}). Differences may change with more steps (`--max-steps`), another rate or a "
        "larger student."
    ]
