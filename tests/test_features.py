import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlkd.errors import PolicyError
from rlkd.features import (
    LARGEST_LOGIT,
    USUAL_LEAD,
    ObservationConfig,
    logit_spread,
    teacher_features,
    usual_sureness,
)
from rlkd.types import State

EVERYTHING = ObservationConfig(student=True, affinity=True, reliability=True, labelled=True)


def state_of(logits, **fields):
    """A state with every field that features read; ``logits`` (B, K, C)."""
    batch, teachers, classes = logits.shape
    generator = torch.Generator().manual_seed(0)
    return State(
        **{
            "teacher_logits": logits,
            "student_logits": torch.randn(batch, classes, generator=generator),
            "labels": torch.randint(-1, classes, (batch,), generator=generator),
            "affinity": torch.rand(batch, teachers, generator=generator) - 0.5,
            "reliability": (torch.rand(teachers, 2, generator=generator) - 0.5).expand(batch, -1, -1),
            "progress": 0.25,
            **fields,
        }
    )


def test_a_worked_example():
    """Teachers (1/2, 1/4, 1/4), (1/4, 1/2, 1/4), (0.6, 0.2, 0.2); the student is uniform; the label is class 1."""
    logits = torch.tensor([[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.6, 0.2, 0.2]]]).log()
    state = state_of(
        logits + torch.tensor([0.0, 3.0, -2.0]).view(1, 3, 1),  # a constant on all logits of a teacher changes nothing
        student_logits=torch.zeros(1, 3),
        labels=torch.tensor([1]),
        affinity=torch.tensor([[0.5, -0.1, -0.4]]),
        reliability=torch.tensor([[[2.0, 0.1], [1.0, -0.2], [0.0, 0.3]]]),
    )
    features = teacher_features(state, EVERYTHING)
    assert features.shape == (1, 3, EVERYTHING.num_features)
    first = dict(zip(EVERYTHING.feature_names, features[0, 0].tolist(), strict=True))
    spread = math.log(2) * math.sqrt(2) / 3
    # the mean of the other two teachers is (0.425, 0.35, 0.225)
    outlier = 0.5 * math.log(0.5 / 0.425) + 0.25 * math.log(0.25 / 0.35) + 0.25 * math.log(0.25 / 0.225)
    student_kl = math.log(3) - 1.5 * math.log(2)
    assert first == pytest.approx(
        {
            "present": 1.0,
            "max_probability": 0.5,
            "log_odds": 0.0,
            "margin": 0.25,
            "entropy": 1.5 * math.log(2) / math.log(3),
            "logit_spread": spread / (spread + 4),
            "agreement": 0.425 + 0.25 + 0.225,
            "vote_share": 0.5,
            "outlier_kl": outlier / (1 + outlier),
            "student_kl": student_kl / (1 + student_kl),
            "student_vote": 1 / 3,
            "student_entropy": 1.0,
            "student_max_probability": 1 / 3,
            "progress": 0.25,
            "affinity": 0.25,
            "reliability": math.tanh(0.5),  # log odds 2, their mean is 1
            "overconfidence": 0.1,
            "label_probability": 0.25,
        },
        abs=1e-6,
    )
    third = dict(zip(EVERYTHING.feature_names, features[0, 2].tolist(), strict=True))
    assert third["log_odds"] == pytest.approx(math.tanh(math.log(1.5) / 8))
    assert features[0, :, EVERYTHING.feature_names.index("vote_share")].tolist() == [0.5, 0.0, 0.5]


FLOATS = st.one_of(
    st.floats(width=16, allow_nan=False, min_value=-1e4, max_value=1e4),
    st.sampled_from([math.inf, -math.inf, 1e4, -1e4]),
)


