"""A step of ours beside a step of others: ``python benchmarks/performance/peers.py --json FILE``.

Every arm trains the same student on the same batches, in a thread of its own, and the arms take turns of two steps, in
an order that is drawn for every turn: an arm gives way when its optimizer has stepped, so that what it counts is one
whole cycle of its loop, in processor time of the process. The first step of a turn is not counted: it finds the
processor's caches as another arm left them, the second as in a run of its own. One thread computes at a time. A ratio
is the median of the ratios of single steps.

A student's step with a cache is a forward and a backward pass, together 2.9 to 3.4 forward passes without a gradient as
measured here for encoders of several widths and batches, and three teachers twice as deep are 6: a cache saves about
three times at most, and less where optimizer, clipping and a loop's own time have weight, as in small batches. How much
it is without any trainer is measured beside, by two loops by hand. A BiLSTM has teachers of four layers.

First it is shown that all arms do the same: where the conventions coincide (the mean of logits, temperature 2, no
factor of its square), students end with the same parameters. All are in one process, so that what our trainers tell
Python while they train (that a package which accelerate looks for is not there) serves other Trainers too.

Peers are no dependencies of ours; those that are not installed are left out and named: TextBrewer (pip install
textbrewer) and torchdistill (with the torchvision of the installed torch).
"""

import argparse
import os
import sys

if os.environ.get("MALLOC_ARENA_MAX") != "1":  # arenas of many threads make differences of 30 % that are none
    os.environ.update(MALLOC_ARENA_MAX="1", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    # memory that is given back to the system after each step is cleared page by page for the next
    os.environ.update(MALLOC_MMAP_THRESHOLD_=str(1 << 30), MALLOC_TRIM_THRESHOLD_=str(1 << 34))
    os.execv(sys.executable, [sys.executable, *sys.argv])

import copy
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))

import other_torchvision  # noqa: F401 (before transformers, which imports torchvision where it is there)
from measure import Bench, published
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from rlkd.data.planted import planted
from rlkd.logit_cache import LogitCache
from rlkd.logit_cache.stacks import StackedLogits
from rlkd.models.architectures import BiLstmConfig, BiLstmForSequenceClassification
from rlkd.trainer import DistillationArguments, DistillationTrainer
from rlkd.weighting import load_policy
from rlkd.weighting.fixed import Uniform

K, CLASSES, VOCABULARY = 3, 3, 1000
TEMPERATURE = 2.0
STUDENTS = ("encoder:2:32", "encoder:2:256", "bilstm:1:32")
TURN = 2
"""Steps of a turn; the last is counted."""
WARM_UP = 4
"""Steps of every arm that are not counted, before those that are."""
SMALL = 32
"""Rows of a batch up to which it is small."""
LEAST = 16
"""Steps of a round, of large batches. Rounds differ by percents, by where an arm's memory lies, and steps of a round by
less: many short rounds tell more than a few long ones."""

