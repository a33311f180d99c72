"""The matrix of features: read column by column, filled and scaled.

Column by column, so that memory stays near one float32 matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from trainwire import gaps
from trainwire.contract import Violation
from trainwire.v1 import training_pb2
from trainwire_server.data import scaling, splits, windows
from trainwire_server.data.samples import Samples
from trainwire_server.data.suitability import feature_columns
from trainwire_server.data.table import StoredTable
from trainwire_server.errors import JobFailure

_RAW_WINDOWS, _RAW_VALUES = 100, 2**22
"""Most windows whose raw values are kept, and most values of them in all; one is always kept."""


@dataclass(frozen=True)
class RawWindows:
    """Some windows as they were before scaling, where scaling does not lead back.

    Attributes:
        starts: int64 [n], first step of each in `Prepared.features`, ascending; none was trained
            on.
        values: float64 [n, history + sequence_length, features].
    """

    starts: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Features:
    """The features, and what came of making them.

    Attributes:
        columns: their names.
        matrix: float32 [steps, features], contiguous and scaled; series lie one after the other,
            each in time order.
        scalers: what leads back to the values of each feature.
        raw_windows: some windows; None where scaling leads back.
        filled_values: values taken from the row before.
    """

    columns: list[str]
    matrix: npt.NDArray[np.float32]
    scalers: list[scaling.Scaler]
    raw_windows: RawWindows | None
    filled_values: int


def make_features(
    request: training_pb2.TrainingRequest,
    stored: StoredTable,
    series: windows.Series,
    taken: Samples,
    length: int,
) -> Features:
    """Fill and scale the features of all rows.

    Args:
        request: an effective request (`contract.resolve`).
        stored: from `missing.open_table`.
        series: from `missing.leave_out`.
        taken: says which rows train.
        length: rows of a sample.

    Raises:
        JobFailure: INVALID_DATA when values cannot be used, with the column.
    """
    path = f"data.{request.data.WhichOneof('layout')}.feature_columns"
    names = feature_columns(request, stored.types())
    columns = [scaling.Column(name, path) for name in names]
    how = _find_scaling(request, series, taken, length, len(names))
    return _scale(_read_columns(request, stored, columns), names, series, how)


def history_rows(request: training_pb2.TrainingRequest) -> int:
    """Rows before a window that its rows are scaled by."""
    rolls = request.data.scaling == training_pb2.SCALING_ROLLING
    return request.data.scaling_window - 1 if rolls else 0


@dataclass(frozen=True)
class _Scaling:
    """How features are scaled.

    Attributes:
        fills: whether missing values are filled before.
        kind: STANDARD, NONE or ROLLING.
        train_rows: bool [rows], rows that training samples cover.
        history: rows before each row that ROLLING scales by.
        has_history: bool [rows], rows that have so many.
        raw_starts: int64 [n], first rows of windows whose raw values are kept.
        raw_rows: int64 [n, history + sequence_length], rows of these windows.
    """

    fills: bool
    kind: training_pb2.Scaling.ValueType
    train_rows: npt.NDArray[np.bool_]
    history: int
    has_history: npt.NDArray[np.bool_]
    raw_starts: npt.NDArray[np.int64]
    raw_rows: npt.NDArray[np.int64]


def _find_scaling(
    request: training_pb2.TrainingRequest,
    series: windows.Series,
    taken: Samples,
    length: int,
    features: int,
) -> _Scaling:
    history = history_rows(request)
    train = taken.starts[taken.splits == splits.TRAIN]
    raw = _pick_held_out(taken, (history + length) * features) if history else train[:0]
    return _Scaling(
        fills=request.data.missing_values == training_pb2.MISSING_VALUES_FORWARD_FILL,
        kind=request.data.scaling,
        train_rows=windows.covered_rows(train, length, series.row_count),
        history=history,
        has_history=series.places >= history,
        raw_starts=raw,
        raw_rows=raw[:, np.newaxis] + np.arange(-history, length),
    )


def _pick_held_out(taken: Samples, values: int) -> npt.NDArray[np.int64]:
    """Some windows of validation and test, spread evenly; each of so many values."""
    held_out = taken.starts[(taken.splits == splits.VALIDATION) | (taken.splits == splits.TEST)]
    count = min(len(held_out), _RAW_WINDOWS, max(1, _RAW_VALUES // values))
    return np.asarray(held_out[np.linspace(0, len(held_out) - 1, count).astype(np.int64)])


_Values = npt.NDArray[np.float64]


def _read_columns(
    request: training_pb2.TrainingRequest, stored: StoredTable, columns: list[scaling.Column]
) -> Iterator[tuple[scaling.Column, _Values]]:
    """Each column and its values, float64 [rows, steps], one at a time."""
    is_list = request.data.WhichOneof("layout") == "samples"
    steps: dict[int, str] = {}
    for column in columns:
        name = column.name
        values = stored.lists(name) if is_list else stored.numbers(name)[:, np.newaxis]
        steps.setdefault(values.shape[1], name)
        _refuse_unequal_channels(steps)
        _refuse_infinite(column, values)
        yield column, values


def _refuse_infinite(column: scaling.Column, values: _Values) -> None:
    """In rows that are left out too: predictions, which read whole columns, refuse them as well."""
    rows = np.flatnonzero(np.isinf(values).any(axis=1))
    if len(rows):
        raise JobFailure(
            training_pb2.FAILURE_REASON_INVALID_DATA,
            f"column {column.name!r} has infinite values in {len(rows)} rows, the first in row "
            f"{rows[0]} of the table (counted from 0); allowed: finite values",
            (Violation(column.path, "infinite values are refused"),),
        )


def _refuse_unequal_channels(steps: dict[int, str]) -> None:
    if len(steps) > 1:
        found = " and ".join(f"{name!r} of {length}" for length, name in steps.items())
        raise JobFailure(
            training_pb2.FAILURE_REASON_INVALID_DATA,
            f"the columns hold lists of different lengths: {found} values; allowed: one length",
        )


def _scale(
    columns: Iterator[tuple[scaling.Column, _Values]],
    names: list[str],
    series: windows.Series,
    how: _Scaling,
) -> Features:
    count = len(names)
    features = np.empty((0, count), dtype=np.float32)
    raw = np.empty((*how.raw_rows.shape, count))
    scalers, filled = [], 0
    for index, (column, as_stored) in enumerate(columns):
        values = np.take(as_stored, series.order, axis=0)
        if index == 0:
            features = np.empty((values.size, count), dtype=np.float32)
        filled += gaps.fill(values.reshape(-1)) if how.fills else 0
        raw[:, :, index] = values[how.raw_rows, 0]
        features[:, index], scaler = _scale_column(column, values, how)
        scalers.append(scaler)
    kept = RawWindows(how.raw_starts, raw) if how.history else None
    return Features(names, features, scalers, kept, filled)


def _scale_column(
    column: scaling.Column, values: _Values, how: _Scaling
) -> tuple[npt.NDArray[np.float32], scaling.Scaler]:
    """A feature of [rows, steps] as float32 [rows x steps], and what leads back to its values."""
    if how.kind == training_pb2.SCALING_ROLLING:
        scaled = scaling.roll(column, values[:, 0], how.history + 1, how.has_history)
        # It is 0 where a feature stays as it is, and nowhere else for all of a stretch.
        constant = not scaled[how.train_rows].any()
        return scaled, replace(scaling.UNSCALED, constant=constant)
    scaler = scaling.UNSCALED
    if how.kind != training_pb2.SCALING_NONE:
        scaler = scaling.fit(column, values[how.train_rows].reshape(-1))
    return scaling.scale(column, values.reshape(-1), scaler), scaler
