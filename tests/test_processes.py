"""Two processes are one: the same batches, the same weights on record, the same student; or refused by name."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.distributed
from networks import LABELS, network, task_of_texts, tokenizer_for
from transformers import BertConfig, BertForTokenClassification, TrainerCallback

from rlkd import choosing, workflow
from rlkd.benchmark.suites import Suite
from rlkd.data import load_task
from rlkd.data.planted import planted_logits
from rlkd.errors import ConfigError
from rlkd.logit_cache import build_cache
from rlkd.models import train_teachers
from rlkd.models.architectures import MlpConfig, MlpForSequenceClassification
from rlkd.models.arrays import ArrayTeacher
from rlkd.models.teachers import CallableTeacher, HfTeacher
from rlkd.records import check_launcher, check_one_process, files, process_rank, processes_started
from rlkd.settings import StudentSettings
from rlkd.trainer import DistillationArguments, DistillationTrainer, TaskTrainer, make_trainer
from rlkd.trainer.multi_task import MultiTaskTrainer
from rlkd.trainer.shares import share_of
from rlkd.weighting import build_weighting
from rlkd.weighting.fixed import Uniform

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def on_processes(count, work, folder, seconds=60):
    """Do ``work(rank)`` in processes that know of one another as torchrun's do; what they raised, by rank."""
    launched = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    children = {}
    for rank in range(count):
        child = os.fork()
        if not child:
            code = 1
            try:
                os.environ.update(launched, RANK=str(rank), LOCAL_RANK=str(rank))
                torch.set_num_threads(1)
                work(rank)
                if torch.distributed.is_initialized():
                    torch.distributed.destroy_process_group()
                code = 0
            except BaseException:
                (folder / f"error-{rank}").write_text(traceback.format_exc())
            finally:
                os._exit(code)
        children[child] = rank
    deadline, codes = time.monotonic() + seconds, {}
    while children and time.monotonic() < deadline:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done in children:
            codes[children.pop(done)] = status
        else:
            time.sleep(0.01)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    told = {rank: folder / f"error-{rank}" for rank in codes if codes[rank]}
    errors = {rank: path.read_text() if path.is_file() else "killed" for rank, path in told.items()}
    assert not children, f"some hung: {errors}"
    return errors


def student_trainer(task, cache, folder, batch, *, max_steps=34, **values):
    torch.manual_seed(0)
    config = MlpConfig(
        input_size=task.table.vectors.shape[1],
        hidden_size=16,
        num_layers=1,
        dropout=0.0,
        id2label=dict(enumerate(task.label_names)),
        label2id={name: index for index, name in enumerate(task.label_names)},
    )
    args = DistillationArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=50,
        max_steps=max_steps,
        learning_rate=0.05,
        kd_ratio=0.5,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=5,
        seed=3,
        **{"save_strategy": "no", **values},
    )
    model, learns_online = MlpForSequenceClassification(config), build_weighting("hedge", task, cache)
    return TaskTrainer(model, args, task=task, cache=cache, weighting=learns_online)


def watched(trainer):
    """The trainer, and the ids that its weighting is asked about, a list a batch."""
    seen, taught = [], trainer._taught

    def note(state, groups):
        seen.append(state.ids.tolist())
        return taught(state, groups)

    trainer._taught = note
    return trainer, seen


def outcome(trainer, seen, path):
    result = trainer.train()
    evaluated = trainer.evaluate()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    np.savez(
        path,
        ids=np.array([one for batch in seen for one in batch]),
        sizes=np.array([len(batch) for batch in seen]),
        sums=trainer.weight_record.sums,
        counts=trainer.weight_record.counts,
        logits=trainer.predict_split("test"),
        losses=np.array(losses),
        train_loss=result.training_loss,
        eval_loss=evaluated["eval_loss"],
        eval_accuracy=evaluated["eval_accuracy"],
        **{f"model.{name}": value.numpy() for name, value in trainer.model.state_dict().items()},
    )
    return dict(np.load(path))


def assert_same_run(ours, theirs):
    for name in ("ids", "sizes", "counts"):
        assert np.array_equal(ours[name], theirs[name]), name
    for name in ours.keys() - {"ids", "sizes", "counts"}:
        assert np.allclose(ours[name], theirs[name], atol=2e-5), name


