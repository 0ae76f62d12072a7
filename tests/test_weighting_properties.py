"""What holds for every weighting of the registry: on the simplex, and symmetric, whatever scale, mask and type."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd.data.task import UNLABELLED
from rlkd.features import ObservationConfig
from rlkd.types import State
from rlkd.weighting import Policy, build_weighting, named_weighting, weighting_names
from rlkd.weighting.checks import check_weights
from rlkd.weighting.controls import PolicyMean
from rlkd.weighting.fitted import CalibratedUniform
from rlkd.weighting.fixed import Fixed, RandomTeacher
from rlkd.weighting.heuristic import Oracle
from rlkd.weighting.online import Hedge

TEACHERS, CLASSES = 3, 6
FREE = (
    "uniform",
    "entropy",
    "ebkd",
    "max_probability",
    "agreement",
    "aekd_batch_mean",
    "aekd_flat",
    "govern",
    "cross_entropy",
    "ca_mkd",
    "mt_bert",
    "mt_bert_raw",
    *({"meta_kd"} & set(weighting_names())),
    "best_per_instance",
    "router",
    "auto",
    "policy",
    "policy_shuffle",
)
"""They know no teacher by its place, and no class."""
TIED = tuple(name for name in ("rl_kd", "mtkd_rl") if name in weighting_names())
"""Their units belong to places: no symmetry over teachers."""
OF_CLASSES = tuple(name for name in weighting_names() if name != "gate")
SCALES = (0.0, 1e-3, 1.0, 10.0, 40.0, 100.0, 1e3, 1e4)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
KINDS = ("spread", "tied", "sure", "copies", "followed")


@pytest.fixture(scope="module")
def built(task, cache, tmp_path_factory):
    """Every weighting of the registry, and a policy that observes student and label."""
    folder = tmp_path_factory.mktemp("policy")
    Policy.create(ObservationConfig(), training={}, seed=3).save_pretrained(folder)
    arguments = {"fixed": "0.5,0.3,0.2", **dict.fromkeys(("policy", "policy_mean", "policy_shuffle"), folder)}
    specs = {name: f"{name}:{arguments[name]}" if name in arguments else name for name in OF_CLASSES}
    found = {name: build_weighting(spec, task, cache) for name, spec in specs.items() if name not in TIED}
    generator = torch.Generator().manual_seed(0)
    found["hedge"].gains = 20 * torch.rand(CLASSES, TEACHERS, generator=generator, dtype=torch.float64)
    found["hedge"].counts += 9
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in TIED:
            found[name] = named_weighting(name)("abc", CLASSES)
            if name == "rl_kd":
                torch.nn.init.normal_(found[name].weight)
    assert found.keys() == set(OF_CLASSES), "a weighting that was added is held to the properties too"
    return found


def logits_of(rng, kind, scale, shape):
    """Logits of one instance on a grid of 1 / 256: what the tests add to them leaves no rounding in float32."""
    values = scale * rng.standard_normal(shape)
    if kind == "tied":
        values = scale * rng.integers(-1, 2, shape)
    elif kind == "sure":
        values = scale * np.eye(shape[-1])[rng.integers(shape[-1], size=shape[:-1])]
    elif kind == "copies":
        values = np.broadcast_to(values[:1], shape)
    return np.clip(np.round(values * 256) / 256, -3e4, 3e4)


def state_of(case, teachers=TEACHERS, classes=CLASSES, masked=False):
    """A batch of one kind and scale, or with a row of every kind at every scale."""
    combinations, dtype, seed = case
    rng = np.random.default_rng(seed)
    rows = [combinations[n % len(combinations)] for n in range(max(len(combinations), 8))]
    logits = np.stack([logits_of(rng, kind, scale, (teachers, classes)) for kind, scale in rows])
    student = np.stack([logits_of(rng, "spread", min(scale, 50.0), (1, classes))[0] for _, scale in rows])
    followed = np.array([kind == "followed" for kind, _ in rows])
    mask = rng.random((len(rows), teachers)) < 0.6
    mask[np.arange(len(rows)), np.arange(len(rows)) % teachers] = True
    return State(
        teacher_logits=torch.from_numpy(logits).to(dtype),
        teacher_mask=torch.from_numpy(mask) if masked else None,
        student_logits=torch.from_numpy(np.where(followed[:, None], logits[:, 0], student)).float(),
        labels=torch.from_numpy(rng.integers(UNLABELLED, classes, len(rows))),
        ids=torch.from_numpy(rng.permutation(10_000)[: len(rows)]),
        domains=torch.from_numpy(rng.integers(3, size=len(rows))),
        sureness=torch.from_numpy(2.0 ** rng.integers(-2, 4, teachers)).float().expand(len(rows), -1),  # scales exactly
        progress=0.5,
        temperature=float(rng.choice([1.0, 4.0])),
    )


def cases(dtypes=DTYPES, kinds=KINDS):
    """Kinds and scales of the rows of a batch, their type, and the seed of the rest."""
    every = [(kind, scale) for kind in kinds for scale in SCALES]
    combinations = st.one_of(st.just(every), st.sampled_from(every).map(lambda one: [one]))
    return st.tuples(combinations, st.sampled_from(dtypes), st.integers(0, 2**20))


def sizes(name):
    """How many teachers and classes a weighting can be shown."""
    free = name in FREE
    return st.tuples(st.integers(1, 6), st.integers(2, 9)) if free else st.just((TEACHERS, CLASSES))


def seen(weighting, order):
    """The weighting as it would have been built for the teachers in another order."""
    moved = copy.copy(weighting)
    for kind, field in (
        (Fixed, "shares"),
        (Oracle, "matrix"),
        (PolicyMean, "mean"),
        (CalibratedUniform, "temperatures"),
    ):
        if isinstance(weighting, kind):
            setattr(moved, field, getattr(weighting, field)[order])
    if isinstance(weighting, RandomTeacher):
        moved.teacher_names = tuple(weighting.teacher_names[k] for k in order)
    if isinstance(weighting, Hedge):
        moved.gains = weighting.gains[:, order]
    return moved


def rows_of(state, order):
    tensors = {name: getattr(state, name) for name in state.available()}
    return dataclasses.replace(
        state, **{name: value[order] for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    )


def teachers_of(state, order):
    mask = None if state.teacher_mask is None else state.teacher_mask[:, order]
    return dataclasses.replace(
        state, teacher_logits=state.teacher_logits[:, order], teacher_mask=mask, sureness=state.sureness[:, order]
    )


def near(name):
    """How far rounding may move a weight: a network that has learned to tell teachers apart is steep."""
    return 1e-4 if name == "auto" else 1e-5


def check_form_and_order(name, weighting, case, size, masked):
    state = state_of(case, *size, masked=masked)
    weights = weighting.weights(state)
    # on the simplex
    assert weights.shape == state.present.shape
    assert weights.dtype == torch.float32
    assert not weights.requires_grad
    assert (weights >= 0).all()
    assert (weights[~state.present] == 0).all()
    total = weights.double().sum(-1)
    alone = (total == 0) & (state.labels >= 0) & (name in ("rl_kd", "labels"))
    assert (((total - 1).abs() < 1e-6) | alone).all(), total
    check_weights(weights, state, name)
    # instances in another order: rows in that order
    rng = np.random.default_rng(case[-1])
    order = torch.from_numpy(rng.permutation(len(weights)))
    assert torch.allclose(weighting.weights(rows_of(state, order)), weights[order], atol=1e-5)
    if name in TIED:
        return
    # teachers in another order: columns in that order
    order = torch.from_numpy(rng.permutation(size[0]))
    moved = seen(weighting, order).weights(teachers_of(state, order))
    assert torch.allclose(moved, weights[:, order], atol=near(name)), (moved - weights[:, order]).abs().max()


def check_shifts(name, weighting, case, size, masked):
    """What is added to all of a teacher's logits changes nothing: a softmax does not see it."""
    state = state_of(case, *size, masked=masked)
    rng = np.random.default_rng(case[-1])
    shift = torch.from_numpy(rng.integers(-64, 65, (len(state.ids), size[0], 1)))
    shifted = dataclasses.replace(state, teacher_logits=state.teacher_logits + shift)
    assert torch.equal(shifted.teacher_logits.double() - shift, state.teacher_logits.double())
    first, second = weighting.weights(state), weighting.weights(shifted)
    assert torch.allclose(first, second, atol=near(name)), (first - second).abs().max()


