"""What to do about classes of unequal size: leave out or repeat samples, weight the loss."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainwire.v1 import training_pb2

Integers = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]

EFFECTIVE_NUMBER_BETA = 0.9999


def count_classes(labels: Integers, classes: int) -> Integers:
    """Samples of each class, int64 [classes]."""
    return np.bincount(labels, minlength=classes)


def undersample(labels: Integers, ratio: float, rng: np.random.Generator) -> Integers:
    """Positions of `labels` to keep, so that the smallest class is at least `ratio` of every other.

    Every class that occurs shrinks to min(n_c, round(n_min / ratio)), drawn without replacement.

    Args:
        labels: int64 [n], class index of each sample.
        ratio: in (0, 1].
        rng: draws the samples that stay.

    Returns:
        int64 [m <= n], ascending, each position at most once.
    """
    counts = np.bincount(labels)
    # Not rounded to infinity by a tiny ratio: no class is larger than all samples.
    ceiling = round(min(int(counts[counts > 0].min()) / ratio, len(labels)))
    groups = [np.flatnonzero(labels == c) for c in np.flatnonzero(counts)]
    kept = [
        group if len(group) <= ceiling else rng.choice(group, size=ceiling, replace=False)
        for group in groups
    ]
    return np.sort(np.concatenate(kept))


def oversample(labels: Integers, ratio: float, rng: np.random.Generator) -> Integers:
    """Positions of `labels` to train on, so that small classes are at least `ratio` of the largest.

    Every class that occurs grows to max(n_c, round(ratio n_max)): each of its samples as many whole
    times as fit, the rest drawn without replacement, so that no sample is used more than once more
    often than another of its class.

    Args:
        labels: int64 [n], class index of each sample.
        ratio: in (0, 1].
        rng: draws the rest.

    Returns:
        int64 [m >= n], each position at least once.
    """
    counts = np.bincount(labels)
    floor = round(ratio * int(counts.max()))
    groups = [np.flatnonzero(labels == c) for c in np.flatnonzero(counts)]
    return np.concatenate([_grow(group, max(len(group), floor), rng) for group in groups])


def _grow(positions: Integers, size: int, rng: np.random.Generator) -> Integers:
    repeats, rest = divmod(size, len(positions))
    drawn = rng.choice(positions, size=rest, replace=False)
    return np.concatenate([np.tile(positions, repeats), drawn])


def class_weights(counts: Integers, method: training_pb2.ClassWeightMethod.ValueType) -> Reals:
    """Weight of each class in the loss, of mean 1 over the classes that occur; 0 for the others.

    BALANCED is N / (K n_c), as scikit-learn's ``class_weight="balanced"``; SQRT its square root;
    EFFECTIVE_NUMBER (1 - b) / (1 - b^n_c) with b = 0.9999 (Cui et al. 2019, eq. 2).

    Args:
        counts: int64 [classes], training samples of each class, after resampling.
        method: how weights follow from counts.

    Returns:
        float64 [classes].
    """
    occurring = counts > 0
    raw = np.zeros(len(counts))
    raw[occurring] = _raw_weights(counts[occurring].astype(np.float64), method)
    scaled: Reals = raw / raw[occurring].mean()
    return scaled


def _raw_weights(counts: Reals, method: training_pb2.ClassWeightMethod.ValueType) -> Reals:
    """Up to a constant factor, which scaling to mean 1 takes out."""
    if method == training_pb2.CLASS_WEIGHT_METHOD_BALANCED:
        return 1 / counts
    if method == training_pb2.CLASS_WEIGHT_METHOD_SQRT:
        return np.asarray(1 / np.sqrt(counts))
    if method == training_pb2.CLASS_WEIGHT_METHOD_EFFECTIVE_NUMBER:
        # 1 - b^n, without the cancellation at small n.
        return np.asarray(-1 / np.expm1(counts * np.log(EFFECTIVE_NUMBER_BETA)))
    name = training_pb2.ClassWeightMethod.Name(method)
    raise ValueError(f"balancing.class_weight_method: {name} is not implemented")