@settings(deadline=None, max_examples=150)
@given(
    logits=arrays(np.float16, st.tuples(st.just(2), st.integers(1, 4), st.integers(2, 5)), elements=FLOATS),
    scale=st.sampled_from([1.0, 1e-3, 1e30]),
    data=st.data(),
)
def test_every_feature_is_bounded(logits, scale, data):
    batch, teachers, classes = logits.shape
    half = torch.from_numpy(logits)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=batch * teachers, max_size=batch * teachers)))
    student = torch.from_numpy(data.draw(arrays(np.float16, (batch, classes), elements=FLOATS)))
    for given_logits in (half, half.float() * scale):
        state = state_of(given_logits, teacher_mask=mask.view(batch, teachers), student_logits=student)
        features = teacher_features(state, EVERYTHING)
        assert features.dtype == torch.float32
        assert (features >= -1).all()  # also false for NaN
        assert (features <= 1).all()
        assert (features[~mask.view(batch, teachers)] == 0).all()


def test_nothing_depends_on_the_order_of_teachers_or_classes():
    torch.manual_seed(0)
    state = state_of(3 * torch.randn(16, 4, 5), labels=torch.randint(0, 5, (16,)))
    features = teacher_features(state, EVERYTHING)
    teachers = torch.tensor([2, 0, 3, 1])
    moved = state_of(
        state.teacher_logits[:, teachers],
        labels=state.labels,
        affinity=state.affinity[:, teachers],
        reliability=state.reliability[:, teachers],
    )
    assert torch.allclose(teacher_features(moved, EVERYTHING), features[:, teachers], atol=1e-6)
    classes = torch.tensor([4, 2, 0, 1, 3])
    renamed = state_of(
        state.teacher_logits[..., classes],
        student_logits=state.student_logits[:, classes],
        labels=classes.argsort()[state.labels],
    )
    assert torch.allclose(teacher_features(renamed, EVERYTHING), features, atol=1e-6)


RELATIVE = ObservationConfig(relative=True)