def check_copies(name, weighting, case, size, masked):
    """The same teacher several times over, each with something added: nobody is preferred."""
    state = state_of(case, *size, masked=masked)
    shift = torch.from_numpy(np.random.default_rng(case[-1]).integers(-64, 65, (len(state.ids), size[0], 1)))
    same = torch.ones_like(state.sureness)
    weights = weighting.weights(dataclasses.replace(state, teacher_logits=state.teacher_logits + shift, sureness=same))
    expected = state.present / state.present.sum(-1, keepdim=True)
    assert torch.allclose(weights, expected, atol=1e-5), (weights - expected).abs().max()


EXACT = (torch.float32, torch.float64)
PROPERTIES = {
    "form and order": (check_form_and_order, cases(), OF_CLASSES),
    # mtkd_rl observes the logits as such, in its paper too
    "shifts": (check_shifts, cases(EXACT), tuple(name for name in OF_CLASSES if name != "mtkd_rl")),
    # policy_shuffle takes weights from rows where other teachers were absent
    "copies": (check_copies, cases(EXACT, ("copies",)), tuple(name for name in FREE if name != "policy_shuffle")),
}


def hold(kind, name, built, examples):
    check, drawn, _ = PROPERTIES[kind]

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(drawn, sizes(name), st.booleans())
    def held(case, size, masked):
        check(name, built[name], case, size, masked)

    held()


NAMED = [(kind, name) for kind, (_, _, names) in PROPERTIES.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), NAMED)
def test_every_weighting_is_on_the_simplex_and_symmetric(kind, name, built):
    hold(kind, name, built, 6)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), NAMED)
def test_every_weighting_is_on_the_simplex_and_symmetric_at_length(kind, name, built):
    hold(kind, name, built, 300)
