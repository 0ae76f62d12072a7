"""On an accelerator: the same weights, states and students as on the CPU, and no step that waits for a copy."""

import copy
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from networks import WORDS, network, tokenizer_for
from rlkd_envs.vector import TeacherWeightingVectorEnv

from rlkd.data.planted import planted, planted_logits
from rlkd.logit_cache import LogitCache, read_state
from rlkd.logit_cache.held import HeldStates, held_states, read_all
from rlkd.settings import StudentSettings
from rlkd.trainer import DistillationArguments, DistillationTrainer, make_trainer
from rlkd.types import Knowledge, on_device
from rlkd.weight_record import WeightRecord
from rlkd.weighting import WEIGHTINGS, build_weighting, load_policy, mixture

CPU = torch.device("cpu")
FOUND = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else CPU
POLICIES = ("policy", "policy_mean", "policy_shuffle")
needs_one = pytest.mark.skipif(FOUND.type == "cpu", reason="needs an accelerator")


@pytest.fixture(scope="module")
def task():
    return planted(num_rows=400)


@pytest.fixture(scope="module")
def cache(task):
    rng = np.random.default_rng(0)
    arrays = list(planted_logits(task).transpose(1, 0, 2))
    shape = (len(task.table), len(arrays))
    affinity, embeddings = rng.uniform(-1, 1, shape).astype(np.float32), rng.standard_normal((len(task.table), 5))
    known = Knowledge(by="domain", groups=task.domain_names, matrix=np.eye(3, dtype=bool))
    kept = LogitCache(arrays, ["a", "b", "c"], knowledge=known, affinity=affinity, embeddings=embeddings)
    return kept.measured(task)


@pytest.mark.parametrize("device", [CPU, pytest.param(FOUND, marks=needs_one)])
def test_states_that_are_held_are_those_that_are_read(device, task, cache, monkeypatch):
    monkeypatch.setattr("rlkd.logit_cache.held.AT_ONCE", 64)
    held = HeldStates(read_all(lambda ids: read_state(task, cache, ids), len(task.table), device))
    ids = torch.tensor([7, 0, 399, 7])
    expected, found = read_state(task, cache, ids), held.of(ids)
    assert found.available() == expected.available() >= {"affinity", "embeddings", "reliability", "sureness", "labels"}
    for name in expected.available():
        assert getattr(found, name).device.type == device.type
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name))


def test_on_the_cpu_nothing_is_held(task, cache):
    assert held_states(lambda ids: read_state(task, cache, ids), len(task.table), CPU) is None


@needs_one
@pytest.mark.parametrize("name", sorted(set(WEIGHTINGS) - {"gate"}))  # which reads numbers
def test_every_weighting_says_there_what_it_says_here(name, task, cache):
    arguments = {"fixed": "0.5,0.3,0.2", "single": "b", **dict.fromkeys(POLICIES, "auto")}
    chosen = build_weighting(f"{name}:{arguments[name]}" if name in arguments else name, task, cache)
    state = read_state(task, cache, torch.from_numpy(task.splits["train"][:32]))
    student = torch.randn(32, task.num_classes, generator=torch.Generator().manual_seed(0))
    state = replace(state, student_logits=student, progress=0.5, student_hidden=student)
    here, there = mixture(chosen, state), mixture(chosen, on_device(state, FOUND))
    torch.testing.assert_close(there.weights.cpu(), here.weights, rtol=1e-4, atol=1e-5)


@needs_one
def test_no_step_with_a_cache_waits_for_the_device(task, cache, tmp_path):
    settings = StudentSettings(student="rlkd/mlp", max_steps=20, batch_size=32, device=FOUND.type)
    trainer = make_trainer(task, cache, load_policy("auto"), settings, tmp_path, seed=0)
    inside = []
    own = trainer._instance_losses

    def watched(logits, ids):
        if inside:  # in the first step the weights of all rows go there
            torch.cuda.set_sync_debug_mode("error")
        try:
            inside.append(len(ids))
            return own(logits, ids)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer._instance_losses = watched
    trainer.train()
    assert len(inside) == 20
    assert trainer.weight_record.counts.sum() == sum(inside)


@needs_one
def test_weights_are_recorded_as_on_the_cpu():
    records = [WeightRecord(("x", "y"), 3) for _ in range(2)]
    for step in range(100):
        weights, groups = torch.rand(8, 3), torch.randint(-1, 2, (8,))
        records[0].add(step / 100, groups, weights)
        records[1].add(step / 100, groups.to(FOUND), weights.to(FOUND))
    assert np.array_equal(records[0].sums, records[1].sums)
    assert np.array_equal(records[0].counts, records[1].counts)


@needs_one
def test_trial_students_are_trained_at_once(task, cache):
    env = TeacherWeightingVectorEnv(
        32, task=task, cache=cache, student="rlkd/mlp", horizon=30, learning_rate=0.01, device=FOUND.type
    )
    env.reset(seed=0)
    assert env.trials_at_once
    uniform = build_weighting("uniform", task, cache)
    at_once = torch.stack(env.trial_losses_at_once(uniform, range(16))).mean(1)
    alone = torch.stack([env.trial_losses(uniform, trial) for trial in range(16)]).mean(1)
    assert abs(float((at_once - alone).mean())) < 4 * float((at_once - alone).std()) / 4  # they differ in dropout alone
    assert float((at_once - alone).abs().max()) < 0.2


@pytest.mark.parametrize("device", [CPU, pytest.param(FOUND, marks=needs_one)])
def test_live_teachers_kept_answers_and_a_cache_teach_the_same(device, tmp_path):
    """The plain trainer, with the shipped policy, which is told how sure teachers usually are."""
    tokenizer = tokenizer_for("bert", model_max_length=40)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 1 + row % 9)) for row in range(40)]
    data = datasets.Dataset.from_dict(
        {**tokenizer(texts), "text": texts, "label": [row % 3 for row in range(40)], "id": list(range(40))}
    )
    live = [network("bert", tokenizer) for _ in range(2)]
    read = {name: value.to(device) for name, value in tokenizer(texts, padding=True, return_tensors="pt").items()}
    with torch.no_grad():
        arrays = [one.to(device)(**read).logits.cpu().numpy() for one in live]
    first = network("bert", tokenizer, hidden_size=8, num_hidden_layers=1)
    for module in first.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def distilled(teachers, **kept):
        args = DistillationArguments(
            str(tmp_path),
            max_steps=10,
            learning_rate=1e-3,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=device.type != "cpu",
        )
        student = copy.deepcopy(first)
        trainer = DistillationTrainer(
            student, args, train_dataset=data, processing_class=tokenizer, teachers=teachers, **kept
        )
        trainer.train()
        assert trainer.weight_record.counts.sum() == 10 * 8
        return torch.cat([p.detach().flatten().cpu() for p in student.parameters()])

    expected = distilled(live)
    kept = [distilled(live, cache=tmp_path / "kept") for _ in range(2)]
    for found in (distilled(LogitCache(arrays, ["a", "b"])), *kept):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # Adam makes much of rounding
        assert float((found - expected).abs().mean()) < 1e-5
