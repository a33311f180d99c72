"""From a stored table and an effective request to scaled features and labelled samples.

Both layouts come to one matrix of time steps. Of windows every row of the table is a step, and a
sample takes `sequence_length` rows; of labelled series every row is a sample and brings all its
steps, which lie one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainwire.v1 import training_pb2
from trainwire_server.data import labels, samples, scaling, splits, windows
from trainwire_server.data.partition import Partition, partition
from trainwire_server.data.suitability import feature_columns
from trainwire_server.data.table import StoredTable
from trainwire_server.errors import JobFailure, listed


@dataclass(frozen=True)
class Split:
    """The windows of one split.

    Attributes:
        starts: int64 [n], first step of each window in `Prepared.features`, ascending.
        labels: int64 [n], class index of each window.
        rows: number of the table's rows that at least one of the windows covers.
    """

    starts: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    rows: int


@dataclass(frozen=True)
class Prepared:
    """All that training needs to know about the data; windows are never materialised.

    Attributes:
        features: float32 [steps, features], contiguous and scaled; series lie one after the other,
            each in time order.
        sequence_length: steps of a window.
        mean, scale: float64 [features]; a feature was scaled as (x - mean) / scale.
        purged_windows: windows left out because they meet two splits or an embargo.
        unlabelled_windows: windows left out because the rows their label looks ahead to do not
            exist.
    """

    features: npt.NDArray[np.float32]
    sequence_length: int
    feature_columns: list[str]
    class_names: list[str]
    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]
    train: Split
    validation: Split
    test: Split
    purged_windows: int
    unlabelled_windows: int
    warnings: list[training_pb2.JobWarning]


def prepare(request: training_pb2.TrainingRequest, table: Path) -> Prepared:
    """Label, split, purge, fit the scaler on training rows, scale.

    Args:
        request: an effective request (`contract.resolve`).
        table: the dataset's Arrow file, as `profile.ingest` wrote it.

    Raises:
        JobFailure: the data cannot be trained on; the message says where and why.
    """
    stored = StoredTable(table)
    series = _arrange(request, stored)
    labelled = _label(request, stored, series)
    cut = partition(request, stored, series, labelled)
    taken = samples.take_samples(series, labelled, cut.blocks, _rows_per_sample(request))
    samples.refuse_empty_splits(request, cut.blocks, taken)
    samples.refuse_single_class(request, taken)
    return _assemble(request, stored, series, cut, taken)


def _rows_per_sample(request: training_pb2.TrainingRequest) -> int:
    if request.data.WhichOneof("layout") == "samples":
        return 1
    return request.data.windows.sequence_length


def _arrange(request: training_pb2.TrainingRequest, stored: StoredTable) -> windows.Series:
    # Labelled series are rows in the order of the table: none of these columns is theirs.
    layout = request.data.windows
    times = stored.instants(layout.time_column) if layout.HasField("time_column") else None
    if not layout.HasField("group_column"):
        return windows.arrange(None, [], times, stored.row_count)
    groups, names = stored.codes(layout.group_column)
    return windows.arrange(groups, names, times, stored.row_count)


def _label(
    request: training_pb2.TrainingRequest, stored: StoredTable, series: windows.Series
) -> labels.Labels:
    if request.data.WhichOneof("target") == "threshold":
        target = request.data.threshold
        prices = stored.numbers(target.price_column)
        return labels.label_by_return(series, prices, target.horizon, target.lower, target.upper)
    column = request.data.column
    codes, names = stored.codes(column.name)
    return labels.label_by_column(series, codes, names, column.horizon)


def _assemble(
    request: training_pb2.TrainingRequest,
    stored: StoredTable,
    series: windows.Series,
    cut: Partition,
    taken: samples.Samples,
) -> Prepared:
    rows = _rows_per_sample(request)
    columns = feature_columns(request, stored.types())
    fitted = _fitted_rows(request, series, taken)
    read = _read_columns(request, stored, columns)
    features, scalers = _scale(read, len(columns), series.order, fitted)
    steps = len(features) // series.row_count
    return Prepared(
        features=features,
        sequence_length=rows * steps,
        feature_columns=columns,
        class_names=taken.class_names,
        mean=np.array([scaler.mean for scaler in scalers]),
        scale=np.array([scaler.scale for scaler in scalers]),
        train=_split(taken, splits.TRAIN, rows, steps, series.row_count),
        validation=_split(taken, splits.VALIDATION, rows, steps, series.row_count),
        test=_split(taken, splits.TEST, rows, steps, series.row_count),
        purged_windows=taken.count(splits.LEFT_OUT),
        unlabelled_windows=taken.unlabelled,
        warnings=[
            *(samples.warn_of_unaligned_series(series) if cut.by_order else ()),
            *cut.warnings,
            *samples.warn_of_unseen_classes(request, taken),
            *_warn_of_constant_features(request, columns, scalers),
        ],
    )


def _split(taken: samples.Samples, which: int, length: int, steps: int, rows: int) -> Split:
    """The samples of a split, each of so many rows of so many steps."""
    chosen = taken.splits == which
    starts = taken.starts[chosen]
    covered = windows.covered_rows(starts, length, rows)
    return Split(starts=starts * steps, labels=taken.classes[chosen], rows=int(covered.sum()))


def _fitted_rows(
    request: training_pb2.TrainingRequest, series: windows.Series, taken: samples.Samples
) -> npt.NDArray[np.bool_] | None:
    """The rows that statistics may come from; None when the request asks for none."""
    if request.data.scaling == training_pb2.SCALING_NONE:
        return None
    starts = taken.starts[taken.splits == splits.TRAIN]
    return windows.covered_rows(starts, _rows_per_sample(request), series.row_count)


_Column = tuple[str, npt.NDArray[np.float64]]


def _read_columns(
    request: training_pb2.TrainingRequest, stored: StoredTable, names: list[str]
) -> Iterator[_Column]:
    """Each column's name and values, float64 [rows, steps], one at a time."""
    if request.data.WhichOneof("layout") == "windows":
        yield from ((name, stored.numbers(name)[:, np.newaxis]) for name in names)
        return
    steps: dict[int, str] = {}
    for name in names:
        values = stored.lists(name)
        steps.setdefault(values.shape[1], name)
        _refuse_unequal_channels(steps)
        yield name, values


