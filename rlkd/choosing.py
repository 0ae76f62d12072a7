"""What ``auto`` does with labels: the shipped policy, unless students that learn from something else are surely better.

Few labels cannot tell. So the shipped policy is the prior: it is left where something is surely better, or where it
surely harms, which is the same where equal weights are among what is tried. Where it would change too little of what is
taught, which takes no label to see, equal weights are the prior: :mod:`rlkd.weighting.shipped`.
"""

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from rlkd.data.task import Task
from rlkd.devices import one_thread
from rlkd.errors import WeightingError
from rlkd.logit_cache import LogitCache, answered_ids
from rlkd.losses import refined_cross_entropy
from rlkd.models.students import smallest_student
from rlkd.ranks import is_first, once_by_all
from rlkd.records import digest
from rlkd.settings import ChoiceSettings, StudentSettings
from rlkd.settings.policies import PROXY
from rlkd.settings.students import is_pretrained, student_rate
from rlkd.stats.contrasts import Block, Contrast
from rlkd.trainer import make_trainer
from rlkd.weighting.base import Evidence
from rlkd.weighting.learned import Policy, load_policy
from rlkd.weighting.policy_files import AUTO, saved_identity
from rlkd.weighting.router import train_router
from rlkd.weighting.shipped import LEAST_CHANGE, equal_weights_policy, mean_change, too_little
from rlkd.weighting.spec import WeightingSpec

log = logging.getLogger(__name__)

PRIOR, ROUTER, TRAINED, EQUAL = AUTO, "router", "policy", "uniform"
STUDENTS = ChoiceSettings.trial_students
TRIAL_STEPS = 120
"""Steps of a trial student at most."""
TRIAL_SEED = 7_000
"""Sets trial students apart from those that are reported: they share no seed."""
FEWEST_ROWS = 10
"""Labelled validation rows below which nothing is tried: no difference of students could be sure."""
LEVEL = 0.05
"""Two-sided."""

Losses = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A weighting that was chosen by trial students, and why."""

    name: str
    """Of the candidate."""
    policy: Policy
    why: str
    """One sentence."""
    losses: Mapping[str, float]
    """Mean loss of each candidate's students on validation, in nats, their temperatures refitted; empty: not tried."""
    rows: int
    """Labelled validation rows."""
    students: int
    """Trial students in all."""
    change: float
    """Of what is taught, by the prior: a share in [0, 1]."""

    def save_pretrained(self, folder: Path) -> None:
        """Save the policy, which remembers why it was chosen; its card says so too."""
        record = {name: value for name, value in vars(self).items() if name != "policy"}
        self.policy.with_record(chosen=record).save_pretrained(folder)


