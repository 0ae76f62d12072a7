"""From a comparison to a deployment: the commands and the lines that use its weightings again."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlkd.benchmark import ComparedWeighting
from rlkd.data import Task
from rlkd.logit_cache import LogitCache
from rlkd.report import Use, can_be_deployed, deploy_sentences, trust_sentences
from rlkd.settings import StudentSettings
from rlkd.stats import ACCURACY, TaskRuns
from rlkd.weighting import WeightingSpec, build_weighting
from rlkd.weighting.fixed import Labels
from rlkd.workflow.teachers import Rows

SPLIT_SEED, DATA = {"seed": "split_seed", "source": "task"}, "source"


def input_flags(task_options: Mapping[str, Any], cache_dir: str) -> list[str]:
    """Words of a command line that stand for a task, as ``load_task`` takes it, and a cache."""
    named = {SPLIT_SEED.get(name, name): value for name, value in task_options.items() if name == DATA or value}
    words = [word for name, value in named.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return [*words, "--cache", str(cache_dir)]


def advice(
    runs: TaskRuns,
    weightings: Sequence[ComparedWeighting],
    teachers: Rows,
    task: Task,
    cache: LogitCache,
    settings: StudentSettings,
    folder: Path,
    inputs: Sequence[str],
) -> list[str]:
    """What to deploy and how, what labels alone would do, and whether the students can be believed.

    Args:
        runs: The comparison.
        weightings: That were compared.
        teachers: Their scores on test, the equal mixture among them.
        task: The task.
        cache: The teachers' logits.
        settings: Of the students.
        folder: Of the comparison.
        inputs: Words of a command line for task and cache, see :func:`input_flags`.
    """
    words = ["rlkd", "distill", *inputs, *settings.flags(), "-o", f"{folder}-student"]
    finished = {name for name, _ in runs.finished}
    uses = {
        one.name: _use(one.spec, words)
        for one in weightings
        if one.spec is not None and one.name in finished and _advisable(one.name, one.spec, task, cache)
    }
    rows = task.splits["train"]
    labels = task.labels("test")
    guess = float(np.bincount(labels).max() / len(labels))
    said = deploy_sentences(runs, uses, unlabelled=len(rows) - len(task.labelled_ids("train")))
    return [*said, *(trust_sentences(runs, teachers, guess) if runs.metric == ACCURACY else [])]


def _advisable(name: str, spec: WeightingSpec, task: Task, cache: LogitCache) -> bool:
    """Whether a weighting reads no label where it is used; labels alone are asked after too."""
    if name == Labels.name:
        return True
    return can_be_deployed(name) and "labels" not in build_weighting(spec, task, cache).requires


def _use(spec: WeightingSpec, words: Sequence[str]) -> Use:
    learned = spec.learned() is not None
    loads = f"rlkd.load_weighting({spec.argument!r})" if learned and spec.name == "policy" else None
    return Use(
        command=shlex.join([*words, "--weighting", spec.text]),
        python=f"weighting = {loads or f'rlkd.build_weighting({spec.text!r}, task, cache)'}",
        lies_in=spec.argument if learned else None,
    )
