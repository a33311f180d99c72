"""Oversampling and class weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from trainwire.v1 import training_pb2
from trainwire_server.training.balancing import class_weights, count_classes, oversample

METHODS = [number for number in training_pb2.ClassWeightMethod.values() if number]
counts_lists = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any)


@given(counts_lists, st.floats(0.01, 1), st.integers(0, 2**32 - 1))
def test_every_class_grows_to_the_ratio_and_evenly(
    counts: list[int], ratio: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    positions = oversample(labels, ratio, rng)
    expected = [max(n, round(ratio * max(counts))) if n else 0 for n in counts]
    assert count_classes(labels[positions], len(counts)).tolist() == expected
    times = np.bincount(positions, minlength=len(labels))
    assert times.min() >= 1
    for c in set(labels.tolist()):
        assert np.ptp(times[labels == c]) <= 1


def test_the_seed_decides_what_is_repeated() -> None:
    labels = np.array([0] * 50 + [1] * 20)
    one, same, other = (oversample(labels, 0.5, np.random.default_rng(s)) for s in (1, 1, 2))
    assert one.tolist() == same.tolist()
    assert sorted(one.tolist()) != sorted(other.tolist())


def test_balanced_weights_are_scikit_learns_at_mean_one() -> None:
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    weights = class_weights(np.array([70, 20, 10]), training_pb2.CLASS_WEIGHT_METHOD_BALANCED)
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-12)


def test_square_root_and_effective_number_follow_their_formulas() -> None:
    counts = np.array([50_000, 400, 3])
    square = np.sqrt(counts.sum() / (3 * counts))
    effective = (1 - 0.9999) / (1 - 0.9999**counts)
    for method, raw in (
        (training_pb2.CLASS_WEIGHT_METHOD_SQRT, square),
        (training_pb2.CLASS_WEIGHT_METHOD_EFFECTIVE_NUMBER, effective),
    ):
        np.testing.assert_allclose(class_weights(counts, method), raw / raw.mean(), rtol=1e-9)


@given(counts_lists, st.sampled_from(METHODS))
def test_weights_have_mean_one_over_the_classes_that_occur(
    counts: list[int], method: training_pb2.ClassWeightMethod.ValueType
) -> None:
    weights = class_weights(np.array(counts), method)
    occurring = np.array(counts) > 0
    assert weights[occurring].mean() == pytest.approx(1)
    assert (weights[occurring] > 0).all()
    assert (weights[~occurring] == 0).all()


def test_a_method_nobody_wrote_is_refused() -> None:
    with pytest.raises(ValueError, match="class_weight_method"):
        class_weights(np.array([1, 2]), training_pb2.CLASS_WEIGHT_METHOD_UNSPECIFIED)