def test_seen_as_relative_teachers_have_no_scale():
    """Whatever each is multiplied by; for those that are usually two nats ahead, nothing changes."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(64, 3, 5)
    usual = usual_sureness(logits)
    state = State(teacher_logits=logits, sureness=usual.expand(64, 3))
    features = teacher_features(state, RELATIVE)
    scales = torch.tensor([0.2, 1.0, 7.0])
    scaled = scales[:, None] * logits
    assert torch.allclose(usual_sureness(scaled), scales * usual, rtol=1e-6)
    louder = State(teacher_logits=scaled, sureness=usual_sureness(scaled).expand(64, 3))
    assert torch.allclose(teacher_features(louder, RELATIVE), features, atol=1e-5)
    assert not torch.allclose(teacher_features(louder, ObservationConfig()), features, atol=0.1)
    alike = State(teacher_logits=logits, sureness=torch.full((64, 3), USUAL_LEAD))
    assert torch.allclose(teacher_features(alike, RELATIVE), teacher_features(alike, ObservationConfig()), atol=1e-6)


@pytest.mark.parametrize("sureness", [1e-3, 2.0, 40.0])
def test_seen_as_relative_teachers_have_no_origin(sureness):
    """Log probabilities of long texts lie at thousands below zero: scaled up, they must not lose their differences."""
    logits = torch.randint(-40, 40, (64, 3, 5)).float() / 8
    near, far = (
        State(teacher_logits=logits + origin, sureness=torch.full((64, 3), sureness)) for origin in (0.0, -65536.0)
    )
    assert torch.equal(teacher_features(near, RELATIVE), teacher_features(far, RELATIVE))


def test_usual_sureness_by_hand():
    logits = torch.tensor([[[3.0, 1.0, 0.0], [0.0, 0.0, 0.0]], [[0.0, 2.0, -math.inf], [5.0, 0.0, 4.5]]])
    assert usual_sureness(logits).tolist() == [2.0, 0.25]
    silent = State(teacher_logits=logits[:, 1:], sureness=torch.zeros(2, 1))
    assert teacher_features(silent, RELATIVE).abs().max() <= 1  # of who is never sure nothing is blown up without end
    with pytest.raises(PolicyError, match="reads 'sureness', the state has none"):
        teacher_features(State(teacher_logits=logits), RELATIVE)


def test_what_is_not_relative_is_written_down_as_it_always_was():
    assert "relative" not in ObservationConfig().to_dict()
    assert ObservationConfig.from_dict(RELATIVE.to_dict()) == RELATIVE
    assert RELATIVE.requires == {"sureness"}


def test_an_absent_teacher_is_zero_and_leaves_no_trace_in_the_others():
    torch.manual_seed(0)
    logits = torch.randn(8, 3, 4)
    mask = torch.tensor([True, False, True]).expand(8, 3)
    logits[:, 1], affinity = torch.nan, torch.tensor([[0.2, torch.nan, -0.2]]).expand(8, 3)
    known = torch.tensor([[1.0, 0.1], [3.0, 0.2], [0.5, -0.1]]).expand(8, 3, 2)
    given = state_of(logits, teacher_mask=mask, affinity=affinity, reliability=known)
    features = teacher_features(given, EVERYTHING)
    assert (features[:, 1] == 0).all()
    fewer = state_of(logits[:, [0, 2]], affinity=affinity[:, [0, 2]], reliability=known[:, [0, 2]])
    without = teacher_features(fewer, EVERYTHING)
    assert torch.allclose(features[:, [0, 2]], without, atol=1e-6)


def test_a_mask_of_everybody_changes_no_bit():
    torch.manual_seed(0)
    for teachers, classes in ((1, 3), (4, 2), (5, 40)):
        state = state_of(3 * torch.randn(16, teachers, classes))
        masked = replace(state, teacher_mask=torch.ones(16, teachers, dtype=torch.bool))
        assert torch.equal(teacher_features(masked, EVERYTHING), teacher_features(state, EVERYTHING))


@pytest.mark.parametrize("classes", [1, 2, 3, 150, 1000])
@pytest.mark.parametrize(("scale", "centre"), [(1e-3, LARGEST_LOGIT), (1, -30), (100, 3), (1e5, 0), (0, 7)])
def test_the_spread_is_torchs_own_to_the_last_bit(classes, scale, centre):
    logits = centre + scale * torch.randn(50, 4, classes, generator=torch.Generator().manual_seed(classes))
    logits[::7, :, 0] = LARGEST_LOGIT
    assert torch.equal(logit_spread(logits), logits.std(-1, correction=0))


def test_a_single_teacher_agrees_with_itself():
    features = teacher_features(state_of(torch.randn(5, 1, 3)), ObservationConfig())
    names = ObservationConfig().feature_names
    assert (features[..., names.index("vote_share")] == 1).all()
    assert torch.allclose(features[..., names.index("agreement")], torch.ones(5, 1))
    assert torch.allclose(features[..., names.index("outlier_kl")], torch.zeros(5, 1), atol=1e-6)


def test_leading_axes_are_free():
    torch.manual_seed(0)
    flat = state_of(torch.randn(6, 3, 4))
    stacked = State(
        teacher_logits=flat.teacher_logits.view(2, 3, 3, 4),
        student_logits=flat.student_logits.view(2, 3, 4),
        labels=flat.labels.view(2, 3),
        affinity=flat.affinity.view(2, 3, 3),
        reliability=flat.reliability.reshape(2, 3, 3, 2),
        progress=flat.progress,
    )
    assert torch.equal(teacher_features(stacked, EVERYTHING).flatten(0, 1), teacher_features(flat, EVERYTHING))


def test_what_the_observation_reads_is_named():
    assert ObservationConfig().requires == frozenset()
    assert EVERYTHING.requires == {"student_logits", "affinity", "reliability", "labels"}
    assert len(set(EVERYTHING.feature_names)) == EVERYTHING.num_features
    bare = State(teacher_logits=torch.randn(2, 3, 4))
    for field in EVERYTHING.requires:
        switch = {"student_logits": "student", "labels": "labelled"}.get(field, field)
        with pytest.raises(PolicyError, match=field):
            teacher_features(bare, ObservationConfig(**{switch: True}))


@pytest.mark.parametrize("values", [None, [], {"student": True}, {**EVERYTHING.to_dict(), "student": 1}])
def test_a_stored_observation_is_read_strictly(values):
    assert ObservationConfig.from_dict(EVERYTHING.to_dict()) == EVERYTHING
    older = {name: value for name, value in EVERYTHING.to_dict().items() if name != "reliability"}
    assert ObservationConfig.from_dict(older) == replace(EVERYTHING, reliability=False)
    with pytest.raises(PolicyError, match="observation"):
        ObservationConfig.from_dict(values)
