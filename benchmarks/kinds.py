"""What weightings are worth where an instance has several labels, or a number: ``python benchmarks/kinds.py``.

Real texts, with teachers that are specialists, in the plain trainer:

- ``newsgroups20``, ``goemotions``: two texts of different labels are joined, so that an instance has two of the labels.
  Each teacher, TF-IDF with a logistic regression a label, has seen pairs of some of the labels alone. It tells every
  label and denies the others, always; in ``newsgroups20, own labels`` it tells its own alone, as its names of labels
  say. The score is the share of an instance's two labels that are the student's first two.
- ``sst5``: stars from 0 to 4 as a number, teachers (TF-IDF with ridge regression) of the low, the middle and the high
  ones; ``amazon4``: 1 for praise and -1 for the contrary, teachers by domain. The score is the squared error, negated.

Students are small networks with one hidden layer over the commonest words of a text, which learn in seconds. Runs of a
seed share rows, initialisation and batches.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported: no model is asked for by id

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from torch import Tensor

import rlkd
from rlkd.benchmark.paths import with_places
from rlkd.devices import one_thread
from rlkd.features import ObservationConfig, teacher_features
from rlkd.kinds import Kind, MultiLabelClassification, Regression, by_label
from rlkd.logit_cache import LogitCache
from rlkd.models.architectures import MlpConfig, MlpForSequenceClassification
from rlkd.records import environment, write_json_atomic
from rlkd.stats import Panel
from rlkd.trainer.looked_up_teachers import CachedTeachers
from rlkd.types import Knowledge, State
from rlkd.weighting import Policy
from rlkd.weighting.controls import PolicyShuffle
from rlkd.weighting.gate import Gate
from rlkd.weighting.heuristic import Entropy, Oracle
from rlkd.weighting.router import fit_router
from rlkd.weighting.router_targets import router_targets

HERE = Path(__file__).parent
RECORD = HERE / "results" / "kinds.json"
COMMAND = "python benchmarks/kinds.py"
WORDS = 30
"""That a text is cut to."""
NEUTRAL = 27
"""The emotion of ``goemotions`` that is none."""
BATCH = 64
VOCABULARY, HIDDEN = 2000, 64
"""Of a student."""
KNOWN_PAIRS = 4000
"""Pairs that a teacher of several labels has seen, and that students see."""
HELD_OUT = 1500
"""Labelled pairs that a router is fitted on, and that the best teacher is found on."""


@dataclass(frozen=True)
class Rows:
    """Texts with what is known of them."""

    texts: Sequence[str]
    targets: NDArray[np.float32]
    """Labels (N, L), or numbers (N, 1)."""
    said: Tensor
    """What the teachers say, (N, K, L) or (N, K, 1)."""
    knows: NDArray[np.float32]
    """Shares of the teachers that know an instance, (N, K), from its label or domain."""

    def state(self, kind: Kind) -> State:
        """What a weighting sees of them, but for the student."""
        targets = torch.from_numpy(self.targets)
        return kind.state(State(teacher_logits=self.said), torch.zeros_like(targets), targets)


@dataclass(frozen=True)
class Bench:
    """A task: its rows, what its teachers cover, and how it is scored."""

    kind: Kind
    train: Rows
    validation: Rows
    test: Rows
    matrix: NDArray[np.bool_]
    """Which teacher knows which label or group, (K, G)."""
    score: Callable[[NDArray[np.floating[Any]], NDArray[np.float32]], NDArray[np.float64]]
    """From outputs (N, L) and targets to a value an instance, (N,); more is better."""
    steps: int
    """Of a student: until it has learned what it is taught."""
    rate: float
    """Its learning rate."""

    @property
    def best_teacher(self) -> int:
        """The one with the best score on validation."""
        said = self.validation.said.numpy()
        return int(np.argmax([self.score(said[:, k], self.validation.targets).mean() for k in range(said.shape[1])]))


class TwoClasses:
    """A weighting asked about every label by itself, a choice of two classes; the mean over an instance's labels."""

    requires: frozenset[str] = frozenset()

    def __init__(self, own: Any) -> None:
        """Hold the weighting."""
        self.own = own

    def weights(self, state: State) -> Tensor:
        """Weights (N, K)."""
        log_odds = state.teacher_logits[..., :-1]
        single = torch.stack([torch.zeros_like(log_odds), log_odds], -1).transpose(-3, -2)
        weights: Tensor = self.own.weights(State(teacher_logits=single)).mean(-2)
        return weights


