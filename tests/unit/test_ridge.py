"""The ridge regression that a linear layer begins at, against scikit-learn and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeClassifierCV
from torch import Tensor

from trainwire.architectures import ridge
from trainwire.architectures.ridge import ALPHAS, find_scale, fit_ridge

Sample = tuple[Tensor, Tensor]
BALANCED = {0: 0.4, 1: 1.1, 2: 2.5}


def draw(samples: int, width: int, classes: int = 3, noise: float = 1.0) -> Sample:
    """Features, float32, of which some tell the classes apart, and labels."""
    generator = torch.Generator().manual_seed(samples)
    labels = torch.arange(samples) % classes
    features = noise * torch.randn(samples, width, generator=generator)
    features[:, :classes] += torch.nn.functional.one_hot(labels, classes)
    return features + 5.0, labels


def ones(labels: Tensor) -> Tensor:
    return torch.ones(len(labels), dtype=torch.float64)


def weigh(labels: Tensor, by_class: dict[int, float]) -> Tensor:
    """Weight of each sample, their mean 1."""
    weights = torch.tensor([by_class[int(label)] for label in labels], dtype=torch.float64)
    return weights / weights.mean()


@pytest.mark.parametrize(("samples", "width"), [(40, 600), (60, 60), (90, 7), (5, 300)])
@pytest.mark.parametrize("by_class", [None, BALANCED], ids=["plain", "weighted"])
def test_the_solution_is_that_of_scikit_learn(
    samples: int, width: int, by_class: dict[int, float] | None
) -> None:
    features, labels = draw(samples, width)
    weights = weigh(labels, by_class) if by_class else ones(labels)
    expected = RidgeClassifierCV(alphas=ALPHAS)
    expected.fit(features.double().numpy(), labels.numpy(), sample_weight=weights.numpy())
    # Of any scale.
    found = fit_ridge(features, labels, 7 * weights, 3)
    assert found.alpha == expected.alpha_
    np.testing.assert_allclose(found.coefficients.numpy(), expected.coef_, atol=1e-9)
    np.testing.assert_allclose(found.intercepts.numpy(), expected.intercept_, atol=1e-8)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    features, labels = draw(40, 100)
    features, labels = features[:31], labels[:31].clamp(max=1)
    counts = labels.bincount()
    weights = (1 / counts.double())[labels]
    expected = RidgeClassifierCV(alphas=ALPHAS, class_weight="balanced")
    expected.fit(features.double().numpy(), labels.numpy())
    found = fit_ridge(features, labels, weights, 2)
    assert found.alpha == expected.alpha_
    np.testing.assert_allclose(found.coefficients[1].numpy(), expected.coef_, atol=1e-9)
    np.testing.assert_allclose(found.coefficients[0].numpy(), -expected.coef_, atol=1e-9)


def test_the_strength_changes_with_the_noise() -> None:
    strengths = {
        fit_ridge(*sample, ones(sample[1]), 3).alpha
        for sample in (draw(30, 5, noise=0.01), draw(30, 5), draw(60, 600), draw(90, 300, noise=5))
    }
    assert len(strengths) >= 3


@pytest.mark.parametrize(("samples", "width"), [(20, 200), (30, 4)])
@pytest.mark.parametrize("block", [1, 6])
@pytest.mark.parametrize("by_class", [None, BALANCED], ids=["plain", "weighted"])
def test_scores_of_samples_left_out_are_those_of_leaving_them_out(
    samples: int, width: int, block: int, by_class: dict[int, float] | None
) -> None:
    features, labels = draw(samples, width)
    weights = weigh(labels, by_class) if by_class else ones(labels)
    found = fit_ridge(features, labels, weights, 3, block)
    targets = 2 * np.eye(3)[labels.numpy()] - 1
    values = features.double().numpy()
    for first in range(0, samples, block):
        left_out = np.arange(first, min(first + block, samples))
        others = np.setdiff1d(np.arange(samples), left_out)
        model = Ridge(alpha=found.alpha)
        model.fit(values[others], targets[others], sample_weight=weights.numpy()[others])
        expected = model.predict(values[left_out])
        np.testing.assert_allclose(found.left_out[left_out].numpy(), expected, atol=1e-8)


def test_strength_is_chosen_without_the_neighbours_that_are_nearly_the_same() -> None:
    # Labels are noise: what is best is to say nothing, which twins hide from leaving out one.
    features = torch.randn(30, 200, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(3, (30,), generator=torch.Generator().manual_seed(1))
    twins = features.repeat_interleave(2, dim=0), labels.repeat_interleave(2)
    assert fit_ridge(*twins, ones(twins[1]), 3).alpha == ALPHAS[0]
    assert fit_ridge(*twins, ones(twins[1]), 3, 2).alpha >= 100


def test_a_class_without_samples_is_the_least_likely_one() -> None:
    features, labels = draw(30, 50, classes=2)
    found = fit_ridge(features, labels, ones(labels), 3)
    assert found.coefficients[2].abs().max() < 1e-12
    assert found.intercepts[2] == pytest.approx(-1)


def test_samples_seen_in_blocks_give_the_solution_of_all_features_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, labels = draw(20, 50)
    whole = fit_ridge(features, labels, ones(labels), 3)
    monkeypatch.setattr(ridge, "_FEATURES_AT_A_TIME", 7)
    in_blocks = fit_ridge(features, labels, ones(labels), 3)
    torch.testing.assert_close(in_blocks.coefficients, whole.coefficients)
    torch.testing.assert_close(in_blocks.intercepts, whole.intercepts)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 12),
    width=st.integers(1, 12),
    classes=st.integers(2, 4),
    constant=st.booleans(),
    twins=st.booleans(),
    one_class=st.booleans(),
    block=st.integers(1, 12),
)
def test_nothing_that_is_drawn_gives_a_number_that_is_none(
    samples: int,
    width: int,
    classes: int,
    constant: bool,
    twins: bool,
    one_class: bool,
    block: int,
) -> None:
    torch.set_num_threads(1)
    features, labels = draw(samples, max(width, classes), classes)
    if constant:
        features = torch.full_like(features, 1e4)
    if twins:
        features, labels = features.repeat(2, 1), labels.repeat(2)
    if one_class:
        labels = torch.zeros_like(labels)
    weights = torch.linspace(1e-4, 10, len(labels), dtype=torch.float64)
    found = fit_ridge(features, labels, weights, classes, block)
    scale = find_scale(found.left_out, labels, weights)
    for tensor in (found.coefficients, found.intercepts, found.left_out):
        assert tensor.isfinite().all()
        assert tensor.abs().max() < 1e3
    assert 0.01 <= scale <= 100


# ------------------------------------------------------------------------ probabilities


def entropy(scores: Tensor, labels: Tensor, weights: Tensor, factor: float) -> float:
    """Cross-entropy by its definition, every class seen once more."""
    count, classes = scores.shape
    logs = torch.log_softmax(factor * scores, dim=1)
    total = 0.0
    for row in range(count):
        for label in range(classes):
            share = (count + 1 if label == labels[row] else 1) / (count + classes)
            total -= float(weights[row] * share * logs[row, label])
    return total


def test_the_scale_has_the_lowest_cross_entropy() -> None:
    features, labels = draw(60, 20)
    weights = weigh(labels, BALANCED)
    scores = fit_ridge(features, labels, weights, 3).left_out
    scale = find_scale(scores, labels, weights)
    assert 0.1 < scale < 10
    lowest = entropy(scores, labels, weights, scale)
    assert lowest < entropy(scores, labels, weights, 1.01 * scale)
    assert lowest < entropy(scores, labels, weights, scale / 1.01)
    assert scale != pytest.approx(find_scale(scores, labels, ones(labels)), rel=0.02)


def test_scores_that_are_always_right_have_a_scale_that_grows_with_their_number() -> None:
    scales = []
    for count in (4, 40, 400):
        labels = torch.arange(count) % 2
        scores = 2 * torch.nn.functional.one_hot(labels, 2).double() - 1
        scales.append(find_scale(scores, labels, ones(labels)))
    # Of n samples, right or wrong, a probability of (n + 1) / (n + 2).
    assert scales == pytest.approx([math.log(count + 1) / 2 for count in (4, 40, 400)])


@pytest.mark.parametrize(
    ("scores", "expected"), [([[-1.0, 1.0], [1.0, -1.0]], 0.01), ([[0.0, 0.0], [0.0, 0.0]], None)]
)
def test_scores_that_are_wrong_or_say_nothing_have_a_scale(
    scores: list[list[float]], expected: float | None
) -> None:
    labels = torch.arange(2)
    scale = find_scale(torch.tensor(scores, dtype=torch.float64), labels, ones(labels))
    assert 0.01 <= scale <= 100
    assert expected is None or scale == pytest.approx(expected)