def choose(
    task: Task,
    cache: LogitCache,
    candidates: Mapping[str, Policy],
    settings: StudentSettings,
    *,
    students: int = STUDENTS,
    prior: str = PRIOR,
    progress: bool = False,
) -> Choice:
    """Choose by paired trial students, each judged on labelled validation rows.

    Args:
        task: Its test rows are not touched.
        cache: The teachers' logits.
        candidates: By name, the prior among them; equal weights are tried beside them.
        settings: Of the student that is to be distilled; one that is pretrained is stood in for by a small one.
        students: Trial students of each candidate; those that lag behind the prior get half as many. 0: the prior.
        prior: Is left only for what is surely better; where it would change too little, equal weights are.
        progress: Show a progress bar.
    """
    task = task.training_view()
    cache = cache.head(len(task.table))
    ids = task.labelled_ids("validation")
    tried = {**candidates, EQUAL: equal_weights_policy()}
    changes = mean_change(candidates[prior], task, cache)
    note = f"; {too_little(prior, changes)}" if changes < LEAST_CHANGE else ""
    prior = EQUAL if note else prior
    choice = partial(Choice, rows=len(ids), change=round(changes, 4))
    if students == 0 or len(ids) < FEWEST_ROWS:
        why = "nothing else was tried" if students == 0 else f"{len(ids)} labelled validation rows cannot tell"
        return choice(name=prior, policy=tried[prior], why=f"`{prior}` is used: {why}{note}.", losses={}, students=0)
    trials = _Trials(task, cache, tried, trial_settings(settings, task))
    with tqdm(total=students * len(tried), desc="choosing", unit="student", disable=not progress) as bar, one_thread():
        trials.run(tried, min(students, max(2, students // 2)), bar)
        ahead = [name for name in tried if name == prior or trials.lead(name, prior).value > 0]
        if len(ahead) > 1:
            trials.run(ahead, students, bar)
    found = {name: (trials.lead(name, prior), trials.lead(name, prior).p_value()) for name in ahead if name != prior}
    sure = {name: lead.value for name, (lead, p) in found.items() if p is not None and p < LEVEL}
    name = max(sure, key=lambda one: sure[one]) if sure else prior
    means = {one: round(float(losses.mean()), 6) for one, losses in trials.losses.items()}
    why = _reason(name, prior, {one: (lead.value, p) for one, (lead, p) in found.items()}, len(ids))
    count = sum(map(len, trials.losses.values()))
    return choice(name=name, policy=tried[name], why=f"{why}{note}.", losses=means, students=count)


def _reason(name: str, prior: str, found: Mapping[str, tuple[float, float | None]], rows: int) -> str:
    """What was chosen and why, in words that end a sentence."""
    if name != prior:
        return (
            f"`{name}` is used: on {rows} labelled validation rows its trial students lose {found[name][0]:.3f} nats "
            f"less than those of `{prior}`, which is sure (p = {found[name][1]:.3f})"
        )
    if not found:
        return f"`{prior}` is used: on {rows} labelled validation rows nothing that was tried teaches better"
    best = max(found, key=lambda one: found[one][0])
    return (
        f"`{prior}` is used: on {rows} labelled validation rows trial students of `{best}` lose {found[best][0]:.3f} "
        f"nats less, which is not sure (p = {1 if found[best][1] is None else found[best][1]:.3f})"
    )


class _Trials:
    """Losses of trial students by candidate, (students, rows); students of one place share their seed."""

    def __init__(self, task: Task, cache: LogitCache, tried: Mapping[str, Policy], settings: StudentSettings) -> None:
        self.task, self.cache, self.tried, self.settings = task, cache, tried, settings
        self.losses: dict[str, Losses] = {}
        self._shared: dict[str, Any] = {}

    def run(self, names: Any, students: int, bar: Any) -> None:
        """Train those that are missing."""
        for name in names:
            known = list(self.losses.get(name, []))
            for seed in range(len(known), students):
                known.append(self._student(self.tried[name], TRIAL_SEED + seed))
                bar.update()
            self.losses[name] = np.stack(known)

    def _student(self, policy: Policy, seed: int) -> Losses:
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(self.task, self.cache, policy, self.settings, folder, seed=seed, shared=self._shared)
            trainer.train()
            ids = self.task.labelled_ids("validation")
            logits = torch.from_numpy(np.asarray(trainer.predict_rows(ids))).float()
        labels = torch.from_numpy(self.task.table.labels[ids])
        losses: Losses = refined_cross_entropy(logits, labels).double().numpy()
        return losses

    def lead(self, name: str, prior: str) -> Contrast:
        """How much less a candidate's students lose than those of the prior with the same seeds."""
        count = min(len(self.losses[name]), len(self.losses[prior]))
        difference = self.losses[prior][:count] - self.losses[name][:count]
        return Contrast(float(difference.mean()), (Block(tuple(range(count)), difference),))


def chosen_policy(
    folder: Path,
    task: Task,
    cache: LogitCache,
    settings: StudentSettings,
    *,
    trained: str | None = None,
    students: int = STUDENTS,
    progress: bool = False,
) -> Path:
    """What ``auto`` is on a task: the shipped policy, or what was learned from the labels; chosen once and kept.

    Args:
        folder: Below which the folder of the policy lies.
        task: The task.
        cache: The teachers' logits.
        settings: Of the student.
        trained: Folder of a policy that was trained here, which is tried too.
        students: Trial students of each candidate.
        progress: Show a progress bar.

    Returns:
        The policy's folder; ``chosen`` in its training record says what it is and why.
    """
    made_of = [task.fingerprint, cache.identity, settings.record(), students, saved_identity(AUTO)]
    made_of += [] if trained is None else [saved_identity(trained)]
    key = digest(made_of, algorithm="sha256")
    place = folder / f"auto-{key}"

    def make() -> None:
        candidates = {PRIOR: load_policy(AUTO)}
        tried = students if len(cache.teacher_names) > 1 else 0  # one teacher leaves nothing to choose
        labelled = np.concatenate([task.labelled_ids(split) for split in ("train", "probe")])
        if tried and len(answered_ids(cache, labelled)):
            candidates[ROUTER] = train_router(Evidence.of(task, cache))
        if trained is not None:
            candidates[TRAINED] = load_policy(trained)
        choice = choose(task, cache, candidates, settings, students=tried, progress=progress)
        log.info(choice.why)
        if is_first():
            choice.save_pretrained(place)

    once_by_all(place, key, make, whole=True)
    return place


def check_choice(spec: WeightingSpec, students: int) -> None:
    """Refuse an ``auto`` that cannot try what it names, before anything is written.

    Args:
        spec: ``auto`` or ``auto:PATH``.
        students: Trial students of each candidate.

    Raises:
        WeightingError: A policy would be ignored.
        PolicyError: A policy cannot be loaded.
    """
    if spec.argument != AUTO:
        if students == 0:
            raise WeightingError(f"{spec.text} would be ignored without trial students; ask for some, or for auto")
        load_policy(str(spec.argument))


def trained_here(spec: WeightingSpec) -> str | None:
    """Folder of the policy in ``auto:PATH``; None for ``auto``."""
    return None if spec.argument == AUTO else spec.argument


def reason_of(weighting: object) -> str | None:
    """The sentence on why a weighting was chosen; None where it was not."""
    chosen = weighting.training_record.get("chosen") if isinstance(weighting, Policy) else None
    return str(chosen["why"]) if isinstance(chosen, dict) and "why" in chosen else None


def trial_settings(settings: StudentSettings, task: Task) -> StudentSettings:
    """A trial student for one that is to be distilled: as it is, but shorter, and a small one for a pretrained one."""
    steps = min(TRIAL_STEPS, settings.max_steps)
    if not is_pretrained(settings.student):
        return replace(settings, max_steps=steps)
    small = PROXY if task.table.holds == "text" else smallest_student(task)
    kept = {name: value for name, value in asdict(settings).items() if name not in ("student", "num_layers")}
    return StudentSettings(**{**kept, "student": small, "learning_rate": student_rate(small), "max_steps": steps})
