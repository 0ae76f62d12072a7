"""How much faster a student answers than its teacher: ``python benchmarks/performance/inference.py --json FILE``.

Teacher and student take turns on the same instances, one at a time and in batches, so that a busy machine slows both.
Every round gives one ratio, of the medians of its calls; reported are the median of the rounds and their range. Texts
are tokenised before. Weights are drawn at random where they are not read from a path: time does not depend on them.
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
from transformers import BertConfig

sys.path.insert(0, str(Path(__file__).parent))

from measure import Bench, Seconds, now, published

import rlkd
from rlkd.data import TaskCollection
from rlkd.data.batching import encode_inputs
from rlkd.models import MultiTaskConfig, MultiTaskForSequenceClassification, load_multi_task, train_tokenizer
from rlkd.models.networks import quiet_transformers
from rlkd.models.tokenizer import task_texts

BERT_BASE = "bert-base"
"""12 layers of width 768 and 30,522 words, 110M parameters."""
WARM_UP = 3
"""Calls of every round that are not counted."""


def load(name: str, task: Any, device: str) -> tuple[MultiTaskForSequenceClassification, Any]:
    """A model in eval mode with its tokenizer: ``bert-base``, or ``NAME[:LAYERS]`` for ``load_multi_task``."""
    collection = TaskCollection((task,))
    with quiet_transformers():
        if name == BERT_BASE:
            config = MultiTaskConfig({task.name: task.label_names}, BertConfig())
            model, tokenizer = MultiTaskForSequenceClassification(config), train_tokenizer(task_texts(task))
        else:
            path, _, layers = name.partition(":")
            model, tokenizer = load_multi_task(path, collection, num_layers=int(layers) if layers else None)
    return model.eval().to(device), tokenizer


@torch.inference_mode()
def time_calls(bench: Bench, models: Sequence[Any], calls: int, batch_size: int, max_length: int) -> Seconds:
    """Time of every call of every model, in turns on the same instances, shape (rounds, calls, models, 2)."""
    inputs = [encode_inputs(bench.task, tokenizer, max_length) for _, tokenizer in models]
    rng, rounds = np.random.default_rng(0), []
    for _ in range(bench.rounds):
        took = np.empty((calls + WARM_UP, len(models), 2))
        for call in range(len(took)):
            ids = rng.choice(bench.task.splits["test"], batch_size)
            for turn in range(len(models)):
                index = (call + turn) % len(models)
                batch = {key: value.to(bench.device) for key, value in inputs[index].batch(ids).items()}
                start = now()
                models[index][0](**batch).logits.sum().item()  # waits for a GPU too
                took[call, index] = now() - start
        rounds.append(took[WARM_UP:])
    return np.stack(rounds)


def measure_inference(
    bench: Bench, teacher: str, students: Sequence[str], batch_size: int, calls: int, max_length: int
) -> list[dict[str, Any]]:
    """Ratios of the teacher's time to each student's, single instances and batches, and parameters."""
    names = [teacher, *students]
    models = [load(name, bench.task, bench.device) for name in names]
    shown = [name if name.startswith("rlkd/") else Path(name).name for name in names]
    sizes = [sum(weight.numel() for weight in model.parameters()) / 1e6 for model, _ in models]
    records = []
    for what, size in (("one instance", 1), (f"batches of {batch_size}", batch_size)):
        medians = np.median(time_calls(bench, models, calls, size, max_length), axis=1)
        for index, name in enumerate(shown):
            of = f"{what}, {bench.task.name}"
            if index:
                ratio = medians[:, 0] / medians[:, index]
                records.append(bench.record(f"{shown[0]} / {name}, {of}", ratio, "ratio"))
            records.append(bench.record(f"{name} ({sizes[index]:.1f}M), {of}", 1000 * medians[:, index] / size, "ms"))
    return records


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the records here")
    parser.add_argument("--teacher", default=BERT_BASE, help="bert-base, or a path")
    parser.add_argument("--students", nargs="+", default=["rlkd/bilstm", "rlkd/tiny"], help="name, or path:layers")
    parser.add_argument("--task", default="docstrings", help="a task of texts or pairs, as for rlkd.load_task")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=20, help="a round, for every model and size")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=64)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(rlkd.load_task(arguments.task), arguments.device, arguments.rounds, arguments.calls, Path(folder))
        records = measure_inference(
            bench, arguments.teacher, arguments.students, arguments.batch_size, arguments.calls, arguments.max_length
        )
    return published(records, arguments.json)


if __name__ == "__main__":
    main()
