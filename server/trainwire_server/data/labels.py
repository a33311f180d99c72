"""The label of every row and the rows it was computed from.

A window takes the label of its last row. Rows are in the order of `windows.Series`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainwire.contract import Violation
from trainwire.v1 import training_pb2
from trainwire_server.data.windows import Series
from trainwire_server.errors import JobFailure

UNLABELLED = -1
RETURN_CLASSES = ["SELL", "HOLD", "BUY"]
MOST_CLASSES = 1000


@dataclass(frozen=True)
class Labels:
    """What every row is labelled.

    Attributes:
        class_names: name of each class.
        classes: int64 [rows], class index of each row; UNLABELLED where it has none.
        last_rows: int64 [rows], last row that each row's label was computed from.
    """

    class_names: list[str]
    classes: npt.NDArray[np.int64]
    last_rows: npt.NDArray[np.int64]


def label_by_column(
    series: Series, codes: npt.NDArray[np.int64], names: list[str], horizon: int
) -> Labels:
    """Labels that stand in a column.

    Args:
        series: the rows' order.
        codes: int64 [rows], index into `names` of each row of the table (in the table's order).
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
    return Labels(names, codes[series.order], _last_rows(series, horizon))


def label_by_return(
    series: Series,
    prices: npt.NDArray[np.float64],
    horizon: int,
    lower: float,
    upper: float,
) -> Labels:
    """SELL, HOLD or BUY: price[t + horizon] / price[t] - 1 is below, between or above the limits.

    Rows whose t + horizon lies beyond their series are unlabelled.

    Args:
        series: the rows' order.
        prices: float64 [rows], in the table's order.
        horizon: rows the return looks ahead.
        lower: returns below it are SELL.
        upper: returns above it are BUY.

    Raises:
        JobFailure: INVALID_DATA when a price is not greater than 0.
    """
    _refuse_bad_prices(prices)
    ordered = prices[series.order]
    now = np.arange(series.row_count, dtype=np.int64)
    now = now[now + horizon < series.ends]
    # A ratio too large for a float is infinite, and infinity is above every limit.
    with np.errstate(over="ignore"):
        returns = ordered[now + horizon] / ordered[now] - 1
    classes = np.full(series.row_count, UNLABELLED, dtype=np.int64)
    classes[now] = 1 + (returns > upper).astype(np.int64) - (returns < lower)
    return Labels(list(RETURN_CLASSES), classes, _last_rows(series, horizon))


def _last_rows(series: Series, horizon: int) -> npt.NDArray[np.int64]:
    rows = np.arange(series.row_count, dtype=np.int64)
    return np.minimum(rows + horizon, series.ends - 1)


def _refuse_bad_prices(prices: npt.NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~((prices > 0) & np.isfinite(prices)))
    if not len(bad):
        return
    raise JobFailure(
        training_pb2.FAILURE_REASON_INVALID_DATA,
        f"the price in row {bad[0]} of the table (counted from 0) is {prices[bad[0]]} "
        f"({len(bad)} such rows in all); allowed: finite numbers greater than 0",
        (Violation("data.threshold.price_column", "prices must be greater than 0"),),
    )
