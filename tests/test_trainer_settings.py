"""What ``transformers.Trainer`` offers, in the plain trainer: it works, with the right value, or is refused by name."""

import copy
import json
import os
import random
import shutil
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from hub import TOKEN, running
from test_plain_trainer import (  # noqa: F401 (fixtures)
    PLAIN,
    QUIET,
    arguments,
    data,
    distilled,
    parameters,
    plain_arguments,
    renumbered_tokens,
    student,
    teachers,
    tokenizer,
)
from torch.nn import functional as F
from torch.utils.data import IterableDataset
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, HfArgumentParser, Trainer, TrainerCallback

from rlkd.errors import ConfigError, StudentError, TeacherError
from rlkd.kinds import MultiLabelClassification
from rlkd.logit_cache import LogitCache
from rlkd.trainer import DistillationArguments, DistillationMixin, DistillationTrainer
from rlkd.weighting import BaseWeighting

needs_accelerator = pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")


def trainer_of(folder, data, tokenizer, teachers, *, model=None, weighting="uniform", given=(), **values):
    return DistillationTrainer(
        model or student(tokenizer),
        arguments(folder, **values),
        train_dataset=data,
        processing_class=tokenizer,
        teachers=teachers,
        weighting=weighting,
        **dict(given),
    )


class Watched(BaseWeighting):
    """Equal weights; remembers every state that it was asked about."""

    def __init__(self):
        self.states = []

    def weights(self, state):
        self.states.append(state)
        return torch.full(state.present.shape, 1 / state.present.shape[-1])


# --- the same student as without the setting

SAME = {
    "checkpointed activations": {"activation_checkpointing": True},
    "checkpointing with arguments": {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
    },
    "workers": {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 2},
    "empty cache": {"torch_empty_cache_steps": 1},
    "averaged tokens": {"average_tokens_across_devices": False},
    "input tokens": {"include_num_input_tokens_seen": True},
    "unused columns": {"remove_unused_columns": True},
    "labels by name": {"label_names": ["labels"]},
    "found batch size": {"auto_find_batch_size": True},
    "deterministic": {"full_determinism": False, "tf32": None},
    "evaluated meanwhile": {"eval_strategy": "steps", "eval_steps": 2},
    "evaluated at the start": {"eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True},
    "reported memory": {"skip_memory_metrics": False},
}


@pytest.fixture(scope="module")
def usual(data, tokenizer, teachers, tmp_path_factory):
    return parameters(distilled(tmp_path_factory.mktemp("usual"), data, tokenizer, teachers))


@pytest.mark.parametrize("name", SAME)
def test_settings_that_change_no_student(name, usual, data, tokenizer, teachers, tmp_path):
    given = {"eval_dataset": data} if "evaluated" in name else {}
    trainer = trainer_of(tmp_path, data, tokenizer, teachers, given=given, **SAME[name])
    trainer.train()
    torch.testing.assert_close(parameters(trainer), usual, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_student_learns_the_same(usual, data, tokenizer, teachers, tmp_path):
    trainer = trainer_of(tmp_path, data, tokenizer, teachers, torch_compile=True, torch_compile_backend="aot_eager")
    trainer.train()
    torch.testing.assert_close(parameters(trainer), usual, rtol=0, atol=1e-5)


# --- another one, and which


@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
def test_batches_come_as_the_strategy_says(strategy, data, tokenizer, teachers, tmp_path):
    asked = []

    def function(texts):
        asked.append([len(text.split()) for text in texts])
        return torch.zeros(len(texts), 3)

    trainer = trainer_of(
        tmp_path, data, tokenizer, [function], train_sampling_strategy=strategy, max_steps=6, weighting="uniform"
    )
    trainer.train()
    lengths = [len(text.split()) for text in data["text"][:]]
    if strategy == "sequential":
        assert asked == [lengths[start : start + 8] for start in range(0, 48, 8)]
    elif strategy == "group_by_length":
        assert all(batch == sorted(batch, reverse=True) for batch in asked)
    else:
        assert asked != [lengths[start : start + 8] for start in range(0, 48, 8)]


def test_a_dropped_last_batch_is_not_learned_from(data, tokenizer, teachers, tmp_path):
    counts = {}
    for drop in (False, True):
        trainer = trainer_of(
            tmp_path, data, tokenizer, teachers, dataloader_drop_last=drop, max_steps=-1, num_train_epochs=1
        )
        trainer.train()
        counts[drop] = trainer.weight_record.counts.sum()
    assert counts == {False: 52, True: 48}


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=needs_accelerator)])
def test_low_precision_is_for_the_student_and_weights_and_loss_stay_exact(
    precision, data, tokenizer, teachers, tmp_path
):
    watched = Watched()
    seen = {}
    for low in (False, True):
        trainer = trainer_of(
            tmp_path, data, tokenizer, teachers, max_steps=1, logging_steps=1, weighting=watched, **{precision: low}
        )
        trainer.train()
        seen[low] = (trainer.state.log_history[0]["loss"], watched.states[-1])
    assert {state.teacher_logits.dtype for _, state in seen.values()} == {torch.float32}
    assert seen[True][0] == pytest.approx(seen[False][0], rel=0.02)
    exact, rounded = (state.teacher_logits for _, state in (seen[False], seen[True]))
    assert torch.equal(exact, rounded)  # teachers compute in their own precision
    assert not torch.equal(seen[False][1].student_logits, seen[True][1].student_logits)


