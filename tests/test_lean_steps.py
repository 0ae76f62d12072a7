"""What is saved in a step changes no bit: neither of the Trainer's own work, nor of losses, weights and their logs."""

import contextlib
import copy
import io
import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from rlkd.errors import CacheError
from rlkd.kinds import Measured, as_measured
from rlkd.kinds.base import class_label_losses
from rlkd.losses import cross_entropy, distillation_loss
from rlkd.trainer import lean, logged
from rlkd.trainer.lean import LeanMixin, clip_grad_norm, known_absent, total_norm
from rlkd.trainer.logged import Sums
from rlkd.trainer.looked_up_teachers import CachedTeachers
from rlkd.types import State
from rlkd.weight_record import WeightRecord
from rlkd.weighting import mixture
from rlkd.weighting.fixed import Uniform
from rlkd.weighting.simplex import equal_weights


def drawn(*shape: int, seed: int = 0, far: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator)
    return values * 10 ** torch.randint(-6, 6, shape, generator=generator) if far else values


# --- the Trainer's own work


class Network(nn.Module):
    """Counts how often its parameters are, and remembers whether a layer was in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.counted = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), 0
        self.modes: list[bool] = []

    def forward(self, input_ids: Any, labels: Any = None) -> Any:
        self.modes.append(self.layers[1].training)
        logits = self.layers(input_ids)
        return {"loss": 20 * nn.functional.cross_entropy(logits, labels), "logits": logits}

    def num_parameters(self, exclude_embeddings: bool = False) -> int:
        self.counted += 1
        return sum(one.numel() for one in self.parameters())


class Lean(LeanMixin, Trainer):
    """The Trainer with leaner steps."""


class Growing(TrainerCallback):
    """Adds a layer in the midst of the training."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            layer = nn.Linear(2, 2)
            kwargs["model"].layers.append(layer)
            kwargs["optimizer"].param_groups[0]["params"].extend(layer.parameters())


