"""Specialists by class on token classification, in the plain trainer: ``python benchmarks/tokens.py``.

The set is ``python_names.py``: what a name in a Python program is, one of fourteen classes. Three small BERT networks
each learn half of the classes from files of their own; where a name is of another class they say one of theirs all the
same. Students, smaller ones, learn from them on other files, a weight for every name and teacher.

Of the students' windows 200 have labels. ``router``, ``router:gain`` and ``policy`` are fitted on these with
:func:`rlkd.labelled_answers`, and ``labels`` learns from them alone; ``auto`` is the policy that is shipped, unchanged,
and reads no label, as ``uniform`` and ``entropy`` do. ``shuffle`` gives each name what ``auto`` says of another one of
the batch. ``oracle`` knows the class of every name, which nobody does, and who was taught it.

The score is the share of right names in files that neither teachers nor students have seen. Runs of a seed share
initialisation, batches and budget. Begun again, it goes on after the last run that is in the record.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported: no model is asked for by id

import numpy as np
import torch
from numpy.typing import NDArray
from python_names import CLASSES, LENGTH, NO_CLASS, Window, tokenizer_of, windows
from torch import Tensor
from transformers import (
    BertConfig,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerFast,
    Trainer,
)

import rlkd
from rlkd.devices import one_thread
from rlkd.models.specialists import specialist_groups
from rlkd.models.students import label_maps, seeded_weights
from rlkd.records import digest, environment, write_json_atomic
from rlkd.types import Knowledge, State
from rlkd.weighting import Policy
from rlkd.weighting.heuristic import Oracle

RECORD = Path(__file__).parent / "results" / "tokens.json"
COMMAND = "python benchmarks/tokens.py"
SHARES = {"teachers": 3000, "students": 3000, "test": 1500}
"""Windows of each part, about: a file is of one."""
LABELLED = 200
TEACHERS = 3
SIZES: Mapping[str, Mapping[str, int]] = {
    "teacher": {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192},
    "student": {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128},
}
STEPS = {"teacher": 500, "student": 300}
BATCH = 32
RATES = {"teacher": 2e-3, "student": 1e-2}
ARMS = (
    *("uniform", "entropy", "auto", "shuffle"),
    *("labels", "router", "router:gain", "policy", "oracle"),
)

Rows = list[dict[str, list[int]]]


class Shuffled:
    """Control: what a policy says of other names of the batch."""

    def __init__(self, policy: Policy, seed: int) -> None:
        """Hold the policy."""
        self.policy, self._random = policy, torch.Generator().manual_seed(seed)

    @property
    def requires(self) -> frozenset[str]:
        """What the policy requires."""
        return self.policy.requires

    def weights(self, state: State) -> Tensor:
        """The policy's weights, rows permuted."""
        weights: Tensor = self.policy.weights(state)
        return weights[torch.randperm(len(weights), generator=self._random)]


@dataclass(frozen=True)
class Bench:
    """The set, encoded, and its teachers."""

    tokenizer: PreTrainedTokenizerFast
    students: Rows
    """Those with a label come first."""
    test: Rows
    files: NDArray[np.int64]
    """Of each test window, from 0."""
    teachers: Sequence[BertForTokenClassification]
    knowledge: Knowledge


def network(kind: str, words: int, seed: int) -> BertForTokenClassification:
    """A token classifier with weights of a seed."""
    with seeded_weights(seed):
        sizes = {**SIZES[kind], "max_position_embeddings": LENGTH, "pad_token_id": 0}
        return BertForTokenClassification(BertConfig(vocab_size=words, **sizes, **label_maps(CLASSES)))


def encoded(rows: Sequence[Window], tokenizer: PreTrainedTokenizerFast) -> Rows:
    """Windows as a trainer reads them."""
    texts = tokenizer([" ".join(row.words) for row in rows])
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": list(row.classes)}
        for ids, mask, row in zip(texts["input_ids"], texts["attention_mask"], rows, strict=True)
    ]


def arguments(folder: str, kind: str, seed: int, **of_loss: Any) -> rlkd.DistillationArguments:
    """Of teachers and students alike."""
    return rlkd.DistillationArguments(
        folder,
        max_steps=STEPS[kind],
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=128,
        learning_rate=RATES[kind],
        seed=seed,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **of_loss,
    )


def prepared() -> Bench:
    """Make the set and train the teachers."""
    parts: dict[str, list[Window]] = {name: [] for name in SHARES}
    names = iter(SHARES)
    part = next(names)
    found = windows(sum(SHARES.values()))
    for place, window in enumerate(found):
        if len(parts[part]) >= SHARES[part] and window.file != found[place - 1].file:
            part = next(names, part)
        parts[part].append(window)
    tokenizer = tokenizer_of(parts["teachers"])
    order = np.random.default_rng(0).permutation(len(parts["students"]))
    groups = specialist_groups(len(CLASSES), TEACHERS)
    matrix = np.zeros((TEACHERS, len(CLASSES)), dtype=bool)
    for knows, known in zip(matrix, groups, strict=True):
        knows[known] = True
    seen = encoded(parts["teachers"], tokenizer)
    return Bench(
        tokenizer,
        encoded([parts["students"][place] for place in order], tokenizer),
        encoded(parts["test"], tokenizer),
        np.unique([window.file for window in parts["test"]], return_inverse=True)[1],
        [specialist(seen, tokenizer, known, seed) for seed, known in enumerate(groups)],
        Knowledge(by="class", groups=CLASSES, matrix=matrix),
    )


