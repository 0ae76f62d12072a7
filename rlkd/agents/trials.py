"""Trial students: by what they learn a policy is kept, and weakened where it does harm. Each is distilled once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from rlkd.agents.protocols import WeightingEnvironment
from rlkd.devices import one_thread
from rlkd.errors import RlkdError
from rlkd.processes import stop, submit, worker_pool
from rlkd.settings import PolicyTraining
from rlkd.stats.contrasts import Block, Contrast, task_mean
from rlkd.weighting.base import Weighting

STRENGTHS = (1.0, 0.5, 0.25)
"""What actions of a trained policy may be multiplied by, the strongest first; equal weights come after the last."""
FEW_STUDENTS = 4
"""So many trial students hold a strength against equal weights where those that a policy is kept by are fewer and learn
less from it; where these leave it open, ``strength_students`` do.

Against equal weights alone: between two strengths that both help, validation loss follows how sure a student is, and
which of them is ahead is decided by a single student or by the machine."""
HARM_LEVEL = 0.05
"""Two-sided: a policy that changes nothing is weakened in one of 40 trainings."""
EQUAL = "equal weights"

Losses = NDArray[np.floating[Any]]
"""Of one trial student on its labelled validation rows, shape (rows,), in nats."""
AtStrength = Callable[[float], Weighting]
"""From a strength to a policy at this strength; at 0 it gives equal weights."""


def losses_by_task(losses: Sequence[Losses], tasks: int) -> list[NDArray[np.floating[Any]]]:
    """Losses of trial students as one array (students, rows) a task, which differ in rows.

    Args:
        losses: Of as many students of every task, the n-th of task n modulo ``tasks``.
        tasks: Their number.
    """
    return [np.stack(losses[task::tasks]) for task in range(tasks)]


def mean_loss(losses: Sequence[Losses], tasks: int = 1) -> float:
    """Mean over tasks of what their trial students lose; arguments are those of :func:`losses_by_task`."""
    return float(np.mean([one.mean() for one in losses_by_task(losses, tasks)]))


def harms(losses: Sequence[Losses], equal: Sequence[Losses], tasks: int = 1) -> bool:
    """Whether students surely lose more on validation than those that learned from equal weights, on the mean of tasks.

    Surely: over other students and over other rows, at 95%. Chance can neither switch a policy off nor weaken it.

    Args:
        losses: Validation losses of trial students, as :func:`losses_by_task` takes them.
        equal: Of the same students with equal weights, on the same rows.
        tasks: Number of tasks; with one student of each nothing is sure.
    """
    mean = lost_more(losses, equal, tasks)
    p_value = mean.p_value()
    return mean.value > 0 and p_value is not None and p_value < HARM_LEVEL


def lost_more(losses: Sequence[Losses], equal: Sequence[Losses], tasks: int = 1) -> Contrast:
    """What students lose more than those of equal weights, mean over tasks; arguments are those of :func:`harms`."""
    figures = []
    for task, pair in enumerate(zip(losses_by_task(losses, tasks), losses_by_task(equal, tasks), strict=True)):
        differences = np.subtract(*pair, dtype=np.float64)
        students = tuple(range(task, len(losses), tasks))
        figures.append(Contrast(float(differences.mean()), (Block(students, differences),)))
    return task_mean(figures)


def of_every_task(students: int, tasks: int) -> int:
    """The smallest number that is at least so many, and as many of every task."""
    return -(-students // tasks) * tasks


class TrialStudents:
    """Trial students of an environment: number n is the same student under every weighting, so that they are paired."""

    def __init__(
        self,
        distil: Callable[[Weighting, int], Losses],
        pool: ProcessPoolExecutor | None = None,
        *,
        at_once: Callable[[Weighting, Sequence[int]], Sequence[Losses]] | None = None,
        most: int | None = None,
        progress: bool = False,
    ) -> None:
        """Begin with none.

        Args:
            distil: From a weighting and a student's number to its losses.
            pool: Of one process that does the same, see :func:`beside`; None: all are distilled here.
            at_once: From a weighting and several numbers to the losses of each, where that is faster.
            most: How many will be asked for at most, for the progress bar.
            progress: Show a progress bar.
        """
        self._distil, self._pool, self._at_once = distil, pool, at_once
        self._known: dict[tuple[str, int], Losses] = {}
        self._awaited: dict[tuple[str, int], Future[Losses]] = {}
        self._bar = tqdm(desc=_described(most), unit="student", disable=not progress)

    def begin(self, name: str, weighting: Weighting, trials: Sequence[int]) -> None:
        """Have students distilled in the other process, if there is one; nothing is waited for."""
        if self._pool is not None:
            for trial in trials:
                if (name, trial) not in self._known | self._awaited:
                    self._awaited[name, trial] = submit(self._pool, (weighting, trial))

    def losses(self, name: str, weighting: Weighting, count: int) -> list[Losses]:
        """Losses of the first ``count`` students of a weighting.

        Args:
            name: Of the weighting; it means the same one in all calls.
            weighting: Is asked on the CPU.
            count: At least 1.

        Raises:
            NonFiniteLossError: A student's loss became NaN or infinite.
            RlkdError: The other process died.
        """
        missing = [trial for trial in range(count) if (name, trial) not in self._known]
        if self._at_once is not None and len(missing) > 1:
            found = self._at_once(weighting, missing)
            self._known |= {(name, trial): losses for trial, losses in zip(missing, found, strict=True)}
            self._bar.update(len(missing))
            missing = []
        self.begin(name, weighting, missing[1::2])
        for trial in sorted(missing, key=lambda trial: (name, trial) in self._awaited):
            self._known[name, trial] = self._made(name, weighting, trial)
            self._bar.update()
        return [self._known[name, trial] for trial in range(count)]

    def _made(self, name: str, weighting: Weighting, trial: int) -> Losses:
        awaited = self._awaited.pop((name, trial), None)
        if awaited is None or awaited.cancel():  # the other process has not begun it
            return self._distil(weighting, trial)
        try:
            return awaited.result()
        except BrokenProcessPool as error:
            raise RlkdError("a process died, most likely for want of memory; resume with jobs 1") from error

    def distilled(self, name: str) -> int:
        """How many students of a weighting were asked for so far."""
        return sum(known == name for known, _ in self._known)

    def close(self) -> None:
        """End the progress bar."""
        self._bar.close()


def _described(most: int | None) -> str:
    return "trial students" if most is None else f"trial students to choose policy and strength (at most {most})"


class TrialWorker:
    """Distils trial students in a process of its own."""

    def __init__(self, make_env: Callable[[], WeightingEnvironment], seed: int, refined: bool) -> None:
        """Make the environment; its students are those of ``seed``."""
        self._env, self._refined = make_env(), refined
        self._env.reset(seed=seed)

    def do(self, work: tuple[Weighting, int]) -> Losses:
        """Losses of a weighting's student, by its number."""
        with one_thread():
            return self._env.trial_losses(*work, refined=self._refined).numpy()


