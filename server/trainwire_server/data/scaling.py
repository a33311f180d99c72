"""Scaling of features, column by column: by the training rows alone, or by the rows before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainwire import rolling
from trainwire.contract import Violation
from trainwire.v1 import training_pb2
from trainwire_server.errors import JobFailure


@dataclass(frozen=True)
class Column:
    """A feature as error messages name it.

    Attributes:
        name: the column.
        path: the request's field that chooses it.
    """

    name: str
    path: str


@dataclass(frozen=True)
class Scaler:
    """Scales one feature as (x - mean) / scale.

    `constant` says that the training rows hold one value only; scale is 1 then.
    """

    mean: float
    scale: float
    constant: bool


UNSCALED = Scaler(mean=0.0, scale=1.0, constant=False)
_ROWS = 2**16
"""Scaled at once by the rows before: temporaries stay in the processor's cache."""


def fit(column: Column, values: npt.NDArray[np.float64]) -> Scaler:
    """Mean and population standard deviation of a feature's training rows.

    Args:
        column: for error messages.
        values: float64 [training rows], each row once.

    Raises:
        JobFailure: INVALID_DATA when the values are too large to compute with.
    """
    # By extremes: the computed deviation of a constant such as 0.1 is tiny, but not 0.
    if values.min() == values.max():
        return Scaler(float(values[0]), 1.0, constant=True)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = float(values.mean()), float(values.std())
    if not np.isfinite([mean, deviation]).all():
        raise _too_large(column, f"its standard deviation is not finite (mean {mean})")
    # Differences so small that their squares vanish: as good as constant.
    return Scaler(mean, deviation or 1.0, constant=deviation == 0)


def scale(
    column: Column, values: npt.NDArray[np.float64], scaler: Scaler
) -> npt.NDArray[np.float32]:
    """The scaled feature, float32 [rows]; computed in float64, so that large offsets keep detail.

    Args:
        column: for error messages.
        values: float64 [rows].
        scaler: what `fit` gave, or UNSCALED.

    Raises:
        JobFailure: INVALID_DATA when a value is NaN, infinite or too large for float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = ((values - scaler.mean) / scaler.scale).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(scaled))
    if len(bad):
        raise _too_large(column, f"{len(bad)} values, the first {values[bad[0]]}")
    return scaled


def roll(
    column: Column,
    values: npt.NDArray[np.float64],
    window: int,
    has_history: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float32]:
    """The feature scaled by the `window` rows that end with each row (`trainwire.rolling`).

    Args:
        column: for error messages.
        values: float64 [rows], series one after the other.
        window: rows to scale by, at least 2.
        has_history: bool [rows], rows with `window` rows of their series up to them.

    Returns:
        float32 [rows]; NaN for rows without history, which nothing should use.

    Raises:
        JobFailure: INVALID_DATA when a value is NaN, infinite or too large to compute with.
    """
    scaled = np.full(len(values), np.nan, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(window - 1, len(values), _ROWS):
            part = rolling.scale(values[first - window + 1 : first + _ROWS], window)
            scaled[first : first + _ROWS] = part
    scaled[~has_history] = np.nan
    bad = np.flatnonzero(has_history & ~np.isfinite(scaled))
    if len(bad):
        largest = np.abs(values[bad[0] - window + 1 : bad[0] + 1]).max()
        raise _too_large(column, f"{len(bad)} rows, the first by rows with values of {largest}")
    return scaled


def _too_large(column: Column, what: str) -> JobFailure:
    return JobFailure(
        training_pb2.FAILURE_REASON_INVALID_DATA,
        f"column {column.name!r} holds values that are not finite 32-bit floats once scaled: "
        f"{what}; rescale, clip or leave out the column",
        (Violation(column.path, "values must be finite 32-bit floats once scaled"),),
    )
