"""What agents of others learn on planted teachers, where the best action is known.

    python benchmarks/agents/measure_agents.py

Writes ``benchmarks/results/agents.json``: for every agent, case and seed the regret on test rows (mean weight that is
not on a best teacher; equal weights and the optimum, 0, stand beside it), the accuracy of a student that was distilled
with what was learned, and CPU seconds of the training.
"""

import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

import rlkd
from rlkd.agents import train_policy
from rlkd.benchmark.measuring import choice_figures
from rlkd.data.planted import PlantedSettings, planted_case
from rlkd.devices import one_thread
from rlkd.logit_cache import LogitCache, read_state
from rlkd.metrics import classification_metrics
from rlkd.records import commit, source, write_json_atomic
from rlkd.settings import StudentSettings
from rlkd.trainer import make_trainer
from rlkd.types import Knowledge
from rlkd.weighting import adapted
from rlkd.weighting.fixed import Uniform

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "agents.json"
CASES = ("class-3", "region-5", "harmful")
SEEDS = (0, 1, 2)
STUDENT = StudentSettings(student="rlkd/mlp", max_steps=60, batch_size=64, learning_rate=0.005)
EPISODE = {"batch_size": 64, "horizon": 60, "teacher_copies": 0}


def planted_teachers(case: str, seed: int) -> tuple[rlkd.Task, LogitCache]:
    """A case of the suite ``planted``, with rows and teachers of a seed."""
    suite = yaml.safe_load((HERE.parent / "suites" / "planted.yaml").read_text(encoding="utf-8"))
    (planted,) = [task["planted"] for task in suite["tasks"] if task["name"] == case]
    drawn = planted_case(PlantedSettings(**planted, seed=seed), name=case)
    names = [f"teacher-{k}" for k in range(drawn.logits.shape[1])]
    knowledge = Knowledge(by="domain", groups=drawn.task.domain_names, matrix=drawn.best)
    return drawn.task, LogitCache(list(drawn.logits.transpose(1, 0, 2)), names, knowledge=knowledge).measured(
        drawn.task
    )


def regret(weighting: rlkd.Weighting, task: rlkd.Task, cache: LogitCache) -> float:
    """Mean weight that is not on a best teacher of its instance, over test rows; the optimum has 0."""
    state = read_state(task, cache, torch.from_numpy(task.splits["test"]))
    figure = choice_figures(weighting.weights(state), state, cache)["regret"]
    assert figure is not None  # every planted instance has a best teacher
    return figure


def student_accuracy(weighting: rlkd.Weighting, task: rlkd.Task, cache: LogitCache, seed: int) -> float:
    """Test accuracy of a student that is distilled with a weighting."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(task, cache, adapted(weighting), STUDENT, folder, seed=seed)
        trainer.train()
        return classification_metrics(trainer.predict_split("test"), task.labels("test"))["accuracy"]


def cleanrl(task: rlkd.Task, cache: LogitCache, seed: int) -> rlkd.Weighting:
    """PPO in one file; saved and loaded as any policy is."""
    import cleanrl_ppo

    with tempfile.TemporaryDirectory() as folder:
        cleanrl_ppo.train(task, cache, cleanrl_ppo.Args(seed=seed)).save_pretrained(folder)
        return rlkd.load_weighting(folder)


def skrl(task: rlkd.Task, cache: LogitCache, seed: int) -> rlkd.Weighting:
    """PPO of skrl."""
    import skrl_ppo

    return skrl_ppo.train(task, cache, seed=seed)


def own(task: rlkd.Task, cache: LogitCache, seed: int) -> rlkd.Weighting:
    """Our own, from nothing."""
    return train_policy(task, cache, seed=seed, warm_start=False, total_timesteps=30_720, episode=EPISODE)


AGENTS: dict[str, Callable[[rlkd.Task, LogitCache, int], rlkd.Weighting]] = {
    "cleanrl_ppo": cleanrl,
    "skrl_ppo": skrl,
    "train_policy": own,
}
LIBRARIES = {"skrl_ppo": ("skrl", "gymnasium", "torch")}


def record(agent: str, case: str, seed: int) -> dict[str, Any]:
    """Train one agent, and say what it learned."""
    task, cache = planted_teachers(case, seed)
    before = time.process_time()
    weighting = AGENTS[agent](task, cache, seed)
    seconds = time.process_time() - before
    return {
        "agent": agent,
        "case": case,
        "seed": seed,
        "regret": regret(weighting, task, cache),
        "regret_of_equal_weights": regret(Uniform(), task, cache),
        "student_accuracy": student_accuracy(weighting, task, cache, seed),
        "student_accuracy_of_equal_weights": student_accuracy(Uniform(), task, cache, seed),
        "cpu_seconds": round(seconds, 1),
        "versions": {name: version(name) for name in LIBRARIES.get(agent, ("gymnasium", "torch"))},
        "commit": commit(),
        "source": source(),
    }


if __name__ == "__main__":
    with one_thread():
        write_json_atomic(RESULTS, [record(agent, case, seed) for agent in AGENTS for case in CASES for seed in SEEDS])
