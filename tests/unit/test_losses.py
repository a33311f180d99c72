"""The focal loss against a slow reference and against torch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainwire_server.training.losses import focal_loss, mixed_focal_loss, plain_loss

torch.set_num_threads(1)

seeds = st.integers(0, 2**32 - 1)
smoothings = st.floats(0, 0.5)


def draw(seed: int, n: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and weights, in float64."""
    rng = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(n, classes, generator=rng, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=rng)
    return logits, labels, torch.rand(classes, generator=rng, dtype=torch.float64) + 0.05


def slow_focal_loss(
    logits: Tensor, labels: Tensor, weights: Tensor, gamma: float, smoothing: float
) -> float:
    above = below = 0.0
    for z, y in zip(logits.tolist(), labels.tolist(), strict=True):
        total = sum(math.exp(v) for v in z)
        p = [math.exp(v) / total for v in z]
        entropy = 0.0
        for c in range(len(z)):
            q = (1 - smoothing) * (c == y) + smoothing / len(z)
            entropy -= float(weights[c]) * q * math.log(p[c])
        above += max(1 - p[y], 2.2e-16) ** gamma * entropy
        below += float(weights[y])
    return above / below


@given(seeds, st.integers(1, 9), st.integers(2, 6), st.floats(0, 10), smoothings)
def test_focal_loss_is_what_the_formula_says(
    seed: int, n: int, classes: int, gamma: float, smoothing: float
) -> None:
    logits, labels, weights = draw(seed, n, classes)
    above, below = focal_loss(logits, labels, weights, gamma, smoothing)
    expected = slow_focal_loss(logits, labels, weights, gamma, smoothing)
    assert float(above / below) == pytest.approx(expected, rel=1e-9, abs=1e-14)


@given(seeds, st.integers(1, 9), st.integers(2, 6), smoothings)
def test_without_focus_it_is_torchs_cross_entropy(
    seed: int, n: int, classes: int, smoothing: float
) -> None:
    logits, labels, weights = draw(seed, n, classes)
    above, below = focal_loss(logits, labels, weights, 0.0, smoothing)
    expected = cross_entropy(logits, labels, weights, label_smoothing=smoothing)
    torch.testing.assert_close(above / below, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0, 2.5])
def test_gradients_stay_finite_where_the_prediction_is_perfect(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 0.0]], requires_grad=True)
    above, below = focal_loss(logits, torch.tensor([0, 1]), torch.ones(2), gamma, 0.1)
    torch.autograd.backward(above / below)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[1].abs().sum() > 0


@given(seeds, st.integers(1, 8))
def test_micro_batches_add_up_to_the_whole_batch(seed: int, cut: int) -> None:
    logits, labels, weights = draw(seed, 9, 3)
    whole = focal_loss(logits, labels, weights, 2.0, 0.1)
    parts = [
        focal_loss(z, y, weights, 2.0, 0.1)
        for z, y in ((logits[:cut], labels[:cut]), (logits[cut:], labels[cut:]))
    ]
    for one, other in zip(whole, map(sum, zip(*parts, strict=True)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


@given(seeds, st.integers(1, 9), st.integers(2, 6), st.floats(0, 5), smoothings)
def test_the_loss_of_mixtures_is_that_of_both_labels_by_their_shares(
    seed: int, n: int, classes: int, gamma: float, smoothing: float
) -> None:
    logits, labels, weights = draw(seed, n, classes)
    _, others, _ = draw(seed + 1, n, classes)
    shares = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    above, below = mixed_focal_loss(logits, labels, others, shares, weights, gamma, smoothing)
    expected = [0.0, 0.0]
    for i, share in enumerate(shares.tolist()):
        for part, label in ((share, labels[i : i + 1]), (1 - share, others[i : i + 1])):
            weight = float(weights[label])
            loss = slow_focal_loss(logits[i : i + 1], label, weights, gamma, smoothing)
            expected[0] += part * loss * weight
            expected[1] += part * weight
    assert float(above) == pytest.approx(expected[0], rel=1e-9, abs=1e-14)
    assert float(below) == pytest.approx(expected[1], rel=1e-12)


@given(seeds, st.floats(0, 1))
def test_with_one_share_and_equal_weights_losses_mix_as_in_the_paper(
    seed: int, share: float
) -> None:
    logits, labels, _ = draw(seed, 7, 4)
    others = labels.roll(1)
    shares, weights = torch.full((7,), share, dtype=torch.float64), torch.ones(4).double()
    above, below = mixed_focal_loss(logits, labels, others, shares, weights, 0.0, 0.1)
    one, other = (cross_entropy(logits, y, label_smoothing=0.1) for y in (labels, others))
    torch.testing.assert_close(above / below, share * one + (1 - share) * other)


@given(seeds, st.integers(1, 9))
def test_plain_loss_is_torchs_mean(seed: int, n: int) -> None:
    logits, labels, _ = draw(seed, n, 4)
    above, below = plain_loss(logits, labels)
    torch.testing.assert_close(above / below, cross_entropy(logits, labels), rtol=1e-12, atol=0)
