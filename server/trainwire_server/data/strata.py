"""The stratified split: by chance, and of every class the same shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_STREAM = 2**31
"""Beyond every epoch: what training draws from the same seed is drawn from other streams."""


def stratify(
    classes: npt.NDArray[np.int64], shares: Sequence[float], seed: int
) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Deal the members of every class out to parts.

    A part gets its share of each class, rounded so that the sizes add up and that no part of a
    class is empty. A class with fewer members than there are parts stays whole, in the first one.

    Args:
        classes: int64 [samples], class index of each.
        shares: of each part; they add up to 1.
        seed: which members go where.

    Returns:
        int64 [samples], the part of each sample, and the classes that stayed whole, ascending.
    """
    rng = np.random.default_rng((seed, _STREAM))
    parts = np.zeros(len(classes), dtype=np.int64)
    whole = []
    for each in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == each))
        if len(members) < len(shares):
            whole.append(int(each))
            continue
        sizes = _sizes(len(members), np.asarray(shares))
        parts[members] = np.repeat(np.arange(len(shares)), sizes)
    return parts, whole


def _sizes(members: int, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Whole numbers of at least 1 near `shares * members` that add up to `members`."""
    ideal = shares * members
    sizes = np.maximum(np.floor(ideal), 1).astype(np.int64)
    while (missing := members - int(sizes.sum())) != 0:
        if missing > 0:
            sizes[np.argmax(ideal - sizes)] += 1
        else:
            sizes[np.argmax(np.where(sizes > 1, sizes - ideal, -np.inf))] -= 1
    return sizes