class Freezing(Network):
    """Keeps a layer out of training, however often it is put there, and counts that."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.asked = nn.Dropout(0.5), 0

    def train(self, mode: bool = True) -> Any:
        self.asked += 1
        super().train(mode)
        self.dropout.training = False
        return self

    def forward(self, input_ids: Any, labels: Any = None) -> Any:
        return super().forward(self.dropout(input_ids), labels)


class Meddling(TrainerCallback):
    """Puts a layer out of training after a step, and copies the student in the midst of one."""

    def __init__(self) -> None:
        self.copies: list[nn.Module] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        assert any(one.grad is not None for one in model.parameters())
        self.copies.append(copy.deepcopy(model))
        pickle.dumps(model)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        assert all(one.grad is None for one in model.parameters())
        assert not {"train", "zero_grad"} & set(vars(model))
        model.layers[1].eval()


def test_what_is_known_of_a_student_is_no_more_than_what_is_so(tmp_path: Any) -> None:
    """One that freezes a layer is asked in every step; layers that somebody put out of training are put back."""
    data = [{"input_ids": drawn(4, seed=row), "labels": row % 2} for row in range(24)]
    found = []
    for kind, network in ((Trainer, Freezing), (Lean, Freezing), (Lean, Network)):
        torch.manual_seed(0)
        model, meddling = network(), Meddling()
        args = TrainingArguments(str(tmp_path), save_strategy="no", report_to="none", max_steps=3, use_cpu=True)
        with contextlib.redirect_stdout(io.StringIO()):
            kind(model, args, train_dataset=data, callbacks=[meddling]).train()
        assert model.modes == [True] * 3
        one = meddling.copies[-1]
        for _ in range(2):  # of the copy's own parameters
            for value in one.parameters():
                value.grad = torch.ones_like(value)
            one.zero_grad()
            assert all(value.grad is None for value in one.parameters())
        bits = b"".join(value.detach().numpy().tobytes() for value in model.parameters())
        found.append((bits, getattr(model, "asked", None)))
    assert found[0] == found[1]
    assert lean.plain_modules(Freezing()) is None
    assert lean.plain_modules(Network()) is not None


@pytest.mark.parametrize(("norm", "callbacks"), [(1e-6, []), (1.0, []), (1e6, []), (1e-6, [Growing()])])
def test_leaner_steps_train_the_same_student(norm: float, callbacks: list[Any], tmp_path: Any) -> None:
    data = [{"input_ids": drawn(4, seed=row), "labels": row % 2} for row in range(24)]
    runs = []
    for kind in (Trainer, Lean):
        torch.manual_seed(0)
        model = Network()
        settings: dict[str, Any] = {"max_grad_norm": norm, "logging_steps": 1, "max_steps": 6, "use_cpu": True}
        args = TrainingArguments(str(tmp_path), save_strategy="no", report_to="none", disable_tqdm=True, **settings)
        trainer = kind(model, args, train_dataset=data, callbacks=callbacks)
        trainer.train()
        norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
        bits = b"".join(one.detach().numpy().tobytes() for one in model.parameters())
        runs.append((bits, norms, trainer.state.total_flos, model.counted))
    (*plain, often), (*ours, once) = runs
    assert plain == ours
    assert len(ours[1]) == 6
    assert all(one > norm for one in ours[1]) or norm >= 1
    assert all(one < norm for one in ours[1]) or norm <= 1
    assert once < often


def test_gradients_are_scaled_as_torch_scales_them_and_left_alone_below() -> None:
    for seed in range(20):
        shapes = [(3, 5), (7,), (2, 2, 2), (1,)]
        for_torch, for_us = ([nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in range(2))
        for place, (one, other) in enumerate(zip(for_torch, for_us, strict=True)):
            one.grad = drawn(*shapes[place], seed=seed + place, far=True)
            other.grad = one.grad.clone()
        exact = total_norm([one.grad for one in for_us if one.grad is not None])
        assert torch.equal(exact, nn.utils.get_total_norm([one.grad for one in for_torch if one.grad is not None]))
        largest = float(exact) * (0.5, 1 - 1e-7, 1.0, 1 + 1e-7, 2.0)[seed % 5]
        assert torch.equal(clip_grad_norm(for_us, largest), nn.utils.clip_grad_norm_(for_torch, largest))
        for one, other in zip(for_torch, for_us, strict=True):
            assert one.grad is not None
            assert other.grad is not None
            assert torch.equal(one.grad, other.grad)
    both = [nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)) for _ in range(2)]
    for one in both:
        one.grad = torch.full((1,), 0.44921875, dtype=torch.bfloat16)
    nn.utils.clip_grad_norm_(both[:1], 0.4495)  # which rounds the factor to less than one
    clip_grad_norm(both[1:], 0.4495)
    assert both[0].grad is not None
    assert 0 < both[0].grad.item() < 0.449
    assert both[0].grad == both[1].grad
    values = [torch.ones(2), torch.ones(2, dtype=torch.float64)]
    assert total_norm(values) == nn.utils.get_total_norm(values) == pytest.approx(2)
    assert clip_grad_norm([nn.Parameter(torch.ones(1))], 1.0) == 0


def test_what_is_not_there_is_known_while_it_trains_alone() -> None:
    with known_absent(["no_such_package", "json"]):
        assert sys.modules["no_such_package"] is None  # type: ignore[comparison-overlap]
        assert sys.modules["json"] is not None
    assert "no_such_package" not in sys.modules
    with pytest.raises(KeyError), known_absent(lean.ABSENT):
        raise KeyError
    assert not set(lean.ABSENT) & set(sys.modules)


# --- losses


@pytest.mark.parametrize("kd_ratio", [0.3, 1.0])
def test_labels_that_do_not_teach_are_not_asked_and_nothing_changes(kd_ratio: float) -> None:
    teachers, weights, labels = drawn(9, 3, 4), torch.full((9, 3), 1 / 3), torch.arange(9) % 5 - 1
    found = []
    for known in ({}, {"complete": True}, {"complete": True, "certain": ...}):
        student = drawn(9, 4, seed=1).requires_grad_()
        if "certain" in known:
            known = {**known, "certain": cross_entropy(student, labels)}
        losses = distillation_loss(student, teachers, weights, labels, kd_ratio=kd_ratio, **known)
        (gradient,) = torch.autograd.grad(losses.sum(), student)
        found.append((losses.detach(), gradient))
    for losses, gradient in found[1:]:
        assert torch.equal(losses, found[0][0])
        assert torch.equal(gradient, found[0][1])


def test_equal_weights_are_those_of_a_mask_that_hides_nobody() -> None:
    for teachers in range(1, 40):
        state = State(teacher_logits=torch.zeros(2, teachers, 3))
        taught = mixture(Uniform(), state)
        assert torch.equal(taught.weights, equal_weights(state.present))
        assert taught.complete
    hidden = State(teacher_logits=torch.zeros(2, 2, 3), teacher_mask=torch.tensor([[True, False], [True, True]]))
    assert mixture(Uniform(), hidden).weights.tolist() == [[1, 0], [0.5, 0.5]]


# --- what is logged


def test_batches_that_are_added_up_together_give_the_sums_of_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of different sizes, with and without labels, that label a loss now or later."""

    def filled() -> dict[str, list[float]]:
        sums = Sums()
        for step in range(50):
            rows = 3 if step in (10, 49) else 32
            student, labels = drawn(rows, 4, seed=step), torch.randint(-1, 4, (rows,))
            measured: Measured | None = Measured("cross_entropy", class_label_losses, student, labels)
            if step % 7 == 0:
                measured = Measured("cross_entropy", as_measured, *class_label_losses(student, labels))
            if step == 5:
                measured = None
            sums.add(drawn(rows, seed=step, far=True), drawn(rows, 3, seed=step).softmax(-1), measured)
        return sums.totals(lambda held: held)

    torch.manual_seed(0)
    together = filled()
    monkeypatch.setattr(logged, "AT_ONCE", 1)
    torch.manual_seed(0)
    assert filled() == together
    monkeypatch.setattr(logged, "AT_ONCE", 64)
    monkeypatch.setattr(logged, "MOST_HELD", 1000)
    torch.manual_seed(0)
    assert filled() == together
    assert [count for _, count in together.values()][:2] == [48 * 32 + 6] * 2
    assert together["cross_entropy"][1] < 48 * 32