@contextmanager
def beside(make_worker: Callable[[], TrialWorker], *, wanted: bool) -> Iterator[ProcessPoolExecutor | None]:
    """A process for trial students, which ends with the block; None unless it is wanted."""
    if not wanted:
        yield None
        return
    pool = worker_pool(1, make_worker)
    try:
        yield pool
    except BaseException:
        stop(pool)
        raise
    pool.shutdown(cancel_futures=True)  # waits, so that what it cost is known


@dataclass(frozen=True)
class Choice:
    """Which policy is kept, and how strongly it acts."""

    name: str
    strength: float
    trial_losses: Mapping[str, float]
    """Mean losses of the students by which policies were compared, by their names."""
    strength_losses: Mapping[str, float]
    """Mean losses of the kept policy's students at every strength that was tried, ``"0.0"`` being equal weights; over
    the same students of each."""
    gain: Mapping[str, float | None]
    """What its students lose less than those of equal weights: ``value`` in nats, the 95% interval ``low`` to ``high``
    over other students and rows (None with one student of a task), and how many ``students`` of each. Empty at strength
    0, since equal weights gain nothing over themselves, and where nothing was compared with them."""


def most_students(trials: int, strength_students: int, tasks: int = 1) -> int:
    """How many students :func:`choose` asks for at most, of two candidates; arguments are its own."""
    trials = of_every_task(trials, tasks)
    if strength_students == 0:
        return 2 * trials
    return trials + (1 + len(STRENGTHS)) * _counts(trials, strength_students, tasks)[-1]


