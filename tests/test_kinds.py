"""Kinds of task: several labels at once, regression, tokens; with every weighting, or refused by name."""

import copy
import re

import numpy as np
import pytest
import torch
from networks import LABELS, WORDS, network, tokenizer_for
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from test_plain_trainer import arguments, parameters, plain_arguments, renumbered_tokens, student
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from rlkd.distillation import weighted_distillation_loss
from rlkd.errors import ConfigError, TeacherError, WeightingError
from rlkd.features import ObservationConfig, usual_sureness
from rlkd.kinds import MultiLabelClassification
from rlkd.logit_cache import LogitCache
from rlkd.models.architectures import MlpConfig, MlpForSequenceClassification
from rlkd.settings import LossSettings
from rlkd.trainer import DistillationTrainer
from rlkd.types import Knowledge, State
from rlkd.weighting import WEIGHTINGS, Policy, mixture
from rlkd.weighting.fitted import CalibratedUniform
from rlkd.weighting.fixed import Fixed, Uniform
from rlkd.weighting.gate import Gate
from rlkd.weighting.heuristic import CrossEntropy, Entropy, Oracle

ROWS, TEACHERS = 24, 3


class Linear(nn.Module):
    """A student of vectors, one or a sequence of them, that says what kind of task it is of by its config alone."""

    def __init__(self, outputs, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.config = PreTrainedConfig(num_labels=outputs)
        self.layer = nn.Linear(4, outputs)

    def forward(self, x, labels=None):
        return SequenceClassifierOutput(logits=self.layer(x))


KINDS = {  # what the labels of a kind are, and how many outputs
    "single-label classification": (lambda rng: int(rng.integers(3)), 3),
    "multi-label classification": (lambda rng: rng.integers(0, 2, 3).astype(np.float32), 3),
    "regression": (lambda rng: np.float32(rng.normal()), 1),
    "token classification": (lambda rng: np.array([0, 2, -100, 1, 1]), 3),
}


def rows_of(kind, count=ROWS):
    rng = np.random.default_rng(0)
    shape = (5, 4) if kind == "token classification" else 4
    rows = [{"x": rng.normal(size=shape).astype(np.float32), "labels": KINDS[kind][0](rng)} for _ in range(count)]
    return [row | {"id": place} for place, row in enumerate(rows)]


def trainer_of(kind, weighting, folder, *, rows=None, teachers=None, outputs=None, data_collator=None, **values):
    outputs = outputs or KINDS[kind][1]
    return DistillationTrainer(
        Linear(outputs),
        arguments(folder, **{"max_steps": 1, "logging_steps": 1, **values}),
        train_dataset=rows if rows is not None else rows_of(kind),
        teachers=teachers if teachers is not None else [Linear(outputs, seed) for seed in range(1, 1 + TEACHERS)],
        weighting=weighting,
        data_collator=data_collator,
    )


NEED_A_TASK = {"best_teacher", "lr_train", "lr_dev", "calibrated_uniform", "oracle", "router", "policy_mean"}
NEED_IDS = {"random_teacher", "policy_shuffle"}
WITHOUT_CLASSES = {"uniform", "labels", "fixed", "gate"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    Policy.create(ObservationConfig(), training={}, seed=3).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_weighting_trains_every_kind_or_is_refused_by_name(kind, policy, tmp_path):
    given = {"fixed": "fixed:0.5,0.3,0.2"} | {n: f"{n}:{policy}" for n in ("policy", "policy_mean", "policy_shuffle")}
    refused = {}
    for name in WEIGHTINGS:
        try:
            trainer = trainer_of(kind, given.get(name, name), tmp_path)
            trainer.train()
        except (WeightingError, ConfigError) as error:
            refused[name] = str(error)
        else:
            assert np.isfinite(trainer.state.log_history[0]["loss"])
    regression = kind == "regression"
    expected = set(WEIGHTINGS) - WITHOUT_CLASSES if regression else NEED_A_TASK | NEED_IDS | {"gate"}
    assert refused.keys() == expected
    assert [name for name, why in refused.items() if not (kind in why and given.get(name, name) in why)] == []


class Told:
    """A weighting of one's own that reads labels and answers with given weights: it keeps what it was shown."""

    requires = frozenset({"labels", "student_logits"})

    def __init__(self, table):
        self.table, self.seen = table, []

    def weights(self, state):
        self.seen.append(state)
        return self.table[state.labels.clamp_min(0)]


def by_hand(student, teachers, weights, targets, kd_ratio):
    """Bernoulli divergences and cross entropies of one instance, by the textbook, in float64."""
    total = 0.0
    for z, others, y in zip(student, teachers.T, targets, strict=True):
        p, q = 1 / (1 + np.exp(-z)), float(weights @ (1 / (1 + np.exp(-others))))
        kl = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
        certain = 0.0 if np.isnan(y) else -np.log(p if y else 1 - p)
        total += (1 - kd_ratio) * certain + kd_ratio * kl
    return total / len(targets)


def test_several_labels_are_several_choices_under_one_weight_a_teacher(tmp_path):
    """Of two labels, one, none, and labels that are not known; weights by label are averaged over an instance."""
    kind, table = (
        "multi-label classification",
        torch.tensor([[0.8, 0.1, 0.1], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5], [1, 0, 0]]),
    )
    rows, nan = rows_of(kind, 8), np.nan
    targets = [[1, 1, 0], [0, 0, 1], [0, 0, 0], [1, -1, 0], [-1, 0, 0], [-1, nan, -1], [1, 1, 1], [0, 1, 0]]
    for row, labels in zip(rows, targets, strict=True):
        row["labels"] = np.array(labels, dtype=np.float32)
    told = Told(table)
    trainer = trainer_of(kind, told, tmp_path, rows=rows, kd_ratio=0.25, learning_rate=0.0)
    trainer.train()
    (seen,) = told.seen
    assert seen.labels.tolist().count(-1) == 2  # rows 4 and 5: whether they have none is not known
    assert seen.teacher_logits.shape == (len(seen.labels), TEACHERS, 4)
    assert (seen.teacher_logits[..., 3] == 0).all()
    x = torch.tensor(np.stack([row["x"] for row in rows]))
    known = [[np.nan if not y >= 0 else y for y in labels] for labels in targets]
    losses = []
    for place, labels in enumerate(known):
        has = [label for label, y in enumerate(labels) if y == 1] or [0 if place in (4, 5) else 3]
        with torch.no_grad():
            own = trainer.model(x[place]).logits.double().numpy()
            others = np.stack([Linear(3, seed)(x[place]).logits.double().numpy() for seed in (1, 2, 3)])
        losses.append(by_hand(own, others, table[has].double().mean(0).numpy(), np.array(labels, dtype=float), 0.25))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert trainer.weight_record.counts.sum() == 8


@pytest.mark.parametrize("kind", ["multi-label classification", "regression"])
def test_labels_alone_are_what_the_trainer_itself_evaluates(kind, tmp_path):
    """And what students of our own say of themselves."""
    textbook = F.mse_loss if kind == "regression" else F.binary_cross_entropy_with_logits
    rows = rows_of(kind, 8)
    x, labels = (torch.tensor(np.stack([row[name] for row in rows])) for name in ("x", "labels"))
    trainer = trainer_of(kind, "labels", tmp_path, rows=rows, kd_ratio=0.3, learning_rate=0.0)
    trainer.train()
    expected = textbook(trainer.model(x).logits.squeeze(), labels).item()
    told = trainer.state.log_history[0]
    assert [told["loss"], told[trainer._kind.measured]] == pytest.approx([expected, expected], rel=1e-3)
    ours = MlpForSequenceClassification(MlpConfig(input_size=4, num_labels=KINDS[kind][1])).eval()
    loss, logits = ours(x, labels).to_tuple()
    assert loss.item() == pytest.approx(textbook(logits.squeeze(), labels).item())


def test_a_teacher_that_lacks_a_label_is_left_out_there(tmp_path):
    """Two of three teachers know the last label: it is their mixture, not one with a third that never heard of it."""
    rows = rows_of("multi-label classification", 8)
    teachers = [Linear(3, seed) for seed in (1, 2)] + [Linear(2, 3)]
    names = dict(enumerate(LABELS))
    teachers[0].config.id2label = teachers[1].config.id2label = names
    teachers[2].config.id2label = {0: LABELS[1], 1: LABELS[0]}
    learner = Linear(3)
    learner.config.id2label = names
    trainer = DistillationTrainer(
        learner,
        arguments(tmp_path, max_steps=1, learning_rate=0.0, logging_steps=1),
        train_dataset=rows,
        teachers=teachers,
        weighting="fixed:0.5,0.3,0.2",
    )
    trainer.train()
    x, losses = torch.tensor(np.stack([row["x"] for row in rows])), []
    with torch.no_grad():
        own, said = learner(x).logits.double().numpy(), [one(x).logits.double().numpy() for one in teachers]
    for place in range(8):
        first = np.stack([said[0][place][:2], said[1][place][:2], said[2][place][::-1]])
        last = np.stack([said[0][place][2:], said[1][place][2:]])
        nan = np.full(3, np.nan)
        both = by_hand(own[place][:2], first, np.array([0.5, 0.3, 0.2]), nan[:2], 1.0)
        losses.append((2 * both + by_hand(own[place][2:], last, np.array([0.625, 0.375]), nan[:1], 1.0)) / 3)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_a_label_that_the_chosen_teacher_lacks_is_taught_by_those_that_have_it_and_are_there():
    covers = torch.tensor([[True, True], [True, True], [True, False]])
    logits = torch.tensor([[[0.0, 2.0], [0.0, -50.0], [0.0, 7.0]]])
    told = State(teacher_logits=logits, teacher_mask=torch.tensor([[True, False, True]]))
    kind, student = MultiLabelClassification(covers), torch.tensor([[0.0, 0.5]])
    state = kind.state(told, student, None)
    taught = mixture(Fixed(torch.tensor([0.0, 0.0, 1.0])), state)
    by_the_first = by_hand(np.array([0.5]), np.array([[2.0]]), np.array([1.0]), [np.nan], 1.0)
    assert kind.losses(student, state, taught, LossSettings()).item() == pytest.approx(by_the_first / 2, rel=1e-5)


def test_a_collator_of_ones_own_may_make_the_labels_what_they_are(tmp_path):
    """Rows with lists of integers look like tokens until there is a batch."""
    rows = [row | {"labels": [int(y) for y in row["labels"]]} for row in rows_of("multi-label classification")]

    def collate(batch):
        x, labels = (torch.tensor(np.stack([row[name] for row in batch])) for name in ("x", "labels"))
        return {"x": x, "labels": labels.float()}

    trainer = trainer_of("multi-label classification", "hedge", tmp_path, rows=rows, data_collator=collate)
    trainer.train()
    assert trainer.weighting.own.gains.shape == (4, TEACHERS)
    assert trainer.weighting.own.counts.sum() >= 8


def test_controls_of_several_labels(policy, tmp_path):
    """The oracle gives an instance the mean over its labels; a shuffle gives whole instances the weights of others."""
    kind, rows = MultiLabelClassification(), rows_of("multi-label classification", 6)
    matrix = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1]], dtype=bool)
    oracle = kind.adapted(Oracle(Knowledge(by="class", groups=LABELS, matrix=matrix)))
    targets = torch.tensor([[1.0, 1, 0], [0, 0, 1], [0, 0, 0]])
    logits = torch.randn(3, TEACHERS, 3, generator=torch.Generator().manual_seed(0))
    state = kind.state(State(teacher_logits=logits), torch.zeros(3, 3), targets)
    expected = torch.tensor([[0.5, 0.25, 0.25], [0, 0, 1], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(mixture(oracle, state).weights, expected)
    assert kind.adapted(Entropy()).requires == frozenset()

    arrays = [np.random.default_rng(k).normal(size=(6, 3)).astype(np.float32) for k in range(TEACHERS)]
    cache = LogitCache(arrays, ["a", "b", "c"])
    shares = {}
    for name in (f"policy:{policy}", f"policy_shuffle:{policy}"):
        trainer = trainer_of("multi-label classification", name, tmp_path, rows=rows, teachers=cache, logging_steps=1)
        trainer.train()
        shares[name.partition(":")[0]] = [trainer.state.log_history[0][f"weight/{n}"] for n in "abc"]
    assert shares["policy"] == pytest.approx(shares["policy_shuffle"], abs=1e-6)  # the same rows, elsewhere
    assert len(set(shares["policy"])) == 3


def test_what_reads_how_sure_teachers_usually_are_is_told_it_of_the_choices_that_it_sees(tmp_path):
    """Also where a cache has measured it of the labels alone."""
    kind = "multi-label classification"
    x = torch.tensor(np.stack([row["x"] for row in rows_of(kind)]))
    with torch.no_grad():
        logits = torch.stack([Linear(3, seed)(x).logits for seed in (1, 2, 3)], 1)
    cache = LogitCache([logits[:, k].numpy() for k in range(3)], ["a", "b", "c"])
    told = []
    for teachers in (None, cache):
        trainer = trainer_of(kind, "policy:auto", tmp_path, teachers=teachers)
        trainer.train()
        expected = usual_sureness(F.pad(logits, (0, 1)))
        torch.testing.assert_close(trainer.usual_sureness(), expected, rtol=1e-5, atol=1e-5)
        told.append(list(trainer.weight_record.sums.sum((0, 1))))
    assert told[0] == pytest.approx(told[1], abs=1e-5)


@pytest.mark.parametrize("weighting", ["fixed:0.5,0.3,0.2", "labels"])
def test_a_regression_is_taught_the_teachers_weighted_mean(weighting, tmp_path):
    """Of one row the number is not known: there all teachers teach even beside labels."""
    rows = rows_of("regression", 8)
    rows[3]["labels"] = np.float32(np.nan)
    trainer = trainer_of("regression", weighting, tmp_path, rows=rows, kd_ratio=0.25, learning_rate=0.0)
    trainer.train()
    x = torch.tensor(np.stack([row["x"] for row in rows]))
    with torch.no_grad():
        own = trainer.model(x).logits[:, 0].double().numpy()
        said = np.stack([Linear(1, seed)(x).logits[:, 0].double().numpy() for seed in (1, 2, 3)])
    truth = np.array([row["labels"] for row in rows], dtype=float)
    to_label = np.where(np.isnan(truth), 0, (own - np.nan_to_num(truth)) ** 2)
    shares = np.array([0.5, 0.3, 0.2]) if ":" in weighting else np.full(3, 1 / 3)
    expected = 0.75 * to_label + 0.25 * (own - shares @ said) ** 2
    if weighting == "labels":
        expected = np.where(np.isnan(truth), expected, to_label)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.mean(), rel=1e-4)


LOW_AND_HIGH = (lambda x: np.minimum(x, 0), lambda x: np.maximum(x, 0))
FAR_AND_NEAR = (lambda x: np.where(abs(x) > 1, x, 0), lambda x: np.where(abs(x) > 1, 0, x))


@pytest.mark.parametrize("experts", [LOW_AND_HIGH, FAR_AND_NEAR])
def test_the_gate_finds_who_is_right_where_and_goes_on_where_it_was_broken_off(experts, tmp_path):
    """Two teachers know parts of the numbers, a third nothing; it is better than each of them, and their mean."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(-2, 2, 4000)
    said = np.stack([*(know(truth) for know in experts), rng.normal(size=4000)], 1)
    said += 0.2 * rng.normal(size=said.shape)
    numbers, targets = torch.tensor(said).float().unsqueeze(-1), torch.tensor(truth).float().unsqueeze(-1)
    gate = Gate(3)
    batches = [State(teacher_logits=numbers[i : i + 32], targets=targets[i : i + 32]) for i in range(0, 3200, 32)]
    assert torch.equal(gate.weights(batches[0]), Uniform().weights(batches[0]))
    for batch in batches:
        gate.update(batch)
    new = State(teacher_logits=numbers[3200:], targets=torch.full_like(targets[3200:], np.nan))

    def error(weights):
        return ((weights.unsqueeze(-1) * numbers[3200:]).sum(1) - targets[3200:]).square().mean().item()

    weights = gate.weights(new)
    alone = [error(torch.eye(3)[k].expand(800, 3)) for k in range(3)]
    assert error(weights) < 0.5 * min(*alone, error(Uniform().weights(new)))
    assert weights[:, 2].mean() < 0.1
    before = gate.state_dict()
    gate.update(new)  # without labels numbers are counted, nothing is learned
    assert gate.state_dict()["table"] == before["table"]
    again = Gate(3)
    again.load_state_dict(before)
    for other in (gate, again):
        other.load_state_dict(before)
        other.update(batches[0])
    assert torch.equal(gate.weights(new), again.weights(new))
    absent = State(
        teacher_logits=numbers[:4].index_fill(1, torch.tensor(1), np.nan),
        teacher_mask=torch.tensor([True, False, True]).expand(4, 3),
    )
    assert (gate.weights(absent)[:, 1] == 0).all()
    with pytest.raises(WeightingError, match=r"table of shape \(2, 5\) for 'gate', got shape \(3, 7\)"):
        Gate(2).load_state_dict(before)

    def run(folder, steps):
        kept = {"save_strategy": "steps", "save_steps": 2, "max_steps": steps}
        return trainer_of("regression", "gate", folder, **kept)

    whole, first = run(tmp_path / "whole", 4), run(tmp_path / "broken", 2)
    whole.train()
    first.train()
    resumed = run(tmp_path / "broken", 4)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(parameters(resumed), parameters(whole))
    assert resumed.weighting.state_dict() == whole.weighting.state_dict()


def test_a_loop_of_ones_own_is_taught_the_same(tmp_path):
    for kind, weighting in (("multi-label classification", CrossEntropy()), ("regression", Uniform())):
        rows, outputs = rows_of(kind, 8), KINDS[kind][1]
        trainer = trainer_of(kind, weighting, tmp_path, rows=rows, kd_ratio=0.5, learning_rate=0.0)
        trainer.train()
        x, labels = (torch.tensor(np.stack([row[name] for row in rows])) for name in ("x", "labels"))
        teaching = torch.stack([Linear(outputs, seed)(x).logits for seed in (1, 2, 3)], 1).detach()
        own = trainer.model(x).logits
        loss = weighted_distillation_loss(own, teaching, weighting, labels, kd_ratio=0.5)
        assert loss.item() == pytest.approx(trainer.state.log_history[0]["loss"], rel=1e-4)
        loss.backward()
    with pytest.raises(WeightingError, match="Entropy' reads the teachers' classes, which regression does not have"):
        weighted_distillation_loss(own, teaching, Entropy(), labels)


@pytest.mark.parametrize(
    ("kind", "change", "error", "message"),
    [
        ("regression", {"temperature": 2.0}, ConfigError, "temperature 2.0 is of classes, and regression has numbers"),
        ("regression", {"mix": "logit"}, ConfigError, "mix 'logit' is of classes, and regression has numbers"),
        ("regression", {"divergence": "mse_centred"}, ConfigError, "'mse_centred' is of classes, and regression"),
        ("regression", {"label_smoothing_factor": 0.1}, ConfigError, "label_smoothing_factor would be ignored"),
        ("multi-label classification", {"divergence": "mse_centred"}, ConfigError, "labels of multi-label"),
        ("multi-label classification", {"labels": 0.5}, ConfigError, "each 0 or 1, or -1 where it is not known, got"),
        ("regression", {"outputs": 3}, ConfigError, "labels are floats of shape (8,), and the student has 3 outputs"),
        ("multi-label classification", {"teacher": "sigmoid"}, TeacherError, "expected log odds of labels from"),
        ("multi-label classification", {"teacher": "regression"}, TeacherError, "got problem_type 'regression'"),
        ("regression", {"weighting": CalibratedUniform(torch.ones(3))}, WeightingError, "the teachers' classes, which"),
        ("token classification", {"teacher": "cache"}, TeacherError, "token classification needs an answer of every"),
    ],
)
def test_what_a_kind_does_not_have_is_refused_by_name(kind, change, error, message, tmp_path):
    rows, outputs, teachers = rows_of(kind), change.get("outputs", KINDS[kind][1]), None
    made = ("labels", "teacher", "weighting", "outputs")
    values = {name: value for name, value in change.items() if name not in made}
    if "labels" in change:
        rows = [row | {"labels": row["labels"] * np.float32(change["labels"])} for row in rows]
    if change.get("teacher") == "sigmoid":
        teachers = [lambda read: Linear(outputs, 1)(read["x"]).logits.sigmoid()]
    elif change.get("teacher") == "regression":
        teachers = [Linear(outputs, 1)]
        teachers[0].config.problem_type = "regression"
    elif change.get("teacher") == "cache":
        teachers = LogitCache([np.eye(ROWS, outputs, dtype=np.float32)], ["a"])
    chosen = change.get("weighting", "uniform")
    with pytest.raises(error, match=re.escape(message)):
        trainer_of(kind, chosen, tmp_path, rows=rows, teachers=teachers, outputs=outputs, **values).train()


@pytest.mark.parametrize("kind", ["multi-label classification", "regression"])
def test_estimators_tell_numbers_and_several_labels(kind, tmp_path):
    """Regressors, and a classifier of every label; both read texts."""
    texts = [" ".join(np.random.default_rng(row).choice(WORDS, 6)) for row in range(40)]
    has = np.array([[word in text.split() for word in LABELS] for text in texts], dtype=np.float32)
    if kind == "regression":
        targets, estimator = has.sum(1), make_pipeline(CountVectorizer(), Ridge()).fit(texts, has.sum(1))
        expected = estimator.predict(texts)[:, None]
    else:
        targets, labels = has, OneVsRestClassifier(LogisticRegression())
        estimator = make_pipeline(CountVectorizer(), labels).fit(texts, has.astype(int))
        expected = np.pad(estimator.decision_function(texts), ((0, 0), (0, 1)))
    tokenizer, seen = tokenizer_for("bert", model_max_length=40), []

    class Seeing(Uniform):
        def weights(self, state):
            seen.append(state.teacher_logits[:, 0].numpy())
            return super().weights(state)

    rows = [{**tokenizer(text), "text": text, "labels": y} for text, y in zip(texts, targets, strict=True)]
    classes = {"num_labels": 1} if kind == "regression" else {}
    DistillationTrainer(
        network("bert", tokenizer, **classes),
        plain_arguments(tmp_path, max_steps=1, per_device_train_batch_size=40),
        train_dataset=rows,
        processing_class=tokenizer,
        teachers=[estimator],
        weighting=Seeing(),
    ).train()
    (said,) = seen
    by_first = [np.argsort(values[:, 0]) for values in (said, expected)]
    np.testing.assert_allclose(said[by_first[0]], expected[by_first[1]], atol=1e-4)


def test_pairs_of_texts_are_read_by_teachers_with_tokens_of_their_own(tmp_path):
    """The same teachers behind another tokenizer, which reads the two columns, teach the same."""
    tokenizer, rng = tokenizer_for("bert", model_max_length=40), np.random.default_rng(0)
    rows = []
    for place in range(24):
        first, second = (" ".join(rng.choice(WORDS, 1 + (place + more) % 7)) for more in (0, 3))
        rows.append({**tokenizer(first, second), "premise": first, "hypothesis": second, "labels": place % 3})
    model = network("bert", tokenizer)
    other, renumbered = renumbered_tokens(tokenizer, model)
    other.model_input_names = tokenizer.model_input_names  # which of the two texts a token is of, too
    students = []
    for teacher in (model, (renumbered, other)):
        trainer = DistillationTrainer(
            student(tokenizer),
            plain_arguments(tmp_path, max_steps=3),
            train_dataset=copy.deepcopy(rows),
            processing_class=tokenizer,
            teachers=[teacher],
            weighting="uniform",
        )
        trainer.train()
        students.append(trainer)
    assert [one.teachers.columns for one in students] == [(), ("premise", "hypothesis")]
    torch.testing.assert_close(*map(parameters, students), rtol=0, atol=1e-4)