@needs_fork
@pytest.mark.parametrize(
    ("processes", "batch", "accumulation", "empty"), [(2, 16, 1, 0), pytest.param(4, 16, 2, 1, marks=pytest.mark.slow)]
)
def test_processes_share_the_batches_of_one(processes, batch, accumulation, empty, task, cache, tmp_path):
    rows, values = len(task.splits["train"]), {"gradient_accumulation_steps": accumulation}
    one = student_trainer(task, cache, tmp_path / "one", batch * processes, **values)
    whole = outcome(*watched(one), tmp_path / "one.npz")
    rest = rows % (batch * processes)
    assert set(whole["sizes"]) == {batch * processes, rest}
    shares = [share_of(rest, processes, rank) for rank in range(processes)]
    assert sum(share.start == share.stop for share in shares) == empty  # one may have no row of the partial batch

    def work(rank):
        outcome(*watched(student_trainer(task, cache, tmp_path / "many", batch, **values)), tmp_path / f"{rank}.npz")

    assert on_processes(processes, work, tmp_path) == {}
    for rank in range(processes):
        assert_same_run(dict(np.load(tmp_path / f"{rank}.npz")), whole)


class Stop(TrainerCallback):
    """Ends a run before its time, as a kill would."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= 13


@needs_fork
def test_processes_that_were_broken_off_resume_to_the_run_of_one(task, cache, tmp_path):
    values = {"max_steps": 24, "save_strategy": "steps", "save_steps": 4}
    whole = outcome(*watched(student_trainer(task, cache, tmp_path / "one", 32, **values)), tmp_path / "one.npz")

    def work(rank):
        broken = student_trainer(task, cache, tmp_path / "many", 16, **values)
        broken.add_callback(Stop())
        broken.train()
        trainer, seen = watched(student_trainer(task, cache, tmp_path / "many", 16, **values))
        train, trainer.train = trainer.train, lambda: train(resume_from_checkpoint=True)
        outcome(trainer, seen, tmp_path / f"{rank}.npz")

    assert on_processes(2, work, tmp_path) == {}
    assert {path.name for path in (tmp_path / "many" / "checkpoint-12").glob("rng*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    for rank in range(2):
        resumed = dict(np.load(tmp_path / f"{rank}.npz"))
        assert np.array_equal(resumed["sizes"], whole["sizes"][12:])
        kept = {name: value for name, value in resumed.items() if name not in ("ids", "sizes")}
        assert_same_run({**whole, **kept}, whole)


def rows_of(task):
    table = task.table
    return [
        {"input_values": torch.from_numpy(table.vectors[row]), "labels": int(table.labels[row]), "id": int(row)}
        for row in task.splits["train"][:81]
    ]


def token_rows():
    rng = np.random.default_rng(1)
    rows = [{"input_ids": rng.integers(1, 11, 3 + row % 5)} for row in range(81)]
    for place, row in enumerate(rows):
        kept = rng.random(len(row["input_ids"])) < (0.9 if place % 3 else 0.0)  # a process may have no labelled token
        row["labels"] = np.where(kept, row["input_ids"] % 4, -100)
        row["attention_mask"] = np.ones_like(row["input_ids"])
    return rows


def padded(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {n: torch.tensor([[*row[n], *[fill[n]] * (longest - len(row[n]))] for row in rows]) for n in fill}


def networks(task, count, *, tokens=False):
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        if tokens:
            sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
            still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            made.append(BertForTokenClassification(BertConfig(vocab_size=11, num_labels=4, **sizes, **still)))
            continue
        names = dict(enumerate(task.label_names))
        labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
        size = task.table.vectors.shape[1]
        config = MlpConfig(input_size=size, hidden_size=16, num_layers=1, dropout=0.0, **labels)
        made.append(MlpForSequenceClassification(config))
        made[-1].classifier.weight.data.mul_(20)
    return made


GROUPED = {"train_sampling_strategy": "group_by_length"}
"""Drawn anew by who resumes with another number of processes, as the Trainer says."""


def stream_of(rows):
    """Rows that come one after another; which columns they have is not known."""
    return datasets.IterableDataset.from_generator(lambda: iter(rows)).shuffle(seed=3, buffer_size=30)


PLAIN = {
    "policy": {"teachers": 3, "weighting": "policy:auto"},  # by row, and told how sure teachers usually are
    "hedge": {"teachers": 3, "weighting": "hedge", "gradient_accumulation_steps": 2},  # learns from whole batches
    "cache": {"teachers": "cache", "weighting": "entropy"},
    "stream": {"teachers": 3, "weighting": "auto", "gradient_accumulation_steps": 2},
    "tokens": {"teachers": 2, "weighting": "entropy", "gradient_accumulation_steps": 2} | GROUPED,
}


def plain_trainer(name, task, cache, folder, batch, **values):
    given = {**PLAIN[name], **values}
    teachers, tokens, weighting = given.pop("teachers"), name == "tokens", given.pop("weighting")
    *asked, learner = networks(task, 1 if teachers == "cache" else teachers + 1, tokens=tokens)
    args = DistillationArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        optim="sgd",  # Adam makes much of the rounding of gradients that are 0
        learning_rate=0.3,
        kd_ratio=0.5,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=2,
        seed=3,
        remove_unused_columns=teachers == "cache" or name == "stream",
        **{"max_steps": 6, "save_strategy": "no", **given},
    )
    columns = {} if tokens or teachers == "cache" else {"id"}
    data = token_rows() if tokens else [{n: v for n, v in row.items() if n not in columns} for row in rows_of(task)]
    return DistillationTrainer(
        learner,
        args,
        train_dataset=stream_of(data) if name == "stream" else data,
        teachers=cache if teachers == "cache" else asked,
        weighting=build_weighting(weighting, task, cache) if weighting == "hedge" else weighting,
        **({"data_collator": padded} if tokens else {}),
    )


def plain_outcome(trainer, path, resume=None):
    trainer.train(resume_from_checkpoint=resume)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    told = {name: [entry[name] for entry in logged] for name in logged[0] if name != "grad_norm"}
    record = {"sums": trainer.weight_record.sums, "counts": trainer.weight_record.counts}
    sureness = [] if trainer._sureness is None else trainer._sureness.numpy()
    data = trainer.train_dataset
    rows = data if hasattr(data, "__len__") else list(data)
    told["eval_loss"] = trainer.evaluate(rows[1:2] * 40)["eval_loss"]
    student = torch.cat([value.flatten() for value in trainer.model.state_dict().values()]).numpy()
    np.savez(path, student=student, sureness=sureness, **record, **told)
    return dict(np.load(path))


@needs_fork
def test_batches_of_one_s_own_are_shared_as_those_of_a_task(task, cache, tmp_path):
    """The last of 81 rows is a batch, of which one process has none: it takes part, and counts nothing."""
    wholes = {name: plain_outcome(plain_trainer(name, task, cache, tmp_path, 40), tmp_path / "1.npz") for name in PLAIN}
    kept = {"save_strategy": "steps", "save_steps": 3}

    def work(rank):
        if rank:
            files.write_atomic = None  # the first alone writes
        for name in PLAIN:
            trainer = plain_trainer(name, task, cache, tmp_path / name, 20, **kept)
            plain_outcome(trainer, tmp_path / f"{name}-{rank}.npz")

    assert on_processes(2, work, tmp_path) == {}
    for name, whole in wholes.items():
        shutil.rmtree(tmp_path / name / "checkpoint-6")
        alone = plain_trainer(name, task, cache, tmp_path / name, 40, **kept)
        plain_outcome(alone, tmp_path / f"{name}-resumed.npz", resume=True)
        for run in (0, 1) if GROUPED.keys() <= PLAIN[name].keys() else (0, 1, "resumed"):
            ours = dict(np.load(tmp_path / f"{name}-{run}.npz"))
            assert ours.keys() == whole.keys()
            for entry in whole:
                where = f"{name}, {run}: {entry}"
                np.testing.assert_allclose(ours[entry], whole[entry], rtol=0, atol=1e-5, err_msg=where)


@pytest.mark.parametrize("processes", range(1, 6))
def test_shares_are_the_batch(processes):
    for rows in range(1, 40):
        shares = [list(range(rows))[share_of(rows, processes, rank)] for rank in range(processes)]
        assert [row for share in shares for row in share] == list(range(rows))
        full = -(-rows // processes)
        assert all(len(share) == full for share in shares[: rows // full])  # padded to `full`, they lie end to end


@needs_fork
def test_what_needs_one_process_is_refused_by_name(task, cache, tmp_path):
    def work(rank):
        trainer = student_trainer(task, cache, tmp_path / "t", 8)
        common = {"model": trainer.model, "args": trainer.args, "task": task, "cache": cache}
        with pytest.raises(ConfigError, match="one process is needed for preprocess_logits_for_metrics, got 2"):
            TaskTrainer(**common, preprocess_logits_for_metrics=lambda logits, labels: logits, compute_metrics=len)
        with pytest.raises(ConfigError, match="one process is needed for feature losses, got 2"):
            TaskTrainer(**common, features=object())
        with pytest.raises(ConfigError, match="one process is needed for MultiTaskTrainer, got 2"):
            MultiTaskTrainer._check_processes(trainer.__class__.__new__(MultiTaskTrainer), 2, None, None)
        plain = plain_trainer("policy", task, cache, tmp_path / "t", 8)
        plain.train_dataset = stream_of(rows_of(task)[rank:])
        with pytest.raises(ConfigError, match="a stream that begins with the same row in every process, got another"):
            plain.train()
        settings = StudentSettings(student="rlkd/mlp", max_steps=2, learning_rate=1e-3, batch_size=9)
        with pytest.raises(ConfigError, match="a batch that 2 processes can share, got batch_size 9; choose a mul"):
            make_trainer(task, cache, Uniform(), settings, tmp_path / "student")

    assert on_processes(2, work, tmp_path) == {}


class Watched:
    """A teacher that remembers which rows it was asked about, and ends the process when it is asked too often."""

    def __init__(self, own, at_most=100):
        self.own, self.left, self.asked = own, at_most, []

    def __getattr__(self, name):
        return getattr(self.own, name)

    def logits(self, task, ids, **limits):
        self.left -= 1
        if self.left < 0:
            os._exit(9)
        if process_rank() == 0:
            time.sleep(0.02)  # the other gets to some
        self.asked += ids.tolist()
        return self.own.logits(task, ids, **limits)


@needs_fork
def test_a_cache_that_processes_make_is_that_of_one_to_the_last_bit(tmp_path, monkeypatch):
    """One is killed, and another goes on; then both; then one continues alone, and asks about the rest."""
    task, tokenizer = task_of_texts(rows=90), tokenizer_for("bert", model_max_length=40)

    def function(texts):
        return [[len(text), 0.1 * len(texts), 1.0] for text in texts]  # what it says depends on the batch

    own = [
        HfTeacher("bert", network("bert", tokenizer), tokenizer),
        CallableTeacher("f", function, LABELS, identity="f"),
    ]
    whole = build_cache(own, task, tmp_path / "one", batch_size=8)

    def build(folder, *at_most):
        (tmp_path / f"{folder.name}-{process_rank()}").touch()
        while not all((tmp_path / f"{folder.name}-{rank}").exists() for rank in range(processes_started())):
            time.sleep(0.001)
        teachers = [Watched(one, count) for one, count in zip(own, at_most, strict=True)]
        cache = build_cache(teachers, task, folder, batch_size=8)
        assert cache.identity == whole.identity  # of the bytes of all files
        return [sorted(teacher.asked) for teacher in teachers]

    def asked_by(rank):
        (tmp_path / f"asked-{rank}").write_text(json.dumps(build(tmp_path / "two", 100, 100)))

    assert on_processes(2, asked_by, tmp_path) == {}
    shares = [json.loads((tmp_path / f"asked-{rank}").read_text()) for rank in range(2)]
    for k in range(2):
        assert sorted(shares[0][k] + shares[1][k]) == list(range(90))
    assert shares[0][0]
    assert shares[1][0]

    ended = on_processes(2, lambda rank: build(tmp_path / "dies", *((100, 100), (1, 0))[rank]), tmp_path)
    assert ended == {1: "killed"}
    assert build(tmp_path / "dies", 0, 0) == [[], []]
    ended = on_processes(2, lambda rank: build(tmp_path / "both", *((4, 0), (2, 3))[rank]), tmp_path)
    assert ended == {0: "killed", 1: "killed"}
    left = build(tmp_path / "both", 100, 100)
    assert 0 < len(left[0]) + len(left[1]) < 2 * 90
    assert {path.name for path in (tmp_path / "both").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@needs_fork
@pytest.mark.parametrize("weighting", ["entropy", pytest.param("auto", marks=pytest.mark.slow)])
def test_a_command_distils_with_several_processes_what_one_does(weighting, tmp_path, monkeypatch):
    """The trial students of auto too; the first process writes, and one alone finds the run finished."""
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, values: values)
    monkeypatch.setattr(choosing, "train_router", lambda evidence: choosing.equal_weights_policy())  # it takes long
    options, folder = {"source": "planted"}, str(tmp_path / "cache")
    task = load_task(**options)
    arrays = planted_logits(task, seed=1).transpose(1, 0, 2)
    build_cache([ArrayTeacher(f"t{k}", array) for k, array in enumerate(arrays)], task, folder)
    settings = StudentSettings(student="rlkd/mlp", max_steps=12, learning_rate=1e-2, batch_size=32)

    def distil(place, **values):
        common = {"weighting": weighting, "settings": settings, "trial_students": 1}
        return workflow.run_distill(options, folder, str(place), **common, **values)

    one = distil(tmp_path / "one")

    def work(rank):
        if rank:
            files.write_atomic = None  # the first alone writes
        assert distil(tmp_path / "two", save_steps=5) == json.loads((tmp_path / "two" / "results.json").read_text())

    assert on_processes(2, work, tmp_path) == {}
    resumed = distil(tmp_path / "two", save_steps=5, resume=True)
    for ours, theirs in zip(resumed, one, strict=True):
        assert ours.get("why", "").split("nats")[0] == theirs.get("why", "").split("nats")[0]
        assert [ours[name] for name in ("accuracy", "nll")] == pytest.approx(
            [theirs[name] for name in ("accuracy", "nll")], abs=1e-5
        )


def test_a_launcher_s_processes_are_counted_and_run_directories_are_written_by_one(monkeypatch, tmp_path):
    assert processes_started({}) == processes_started({"WORLD_SIZE": "1"}) == 1
    assert processes_started({"WORLD_SIZE": "4"}) == processes_started({"OMPI_COMM_WORLD_SIZE": "4"}) == 4
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="a thing is done by one process, got 2 from a launcher"):
        check_one_process("a thing is done")
    student = StudentSettings(max_steps=1)
    runs = {
        "compare": lambda folder: workflow.run_compare({}, "no", folder, settings=student),
        "train-policy": lambda folder: workflow.run_train_policy({}, "no", folder, student="rlkd/mlp"),
        "train-teachers": lambda folder: workflow.run_train_teachers({}, ["tfidf"], folder),
        "quickstart": lambda folder: workflow.run_quickstart(folder),
        "bench": lambda folder: workflow.run_bench(Suite(name="s", description="", tasks=()), Path(folder)),
        "teachers": lambda folder: train_teachers(None, folder, kinds=["tfidf"]),
    }
    for name, run in runs.items():
        with pytest.raises(ConfigError, match="by one process, got 2 from a launcher"):
            run(str(tmp_path / name))
        assert not (tmp_path / name).exists()


def test_the_one_process_of_a_launcher_that_was_asked_for_two_is_told(monkeypatch, tmp_path):
    # what accelerate launch --cpu --num_processes 2 sets
    alone = {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}
    check_launcher(alone)  # --num_processes 1
    alone["MASTER_PORT"] = "29500"
    check_launcher({**alone, "WORLD_SIZE": "2"})
    with pytest.raises(ConfigError, match="got this one alone"):
        check_launcher(alone)
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="got this one alone"):
        DistillationArguments(output_dir=str(tmp_path), use_cpu=True)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_accelerate_launch_is_told(count, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import rlkd\nrlkd.DistillationArguments(output_dir='x', use_cpu=True)\nprint('began')\n")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(count)]
    ran = subprocess.run([*launch, str(script)], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert ("began" in ran.stdout) == (count == 1), ran.stderr
    assert ("got this one alone" in ran.stderr) == (count == 2), ran.stderr


@pytest.mark.slow
def test_commands_start_under_a_launcher(tmp_path):
    """The first process alone prints, shows bars and writes; what is for one process is refused."""
    arrays = planted_logits(load_task("planted"), seed=1).transpose(1, 0, 2)
    for k, array in enumerate(arrays):
        np.save(tmp_path / f"t{k}.npy", array)

    def run(*arguments):
        logs = tmp_path / f"logs-{arguments[0]}"
        torchrun = ["--standalone", "--nproc-per-node", "2", "--redirects", "3", "--log-dir", str(logs)]
        command = [sys.executable, "-m", "torch.distributed.run", *torchrun, "-m", "rlkd", *arguments]
        subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=300, check=False)
        return [path.read_text() for rank in "01" for path in sorted(logs.glob(f"*/attempt_0/{rank}/std*.log"))]

    teachers = [part for k in range(len(arrays)) for part in ("--teachers", f"t{k}.npy")]
    common = ["--task", "planted", "--cache", "cache", "--student", "rlkd/mlp", "--max-steps", "4", "-o", "student"]
    errors, out, quiet, nothing = run("cache", "--task", "planted", *teachers, "-o", "cache", "--json", "cache.json")
    assert "macro_f1" in out, errors
    assert "teachers: 100%" in errors
    assert (quiet, nothing) == ("", "")
    assert len(json.loads((tmp_path / "cache.json").read_text())) == len(arrays)
    errors, out, quiet, nothing = run("distill", *common, "--weighting", "entropy")
    assert "Report:" in out, errors
    assert "student: 100%" in errors
    assert "student:" not in quiet + nothing
    errors, *_ = run("compare", *common)
    assert "is written by one process, got 2 from a launcher; start it without one, --jobs" in errors
