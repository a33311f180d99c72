"""Under-sampling, oversampling and class weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from trainwire.v1 import training_pb2
from trainwire_server.training.balancing import (
    class_weights,
    count_classes,
    oversample,
    undersample,
)

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


@given(counts_lists, st.floats(0.01, 1), st.integers(0, 2**32 - 1))
def test_every_class_shrinks_to_the_smallest_by_the_ratio(
    counts: list[int], ratio: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    kept = undersample(labels, ratio, rng).tolist()
    smallest = min(n for n in counts if n)
    expected = [min(n, round(smallest / ratio)) for n in counts]
    assert [sum(labels[i] == c for i in kept) for c in range(len(counts))] == expected
    assert kept == sorted(set(kept))


def test_ratio_one_leaves_as_many_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [50, 7, 20])
    kept = undersample(labels, 1.0, np.random.default_rng(0))
    assert count_classes(labels[kept], 3).tolist() == [7, 7, 7]


def test_a_tiny_ratio_leaves_everything() -> None:
    labels = np.repeat([0, 1], [50, 7])
    assert undersample(labels, 5e-324, np.random.default_rng(0)).tolist() == list(range(57))


def test_the_seed_decides_what_is_left_out() -> None:
    labels = np.repeat([0, 1], [50, 20])
    one, same, other = (undersample(labels, 1.0, np.random.default_rng(s)) for s in (1, 1, 2))
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()
    # Every sample of the large class has the same chance.
    draws = [undersample(labels, 1.0, np.random.default_rng(s)) for s in range(200)]
    chosen = np.bincount(np.concatenate(draws), minlength=70)
    assert (chosen[50:] == 200).all()
    assert 50 < chosen[:50].min() < chosen[:50].max() < 110


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