Batches = dict[str, Tensor]
Build = Callable[["Setting", "Gate"], None]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of students and teachers; all networks start at random and have no dropout."""

    kind: str = "encoder"
    """Of the student: encoder or bilstm. Teachers are encoders."""
    layers: int = 2
    """Of the student; teachers have as many times ``deeper``."""
    width: int = 128
    """Of the student; teachers have as many times ``wider``."""
    deeper: int = 2
    wider: int = 1
    inner: int = 4
    """Width of the feed-forward layers, in widths."""
    initializer_range: float = 0.02
    length: int = 64
    """Tokens of a row."""
    batch: int = 32
    fused: bool = True
    """Whether the optimizer is."""
    clip: float = 1.0
    """Largest norm of a gradient; 0: it is not asked."""

    def teacher(self, seed: int) -> nn.Module:
        """An encoder."""
        return self._bert(seed, self.deeper * self.layers, self.wider * self.width)

    def student(self) -> nn.Module:
        """An encoder or a BiLSTM."""
        if self.kind == "encoder":
            return self._bert(9, self.layers, self.width)
        torch.manual_seed(9)
        config = BiLstmConfig(
            vocab_size=VOCABULARY, embedding_size=self.width, hidden_size=self.width, num_labels=CLASSES, dropout=0.0
        )
        return BiLstmForSequenceClassification(config)

    def _bert(self, seed: int, layers: int, width: int) -> nn.Module:
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=self.inner * width,
            max_position_embeddings=64,
            num_labels=CLASSES,
            initializer_range=self.initializer_range,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        teacher: nn.Module = BertForSequenceClassification(config).eval()
        return teacher


OF_PARITY = Sizes(
    layers=1, width=32, deeper=2, wider=2, inner=2, initializer_range=0.5, length=32, fused=False, clip=0.0
)


class Setting:
    """What all arms share: data, teachers, and the student that each copies.

    Args:
        folder: For files.
        sizes: Of networks and rows.
        rows: Of the data, a multiple of the batch.
        epochs: Passes over them.
    """

    def __init__(self, folder: Path, sizes: Sizes, rows: int, epochs: int) -> None:
        self.folder, self.sizes, self.rows, self.epochs, self.batch = folder, sizes, rows, epochs, sizes.batch
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, VOCABULARY, (rows, sizes.length), generator=generator)
        labels = torch.randint(0, CLASSES, (rows,), generator=generator)
        self.data = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        self.teachers, self._student = [sizes.teacher(seed) for seed in range(1, K + 1)], sizes.student()
        self.logits = torch.cat([self.asked(batch) for batch in self.batches()])

    @torch.no_grad()
    def asked(self, batch: Batches) -> Tensor:
        """What the teachers say of a batch, (B, K, C)."""
        read = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return torch.stack([teacher(**read).logits for teacher in self.teachers], 1)

    def student(self) -> nn.Module:
        """A copy to train."""
        return copy.deepcopy(self._student).train()

    def table(self) -> list[dict[str, Any]]:
        """Rows in memory, which Trainers read; a data set of Arrow would cost all of them the same beside."""
        columns = {**self.data, "id": torch.arange(self.rows)}
        return [{name: value[row] for name, value in columns.items()} for row in range(self.rows)]

    def batches(self) -> list[Batches]:
        """In order, as tensors."""
        return [
            {n: v[start : start + self.batch] for n, v in self.data.items()}
            for start in range(0, self.rows, self.batch)
        ]

    @property
    def steps(self) -> int:
        """Of every arm."""
        return self.epochs * self.rows // self.batch

    def arguments(self, kind: type[TrainingArguments] = TrainingArguments, **more: Any) -> Any:
        """Of a Trainer that does as the others do."""
        return kind(
            str(self.folder),
            per_device_train_batch_size=self.batch,
            num_train_epochs=self.epochs,
            lr_scheduler_type="constant",
            max_grad_norm=self.sizes.clip,
            train_sampling_strategy="sequential",
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=10_000,
            dataloader_pin_memory=False,
            remove_unused_columns=True,
            **more,
        )


class Gate:
    """Lets one arm at a time take a step, and counts what it takes."""

    def __init__(self) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self.finished = False
        self.student: nn.Module | None = None
        self.error: BaseException | None = None

    def pause(self) -> None:
        """Of the arm: its step is done."""
        self._done.release()
        self._go.acquire()

    def run(self, build: Build, setting: Setting) -> None:
        """The arm's thread."""
        self._go.acquire()
        try:
            build(setting, self)
        except BaseException as error:  # is raised where it is waited for
            self.error = error
        self.finished = True
        self._done.release()

    def step(self) -> float:
        """Of who measures: processor time of the arm's next step."""
        start = time.process_time()
        self._go.release()
        self._done.acquire()
        took = time.process_time() - start
        if self.error is not None:
            raise self.error
        return took

    def optimizer(self, student: nn.Module, setting: Setting) -> torch.optim.Optimizer:
        """AdamW that gives way after each step."""
        self.student = student
        return Waiting(student.parameters(), lr=1e-3, weight_decay=0.0, fused=setting.sizes.fused, gate=self)


class Waiting(torch.optim.AdamW):
    """AdamW that gives way to the other arms after each step."""

    def __init__(self, parameters: Any, *, gate: Gate, **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self._gate = gate

    def step(self, closure: Any = None) -> Any:
        """Step, and wait for the next turn."""
        loss = super().step(closure)
        self._gate.pause()
        return loss


def soft_loss(logits: Tensor, teachers: Tensor) -> Tensor:
    """Cross entropy to the softmax of the mean logits (B, K, C), at the temperature, without a factor."""
    targets = F.softmax(teachers.mean(1) / TEMPERATURE, -1)
    return -(targets * F.log_softmax(logits / TEMPERATURE, -1)).sum(-1).mean()


def bare(*, live: bool) -> Build:
    """A loop by hand, over logits that lie in memory or with teachers that are asked."""

    def build(setting: Setting, gate: Gate) -> None:
        student = setting.student()
        optimizer, batches = gate.optimizer(student, setting), setting.batches()
        for _ in range(setting.epochs):
            for place, batch in enumerate(batches):
                logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                known = slice(place * setting.batch, (place + 1) * setting.batch)
                loss = soft_loss(logits, setting.asked(batch) if live else setting.logits[known])
                optimizer.zero_grad()
                loss.backward()
                if setting.sizes.clip:
                    nn.utils.clip_grad_norm_(student.parameters(), setting.sizes.clip)
                optimizer.step()

    return build


class Live(Trainer):
    """What people write today."""

    teachers: Sequence[nn.Module] = ()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Of the mean of the teachers' logits."""
        read = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**read)
        with torch.no_grad():
            asked = torch.stack([teacher(**read).logits for teacher in self.teachers], 1)
        loss = soft_loss(outputs.logits, asked)
        return (loss, outputs) if return_outputs else loss