def _refuse_unequal_channels(steps: dict[int, str]) -> None:
    if len(steps) > 1:
        found = " and ".join(f"{name!r} of {length}" for length, name in steps.items())
        raise JobFailure(
            training_pb2.FAILURE_REASON_INVALID_DATA,
            f"the columns hold lists of different lengths: {found} values; allowed: one length",
        )


def _scale(
    columns: Iterator[_Column],
    count: int,
    order: npt.NDArray[np.int64],
    fitted_rows: npt.NDArray[np.bool_] | None,
) -> tuple[npt.NDArray[np.float32], list[scaling.Scaler]]:
    """Column by column, so that memory stays near one float32 matrix.

    Without `fitted_rows` the features stay as they are.
    """
    features = np.empty((0, count), dtype=np.float32)
    scalers = []
    for index, (name, column) in enumerate(columns):
        if index == 0:
            features = np.empty((column.size, count), dtype=np.float32)
        values = np.take(column, order, axis=0)
        scaler = scaling.UNSCALED
        if fitted_rows is not None:
            scaler = scaling.fit(name, values[fitted_rows].reshape(-1))
        features[:, index] = scaling.scale(name, values.reshape(-1), scaler)
        scalers.append(scaler)
    return features, scalers


def _warn_of_constant_features(
    request: training_pb2.TrainingRequest, columns: list[str], scalers: list[scaling.Scaler]
) -> list[training_pb2.JobWarning]:
    constant = [name for name, scaler in zip(columns, scalers, strict=True) if scaler.constant]
    if not constant:
        return []
    return [
        training_pb2.JobWarning(
            reason=training_pb2.WARNING_REASON_CONSTANT_FEATURE,
            message=f"{len(constant)} of {len(columns)} features have one value only over the "
            f"training rows, and are not scaled: {listed(constant, samples.MOST_NAMES)}",
            field=f"data.{request.data.WhichOneof('layout')}.feature_columns",
        )
    ]
