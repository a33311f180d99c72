"""Splits by order: which rows, and then which windows, train, validate and test.

Rows are divided into blocks first, by time here or otherwise (`partition`). A sample belongs to a
split when its whole span, from its window's first row to its label's last row, lies in that split's
block; samples that do not are purged (Lopez de Prado 2018, "Advances in Financial Machine
Learning", section 7.4). In a forward split the embargo is the gap at the beginning of the later
block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainwire_server.data.windows import Series

TRAIN, VALIDATION, TEST = 0, 1, 2
LEFT_OUT = -1


@dataclass(frozen=True)
class Fractions:
    """Shares of the rows that train and that validate; the rest tests."""

    train: float
    validation: float


def assign_rows(series: Series, fractions: Fractions, embargo_rows: int) -> npt.NDArray[np.int8]:
    """The block of each row: TRAIN, VALIDATION, TEST, or LEFT_OUT for embargoed rows.

    With times the boundaries are instants shared by all series: those of the rows at positions
    floor(train N) and floor((train + validation) N) of all N rows sorted by time. Without, they
    are those positions in each series. The first `embargo_rows` rows of a block are left out where
    the series has an earlier block.

    Returns:
        int8 [rows].
    """
    if series.instants is not None:
        blocks = _cut_by_time(series.instants, fractions)
    else:
        blocks = _cut_by_position(series, fractions)
    blocks[_embargoed(series, blocks, embargo_rows)] = LEFT_OUT
    return blocks


def _cut_by_time(instants: npt.NDArray[np.int64], fractions: Fractions) -> npt.NDArray[np.int8]:
    rows = len(instants)
    # Ranks are less than the number of rows: the sentinel is later than every row.
    by_time = np.append(np.sort(instants), rows)
    first, second = by_time[_positions(fractions, np.array([rows]))[:, 0]]
    return _blocks(instants, first, second)


def _cut_by_position(series: Series, fractions: Fractions) -> npt.NDArray[np.int8]:
    lengths = series.lengths
    first, second = (np.repeat(cut, lengths) for cut in _positions(fractions, lengths))
    return _blocks(series.places, first, second)


def _blocks(
    places: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
) -> npt.NDArray[np.int8]:
    """TRAIN before the first boundary, VALIDATION before the second, TEST from there on."""
    return (places >= first).astype(np.int8) + (places >= second).astype(np.int8)


def _positions(fractions: Fractions, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Positions of the two boundaries in series of these lengths, int64 [2, series]."""
    shares = np.array([[fractions.train], [fractions.train + fractions.validation]])
    return np.floor(shares * lengths).astype(np.int64)


def _embargoed(
    series: Series, blocks: npt.NDArray[np.int8], embargo_rows: int
) -> npt.NDArray[np.bool_]:
    """Rows less than `embargo_rows` after a change of block within their series, bool [rows]."""
    rows = np.arange(len(blocks))
    begins_series = np.zeros(len(blocks), dtype=np.bool_)
    begins_series[series.bounds[:-1][series.lengths > 0]] = True
    begins = begins_series | (np.diff(blocks, prepend=blocks[:1]) != 0)
    block_start = np.maximum.accumulate(np.where(begins, rows, 0))
    result: npt.NDArray[np.bool_] = rows - block_start < embargo_rows
    return result & ~begins_series[block_start]


def take_last(series: Series, chosen: npt.NDArray[np.bool_], share: float) -> npt.NDArray[np.bool_]:
    """The last ones of the chosen rows, bool [rows]: by time, or else in each series.

    Args:
        chosen: bool [rows].
        share: of the chosen rows; those from position floor((1 - share) N) on.
    """
    if series.instants is not None:
        # Ranks are less than the number of rows: the sentinel is later than every row.
        by_time = np.append(np.sort(series.instants[chosen]), series.row_count)
        last: npt.NDArray[np.bool_] = series.instants >= by_time[_cut(share, len(by_time) - 1)]
        return chosen & last
    before = np.concatenate(([0], np.cumsum(chosen)))
    counts = np.diff(before[series.bounds])
    cuts = before[series.bounds[:-1]] + [_cut(share, count) for count in counts]
    last = before[:-1] >= np.repeat(cuts, series.lengths)
    return chosen & last


def _cut(share: float, count: int) -> int:
    """Position of the first one of the last rows."""
    return math.floor((1 - share) * count)


def assign_windows(
    blocks: npt.NDArray[np.int8],
    starts: npt.NDArray[np.int64],
    last_rows: npt.NDArray[np.int64],
) -> npt.NDArray[np.int8]:
    """The split of each sample: TRAIN, VALIDATION or TEST, or LEFT_OUT for purged ones.

    Args:
        blocks: int8 [rows], as `assign_rows` gives them.
        starts: int64 [samples], first row of each span.
        last_rows: int64 [samples], last row of each span; in the same series as the first.

    Returns:
        int8 [samples].
    """
    runs = np.cumsum(np.diff(blocks, prepend=blocks[:1]) != 0)
    whole = runs[starts] == runs[last_rows]
    return np.where(whole, blocks[starts], np.int8(LEFT_OUT))
