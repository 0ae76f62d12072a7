"""Every argument of the Trainer is honoured or refused by name: none is ignored."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from rlkd.errors import ConfigError, StudentError
from rlkd.settings import StudentSettings
from rlkd.trainer import DistillationArguments, TaskTrainer, arguments, make_trainer, training_arguments
from rlkd.weighting.fixed import Uniform

FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments)}
SETTINGS = StudentSettings(student="rlkd/mlp", max_steps=8, batch_size=32, device="cpu")
OTHER = {
    "label_smoothing_factor": 0.1,
    "train_sampling_strategy": "sequential",
    "length_column_name": "len",
    "auto_find_batch_size": True,
    "average_tokens_across_devices": False,
    "label_names": ["labels"],
    "teachers": ["a"],
    "weighting": "entropy",
    "text_columns": ["text"],
    "id_column": "number",
    "offload_teachers": True,
    "cache": "auto",
    "parallelism_config": object(),
    "fsdp": "full_shard",
    "fsdp_config": {"min_num_params": 1},
    "deepspeed": {"zero_optimization": {}},
    "do_train": True,
    "do_eval": True,
    "do_predict": True,
    "resume_from_checkpoint": "checkpoint-1",
    "local_rank": 1,
}


def trainer_of(task, cache, folder, **values):
    return make_trainer(task, cache, Uniform(), SETTINGS, folder, **values)


def test_every_field_of_training_arguments_is_honoured_or_refused():
    """A new release's new field fails here: find out what becomes of it, and say so."""
    with_tasks = set(arguments.REFUSED_WITH_TASKS) & set(FIELDS)
    groups = [set(arguments.BY_THE_TRAINER), set(arguments.BY_US), set(arguments.REFUSED), with_tasks]
    assert set().union(*groups) == set(FIELDS)
    assert sum(map(len, groups)) == len(FIELDS)


def test_every_argument_of_the_trainer_is_honoured_or_refused():
    refused = {*arguments.TRAINER_REFUSED, *arguments.TRAINER_REFUSED_WITH_TASKS}
    groups = [arguments.TRAINER_BY_THE_TRAINER, arguments.TRAINER_BY_US, refused]
    assert set().union(*groups) == set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert not groups[0] & groups[1] | groups[2] & (groups[0] | groups[1])


@pytest.mark.parametrize("name", arguments.REFUSED)
def test_what_would_be_ignored_is_refused_by_name(name, tmp_path):
    with pytest.raises(ConfigError, match=f"^{name} would be ignored, got ") as caught:
        DistillationArguments(output_dir=str(tmp_path), use_cpu=True, **{name: OTHER[name]})
    assert arguments.REFUSED[name] in str(caught.value)


@pytest.mark.parametrize("name", arguments.REFUSED_WITH_TASKS)
def test_what_a_task_would_make_ignored_is_refused_with_one(name, task, cache, tmp_path):
    with pytest.raises(ConfigError, match=f"^{name} would be ignored, got ") as caught:
        with_arguments(task, cache, tmp_path, {name: OTHER[name]})
    assert arguments.REFUSED_WITH_TASKS[name] in str(caught.value)


def test_the_usual_arguments_pass_again_and_again(tmp_path):
    usual = DistillationArguments(output_dir=str(tmp_path), use_cpu=True)
    dataclasses.replace(usual, learning_rate=1e-3)


@pytest.mark.parametrize("name", ["group_by_length", "batch_rebalance", "sequential"])
def test_every_other_sampling_is_refused(name, task, cache, tmp_path):
    with pytest.raises(ConfigError, match=f"train_sampling_strategy would be ignored, got '{name}'"):
        trainer_of(task, cache, tmp_path, train_sampling_strategy=name)


def with_arguments(task, cache, folder, given):
    args = DistillationArguments(output_dir=str(folder), use_cpu=True, report_to="none", **given)
    TaskTrainer(trainer_of(task, cache, folder).model, args, task=task, cache=cache)


def test_evaluation_switches_do_eval_on_itself(tmp_path):
    args = DistillationArguments(output_dir=str(tmp_path), eval_strategy="epoch", use_cpu=True)
    assert args.do_eval
    assert dataclasses.replace(args, seed=1).do_eval


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"accelerator_config": {"split_batches": True}},
            "accelerator_config got split_batch",
        ),
        (
            {"accelerator_config": {"even_batches": False}},
            "accelerator_config got even_batches",
        ),
        ({"accelerator_config": {"dispatch_batches": True}}, "accelerator_config got dispatch_batch"),
        ({"accelerator_config": {"use_seedable_sampler": False}}, "accelerator_config got use_seed"),
        ({"max_steps": 5, "num_train_epochs": 2}, "num_train_epochs would be ignored beside max_steps, got 2 and 5"),
    ],
)
def test_settings_that_another_would_override_are_refused(given, message, task, cache, tmp_path):
    with pytest.raises(ConfigError, match=message):
        with_arguments(task, cache, tmp_path, given)


def test_the_rest_of_the_accelerator_s_settings_is_honoured(task, cache, tmp_path):
    config = {"gradient_accumulation_kwargs": {"num_steps": 4}}
    trainer = trainer_of(task, cache, tmp_path, accelerator_config=config, per_device_train_batch_size=8)
    trainer.train()
    assert trainer.args.gradient_accumulation_steps == 4
    assert trainer.weight_record.counts.sum() == 8 * 4 * 8  # steps, batches a step, rows