class OfRows:
    """Weights that are known of every training row: the oracle."""

    requires, answers = frozenset({"ids"}), "either"

    def __init__(self, weights: NDArray[np.float32]) -> None:
        """Hold them, (N, K)."""
        self.table = torch.from_numpy(weights)

    def weights(self, state: State) -> Tensor:
        """Those of a batch."""
        assert state.ids is not None
        return self.table[state.ids]


class ShuffledGate(Gate):
    """Control: what the gate says of other instances of the batch."""

    def weights(self, state: State) -> Tensor:
        """Each instance gets the weights of the one before it."""
        return super().weights(state).roll(1, 0)


def two_labels(frame: pd.DataFrame, labels: Sequence[int], count: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Pairs of texts of different labels, and which labels they have."""
    numbers = {label: place for place, label in enumerate(labels)}
    frame = frame[frame.label.isin(labels)]
    texts = [" ".join(text.split()[:WORDS]) for text in frame.text]
    label = frame.label.map(numbers).to_numpy()
    pairs = rng.integers(len(texts), size=(2 * count, 2))
    pairs = pairs[label[pairs[:, 0]] != label[pairs[:, 1]]][:count]
    targets = np.zeros((len(pairs), len(labels)), dtype=np.float32)
    np.put_along_axis(targets, label[pairs], 1.0, axis=1)
    return [f"{texts[a]} {texts[b]}" for a, b in pairs], targets


def several_labels(folder: str, leave_out: Sequence[int] = (), most: int = 20, own: bool = False) -> Bench:
    """A task of pairs, with three teachers that have each seen a good third of the labels."""
    data = {split: pd.read_parquet(f"{folder}/{split}.parquet") for split in ("train", "validation", "test")}
    train = data["train"]
    labels = sorted(train.label[~train.label.isin(leave_out)].value_counts().index[:most])
    third = len(labels) // 3
    matrix = np.zeros((3, len(labels)), dtype=bool)
    for k in range(3):
        matrix[k, np.arange(k * third, (k + 1) * third + third // 3) % len(labels)] = True
    matrix[2, 2 * third :] = True
    rng = np.random.default_rng(0)
    teachers = []
    for knows in matrix:
        seen, targets = two_labels(train, [labels[place] for place in np.flatnonzero(knows)], KNOWN_PAIRS, rng)
        model = OneVsRestClassifier(LogisticRegression(C=5.0, max_iter=200))
        teachers.append(make_pipeline(TfidfVectorizer(min_df=2, sublinear_tf=True), model).fit(seen, targets))

    def rows(split: str, count: int) -> Rows:
        texts, targets = two_labels(data[split], labels, count, rng)
        said = np.full((len(texts), 3, len(labels)), -8.0, dtype=np.float32)
        for k, teacher in enumerate(teachers):
            said[:, k, matrix[k]] = teacher.decision_function(texts)
        known = targets @ matrix.T.astype(np.float32)
        return Rows(texts, targets, torch.from_numpy(said), known / known.sum(1, keepdims=True))

    kind = MultiLabelClassification(torch.from_numpy(matrix) if own else None)
    sizes = {"train": KNOWN_PAIRS, "validation": HELD_OUT, "test": 2000}
    made = {split: rows(split, count) for split, count in sizes.items()}
    return Bench(kind, **made, matrix=matrix, score=first_two, steps=800, rate=1e-2)


def first_two(outputs: NDArray[np.floating[Any]], targets: NDArray[np.float32]) -> NDArray[np.float64]:
    """Share of an instance's two labels that are the first two."""
    first = np.argsort(-outputs, axis=1, kind="stable")[:, :2]
    return np.asarray(np.take_along_axis(targets, first, axis=1).mean(1), dtype=np.float64)


def numbers(folder: str, groups: Callable[[pd.DataFrame], NDArray[np.bool_]], scale: Sequence[float]) -> Bench:
    """A task of numbers, with a teacher for each group of rows."""
    data = {split: pd.read_parquet(f"{folder}/{split}.parquet") for split in ("train", "validation", "test")}
    texts = {split: [" ".join(text.split()[: 2 * WORDS]) for text in frame.text] for split, frame in data.items()}
    targets = {split: np.asarray(scale, dtype=np.float32)[frame.label][:, None] for split, frame in data.items()}
    known = {split: groups(frame) for split, frame in data.items()}
    teachers = []
    for of_group in known["train"].T:
        seen = [text for text, is_so in zip(texts["train"], of_group, strict=True) if is_so]
        model = make_pipeline(TfidfVectorizer(min_df=2, sublinear_tf=True), Ridge(alpha=1.0))
        teachers.append(model.fit(seen, targets["train"][of_group, 0]))
    rows = {}
    for split in data:
        said = np.stack([model.predict(texts[split]) for model in teachers], 1).astype(np.float32)
        share = known[split].astype(np.float32)
        share /= share.sum(1, keepdims=True)
        rows[split] = Rows(texts[split], targets[split], torch.from_numpy(said).unsqueeze(-1), share)
    matrix = np.eye(len(teachers), dtype=bool)
    return Bench(Regression(), **rows, matrix=matrix, score=less_error, steps=400, rate=5e-3)


def less_error(outputs: NDArray[np.floating[Any]], targets: NDArray[np.float32]) -> NDArray[np.float64]:
    """Minus the squared error."""
    score: NDArray[np.float64] = -np.square(outputs.astype(np.float64) - targets).mean(1)
    return score


def stars(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Low, middle and high ones, which overlap."""
    label = frame.label.to_numpy()
    return np.stack([label <= 1, (label >= 1) & (label <= 3), label >= 3], 1)


def domains(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Of a review."""
    return np.stack([(frame.domain == name).to_numpy() for name in sorted(frame.domain.unique())], 1)


def benches() -> Mapping[str, Callable[[], Bench]]:
    """Tasks by name, as they are made."""
    places = {
        name: with_places(f"${{DATA}}/{name}") for name in ("newsgroups20", "goemotions_single", "sst5", "amazon4")
    }
    return {
        "newsgroups20": partial(several_labels, places["newsgroups20"]),
        "newsgroups20, own labels": partial(several_labels, places["newsgroups20"], own=True),
        "goemotions": partial(several_labels, places["goemotions_single"], leave_out=[NEUTRAL], most=18),
        "sst5": partial(numbers, places["sst5"], stars, [0, 1, 2, 3, 4]),
        "amazon4": partial(numbers, places["amazon4"], domains, [-1, 1]),
    }


def arms_of(bench: Bench) -> dict[str, Any]:
    """Weightings by name."""
    teachers = bench.train.said.shape[1]
    best = ["0"] * teachers
    best[bench.best_teacher] = "1"
    arms: dict[str, Any] = {"uniform": "uniform", "labels": "labels", "best_teacher": f"fixed:{','.join(best)}"}
    if isinstance(bench.kind, Regression):
        return arms | {
            "gate": "gate",
            "gate_shuffle": ShuffledGate(teachers),
            "oracle": OfRows(bench.train.knows),
        }
    router = fitted_router(bench.validation.state(bench.kind))
    knowledge = Knowledge(by="class", groups=tuple(map(str, range(bench.matrix.shape[1]))), matrix=bench.matrix)
    return arms | {
        "entropy": "entropy",
        "entropy, label by label": TwoClasses(Entropy()),
        "auto": "auto",
        "hedge": "hedge",
        "cross_entropy": "cross_entropy",
        "router": router,
        "router_shuffle": PolicyShuffle(router),
        "oracle": Oracle(knowledge),
    }


def fitted_router(seen: State) -> Policy:
    """The policy's network, taught on labelled pairs who is right of each of their labels."""
    rows, _ = by_label(seen)
    policy = Policy.create(ObservationConfig(), training={"reward": "router"}, seed=0)
    return fit_router(policy, teacher_features(rows, policy.observation), router_targets(rows)).eval()


def run(bench: Bench, weighting: Any, seed: int, encoded: Mapping[str, Any]) -> tuple[Any, float]:
    """Distil one student: its values on the test rows (N,), and the CPU seconds of its training."""
    outputs = bench.train.targets.shape[1]
    torch.manual_seed(seed)
    problem = "regression" if isinstance(bench.kind, Regression) else "multi_label_classification"
    config = MlpConfig(input_size=VOCABULARY, hidden_size=HIDDEN, num_labels=outputs, problem_type=problem)
    said = bench.train.said
    cache = LogitCache([said[:, k].numpy() for k in range(said.shape[1])], [f"t{k}" for k in range(said.shape[1])])
    teachers: Any = CachedTeachers(cache, "id", torch.device("cpu"))
    teachers.covers = bench.kind.covers
    with tempfile.TemporaryDirectory() as folder:
        args = rlkd.DistillationArguments(
            folder,
            max_steps=bench.steps,
            per_device_train_batch_size=BATCH,
            learning_rate=bench.rate,
            seed=seed,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            per_device_eval_batch_size=256,
        )
        trainer = rlkd.DistillationTrainer(
            MlpForSequenceClassification(config),
            args,
            train_dataset=encoded["train"],
            teachers=teachers,
            weighting=weighting,
        )
        started = time.process_time()
        trainer.train()
        seconds = time.process_time() - started
        answers = trainer.predict(encoded["test"]).predictions
    return bench.score(answers.reshape(len(answers), -1), bench.test.targets), seconds


def encoded_rows(words: TfidfVectorizer, rows: Rows) -> list[dict[str, Any]]:
    """Rows as the trainer reads them; a regression has one number."""
    vectors = words.transform(rows.texts).toarray().astype(np.float32)
    single = rows.targets.shape[1] == 1
    return [
        {"input_values": vector, "labels": target[0] if single else target, "id": place}
        for place, (vector, target) in enumerate(zip(vectors, rows.targets, strict=True))
    ]


def measured(name: str, bench: Bench, seeds: int) -> list[dict[str, Any]]:
    """A row for every arm of a task: its score, and its difference to equal weights with an interval."""
    words = TfidfVectorizer(max_features=VOCABULARY, sublinear_tf=True).fit(bench.train.texts)
    encoded = {split: encoded_rows(words, getattr(bench, split)) for split in ("train", "test")}
    values: dict[str, dict[int, Any]] = {}
    seconds: dict[str, float] = {}
    for seed in range(seeds):  # arms take turns: what else the machine does falls on all of them
        for arm, weighting in arms_of(bench).items():
            found, took = run(bench, weighting, seed, encoded)
            values.setdefault(arm, {})[seed] = found
            seconds[arm] = seconds.get(arm, 0.0) + took
            print(name, seed, arm, f"{found.mean():.4f}", flush=True)
    panel = Panel(values)
    return [row_of(panel, name, bench, arm) | {"cpu_seconds": round(seconds[arm] / seeds, 2)} for arm in values]


def row_of(panel: Panel, name: str, bench: Bench, arm: str) -> dict[str, Any]:
    """What is recorded of an arm."""
    score, difference = panel.score(arm), panel.difference(arm, "uniform")
    assert score is not None
    assert difference is not None
    gain, share = difference.estimate(), panel.gap_share(arm, "uniform", "oracle")
    assert gain is not None
    row = {"task": name, "kind": bench.kind.name, "arm": arm, "seeds": len(panel.seeds), "rows": panel.instances}
    row |= {"score": round(score.value, 5)}
    row |= {"gain": round(gain.mean, 5), "low": round(gain.low, 5), "high": round(gain.high, 5)}
    return row | {"share": None if share is None else round(share.value, 3)}


def main() -> None:
    """Measure, and write after each task what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=list(benches()), help="Of these tasks alone.")
    parser.add_argument("--seeds", type=int, default=3, help="Students of every arm.")
    parser.add_argument("--json", type=Path, default=RECORD, help="File of the record.")
    arguments = parser.parse_args()
    made_by = environment()
    chosen = arguments.task or list(benches())
    there = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else []
    records = [row for row in there if row["task"] not in chosen]
    with one_thread():
        for name in chosen:
            rows = measured(name, benches()[name](), arguments.seeds)
            records += [row | {"command": COMMAND, "commit": made_by["commit"]} for row in rows]
            write_json_atomic(arguments.json, sorted(records, key=lambda row: list(benches()).index(row["task"])))


if __name__ == "__main__":
    main()