def trainer_alone(setting: Setting, gate: Gate) -> None:
    """A Trainer that learns the labels."""
    student = setting.student()
    data = [{name: value for name, value in row.items() if name != "id"} for row in setting.table()]
    Trainer(
        student, setting.arguments(), train_dataset=data, optimizers=(gate.optimizer(student, setting), None)
    ).train()


def trainer_live(setting: Setting, gate: Gate) -> None:
    """A Trainer's subclass of ten lines with live teachers."""
    student = setting.student()
    data = [{name: value for name, value in row.items() if name != "id"} for row in setting.table()]
    trainer = Live(
        student, setting.arguments(), train_dataset=data, optimizers=(gate.optimizer(student, setting), None)
    )
    trainer.teachers = setting.teachers
    trainer.train()


def ours(teachers: Callable[[Setting], Any], weighting: Callable[[], Any] = Uniform) -> Build:
    """Our trainer, with live teachers or a cache, and some weighting."""

    def build(setting: Setting, gate: Gate) -> None:
        student = setting.student()
        DistillationTrainer(
            student,
            setting.arguments(
                DistillationArguments, temperature=TEMPERATURE, kd_ratio=1.0, mix="logit", scale_by_temperature=False
            ),
            train_dataset=setting.table(),
            teachers=teachers(setting),
            weighting=weighting(),
            optimizers=(gate.optimizer(student, setting), None),
        ).train()

    return build


def in_memory(setting: Setting) -> LogitCache:
    """The teachers' answers in memory."""
    return LogitCache(list(setting.logits.numpy().transpose(1, 0, 2)), list("abc"))


def mapped(setting: Setting) -> LogitCache:
    """The teachers' answers on disk."""
    path = setting.folder / "stacked.npy"
    np.save(path, setting.logits.numpy())
    return LogitCache(StackedLogits(np.asarray(np.load(path, mmap_mode="r"))), list("abc"))


def textbrewer(*, caching: bool) -> Build:
    """TextBrewer's MultiTeacherDistiller."""

    def build(setting: Setting, gate: Gate) -> None:
        from textbrewer import DistillationConfig, MultiTeacherDistiller, TrainingConfig

        student = setting.student()
        distiller = MultiTeacherDistiller(
            TrainingConfig(
                device="cpu",
                output_dir=str(setting.folder / f"textbrewer-{caching}"),
                log_dir=str(setting.folder),
                ckpt_frequency=0,
                ckpt_epoch_frequency=10_000,
            ),
            DistillationConfig(
                temperature=TEMPERATURE, kd_loss_weight=1.0, hard_label_weight=0.0, is_caching_logits=caching
            ),
            setting.teachers,
            student,
            lambda batch, outputs: {"logits": outputs.logits},
            lambda batch, outputs: {"logits": outputs.logits},
        )
        batches = [{n: v for n, v in batch.items() if n != "labels"} for batch in setting.batches()]
        with distiller:
            optimizer, norm = gate.optimizer(student, setting), setting.sizes.clip or -1
            distiller.train(optimizer, batches, num_epochs=setting.epochs, max_grad_norm=norm)

    return build