@pytest.mark.parametrize("name", [*arguments.TRAINER_REFUSED, *arguments.TRAINER_REFUSED_WITH_TASKS])
def test_arguments_that_would_replace_ours_are_refused(name, task, cache, tmp_path):
    trainer = trainer_of(task, cache, tmp_path)
    with pytest.raises(ConfigError, match=f"^{name} would be ignored, got one: "):
        type(trainer)(trainer.model, trainer.args, task=task, cache=cache, **{name: len})
    type(trainer)(trainer.model, trainer.args, task=task, cache=cache, **{name: None})


def with_trainer(task, cache, folder, values=(), **given):
    model = trainer_of(task, cache, folder).model
    args = training_arguments(SETTINGS, folder, **dict(values))
    return TaskTrainer(model, args, task=task, cache=cache, **given)


@pytest.mark.parametrize(
    ("values", "given", "named"),
    [
        ({}, {"preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1)}, "preprocess_logits_for_met"),
        ({"eval_do_concat_batches": False}, {}, "eval_do_concat_batches=False"),
        ({"batch_eval_metrics": True}, {}, "batch_eval_metrics"),
        ({"prediction_loss_only": True}, {}, None),
    ],
)
def test_predictions_are_logits_whatever_evaluation_makes_of_them(values, given, named, task, cache, tmp_path):
    plain = with_trainer(task, cache, tmp_path / "plain")
    asked = []

    def metrics(predictions, compute_result=True):
        asked.append(predictions.predictions)
        return {"mine": 1.0}

    if named is not None:
        with pytest.raises(ConfigError, match=f"our metrics read the logits of a whole split, got {named}"):
            with_trainer(task, cache, tmp_path, values, **given)
        given = {**given, "compute_metrics": metrics}
    trainer = with_trainer(task, cache, tmp_path, values, **given)
    trainer.model.load_state_dict(plain.model.state_dict())
    assert np.array_equal(trainer.predict_split("test"), plain.predict_split("test"))
    assert asked == []
    evaluated = trainer.evaluate()
    assert evaluated["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"])
    if named is None:
        assert "eval_accuracy" not in evaluated  # the loss alone, as asked
    else:
        assert evaluated["eval_mine"] == 1.0
        assert not isinstance(asked[-1], np.ndarray) or asked[-1].shape != (len(task.splits["validation"]), 6)


def seen_ids(task, cache, folder, **values):
    trainer, batches = trainer_of(task, cache, folder, **values), []
    collate = trainer.data_collator
    trainer.data_collator = lambda ids: (batches.append(ids), collate(ids))[1]
    result = trainer.train()
    return batches[: result.global_step * trainer.args.gradient_accumulation_steps]  # one more is fetched ahead


def test_batches_are_made_as_the_arguments_say(task, cache, tmp_path):
    rows = len(task.splits["train"])
    size, steps = 64, -(-rows // 64)
    assert rows % size
    usual = seen_ids(task, cache, tmp_path, per_device_train_batch_size=size, max_steps=steps, seed=1)
    assert [len(batch) for batch in usual] == [size] * (steps - 1) + [rows % size]
    dropped = seen_ids(
        task, cache, tmp_path, per_device_train_batch_size=size, max_steps=steps, seed=1, dataloader_drop_last=True
    )
    assert [len(batch) for batch in dropped] == [size] * steps
    assert dropped[: steps - 1] == usual[: steps - 1]
    other = seen_ids(task, cache, tmp_path, per_device_train_batch_size=size, max_steps=steps, seed=2)
    assert other != usual
    again = seen_ids(task, cache, tmp_path, per_device_train_batch_size=size, max_steps=steps, seed=2, data_seed=1)
    assert again == usual
    halves = seen_ids(
        task,
        cache,
        tmp_path,
        per_device_train_batch_size=size // 2,
        gradient_accumulation_steps=2,
        max_steps=steps - 1,
        seed=1,
    )
    assert [[*first, *second] for first, second in zip(halves[::2], halves[1::2], strict=True)] == usual[:-1]


def test_a_checkpoint_without_the_optimizer_is_not_continued_from(task, cache, tmp_path):
    kept = {"save_strategy": "steps", "save_steps": 4, "save_only_model": True}
    trainer_of(task, cache, tmp_path, **kept).train()
    with pytest.raises(StudentError, match=r"expected the optimizer's state in .*checkpoint-8, got none"):
        trainer_of(task, cache, tmp_path, **kept).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("filtered", [True, False])
def test_a_loss_that_is_not_finite_is_never_filtered(filtered, task, cache, tmp_path):
    trainer = trainer_of(task, cache, tmp_path, logging_nan_inf_filter=filtered)
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="the loss must be finite"):
        trainer.train()


def test_one_process_uses_one_device(monkeypatch, tmp_path):
    # two accelerators would double the batch by DataParallel
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    args = DistillationArguments(output_dir=str(tmp_path), per_device_train_batch_size=8)
    assert TrainingArguments(output_dir=str(tmp_path)).n_gpu == 2  # what it would be
    assert (args.n_gpu, args.train_batch_size) == (1, 8)
    elsewhere = dataclasses.replace(SETTINGS, device="cuda:1")
    with pytest.raises(ConfigError, match="students use the first accelerator that they see, got 'cuda:1'"):
        training_arguments(elsewhere, tmp_path)
