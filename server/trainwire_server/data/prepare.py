"""From a stored table and an effective request to scaled features and labelled samples.

Both layouts come to one matrix of time steps. Of windows every row of the table is a step, and a
sample takes `sequence_length` rows; of labelled series every row is a sample and brings all its
steps, which lie one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainwire.v1 import training_pb2
from trainwire_server.data import labels, missing, returns, samples, splits, windows
from trainwire_server.data.features import Features, RawWindows, history_rows, make_features
from trainwire_server.data.partition import Partition, partition
from trainwire_server.data.table import StoredTable
from trainwire_server.data.targets import find_target
from trainwire_server.errors import listed

Integers = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class Split:
    """The windows of one split, in integers as small as will do: a run holds them to its end.

    Attributes:
        starts: [n], first step of each window in `Prepared.features`, ascending.
        labels: [n], class index of each window.
        rows: number of the table's rows that at least one of the windows covers.
    """

    starts: Integers
    labels: Integers
    rows: int


@dataclass(frozen=True)
class Prepared:
    """All that training needs to know about the data; windows are never materialised.

    Attributes:
        features: float32 [steps, features], contiguous and scaled; series lie one after the other,
            each in time order.
        sequence_length: steps of a window.
        mean, scale: float64 [features]; a feature was scaled as (x - mean) / scale, before it was
            scaled by the rows before, if it was.
        purged_windows: windows left out because they meet two splits or an embargo.
        unlabelled_windows: windows left out because they have no label: it, or a price or row that
            it is computed from, is missing, or their price has no volatility.
        thresholds: what made classes of returns; None where a column holds the label.
        history: rows before a window that its rows are scaled by; features are NaN in rows that
            have fewer rows before them.
        raw_windows: some of the windows; None without history.
        unscaled_windows: windows left out because the history of their rows does not exist.
        dropped_rows: rows of the table left out because they lack a feature.
        filled_values: values taken from the row before.
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
    thresholds: labels.Thresholds | None = None
    history: int = 0
    raw_windows: RawWindows | None = None
    unscaled_windows: int = 0
    dropped_rows: int = 0
    filled_values: int = 0


def prepare(request: training_pb2.TrainingRequest, table: Path) -> Prepared:
    """Leave out rows with gaps, split, purge, label, fit the scaler on training rows, scale.

    Labels come after splits, because some are made of what the training rows say.

    Args:
        request: an effective request (`contract.resolve`).
        table: the dataset's Arrow file, as `profile.ingest` wrote it.

    Raises:
        JobFailure: the data cannot be trained on; the message says where and why.
    """
    stored = missing.open_table(request, StoredTable(table))
    series = missing.leave_out(request, stored, _arrange(request, stored))
    cut = partition(request, stored, series)
    spans, label = _read_target(request, stored, series)
    length, history = _rows_per_sample(request), history_rows(request)
    places = samples.place_samples(series, spans, cut.blocks, length, history)
    samples.refuse_empty_splits(request, series, cut.blocks, places)
    labelled = label(places.label_rows[places.splits == splits.TRAIN])
    taken = samples.take_samples(places, labelled)
    samples.refuse_single_class(request, taken)
    return _assemble(request, stored, series, cut, taken, labelled.thresholds)


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


Label = Callable[[labels.Integers], labels.Labels]
"""Makes the labels once it is known from which rows training samples take theirs."""


def _read_target(
    request: training_pb2.TrainingRequest, stored: StoredTable, series: windows.Series
) -> tuple[labels.Spans, Label]:
    """The rows that labels are computed from, and what makes them."""
    target = find_target(request)
    if not target.is_price:
        codes, names = stored.codes(target.column)
        labelled = labels.label_by_column(series, codes, names, target.horizon)
        return labelled.spans, lambda _: labelled
    prices = stored.numbers(target.column)
    may_lack = target.column in stored.gaps
    returns.refuse_bad_prices(series, prices, target.column_path, may_lack=may_lack)
    barriers = target.member == "triple_barrier"
    priced = labels.price_rows(
        series, prices, target.horizon, target.volatility_window, whole_path=barriers
    )
    return priced.spans, partial(_label_by_price, request.data, priced)


def _label_by_price(
    data: training_pb2.DataParams, priced: labels.PricedRows, training_rows: labels.Integers
) -> labels.Labels:
    match data.WhichOneof("target"):
        case "quantile":
            quantiles = data.quantile.lower_quantile, data.quantile.upper_quantile
            return labels.label_by_quantile(priced, training_rows, *quantiles)
        case "triple_barrier":
            barriers = data.triple_barrier.profit_taking, data.triple_barrier.stop_loss
            return labels.label_by_barrier(priced, *barriers)
        case _:
            return labels.label_by_return(priced, data.threshold.lower, data.threshold.upper)


def _assemble(
    request: training_pb2.TrainingRequest,
    stored: StoredTable,
    series: windows.Series,
    cut: Partition,
    taken: samples.Samples,
    thresholds: labels.Thresholds | None,
) -> Prepared:
    rows = _rows_per_sample(request)
    features = make_features(request, stored, series, taken, rows)
    steps = len(features.matrix) // series.row_count
    return Prepared(
        features=features.matrix,
        sequence_length=rows * steps,
        feature_columns=features.columns,
        class_names=taken.class_names,
        mean=np.array([scaler.mean for scaler in features.scalers]),
        scale=np.array([scaler.scale for scaler in features.scalers]),
        train=_split(taken, splits.TRAIN, rows, steps, series.row_count),
        validation=_split(taken, splits.VALIDATION, rows, steps, series.row_count),
        test=_split(taken, splits.TEST, rows, steps, series.row_count),
        purged_windows=taken.count(splits.LEFT_OUT),
        unlabelled_windows=taken.unlabelled,
        thresholds=thresholds,
        history=history_rows(request),
        raw_windows=features.raw_windows,
        unscaled_windows=taken.unscaled,
        dropped_rows=series.left_out,
        filled_values=features.filled_values,
        warnings=[
            *(samples.warn_of_unaligned_series(series) if cut.by_order else ()),
            *cut.warnings,
            *samples.warn_of_unseen_classes(request, taken),
            *samples.warn_of_flat_prices(request, taken),
            *_warn_of_constant_features(request, features),
        ],
    )


def _split(taken: samples.Samples, which: int, length: int, steps: int, rows: int) -> Split:
    """The samples of a split, each of so many rows of so many steps."""
    chosen = taken.splits == which
    starts = taken.starts[chosen]
    covered = windows.covered_rows(starts, length, rows)
    return Split(
        starts=narrow(starts * steps, rows * steps),
        labels=taken.classes[chosen].astype(np.int16),
        rows=int(covered.sum()),
    )


def narrow(values: Integers, limit: int) -> Integers:
    """In four bytes each if the limit, which none exceeds, fits in as many."""
    return values.astype(np.int32) if limit <= np.iinfo(np.int32).max else values


def _warn_of_constant_features(
    request: training_pb2.TrainingRequest, features: Features
) -> list[training_pb2.JobWarning]:
    columns = features.columns
    fitted = zip(columns, features.scalers, strict=True)
    constant = [name for name, scaler in fitted if scaler.constant]
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