def torchdistill(setting: Setting, gate: Gate) -> None:
    """torchdistill, whose one teacher holds all of ours."""
    from torch.utils.data import SequentialSampler
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.core.interfaces.registry import register_forward_proc_func
    from torchdistill.datasets.registry import register_collate_func
    from torchdistill.losses.registry import register_mid_level_loss

    class Teachers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all, self.stack = nn.ModuleList(setting.teachers), nn.Identity()

        def forward(self, **batch: Tensor) -> Tensor:
            stacked: Tensor = self.stack(torch.stack([one(**batch).logits for one in self.all], 1))
            return stacked

    class Soft(nn.Module):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__()

        def forward(self, student: Any, teacher: Any, targets: Any = None, *args: Any, **kwargs: Any) -> Tensor:
            return soft_loss(student["classifier"]["output"], teacher["stack"]["output"])

    def forward(model: Any, sample_batch: Any, targets: Any = None, supp_dict: Any = None, **kwargs: Any) -> Any:
        return model(**{name: value for name, value in sample_batch.items() if name != "labels"})

    register_forward_proc_func(forward, key="of_batches")
    register_collate_func(lambda rows: {n: torch.stack([row[n] for row in rows]) for n in rows[0]}, key="stacked")
    register_mid_level_loss(Soft, key="of_mean_logits")
    student = setting.student()
    gate.student = student

    def side(grad: bool, path: str) -> dict[str, Any]:
        hook = {"input": [], "output": [path]}
        return {"forward_proc": "of_batches", "requires_grad": grad, "frozen_modules": [], "sequential": []} | {
            "wrapper": None,
            "forward_hook": hook,
        }

    loader = {"sampler": {"class_or_func": SequentialSampler, "kwargs": None}, "kwargs": {"batch_size": setting.batch}}
    terms = {"kd": {"criterion": {"key": "of_mean_logits", "kwargs": {}}, "weight": 1.0}}
    config = {
        "num_epochs": setting.epochs,
        "train_data_loader": {"dataset_id": "train", "collate_fn": "stacked", "requires_supp": False, **loader},
        "teacher": side(False, "stack"),
        "student": side(True, "classifier"),
        "optimizer": {
            "key": "AdamW",
            "kwargs": {"lr": 1e-3, "weight_decay": 0.0, "fused": setting.sizes.fused},
            **({"max_grad_norm": setting.sizes.clip} if setting.sizes.clip else {}),
        },
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }
    rows = [{name: value[row] for name, value in setting.data.items()} for row in range(setting.rows)]
    box = get_distillation_box(Teachers().eval(), student, {"train": rows}, config, torch.device("cpu"), None, False, 1)
    for epoch in range(setting.epochs):
        box.pre_epoch_process(epoch=epoch)
        for batch in box.train_data_loader:
            box.post_forward_process(loss=box.forward_process(sample_batch=batch, targets=None, supp_dict=None))
            gate.pause()
        box.post_epoch_process()


ARMS: dict[str, Build] = {
    "bare loop over logits in memory": bare(live=False),
    "bare loop, live teachers": bare(live=True),
    "Trainer without distillation": trainer_alone,
    "Trainer's subclass, live teachers": trainer_live,
    "TextBrewer, live teachers": textbrewer(caching=False),
    "TextBrewer, its RAM cache": textbrewer(caching=True),
    "torchdistill, live teachers": torchdistill,
    "rlkd, live teachers": ours(lambda setting: setting.teachers),
    "rlkd, cache in memory": ours(in_memory),
    "rlkd, cache mapped": ours(mapped),
    "rlkd, cache in memory, shipped policy": ours(in_memory, lambda: load_policy("auto")),
}
BARE, CACHE, LIVE, RAM = (
    "bare loop over logits in memory",
    "rlkd, cache in memory",
    "rlkd, live teachers",
    "TextBrewer, its RAM cache",
)
BARE_LIVE = "bare loop, live teachers"
LIMITED = (BARE, BARE_LIVE, CACHE, LIVE, RAM)
"""Arms that limits compare, and the most that a cache can save: with large batches, whose steps take long, these alone
are measured."""
OTHER_LOSS = {"Trainer without distillation", "rlkd, cache in memory, shipped policy"}
"""Arms whose students are others by what they learn."""


def installed(arms: Sequence[str]) -> list[str]:
    """Arms whose packages are there; of others it is said that they are not."""
    found = []
    for arm in arms:
        try:
            if arm.startswith("TextBrewer"):
                import textbrewer  # noqa: F401
            if arm.startswith("torchdistill"):
                import torchdistill  # noqa: F401
        except (ImportError, RuntimeError) as error:
            print(f"left out: {arm} ({error})")
            continue
        found.append(arm)
    return found


