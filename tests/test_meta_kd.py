"""Meta-KD: prototype scores and expertise by hand, false domains, students of each domain, and what is refused."""

import numpy as np
import pytest
import torch

from rlkd.errors import ConfigError, TaskError, UnknownNameError
from rlkd.prototypes import PrototypeSettings, prototype_scores
from rlkd.types import State
from rlkd.weighting import mixture
from rlkd.weighting.meta_kd import DomainExpertise, domain_expertise

# --- prototype scores

VECTORS = np.array([[1, 0], [0, 1], [-1, 0], [3, 4], [-4, 3], [-4, -3]], dtype=np.float32)
LABELS = np.array([0, 0, 1, 0, 1, 1])
DOMAINS = np.array([0, 0, 0, 1, 1, 1])
ALL = np.arange(6)
HALF = 0.5**0.5


def test_class_wise_scores_of_six_vectors_by_hand():
    # prototypes: domain 0 (1/2, 1/2) and (-1, 0), domain 1 (3, 4) and (-4, 0)
    scores = prototype_scores(VECTORS, LABELS, DOMAINS, rows=ALL)
    expected = [(HALF + 0.6) / 2, (HALF + 0.8) / 2, 1.0, (1 + 1.4 * HALF) / 2, 0.8, 0.8]
    np.testing.assert_allclose(scores, expected, atol=1e-7)
    own = prototype_scores(VECTORS, LABELS, DOMAINS, rows=ALL, settings=PrototypeSettings(own_share=0.8))
    assert own[0] == pytest.approx(0.8 * HALF + 0.2 * 0.6)


def test_domain_wise_scores_of_six_vectors_by_hand():
    # prototypes: (0, 1/3) and (-5/3, 4/3)
    scores = prototype_scores(VECTORS, LABELS, DOMAINS, rows=ALL, settings=PrototypeSettings(kind="domain"))
    root = 41**0.5
    expected = [-5 / root, 1 + 4 / root, 5 / root, 1 / (5 * root) + 0.8, 32 / (5 * root) + 0.6, 8 / (5 * root) - 0.6]
    np.testing.assert_allclose(scores, np.array(expected) / 2, atol=1e-7)


def test_kinds_differ_in_how_three_domains_are_averaged():
    vectors = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    domains, labels = np.arange(3), np.zeros(3, dtype=np.int64)
    by_class = prototype_scores(vectors, labels, domains, rows=domains)
    by_domain = prototype_scores(vectors, labels, domains, rows=domains, settings=PrototypeSettings(kind="domain"))
    # cosines 0 and -1 to the others, or -1 / sqrt(5) to their mean (-1/2, 1)
    assert by_class[0] == pytest.approx(0.5 - 0.25)
    assert by_domain[0] == pytest.approx(0.5 - 0.5 / 5**0.5)


def test_a_domain_without_rows_and_a_lonely_one_have_the_part_that_is_there():
    held_out = prototype_scores(VECTORS, LABELS, DOMAINS, rows=np.arange(3))
    assert held_out[3] == pytest.approx(1.4 * HALF)  # (3, 4) to the one prototype (1/2, 1/2)
    assert held_out[0] == pytest.approx(HALF)


def test_centred_scores_vary_more_where_all_embeddings_point_the_same_way():
    rng = np.random.default_rng(0)
    vectors = 20 + rng.normal(size=(60, 4)) + 2 * np.repeat(np.eye(3, 4), 20, axis=0)
    labels, domains = np.arange(60) % 2, np.repeat(np.arange(3), 20)
    plain, centred = (
        prototype_scores(vectors, labels, domains, rows=np.arange(60), settings=PrototypeSettings(centred=centred))
        for centred in (False, True)
    )
    assert 10 * plain.std() < centred.std()


def test_scores_that_cannot_be_made_are_refused():
    with pytest.raises(TaskError, match="NaN or infinity"):
        prototype_scores(np.full((6, 2), np.nan), LABELS, DOMAINS, rows=ALL)
    with pytest.raises(TaskError, match="a class without any"):
        prototype_scores(VECTORS, LABELS, DOMAINS, rows=np.array([2, 4, 5]))
    with pytest.raises(UnknownNameError, match="kind of prototype 'classes'"):
        PrototypeSettings(kind="classes")
    with pytest.raises(ConfigError, match=r"own_share must lie between 0 and 1, got 1"):
        PrototypeSettings(own_share=1)
    unlabelled = prototype_scores(VECTORS, np.array([0, 0, 1, 0, 1, -1]), DOMAINS, rows=ALL[:5])
    assert np.isnan(unlabelled[5])
    assert np.isfinite(unlabelled[:5]).all()


# --- domain expertise


def logits_of(probabilities: list[float]) -> torch.Tensor:
    """Teachers that give class 0 these probabilities, shape (1, K, 2)."""
    p = torch.tensor([probabilities], dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], dim=-1)


def test_expertise_lies_between_0_2689_and_one_half_at_t_0():
    sure, half, wrong = domain_expertise(logits_of([1 - 1e-9, 0.5, 1e-9]), torch.tensor([0]))[0].tolist()
    assert sure == pytest.approx(0.5)
    assert half == pytest.approx(1 / (1 + np.exp(0.25)))
    assert wrong == pytest.approx(0.2689, abs=5e-5)
    raised = domain_expertise(logits_of([1 - 1e-9]), torch.tensor([0]), torch.tensor([0.8]))
    assert raised.item() == pytest.approx(0.9)


def test_expertise_weights_teachers_and_scales_the_loss_of_its_instance():
    logits = logits_of([1 - 1e-9, 0.5]).float().repeat(2, 1, 1)
    state = State(teacher_logits=logits, labels=torch.tensor([0, 0]), ids=torch.tensor([1, 0]))
    taught = mixture(DomainExpertise(torch.tensor([0.5, -0.5])), state)
    half = 1 / (1 + np.exp(0.25))
    assert taught.weights[0].tolist() == pytest.approx([0.5 / (0.5 + half), half / (0.5 + half)])
    assert taught.scale.tolist() == pytest.approx([0.5 * (0.5 + half) / 2, 1.5 * (0.5 + half) / 2])
