"""The class that probabilities stand for: one rule for what trains and what predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["decide"]


def decide(
    probabilities: npt.NDArray[Any], thresholds: Sequence[float] | npt.NDArray[np.float64] = ()
) -> npt.NDArray[np.int64]:
    """Index of the class with the largest probability / threshold, the first of several.

    Args:
        probabilities: floats [n, classes].
        thresholds: positive, [classes]; empty: that of the largest probability.

    Returns:
        int64 [n].
    """
    # In float64: what differs in float32 still differs after the division.
    ratios = probabilities.astype("float64") / thresholds if len(thresholds) else probabilities
    found: npt.NDArray[np.int64] = ratios.argmax(axis=1)
    return found