def _counts(trials: int, strength_students: int, tasks: int) -> list[int]:
    """Numbers of students after which it is asked whether a strength harms, one after the other."""
    wanted = (trials, min(FEW_STUDENTS, strength_students), max(strength_students, 2 * tasks))
    return sorted({max(trials, of_every_task(count, tasks)) for count in wanted})


def choose(
    students: TrialStudents,
    candidates: Mapping[str, AtStrength],
    trials: int,
    tasks: int = 1,
    *,
    strength_students: int = PolicyTraining.strength_students,
) -> Choice:
    """Keep the policy whose students lose least, at the greatest strength that does no sure harm.

    The students that policies are compared by are the first that are held against equal weights; where they lose no
    more than with these, that is enough.

    Args:
        students: Distils them.
        candidates: Policies by name; of equals the first is kept.
        trials: Students by which policies are compared, at least so many and as many of every task.
        tasks: Number of tasks; student n learns task n modulo this.
        strength_students: By which it is decided at most whether a strength harms, with many tasks two of each; 0: the
            policy acts at full strength, and nothing is compared with equal weights.
    """
    trials = of_every_task(trials, tasks)
    compared = {name: mean_loss(students.losses(name, at(1.0), trials), tasks) for name, at in candidates.items()}
    kept = min(compared, key=lambda name: compared[name])
    at, tried = candidates[kept], {1.0: kept}
    if strength_students:
        tried[0.0] = EQUAL
    counts, chosen = _counts(trials, strength_students, tasks), 0.0
    for strength in STRENGTHS:
        tried.setdefault(strength, f"{kept} at {strength}")
        if not strength_students or _without_harm(students, tried[strength], at(strength), at(0.0), counts, tasks):
            chosen = strength
            break
    common = min(students.distilled(name) for name in tried.values())
    means = {
        str(strength): round(mean_loss(students.losses(name, at(strength), common), tasks), 6)
        for strength, name in sorted(tried.items(), reverse=True)
    }
    gain: dict[str, float | None] = {}
    if chosen > 0 and 0.0 in tried:
        equal, ours = (students.losses(tried[strength], at(strength), common) for strength in (0.0, chosen))
        gain = _gain(equal, ours, tasks)
    return Choice(kept, chosen, {name: round(loss, 6) for name, loss in compared.items()}, means, gain)


def _gain(equal: Sequence[Losses], ours: Sequence[Losses], tasks: int) -> dict[str, float | None]:
    figure = lost_more(equal, ours, tasks)
    interval = figure.estimate()
    low, high = (None, None) if interval is None else (round(interval.low, 6), round(interval.high, 6))
    return {"value": round(figure.value, 6), "low": low, "high": high, "students": len(ours)}


def _without_harm(
    students: TrialStudents, name: str, policy: Weighting, equal: Weighting, counts: Sequence[int], tasks: int
) -> bool:
    """Whether a policy's students do not surely lose more than those of equal weights.

    More students are only distilled while it looks as if they might: by two, four and eight, with many tasks two of
    each, since with one student of a task nothing is sure.
    """
    for count in counts:
        ours, theirs = students.losses(name, policy, count), students.losses(EQUAL, equal, count)
        if mean_loss(ours, tasks) <= mean_loss(theirs, tasks):
            return True
        pairs = zip(ours, theirs, strict=True)
        excess = np.array([np.subtract(*pair, dtype=np.float64).mean() for pair in pairs]).reshape(-1, tasks).mean(1)
        if count >= FEW_STUDENTS and len(excess) > 1 and excess.mean() < excess.std(ddof=1) / len(excess) ** 0.5:
            return True  # no more students would make it sure
    return not harms(ours, theirs, tasks)
