"""Filling missing values from the row before: what trainer and predictions do alike.

Missing values are NaN. Needs NumPy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["fill", "leading"]


def leading(missing: npt.NDArray[np.bool_], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Rows before the first value of their series, which nothing before them can fill.

    Args:
        missing: bool [rows], series one after the other, each in time order.
        starts: int64 [rows], first row of each row's series.

    Returns:
        bool [rows].
    """
    last_known = np.maximum.accumulate(np.where(missing, -1, np.arange(len(missing))))
    return np.asarray(last_known < starts)


def fill(values: npt.NDArray[np.float64]) -> int:
    """Put the last value before it in the place of every NaN; the number of values filled.

    Args:
        values: float64 [rows], changed in place; series one after the other, each of which begins
            with a value.
    """
    missing = np.isnan(values)
    if not missing.any():
        return 0
    last_known = np.maximum.accumulate(np.where(missing, 0, np.arange(len(values))))
    values[missing] = values[last_known[missing]]
    return int(missing.sum())
