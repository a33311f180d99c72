"""The label of every row and the rows it was computed from.

A window takes the label of its last row. Rows are in the order of `windows.Series`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainwire.contract import Violation
from trainwire.v1 import training_pb2
from trainwire_server.data.returns import (
    Moves,
    find_moves,
    first_passage,
    over_horizon,
)
from trainwire_server.data.windows import Series
from trainwire_server.errors import JobFailure

UNLABELLED = -1
RETURN_CLASSES = ["SELL", "HOLD", "BUY"]
MOST_CLASSES = 1000

Integers = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spans:
    """Which rows have a label, and from which rows it was computed.

    Attributes:
        labelled: bool [rows].
        last_rows: int64 [rows], last row that each row's label was computed from.
        looks_back: rows before its own that each label was computed from.
        flat_rows: int64 [n], rows that lack nothing but a volatility to have a label.
    """

    labelled: npt.NDArray[np.bool_]
    last_rows: Integers
    looks_back: int
    flat_rows: Integers


@dataclass(frozen=True)
class Thresholds:
    """What a return must be beyond to be SELL or BUY.

    In units of the volatility that `volatility_window` rows give; relative returns where it is 0.
    """

    lower: float
    upper: float
    volatility_window: int


@dataclass(frozen=True)
class Labels:
    """What every row is labelled.

    Attributes:
        class_names: name of each class.
        classes: int64 [rows], class index of each row; UNLABELLED where it has none.
        spans: the rows that labels were computed from.
        thresholds: what made classes of returns; None where a column holds the label.
    """

    class_names: list[str]
    classes: Integers
    spans: Spans
    thresholds: Thresholds | None = None


def label_by_column(series: Series, codes: Integers, names: list[str], horizon: int) -> Labels:
    """Labels that stand in a column.

    Args:
        series: the rows' order.
        codes: int64 [rows], index into `names` of each row of the table (in the table's order);
            UNLABELLED where it is missing.
        names: the distinct values, sorted.
        horizon: rows ahead that the labels were computed from; ends with the series.

    Raises:
        JobFailure: TOO_MANY_CLASSES.
    """
    if len(names) > MOST_CLASSES:
        raise JobFailure(
            training_pb2.FAILURE_REASON_TOO_MANY_CLASSES,
            f"the label column has {len(names)} distinct values; allowed: at most {MOST_CLASSES}",
            (Violation("data.column.name", f"allowed: at most {MOST_CLASSES} classes"),),
        )
    classes, none = codes[series.order], np.empty(0, dtype=np.int64)
    labelled = classes != UNLABELLED
    spans = Spans(labelled, _last_rows(series, horizon), looks_back=0, flat_rows=none)
    return Labels(names, classes, spans)


@dataclass(frozen=True)
class PricedRows:
    """A price and the rows whose labels are made of it, before there are classes.

    Attributes:
        prices: float64 [rows].
        horizon: rows that labels look ahead.
        volatility_window: rows that labels look back; 0 for relative returns.
        moves: the rows with a label.
        spans: the rows that labels are computed from.
    """

    prices: Reals
    horizon: int
    volatility_window: int
    moves: Moves
    spans: Spans

    def returns(self) -> Reals:
        """Return over the horizon of each row with a label, float64 [n]."""
        return over_horizon(self.prices, self.moves, self.horizon)


def price_rows(
    series: Series,
    prices: Reals,
    horizon: int,
    volatility_window: int = 0,
    *,
    whole_path: bool = False,
) -> PricedRows:
    """The rows whose labels a price can make.

    Rows are unlabelled whose t + horizon lies beyond their series and, where returns are scaled,
    those with fewer than `volatility_window` rows of their series before them or without a
    volatility; and those that need a missing price.

    Args:
        series: the rows' order.
        prices: float64 [rows], in the table's order; finite and greater than 0, or NaN where
            missing (`returns.refuse_bad_prices`).
        whole_path: whether labels need all prices up to the horizon, not its last alone.
    """
    ordered = prices[series.order]
    moves = find_moves(series, ordered, horizon, volatility_window, whole_path=whole_path)
    labelled = np.zeros(series.row_count, dtype=np.bool_)
    labelled[moves.rows] = True
    spans = Spans(labelled, _last_rows(series, horizon), volatility_window, moves.flat)
    return PricedRows(ordered, horizon, volatility_window, moves, spans)


def label_by_return(priced: PricedRows, lower: float, upper: float) -> Labels:
    """SELL, HOLD or BUY: the return over the horizon is below, between or above the limits."""
    returns = priced.returns()
    sides = (returns > upper).astype(np.int64) - (returns < lower)
    return _label_by_side(priced, sides, lower, upper)


def label_by_quantile(
    priced: PricedRows, training_rows: Integers, lower: float, upper: float
) -> Labels:
    """SELL, HOLD or BUY, by quantiles of the returns of training samples alone.

    Quantiles are interpolated linearly (Hyndman and Fan 1996, type 7; NumPy's default).

    Args:
        training_rows: int64 [n], the rows that training samples take their labels from.
        lower: quantile below which returns are SELL, in (0, 1).
        upper: quantile above which returns are BUY, in (0, 1).

    Raises:
        JobFailure: INVALID_DATA when returns are too large to compute with.
    """
    trains = np.isin(priced.moves.rows, training_rows)
    with np.errstate(invalid="ignore"):
        limits = np.quantile(priced.returns()[trains], [lower, upper])
    if not np.isfinite(limits).all():
        raise JobFailure(
            training_pb2.FAILURE_REASON_INVALID_DATA,
            f"the {lower:g} and {upper:g} quantiles of the training windows' returns are "
            f"{limits[0]} and {limits[1]}; allowed: prices whose quotients are finite",
            (Violation("data.quantile.price_column", "returns must be finite"),),
        )
    return label_by_return(priced, float(limits[0]), float(limits[1]))


def label_by_barrier(priced: PricedRows, profit_taking: float, stop_loss: float) -> Labels:
    """SELL, HOLD or BUY: the lower, no or the upper barrier is passed first within the horizon.

    A label is computed from all rows up to the horizon, wherever a barrier is passed. Spans that
    ended there would be shorter for SELL and BUY than for HOLD: before a boundary of splits,
    purging would pick windows by their class.

    Args:
        profit_taking: the upper barrier, as returns are given in `priced`.
        stop_loss: the distance of the lower barrier.
    """
    lower, upper = -stop_loss, profit_taking
    sides = first_passage(priced.prices, priced.moves, priced.horizon, lower, upper)
    return _label_by_side(priced, sides, lower, upper)


def _label_by_side(priced: PricedRows, sides: Integers, lower: float, upper: float) -> Labels:
    """Labels of sides: -1, 0 and 1 for SELL, HOLD and BUY."""
    classes = np.full(len(priced.prices), UNLABELLED, dtype=np.int64)
    classes[priced.moves.rows] = 1 + sides
    thresholds = Thresholds(lower, upper, priced.volatility_window)
    return Labels(list(RETURN_CLASSES), classes, priced.spans, thresholds)


def _last_rows(series: Series, horizon: int) -> Integers:
    rows = np.arange(series.row_count, dtype=np.int64)
    return np.minimum(rows + horizon, series.ends - 1)
