"""Standard scaling of features, column by column, with statistics of the training rows alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainwire.v1 import training_pb2
from trainwire_server.errors import JobFailure


@dataclass(frozen=True)
class Scaler:
    """Scales one feature as (x - mean) / scale.

    `constant` says that the training rows hold one value only; scale is 1 then.
    """

    mean: float
    scale: float
    constant: bool


UNSCALED = Scaler(mean=0.0, scale=1.0, constant=False)


def fit(name: str, values: npt.NDArray[np.float64]) -> Scaler:
    """Mean and population standard deviation of a feature's training rows.

    Args:
        name: the column, for error messages.
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
        raise _too_large(name, f"its standard deviation is not finite (mean {mean})")
    # Differences so small that their squares vanish: as good as constant.
    return Scaler(mean, deviation or 1.0, constant=deviation == 0)


def scale(name: str, values: npt.NDArray[np.float64], scaler: Scaler) -> npt.NDArray[np.float32]:
    """The scaled feature, float32 [rows]; computed in float64, so that large offsets keep detail.

    Args:
        name: the column, for error messages.
        values: float64 [rows].
        scaler: what `fit` gave, or UNSCALED.

    Raises:
        JobFailure: INVALID_DATA when a value is NaN, infinite or too large for float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = ((values - scaler.mean) / scaler.scale).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(scaled))
    if len(bad):
        raise _too_large(name, f"{len(bad)} values, the first {values[bad[0]]}")
    return scaled


def _too_large(name: str, what: str) -> JobFailure:
    return JobFailure(
        training_pb2.FAILURE_REASON_INVALID_DATA,
        f"column {name!r} holds values that are not finite 32-bit floats once scaled: {what}; "
        "rescale, clip or leave out the column",
    )