def specialist(rows: Rows, tokenizer: PreTrainedTokenizerFast, known: Sequence[int], seed: int) -> Any:
    """A teacher that was told the names of some classes alone."""
    own = [{**row, "labels": [k if k in known else NO_CLASS for k in row["labels"]]} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            network("teacher", len(tokenizer), seed),
            arguments(folder, "teacher", seed),
            train_dataset=own,
            data_collator=DataCollatorForTokenClassification(tokenizer),
        )
        trainer.train()
    return trainer.model


def student(bench: Bench, folder: str, seed: int, weighting: Any, rows: Rows, **of_loss: Any) -> Any:
    """The trainer of a student."""
    return rlkd.DistillationTrainer(
        network("student", len(bench.tokenizer), seed),
        arguments(folder, "student", seed, **of_loss),
        train_dataset=rows,
        data_collator=DataCollatorForTokenClassification(bench.tokenizer),
        teachers={f"teacher-{place}": teacher for place, teacher in enumerate(bench.teachers)},
        weighting=weighting,
    )


def fitted(bench: Bench, arm: str, seed: int, folder: str) -> Any:
    """The weighting of an arm."""
    if arm == "oracle":
        return Oracle(bench.knowledge)
    if arm == "shuffle":
        return Shuffled(rlkd.load_weighting("auto"), seed)
    if arm not in ("policy", "router", "router:gain"):
        return "uniform" if arm == "labels" else arm
    trainer = student(bench, folder, seed, "uniform", bench.students)
    task, cache = rlkd.labelled_answers(trainer, bench.students[:LABELLED], seed=seed)
    if arm == "policy":
        return rlkd.train_policy(task, cache, seed=seed, jobs=1)
    return rlkd.build_weighting(arm, task, cache, seed=seed)


def run(bench: Bench, arm: str, seed: int) -> dict[str, Any]:
    """Fit, distil and score one student."""
    rows, of_loss = bench.students, {"kd_ratio": 1.0}
    if arm == "labels":
        rows, of_loss = bench.students[:LABELLED], {"kd_ratio": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        weighting = fitted(bench, arm, seed, folder)
        fit = time.process_time() - started
        trainer = student(bench, folder, seed, weighting, rows, **of_loss)
        trainer.train()
        seconds = time.process_time() - started - fit
    right, names = counted(bench, trainer.model)
    row = {"arm": arm, "seed": seed, "score": round(right.sum() / names.sum(), 5)}
    if isinstance(weighting, Policy):
        row |= {"strength": weighting.strength, "origin": weighting.origin}
    return row | {"fit_cpu_seconds": round(fit, 1), "cpu_seconds": round(seconds, 1), "right": right.tolist()}


@torch.no_grad()
def counted(bench: Bench, model: BertForTokenClassification) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Right names and names of every test file, both (files,)."""
    model.eval()
    ids, labels = (torch.tensor([row[name] for row in bench.test]) for name in ("input_ids", "labels"))
    said = torch.cat([model(input_ids=part).logits.argmax(-1) for part in ids.split(256)])
    right, names = np.zeros((2, bench.files.max() + 1), dtype=np.int64)
    np.add.at(right, bench.files, ((said == labels) & (labels >= 0)).sum(1).numpy())
    np.add.at(names, bench.files, (labels >= 0).sum(1).numpy())
    return right, names


def of_teachers(bench: Bench) -> list[dict[str, Any]]:
    """Rows of the record on the teachers: how many names of the test files they get right, of their own classes too."""
    rows = []
    labels = np.array([row["labels"] for row in bench.test])
    for place, (teacher, knows) in enumerate(zip(bench.teachers, bench.knowledge.matrix, strict=True)):
        right, names = counted(bench, teacher)
        own = int(np.isin(labels, np.flatnonzero(knows)).sum())
        told = {"classes": [name for name, known in zip(CLASSES, knows, strict=True) if known]}
        score, of_own = right.sum() / names.sum(), right.sum() / own
        row = {"arm": f"teacher-{place}", **told, "score": round(score, 5), "score_of_own": round(of_own, 5)}
        rows.append(row | {"names": names.tolist()})
    return rows


def main() -> None:
    """Measure, and write after each run what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="Students of every arm.")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="Of these alone.")
    parser.add_argument("--json", type=Path, default=RECORD, help="File of the record.")
    asked = parser.parse_args()
    made_by = environment()
    here = [Path(__file__).read_text(encoding="utf-8"), Path(__file__).with_name("python_names.py").read_text("utf-8")]
    made = {
        "command": COMMAND,
        "made_of": digest([*here, made_by["source"], made_by["python"], made_by["versions"]], 16),
        "commit": made_by["commit"],
        "dirty": made_by["dirty"],
    }
    there = json.loads(asked.json.read_text(encoding="utf-8")) if asked.json.exists() else []
    records = [row for row in there if row["made_of"] == made["made_of"]]
    done = {(row["arm"], row.get("seed")) for row in records}
    with one_thread():
        bench = prepared()
        if not done:
            records += [row | made for row in of_teachers(bench)]
        for seed in range(asked.seeds):
            for arm in asked.arms:
                if (arm, seed) in done:
                    continue
                records.append(run(bench, arm, seed) | made)
                print(
                    *(f"{key} {value}" for key, value in records[-1].items() if key not in ("right", *made)), flush=True
                )
                write_json_atomic(asked.json, records)


if __name__ == "__main__":
    main()
