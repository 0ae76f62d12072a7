import json

import numpy as np
import pytest
import torch
from rlkd_envs.episode import DistillationEpisode
from rlkd_envs.rewards import make_reward
from rlkd_envs.setup import DistillationSetup
from stable_baselines3.common.callbacks import BaseCallback
from torch.nn import functional as F
from torch.utils.data import SequentialSampler
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback

from rlkd.agents import train_policy
from rlkd.data.task import Table, Task
from rlkd.features import ObservationConfig
from rlkd.logit_cache import LiveTeachers, LogitCache, build_cache
from rlkd.models import CallableTeacher, load_student
from rlkd.settings import EpisodeSettings
from rlkd.trainer import DistillationArguments, TaskTrainer
from rlkd.weighting import Policy
from rlkd.weighting.fixed import Fixed, Uniform

PARITY = 17513.626344216533
"""Sum of the absolute parameters of the student below, as TextBrewer, torchdistill and a plain loop train it, equal to
the last digit on one processor; others round differently, by less than 2e-6 of it."""


def arguments(folder, **values):
    defaults = {
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return DistillationArguments(output_dir=str(folder), **(defaults | values))


class Sequential(TaskTrainer):
    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


class IdInputs:
    """Rows of token ids, all of one length."""

    def __init__(self, ids):
        self.ids, self.lengths = ids, np.full(len(ids), ids.shape[1])

    def batch(self, rows):
        return {"input_ids": self.ids[torch.from_numpy(rows)]}


def bert(hidden_size, layers, seed):
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=1000,
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=2 * hidden_size,
            max_position_embeddings=64,
            num_labels=3,
            initializer_range=0.5,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


class BertTeacher(CallableTeacher):
    """Reads token ids that came as vectors."""

    def __init__(self, name, model):
        self.model = model
        super().__init__(name, lambda rows: model(input_ids=torch.from_numpy(rows).long()).logits, "abc")


@pytest.fixture(scope="module")
def berts():
    """Task, token ids and three random teachers of the parity run."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1000, (256, 32), generator=generator)
    labels = torch.randint(0, 3, (256,), generator=generator)
    splits = {name: np.arange(256 if name == "train" else 0) for name in ("train", "probe", "validation", "test")}
    table = Table(labels=labels.numpy(), domains=np.zeros(256, dtype=np.int64), vectors=ids.numpy().astype(np.float32))
    task = Task(name="parity", label_names=("a", "b", "c"), table=table, splits=splits)
    return task, ids, [BertTeacher(f"bert-{seed}", bert(64, 2, seed).eval()) for seed in (1, 2, 3)]


def trained(berts, folder, source, **values):
    task, ids, _ = berts
    args = arguments(
        folder, **{"num_train_epochs": 3, "temperature": 2.0, "mix": "logit", "optim": "adamw_torch"} | values
    )
    args.scale_by_temperature = False
    student = bert(32, 1, 9)
    Sequential(student, args, task=task, cache=source, weighting=Uniform(), inputs=IdInputs(ids)).train()
    return student


def trained_by_hand(berts):
    """The loop of the others, written out."""
    _, ids, teachers = berts
    student = bert(32, 1, 9)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(3):
        for batch in ids.split(32):
            logits = torch.stack([t.model(input_ids=batch).logits for t in teachers], 1).mean(1)
            soft = F.softmax(logits.detach() / 2, -1)
            loss = -(soft * F.log_softmax(student(input_ids=batch).logits / 2, -1)).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


def digest(student):
    return sum(p.detach().double().abs().sum().item() for p in student.parameters())


def test_uniform_logit_mixing_is_what_others_compute(berts, tmp_path):
    task, _, teachers = berts
    cache = build_cache(teachers, task, tmp_path / "cache", batch_size=32)
    student = trained(berts, tmp_path, cache)
    by_hand = trained_by_hand(berts)
    assert_equal_models(student, by_hand)
    assert digest(student) == pytest.approx(PARITY, rel=2e-6)
    # teachers that are asked anew for every batch
    assert_equal_models(student, trained(berts, tmp_path, LiveTeachers(teachers, task)))
    # and a mixture of probabilities is something else
    assert digest(trained(berts, tmp_path, cache, mix="probability")) != pytest.approx(PARITY, rel=4e-6)


def mlp(task, seed=0, dropout=None):
    model, _ = load_student("rlkd/mlp", task, seed=seed)
    if dropout is not None:
        model.dropout.p = dropout
    return model


def assert_equal_models(first, second):
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name


def assert_close_models(first, second, atol=1e-5):
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.allclose(a, b, atol=atol), name


def single(cache):
    return LogitCache([cache.rows(torch.arange(len(cache)))[:, 0].numpy()], ["a"])


def test_one_teacher_is_single_teacher_distillation(task, cache, tmp_path):
    """Against a loop written out, whatever the weighting says."""
    args = arguments(tmp_path, num_train_epochs=2, temperature=3.0, kd_ratio=0.7, optim="sgd", learning_rate=0.1)
    student = mlp(task, dropout=0.0)
    trainer = Sequential(
        student, args, task=task, cache=single(cache), weighting=Policy.create(ObservationConfig(), training={})
    )
    trainer.train()

    expected = mlp(task, dropout=0.0)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    vectors, labels = torch.from_numpy(task.table.vectors), torch.from_numpy(task.table.labels)
    teacher = cache.rows(torch.arange(len(cache)))[:, 0]
    for _ in range(2):
        for rows in torch.arange(len(task.splits["train"])).split(32):
            logits = expected(input_values=vectors[rows]).logits
            soft = F.kl_div(F.log_softmax(logits / 3, -1), F.softmax(teacher[rows] / 3, -1), reduction="batchmean")
            loss = 0.3 * F.cross_entropy(logits, labels[rows]) + 0.7 * 9 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert_close_models(student, expected)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_environment_takes_the_gradient_that_the_trainer_takes(bf16, task, cache, tmp_path):
    settings = EpisodeSettings(batch_size=32, horizon=10, temperature=2.0, kd_ratio=0.6, learning_rate=0.0, bf16=bf16)
    setup = DistillationSetup(task, cache, lambda seed: mlp(task, 4), settings, "cpu")
    episode = DistillationEpisode(setup, make_reward("student_gain"))
    episode.start(0)
    shares, ids = torch.tensor([0.7, 0.1, 0.2]), episode.ids
    random_state = torch.Generator().manual_seed(0).get_state()  # the episode's own, for dropout
    episode.step(shares.expand(32, 3))

    model = mlp(task, 4)
    args = arguments(tmp_path, temperature=2.0, kd_ratio=0.6, bf16=bf16)
    trainer = TaskTrainer(model, args, task=task, cache=cache, weighting=Fixed(shares))
    model = trainer.accelerator.prepare_model(model).train()
    torch.set_rng_state(random_state)
    trainer.compute_loss(model, trainer.collate(ids.tolist())).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for (name, ours), theirs in zip(model.named_parameters(), episode.student.parameters(), strict=True):
        assert ours.grad.abs().max() > 1e-4
        assert torch.equal(ours.grad, theirs.grad), name


def test_mixed_precision_changes_a_run_a_little_and_no_weight_s_type(task, cache, tmp_path):
    def run(bf16):
        student = mlp(task, dropout=0.0)
        trainer = TaskTrainer(student, arguments(tmp_path, max_steps=20, bf16=bf16), task=task, cache=cache)
        trainer.train()
        assert {weight.dtype for weight in student.parameters()} == {torch.float32}
        return torch.from_numpy(trainer.predict_split("test")).softmax(-1)

    rough, exact = run(bf16=True), run(bf16=False)
    assert 1e-5 < (rough - exact).abs().max() < 0.02


def test_accumulating_four_batches_of_eight_is_one_of_32(task, cache, tmp_path):
    def run(batch, accumulation):
        student = mlp(task, dropout=0.0)
        args = arguments(
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=20,
            kd_ratio=0.5,
            optim="sgd",
            learning_rate=0.5,
        )
        TaskTrainer(student, args, task=task, cache=cache).train()
        return student

    start, whole = mlp(task), run(32, 1)
    assert not torch.allclose(start.classifier.weight, whole.classifier.weight, atol=1e-2)
    assert_close_models(run(8, 4), whole)


class Watch(TrainerCallback):
    """Notes where a run begins, and ends it before its time, as a kill would."""

    def __init__(self, stop_at):
        self.stop_at, self.began_at = stop_at, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.began_at = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.stop_at


def distilled(task, cache, folder, *, stop_at=30, resume=False):
    """A run of 30 steps with dropout, a falling learning rate and a policy that watches the student."""
    args = arguments(folder, max_steps=30, lr_scheduler_type="linear", save_strategy="steps", save_steps=5, seed=3)
    weighting = Policy.create(ObservationConfig(student=True), training={}, seed=1)
    trainer = TaskTrainer(mlp(task), args, task=task, cache=cache, weighting=weighting)
    trainer.watch = Watch(stop_at)
    trainer.add_callback(trainer.watch)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_one_seed_is_one_run(task, cache, tmp_path):
    first, second = (distilled(task, cache, tmp_path / name) for name in "ab")
    assert_equal_models(first.model, second.model)
    assert np.array_equal(first.weight_record.sums, second.weight_record.sums)


def test_a_resumed_student_ends_like_an_uninterrupted_one(task, cache, tmp_path):
    whole = distilled(task, cache, tmp_path / "whole")
    broken = tmp_path / "broken"
    distilled(task, cache, broken, stop_at=22)
    newest = broken / "checkpoint-20" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-64])  # a killed writer's
    resumed = distilled(task, cache, broken, resume=True)
    assert resumed.watch.began_at == 15
    assert resumed.state.global_step == 30
    assert_equal_models(resumed.model, whole.model)
    assert np.array_equal(resumed.weight_record.sums, whole.weight_record.sums)
    assert np.array_equal(resumed.weight_record.counts, whole.weight_record.counts)


def test_without_a_checkpoint_that_verifies_training_starts_anew(task, cache, tmp_path):
    whole = distilled(task, cache, tmp_path / "whole")
    folder = tmp_path / "broken"
    distilled(task, cache, folder, stop_at=7)
    for manifest in folder.glob("checkpoint-*/manifest.json"):
        manifest.unlink()
    again = distilled(task, cache, folder, resume=True)
    assert again.watch.began_at == 0
    assert_equal_models(again.model, whole.model)


class Interrupt(BaseCallback):
    """Notes where training begins; Ctrl-C after so many timesteps."""

    def __init__(self, timesteps=10**9):
        super().__init__()
        self.timesteps, self.began_at = timesteps, None

    def _on_training_start(self):
        self.began_at = self.num_timesteps

    def _on_step(self):
        if self.num_timesteps >= self.timesteps:
            raise KeyboardInterrupt
        return True


def policy_run(task, cache, folder, *, callback=None, resume=False, **settings):
    return train_policy(
        task,
        cache,
        output_dir=folder,
        resume=resume,
        callback=callback,
        episode={"batch_size": 32, "horizon": 20, "teacher_copies": 0},
        observation=ObservationConfig(student=True),
        total_timesteps=32 * 100,
        warm_start=False,
        n_steps=10,
        **settings,
    )


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_a_resumed_policy_ends_like_an_uninterrupted_one(algorithm, task, cache, tmp_path):
    whole = policy_run(task, cache, tmp_path / "whole", algorithm=algorithm)
    folder = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        policy_run(task, cache, folder, callback=Interrupt(32 * 73), algorithm=algorithm)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-1280", "checkpoint-1920"]
    (folder / "checkpoint-1920" / "state.json").write_text("{}")  # the newest is damaged
    resumed = policy_run(task, cache, folder, callback=(watch := Interrupt()), resume=True, algorithm=algorithm)
    assert watch.began_at == 1280
    for (name, ours), theirs in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    for file in ("metrics.jsonl", "policy/model.safetensors", "policy/config.json"):
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(0, 3201, 320))


def test_a_finished_policy_is_resumed_at_once(task, cache, tmp_path):
    first = policy_run(task, cache, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = policy_run(task, cache, tmp_path, resume=True, callback=(watch := Interrupt()))
    assert watch.began_at is None  # no step is taken again
    assert again.training_record == first.training_record
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    for ours, theirs in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
