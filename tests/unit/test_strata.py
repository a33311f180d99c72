"""The stratified split: every class in every part, near the shares asked for, by chance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwire_server.data import strata

CLASSES = st.lists(st.integers(0, 5), min_size=1, max_size=80)
SHARES = st.sampled_from([(0.7, 0.15, 0.15), (0.8, 0.2), (0.98, 0.01, 0.01), (0.05, 0.9, 0.05)])


@given(CLASSES, SHARES, st.integers(0, 2**31 - 1))
def test_every_class_is_in_every_part_or_whole_in_the_first(
    classes: list[int], shares: tuple[float, ...], seed: int
) -> None:
    parts, whole = strata.stratify(np.array(classes), shares, seed)
    assert len(parts) == len(classes)
    for each in set(classes):
        found = [int(part) for part, its in zip(parts, classes, strict=True) if its == each]
        if len(found) < len(shares):
            assert set(found) == {0}
        else:
            assert set(found) == set(range(len(shares)))
        assert (each in whole) == (len(found) < len(shares))
    assert whole == sorted(set(whole))


@given(st.integers(3, 2000), SHARES)
def test_sizes_are_the_shares_rounded(members: int, shares: tuple[float, ...]) -> None:
    parts, _ = strata.stratify(np.zeros(members, dtype=np.int64), shares, 0)
    sizes = np.bincount(parts)
    assert sizes.sum() == members
    # A part of at least one member may take what the others would round to.
    spare = sum(share * members < 1 for share in shares)
    for size, share in zip(sizes, shares, strict=True):
        assert size == 1 or abs(size - share * members) < 1 + spare


@pytest.mark.parametrize(
    ("members", "sizes"),
    [(3, [1, 1, 1]), (4, [2, 1, 1]), (10, [7, 2, 1]), (20, [14, 3, 3]), (100, [70, 15, 15])],
)
def test_sizes_of_the_default_shares(members: int, sizes: list[int]) -> None:
    parts, _ = strata.stratify(np.zeros(members, dtype=np.int64), (0.7, 0.15, 0.15), 1)
    assert np.bincount(parts).tolist() == sizes


def test_the_seed_decides_and_nothing_else() -> None:
    classes = np.arange(90) % 3
    first, _ = strata.stratify(classes, (0.7, 0.15, 0.15), 5)
    again, _ = strata.stratify(classes, (0.7, 0.15, 0.15), 5)
    other, _ = strata.stratify(classes, (0.7, 0.15, 0.15), 6)
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_places_in_the_file_have_the_same_chance() -> None:
    """Sorted by class or not, no place is more likely to be tested than another."""
    classes = np.arange(30) // 10
    tested = np.zeros(30)
    for seed in range(300):
        tested += strata.stratify(classes, (0.5, 0.2, 0.3), seed)[0] == 2
    assert np.abs(tested / 300 - 0.3).max() < 0.12
