"""Weighting policies that have seen no task of a family: ``python benchmarks/asking_weighting.py``, for ``asking.py``.

In that suite all arms mix answers by the weighting policy that is shipped, which has seen its tasks. What that is worth
is told by arms (``unseen ...``) that mix by a policy of ``FOLDER/weightings/FAMILY``: learned as the shipped one is, on
the tasks of all other families of the suite and on planted ones.
"""

import argparse
import logging
from collections.abc import Iterable
from pathlib import Path

from asking import FAMILIES, SUITE, context_of, family_of
from make_policy import POLICY

from rlkd.benchmark.jobs import Context
from rlkd.benchmark.policies import FittedRouter
from rlkd.benchmark.suite_files import load_suite
from rlkd.devices import one_thread
from rlkd.weighting.base import Evidence
from rlkd.weighting.router import train_router


def main() -> None:
    """Learn those that are not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/asking"), help="Of the suite's teachers.")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    suite = load_suite(SUITE)
    tasks = {task.name: task for task in suite.tasks if family_of(task.name)}
    contexts = {name: context_of(task, arguments.folder / "teachers") for name, task in tasks.items()}
    plan = FittedRouter().router_settings(suite.tasks[0].policies[POLICY])
    for family in FAMILIES:
        folder = arguments.folder / "weightings" / family
        if not folder.is_dir():
            others: Iterable[Context] = (one for name, one in contexts.items() if family_of(name) != family)
            with one_thread():
                policy = train_router([Evidence.of(one.task, one.cache) for one in others], plan)
            policy.save_pretrained(folder)
            print(folder, flush=True)


if __name__ == "__main__":
    main()