def test_half_precision_is_refused_on_the_cpu_where_it_would_be_ignored(data, tokenizer, teachers, tmp_path):
    with pytest.raises(ConfigError, match=r"fp16 would be ignored on the CPU, .*; set bf16"):
        trainer_of(tmp_path, data, tokenizer, teachers, fp16=True)


def test_noise_on_embeddings_is_the_student_s_alone(usual, data, tokenizer, teachers, tmp_path):
    watched, quiet = Watched(), Watched()
    trainer_of(tmp_path, data, tokenizer, teachers, weighting=quiet, max_steps=1).train()
    trainer_of(tmp_path, data, tokenizer, teachers, weighting=watched, max_steps=1, neftune_noise_alpha=5).train()
    assert torch.equal(quiet.states[0].teacher_logits, watched.states[0].teacher_logits)
    assert not torch.equal(quiet.states[0].student_logits, watched.states[0].student_logits)


def test_accumulated_batches_of_two_sizes_count_by_their_rows(data, tokenizer, teachers, tmp_path):
    few = data.select(range(11))
    whole = distilled(tmp_path, few, tokenizer, teachers, per_device_train_batch_size=11, max_steps=3)
    parts = distilled(
        tmp_path, few, tokenizer, teachers, per_device_train_batch_size=4, gradient_accumulation_steps=3, max_steps=3
    )
    torch.testing.assert_close(parameters(parts), parameters(whole), rtol=0, atol=1e-5)


# --- evaluation