@pytest.mark.parametrize("groups", [1, 3])
def test_a_record_of_weights_is_that_of_rows_added_one_by_one(groups: int) -> None:
    record, sums, counts = WeightRecord(["a", "b", "c"][:groups], 3), np.zeros((20, groups, 3)), np.zeros((20, groups))
    for step in range(150):
        weights = drawn(16, 3, seed=step, far=True).abs()
        numbers = torch.randint(-1, groups, (16,)) if groups > 1 else torch.zeros(16, dtype=torch.int64)
        record.add(step / 150, numbers if groups > 1 else None, weights)
        for row, number in zip(weights.numpy(), numbers.tolist(), strict=True):
            if number >= 0:
                sums[int(step / 150 * 20), number] += row
                counts[int(step / 150 * 20), number] += 1
        weights.zero_()  # whoever gave them may go on with them
    assert np.array_equal(record.sums, sums)
    assert np.array_equal(record.counts, counts)


# --- rows of a cache


def test_numbers_of_rows_are_read_from_whatever_holds_them(cache: Any) -> None:
    teachers = CachedTeachers(cache, "id", torch.device("cpu"))
    small = [torch.tensor(3, dtype=torch.int32), torch.tensor(1, dtype=torch.int32)]
    for rows in ([3, 1], [torch.tensor(3), torch.tensor(1)], [np.int64(3), torch.tensor(1)], small):
        assert teachers.carry([{"id": row} for row in rows], {})["ids"].tolist() == [3, 1]
    for rows in ([torch.tensor(0.0)], [0.5], [torch.tensor(-1)], [len(cache)]):
        with pytest.raises(CacheError, match="expected numbers of rows of the cache"):
            teachers.carry([{"id": row} for row in rows], {})
