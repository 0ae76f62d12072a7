"""The published algorithms, shown for what they are: on planted teachers, where the right answer is known.

Every function gives flat records, one row a run; as a script, all of them into
``benchmarks/results/published-algorithms.json``.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlkd.data.planted import planted, planted_logits
from rlkd.data.task import Task
from rlkd.logit_cache import LogitCache, read_state
from rlkd.models.students import load_student, seeded_weights
from rlkd.records import commit, source, write_json_atomic
from rlkd.systems.mtkd_rl.released import released_loss
from rlkd.systems.mtkd_rl.training import train_mtkd_rl
from rlkd.systems.mtkd_rl.weighting import MtkdRlAgent, confidence_weights, divergence_weights
from rlkd.systems.rl_kd.training import rl_kd_settings, train_rl_kd
from rlkd.systems.rl_kd.weighting import RlKdSelector
from rlkd.types import Knowledge

RESULTS = Path(__file__).parent / "results" / "published-algorithms.json"

EPISODE: Mapping[str, Any] = {"batch_size": 64, "horizon": 80, "kd_ratio": 0.5}
EPISODES = 4
RL_KD_CASES: Mapping[str, Mapping[str, Any]] = {
    "published": {"preset": "published"},
    "published, all selected at first": {"preset": "published", "initial_probability": 0.9},
    "published, reward 2": {"preset": "published", "reward": "rl_kd_2"},
    "published, reward 3": {"preset": "published", "reward": "rl_kd_3"},
    "published, but credit of the instance": {"preset": "published", "credit": "instance"},
    "published, but rewarded for the step": {"preset": "published", "reward": "logit_gain"},
    "repaired": {"preset": "repaired"},
    "repaired, but grad_pi without baseline": {"preset": "repaired", "update": "grad_pi", "baseline": "none"},
    "repaired, but credit of the batch": {"preset": "repaired", "credit": "batch", "baseline": "ema"},
    "repaired, but reward 1": {"preset": "repaired", "reward": "rl_kd_1"},
}
"""What is shown: the two presets, two repairs alone, and each repair undone."""
MTKD_RL_CASES: Mapping[str, Mapping[str, Any]] = {
    "released": {"agent_objective": "released"},
    "policy_gradient": {"agent_objective": "policy_gradient"},
}


def planted_specialists(seed: int, *, num_rows: int = 1200, num_teachers: int = 3) -> tuple[Task, LogitCache]:
    """A planted task whose teacher k knows domain k, and nobody else does."""
    task = planted(seed=seed, num_rows=num_rows, num_domains=num_teachers, num_classes=2 * num_teachers)
    matrix = np.eye(num_teachers, dtype=bool)
    logits = planted_logits(task, num_teachers, seed=seed)
    names = [f"teacher {k}" for k in range(num_teachers)]
    return task, LogitCache(
        list(logits.transpose(1, 0, 2)),
        names,
        knowledge=Knowledge(by="domain", groups=task.domain_names, matrix=matrix),
    )


def rl_kd_record(
    seed: int, *, case: str = "", preset: str, episodes: int = EPISODES, **switches: Any
) -> dict[str, Any]:
    """Train one RL-KD selector on planted teachers, and say whom it selects on the test split.

    Args:
        seed: Of task, teachers, students and draws.
        case: What the table calls it.
        preset: See :func:`rlkd.systems.rl_kd.training.train_rl_kd`.
        episodes: Students.
        **switches: Likewise.

    Returns:
        Settings; mean selection probability of the teachers that know the instance and of those that do not; weight
        on those that know, over instances for which anybody was selected; share of the other instances; seconds.
    """
    task, cache = planted_specialists(seed)
    started = time.perf_counter()
    selector = train_rl_kd(
        task, cache, preset=preset, episode=EPISODE, episodes=episodes, pretraining_steps=20, seed=seed, **switches
    )
    seconds = time.perf_counter() - started
    settings = rl_kd_settings(preset, **switches)
    return {
        "system": "rl_kd",
        "case": case or preset,
        "seed": seed,
        "update": settings.update,
        "baseline": settings.baseline,
        "credit": settings.credit,
        "empty_set": settings.empty_set,
        "reward": settings.reward,
        "initial_probability": settings.initial_probability,
        **selection(selector, task, cache),
        "seconds": round(seconds, 2),
    }


def selection(selector: RlKdSelector, task: Task, cache: LogitCache) -> dict[str, float]:
    """Whom a selector selects on the test split."""
    state = read_state(task, cache, torch.from_numpy(task.splits["test"]))
    knows = knowing(task, cache)
    probabilities = selector.probabilities(state)
    taught = selector.weights(state).sum(-1) > 0
    return {
        "probability_right": round(float(probabilities[knows].mean()), 4),
        "probability_wrong": round(float(probabilities[~knows].mean()), 4),
        "mass_right": round(mass_right(selector.weights(state)[taught], knows[taught]), 4),
        "nobody_selected": round(1 - float(taught.float().mean()), 4),
    }


def mtkd_rl_record(seed: int, *, case: str = "", episodes: int = EPISODES, **switches: Any) -> dict[str, Any]:
    """Train one MTKD-RL agent on planted teachers, and say where its weight is on the test split.

    The divergence in its state is that from an untrained student.

    Returns:
        Settings; weight on the teachers that know the instance: of the agent, of the two heuristics alone, and of
        the network alone, whose mean is the agent's; seconds.
    """
    task, cache = planted_specialists(seed)
    started = time.perf_counter()
    agent = train_mtkd_rl(task, cache, episode=EPISODE, episodes=episodes, seed=seed, **switches)
    seconds = time.perf_counter() - started
    ids = task.splits["test"]
    student = load_student("rlkd/mlp", task, seed=seed)[0].eval()
    assert task.table.vectors is not None
    with torch.no_grad():
        logits = student(input_values=torch.from_numpy(task.table.vectors[ids])).logits
        state = replace(read_state(task, cache, torch.from_numpy(ids)), student_logits=logits)
        rows = agent.observe(state)
        learned = F.softmax(agent(rows), dim=-1)
    knows = knowing(task, cache)
    return {
        "system": "mtkd_rl",
        "case": case or agent.training_record["settings"]["agent_objective"],
        "seed": seed,
        "mass_right": round(mass_right(agent.weights(state), knows), 4),
        "mass_right_heuristics": round(mass_right(rows[..., 1] / 2, knows), 4),
        "mass_right_network": round(mass_right(learned, knows), 4),
        "mass_right_uniform": round(1 / len(cache.teacher_names), 4),
        "seconds": round(seconds, 2),
    }


def knowing(task: Task, cache: LogitCache, split: str = "test") -> Tensor:
    """Which teachers know each instance of a split, bool, shape (N_split, K)."""
    assert cache.knowledge is not None
    domains = torch.from_numpy(task.table.domains[task.splits[split]])
    return torch.from_numpy(cache.knowledge.matrix).T[domains]


def mass_right(weights: Tensor, knows: Tensor) -> float:
    """Mean weight on knowing teachers, both (N, K)."""
    return float((weights * knows).sum(-1).mean())


def released_objective(steps: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """Where MTKD-RL's released objective ends: one good teacher (CE 0.05, KL 1) and three bad ones (CE 2, KL 3).

    Each of four teachers is the good one for a quarter of the instances, and the state says which. The agent's own
    network, trained as released (SGD, rate 0.1, standardised and clamped rewards) with rewards that have nothing to do
    with its weights: they only set the size of the steps.

    Returns:
        A row for the start and one for the end: mean weight of the good teacher, and the largest distance to uniform.
    """
    ce, kl = torch.tensor([0.05, 2.0, 2.0, 2.0]), torch.tensor([1.0, 3.0, 3.0, 3.0])
    present = torch.ones(4, dtype=torch.bool)
    heuristics = confidence_weights(ce, present) + divergence_weights(kl, present)
    rows = torch.stack([present.float(), heuristics, ce, kl, ce, kl], dim=-1)  # two classes, whatever their logits
    with seeded_weights(seed):
        agent = MtkdRlAgent([f"teacher {k}" for k in range(4)], num_classes=2)
    optimizer = torch.optim.SGD(agent.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(seed)
    good = torch.arange(64) % len(rows)
    batch = torch.stack([rows.roll(int(k), 0) for k in good])
    records = []
    for step in range(steps + 1):
        weights = agent.mix(agent(batch), batch)
        if step in (0, steps):
            records.append(_released_row(step, weights.detach(), good, heuristics / 2))
        optimizer.zero_grad()
        released_loss(weights, torch.randn(64, generator=generator)).backward()
        optimizer.step()
    return records


def _released_row(step: int, weights: Tensor, good: Tensor, heuristics: Tensor) -> dict[str, Any]:
    return {
        "system": "mtkd_rl",
        "case": "released objective, one good teacher of four",
        "updates": step,
        "weight_good": round(float(weights.gather(1, good.unsqueeze(1)).mean()), 5),
        "weight_good_heuristics": round(float(heuristics[0]), 5),
        "distance_to_uniform": round(float((weights - 1 / weights.shape[1]).abs().max()), 5),
    }


def demonstrate(seeds: Sequence[int] = (0, 1, 2)) -> list[dict[str, Any]]:
    """All records: RL-KD's presets with each repair undone, MTKD-RL's two objectives, and its released one alone."""
    records = [rl_kd_record(seed, case=case, **given) for case, given in RL_KD_CASES.items() for seed in seeds]
    records += [mtkd_rl_record(seed, case=case, **given) for case, given in MTKD_RL_CASES.items() for seed in seeds]
    return records + released_objective()


def main() -> None:
    """Write the records."""
    code = {"commit": commit(), "source": source()}
    records = [{**record, **code} for record in demonstrate(seeds=range(5))]
    write_json_atomic(RESULTS, records)
    for record in records:
        print(record)


if __name__ == "__main__":
    main()