def test_evaluations_need_no_teachers_and_take_what_the_trainer_takes(data, tokenizer, teachers, tmp_path):
    """Logits are the student's, losses its mean cross entropy, whatever the data sets lack that teachers read."""
    bare = data.remove_columns(["text", "id"])
    seen = {}

    def metrics(prediction):
        seen["predictions"], seen["labels"] = prediction.predictions, prediction.label_ids
        return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}

    asked = []

    def function(texts):
        asked.extend(texts)
        return torch.zeros(len(texts), 3)

    trainer = trainer_of(
        tmp_path,
        data,
        tokenizer,
        [function],
        given={
            "eval_dataset": {"all": data, "some": bare.select(range(10))},
            "compute_metrics": metrics,
            "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
        },
    )
    found = trainer.evaluate()
    fields = tokenizer(data["text"][:], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = trainer.model.eval()(**fields).logits
    labels = torch.tensor(data["label"][:])
    assert found["eval_all_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found["eval_some_loss"] == pytest.approx(F.cross_entropy(logits[:10], labels[:10]).item(), rel=1e-5)
    assert found["eval_all_accuracy"] == pytest.approx(float((logits.argmax(-1) == labels).float().mean()))
    other = trainer.evaluate(bare.select(range(5)), metric_key_prefix="other")
    assert set(other) >= {"other_loss", "other_accuracy"}
    assert seen["predictions"].shape == (5,)
    assert trainer.predict(bare).predictions.shape == (52,)
    assert asked == []


def test_the_best_student_is_loaded_and_training_stops_early(data, tokenizer, teachers, tmp_path):
    """The metric says that the second checkpoint of five is best, and two worse ones are waited for."""
    said = iter([0.1, 0.9, 0.5, 0.4, 0.3])
    kept = {}

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, model=None, **kwargs):
            kept[state.global_step] = torch.cat([p.detach().flatten().clone() for p in model.parameters()])

    trainer = trainer_of(
        tmp_path,
        data,
        tokenizer,
        teachers,
        max_steps=10,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="told",
        greater_is_better=True,
        given={
            "eval_dataset": data,
            "compute_metrics": lambda prediction: {"told": next(said)},
            "callbacks": [EarlyStoppingCallback(2), Keep()],
        },
    )
    trainer.train()
    assert trainer.state.global_step == 8
    assert trainer.state.best_global_step == 4
    assert torch.equal(parameters(trainer), kept[4])
    assert not torch.equal(kept[8], kept[4])


# --- chance


class Drawing:
    """A collator that draws from all generators, as one that augments rows does."""

    def __init__(self, tokenizer):
        self.own = DataCollatorWithPadding(tokenizer)

    def __call__(self, rows):
        random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
        return self.own(rows)


def drops_out(tokenizer):
    """A student whose training draws from the generator of torch."""
    model = student(tokenizer)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    return model


class Mine(DistillationMixin, Trainer):
    """A trainer of one's own."""


def looking(trainer_class):
    """A trainer that predicts and evaluates whenever it likes, by a callback."""

    class Looking(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer = self.trainer
            trainer.predict(trainer.eval_dataset)
            trainer.evaluate(trainer.eval_dataset.select(range(3)), metric_key_prefix="few")

    class Trained(trainer_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            callback = Looking()
            callback.trainer = self
            self.add_callback(callback)

    return Trained


@pytest.mark.parametrize("trainer_class", [DistillationTrainer, Mine])
def test_an_evaluation_changes_no_bit_of_the_student(trainer_class, data, tokenizer, teachers, tmp_path):
    def metrics(prediction):
        return {"drawn": random.random() + np.random.rand() + float(torch.rand(()))}  # noqa: NPY002

    found = []
    often = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
    for kind, values in ((trainer_class, {}), (trainer_class, often), (looking(trainer_class), {})):
        trainer = kind(
            drops_out(tokenizer),
            arguments(tmp_path, **values),
            train_dataset=data,
            eval_dataset=data,
            processing_class=tokenizer,
            compute_metrics=metrics,
            teachers=teachers,
            weighting="entropy",
        )
        trainer.train()
        drawn = [random.random(), np.random.rand(), float(torch.rand(()))]  # noqa: NPY002
        found.append(torch.cat([parameters(trainer), torch.tensor(drawn)]))
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


@pytest.mark.parametrize("weighting", [None, "entropy"])  # the first is told how sure teachers usually are
def test_who_answers_for_the_teachers_changes_no_draw(weighting, data, tokenizer, teachers, tmp_path):
    """Live teachers, their kept answers and a cache; the collator's draws, of the rows that are asked about, too."""
    fields = tokenizer(data["text"][:], padding=True, return_tensors="pt")
    with torch.no_grad():
        arrays = [one(**fields).logits.numpy() for one in teachers]
    kept = {"cache": tmp_path / "kept"}
    ways = {
        "live": (teachers, {}),
        "asked once": (teachers, kept),
        "not asked": (teachers, kept),
        "a cache": (LogitCache(arrays, ["a", "b", "c"]), {}),
    }
    found = {}
    for way, (given, how) in ways.items():
        more = {**how, "data_collator": Drawing(tokenizer)}
        learner = drops_out(tokenizer)
        trainer = trainer_of(tmp_path, data, tokenizer, given, model=learner, weighting=weighting, given=more)
        trainer.train()
        drawn = [random.random(), np.random.rand(), float(torch.rand(()))]  # noqa: NPY002
        found[way] = torch.cat([parameters(trainer), torch.tensor(drawn)])
    for way, what in found.items():
        torch.testing.assert_close(what, found["live"], rtol=0, atol=1e-5, msg=lambda told, way=way: f"{way}: {told}")


def test_a_student_with_dropout_resumes_to_what_it_would_have_been(data, tokenizer, teachers, tmp_path):
    """Who resumes measures again how sure teachers usually are."""
    found = []
    for resume in (False, True):
        values = {"save_strategy": "steps", "save_steps": 3, "weighting": "policy:auto"}
        trainer = trainer_of(tmp_path, data, tokenizer, teachers, model=drops_out(tokenizer), **values)
        trainer.train(resume_from_checkpoint=resume)
        found.append(parameters(trainer))
        shutil.rmtree(tmp_path / "checkpoint-6")
    assert torch.equal(*found)


# --- data


def of_texts(tokenizer, teacher):
    """The teacher behind a tokenizer of its own."""
    other, renumbered = renumbered_tokens(tokenizer, teacher)
    return renumbered, other


class Rows(IterableDataset):
    """A stream of rows that begins anew whenever it is read, or goes on where it was."""

    def __init__(self, rows, *, anew=True):
        self.rows, self.anew = list(rows), anew
        self.one = iter(self.rows)

    def __iter__(self):
        return iter(self.rows) if self.anew else self.one


def bare(data):
    return data.select_columns(["text", "label"])


STREAMS = {
    "of a table": lambda data, tokenizer: data.to_iterable_dataset(),
    "made on the way": lambda data, tokenizer: bare(data).to_iterable_dataset().map(lambda r: tokenizer(r["text"])),
    "of a generator": lambda data, tokenizer: datasets.IterableDataset.from_generator(lambda: iter(data)),
    "shuffled": lambda data, tokenizer: data.to_iterable_dataset().shuffle(seed=1, buffer_size=20),
    "of torch": lambda data, tokenizer: Rows(data),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_distilled_live(name, data, tokenizer, teachers, tmp_path):
    """As its rows in their order, with a teacher that reads texts, how sure they usually are, and dropout."""
    asked = {"a": of_texts(tokenizer, teachers[0]), "b": teachers[1]}
    found = []
    for rows in (STREAMS[name](data, tokenizer), datasets.Dataset.from_list(list(STREAMS[name](data, tokenizer)))):
        order = {} if isinstance(rows, IterableDataset) else {"train_sampling_strategy": "sequential"}
        learner = drops_out(tokenizer)
        trainer = trainer_of(tmp_path, rows, tokenizer, asked, model=learner, weighting="policy:auto", **order)
        assert trainer.teachers.columns == ("text",)
        trainer.train()
        found.append(parameters(trainer))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("windows", [1, 2])
def test_a_pass_over_a_stream_ends_as_an_epoch_of_its_rows_does(windows, data, tokenizer, teachers, tmp_path):
    """With what is left of its seven batches, not with the next pass; and a run goes on from any place in any pass."""
    values = {"max_steps": 14, "gradient_accumulation_steps": windows, "save_strategy": "steps", "save_steps": 1}

    def run(rows, resume=None, **more):
        trainer = trainer_of(tmp_path, rows, tokenizer, teachers, model=drops_out(tokenizer), **values, **more)
        trainer.train(resume_from_checkpoint=resume)
        return parameters(trainer)

    rows, stream = datasets.Dataset.from_list(list(data)), Rows(data)
    whole = run(stream)
    for step in (5, 7, 12):
        assert torch.equal(run(stream, str(tmp_path / f"checkpoint-{step}")), whole), step
    torch.testing.assert_close(run(rows, train_sampling_strategy="sequential"), whole, rtol=0, atol=1e-6)


def test_a_checkpoint_that_does_not_know_its_place_in_a_stream_says_so(data, tokenizer, teachers, tmp_path, caplog):
    values = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer_of(tmp_path, Rows(data), tokenizer, teachers, **values).train()
    found = []
    for known in (True, False):
        found.append(trainer_of(tmp_path, Rows(data), tokenizer, teachers, **values))
        found[-1].train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert ("does not say where in the stream it was" in caplog.text) is not known
        (tmp_path / "checkpoint-2" / "stream.json").unlink(missing_ok=True)
    assert torch.equal(*map(parameters, found))
    for content in ("{", "[]", '{"epoch": 0}', '{"epoch": 0, "batches": "2"}'):
        (tmp_path / "checkpoint-2" / "stream.json").write_text(content)
        with pytest.raises(StudentError, match=r"expected the numbers epoch and batches in .*stream\.json, got none"):
            found[-1].train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_stream_that_is_read_once_loses_no_row(data, tokenizer, teachers, tmp_path):
    seen = []

    def function(texts):
        seen.extend(texts)
        return torch.zeros(len(texts), 3)

    with pytest.raises(ConfigError, match=r"a stream that begins anew .* got Rows, whose first rows would be lost"):
        trainer_of(tmp_path, Rows(data, anew=False), tokenizer, teachers, weighting=None).train()
    once = Rows(data, anew=False)
    with pytest.raises(TeacherError, match="name it with text_columns"):  # the first row is not looked at either
        trainer_of(tmp_path, once, tokenizer, [of_texts(tokenizer, teachers[0])])
    trainer_of(tmp_path, once, tokenizer, [function], text_columns=["text"]).train()
    assert seen == data["text"][:48]


def test_what_a_stream_cannot_have_is_refused_by_name(data, tokenizer, teachers, tmp_path):
    stream = STREAMS["made on the way"](data, tokenizer)
    for strategy in ("group_by_length", "batch_rebalance"):
        with pytest.raises(ConfigError, match=f"train_sampling_strategy would be ignored, got '{strategy}': rows of a"):
            trainer_of(tmp_path, stream, tokenizer, teachers, train_sampling_strategy=strategy)
    with pytest.raises(ValueError, match="max_steps has to be specified"):
        trainer_of(tmp_path, stream, tokenizer, teachers, max_steps=-1)
    cache = LogitCache([np.zeros((52, 3), dtype=np.float32)], ["a"])
    with pytest.raises(TeacherError, match="teachers read the column 'id', the training data has text, label, input"):
        trainer_of(tmp_path, stream, tokenizer, cache)


def test_of_which_kind_a_stream_is_its_first_row_says(data, tokenizer, teachers, tmp_path):
    several = Rows({**row, "label": [1.0, 0.0, 1.0]} for row in data)
    assert isinstance(trainer_of(tmp_path, several, tokenizer, teachers)._kind, MultiLabelClassification)


def test_columns_are_kept_that_teachers_read(data, tokenizer, teachers, tmp_path):
    """A collator of one's own sees every column where unused ones are kept; the teachers' texts go beside."""
    seen = []

    def collate(rows):
        seen.append(set(rows[0]))
        return tokenizer.pad(
            [{n: row[n] for n in ("input_ids", "attention_mask", "label")} for row in rows], return_tensors="pt"
        )

    def function(texts):
        return torch.zeros(len(texts), 3)

    trainer_of(
        tmp_path,
        data,
        tokenizer,
        [function],
        remove_unused_columns=False,
        max_steps=1,
        given={"data_collator": lambda rows: rename(collate(rows))},
    ).train()
    assert seen[0] == set(data.column_names) - {"text"}


def rename(batch):
    return {("labels" if name == "label" else name): value for name, value in batch.items()}


# --- students and teachers of other libraries


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated")  # peft reads transformers' old name
def test_adapters_are_distilled_and_saved_as_adapters(data, tokenizer, teachers, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=["query", "value"], lora_dropout=0.0
    )
    base = student(tokenizer)
    before = torch.cat([p.detach().flatten().clone() for p in base.bert.parameters()])
    learner = peft.get_peft_model(base, config)
    teaching = peft.get_peft_model(copy.deepcopy(teachers[0]), config)
    trainer = trainer_of(tmp_path, data, tokenizer, [teaching, teachers[1]], model=learner)
    trainer.train()
    learned = {name for name, p in learner.named_parameters() if p.requires_grad}
    assert all("lora" in name or "classifier" in name for name in learned)
    own = torch.cat([p.detach().flatten() for name, p in base.bert.named_parameters() if "lora" not in name])
    assert torch.equal(own, before)
    assert any(float(p.detach().abs().sum()) > 0 for name, p in learner.named_parameters() if "lora_B" in name)
    assert not any(p.requires_grad for p in teaching.parameters())
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_model.safetensors").is_file()
    again = peft.PeftModel.from_pretrained(student(tokenizer), str(tmp_path / "saved"))
    fields = tokenizer(data["text"][:8], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**fields).logits, learner.eval()(**fields).logits)


class Drifting(BaseWeighting):
    """Goes from the first teacher to the last, a step a batch that it is told of."""

    def __init__(self):
        self.told = 0

    def weights(self, state):
        chosen = torch.full(state.present.shape, 0.2 / state.present.shape[-1])
        chosen[..., self.told % state.present.shape[-1]] += 0.8
        return chosen

    def update(self, state):
        self.told += 1

    def state_dict(self):
        return {"told": self.told}

    def load_state_dict(self, values):
        self.told = values["told"]


@pytest.mark.parametrize("trainer_class", [DistillationTrainer, Mine])
def test_what_was_broken_off_resumes_with_what_the_weighting_had_learned(
    trainer_class, data, tokenizer, teachers, tmp_path
):
    found = []
    for resume in (False, True):
        values = {"save_strategy": "steps", "save_steps": 4, "logging_steps": 3, "max_steps": 9}
        trainer = trainer_class(
            drops_out(tokenizer),
            arguments(tmp_path, **values),
            train_dataset=data,
            processing_class=tokenizer,
            teachers=teachers,
            weighting=Drifting(),
        )
        trainer.train(resume_from_checkpoint=resume)
        ours = {"distillation_loss", "weight_entropy", *(f"weight/{name}" for name in trainer.teachers.names)}
        logged = [{n: line[n] for n in line.keys() & ours} for line in trainer.state.log_history[:3]]
        found.append((parameters(trainer), trainer.weight_record.sums, logged))
        for last in (8, 9):
            shutil.rmtree(tmp_path / f"checkpoint-{last}")
    assert torch.equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]


def search_trainer(folder, data, tokenizer, teachers, **values):
    return DistillationTrainer(
        args=arguments(folder, **{"max_steps": 3, "save_strategy": "steps", "save_steps": 2, **values}),
        model_init=lambda: drops_out(tokenizer),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        teachers=teachers,
    )


TRIALS = (
    {"learning_rate": 0.1},
    {"learning_rate": 0.3, "temperature": 3.0, "seed": 5},
    {"learning_rate": 0.1},
    {"learning_rate": 0.3, "weighting": "uniform", "kd_ratio": 0.25, "per_device_train_batch_size": 4},
)


def test_a_trial_of_a_search_is_the_run_alone(data, tokenizer, teachers, tmp_path):
    """Whatever the trials before it set; settings of the loss and the weighting are searched over too."""
    pytest.importorskip("optuna")
    alone = []
    for place, values in enumerate((*TRIALS, {})):
        trainer = search_trainer(tmp_path / f"alone-{place}", data, tokenizer, teachers, **values)
        trainer.train()
        alone.append(trainer.evaluate()["eval_loss"])
    losses = []
    trainer = search_trainer(tmp_path / "search", data, tokenizer, teachers)
    trainer.hyperparameter_search(
        lambda trial: TRIALS[trial.number],
        n_trials=len(TRIALS),
        compute_objective=lambda metrics: losses.append(metrics["eval_loss"]) or metrics["eval_loss"],
        backend="optuna",
    )
    trainer.train()  # with the arguments as they were
    losses.append(trainer.evaluate()["eval_loss"])
    assert losses == alone
    assert len(set(losses)) == 4
    assert {path.name for path in (tmp_path / "search").iterdir()} >= {f"run-{place}" for place in range(len(TRIALS))}
    for name in ("teachers", "cache", "text_columns"):
        with pytest.raises(ConfigError, match=f"{name} would be ignored, it became"):
            search_trainer(tmp_path / "search", data, tokenizer, teachers).hyperparameter_search(
                lambda trial, name=name: {name: ["b"]}, n_trials=1, backend="optuna"
            )


def test_a_search_makes_a_student_a_trial_and_keeps_its_teachers(data, tokenizer, teachers, tmp_path):
    pytest.importorskip("optuna")
    online = []

    class Counting(Watched):
        """Learns nothing, and knows how often it was told of a batch."""

        def __init__(self):
            super().__init__()
            self.told = 0

        def update(self, state):
            self.told += 1
            online.append((id(self), self.told))

        def state_dict(self):
            return {"told": self.told}

        def load_state_dict(self, values):
            self.told = values["told"]

    trainer = DistillationTrainer(
        args=arguments(tmp_path, max_steps=2),
        model_init=lambda: student(tokenizer),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        teachers=teachers,
        weighting=Counting(),
    )
    asked = trainer.teachers
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", [0.0, 0.3])},
        n_trials=3,
        direction="minimize",
        backend="optuna",
    )
    assert set(best.hyperparameters) == {"learning_rate"}
    assert trainer.teachers is asked
    assert [told for _, told in online] == [1, 2] * 3  # every trial begins with what was passed
    assert trainer.weight_record.counts.sum() == 16  # of the last alone


# --- where a run goes


PUSH = """
import sys, datasets
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from rlkd.trainer import DistillationArguments, DistillationMixin, DistillationTrainer
small, data, teacher = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(small)
rows = datasets.load_from_disk(data)
args = DistillationArguments("run", max_steps=1, push_to_hub=True, hub_model_id="me/student", use_cpu=True,
                             report_to="none", disable_tqdm=True, dataloader_pin_memory=False)
trainer = DistillationTrainer(AutoModelForSequenceClassification.from_pretrained(small), args, train_dataset=rows,
                              processing_class=tokenizer, teachers=[teacher], weighting="uniform")
trainer.train()
trainer.push_to_hub()
"""


@pytest.mark.slow
def test_a_run_is_pushed_to_the_hub(data, tokenizer, teachers, tmp_path):
    for name, model in (("small", student(tokenizer)), ("teacher", teachers[0])):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    data.save_to_disk(tmp_path / "data")
    with running() as hub:
        named = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
        environment = {**os.environ, **named, "HF_HOME": str(tmp_path / "cache")}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-c", PUSH, *(str(tmp_path / name) for name in ("small", "data", "teacher"))]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr[-2000:]
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(hub.repos["me/student"])


# --- arguments from files and from the command line


@pytest.mark.parametrize("how", ["strings", "yaml", "json"])
def test_teachers_and_weighting_come_from_a_parser(how, tmp_path):
    values = {
        "output_dir": str(tmp_path / "run"),
        "teachers": ["a", "b"],
        "weighting": "user/repo",
        "text_columns": ["question", "answer"],
        "id_column": "number",
        "offload_teachers": True,
        "temperature": 2.0,
        "kd_ratio": 0.5,
        "use_cpu": True,
    }
    parser = HfArgumentParser(DistillationArguments)
    if how == "strings":
        words = []
        for name, value in values.items():
            words += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
        (args,) = parser.parse_args_into_dataclasses(words)
    else:
        path = tmp_path / f"arguments.{how}"
        path.write_text(json.dumps(values))  # of which YAML is a superset
        (args,) = getattr(parser, f"parse_{how}_file")(str(path))
    assert {name: getattr(args, name) for name in values} == values


def test_what_the_trainer_takes_by_place_is_taken_by_place(data, tokenizer, teachers, tmp_path):
    """With teachers that read the column of texts, which has to be known."""
    asked = {"a": of_texts(tokenizer, teachers[0]), "b": teachers[1]}
    found = []
    for kind in (DistillationTrainer, Mine):
        for place in (0, 6):
            given = {
                "data_collator": None,
                "train_dataset": data,
                "eval_dataset": data,
                "processing_class": tokenizer,
                "model_init": None,
                "compute_loss_func": None,
            }
            by_place = [given.pop(name) for name in list(given)[:place]]
            model, args = student(tokenizer), arguments(tmp_path)
            trainer = kind(model, args, *by_place, **given, teachers=asked, weighting="uniform")
            assert trainer.teachers.columns == ("text",)
            trainer.train()
            found.append(parameters(trainer))
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("kind", [DistillationTrainer, Mine])
def test_what_would_be_ignored_is_refused_by_place_too(kind, data, tokenizer, teachers, tmp_path):
    by_place = [student(tokenizer), arguments(tmp_path), None, data, None, tokenizer, None, len]
    with pytest.raises(ConfigError, match="compute_loss_func would be ignored"):
        kind(*by_place, teachers=teachers)
    with pytest.raises(TypeError, match="multiple values for argument 'train_dataset'"):
        kind(*by_place[:-1], train_dataset=data, teachers=teachers)
    by_place[1] = arguments(tmp_path, id_column="number")
    with pytest.raises(TeacherError, match="teachers read the column 'number', the training data has"):
        kind(*by_place[:6], teachers=LogitCache([np.zeros((52, 3), dtype=np.float32)], ["a"]))


# --- refused


@pytest.mark.parametrize("name", ["label_smoothing_factor", "fsdp", "parallelism_config", "deepspeed"])
def test_arguments_that_would_be_ignored_are_refused(name, tmp_path):
    values = {"label_smoothing_factor": 0.1, "fsdp": "full_shard", "deepspeed": {"zero_optimization": {}}}
    with pytest.raises(ConfigError, match=f"{name} would be ignored"):
        arguments(tmp_path, **{name: values.get(name, object())})


@pytest.mark.parametrize("name", ["label_smoothing_factor", "compute_loss_func"])
def test_plain_arguments_are_asked_too(name, data, tokenizer, teachers, tmp_path):
    args = plain_arguments(tmp_path, **({name: 0.1} if name == "label_smoothing_factor" else {}))
    given = {name: len} if name == "compute_loss_func" else {}
    with pytest.raises(ConfigError, match=f"{name} would be ignored"):
        DistillationTrainer(student(tokenizer), args, train_dataset=data, teachers=teachers, **given)
