"""Asking policies: training one."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlkd.agents.asking import prepare_asker
from rlkd.data import load_task
from rlkd.data.several import check_pairs, several
from rlkd.data.splitting import check_seed
from rlkd.logit_cache import load_cache
from rlkd.records import check_output_dir, prepare_output_dir
from rlkd.settings import AskerTraining, AskingEpisode, ResumableCommand, WritingCommand
from rlkd.workflow.teachers import Rows


def run_train_asker(
    task_options: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    cache_dir: str | Sequence[str],
    output_dir: str,
    *,
    training: AskerTraining | None = None,
    episode: AskingEpisode | None = None,
    resume: bool = ResumableCommand.resume,
    overwrite: bool = WritingCommand.overwrite,
    progress: bool = False,
) -> Rows:
    """Train an asking policy into ``output_dir/policy``.

    Of several tasks, each has its options and its cache, in the same order.
    """
    training = training or AskerTraining()
    options, folders = several(task_options), several(cache_dir)
    check_pairs([str(one.get("source")) for one in options], folders)
    check_output_dir(output_dir, resume=resume, overwrite=overwrite)
    check_seed(training.seed)
    tasks = [load_task(**one) for one in options]
    caches = [load_cache(folder, task) for folder, task in zip(folders, tasks, strict=True)]
    # what cannot run is refused before an earlier run is deleted
    prepared = prepare_asker(tasks, caches, training=training, episode=episode or AskingEpisode())
    folder = prepare_output_dir(output_dir, resume=resume, overwrite=overwrite)
    policy = prepared.run(folder, resume=resume, progress=progress)
    record = policy.training_record
    return [
        {
            "policy": str(folder / "policy"),
            "begun": step == "0",
            "kept": int(step) == record["kept_at"],
            **figures,
        }
        for step, figures in record["trials"].items()
    ]
