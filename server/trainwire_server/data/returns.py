"""Returns of a price: over a horizon, in units of volatility, and past which barrier first.

All prices here are in the order of `windows.Series`, and no figure looks beyond its series.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainwire import rolling
from trainwire.contract import Violation
from trainwire.v1 import training_pb2
from trainwire_server.data.windows import Series
from trainwire_server.errors import JobFailure

_ROUNDING = 1e-12
"""Quotients of floats are exact to 1e-16; a deviation of returns below this is rounding."""

_AT_ONCE = 2**16
"""Rows whose barriers are looked for together; the extremes of all prices ahead take memory."""

Reals = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Moves:
    """The rows that have a future to tell of, and the unit in which it is told.

    Attributes:
        rows: int64 [n], ascending: rows with `horizon` rows of their series after them, all prices
            that are needed and, where returns are scaled, a volatility.
        units: float64 [n], the relative return that counts as 1: the volatility over the horizon,
            or 1 where returns are not scaled.
        flat: int64 [m], ascending: rows that lack nothing but a volatility, because the price did
            not move in the rows that it is taken from, or moved by more than floats can tell.
    """

    rows: Rows
    units: Reals
    flat: Rows


def refuse_bad_prices(series: Series, prices: Reals, path: str, *, may_lack: bool = False) -> None:
    """Prices must be finite and greater than 0.

    Args:
        series: the rows that count.
        prices: float64 [rows], in the table's order.
        path: the field that names the column.
        may_lack: whether some may be NaN, which is missing.

    Raises:
        JobFailure: INVALID_DATA, with the first row concerned.
    """
    rows = np.sort(series.order)
    usable = (prices[rows] > 0) & np.isfinite(prices[rows])
    bad = rows[~(usable | np.isnan(prices[rows]) if may_lack else usable)]
    if not len(bad):
        return
    raise JobFailure(
        training_pb2.FAILURE_REASON_INVALID_DATA,
        f"the price in row {bad[0]} of the table (counted from 0) is {prices[bad[0]]} "
        f"({len(bad)} such rows in all); allowed: finite numbers greater than 0",
        (Violation(path, "prices must be greater than 0"),),
    )


def find_moves(
    series: Series,
    prices: Reals,
    horizon: int,
    volatility_window: int,
    *,
    whole_path: bool = False,
) -> Moves:
    """The rows with a return over the horizon, and its unit.

    The volatility of a row is the sample deviation of its last `volatility_window` one-row returns,
    which ends with the row itself, times sqrt(horizon).

    Args:
        prices: float64 [rows]; NaN where missing.
        volatility_window: rows; 0 for relative returns.
        whole_path: whether all prices up to the horizon are needed, not its last alone.
    """
    rows = np.arange(series.row_count, dtype=np.int64)
    rows = rows[(rows + horizon < series.ends) & (series.places >= volatility_window)]
    ahead = rows + (1 if whole_path else horizon)
    lacking = _count_missing(prices, rows - volatility_window, rows + 1)
    lacking += _count_missing(prices, ahead, rows + horizon + 1)
    rows = rows[lacking == 0]
    if not volatility_window:
        return Moves(rows, np.ones(len(rows)), rows[:0])
    # With its series' first rows left out, every row counts from the window before it.
    deviations = _deviations(prices, volatility_window)[rows - volatility_window]
    moving = np.isfinite(deviations) & (deviations > _ROUNDING)
    return Moves(rows[moving], deviations[moving] * np.sqrt(horizon), rows[~moving])


def _count_missing(prices: Reals, firsts: Rows, ends: Rows) -> Rows:
    """Missing prices from each first row to before its end."""
    before = np.concatenate(([0], np.cumsum(np.isnan(prices)))).astype(np.int64)
    return np.asarray(before[ends] - before[firsts])


def _deviations(prices: Reals, window: int) -> Reals:
    """Sample deviation of the `window` one-row returns after each price, float64 [rows - window].

    It depends, to the last bit, on its own rows alone.
    """
    if len(prices) <= window:
        return np.empty(0)
    returns = _quotient(prices[1:], prices[:-1])
    with np.errstate(over="ignore", invalid="ignore"):
        _, squares = rolling.moments(returns, window)
    return np.asarray(np.sqrt(squares / (window - 1)))


def _quotient(later: Reals, earlier: Reals) -> Reals:
    # A ratio too large for a float is infinite, and infinity is above every limit.
    with np.errstate(over="ignore"):
        return later / earlier - 1


def over_horizon(prices: Reals, moves: Moves, horizon: int) -> Reals:
    """The return over the horizon of every row of `moves`, in its unit, float64 [n]."""
    with np.errstate(over="ignore"):
        return _quotient(prices[moves.rows + horizon], prices[moves.rows]) / moves.units


def first_passage(
    prices: Reals, moves: Moves, horizon: int, lower: float, upper: float
) -> npt.NDArray[np.int64]:
    """Which limit the return of every row of `moves` is beyond first, within the horizon.

    The barriers of Lopez de Prado 2018, "Advances in Financial Machine Learning", snippet 3.2; a
    price on a barrier has not passed it.

    Args:
        lower: in the rows' units.
        upper: in the rows' units.

    Returns:
        int64 [n]: -1 below `lower`, 1 above `upper`, 0 for neither.
    """
    passed = np.zeros(len(moves.rows), dtype=np.int64)
    for first in range(0, len(moves.rows), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        with np.errstate(over="ignore"):
            limits = lower * moves.units[part], upper * moves.units[part]
        passed[part] = _first_passage(prices, moves.rows[part], horizon, *limits)
    return passed


def _first_passage(
    prices: Reals, rows: Rows, horizon: int, lower: Reals, upper: Reals
) -> npt.NDArray[np.int64]:
    """The same of some rows, with limits of their own.

    The number of rows before the first passage is found from its highest binary digit down: a
    stretch is skipped whose lowest and highest price are within the limits.
    """
    near = prices[rows[0] : rows[-1] + horizon + 1]
    rows = rows - rows[0]
    now, quiet = near[rows], np.zeros(len(rows), dtype=np.int64)
    for step, lowest, highest in reversed(_extremes(near, horizon)):
        fits = np.flatnonzero(quiet + step <= horizon)
        begins = rows[fits] + quiet[fits] + 1
        is_quiet = _quotient(lowest[begins], now[fits]) >= lower[fits]
        is_quiet &= _quotient(highest[begins], now[fits]) <= upper[fits]
        quiet[fits[is_quiet]] += step
    moved = _quotient(near[rows + np.minimum(quiet + 1, horizon)], now)
    return (moved > upper).astype(np.int64) - (moved < lower)


def _extremes(prices: Reals, horizon: int) -> list[tuple[int, Reals, Reals]]:
    """Lowest and highest of the 1, 2, 4... prices that begin at each, up to `horizon` prices."""
    found = [(1, prices, prices)]
    while 2 * found[-1][0] <= horizon:
        count, low, high = found[-1]
        low = np.minimum(low[:-count], low[count:])
        high = np.maximum(high[:-count], high[count:])
        found.append((2 * count, low, high))
    return found
