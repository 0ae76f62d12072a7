"""Learn an asking policy that has seen none of some tasks: ``python benchmarks/train_asker.py -o FOLDER``.

It is learned in the environment ``rlkd/TeacherAsking-v0`` on five tasks of the suite ``travel``, all of whose answers
are known (``LEARNED_ON``), and meant for the others: ``python benchmarks/asking.py --policy FOLDER/policy --task
banking77`` asks there with it, unchanged.
"""

import argparse
import logging
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported: no model is asked for by id

from rlkd.agents.asking import train_asker
from rlkd.benchmark.stages import make_teachers, open_context
from rlkd.benchmark.suite_files import load_suite

SUITE = Path(__file__).parent / "suites" / "travel.yaml"
LEARNED_ON = ("ag_news", "topics", "goemotions", "newsgroups20", "digits")


def main() -> None:
    """Open the tasks, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/asking"), help="Of the tasks' teachers.")
    parser.add_argument("--steps", type=int, default=150_000, help="Decisions of the policy while it learns.")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    suite = {task.name: task for task in load_suite(SUITE).tasks}
    contexts = []
    for name in LEARNED_ON:
        folder = arguments.folder / "teachers" / suite[name].teachers_key
        make_teachers(suite[name], folder)
        contexts.append(open_context(suite[name], folder))
    tasks, caches = [one.task for one in contexts], [one.cache for one in contexts]
    train_asker(tasks, caches, total_timesteps=arguments.steps, output_dir=arguments.output)


if __name__ == "__main__":
    main()
