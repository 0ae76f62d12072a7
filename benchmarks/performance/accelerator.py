"""What a policy, a cache and trial students cost on a GPU: ``benchmarks/performance/accelerator.py --json FILE``.

Students are trained in bfloat16. Arms take turns on the same batches, see :mod:`measure`, and a step ends when the
device has done it. Trial students are trained 64 at once, and one after the other.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported: no model is asked for by id

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from measure import TEACHERS, Arm, Bench, asked_once, now, published, random_cache, take_turns
from rlkd_envs.vector import TeacherWeightingVectorEnv

import rlkd
from rlkd.logit_cache import LiveTeachers
from rlkd.models import HfTeacher, load_student
from rlkd.models.networks import quiet_transformers
from rlkd.weighting.fixed import Uniform

SIZES = {"2 layers of 128": (2, 128), "6 layers of 384": (6, 384), "12 layers of 768": (12, 768)}
AT_ONCE = ("rlkd/mlp", "rlkd/tiny")
STUDENTS = 64
ALONE = 4
"""Students that are trained one after the other, for the time of one."""


def encoder(bench: Bench, layers: int, width: int) -> str:
    """Save an encoder with random weights, and give its path."""
    folder = bench.folder / f"{layers}-{width}"
    if not folder.exists():
        model, tokenizer = load_student("rlkd/tiny", bench.task)
        assert tokenizer is not None
        config = model.config
        config.num_hidden_layers, config.hidden_size, config.intermediate_size = layers, width, 4 * width
        config.num_attention_heads = width // 64
        with quiet_transformers():
            type(model)(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return str(folder)


def measure_steps(bench: Bench, name: str, path: str) -> list[dict[str, Any]]:
    """A step with the shipped policy over one with equal weights, on a cache."""
    cache, policy = random_cache(bench.task), rlkd.load_weighting("auto")
    ways = [Uniform(), asked_once(policy, bench.task, cache), policy]
    took = take_turns(bench, path, [Arm(way, cache) for way in ways], bench.batches, bf16=True)
    equal, once, live = (took[:, :, arm] for arm in range(len(ways)))
    return [
        bench.record(
            f"step, policy / equal weights, on a cache ({name})", np.median(once / equal, axis=1), "ratio", 1.03
        ),
        bench.record(
            f"step, policy asked about every batch / equal weights ({name})", np.median(live / equal, axis=1), "ratio"
        ),
        bench.record(f"step, equal weights on a cache ({name})", 1000 * np.median(equal, axis=1), "ms"),
    ]


def measure_live(bench: Bench, name: str, layers: int, width: int) -> list[dict[str, Any]]:
    """A step with a cache over one with three live teachers of twice the student's depth."""
    networks = [load_student(encoder(bench, 2 * layers, width), bench.task, seed=seed) for seed in range(len(TEACHERS))]
    asked = [
        HfTeacher(teacher, *network, device=bench.device, bf16=True)
        for teacher, network in zip(TEACHERS, networks, strict=True)
    ]
    live = LiveTeachers(asked, bench.task)
    live.rows(torch.arange(8))  # tokenises the task
    arms = [Arm(Uniform(), random_cache(bench.task)), Arm(Uniform(), live)]
    took = take_turns(bench, encoder(bench, layers, width), arms, bench.batches, bf16=True)
    ratio = np.median(took[:, :, 0] / took[:, :, 1], axis=1)
    return [bench.record(f"step, cache / three live teachers of twice the depth ({name})", ratio, "ratio", 0.34)]


def measure_at_once(bench: Bench, student: str, steps: int) -> list[dict[str, Any]]:
    """Training of 64 trial students at once, over 64 times that of one alone."""
    task = rlkd.load_task("digits") if student == "rlkd/mlp" else bench.task
    env = TeacherWeightingVectorEnv(
        64,
        task=task,
        cache=random_cache(task),
        student=student,
        horizon=steps,
        device=bench.device,
        max_length=64,
        bf16=True,
    )
    env.reset(seed=0)
    ratios, seconds = [], []
    for number in range(bench.rounds + 1):
        start = now()
        for trial in range(ALONE):
            env.trial_losses(Uniform(), trial + number * STUDENTS)
        middle = now()
        env.trial_losses_at_once(Uniform(), range(number * STUDENTS, (number + 1) * STUDENTS))
        end = now()
        ratios.append((end - middle) / ((middle - start) * STUDENTS / ALONE))
        seconds.append((middle - start) / ALONE)
    what = f"({student}, {steps} steps)"
    return [
        bench.record(f"{STUDENTS} trial students at once / one after the other {what}", ratios[1:], "ratio", 1.0),
        bench.record(f"one trial student {what}", seconds[1:], "s"),
    ]


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the records here")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--task", default="docstrings", help="a task of texts, as for rlkd.load_task")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=30, help="a round, for every arm")
    parser.add_argument("--steps", type=int, default=120, help="of a trial student")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            rlkd.load_task(arguments.task), arguments.device, arguments.rounds, arguments.batches, Path(folder)
        )
        records = [record for student in AT_ONCE for record in measure_at_once(bench, student, arguments.steps)]
        for name in arguments.sizes:
            records += measure_steps(bench, name, encoder(bench, *SIZES[name]))
            records += measure_live(bench, name, *SIZES[name])
        records += measure_steps(bench, "rlkd/bilstm", "rlkd/bilstm")
    return published(records, arguments.json)


if __name__ == "__main__":
    main()