def in_turns(setting: Setting, arms: Sequence[str], seed: int = 0) -> tuple[dict[str, Gate], np.ndarray[Any, Any]]:
    """Train every arm's student in drawn turns: gates, and processor seconds (steps, arms).

    Their first steps come in a drawn order too, in which they get their memory: where it lies makes a percent.
    """
    draws = np.random.default_rng(seed)
    gates = {arm: Gate() for arm in arms}
    threads = [threading.Thread(target=gate.run, args=(ARMS[arm], setting), daemon=True) for arm, gate in gates.items()]
    for thread in threads:
        thread.start()
    took = np.full((setting.steps, len(arms)), np.nan)
    for turn in range(0, setting.steps, TURN):
        for place in draws.permutation(len(arms)):
            for step in range(turn, min(turn + TURN, setting.steps)):
                took[step, place] = gates[arms[place]].step()
    for gate in gates.values():
        while not gate.finished:
            gate.step()
    return gates, took


def parity(folder: Path, arms: Sequence[str]) -> dict[str, float]:
    """Sum of the absolute parameters of every arm's student, without a clipped gradient or a fused optimizer."""
    setting = Setting(folder, OF_PARITY, rows=256, epochs=3)
    same = [arm for arm in arms if arm not in OTHER_LOSS and arm != RAM]  # its cache deals other batches
    gates, _ = in_turns(setting, same)
    return {arm: digest_of(gates[arm].student) for arm in same}


def digest_of(student: Any) -> float:
    """Sum of the absolute parameters, in float64."""
    return float(sum(p.detach().double().abs().sum() for p in student.parameters()))


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Show that arms do the same, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the records here")
    parser.add_argument("--students", nargs="+", default=STUDENTS, help="KIND:LAYERS:BATCH")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=48, help="a round of small batches, of every arm, over two epochs")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="these alone")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    students = {student: sizes_of(student) for student in arguments.students}
    arms = installed(arguments.arms)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(planted(num_rows=100), "cpu", arguments.rounds, arguments.steps, Path(folder))
        digests = parity(Path(folder), arms)
        records = [
            bench.record(
                f"sum of absolute parameters less the bare loop's, {arm}", [abs(value - digests[BARE])], "", 1e-6
            )
            for arm, value in digests.items()
            if arm != BARE
        ]
        for student, sizes in students.items():
            asked = arms if sizes.batch <= SMALL else [arm for arm in arms if arm in LIMITED]
            records += described(bench, student, asked, measured(bench, sizes, asked))
    return published(records, arguments.json)


def sizes_of(student: str) -> Sizes:
    """Of a student that is named KIND:LAYERS:BATCH; teachers of a BiLSTM are encoders of four layers."""
    kind, _, numbers = student.partition(":")
    layers, _, batch = numbers.partition(":")
    if kind not in ("encoder", "bilstm") or not (layers.isdecimal() and batch.isdecimal()):
        sys.exit(f"expected KIND:LAYERS:BATCH, such as {STUDENTS[0]}, got {student!r}; the kind is encoder or bilstm")
    return Sizes(kind=kind, layers=int(layers), batch=int(batch), deeper=2 if kind == "encoder" else 4)


def measured(bench: Bench, sizes: Sizes, arms: Sequence[str]) -> list[Any]:
    """Processor seconds of counted steps of the second epoch, when caches are full: of each round (steps, arms)."""
    rounds, batches = [], max(bench.batches * SMALL // sizes.batch, LEAST) // (2 * TURN) * TURN
    for seed in range(bench.rounds):
        setting = Setting(bench.folder, sizes, sizes.batch * batches, epochs=2)
        _, took = in_turns(setting, arms, seed)
        rounds.append(took[setting.steps // 2 + WARM_UP :][TURN - 1 :: TURN])
    return rounds


def described(bench: Bench, student: str, arms: Sequence[str], rounds: Sequence[Any]) -> list[dict[str, Any]]:
    """Records of a student: ratios, those that have a limit first, and steps in milliseconds."""
    limits = {(CACHE, BARE): 1.05, (CACHE, LIVE): round(1 / 3, 3), (CACHE, RAM): 1.0}
    pairs = [pair for pair in (*limits, (BARE, BARE_LIVE)) if set(pair) <= set(arms)]
    pairs += [(arm, BARE) for arm in arms if arm not in (BARE, BARE_LIVE, CACHE)]

    def ratios(one: str, other: str) -> list[float]:
        return [float(np.median(took[:, arms.index(one)] / took[:, arms.index(other)])) for took in rounds]

    def milliseconds(arm: str) -> list[float]:
        return [1000 * float(np.median(took[:, arms.index(arm)])) for took in rounds]

    compared = [
        bench.record(f"{one} / {other} ({student})", ratios(one, other), "ratio", limits.get((one, other)))
        for one, other in pairs
    ]
    return compared + [bench.record(f"step, {arm} ({student})", milliseconds(arm), "ms") for arm in arms]


if __name__ == "__main__":
    main()
